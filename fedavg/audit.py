"""Does the noise do what was promised? Statistics of what remains in a sum, and an attack that finds epsilon.

Canaries are contributions that the auditor invents, each there or not by the toss of a coin. A sum with noise
is made of them by a real session, and from it alone the auditor guesses the coins. Who guesses too well
refutes the guarantee: the rate of right guesses gives a lower bound of epsilon, so a bound above what was
promised is proof that something is wrong (or of bad luck: all that is looked at here, together, raises a
false alarm at most one time in twenty).

Two bounds stand beside each other. One assumes nothing of the mechanism (Steinke, Nasr, Jagielski, "Privacy
Auditing with One (1) Training Run", NeurIPS 2023, Theorem 5.2); it stays well below the truth. The other
takes the trade-off of errors to be a Gaussian's, as it is of what we add, and comes near.

What it does not find: a weakness that no canary touches, such as a client without noise in other rounds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import exp, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedavg.accounting import epsilon_of
from fedavg.codec import PrivateCodec, to_integers
from fedavg.params import Floats
from fedavg.privacy import Analysis, Plan, plan
from fedavg.round import SecureSum
from protocols.errors import Aborted
from secagg.randomness import seeded

_SHARES = {"gaussian": 0.02, "free": 0.01, "p": 0.02}  # of false alarms: together one in twenty
_FRACTIONS = (0.005, 0.02, 0.08, 0.3)  # of the canaries that are guessed at, the surest ones


@dataclass(frozen=True, slots=True)
class Audit:
    """What an audit found.

    promised     epsilon of the plan, at `delta`
    gaussian     lower bound of epsilon under a Gaussian trade-off
    free         lower bound without any assumption
    variance     of the noise that was left in the sum, over what it should be
    p            the probability of a variance at least as far off, if the noise is right
    """

    promised: float
    delta: float
    canaries: int
    gaussian: float
    free: float
    variance: float
    p: float

    @property
    def refuted(self) -> bool:
        """Whether the guarantee, or the noise, is not what it should be; a false alarm one time in twenty."""
        return max(self.gaussian, self.free) > self.promised or self.p < _SHARES["p"]


def audit(
    canaries: int, hospitals: int, epsilon: float, delta: float, *, clipping_norm: float = 1.0, seed: int = 0,
    analysis: Analysis = "best", aggregator: Callable[[Plan], SecureSum] | None = None,
    on_step: Callable[[str, int, int], None] | None = None,
) -> Audit:  # fmt: skip
    """Attack one real round of so many hospitals, with a plan for (epsilon, delta).

    `canaries` records of the clipping norm, each in an entry of its own; a coin says whether it is there.
    `aggregator` makes the sum, by default a session with the plan's noise. Raises `Aborted` if there is none,
    and what `plan` raises.
    """
    if canaries < 100:
        raise ValueError(f"canaries: expected at least 100, got {canaries}")
    tell = on_step or (lambda what, done, of: None)
    records = -(-canaries // hospitals)
    found = plan(canaries, clipping_norm, hospitals, epsilon, delta, records=records, analysis=analysis)
    codec = PrivateCodec(found, seed.to_bytes(8, "big"), canaries, clipping_norm)
    coins = np.random.default_rng(seed).integers(0, 2, canaries).astype(bool)
    vectors, true = {}, np.zeros(canaries, np.int64)
    for number in range(hospitals):
        mine = np.flatnonzero(coins[number::hospitals]) * hospitals + number
        rng = seeded(b"audit", seed.to_bytes(8, "big"), number.to_bytes(8, "big"))
        grid = codec.on_grid(_alone(mine, canaries, clipping_norm), rng)
        true += grid
        vectors[f"hospital-{number:04}"] = to_integers(found, grid, rng)
        tell("canaries", number + 1, hospitals)
    aggregate = _session(found, seed) if aggregator is None else aggregator(found)
    result = aggregate(vectors, codec.bound, 0)
    if isinstance(result, Aborted):
        raise result
    half = 1 << found.bits - 1
    # What is left when the contributions are taken out: noise, and rounding that is part of it.
    residual = (result.sum - true / (1 << found.grid_bits) + half) % (2 * half) - half
    right = max(result.noise, found.variance)
    variance, p = check_variance(residual, right, right - hospitals * found.rounding)
    sums, _ = codec.decode(result.sum, 1)
    free = max(
        free_bound(sums, coins, fraction, delta, 1 - _SHARES["free"] / len(_FRACTIONS))
        for fraction in _FRACTIONS
    )
    gaussian = gaussian_bound(sums, coins, clipping_norm / 2, delta, 1 - _SHARES["gaussian"])
    return Audit(epsilon, delta, canaries, gaussian, free, variance, p)


def _alone(entries: NDArray[np.int64], size: int, value: float) -> Iterator[Floats]:
    """For each entry, a vector that is zero elsewhere."""
    for entry in entries:
        update = np.zeros(size)
        update[entry] = value
        yield update


def _session(found: Plan, seed: int) -> SecureSum:
    agreed = {"noise": found.noisy, "bits": found.bits, "corrupted": 0.0, "dropout": 0.0, "task": "audit"}
    return SecureSum(agreed, seed=seed)


def check_variance(residual: NDArray[Any], variance: float, skellam: float) -> tuple[float, float]:
    """The variance of what is left of a sum without all contributions, over what it should be.

    And the probability of one at least as far off, if the noise is right, `skellam` of it Skellam. With a
    million entries, one share of noise missing of a hundred is seven standard deviations.
    """
    from scipy.stats import chi2

    squares = float((residual.astype(np.float64) ** 2).sum())
    # The fourth cumulant of Skellam noise is its variance, so the sum of squares varies a little more.
    wider = sqrt(1 + max(0.0, skellam) / (2 * variance**2))
    freedom = residual.size / wider**2
    statistic = squares / variance / residual.size * freedom
    below = float(chi2.cdf(statistic, freedom))
    return squares / variance / residual.size, 2 * min(below, 1 - below)


def free_bound(
    scores: Floats, coins: NDArray[np.bool_], fraction: float, delta: float, confidence: float
) -> float:
    """The largest epsilon that so many right guesses refute, whatever the mechanism.

    Half of the guesses are "in", for the highest scores, and half "out", for the lowest; the others abstain.
    `fraction` of all are guessed, which must be chosen before the scores are seen.
    """
    order, each = np.argsort(scores), max(1, int(fraction * scores.size / 2))
    right = int(coins[order[-each:]].sum() + (~coins[order[:each]]).sum())
    low, high = 0.0, 1.0
    if _chance(scores.size, 2 * each, right, low, delta) > 1 - confidence:
        return 0.0
    while _chance(scores.size, 2 * each, right, high, delta) <= 1 - confidence and high < 64:
        low, high = high, 2 * high
    while high - low > 1e-4:
        middle = (low + high) / 2
        if _chance(scores.size, 2 * each, right, middle, delta) <= 1 - confidence:
            low = middle
        else:
            high = middle
    return low


def _chance(canaries: int, guesses: int, right: int, epsilon: float, delta: float) -> float:
    """The chance of at least so many right guesses, at most, against an (epsilon, delta)-private mechanism.

    Theorem 5.2: beta + 2 m delta alpha, where beta is the binomial tail from `right` on, and alpha the
    largest of the means of the binomial probabilities of the i values below `right`.
    """
    from scipy.stats import binom

    success = 1 / (1 + exp(-epsilon))
    beta = float(binom.sf(right - 1, guesses, success))
    below = np.cumsum(binom.pmf(np.arange(right - 1, -1, -1), guesses, success))
    alpha = float((below / np.arange(1, right + 1)).max(initial=0.0))
    return min(1.0, beta + 2 * canaries * delta * alpha)


def gaussian_bound(
    scores: Floats, coins: NDArray[np.bool_], threshold: float, delta: float, confidence: float
) -> float:
    """A lower bound of epsilon at `delta` if no test beats a Gaussian trade-off.

    The two rates of error at a threshold that was fixed beforehand, each with a one-sided Clopper-Pearson
    bound, give the least mu that explains them.
    """
    from scipy.stats import beta, norm

    level = (1 - confidence) / 2
    hits, ins = int((scores[coins] > threshold).sum()), int(coins.sum())
    alarms, outs = int((scores[~coins] > threshold).sum()), int((~coins).sum())
    least_hits = float(beta.ppf(level, hits, ins - hits + 1)) if hits else 0.0
    most_alarms = float(beta.ppf(1 - level, alarms + 1, outs - alarms)) if alarms < outs else 1.0
    mu = float(norm.ppf(least_hits) - norm.ppf(most_alarms))
    return epsilon_of(mu, delta) if mu > 0 else 0.0
