"""Threshold Paillier, in both settings: exact sums or nothing, and everything that a server might try."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from protocols import threshold_paillier as home
from protocols.errors import Aborted, AlreadyAnswered, Infeasible, LocalError
from protocols.estimate import estimate
from protocols.graph import MALICIOUS, SEMI_MALICIOUS, parameters
from protocols.journal import MemoryJournal, SqliteJournal
from protocols.machine import Aggregate, Answered, Input, Received, StageClosed, Started
from protocols.session import Policy, Session
from protocols.simulator import simulate
from protocols.threshold_paillier import Advertise, Contributed, Contributions, Keys, Opened, Quorum, Signed
from protocols.wire import SERVER, Envelope, bitmap, pieces
from protocols.xnoise import Levels, Noisy, noise_seed
from secagg import dealing, paillier
from secagg.consortium import Consortium, KeyShare, deal
from secagg.keys import Identity
from secagg.noise import noise
from secagg.owners import numbers
from secagg.proofs import prove_key
from secagg.randomness import seeded

PAILLIER = "threshold-paillier"
AGREED = {"protocol": PAILLIER, "threat_model": MALICIOUS, "corrupted": 0.2, "dropout": 0.2}
NAMES = ["bern", "graz", "oslo", "pisa", "york"]
IDS = {name: Identity.generate() for name in NAMES}
VECTORS = {name: np.array([i, 10 * i, 255]) for i, name in enumerate(NAMES)}


@pytest.fixture(autouse=True)
def short_keys() -> Iterator[None]:
    """Half a second a session instead of five; the smallest that are accepted."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(home, "KEY_BITS", 2048)
        yield


@cache
def dealt(owners: int, threshold: int) -> tuple[Consortium, tuple[KeyShare, ...]]:
    """A consortium's key, as short as is accepted."""
    return deal(owners, threshold, 2048, seeded(b"consortium", bytes([owners, threshold])))


def make(names: list[str] = NAMES, **more: Any) -> Session:
    roster = {name: IDS[name].public for name in names}
    return Session(roster, 3, 256, **(AGREED | {"task": "t"} | more))


def consortium(**more: Any) -> Session:
    """The same, with a key that a dealer has split."""
    return make(consortium=dealt(5, 4)[0], **more)


in_both = pytest.mark.parametrize("new", [make, consortium], ids=["own-keys", "consortium"])


Change = Callable[[Envelope, Any], Any]
"""(envelope, its message) -> another message, None to lose it, or the same one."""


class Run:
    """A session in which somebody changes messages, on their way `up` or `down`."""

    def __init__(
        self, session: Session | None = None, up: Change | None = None, down: Change | None = None,
        journals: dict[str, Any] | None = None, policies: dict[str, Policy] | None = None,
    ) -> None:  # fmt: skip
        self.session = session or make()
        self.journals = {name: MemoryJournal() for name in (SERVER, *self.session.names)} | (journals or {})
        self.server = self.session.server(journal=self.journals[SERVER])
        policies = policies or {}
        self.clients = {
            name: self.session.client(
                name,
                IDS[name],
                journal=self.journals[name],
                policy=policies.get(name),
                share=self.share(name),
            )
            for name in self.session.names
        }
        same: Change = lambda _, message: message  # noqa: E731
        self.up, self.down = up or same, down or same
        self.seen: list[tuple[Envelope, Any]] = []

    def share(self, name: str) -> KeyShare | None:
        """A client's, if the session has a consortium's key."""
        return None if self.session.consortium is None else dealt(5, 4)[1][self.session.positions[name]]

    def put_away(self, name: str) -> Callable[[], Any]:
        """What brings a party back as it is now, as often as one likes."""
        key, session = bytes(32), self.session
        machine = self.server if name == SERVER else self.clients[name]
        snapshot, kept = machine.snapshot(key), self.journals[name].dump()
        if name == SERVER:
            return lambda: session.restore_server(MemoryJournal.load(kept), snapshot=snapshot, key=key)
        return lambda: session.restore_client(
            name, IDS[name], MemoryJournal.load(kept), snapshot=snapshot, key=key, share=self.share(name)
        )

    def setting(self) -> tuple[home.Setting, bytes]:
        """How this session encrypts, and the hash of all keys."""
        if self.session.consortium is not None:
            present, advertised = bitmap(range(5), 5), []
        else:
            keys = self.message(Keys, "oslo")
            present, advertised = keys.present, keys.advertised
        pairs = [(m.modulus, m.base) for m in advertised]
        setup = home._setup(self.session, present, advertised)
        return home._setting(self.session, present, pairs), setup

    def changed(self, envelope: Envelope, change: Change) -> list[Envelope]:
        message = home._CODEC.decode(envelope.body, self.session.max_envelope_bytes)
        self.seen.append((envelope, message))
        found = change(envelope, message)
        if found is None:
            return []
        return [Envelope(envelope.session, envelope.sender, envelope.to, home._CODEC.encode(found))]

    def go(self) -> Aggregate | Aborted:
        sent = [
            e for name, c in self.clients.items() for event in (Started(), Input(VECTORS[name]))
            for e in c.handle(event)
        ]  # fmt: skip
        while self.server.result is None:
            stage, down = self.server.stage, []
            for envelope in sent:
                for e in self.changed(envelope, self.up):
                    down += self.server.handle(Received(e))
            down += self.server.handle(StageClosed(stage))
            arrived = [e for envelope in down for e in self.changed(envelope, self.down)]
            sent = [answer for e in arrived for answer in self.clients[e.to].handle(Received(e))]
        return self.server.result

    def message(self, kind: type, name: str) -> Any:
        """What this party sent, or was sent, of that kind."""
        return next(m for e, m in self.seen if isinstance(m, kind) and name in (e.sender, e.to))


