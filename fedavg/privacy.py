"""What noise a guarantee takes, and what the noise costs: calibration of sums with noise.

The guarantee is (epsilon, delta)-differential privacy against everybody who sees the sums, the server
included. Neighbouring inputs differ in one contribution, there or replaced by zeros: the whole vector of one
client, a hospital (`records` is 1), or what one of its records, a patient, adds to it. It holds if at most
`colluding` of the included clients leave out their noise or tell it to the observer.

How it is argued (docs/decisions/0011):
- A contribution's integers have an L2 norm of at most `norm`, checked on the integers.
- Honest clients' noise in the sum is Skellam with at least `variance` in every entry. A shift of that noise
  by one is (factor / sigma)-GDP (Dong, Roth, Su, "Gaussian Differential Privacy", JRSS B 2022), where
  `gaussian_factor` is just above 1: the largest slope between any two neighbouring points of the trade-off
  function, found on the exact distribution function. Shifts by more follow by group privacy, entries
  compose by the root of the sum of squares: the sum is (factor * norm / sigma)-GDP.
- Rounds compose the same way, and `dp_accounting` converts between that and (epsilon, delta).

So all is as with the Gaussian mechanism, and no bound on moments stands between.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from math import cosh, erfc, exp, inf, isqrt, log, pi, sinh, sqrt
from typing import Any, Literal

import numpy as np

from fedavg.turns import heaviest, spread, weight, weights
from protocols.errors import Infeasible
from protocols.xnoise import OVERSHOOT, SMOOTH, Noisy
from secagg.noise import FAMILIES, VARIANCES, Family, noise
from secagg.ring import MAX_BITS, MIN_BITS

NO_WORSE = 0.01
"""The mean squared error may exceed that of a trusted server's Gaussian noise by this fraction."""

_FAR_WORSE = 10.0  # a ring that makes it so much larger is refused
MOST_EPSILON = 1e5  # beyond is no guarantee at all
_REACH = 64  # no rounding goes further: its variance is 4 at most
_MARGIN = 1 + 1e-8  # what the quantile function of the normal distribution and float64 may be off by


# ------------------------------------------------------------------------- Gaussian and (epsilon, delta)


def mu_of(epsilon: float, delta: float) -> float:
    """The largest mu for which mu-GDP gives (epsilon, delta): the reciprocal of a noise multiplier.

    Raises `ValueError` unless epsilon is positive and delta lies between 0 and 1.
    """
    check_target(epsilon, delta)
    accounting = _dp_accounting()
    target = accounting.DifferentialPrivacyParameters(epsilon, delta)
    return 1.0 / float(accounting.GaussianPrivacyLoss.from_privacy_guarantee(target).standard_deviation)


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
    import dp_accounting
    from dp_accounting.pld import PLDAccountant

    accountant = PLDAccountant(value_discretization_interval=_INTERVAL)
    counts = Counter(releases)
    for (mu, rate), count in sorted(counts.items()):
        event = dp_accounting.GaussianDpEvent(1.0 / mu)
        accountant.compose(dp_accounting.PoissonSampledDpEvent(rate, event), count)
    return float(accountant.get_epsilon(delta)) if counts else 0.0


def mu_sampled(epsilon: float, delta: float, rounds: int, rate: float) -> float:
    """The largest mu with which so many rounds, each of a secret sample, give (epsilon, delta)."""
    low = mu_of(epsilon, delta) / sqrt(rounds)  # what it would be if the samples were known
    high = 2 * low
    while epsilon_sampled([(high, rate)] * rounds, delta) <= epsilon and high < 1e3:
        low, high = high, 2 * high
    while high - low > 1e-4 * high:
        middle = (low + high) / 2
        if epsilon_sampled([(middle, rate)] * rounds, delta) <= epsilon:
            low = middle
        else:
            high = middle
    return low


_INTERVAL = 1e-3  # of losses: a tenth of it changes epsilon in the fourth digit


