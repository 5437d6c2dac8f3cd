"""Contributions that take turns: what is sent, what comes back, what it costs, and how much better it is."""

from __future__ import annotations

from math import sqrt
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedavg.accounting import composed, epsilon_of
from fedavg.codec import PrivateCodec, to_integers
from fedavg.ledger import Ledger
from fedavg.privacy import plan
from fedavg.turns import Receiver, Sender, coefficient, coefficients, heaviest, spread
from protocols.errors import Aborted
from protocols.machine import Aggregate
from secagg.randomness import seeded


def matrix(counts: tuple[int, ...], rounds: int) -> Any:
    """C, written out."""
    found = np.zeros((rounds, rounds))
    for j, count in enumerate(counts):
        found += count * np.eye(rounds, k=-j)
    return found


def participations(rounds: int, every: int, turn: int) -> Any:
    return np.isin(np.arange(rounds), np.arange(turn, rounds, every)).astype(float)


turned = st.tuples(st.integers(1, 12), st.sampled_from([0.0, 0.3, 0.5, 0.9]), st.integers(1, 40))


@given(turned)
def test_the_sensitivity_is_that_of_the_matrix(case: tuple[int, float, int]) -> None:
    """Of C times every pattern of turns; and no two of one contribution meet in a round."""
    every, momentum, rounds = case
    counts = coefficients(every, momentum)
    assert len(counts) <= every
    found = []
    for turn in range(min(every, rounds)):
        column = matrix(counts, rounds) @ participations(rounds, every, turn)
        assert column.tolist() == [coefficient(counts, every, turn, t) for t in range(rounds)]
        found.append((column**2).sum())
    assert max(found) == heaviest(counts, every, rounds)


@given(turned, st.integers(0, 2**32))
def test_without_noise_the_sums_come_back_exactly(case: tuple[int, float, int], seed: int) -> None:
    """Two clients; what each sends is C times what it contributed, and the server undoes C."""
    every, momentum, rounds = case
    counts = coefficients(every, momentum)
    x = np.random.default_rng(seed).integers(-1000, 1000, (2, rounds, 3))
    senders, receiver = [Sender(counts), Sender(counts)], Receiver(counts)
    sent = np.array([[s.send(v) for v in mine] for s, mine in zip(senders, x, strict=True)])
    np.testing.assert_array_equal(sent[0], matrix(counts, rounds) @ x[0])
    back = np.array([receiver.receive(total.astype(float)) for total in sent.sum(0)])
    np.testing.assert_allclose(back, x.sum(0), atol=1e-6)


@pytest.mark.parametrize("every", [2, 4, 10])
@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_running_totals_have_less_noise_than_with_a_tree_or_independent(every: int, momentum: float) -> None:
    """At the same guarantee; `spread` is what B = A / C makes of the noise."""
    rounds = 40
    counts, totals = coefficients(every, momentum), np.tril(np.ones((rounds, rounds)))

    def error(c: Any, squared: float) -> float:
        b = totals @ np.linalg.inv(c)
        return sqrt(squared * (b**2).sum(1).mean())

    assert spread(counts, rounds) == pytest.approx(error(matrix(counts, rounds), 1.0))
    independent = sqrt(heaviest((1,), every, rounds) * (rounds + 1) / 2)
    ours = error(matrix(counts, rounds), heaviest(counts, every, rounds))
    assert ours < {2: 0.8, 4: 0.65, 10: 0.55}[every] * independent
    assert ours < tree(rounds, every)


def tree(rounds: int, every: int) -> float:
    """The same of a binary tree over rounds: every running total is a sum of few of its nodes."""
    size = 1 << (rounds - 1).bit_length()
    nodes = [(i, i + (1 << k)) for k in range(size.bit_length()) for i in range(0, size, 1 << k)]
    nodes = [(low, high) for low, high in nodes if low < rounds]
    c = np.array([[low <= t < high for t in range(rounds)] for low, high in nodes], float)
    squared = max(((c @ participations(rounds, every, turn)) ** 2).sum() for turn in range(every))
    b = np.tril(np.ones((rounds, rounds))) @ np.linalg.pinv(c)  # the best that can be made of the nodes
    return sqrt(squared * (b**2).sum(1).mean())


def test_everybody_in_every_round_is_as_it_was() -> None:
    assert coefficients(1) == coefficients(1, 0.9) == (1,)
    vector = np.arange(5)
    np.testing.assert_array_equal(Sender((1,)).send(vector), vector)
    np.testing.assert_array_equal(Receiver((1,)).receive(vector.astype(float)), vector)


def test_a_missed_round_fades_away() -> None:
    """One client's round is lost: running totals are off by what it would have sent, less and less."""
    counts, rounds = coefficients(8), 24
    x = np.zeros((rounds, 1))
    x[::8] = 1.0
    sender, receiver = Sender(counts), Receiver(counts)
    found = []
    for t, value in enumerate(x):
        sent = sender.send(value.astype(np.int64)).astype(float)
        back = receiver.receive(np.zeros(1) if t == 8 else sent)
        assert back is not None
        found.append(float(back[0]))
    off = np.abs(np.cumsum(found) - np.cumsum(x[:, 0]))
    assert off[:8].max() < 1e-9
    assert off[8] == pytest.approx(1.0)
    assert off[12:].max() < 0.45


def test_a_round_without_a_sum_is_gone_over() -> None:
    counts = coefficients(4)
    sender, receiver = Sender(counts), Receiver(counts)
    found = [
        receiver.skip() if t == 2 else receiver.receive(sent.astype(float))
        for t, sent in enumerate(sender.send(np.array([v])) for v in (5, 0, 0, 7, 0))
    ]
    assert found[2] is None
    assert [round(float(v[0]), 6) for v in found[:2] if v is not None] == [5, 0]