@cache
def before(split: bool, kind: type) -> tuple[Callable[[], Any], Envelope, Any]:
    """An honest run's party just before pisa's message of that kind, or one to pisa, reaches it; and that."""
    run = Run(consortium() if split else make())
    found: list[tuple[Callable[[], Any], Envelope, Any]] = []

    def look(envelope: Envelope, message: Any) -> Any:
        if isinstance(message, kind) and "pisa" in (envelope.sender, envelope.to) and not found:
            found.append((run.put_away(envelope.to), envelope, message))
        return message

    run.up = run.down = look
    run.go()
    return found[0]


def expected(included: Any) -> list[int]:
    return list(sum(VECTORS[name] for name in included))


# --------------------------------------------------------------------------------------------- sums


@in_both
def test_the_sum_and_nothing_else(new: Callable[[], Session]) -> None:
    run = Run(new())
    result = run.go()
    assert isinstance(result, Aggregate)
    assert result.included == tuple(NAMES)
    assert list(result.sum) == expected(NAMES)
    assert result.sum.dtype == run.session.ring.dtype
    for client in run.clients.values():
        assert client.result == Answered(tuple(NAMES))
        assert client.faults == ()


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.booleans(), st.integers(4, 6), st.integers(1, 400), st.sampled_from([2, 3, 256, 1 << 20]),
    st.integers(0, 2**32),
    st.lists(st.tuples(st.integers(0, 5), st.sampled_from(["keys", "masked", "signatures", "reveals"])),
             max_size=3),
)  # fmt: skip
def test_the_exact_sum_over_the_included_set_or_aborted(
    split: bool, n: int, dim: int, bound: int, seed: int, dropping: list[tuple[int, str]]
) -> None:
    rng = np.random.default_rng(seed)
    vectors = {f"c{i}": rng.integers(0, bound, dim) for i in range(n)}
    vectors["c0"][:] = bound - 1
    drop = {f"c{i % n}": stage for i, stage in dropping}
    demands: dict[str, Any] = AGREED | {"corrupted": 0.0, "dropout": 0.25}
    found = parameters(n, 0.0, 0.25, PAILLIER, MALICIOUS)
    if split:
        demands["consortium"], demands["shares"] = dealt(n, found.threshold)
        drop = {name: stage for name, stage in drop.items() if stage != "keys"}
        with pytest.raises(LocalError, match="stages of threshold-paillier, masked, signatures, reveals"):
            simulate(vectors, bound=bound, drop={"c0": "keys"}, **demands)
    run = simulate(vectors, bound=bound, drop=drop, seed=seed, **demands)
    if isinstance(run.result, Aborted):
        assert len(drop) > found.dropped
        return
    included = {name for name in vectors if drop.get(name) not in ("keys", "masked")}
    assert set(run.result.included) == included
    np.testing.assert_array_equal(run.result.sum, sum(vectors[name] for name in included))


@pytest.mark.parametrize("stage", ["keys", "masked", "signatures", "reveals"])
def test_who_vanishes_is_left_out_or_not_needed(stage: str) -> None:
    run = simulate(
        {name: v.tolist() for name, v in VECTORS.items()}, bound=256, drop={"oslo": stage}, **AGREED
    )
    assert isinstance(run.result, Aggregate)
    included = [n for n in NAMES if n != "oslo" or stage in ("signatures", "reveals")]
    assert run.result.included == tuple(included)
    assert list(run.result.sum) == expected(included)


@in_both
def test_restored_at_every_step(tmp_path: Path, new: Callable[[], Session]) -> None:
    """Each client from its journal, each time before it answers; the server from snapshots all the time."""
    key = bytes(range(32))
    journals = {name: SqliteJournal(tmp_path / name, key) for name in NAMES}
    run = Run(new(), journals=journals)

    def again(envelope: Envelope, message: Any) -> Any:
        name = envelope.to
        run.clients[name] = run.session.restore_client(name, IDS[name], journals[name], share=run.share(name))
        if isinstance(message, Keys):  # an input that was not masked is not kept
            run.clients[name].handle(Input(VECTORS[name]))
        return message

    def from_a_snapshot(_: Envelope, message: Any) -> Any:
        snapshot, kept = run.server.snapshot(key), run.journals[SERVER]
        run.server = run.session.restore_server(kept, snapshot=snapshot, key=key)
        return message

    run.down, run.up = again, from_a_snapshot
    result = run.go()
    assert isinstance(result, Aggregate)
    assert list(result.sum) == expected(NAMES)


# -------------------------------------------------------------------------------- what is refused first


def test_lists_are_always_signed() -> None:
    with pytest.raises(Infeasible, match="threat model 'malicious'"):
        make(threat_model="honest-but-curious")
    assert make(threat_model=SEMI_MALICIOUS).signed


def test_thresholds() -> None:
    """Lists signed by q and opened by t, 2q > n + c and 2t > n + c; both at most n - dropouts."""
    for n, corrupted, dropout in ((5, 0.2, 0.2), (10, 0.3, 0.3), (20, 0.2, 0.1), (7, 0.0, 0.3)):
        p = parameters(n, corrupted, dropout, PAILLIER, MALICIOUS)
        assert p.corrupted < p.threshold <= n - p.dropped
        assert 2 * p.threshold > n + p.corrupted
        assert 2 * p.quorum > n + p.corrupted
        assert p.quorum <= n - p.dropped
    with pytest.raises(Infeasible, match="must sign"):
        parameters(10, 0.3, 0.4, PAILLIER, MALICIOUS)


# ----------------------------------------------------------------------------------- a malicious server


def all_stopped(run: Run, cause: str, honest: list[str] = NAMES) -> None:
    """There is no sum, and these clients say why."""
    assert isinstance(run.go(), Aborted)
    for name in honest:
        result = run.clients[name].result
        assert isinstance(result, Aborted)
        assert cause in result.cause or "stopped" in result.cause, result.cause
    assert any(cause in getattr(run.clients[n].result, "cause", "") for n in honest)


