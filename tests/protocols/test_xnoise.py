"""`protocols.xnoise`: whoever vanishes, the noise left is enough and hardly more."""

from __future__ import annotations

from fractions import Fraction
from math import log2
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.crowd import Here, Processes
from protocols.errors import Infeasible, LocalError
from protocols.journal import MemoryJournal
from protocols.machine import Input, Received, StageClosed, Started
from protocols.session import Session
from protocols.simulator import simulate
from protocols.xnoise import OVERSHOOT, SMOOTH, Noisy, levels
from secagg.keys import Identity
from secagg.randomness import seeded


@given(st.integers(1, 20_000), st.floats(0, 0.95), st.floats(0, 0.5), st.floats(1e-2, 1e6), st.data())
def test_what_remains_is_enough_and_hardly_more(
    n: int, dropout: float, colluding: float, variance: float, data: st.DataObject
) -> None:
    least = max(1, n - int(dropout * n))
    c = min(int(colluding * n), least - 1)
    found = levels(Noisy(variance, c), n, least)
    for included in {least, n, data.draw(st.integers(least, n))}:
        kept = set(range(found.count)) - set(found.excess(included))
        parts = [Fraction(found.base), *(Fraction(found.unit) * 2**i for i in kept)]
        honest = sum(parts) * (included - c)
        assert variance <= honest <= Fraction(variance) * Fraction(1 + OVERSHOOT)
        assert found.remaining(included) == pytest.approx(float(honest), rel=1e-12)
    # Eight components do for half of the noise dropping out, one more for each doubling beyond.
    assert found.count <= log2((n - c) / (least - c)) + 7.1
    assert (found.count == 0) == (least == n)


def test_what_the_paper_would_leave_is_left_where_components_are_fine() -> None:
    """With as many units as dropouts, what is left is sigma^2 to within a unit, as in Dordis."""
    found = levels(Noisy(1000.0), 10, 8)
    assert found.remaining(10) == pytest.approx(1000.0, rel=1e-12)
    assert found.remaining(8) == pytest.approx(1000.0, rel=1e-9)


@pytest.mark.parametrize(
    ("variance", "colluding", "family", "says"),
    [
        (0.0, 0, "skellam", "positive variance"), (-1.0, 0, "skellam", "positive variance"),
        (float("inf"), 0, "skellam", "positive variance"), (float("nan"), 0, "skellam", "positive variance"),
        ("1", 0, "skellam", "expected a variance"), (True, 0, "skellam", "expected a variance"),
        (1.0, -1, "skellam", "number of colluding"), (1.0, 1.5, "skellam", "number of colluding"),
        (1.0, 0, "gaussian", "expected one of skellam"),
    ],
)  # fmt: skip
def test_impossible_noise_is_refused(variance: float, colluding: int, family: str, says: str) -> None:
    with pytest.raises(LocalError, match=says):
        Noisy(variance, colluding, family)  # type: ignore[arg-type]


def roster(n: int) -> dict[str, bytes]:
    return {f"c{i}": Identity.generate().public for i in range(n)}


def test_noise_that_cannot_be_is_refused_with_what_could() -> None:
    with pytest.raises(Infeasible, match="6 clients are not counted on, and as few as 6"):
        Session(roster(8), 3, 10, bits=12, noise=Noisy(1.0, colluding=6), dropout=0.25)
    with pytest.raises(Infeasible, match="choose another scale"):
        Session(roster(8), 3, 10, bits=40, noise=Noisy(1e12))
    with pytest.raises(Infeasible, match="choose another scale"):
        Session(roster(8), 3, 10, bits=12, noise=Noisy(SMOOTH * 8 - 1, family="discrete-gaussian"))
    with pytest.raises(LocalError, match="bits: with noise, expected the ring's width"):
        Session(roster(8), 3, 10, noise=Noisy(1.0))
    with pytest.raises(Infeasible, match="at most 2\\^62"):
        Session(roster(8), 3, 1 << 63, bits=8, noise=Noisy(1.0))
    with pytest.raises(LocalError, match="noise: expected a Noisy, got float"):
        Session(roster(8), 3, 10, bits=12, noise=1.0)  # type: ignore[arg-type]


