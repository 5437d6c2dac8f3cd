"""Noise: the sum keeps exactly what it needs, whoever vanishes, and no seed of it is revealed too many."""

from __future__ import annotations

import numpy as np
import pytest
from msgspec import structs

from protocols import pairwise
from protocols.errors import Aborted
from protocols.pairwise import Revealed
from protocols.xnoise import Noisy, noise_seed

NOISY = {"noise": Noisy(900.0, colluding=1), "bits": 16, "dropout": 0.25}
INCLUDED = ("bob", "cyd", "dan", "eve", "fay", "gus", "hal")


def play_to_masked(cohort, silent=None):
    """Run until the vectors are in; what the server sent then, and each client's secrets of its noise."""
    up = cohort.down(cohort.until("shares", silent))
    secrets = {n: c._state.noise for n, c in cohort.clients.items() if hasattr(c._state, "noise")}
    return cohort.close_after(up, silent), secrets


def part(cohort, secret, i):
    """The samples of component i, or for -1 of the base."""
    seed = noise_seed(cohort.session.hash, secret)
    return cohort.session.levels.parts[i].sample(seed, cohort.session.dim).astype(np.int64)


def expected(cohort, secrets, result, left_in=()):
    """The included vectors with the noise that must remain; `left_in` are further (client, component)."""
    levels = cohort.session.levels
    excess = levels.excess(len(result.included))
    total = np.zeros(cohort.session.dim, np.int64)
    for name in result.included:
        total += cohort.vectors[name].astype(np.int64)
        for i, secret in zip((*range(levels.count), -1), secrets[name], strict=True):
            if i not in excess or (name, i) in left_in:
                total += part(cohort, secret, i)
    half = 1 << cohort.session.ring.bits - 1
    return (total + half) % (2 * half) - half


@pytest.mark.parametrize(
    "silent",
    [{}, {"ada": "masked"}, {"ada": "keys"}, {"ada": "shares", "hal": "masked"}, {"bob": "reveals"},
     {"ada": "masked", "hal": "reveals"}],
)  # fmt: skip
def test_the_sum_keeps_exactly_the_noise_it_needs(play, any_model, silent):
    cohort = play(threat_model=any_model, **NOISY)
    down, secrets = play_to_masked(cohort, silent)
    cohort.go_on(down, silent=silent)
    result = cohort.server.result
    assert result.sum.dtype == np.int64
    assert (result.sum == expected(cohort, secrets, result)).all()
    levels, included = cohort.session.levels, len(result.included)
    assert included == 8 - sum(stage != "reveals" for stage in silent.values())
    assert 900 <= levels.remaining(included) <= 900 * 1.015
    assert not [f for f in result.faults if "excess" in f.cause]


def test_inputs_may_be_negative_and_the_sum_is_centred(play):
    cohort = play(**NOISY)
    cohort.vectors = {n: -v.astype(np.int64) for n, v in cohort.vectors.items()}
    down, secrets = play_to_masked(cohort)
    cohort.go_on(down)
    result = cohort.server.result
    assert (result.sum == expected(cohort, secrets, result)).all()
    assert result.sum.min() < -1000


def revealed_kinds(cohort, kit, holder, answer, dealt, included):
    """(dealer, secret) -> whether `answer` opens that commitment."""
    session = cohort.session
    size, count = pairwise._opening_bytes(session), pairwise._secrets(session)
    shares = kit.read(answer).shares
    openings = [shares[i : i + size] for i in range(0, len(shares), size)]
    place, found = cohort.place(holder), set()
    for dealer in session.names:
        d = cohort.place(dealer)
        promised = dealt[dealer].commitments[32 * count * place : 32 * count * (place + 1)]
        for kind in range(count):
            for opening in openings:
                made = pairwise._share_commitment(session, d, place, kind, opening)
                if made == promised[32 * kind : 32 * kind + 32]:
                    found.add((dealer, kind))
    return found


def test_no_seed_is_revealed_but_of_included_clients_excess(play, kit):
    """Not of a component that the sum needs, and of a dropped client nothing but its mask key."""
    cohort = play(threat_model="malicious", **NOISY)
    up = cohort.down(cohort.until("shares"))
    dealt = {e.sender: kit.read(e) for e in up}
    silent = {"ada": "masked"}
    down = cohort.go_on(cohort.close_after(up), "reveals", silent)
    excess = cohort.session.levels.excess(7)
    assert 0 < len(excess) < cohort.session.levels.count
    for answer in cohort.down(down):
        found = revealed_kinds(cohort, kit, answer.sender, answer, dealt, INCLUDED)
        assert found == {("ada", 1)} | {(d, k) for d in INCLUDED for k in (0, *(2 + i for i in excess))}