def forged(run: Run, how: str) -> Change:
    """The server puts a victim's ciphertexts, or what it made of them, into its own client's contribution.

    Its client, pisa, signs what it is given; the victim is graz. The server forwards it without a look.
    """
    made: dict[int, list[bytes]] = {}

    def down(envelope: Envelope, message: Any) -> Any:
        if not isinstance(message, Contributions):
            return message
        owner = run.session.positions[envelope.to]
        setting, setup = run.setting()
        victim = run.message(Contributed, "graz")
        for place, public in enumerate(setting.owners.publics):
            if place in made:
                continue
            theirs = numbers(victim.columns[place], public.ciphertext_bytes)
            square = int(public.square)
            column = {
                "copies": theirs, "inverts": [pow(c, -1, square) for c in theirs],
                "squares": [c * c % square for c in theirs],
                "shifts": [c * (1 + public.n) % square for c in theirs],
            }[how]  # fmt: skip
            made[place] = [public.pack(column), victim.proofs[place]]
        digests = [
            home._digest(*made[p]) if i == 3 else
            home._digest(run.message(Contributed, NAMES[i]).columns[p],
                         run.message(Contributed, NAMES[i]).proofs[p])
            for i in range(5) for p in range(len(setting.owners.publics))
        ]  # fmt: skip
        mine = b"".join(digests[3 * len(setting.owners.publics) : 4 * len(setting.owners.publics)])
        signatures = pieces("", message.signatures, 5, 64)
        signatures[3] = IDS["pisa"].sign(home._contribution(setup, 3, mine))
        columns, proofs = list(message.columns), list(message.proofs)
        columns[3], proofs[3] = made[setting.column(owner)]
        return Contributions(message.included, columns, proofs, b"".join(digests), b"".join(signatures))

    return down


@in_both
@pytest.mark.parametrize("how", ["copies", "inverts", "squares", "shifts"])
def test_a_contributor_who_reuses_anothers_ciphertexts_is_refused(
    how: str, new: Callable[[], Session]
) -> None:
    """The sum would be of the others twice the victim, or of all but the victim: its vector would follow."""
    run = Run(new())
    run.down = forged(run, how)
    all_stopped(run, "the proof that they are known does not hold", ["bern", "graz", "oslo", "york"])


@in_both
def test_the_server_that_checks_drops_who_reuses_anothers_ciphertexts(new: Callable[[], Session]) -> None:
    """An honest server finds it by itself, names the sender, and the round goes on without it."""
    run = Run(new())
    kept: dict[str, Any] = {}

    def up(envelope: Envelope, message: Any) -> Any:
        if not isinstance(message, Contributed):
            return message
        kept[envelope.sender] = message
        if envelope.sender != "pisa":
            return message
        victim, digests = kept["graz"], b""
        for column, proof in zip(victim.columns, victim.proofs, strict=True):
            digests += home._digest(column, proof)
        _, setup = run.setting()
        return Contributed(
            victim.columns, victim.proofs, IDS["pisa"].sign(home._contribution(setup, 3, digests))
        )

    run.up = up
    result = run.go()
    assert isinstance(result, Aggregate)
    assert result.included == ("bern", "graz", "oslo", "york")
    assert list(result.sum) == expected(result.included)
    assert "known does not hold" in result.dropped["pisa"].cause
    assert result.dropped["pisa"].culprits == ("pisa",)


@in_both
def test_contributions_that_the_server_makes_up_are_refused(new: Callable[[], Session]) -> None:
    """All but the victim's replaced by its own: they are not signed by whom they claim to be of."""
    run = Run(new())

    def down(_: Envelope, message: Any) -> Any:
        if not isinstance(message, Contributions):
            return message
        signatures = pieces("", message.signatures, 5, 64)
        signatures[2] = Identity.generate().sign(b"made up")
        return Contributions(
            message.included, message.columns, message.proofs, message.digests, b"".join(signatures)
        )

    run.down = down
    all_stopped(run, "signature")


