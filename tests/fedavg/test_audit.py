"""`fedavg.audit`: it finds what is wrong, comes near to what is right, and seldom cries wolf."""

from __future__ import annotations

from dataclasses import replace
from math import exp

import numpy as np
import pytest
from scipy.stats import binom

from fedavg.accounting import mu_of
from fedavg.audit import Audit, _chance, audit, check_variance, free_bound, gaussian_bound
from fedavg.privacy import Plan
from fedavg.round import PlainSum, SecureSum
from protocols.errors import Aborted
from secagg.noise import noise, rounding
from secagg.prg import SEED_BYTES
from secagg.randomness import Rng


def scores(mu: float, canaries: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """What the best attack sees of a Gaussian release, canary by canary."""
    rng = np.random.default_rng(seed)
    coins = rng.integers(0, 2, canaries).astype(bool)
    return coins * 1.0 + rng.normal(size=canaries) / mu, coins


def test_a_right_round_is_not_refuted_and_the_bound_comes_near() -> None:
    found = audit(6000, 10, 4.0, 1e-5)
    assert audit(6000, 3, 1.0, 1e-5, analysis="published").gaussian <= 1.0
    assert not found.refuted
    assert 0.8 * 4 < found.gaussian <= 4
    assert 0.3 * 4 < found.free < found.gaussian
    assert found.variance == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("epsilon", [1.0, 4.0])
def test_false_alarms_are_at_most_one_in_twenty(epsilon: float) -> None:
    """On the best attack's own data, where the guarantee holds exactly."""
    mu = mu_of(epsilon, 1e-5)
    gaussian = free = wrong = 0
    for seed in range(300):
        seen, coins = scores(mu, 1000, seed)
        gaussian += gaussian_bound(seen, coins, 0.5, 1e-5, 0.95) > epsilon
        free += free_bound(seen, coins, 0.05, 1e-5, 0.95) > epsilon
        drawn = noise("skellam", 50.0).sample(seed.to_bytes(16, "big"), 2000)
        wrong += check_variance(drawn, 50.0, 50.0)[1] < 0.05
    assert gaussian <= 15
    assert free <= 15
    assert binom.sf(wrong - 1, 300, 0.05) > 1e-3


def test_a_hundred_thousand_canaries_come_within_a_tenth() -> None:
    seen, coins = scores(mu_of(4.0, 1e-5), 100_000, 1)
    assert 0.9 * 4 < gaussian_bound(seen, coins, 0.5, 1e-5, 0.95) <= 4
    assert 0.5 * 4 < free_bound(seen, coins, 0.01, 1e-5, 0.95) <= 4


def test_too_little_noise_is_refuted() -> None:
    """Clients add half of it: the canaries see it, and so does the variance."""

    def careless(found: Plan) -> SecureSum:
        less = replace(found.noisy, variance=found.variance / 2)
        return SecureSum({"noise": less, "bits": found.bits, "corrupted": 0.0, "dropout": 0.0})

    found = audit(6000, 3, 1.0, 1e-5, analysis="published", aggregator=careless)
    assert found.gaussian > 1.0
    assert found.p < 1e-6
    assert found.refuted


@pytest.mark.parametrize("hospitals", [10, 100])
def test_rounding_that_is_less_than_it_should_be_is_refuted(
    hospitals: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is most of the noise: half of it missing shows in what is left of the sum."""
    from fedavg import audit as module

    def sloppy(found: Plan, grid: np.ndarray, rng: Rng) -> np.ndarray:
        return rounding(found.grid_bits, found.rounding // 2).round(grid, rng(SEED_BYTES))

    assert not audit(3000, hospitals, 1.0, 1e-5, analysis="tight").refuted
    monkeypatch.setattr(module, "to_integers", sloppy)
    found = audit(3000, hospitals, 1.0, 1e-5, analysis="tight")
    assert found.refuted
    assert found.p < 1e-6


def test_the_seed_reaches_the_noise() -> None:
    """Or else an alarm of one seed would be one of all."""
    assert len({audit(300, 3, 2.0, 1e-4, seed=seed, analysis="published").variance for seed in range(5)}) == 5


def test_one_share_missing_of_a_hundred_is_caught() -> None:
    """By the variance of what is left, at a million entries."""
    each, size = noise("skellam", 32.5), 1_000_000
    residual = np.zeros(size, np.int64)
    for i in range(99):
        residual += each.sample(i.to_bytes(16, "big"), size)
    ratio, p = check_variance(residual, 3250.0, 3250.0)
    assert ratio == pytest.approx(0.99, abs=0.005)
    assert p < 1e-6
    residual += each.sample((99).to_bytes(16, "big"), size)
    assert check_variance(residual, 3250.0, 3250.0)[1] > 0.01


def test_the_chance_is_that_of_the_theorem() -> None:
    """Against the sum and the largest mean written out, and at delta 0, the binomial tail alone."""
    q = 1 / (1 + exp(-1.5))
    for canaries, guesses, right, delta in ((1000, 100, 90, 1e-5), (50, 50, 45, 1e-3), (10, 10, 10, 0.0)):
        beta = sum(binom.pmf(k, guesses, q) for k in range(right, guesses + 1))
        means = [
            sum(binom.pmf(right - j, guesses, q) for j in range(1, i + 1)) / i for i in range(1, right + 1)
        ]
        expected = min(1.0, beta + 2 * canaries * delta * max(means))
        assert _chance(canaries, guesses, right, 1.5, delta) == pytest.approx(expected, rel=1e-9)


def test_guesses_that_are_no_better_than_chance_bound_nothing() -> None:
    seen, coins = scores(1e-6, 2000, 3)
    assert gaussian_bound(seen, coins, 0.5, 1e-5, 0.95) == pytest.approx(0.0, abs=0.05)
    assert free_bound(seen, coins, 0.1, 1e-5, 0.95) == pytest.approx(0.0, abs=0.3)


def test_perfect_guesses_bound_a_lot() -> None:
    coins = np.arange(2000) % 2 == 0
    assert free_bound(coins.astype(float), coins, 1.0, 0.0, 0.95) > 5
    assert gaussian_bound(coins.astype(float), coins, 0.5, 1e-5, 0.95) > 20


def test_an_audit_needs_a_sum_and_enough_canaries() -> None:
    with pytest.raises(ValueError, match="at least 100"):
        audit(99, 10, 1.0, 1e-5)

    def never(found: Plan) -> PlainSum:
        return PlainSum(aborted=[0])

    with pytest.raises(Aborted):
        audit(200, 10, 1.0, 1e-5, aggregator=never)  # type: ignore[arg-type]


def test_refuted_says_any_of_the_three() -> None:
    right = Audit(4.0, 1e-5, 1000, 3.5, 2.0, 1.0, 0.5)
    assert not right.refuted
    for wrong in ({"gaussian": 4.1}, {"free": 4.1}, {"p": 0.01}):
        assert replace(right, **wrong).refuted


def test_all_checks_together_seldom_cry_wolf() -> None:
    """Whole audits of rounds with nothing wrong, of which one in twenty may be refuted."""
    refuted = sum(audit(300, 3, 2.0, 1e-4, seed=seed, analysis="published").refuted for seed in range(100))
    assert binom.sf(refuted - 1, 100, 0.05) > 1e-3
