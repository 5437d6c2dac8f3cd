"""What noise tells: its shift by a contribution as a Gaussian one, and that as (epsilon, delta).

A shift of integer noise is (factor / sigma)-GDP (Dong, Roth, Su, "Gaussian Differential Privacy", JRSS B
2022), where the factor is just above 1: the largest slope between any two neighbouring points of the
trade-off function, found on the exact distribution function (docs/decisions/0011). Releases compose by the
root of the sum of squares, and `dp_accounting` (extra `dp`) converts between that and (epsilon, delta).
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from importlib import import_module
from math import exp, pi, sqrt
from typing import Any

import numpy as np

from protocols.xnoise import SMOOTH
from secagg.noise import Family, noise

_MOST_EPSILON = 1e5  # beyond is no guarantee at all
_MARGIN = 1 + 1e-8  # what the quantile function of the normal distribution and float64 may be off by
_CONVOLVED = 2.0**14
_MOST_TOGETHER = 1 << 12


# ------------------------------------------------------------------------- Gaussian and (epsilon, delta)


def mu_of(epsilon: float, delta: float) -> float:
    """The largest mu for which mu-GDP gives (epsilon, delta): the reciprocal of a noise multiplier.

    Raises `ValueError` unless epsilon is positive and delta lies between 0 and 1.
    """
    check_target(epsilon, delta)
    target = _needs_extra("dp_accounting.pld.common").DifferentialPrivacyParameters(epsilon, delta)
    losses = _needs_extra("dp_accounting.pld.privacy_loss_mechanism")
    return 1.0 / float(losses.GaussianPrivacyLoss.from_privacy_guarantee(target).standard_deviation)


def epsilon_of(mu: float, delta: float) -> float:
    """The epsilon that mu-GDP gives at `delta`, rounded up to a relative 10^-9."""
    check_target(1.0, delta)
    if not mu >= 0:
        raise ValueError(f"mu: expected 0 or more, got {mu}")
    if mu == 0 or _delta_of(mu, 0.0) <= delta:
        return 0.0
    low, high = 0.0, 1.0
    while _delta_of(mu, high) > delta:
        low, high = high, 2 * high
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if _delta_of(mu, middle) > delta else (low, middle)
    return high


def composed(mus: Iterable[float]) -> float:
    """The mu of several releases together (Dong, Roth, Su 2022, Corollary 3.3)."""
    return sqrt(sum(mu * mu for mu in mus))


def epsilon_sampled(releases: Iterable[tuple[float, float]], delta: float) -> float:
    """The epsilon of several releases (mu, rate), each of a secret Poisson sample of that rate.

    A shift of the noise is dominated by the Gaussian one, so the sampled release is by that sampled (Zhu,
    Dong, Wang, "Optimal Accounting of Differential Privacy via Characteristic Function", AISTATS 2022,
    Theorem 11); `dp_accounting` composes the loss distributions, rounded upwards.
    """
    check_target(1.0, delta)
    dp_accounting = _needs_extra("dp_accounting")
    accountant = _needs_extra("dp_accounting.pld").PLDAccountant(value_discretization_interval=_INTERVAL)
    counts = Counter(releases)
    for (mu, rate), count in sorted(counts.items()):
        event = dp_accounting.GaussianDpEvent(1.0 / mu)
        accountant.compose(dp_accounting.PoissonSampledDpEvent(rate, event), count)
    return float(accountant.get_epsilon(delta)) if counts else 0.0


def mu_sampled(epsilon: float, delta: float, rounds: int, rate: float) -> float:
    """The largest mu with which so many rounds, each of a secret sample, give (epsilon, delta)."""
    low = mu_of(epsilon, delta) / sqrt(rounds)  # what it would be if the samples were known
    if low >= _MOST_MU:
        return low
    high = min(2 * low, _MOST_MU)
    while high < _MOST_MU and epsilon_sampled([(high, rate)] * rounds, delta) <= epsilon:
        low, high = high, min(2 * high, _MOST_MU)
    while high - low > 1e-4 * high:
        middle = (low + high) / 2
        if epsilon_sampled([(middle, rate)] * rounds, delta) <= epsilon:
            low = middle
        else:
            high = middle
    return low


_MOST_MU = 30.0  # beyond is hardly noise, and the loss distributions grow with its square
_INTERVAL = 1e-3  # of losses: a tenth of it changes epsilon in the fourth digit


def _delta_of(mu: float, epsilon: float) -> float:
    return float(_gaussian_loss(mu).get_delta_for_epsilon(epsilon))


@lru_cache(maxsize=8)
def _gaussian_loss(mu: float) -> Any:
    return _needs_extra("dp_accounting.pld.privacy_loss_mechanism").GaussianPrivacyLoss(1.0 / mu)


def _needs_extra(module: str) -> Any:
    """A module that comes with the extra `dp`; it takes about a second."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        text = "noise is planned with dp-accounting: pip install 'secagg[dp]'"
        raise ModuleNotFoundError(text, name=error.name) from None