def without(message: Contributions, missing: int) -> Contributions:
    """The list without one contributor."""
    included = [i for i in range(5) if i != missing]
    digests = pieces("digests", message.digests, 5, len(message.digests) // 5)
    signatures = pieces("signatures", message.signatures, 5, 64)
    return Contributions(
        bitmap(included, 5), [message.columns[i] for i in included], [message.proofs[i] for i in included],
        b"".join(digests[i] for i in included), b"".join(signatures[i] for i in included),
    )  # fmt: skip


@in_both
def test_two_lists_to_two_halves_open_nothing(new: Callable[[], Session]) -> None:
    """Each half is shown another list; each signs its own; signatures of the other half do not verify."""
    run = Run(new())
    signed: dict[str, bytes] = {}

    def down(envelope: Envelope, message: Any) -> Any:
        if isinstance(message, Contributions) and envelope.to in ("bern", "graz"):
            return without(message, 4)
        return message

    def up(envelope: Envelope, message: Any) -> Any:
        if isinstance(message, home.Signed):
            signed[envelope.sender] = message.signature
        return message

    run.up, run.down = up, down
    result = run.go()
    assert isinstance(result, Aborted)  # three sign one list, two the other; four would have to
    assert len(signed) == 5
    assert all(isinstance(c.result, Aborted) for c in run.clients.values())


@in_both
def test_signatures_of_two_lists_are_no_quorum(new: Callable[[], Session]) -> None:
    """The server shows all five signatures, of either list, to everybody: nobody opens."""
    run, signed = Run(new()), {}

    def down(envelope: Envelope, message: Any) -> Any:
        if isinstance(message, home.Stop):
            return None  # what the honest server says to too few signatures
        if isinstance(message, Contributions) and envelope.to in ("bern", "graz"):
            return without(message, 4)
        return message

    def up(envelope: Envelope, message: Any) -> Any:
        if isinstance(message, Signed):
            signed[envelope.sender] = message.signature
        return message

    run.up, run.down = up, down
    run.go()
    assert len(signed) == 5
    body = home._CODEC.encode(Quorum(bitmap(range(5), 5), b"".join(signed[name] for name in NAMES)))
    for name, client in run.clients.items():
        assert client.stage == "quorum"
        sent = client.handle(Received(Envelope(run.session.hash, SERVER, name, body)))
        assert not any(isinstance(home._CODEC.decode(e.body, 1 << 20), Opened) for e in sent)
        assert "does not verify" in str(client.result) or "not among those included" in str(client.result)


def quorum_of(change: Callable[[Quorum], Quorum]) -> Change:
    return lambda _, message: change(message) if isinstance(message, Quorum) else message


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (lambda m: Quorum(bitmap([0, 1], 5), m.signatures[:128]), "2 signatures, 4 are needed"),
        (lambda m: Quorum(m.signers, m.signatures[:-64]), "signatures: expected 5 x 64 bytes"),
        (lambda m: Quorum(m.signers, m.signatures[64:] + m.signatures[:64]), "does not verify"),
        (lambda m: Quorum(m.signers, bytes(320)), "does not verify"),
        (lambda m: Quorum(b"\xff", m.signatures), "bitmap"),
        (lambda m: Quorum(m.signers, m.signatures), "not among those included"),
    ],
)
def test_nobody_opens_without_a_quorum(change: Callable[[Quorum], Quorum], cause: str) -> None:
    run = Run(consortium(), down=quorum_of(change))
    if "included" in cause:  # york signed what it is not in
        run.up = lambda e, m: None if isinstance(m, Contributed) and e.sender == "york" else m
        run.down = quorum_of(lambda m: Quorum(bitmap(range(5), 5), m.signatures + bytes(64)))
    all_stopped(run, cause, NAMES[:4])
    assert not any(isinstance(m, Opened) for _, m in run.seen)


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (lambda m: Contributions(bitmap([2, 3], 5), m.columns[2:4], m.proofs[2:4],
                                 m.digests[64:128], m.signatures[128:256]), "at least 4 must be included"),
        (lambda m: Contributions(m.included, m.columns[:-1], m.proofs, m.digests, m.signatures),
         "a column and a proof of every owner"),
        (lambda m: Contributions(m.included, m.columns, m.proofs, m.digests[:-1], m.signatures), "digests"),
        (lambda m: Contributions(m.included, [m.columns[1], *m.columns[1:]], m.proofs, m.digests,
                                 m.signatures), "not the one that is in the list"),
        (lambda m: Contributions(m.included, m.columns, m.proofs, bytes(32) + m.digests[32:], m.signatures),
         "contributions: "),
    ],
)  # fmt: skip
def test_lists_that_are_none_are_not_signed(change: Callable[[Any], Any], cause: str) -> None:
    """Too few in it (one victim and the server's own), or not what its parts say."""
    run = Run(consortium(), down=lambda _, m: change(m) if isinstance(m, Contributions) else m)
    all_stopped(run, cause)
    assert not any(isinstance(m, home.Signed) for _, m in run.seen)


def test_an_owner_is_not_asked_about_a_list_without_it() -> None:
    """Nor about one in which its own contribution is another."""
    run = Run()

    def down(envelope: Envelope, message: Any) -> Any:
        if not isinstance(message, Contributions) or envelope.to != "bern":
            return message
        return Contributions(
            bitmap(range(1, 5), 5), message.columns[1:], message.proofs[1:], message.digests[160:],
            message.signatures[64:],
        )  # fmt: skip

    run.down = down
    run.go()
    assert "own is not among them as it was sent" in str(run.clients["bern"].result)


def test_a_policy_counts_who_is_included() -> None:
    run = Run(
        policies={"bern": Policy(min_included=5)},
        up=lambda e, m: None if isinstance(m, Contributed) and e.sender == "york" else m,
    )
    run.go()
    assert "this client's policy wants 5" in str(run.clients["bern"].result)


@in_both
def test_asking_twice_gets_the_same_bytes_or_nothing(new: Callable[..., Session]) -> None:
    """A second question after the answer; a second session of the round; the same session again."""
    journals = {name: MemoryJournal() for name in NAMES}
    run = Run(new(), journals=journals)
    assert isinstance(run.go(), Aggregate)
    (envelope,) = [e for e, m in run.seen if isinstance(m, Quorum) and e.to == "oslo"]
    (first,) = [e for e, m in run.seen if isinstance(m, Opened) and e.sender == "oslo"]
    assert [e.body for e in run.clients["oslo"].handle(Received(envelope))] == [first.body]
    (other,) = [e for e, m in run.seen if isinstance(m, Contributions) and e.to == "oslo"]
    assert run.clients["oslo"].handle(Received(other)) == []
    for attempt in (0, 1):
        with pytest.raises((AlreadyAnswered, LocalError)):
            new(attempt=attempt).client(
                "oslo", IDS["oslo"], journal=journals["oslo"], share=run.share("oslo")
            )


@in_both
def test_two_attempts_of_a_round_do_not_open_two_lists(new: Callable[..., Session]) -> None:
    """In the first, the server shows the quorum to a threshold of owners; it tries the rest in a second."""
    journals = {name: MemoryJournal() for name in NAMES}
    t = make().parameters.threshold

    def some(envelope: Envelope, message: Any) -> Any:
        return None if isinstance(message, Quorum) and envelope.to in NAMES[t:] else message

    first = Run(new(), journals=journals, down=some)
    assert isinstance(first.go(), Aggregate)
    left = []
    for name in NAMES:  # those who have not opened may try again
        with suppress(AlreadyAnswered):
            client = new(attempt=1).client(name, IDS[name], journal=journals[name], share=first.share(name))
            left.append(client.name)
    assert left == NAMES[t:]
    bad = make().parameters.corrupted
    assert len(left) + bad < t  # with the corrupted, too few to open anything


