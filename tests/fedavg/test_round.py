"""The aggregators side by side: the secure sum is the plain sum, whoever dropped out."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedavg.round import PlainSum, SecureSum
from protocols.errors import Aborted, LocalError
from protocols.machine import Aggregate
from protocols.wire import SERVER
from protocols.xnoise import Noisy

NAMES = [f"h{i}" for i in range(7)]
MODES = [
    ("secagg", "honest-but-curious"),
    ("secagg", "semi-malicious"),
    ("secagg", "malicious"),
    ("secagg+", "honest-but-curious"),
    ("secagg+", "semi-malicious"),
]
STAGES = ("keys", "shares", "masked", "signatures", "reveals")


def agreement(protocol: str, threat_model: str) -> dict[str, Any]:
    """Of seven clients, two may drop out."""
    return {"protocol": protocol, "threat_model": threat_model, "corrupted": 0.0, "dropout": 0.3}


def vectors(seed: int, bound: int, dim: int = 5, names: list[str] = NAMES) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    drawn = {n: rng.integers(0, bound, dim) for n in names}
    drawn[names[0]][:] = bound - 1
    return drawn


leavers = st.dictionaries(st.sampled_from(NAMES), st.sampled_from(STAGES), max_size=2)


@pytest.mark.parametrize(("protocol", "threat_model"), MODES)
@settings(max_examples=12)
@given(st.integers(0, 2**32), st.sampled_from([2, 1000, 2**16 - 1, 2**40, 2**60]), leavers)
def test_secure_equals_plain(
    protocol: str, threat_model: str, seed: int, bound: int, drop: dict[str, str]
) -> None:
    given_vectors = vectors(seed, bound)
    secure = SecureSum(agreement(protocol, threat_model), {3: drop}, seed)(given_vectors, bound, 3)
    plain = PlainSum({3: drop})(given_vectors, bound, 3)
    assert isinstance(secure, Aggregate)
    assert isinstance(plain, Aggregate)
    assert secure.included == plain.included
    assert [int(v) for v in secure.sum] == [int(v) for v in plain.sum]
    exact = sum(given_vectors[n].astype(object) for n in plain.included)
    assert [int(v) for v in plain.sum] == list(exact)
    assert set(NAMES) - set(secure.included) == set(plain.dropped)


def test_a_sparse_graph_equals_plain() -> None:
    names = [f"h{i:02}" for i in range(60)]
    drop = {names[5]: "masked", names[20]: "shares", names[40]: "keys", names[59]: "reveals"}
    agreed = {"protocol": "secagg+", "corrupted": 0.05, "dropout": 0.1}
    given_vectors = vectors(1, 2**20, 3, names)
    secure = SecureSum(agreed, {0: drop})(given_vectors, 2**20, 0)
    plain = PlainSum({0: drop})(given_vectors, 2**20, 0)
    assert isinstance(secure, Aggregate)
    assert isinstance(plain, Aggregate)
    assert secure.included == plain.included
    assert len(secure.included) == 57
    assert [int(v) for v in secure.sum] == [int(v) for v in plain.sum]


def test_dropouts_are_of_their_round_only() -> None:
    for make in (lambda d: PlainSum(d), lambda d: SecureSum(agreement(*MODES[0]), d)):
        aggregate = make({1: {"h0": "masked"}})
        sizes = [len(aggregate(vectors(0, 10), 10, r).included) for r in range(3)]
        assert sizes == [7, 6, 7]


def test_the_plain_sum_of_nobody_is_aborted() -> None:
    result = PlainSum({0: dict.fromkeys(NAMES, "masked")})(vectors(0, 10), 10, 0)
    assert isinstance(result, Aborted)
    assert set(result.dropped) == set(NAMES)
    with pytest.raises(Aborted, match="aborted at masked: too few are left"):
        _ = result.sum


def test_the_plain_sum_has_none_in_the_rounds_it_is_told_were_aborted() -> None:
    aggregate = PlainSum({1: {"h2": "masked"}, 2: {"h3": "reveals"}}, aborted={1, 2})
    results = [aggregate(vectors(0, 10), 10, r) for r in range(4)]
    assert [isinstance(r, Aborted) for r in results] == [False, True, True, False]
    assert [set(r.dropped) for r in results] == [set(), {"h2"}, set(), set()]
    for result in (results[0], results[3]):
        assert result.included == tuple(NAMES)
        assert [int(v) for v in result.sum] == list(sum(vectors(0, 10).values()))


def test_too_many_dropouts_abort_the_secure_sum() -> None:
    drop = dict.fromkeys(NAMES[:5], "masked")
    result = SecureSum(agreement(*MODES[0]), {0: drop})(vectors(0, 10), 10, 0)
    assert isinstance(result, Aborted)
    assert "2 clients" in result.cause
    assert set(result.dropped) == set(drop)


def test_an_entry_out_of_bounds_is_refused() -> None:
    given_vectors = vectors(0, 10)
    given_vectors["h3"][2] = 10
    with pytest.raises(LocalError, match="expected entries from 0 to 9"):
        SecureSum(agreement(*MODES[0]))(given_vectors, 10, 0)
    with pytest.raises(LocalError, match="quantise floats first"):
        SecureSum(agreement(*MODES[0]))({n: np.zeros(2) for n in NAMES}, 10, 0)


def test_a_sum_that_could_wrap_is_refused() -> None:
    with pytest.raises(LocalError, match="so that no sum can wrap"):
        SecureSum(agreement(*MODES[0]))(vectors(0, 10), 2**63, 0)


def test_nothing_given_is_changed() -> None:
    given_vectors = vectors(0, 1000)
    kept = {n: v.copy() for n, v in given_vectors.items()}
    PlainSum()(given_vectors, 1000, 0)
    SecureSum(agreement(*MODES[0]))(given_vectors, 1000, 0)
    for name in NAMES:
        np.testing.assert_array_equal(given_vectors[name], kept[name])


def test_costs_add_up_over_rounds() -> None:
    aggregate = SecureSum(agreement("secagg", "malicious"))
    aggregate(vectors(0, 1000), 1000, 0)
    once = {party: (c.bytes_up, c.bytes_down) for party, c in aggregate.costs.items()}
    aggregate(vectors(1, 1000), 1000, 1)
    assert set(aggregate.costs) == {SERVER, *NAMES}
    for party, (up, down) in once.items():
        assert up > 0
        assert down > 0
        assert aggregate.costs[party].bytes_up == pytest.approx(2 * up, rel=0.1)
        assert aggregate.costs[party].bytes_down == pytest.approx(2 * down, rel=0.1)
    assert len(aggregate.clients()) == 7
    # What the clients send is what the server receives, and the other way round.
    assert sum(c.bytes_up for c in aggregate.clients()) == aggregate.costs[SERVER].bytes_down
    assert sum(c.bytes_down for c in aggregate.clients()) == aggregate.costs[SERVER].bytes_up


def test_events_are_told() -> None:
    told: list[tuple[str, int, int]] = []
    SecureSum(agreement(*MODES[0]), on_event=lambda *event: told.append(event))(vectors(0, 10), 10, 0)
    assert {stage for stage, _, _ in told} >= {"keys", "shares", "masked", "reveals"}
    assert all(1 <= done <= of == 7 for _, done, of in told)


def test_without_a_seed_nobody_can_repeat_the_noise() -> None:
    agreed = {"noise": Noisy(1e6), "bits": 32, "dropout": 0.0, "corrupted": 0.0}

    def total(seed: int | None) -> list[int]:
        result = SecureSum(agreed, seed=seed)(vectors(0, 10), 10, 0)
        assert isinstance(result, Aggregate)
        return [int(v) for v in result.sum]

    assert total(5) == total(5)
    assert total(None) != total(None)