def _delta_of(mu: float, epsilon: float) -> float:
    return float(_gaussian_loss(mu).get_delta_for_epsilon(epsilon))


@lru_cache(maxsize=8)
def _gaussian_loss(mu: float) -> Any:
    return _dp_accounting().GaussianPrivacyLoss(1.0 / mu)


def _dp_accounting() -> Any:
    try:
        from dp_accounting.pld import common, privacy_loss_mechanism  # takes about a second
    except ModuleNotFoundError as error:
        text = "noise is planned with dp-accounting: pip install 'secagg[dp]'"
        raise ModuleNotFoundError(text, name=error.name) from None

    class Both:
        DifferentialPrivacyParameters = common.DifferentialPrivacyParameters
        GaussianPrivacyLoss = privacy_loss_mechanism.GaussianPrivacyLoss

    return Both


def check_target(epsilon: float, delta: float) -> None:
    """Raise `ValueError` for an epsilon or a delta that says nothing."""
    if not _is_number(epsilon) or not 0 < epsilon <= MOST_EPSILON:
        raise ValueError(f"epsilon: expected a positive number to {MOST_EPSILON:g}, got {epsilon!r}")
    # Far above the events of probability 2^-120 that are left out.
    if not _is_number(delta) or not 1e-24 <= delta < 1:
        raise ValueError(f"delta: expected a number between 1e-24 and 1, got {delta!r}")


def _is_number(value: object) -> bool:
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
    from scipy.special import ndtri  # comes with dp-accounting

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
    from scipy.special import ndtri

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


# ------------------------------------------------------------------------------------------ plans