@in_both
@pytest.mark.parametrize("part", ["part", "proof"])
def test_a_false_opening_names_its_sender_and_the_round_goes_on(
    part: str, new: Callable[[], Session]
) -> None:
    def up(envelope: Envelope, message: Any) -> Any:
        if not isinstance(message, Opened) or envelope.sender != "graz":
            return message
        data = bytearray(getattr(message, part))
        data[0] ^= 1
        other = {"part": message.part, "proof": message.proof} | {part: bytes(data)}
        return Opened(**other)

    result = Run(new(), up=up).go()
    assert isinstance(result, Aggregate)
    assert list(result.sum) == expected(NAMES)
    assert [f.culprits for f in result.faults] == [("graz",)]
    assert "the proof does not hold" in result.faults[0].cause


def test_shares_on_no_polynomial_make_no_sum() -> None:
    """A contributor deals badly, with right proofs: more than t openings show it, and none is chosen."""
    true = dealing.Sharing.deal

    def deal(self: Any, plaintexts: Any, rng: Any) -> Any:
        found = true(self, plaintexts, rng)
        if plaintexts[0] & 0xFFF == 3:  # pisa's first value
            found[0][0] += 1
        return found

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(dealing.Sharing, "deal", deal)
        result = Run().go()
    assert isinstance(result, Aborted)
    assert "not of one sum" in result.cause
    assert result.culprits == ()


# ---------------------------------------------------------------------------------------------- keys


@pytest.mark.parametrize("place", ["modulus", "base", "proof", "signature", "session"])
def test_a_key_that_was_changed_on_the_way_drops_its_owner(place: str) -> None:
    def up(envelope: Envelope, message: Any) -> Any:
        if not isinstance(message, home.Advertise) or envelope.sender != "york":
            return message
        fields = {f: getattr(message, f) for f in message.__struct_fields__}
        fields[place] = fields[place][:-1] + bytes([fields[place][-1] ^ 1])
        return home.Advertise(**fields)

    result = Run(up=up).go()
    assert isinstance(result, Aggregate)
    assert result.included == ("bern", "graz", "oslo", "pisa")
    assert result.dropped["york"].culprits == ("york",)
    assert ("another session" if place == "session" else "signature") in result.dropped["york"].cause


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (lambda m: {"modulus": bytes(256)}, "below the modulus"),
        (lambda m: {"modulus": bytes(255) + b"\xc0"}, "small factor"),
        (lambda m: {"base": bytes(256)}, "below the modulus"),
        (lambda m: {"base": m.modulus}, "below the modulus"),
        (lambda m: {"base": b"\1" + bytes(255)}, "base of randomisers is none"),
        (lambda m: {"base": b"\xff" * 256}, "below the modulus"),
        (lambda m: {"modulus": m.modulus + b"\0"}, "modulus: expected 256 bytes"),
        (lambda m: {"proof": m.proof[:-1]}, "proof of a key: expected 2304 bytes"),
        (lambda m: {"proof": bytes(9 * 256)}, "a proof of 9 numbers below"),
    ],
)
def test_a_hostile_key_that_its_owner_signed_drops_it(change: Callable[[Any], Any], cause: str) -> None:
    """Nobody encrypts under it, and the others finish."""
    restore, envelope, message = before(False, home.Advertise)
    fields = {f: getattr(message, f) for f in message.__struct_fields__} | change(message)
    unsigned = home.Advertise(**fields | {"signature": b""})
    signed = home.Advertise(**fields | {"signature": IDS["pisa"].sign(home._signed_key(unsigned))})
    server = restore()
    server.handle(Received(replace(envelope, body=home._CODEC.encode(signed))))
    assert [f.culprits for f in server.faults] == [("pisa",)]
    assert cause in server.faults[0].cause


def test_two_owners_of_one_key_are_named() -> None:
    """Whoever has both proves it for either; here too few are left without them."""
    run, first = Run(), {}

    def up(envelope: Envelope, message: Any) -> Any:
        if not isinstance(message, home.Advertise):
            return message
        first[envelope.sender] = message
        if envelope.sender != "york":
            return message
        # pisa and york are one: it proves its key in york's name too.
        machine = run.clients["pisa"]
        p, q = (int.from_bytes(prime, "little") for prime in machine._state.primes)  # type: ignore[attr-defined]
        public = home._public(first["pisa"].modulus, first["pisa"].base)
        roots = prove_key(paillier.PrivateKey(p, q, public), home._owner(run.session, 4))
        fields = {f: getattr(first["pisa"], f) for f in message.__struct_fields__}
        fields["proof"] = b"".join(r.to_bytes(256, "little") for r in roots)
        unsigned = home.Advertise(**fields | {"signature": b""})
        first["york"] = home.Advertise(**fields | {"signature": IDS["york"].sign(home._signed_key(unsigned))})
        return first["york"]

    run.up, run.down = up, lambda _, m: None if isinstance(m, home.Stop) else m
    result = run.go()
    assert isinstance(result, Aborted)
    assert result.faults[0].culprits == ("pisa", "york")
    assert "the same key" in result.faults[0].cause
    # A server that says nothing of it is found out by the clients.
    body = home._CODEC.encode(Keys(bitmap(range(5), 5), [first[name] for name in NAMES]))
    run.clients["bern"].handle(Received(Envelope(run.session.hash, SERVER, "bern", body)))
    assert "two owners have the same modulus" in str(run.clients["bern"].result)