def check_target(epsilon: float, delta: float) -> None:
    """Raise `ValueError` for an epsilon or a delta that says nothing."""
    if not is_number(epsilon) or not 0 < epsilon <= _MOST_EPSILON:
        raise ValueError(f"epsilon: expected a positive number to {_MOST_EPSILON:g}, got {epsilon!r}")
    # Far above the events of probability 2^-120 that are left out.
    if not is_number(delta) or not 1e-24 <= delta < 1:
        raise ValueError(f"delta: expected a number between 1e-24 and 1, got {delta!r}")


def is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


# --------------------------------------------------------------------------------- integer noise


@lru_cache(maxsize=64)
def gaussian_factor(family: Family, variance: float) -> float:
    """How much more a shift of this noise by an integer tells than one of Gaussian noise of that variance.

    The noise shifted by k is (factor * k / sqrt(variance))-GDP. Both distributions are log-concave, so
    likelihood ratios are monotone, the trade-off function has its corners at thresholds, and between them it
    is linear while the Gaussian one is convex: it suffices to look at the corners, where the noise shifted by
    one is at least `z` with probability F(-z), and the noise itself with F(-z - 1). Left out are events of
    probability below 2^-120: any delta is larger by far, times all entries and rounds there are.
    """
    ndtri = _needs_extra("scipy.special").ndtri
    steps = noise(family, variance).steps()
    up_to_zero = 1 - steps.first  # the rest is its mirror image
    likely = bisect_left(steps.low, 1 << steps.bits - 120)
    f = np.array([low / (1 << steps.bits) for low in steps.low[likely:up_to_zero]])
    slope = float(np.diff(ndtri(f)).max(initial=0.0))
    return max(1.0, slope * sqrt(variance)) * _MARGIN


def divergence(family: Family, parts: int) -> float:
    """How far the sum of so many parts of noise is from one of its family: the largest log ratio.

    None for Skellam. For discrete Gaussians, each of variance at least `SMOOTH`: a sum of two differs from
    one of the joint variance by a factor of 1 +- 2 exp(-2 pi^2 t^2), where t^2 = a b / (a + b), and terms of
    higher order (by Poisson's summation formula): by 1 + 4.1 exp(-pi^2 SMOOTH) at most, each time. A ratio of
    two such sums, with and without a contribution, is off by twice as much.
    """
    return 0.0 if family == "skellam" else parts * 8.2 * exp(-pi * pi * SMOOTH)


GRID_BITS = 9
"""With rounding as part of the noise, contributions are first rounded to so many bits finer."""

ROUNDINGS = (4, 2)
"""The variances of such rounding, of which one is chosen."""


@lru_cache(maxsize=64)
def rounding_factor(rounding: int, honest: int, variance: float) -> float:
    """`gaussian_factor` for a shift by any fraction, where rounding is part of the noise.

    Each of `honest` clients rounds by a discrete Gaussian of variance `rounding` about its value, and Skellam
    noise makes up the rest of `variance`. The sum is a discrete Gaussian of `rounding * honest` about the sum
    of the values, but for a factor of 1 +- e in every probability (by Poisson's summation formula, one client
    at a time), plus the Skellam noise. A shift by one step of the grid has monotone likelihood ratios,
    whatever the others' values are (the discrete Gaussian's are, and adding log-concave noise keeps that), so
    its trade-off function has its corners at thresholds; they are looked at for every fraction of the grid.
    Shifts by many steps follow by group privacy. Only thresholds below the middle: the others are those of
    the mirror image, whose fractions are among them. What e can change is counted against us: below the
    middle F / phi(Phi^-1(F)) is less than 1.6. More noise than is tabulated has a smaller factor.
    """
    together, scaled = rounding * honest, variance
    off = sum(4.1 * exp(-2 * pi * pi * rounding * j / (j + 1)) for j in range(1, min(honest, 50)))
    off += max(0, honest - 50) * 4.1 * exp(-2 * pi * pi * rounding * 50 / 51)
    if together > _MOST_TOGETHER:  # alike but for its scale, and on a smaller one it is further from Gaussian
        together, scaled = _MOST_TOGETHER, variance * _MOST_TOGETHER / together
    tabulated = min(scaled, max(2.0 * together, _CONVOLVED))
    return _steepest(together, tabulated) + 3.2 * off * (1 << GRID_BITS) * sqrt(variance)


@lru_cache(maxsize=64)
def _steepest(together: int, tabulated: float) -> float:
    """The factor of a discrete Gaussian about any fraction of the grid with Skellam noise beside it."""
    ndtri = _needs_extra("scipy.special").ndtri
    grid, p = 1 << GRID_BITS, np.ones(1)
    if tabulated - together > 1e-6:
        steps = noise("skellam", tabulated - together).steps()
        f = np.array([low / (1 << steps.bits) for low in steps.low[: 1 - steps.first]])
        p = np.diff(f, prepend=0.0)
        p = np.concatenate([p, p[-2::-1]])
    reach = int(14 * sqrt(together)) + 2
    k, slope, last = np.arange(-reach, reach + 1), 0.0, None
    for part in range(grid + 1):
        weights = np.exp(-((k - part / grid) ** 2) / (2 * together))
        found = np.cumsum(np.convolve(p, weights / weights.sum()))
        if last is not None:
            some = (found > 2.0**-120) & (found < 0.6)
            slope = max(slope, float((ndtri(last[some]) - ndtri(found[some])).max()))
        last = found
    return max(1.0, slope * grid * sqrt(tabulated)) * _MARGIN