def test_a_session_with_noise_takes_entries_about_zero() -> None:
    session = Session(roster(8), 3, 10, bits=12, noise=Noisy(1.0))
    assert session.vector([-9, 0, 9]).tolist() == [2**16 - 9, 0, 9]
    for outside in ([-10, 0, 0], [0, 10, 0]):
        with pytest.raises(LocalError, match="from -9 to 9"):
            session.vector(outside)


def test_the_hash_knows_the_noise() -> None:
    agreed = [None, Noisy(1.0), Noisy(1.5), Noisy(1.0, 1)]
    everybody = roster(8)
    hashes = {Session(everybody, 3, 10, bits=12, noise=noise).hash for noise in agreed}
    assert len(hashes) == len(agreed)


NOISY: dict[str, Any] = {
    "dim": 50, "bound": 100, "bits": 16, "noise": Noisy(900.0), "dropout": 0.2, "seed": 5,
    "drop": {"client-3": "masked"}, "threat_model": "malicious",
}  # fmt: skip


def test_noise_is_the_same_wherever_clients_run() -> None:
    here, there = (simulate(10, engine=engine, **NOISY) for engine in (Here(), Processes(2)))
    assert here.sum.tolist() == there.sum.tolist()
    assert here.result.noise == there.result.noise > 900
    assert "the sum with noise of variance 901.452 in each entry, of 9 of 10 clients" in str(here)


def test_parties_that_were_lost_go_on_with_the_same_noise() -> None:
    """Every client and the server, after every step, from a snapshot: the sum is what it would have been."""
    key, names = bytes(range(32)), [f"c{i}" for i in range(6)]
    identities = {name: Identity.generate(seeded(name.encode())) for name in names}
    agreed = {"bits": 16, "noise": Noisy(900.0), "dropout": 0.2, "threat_model": "malicious"}
    session = Session({n: i.public for n, i in identities.items()}, 4, 100, **agreed)
    sums = []
    for crash in (False, True):
        journals = {name: MemoryJournal() for name in (*names, "server")}
        server = session.server(rng=seeded(b"server"), journal=journals["server"])
        clients = {
            n: session.client(n, i, rng=seeded(b"client", n.encode()), journal=journals[n])
            for n, i in identities.items()
        }
        up = [out for n in names for e in (Started(), Input([1, -2, 3, -4])) for out in clients[n].handle(e)]
        while server.result is None:
            stage = server.stage
            down = [out for e in up for out in server.handle(Received(e))]
            down += server.handle(StageClosed(stage))
            up = []
            for envelope in down:
                up += clients[envelope.to].handle(Received(envelope))
            if crash:
                server = session.restore_server(journals["server"], snapshot=server.snapshot(key), key=key)
                clients = {
                    n: session.restore_client(
                        n, identities[n], journals[n], snapshot=c.snapshot(key), key=key
                    )
                    for n, c in clients.items()
                }
        sums.append((server.result.sum.tolist(), server.result.noise))
    assert sums[0] == sums[1]


@pytest.mark.parametrize("n", [10, 100])
@pytest.mark.parametrize("lost", [0.0, 0.1, 0.3])
def test_the_variance_of_a_sum_is_what_was_asked(n: int, lost: float) -> None:
    """Measured on real sessions: never below the target by more than chance, never 1.5 % above it."""
    dim, gone = 100_000, {f"c{i:03}": "masked" for i in range(int(lost * n))}
    vectors = {f"c{i:03}": np.full(dim, i % 7 - 3) for i in range(n)}
    protocol = {"protocol": "secagg+"} if n > 50 else {}
    run = simulate(
        vectors, bound=10, bits=14, noise=Noisy(2500.0), dropout=0.3, corrupted=0.05, drop=gone, **protocol
    )
    true = sum(vectors[name] for name in run.result.included)
    residual = run.sum - true
    deviation = (2 / dim) ** 0.5  # of a variance, relative
    assert 1 - 4 * deviation < residual.var() / 2500 < 1 + OVERSHOOT + 4 * deviation
    assert abs(residual.mean()) < 4 * (2600 / dim) ** 0.5