def test_a_signed_key_whose_proof_is_anothers_is_refused() -> None:
    """Signed by its owner, but the proof is bound to somebody else, or the modulus is unsound."""
    run = Run()
    first: dict[str, Any] = {}

    def up(envelope: Envelope, message: Any) -> Any:
        if not isinstance(message, home.Advertise):
            return message
        first[envelope.sender] = message
        if envelope.sender != "york":
            return message
        bern = first["bern"]
        unsigned = home.Advertise(message.session, bern.modulus, bern.base, bern.proof, b"")
        signature = IDS["york"].sign(home._signed_key(unsigned))
        return home.Advertise(message.session, bern.modulus, bern.base, bern.proof, signature)

    run.up = up
    result = run.go()
    assert isinstance(result, Aggregate)
    assert "its modulus is sound does not hold" in result.dropped["york"].cause


def test_clients_shown_different_keys_complete_nothing() -> None:
    """One is told that york's key is not there: its contribution is of other keys than the rest's."""

    def down(envelope: Envelope, message: Any) -> Any:
        if isinstance(message, Keys) and envelope.to == "bern":
            return Keys(bitmap(range(4), 5), message.advertised[:4])
        return message

    result = Run(down=down).go()
    assert isinstance(result, Aggregate)
    assert "bern" not in result.included  # an honest server cannot use it
    assert list(result.sum) == expected(result.included)


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (lambda m: Keys(m.present, m.advertised[::-1]), "another key of this client than it advertised"),
        (lambda m: Keys(m.present, m.advertised[:-1]), "keys: expected 5, got 4"),
        (lambda m: Keys(bitmap([3], 5), m.advertised[3:4]), "keys: 1, at least 4"),
        (lambda m: Keys(m.present, [m.advertised[1], *m.advertised[1:]]), "signature"),
    ],
)
def test_a_client_checks_the_keys_that_it_is_sent(change: Callable[[Any], Any], cause: str) -> None:
    restore, envelope, message = before(False, Keys)
    client = restore()
    client.handle(Received(replace(envelope, body=home._CODEC.encode(change(message)))))
    assert cause in client.result.cause
    assert client.result.culprits == (SERVER,)


def test_states_show_nothing() -> None:
    message = home.Advertise(b"s", b"m", b"b", b"p", b"g")
    state = home.AwaitKeys((b"p" * 128, b"q" * 128), message, b"e" * 32)
    assert "ppp" not in repr(state)


def test_costs_of_this_protocol_are_not_predicted() -> None:
    with pytest.raises(LocalError, match="one of secagg, secagg\\+ to predict"):
        estimate(10, 10, bound=5, protocol=PAILLIER, threat_model=MALICIOUS)


@in_both
def test_a_plaintext_that_is_too_full_tells_its_sender_nothing(
    new: Callable[[], Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was beyond the lanes would else end the round or not, as the others' last values had it."""
    true = home._plaintexts

    def plaintexts(setting: Any, vector: Any, rng: Any) -> list[int]:
        found = true(setting, vector, rng)
        return [m | 1 << 1900 for m in found] if vector[0] == 3 else found  # pisa's

    monkeypatch.setattr(home, "_plaintexts", plaintexts)
    result = Run(new()).go()
    assert isinstance(result, Aggregate)
    assert list(result.sum) == expected(NAMES)


# ---------------------------------------------------------------------------------- a consortium's key


@pytest.mark.parametrize("whose", ["graz", "pisa"])
def test_ciphertexts_of_an_earlier_round_are_refused(whose: str) -> None:
    """The key is the same, and what a victim sent then could be opened now, in another's name.

    Of graz, who has another place; or of who had the place that the server's client, pisa, has now.
    """
    first = Run(consortium())
    assert isinstance(first.go(), Aggregate)
    then = first.message(Contributed, whose)
    run = Run(consortium(round=1))

    def up(envelope: Envelope, message: Any) -> Any:
        if not isinstance(message, Contributed) or envelope.sender != "pisa":
            return message
        digests = home._digest(then.columns[0], then.proofs[0])
        _, setup = run.setting()
        signature = IDS["pisa"].sign(home._contribution(setup, 3, digests))
        return Contributed(then.columns, then.proofs, signature)

    run.up = up
    result = run.go()
    assert isinstance(result, Aggregate)
    assert "known does not hold" in result.dropped["pisa"].cause


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"protocol": "secagg"}, "it is for threshold-paillier"),
        ({"names": NAMES[:4]}, "dealt to 5, the roster has 4"),
        ({"threshold": 3}, "the consortium's key has 4, got 3"),
        ({"consortium": 5}, "expected a Consortium, got int"),
    ],
)
def test_consortiums_that_do_not_fit(more: dict[str, Any], said: str) -> None:
    with pytest.raises(LocalError, match=said):
        make(**({"consortium": dealt(5, 4)[0]} | more))


def test_a_threshold_that_two_lists_could_reach_is_refused() -> None:
    """2t > n + c is asked of a dealer as well."""
    with pytest.raises(
        Infeasible, match=r"expected 4 to 4 .*; the consortium's key was dealt with threshold 3"
    ):
        make(consortium=dealt(5, 3)[0])


def test_shares_that_do_not_fit() -> None:
    key, shares = dealt(5, 4)
    session = make(consortium=key)
    with pytest.raises(LocalError, match="expected one, the session has"):
        session.client("oslo", IDS["oslo"])
    with pytest.raises(LocalError, match="expected none, the session has no"):
        make().client("oslo", IDS["oslo"], share=shares[2])
    with pytest.raises(LocalError, match=r"'oslo' has place 2 in the roster, sorted by name; .* of place 1"):
        session.client("oslo", IDS["oslo"], share=shares[1])
    with pytest.raises(LocalError, match="not one of this consortium's"):
        session.client("oslo", IDS["oslo"], share=KeyShare(2, shares[1].secret))
    with pytest.raises(LocalError, match="expected a KeyShare, got bytes"):
        session.client("oslo", IDS["oslo"], share=shares[2].pack())  # type: ignore[arg-type]
    with pytest.raises(LocalError, match="shares: expected 5 in a sequence"):
        simulate(5, dim=2, bound=5, shares=shares[:4], consortium=key, **AGREED)