@dataclass(frozen=True, slots=True)
class Plan:
    """How updates travel so that all rounds together are (epsilon, delta)-differentially private.

    Made by `plan`. Units: an update's own for `clipping_norm` and `error`; `scale` integers to one of them.

    records    most contributions of one client, each of which is protected; 1 if that is the client's vector
    rounding   variance of the rounding to integers, if that is part of the noise, after a first rounding to a
               grid of 2^-`GRID_BITS`; 0 if contributions are rounded to integers at once
    norm_squared
               largest squared L2 norm of one contribution, on that grid or in integers
    variance   of the honest clients' noise in an entry of the sum, in integers squared
    mu         one round is mu-GDP, for what is in it
    sampling   the chance of a contribution to be in a round: a coin that nobody else sees
    turns, weights
               each contribution is in every `turns`-th round, and counts that much in it and in those after:
               see `fedavg.turns`. `mu`, `error` and `central` are then for a weight of 1
    bits       width of the ring
    error      root mean squared error of an entry of the *sum*, if all take part and updates are aligned
    central    the same of Gaussian noise added by a trusted server with the same guarantee
    wraps      expected number of entries of a sum that wrap: with updates independent of each other, and with
               all of them the same
    """

    dim: int
    clipping_norm: float
    cohort: int
    records: int
    colluding: int
    rounds: int
    epsilon: float
    delta: float
    family: Family
    scale: float
    rounding: int
    norm_squared: int
    variance: float
    mu: float
    bits: int
    error: float
    central: float
    wraps: tuple[float, float]
    sampling: float = 1.0
    turns: int = 1
    weights: tuple[int, ...] = (1,)

    @property
    def noise_multiplier(self) -> float:
        """Of the Gaussian mechanism with the same guarantee: its deviation over the clipping norm."""
        return 1.0 / self.mu

    @property
    def running_error(self) -> float:
        """Root mean squared error of an entry of the running total of all rounds' sums, over rounds."""
        return self.error * spread(self.weights, self.rounds)

    def counts(self, round: int) -> tuple[int, ...]:
        """What those of each turn count in a round: it is count * `mu`-GDP for them."""
        return tuple(weight(self.weights, self.turns, turn, round) for turn in range(self.turns))

    @property
    def grid_bits(self) -> int:
        """Contributions are multiples of 2^-this."""
        return GRID_BITS if self.rounding else 0

    def mu_with(self, variance: float, honest: int) -> float:
        """What a sum tells whose noise has another variance at least, of so many honest clients."""
        factor = _factor(self.family, self.rounding, honest, variance)
        return factor * sqrt(self.norm_squared / 4**self.grid_bits / variance)

    def check(self, least: int) -> None:
        """For who did not make this plan: raise `ValueError` unless its noise gives what it promises.

        That is for contributions of `norm_squared` at most, if at least `least` clients are in a sum. What it
        says of errors is not looked at. Only for Skellam noise, and sums of all contributions.
        """
        everybody = (self.sampling, self.turns, self.weights) == (1.0, 1, (1,))
        if self.family != "skellam" or not everybody or self.rounding not in (0, *ROUNDINGS):
            raise ValueError("plan: expected Skellam noise, a known rounding, and no sampling or turns")
        if not (0 < self.scale < inf and 0 < self.variance < inf and self.norm_squared >= 1):
            raise ValueError("plan: expected a positive scale, variance and norm")
        if not 0 <= self.colluding < least <= self.cohort or self.rounds < 1:
            raise ValueError(
                f"plan: expected rounds, and fewer colluding than the {least} to {self.cohort} in a sum"
            )
        most, fewest = self.cohort - self.colluding, least - self.colluding
        cases = _cases(self.rounding, self.variance, most, fewest)
        found = max(self.mu_with(variance, honest) for honest, variance in cases)
        promised = mu_of(self.epsilon, self.delta) / sqrt(self.rounds)
        # What the quantile function or a last bit may differ on another machine.
        if not found <= self.mu * (1 + 1e-6) or not self.mu <= promised * (1 + 1e-6):
            raise ValueError(
                f"plan: its noise does not give epsilon {self.epsilon:g} at delta {self.delta:g} over "
                f"{self.rounds} rounds: a round tells {found:.6g}, it says {self.mu:.6g}, and at most "
                f"{promised:.6g} is allowed (mu of the Gaussian trade-off)"
            )

    @property
    def local(self) -> float:
        """The error if every client added all the noise by itself, and trusted no other: as `error`."""
        return self.central * sqrt(self.cohort)

    @property
    def bound(self) -> int:
        """Every integer that a client sums up is below this, in absolute value."""
        largest = self.weights[0] * self.records * isqrt(self.norm_squared) >> self.grid_bits
        return largest + 2 + (_REACH if self.rounding else 0)

    @property
    def noisy(self) -> Noisy:
        """What a session must agree on."""
        return Noisy(self.variance, self.colluding, self.family, float(self.rounding))