@pytest.mark.parametrize("every", [0, -1, True, 1.5, 1 << 17])
def test_turns_that_cannot_be(every: Any) -> None:
    with pytest.raises(ValueError, match="turns: expected an integer"):
        coefficients(every)
    with pytest.raises(ValueError, match="turns: expected an integer"):
        plan(10, 1.0, 10, 1.0, 1e-5, turns=every)


def test_momentum_that_cannot_be() -> None:
    for momentum in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match="momentum: expected a number"):
            coefficients(3, momentum)


def test_turns_are_not_sampled_too() -> None:
    with pytest.raises(ValueError, match="take turns or are sampled"):
        plan(10, 1.0, 10, 1.0, 1e-5, turns=3, sampling=0.5)


# -------------------------------------------------------------------------------- plans and ledgers


@pytest.mark.parametrize(("every", "rounds"), [(2, 10), (5, 20), (5, 23), (7, 3)])
def test_a_plan_spends_its_budget_and_no_more(every: int, rounds: int) -> None:
    found = plan(50, 1.0, 10, 2.0, 1e-5, rounds=rounds, records=20, turns=every, momentum=0.5)
    ledger = Ledger(2.0, 1e-5, "one record")
    for number in range(rounds):
        ledger.reserve("train", number, found)
        gone = Aggregate(np.zeros(50), tuple("abcdefghij"), {}, (), noise=found.variance,
                         carried=float(found.rounding))  # fmt: skip
        ledger.settle(gone, found)
    assert ledger.spent == pytest.approx(2.0, rel=1e-3)
    assert ledger.spent <= 2.0 * (1 + 1e-6)
    # The same by hand, of every turn.
    told = [
        composed(found.mu * coefficient(found.coefficients, every, turn, t) for t in range(rounds))
        for turn in range(every)
    ]
    assert ledger.spent == pytest.approx(epsilon_of(max(told), 1e-5), rel=1e-3)
    if rounds % every == 0:  # or else turns that came less often have some left
        with pytest.raises(ValueError, match="another round would make it"):
            ledger.reserve("train", rounds, found)


def test_turns_of_another_task_are_others() -> None:
    """Who shares a turn in one training need not in another: their costs add up."""
    found = plan(50, 1.0, 10, 2.0, 1e-5, rounds=4, records=20, turns=4)
    one, two = Ledger(1e5, 1e-5, "one record"), Ledger(1e5, 1e-5, "one record")
    for number in range(4):
        one.reserve("train", number, found)
        two.reserve("train", number, found)
        two.reserve("again", number, found)
    assert one.spent == pytest.approx(2.0, rel=1e-3)
    mu = composed([composed(found.mu * w for w in found.coefficients)] * 2)
    assert two.spent == pytest.approx(epsilon_of(mu, 1e-5), rel=1e-5)


def test_a_ledger_with_impossible_counts_is_refused() -> None:
    found = plan(50, 1.0, 10, 2.0, 1e-5, rounds=4, records=20, turns=4)
    ledger = Ledger(2.0, 1e-5, "one record")
    ledger.reserve("train", 0, found)
    data = ledger.dump()
    ledger.load(data)
    assert ledger.releases[0].factors == (4, 0, 0, 0)
    with pytest.raises(ValueError, match="impossible cost"):
        ledger.load(data.replace(b"4,", b"-4,"))


def test_aligned_contributions_fit_the_ring() -> None:
    """All the same, at the norm, with all the weight they can have: the bound holds, and the sum."""
    found = plan(16, 1.0, 10, 4.0, 1e-4, rounds=12, records=30, turns=3)
    codec = PrivateCodec(found, bytes(32), 16, 1.0)
    update, rng = np.full(16, 0.25), seeded(b"aligned")
    total = np.zeros(16, np.int64)
    for _ in range(10):
        sender = Sender(found.coefficients)
        for _ in range(3):
            grid = codec.on_grid(np.tile(update, (10, 1)), rng)
            vector = to_integers(found, sender.send(grid), rng)
            assert np.abs(vector).max() < found.bound
        total += vector
    assert np.abs(total).max() < 2 ** (found.bits - 1)
    back = codec.sums(total) / sum(found.coefficients)
    np.testing.assert_allclose(back / 100, update, atol=0.05)


def test_a_record_is_bounded_in_every_round_it_is_sent() -> None:
    """Its integers times the coefficient: the norm that the plan allows, times the coefficient."""
    found = plan(40, 1.0, 10, 4.0, 1e-4, rounds=12, records=30, turns=4)
    codec, sender = PrivateCodec(found, bytes(32), 40, 1.0), Sender(found.coefficients)
    first = codec.on_grid(np.full((1, 40), 100.0))
    sent = [sender.send(first)] + [sender.send(codec.on_grid(np.zeros((0, 40)))) for _ in range(4)]
    for factor, values in zip((*found.coefficients, 0), sent, strict=True):
        np.testing.assert_array_equal(values, factor * first)
    assert 0 < int((first**2).sum()) <= found.norm_squared


def test_an_aborted_round_costs_every_turn_that_was_in_it() -> None:
    found = plan(50, 1.0, 10, 2.0, 1e-5, rounds=4, records=20, turns=4)
    ledger = Ledger(2.0, 1e-5, "one record")
    ledger.reserve("train", 0, found)
    ledger.reserve("train", 1, found)
    ledger.settle(Aborted("reveals", "gone", revealed=True), found)
    assert [r.factors for r in ledger.releases] == [(4, 0, 0, 0), (found.coefficients[1], 4, 0, 0)]
    assert ledger.spent == pytest.approx(
        epsilon_of(composed(found.mu * w for w in found.coefficients[:2]), 1e-5), rel=1e-6
    )