def test_another_key_is_another_session() -> None:
    key, _ = dealt(5, 4)
    other = replace(key, checks=key.checks[::-1])
    assert len({make(consortium=other).hash, consortium().hash, make().hash}) == 3


def test_an_input_before_the_start_is_kept() -> None:
    client = consortium().client("oslo", IDS["oslo"], share=dealt(5, 4)[1][2])
    assert client.handle(Input(VECTORS["oslo"])) == []
    (sent,) = client.handle(Started())
    assert isinstance(home._CODEC.decode(sent.body, 1 << 30), Contributed)


# ------------------------------------------------------------------------------------------- noise

NOISY: dict[str, Any] = {"noise": Noisy(900.0), "bits": 12}


def play(
    new: Callable[..., Session], monkeypatch: pytest.MonkeyPatch, drop: dict[str, type]
) -> tuple[Run, dict[str, list[bytes]]]:
    """A run with noise, from which clients vanish with a message; and everybody's secrets of its noise."""
    run = Run(new(**NOISY))
    run.up = lambda e, m: None if isinstance(m, drop.get(e.sender, ())) else m
    secrets: dict[str, list[bytes]] = {}

    def contribute(context: Any, state: Any, event: Any) -> Any:
        rng, parts = seeded(state.entropy, b"deal", state.setup), context.session.levels.parts
        secrets[context.session.names[context.index]] = [rng(32) for _ in parts]
        return home.contribute(context, state, event)

    monkeypatch.setitem(home.CLIENT_MOVES, (home.AwaitInput, Input), contribute)  # type: ignore[arg-type]
    run.go()
    return run, secrets


def with_noise(run: Run, secrets: dict[str, list[bytes]], result: Aggregate, left_in: str = "") -> list[int]:
    """The included vectors with the noise that must remain; all of it of the client `left_in`."""
    shape = run.session.levels
    assert shape is not None
    total = np.zeros(3, np.int64)
    for name in result.included:
        total += VECTORS[name]
        for i, (part, secret) in enumerate(zip(shape.parts, secrets[name], strict=True)):
            if i not in shape.excess(len(result.included)) or name == left_in:
                total += part.sample(noise_seed(run.session.hash, secret), 3)
    return list(total)