def plan(
    dim: int, clipping_norm: float, cohort: int, epsilon: float, delta: float, *, rounds: int = 1,
    records: int = 1, colluding: int = 0, least: int | None = None, bits: int | None = None,
    family: Family = "skellam", parts: int = 8, analysis: Analysis = "best", sampling: float = 1.0,
    turns: int = 1, momentum: float = 0.0,
) -> Plan:  # fmt: skip
    """The noise multiplier, scale and bits for a target, with the error to expect.

    dim            entries of what is summed, weights and metrics included
    clipping_norm  largest L2 norm of a contribution
    cohort         clients of a round; `colluding` of them are not counted on for noise
    records        most contributions of one client
    least          fewest clients in a sum: by default all; a session with dropouts allows fewer
    epsilon, delta of all `rounds` together
    bits           of the ring; by default the fewest with which the error is at most 1 % above a trusted
                   server's
    sampling       the chance of a contribution to be in a round, decided by a coin of the client's own that
                   nobody else sees; 1 if all are. Only with the published analysis
    turns          each contribution is in every such round only, in a fixed order: then noise is correlated
                   over rounds, for running totals with this `momentum` (see `fedavg.turns`)
    parts          of noise that a client adds at most: matters for discrete Gaussians only
    analysis       "published": contributions are rounded to integers of bounded norm before any noise, as in
                   the papers. "tight": rounding is part of the noise, which takes fewer bits. "best": of the
                   two, what has the fewest bits, and then the least error

    Raises `ValueError` for impossible input, `Infeasible` for a target that cannot be met, with what can.
    """
    least = cohort if least is None else least
    for name, value, low, high in (
        ("dim", dim, 1, 1 << 40), ("cohort", cohort, 1, 1 << 40), ("rounds", rounds, 1, 1 << 40),
        ("records", records, 1, 1 << 40), ("colluding", colluding, 0, 1 << 40), ("least", least, 1, 1 << 40),
        ("parts", parts, 1, 1 << 40), ("bits", 5 if bits is None else bits, MIN_BITS, MAX_BITS),
    ):  # fmt: skip
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError(f"{name}: expected an integer from {low} to {high}, got {value!r}")
    if not colluding < least <= cohort:
        raise ValueError(
            f"colluding: expected fewer than are in a sum, which are {least} to {cohort}, got {colluding}"
        )
    if not _is_number(clipping_norm) or not 1e-100 <= clipping_norm <= 1e100:
        raise ValueError(f"clipping_norm: expected a positive number to 1e100, got {clipping_norm!r}")
    if family not in FAMILIES:
        raise ValueError(f"family: expected one of {', '.join(FAMILIES)}, got {family!r}")
    check_target(epsilon, delta)
    if delta > 1 / (cohort * records):
        raise ValueError(
            f"delta: expected at most 1 / {cohort * records}, one over the contributions, got {delta}: to "
            "publish one of them in full would meet it"
        )
    spent = rounds * dim * divergence(family, parts * cohort)
    if spent >= epsilon / 2:
        raise Infeasible(f"{family}: {rounds} rounds of {dim} entries alone cost epsilon {spent:.3g}")
    if not _is_number(sampling) or not 0 < sampling <= 1:
        raise ValueError(f"sampling: expected a chance above 0 and up to 1, got {sampling!r}")
    if sampling < 1 and analysis == "tight":
        raise ValueError("sampling: it is not credited under the tight analysis")
    counting = weights(turns, momentum)
    if sampling < 1 and turns > 1:
        raise ValueError("sampling: contributions take turns or are sampled, not both")
    if sampling < 1:
        analysis, mu = "published", mu_sampled(epsilon - spent, delta, rounds, sampling)
    else:
        mu = mu_of(epsilon - spent, delta) / sqrt(heaviest(counting, turns, rounds))
    if analysis not in ("best", "tight", "published"):
        raise ValueError(f"analysis: expected best, tight or published, got {analysis!r}")
    roundings = {"published": (0,), "tight": ROUNDINGS, "best": (*ROUNDINGS, 0)}[analysis]
    if family != "skellam":
        roundings = (0,)
    records_in = max(1, round(records * sampling))
    ways = [
        _Layout(dim, cohort, records_in, colluding, mu, family, rounding, least, turns, counting)
        for rounding in roundings
    ]
    chosen = bits if bits is not None else min(about.fewest() for about in ways)
    possible = [(way.error(*best, chosen)[0], way, best) for way in ways if (best := way.best(chosen))]
    squares, about, (scale, squared) = min(possible, key=lambda way: way[0], default=(inf, ways[0], (0.0, 0)))
    allowed = about.central * cohort / (cohort - colluding)
    if squares > _FAR_WORSE * allowed:
        raise Infeasible(
            f"bits: {chosen} make the mean squared error {squares / allowed:.3g} times that of a trusted "
            f"server's noise; {min(way.fewest() for way in ways)} do"
        )
    variance = about.variance(squared)
    error, wraps = about.error(scale, squared, chosen)
    return Plan(
        dim, clipping_norm, cohort, records, colluding, rounds, epsilon, delta, family,
        scale / clipping_norm, about.rounding, squared, variance, mu, chosen,
        sqrt(error) * clipping_norm, sqrt(about.central) * clipping_norm, wraps, float(sampling), turns,
        counting,
    )  # fmt: skip