def test_a_set_beyond_the_dropout_ceiling_is_not_answered(play, any_model):
    """The noise of so few would not do; a client sees that by itself."""
    cohort = play(threat_model=any_model, **NOISY)
    assert cohort.session.min_included == 6
    for envelope in cohort.down(cohort.until("masked")):
        assert len(envelope.frame)
    names = ("ada", "bob", "cyd", "dan", "eve")
    for name in names:
        answers = cohort.tell(name, cohort.question(names))
        assert all(isinstance(a, pairwise.Stop) for a in answers)
        assert "at least 6 must be included" in cohort.clients[name].result.cause


def test_excess_whose_seed_was_not_committed_to_stays(play, kit, any_model):
    """A dealer that shared another seed than it used: nothing is subtracted that may not be in the sum."""
    cohort = play(threat_model=any_model, **NOISY)
    up = cohort.down(cohort.until("shares"))
    secrets = {n: c._state.noise for n, c in cohort.clients.items()}
    changed = []
    for envelope in up:
        if envelope.sender == "bob":
            message = kit.read(envelope)
            spoilt = bytearray(message.seed_commitments)
            spoilt[32 * 2] ^= 1  # of component 1
            envelope = kit.changed(envelope, structs.replace(message, seed_commitments=bytes(spoilt)))
        changed.append(envelope)
    silent = {"ada": "masked"}
    cohort.go_on(cohort.close_after(changed), silent=silent)
    result = cohort.server.result
    assert 1 in cohort.session.levels.excess(7)
    assert (result.sum == expected(cohort, secrets, result, left_in={("bob", 1)})).all()
    assert [f.cause for f in result.faults if "bob" in f.cause] == [
        "excess noise of bob stays in the sum: its seed does not open"
    ]


def test_too_few_good_shares_of_excess_noise_leave_it_in(play, kit, any_model):
    """Holders spoil the shares of one component, not those of seeds: the round still has its sum."""
    cohort = play(threat_model=any_model, **NOISY)
    down, secrets = play_to_masked(cohort)
    silent = {"ada": "masked"}
    down = cohort.go_on(down, "reveals", silent)
    excess = cohort.session.levels.excess(7)
    size, row = pairwise._opening_bytes(cohort.session), 1 + len(excess)
    changed = []
    for envelope in cohort.down(down):
        message = kit.read(envelope)
        shares = bytearray(message.shares)
        at = (1 + row * 0) * size + size  # ada's key, then bob's seed, then bob's first component
        shares[at] ^= 0x80
        changed.append(kit.changed(envelope, structs.replace(message, shares=bytes(shares))))
    cohort.up(changed)
    result = cohort.server.result
    assert not isinstance(result, Aborted), result
    assert (result.sum == expected(cohort, secrets, result, left_in={("bob", excess[0])})).all()


@pytest.mark.parametrize("missing", ["a component", "a byte", "everything"])
def test_a_reveal_of_the_wrong_size_is_refused(play, kit, any_model, missing):
    cohort = play(threat_model=any_model, **NOISY)
    down, secrets = play_to_masked(cohort)
    silent = {"ada": "masked"}
    down = cohort.go_on(down, "reveals", silent)
    size = pairwise._opening_bytes(cohort.session)
    changed = []
    for envelope in cohort.down(down):
        if envelope.sender == "bob":
            message: Revealed = kit.read(envelope)
            kept = {"a component": -size, "a byte": -1, "everything": 0}[missing]
            envelope = kit.changed(envelope, structs.replace(message, shares=message.shares[:kept]))
        changed.append(envelope)
    cohort.up(changed)
    result = cohort.server.result
    assert (result.sum == expected(cohort, secrets, result)).all()
    assert [f.culprits for f in result.faults if f.stage == "reveals"] == [("bob",)]


def test_pads_and_noise_are_seeded_apart(play):
    """The same secret bytes give another stream for each purpose, and in each session."""
    one, two = (play(attempt=attempt, **NOISY).session for attempt in (0, 1))
    secret = bytes(32)
    seeds = {
        noise_seed(one.hash, secret), noise_seed(two.hash, secret),
        pairwise._stream_seed(one, secret), pairwise._stream_seed(two, secret),
    }  # fmt: skip
    assert len(seeds) == 4
    commitments = {pairwise._seed_commitment(one, 0, kind, secret) for kind in (0, 2, 3)}
    assert len(commitments) == 3


def test_parties_that_disagree_about_the_noise_do_not_meet(play):
    other = {"noise": Noisy(900.0, colluding=2)}
    cohort = play(told={"bob": other}, **NOISY)
    cohort.go_on(cohort.close_after(cohort.start()))
    assert "bob" in cohort.server.result.dropped