@in_both
@pytest.mark.parametrize("drop", [{}, {"york": Contributed}, {"bern": Signed}, {"graz": Opened}])
def test_the_sum_keeps_exactly_the_noise_it_needs(
    new: Callable[..., Session], drop: dict[str, type], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of those who vanish after they contributed: their excess is opened by the others."""
    run, secrets = play(new, monkeypatch, drop)
    result = run.server.result
    assert isinstance(result, Aggregate)
    assert len(result.included) == (4 if "york" in drop else 5)
    assert result.sum.dtype == np.int64
    assert list(result.sum) == with_noise(run, secrets, result)
    assert 900 <= result.noise <= 900 * 1.015
    assert drop or result.faults == ()


def test_vectors_with_noise_may_be_negative(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(consortium(**NOISY))
    with pytest.raises(LocalError, match="from -255 to 255"):
        run.clients["oslo"].handle(Input([0, 0, -256]))
    for name in NAMES:
        monkeypatch.setitem(VECTORS, name, np.array([-255, 255, -7]))
    result = run.go()
    assert isinstance(result, Aggregate)
    assert abs(result.sum - [-1275, 1275, -35]).max() < 30 * 10


@in_both
def test_no_sum_with_noise_wraps(new: Callable[..., Session]) -> None:
    """A ring that was chosen so that a sum may wrap is made as wide as all of them: lanes tell of wraps."""
    session = new(**NOISY)
    shape = session.levels
    assert shape is not None
    assert session.ring.bits == (2 * 5 * (255 + shape.reach)).bit_length()
    assert new(**(NOISY | {"bits": 40})).ring.bits == 40
    with pytest.raises(Infeasible, match="needs 66 bits"):
        Session({n: IDS[n].public for n in NAMES}, 3, 1 << 62, **(AGREED | NOISY))


@pytest.mark.parametrize("variance", [0.05, 1.0, 30.0, 1e4])
def test_no_noise_is_beyond_its_reach(variance: float) -> None:
    """At most 2^-100 of it, by the sampler's own distribution; and no lane is wasted on what never is."""
    shape = Levels(Noisy(variance), variance, 0.0, 0)
    steps = noise("skellam", variance).steps()
    below = -shape.reach - 1 - steps.first  # F there, of which the two tails have twice
    assert below < 0 or 2 * steps.high[below] <= 1 << steps.bits - 100
    assert shape.reach <= 12 * math.sqrt(variance) + 50


def test_noise_beyond_its_reach_does_not_leave_its_lane(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has a chance of 2^-100: it is cut, or it would be in the next value."""
    monkeypatch.setattr(Levels, "reach", property(lambda _: 3))
    run, _ = play(consortium, monkeypatch, {"york": Contributed})
    assert run.session.levels is not None
    assert run.session.levels.excess(4) == ()
    result = run.server.result
    assert isinstance(result, Aggregate)
    assert (np.abs(result.sum - expected(result.included)) <= 4 * 3).all()


def test_a_seed_that_is_none_leaves_its_noise_in_the_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    """And names who dealt it; the others' is taken out."""
    true = home._plaintexts

    def plaintexts(setting: Any, vector: Any, rng: Any) -> list[int]:
        found = true(setting, vector, rng)
        if vector[0] == 3:  # pisa's
            found[setting.rows :] = [1 << 256] * (setting.count - setting.rows)
        return found

    monkeypatch.setattr(home, "_plaintexts", plaintexts)
    run, secrets = play(consortium, monkeypatch, {})
    result = run.server.result
    assert isinstance(result, Aggregate)
    assert list(result.sum) == with_noise(run, secrets, result, left_in="pisa")
    assert {f.culprits for f in result.faults} == {("pisa",)}
    assert "excess noise of pisa stays" in result.faults[0].cause


@pytest.mark.parametrize("gone", [{}, {"york": Contributed}])
def test_nothing_is_opened_of_the_noise_that_a_sum_needs(
    gone: dict[str, type], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What owners open beside the sums are seeds of excess, of everybody who is included, and no others."""
    run, secrets = play(consortium, monkeypatch, gone)
    setting, _ = run.setting()
    shape, result = run.session.levels, run.server.result
    assert shape is not None
    assert isinstance(result, Aggregate)
    excess = shape.excess(len(result.included))
    assert (excess == ()) == bool(gone)  # of four, nothing is too much
    parts = {NAMES.index(e.sender): m.part for e, m in run.seen if isinstance(m, Opened)}
    opened = setting.owners.combine(parts)
    wanted = [int.from_bytes(secrets[n][i], "little") for n in result.included for i in excess]
    assert opened[setting.rows :] == wanted


# -------------------------------------------------------------------------------- whatever is sent

KINDS: tuple[type, ...] = (Advertise, Keys, Contributed, Contributions, Signed, Quorum, Opened, home.Stop)


@cache
def other(kind: type) -> Any:
    """A message of that kind, from a run of its own: well formed, and of other keys."""
    return home.Stop() if kind is home.Stop else next(m for _, m in another().seen if isinstance(m, kind))


@cache
def another() -> Run:
    run = Run()
    run.go()
    return run


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("wanted", [Advertise, Contributed, Signed, Opened])
def test_any_message_in_the_place_of_another_to_the_server(split: bool, wanted: type) -> None:
    """What is early, or wrong, drops its sender or is ignored from then on; what is late changes nothing."""
    if split and wanted is Advertise:
        return  # it has no such stage
    order = [Advertise, Contributed, Signed, Opened]
    restore, envelope, _ = before(split, wanted)
    for kind in KINDS:
        server = restore()
        server.handle(Received(replace(envelope, body=home._CODEC.encode(other(kind)))))
        late = kind in order and order.index(kind) < order.index(wanted) and (wanted, kind)
        assert ("pisa" in server.waiting_for) == bool(late), kind
        if not late:
            assert [f.culprits for f in server.faults] == [() if kind is home.Stop else ("pisa",)]


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("wanted", [Keys, Contributions, Quorum])
def test_any_message_in_the_place_of_another_to_a_client(split: bool, wanted: type) -> None:
    """It stops, names the server, and has answered nothing."""
    if split and wanted is Keys:
        return
    restore, envelope, _ = before(split, wanted)
    for kind in KINDS:
        client = restore()
        (sent,) = client.handle(Received(replace(envelope, body=home._CODEC.encode(other(kind)))))
        assert isinstance(home._CODEC.decode(sent.body, 1 << 20), home.Stop)
        assert client.result.culprits == (() if kind is home.Stop else (SERVER,)), kind
        assert not client.result.revealed


def mangled(message: Any, field: str, at: float, how: str) -> Any:
    """The message with one field, or one part of it, changed."""
    fields = {f: getattr(message, f) for f in message.__struct_fields__}
    value = fields[field]
    parts = list(value) if isinstance(value, list) else [value]
    i = int(at * len(parts))
    part = bytearray(parts[i])
    if how == "flip":
        part[int(at * len(part))] ^= 1
    parts[i] = {
        "zero": bytes(len(part)), "high": b"\xff" * len(part), "longer": bytes(part) + b"\0",
        "shorter": bytes(part[:-1]), "turned": bytes(part[::-1]),
    }.get(how, bytes(part))  # fmt: skip
    if how == "twice":
        parts.append(parts[i])
    elif how == "swapped":
        parts = parts[::-1]
    fields[field] = parts if isinstance(value, list) else b"".join(parts)
    return type(message)(**fields)


HOWS = st.sampled_from(["flip", "zero", "high", "longer", "shorter", "turned", "twice", "swapped"])


@settings(max_examples=60, deadline=None)
@given(st.booleans(), st.sampled_from(["columns", "proofs"]), st.floats(0, 0.999), HOWS)
def test_a_mangled_contribution_that_is_signed_anew_drops_its_sender(
    split: bool, field: str, at: float, how: str
) -> None:
    restore, envelope, message = before(split, Contributed)
    found = mangled(message, field, at, how)
    if found == message:  # of one column there is no other order
        return
    server = restore()
    digests = b"".join(home._digest(c, p) for c, p in zip(found.columns, found.proofs, strict=False))
    signature = IDS["pisa"].sign(home._contribution(server._state.setup, 3, digests))
    signed = Contributed(found.columns, found.proofs, signature)
    server.handle(Received(replace(envelope, body=home._CODEC.encode(signed))))
    assert [f.culprits for f in server.faults] == [("pisa",)]


@settings(max_examples=60, deadline=None)
@given(
    st.booleans(), st.sampled_from(["included", "columns", "proofs", "digests", "signatures"]),
    st.floats(0, 0.999), HOWS,
)  # fmt: skip
def test_a_mangled_list_is_not_signed(split: bool, field: str, at: float, how: str) -> None:
    restore, envelope, message = before(split, Contributions)
    found = mangled(message, field, at, how)
    if found == message:
        return
    client = restore()
    (sent,) = client.handle(Received(replace(envelope, body=home._CODEC.encode(found))))
    assert isinstance(home._CODEC.decode(sent.body, 1 << 20), home.Stop)
    assert client.result.culprits == (SERVER,)