_FEWEST, _MOST = 5, 40
_TOO_OFTEN = 1e-2  # an entry that wraps so often is not counted as an error, but as no sum
_TABULATED = 2.0**20  # a factor falls as the variance grows, and here it is 1 + 2e-7
_CONVOLVED = 2.0**14
_MOST_TOGETHER = 1 << 12
Analysis = Literal["best", "tight", "published"]


@dataclass(frozen=True, slots=True)
class _Layout:
    """What a plan's error depends on, in units of the clipping norm."""

    dim: int
    cohort: int
    records: int
    colluding: int
    mu: float
    family: Family
    rounding: int = 0
    least: int = 0
    turns: int = 1
    weights: tuple[int, ...] = (1,)

    @property
    def grid(self) -> int:
        return 1 << (GRID_BITS if self.rounding else 0)

    @property
    def central(self) -> float:
        """Variance of an entry of the sum with a trusted server's noise."""
        return 1.0 / self.mu**2

    def squared(self, scale: float) -> int:
        """The largest squared norm of an update of norm `scale` after rounding to the grid that is accepted.

        Rounding adds at most min(dim / 4, sqrt(dim) scale) in expectation, and deviates from it by less than
        scale + sqrt(dim) / 2 at least four times in ten (Kairouz, Liu, Steinke 2021, section 4.2, with beta =
        exp(-1/2)); whoever exceeds it rounds again.
        """
        scale *= self.grid
        added = min(self.dim / 4, sqrt(self.dim) * scale)
        return int(scale * scale + added + scale + sqrt(self.dim) / 2) + 1

    def variance(self, squared: int) -> float:
        """Of the honest clients' noise in an entry of the sum."""
        wanted = squared / self.grid**2 / self.mu**2
        most, fewest = self.cohort - self.colluding, (self.least or self.cohort) - self.colluding
        variance = wanted
        while True:
            factor = max(
                _factor(self.family, self.rounding, honest, level)
                for honest, level in _cases(self.rounding, variance, most, fewest)
            )
            if wanted * factor**2 <= variance * (1 + 1e-6):
                return variance * (1 + 1e-6)
            variance = wanted * factor**2

    def error(self, scale: float, squared: int, bits: int) -> tuple[float, tuple[float, float]]:
        """Mean squared error of an entry of the sum, and how many entries wrap: independent, aligned."""
        honest = self.cohort - self.colluding
        noise_variance = squared / self.grid**2 / self.mu**2 * self.cohort / honest
        # Of each turn, on average, and what all that is in a round counts: each for itself, or all alike.
        contributions = self.cohort * self.records / self.turns
        apart, alike = contributions * sum(w * w for w in self.weights), contributions * sum(self.weights)
        rounding = apart * min(0.25, scale * self.grid / sqrt(self.dim)) / self.grid**2
        wraps, worst = [], 0.0
        for together in (apart, alike**2):
            signal = together * scale**2 / self.dim
            chance, squares = _wrapping(noise_variance, rounding + signal, 2.0 ** (bits - 1))
            wraps.append(self.dim * chance)
            worst = max(worst, squares if chance < _TOO_OFTEN else inf)
        return (noise_variance + rounding + worst) / scale**2, (wraps[0], wraps[1])

    def best(self, bits: int) -> tuple[float, int] | None:
        """The scale with the least error, and its squared norm; None if a single update would not fit."""
        half = 2.0 ** (bits - 1)
        # What one client adds must be sampled; a part of it is at most half as much again.
        lowest, highest = VARIANCES[self.family][0] * 2, VARIANCES[self.family][1] / 2

        def least(low: float, high: float) -> tuple[float, float, int]:
            found = (inf, 0.0, 0)
            for step in range(200):
                scale = exp(low + (high - low) * step / 199)
                squared = self.squared(scale)
                each = squared / self.grid**2 / self.mu**2 / (self.cohort - self.colluding)
                fits = self.weights[0] * isqrt(squared) / self.grid + 1 <= half
                if fits and max(lowest, self.rounding) <= each <= highest:
                    found = min(found, (self.error(scale, squared, bits)[0], scale, squared))
            return found

        error, scale, squared = least(log(half) - 25, log(half))
        if error == inf:
            return None
        _, scale, squared = least(log(scale) - 0.2, log(scale) + 0.2)
        return scale, squared

    def fewest(self) -> int:
        """The fewest bits with which the error is hardly above that of a trusted server."""
        allowed = (1 + NO_WORSE) * self.central * self.cohort / (self.cohort - self.colluding)
        least, which = inf, None
        for bits in range(_FEWEST, _MOST + 1):
            found = self.best(bits)
            if found is None:
                continue
            error, _ = self.error(*found, bits)
            if error <= allowed:
                return bits
            if error < least * (1 - 1e-3):
                least, which = error, bits
        if which is None:
            raise Infeasible(f"no ring holds {self.cohort} updates of {self.dim} entries with this noise")
        return which


def _cases(rounding: int, variance: float, most: int, fewest: int) -> Iterator[tuple[int, float]]:
    """Honest clients, from `fewest` to `most`, and what variance is left: among these the factor is largest.

    Where dropouts took rounding with them, Skellam noise stands in, of which more is a little less Gaussian;
    most so where it is half of what rounding adds.
    """
    worst = round(variance / (1.5 * rounding)) if rounding else most
    for honest in sorted({most, fewest, min(most, max(fewest, worst))}):
        yield honest, variance
        yield honest, variance * (1 + OVERSHOOT)


def _factor(family: Family, rounding: int, honest: int, variance: float) -> float:
    """The factor of noise like this, or of as much as is tabulated."""
    if not rounding:
        return gaussian_factor(family, min(variance, _TABULATED))
    return rounding_factor(rounding, honest, max(1.0 * rounding * honest, variance))


def _wrapping(noise_variance: float, other: float, half: float) -> tuple[float, float]:
    """The chance that an entry leaves -half to half, and the mean square of what that adds to its error.

    The entry is Skellam noise and a normal variable of variance `other`: by Lugannani and Rice's
    saddlepoint approximation, which is right to a few per cent of the chance even far out.
    """
    chance = squares = 0.0
    for turns in range(1, 4):
        beyond = 2 * _tail(noise_variance, other, (2 * turns - 1) * half)
        chance += beyond if turns == 1 else 0.0
        squares += beyond * (turns**2 - (turns - 1) ** 2) * (2 * half) ** 2
    return min(1.0, chance), squares


_STEEPEST = 30.0


def _tail(v: float, w: float, x: float) -> float:
    """P(Z > x) for x > 0, Z Skellam of variance v plus normal of variance w."""
    if v * sinh(_STEEPEST) + w * _STEEPEST < x:
        return 0.0
    s = x / (v + w)
    for _ in range(60):  # K'(s) = v sinh(s) + w s = x, by Newton's method
        s = min(max(s, 0.0), _STEEPEST)
        step = (v * sinh(s) + w * s - x) / (v * cosh(s) + w)
        s -= step
        if abs(step) < 1e-12 * s:
            break
    exponent = max(0.0, s * x - v * 2 * sinh(s / 2) ** 2 - w * s * s / 2)
    r, u = sqrt(2 * exponent), s * sqrt(v * cosh(s) + w)
    if r < 1e-3:
        return 0.5
    return min(1.0, max(0.0, erfc(r / sqrt(2)) / 2 + exp(-exponent) / sqrt(2 * pi) * (1 / u - 1 / r)))
