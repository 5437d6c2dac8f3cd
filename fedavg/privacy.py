"""What noise a guarantee takes, and what the noise costs: calibration of sums with noise.

The guarantee is (epsilon, delta)-differential privacy against everybody who sees the sums, the server
included. Neighbouring inputs differ in one contribution, there or replaced by zeros: the whole vector of one
client, a hospital (`records` is 1), or what one of its records, a patient, adds to it. It holds if at most
`colluding` of the included clients leave out their noise or tell it to the observer.

How it is argued (docs/decisions/0011):
- A contribution's integers, on a grid, have a squared L2 norm of at most `norm_squared`, found in integers.
- Honest clients' noise in the sum (Skellam, or rounding that is part of it and Skellam) has a variance of at
  least `variance` in every entry. A shift of it by one is (factor / sigma)-GDP (`fedavg.accounting`), shifts
  by more follow by group privacy, and entries compose: the sum is (factor * norm / sigma)-GDP.
- Rounds compose the same way. Of secret samples a sampled Gaussian mechanism is composed instead; where
  contributions take turns, what each turn was told is.

So all is as with the Gaussian mechanism, and no bound on moments stands between.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import cosh, erfc, exp, inf, isqrt, log, pi, sinh, sqrt
from typing import Literal

from fedavg.accounting import (
    GRID_BITS,
    ROUNDINGS,
    check_target,
    divergence,
    gaussian_factor,
    is_number,
    mu_of,
    mu_sampled,
    rounding_factor,
)
from fedavg.turns import coefficient, coefficients, heaviest
from protocols.errors import Infeasible
from protocols.xnoise import OVERSHOOT, Noisy
from secagg.noise import FAMILIES, VARIANCES, Family
from secagg.ring import MAX_BITS, MIN_BITS

_NO_WORSE = 0.01
"""The mean squared error may exceed that of a trusted server's Gaussian noise by this fraction."""

_FAR_WORSE = 10.0  # a ring that makes it so much larger is refused
_REACH = 64  # no rounding goes further: its variance is 4 at most


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
    turns, coefficients
               each contribution is in every `turns`-th round, and times these in it and in those after: see
               `fedavg.turns`. `mu`, `error` and `central` are then for a coefficient of 1
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
    coefficients: tuple[int, ...] = (1,)

    @property
    def noise_multiplier(self) -> float:
        """Of the Gaussian mechanism with the same guarantee: its deviation over the clipping norm."""
        return 1.0 / self.mu

    def factors(self, round: int) -> tuple[int, ...]:
        """Of those of each turn, the coefficient in a round, which is that times `mu`-GDP for them."""
        return tuple(coefficient(self.coefficients, self.turns, turn, round) for turn in range(self.turns))

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
        everybody = (self.sampling, self.turns, self.coefficients) == (1.0, 1, (1,))
        if self.family != "skellam" or not everybody or self.rounding not in (0, *ROUNDINGS):
            raise ValueError("plan: expected Skellam noise, a known rounding, and no sampling or turns")
        if not (0 < self.scale < inf and 0 < self.variance < inf):
            raise ValueError("plan: expected a positive scale and variance")
        # A norm that not all contributions can be rounded to would tell by who is missing how long theirs is.
        if self.norm_squared + 1 < _rounded_squared(
            self.dim, self.scale * self.clipping_norm, self.grid_bits
        ):
            raise ValueError("plan: its norm has no room for what rounding adds to a contribution")
        if not 0 <= self.colluding < least <= self.cohort or self.rounds < 1:
            raise ValueError(
                f"plan: expected rounds, and fewer colluding than the {least} to {self.cohort} in a sum"
            )
        promised = mu_of(self.epsilon, self.delta) / sqrt(self.rounds)
        most, fewest = self.cohort - self.colluding, least - self.colluding
        cases = _cases(self.rounding, self.variance, most, fewest)
        found = max(self.mu_with(variance, honest) for honest, variance in cases)
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
        largest = self.coefficients[0] * self.records * isqrt(self.norm_squared) >> self.grid_bits
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
    bits           of the ring; by default the fewest with which the mean squared error is at most 1 % above a
                   trusted server's (times cohort / (cohort - colluding): nobody's noise is left out)
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
    if not is_number(clipping_norm) or not 1e-100 <= clipping_norm <= 1e100:
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
    if not is_number(sampling) or not 0 < sampling <= 1:
        raise ValueError(f"sampling: expected a chance above 0 and up to 1, got {sampling!r}")
    if sampling < 1 and analysis == "tight":
        raise ValueError("sampling: it is not credited under the tight analysis")
    series = coefficients(turns, momentum)
    if sampling < 1 and turns > 1:
        raise ValueError("sampling: contributions take turns or are sampled, not both")
    if sampling < 1:
        analysis, mu = "published", mu_sampled(epsilon - spent, delta, rounds, sampling)
    else:
        mu = mu_of(epsilon - spent, delta) / sqrt(heaviest(series, turns, rounds))
    if analysis not in ("best", "tight", "published"):
        raise ValueError(f"analysis: expected best, tight or published, got {analysis!r}")
    roundings = {"published": (0,), "tight": ROUNDINGS, "best": (*ROUNDINGS, 0)}[analysis]
    if family != "skellam":
        roundings = (0,)
    records_in = max(1, round(records * sampling))
    ways = [
        _Candidate(dim, cohort, records_in, colluding, mu, family, rounding, least, turns, series)
        for rounding in roundings
    ]
    chosen = bits if bits is not None else min(way.fewest() for way in ways)
    possible = [(way.error(*best, chosen)[0], way, best) for way in ways if (best := way.best(chosen))]
    none = (inf, ways[0], (0.0, 0))
    squares, way, (scale, squared) = min(possible, key=lambda found: found[0], default=none)
    allowed = way.central_variance * cohort / (cohort - colluding)
    if squares > _FAR_WORSE * allowed:
        fewest = min(way.fewest() for way in ways)
        why = f"bits: {chosen} make the mean squared error {squares / allowed:.3g} times a trusted server's"
        if chosen < fewest:
            raise Infeasible(f"{why}; {fewest} do")
        if chosen > fewest:
            raise Infeasible(f"{why}: samples would be larger than can be drawn; {fewest} do")
        raise Infeasible(
            f"{why}, and no other number of bits does better: rounding alone is too much beside what so many "
            "rounds leave of a contribution"
        )
    variance = way.variance(squared)
    error, wraps = way.error(scale, squared, chosen)
    return Plan(
        dim, clipping_norm, cohort, records, colluding, rounds, epsilon, delta, family,
        scale=scale / clipping_norm, rounding=way.rounding, norm_squared=squared, variance=variance, mu=mu,
        bits=chosen, error=sqrt(error) * clipping_norm,
        central=sqrt(way.central_variance) * clipping_norm, wraps=wraps, sampling=float(sampling),
        turns=turns, coefficients=series,
    )  # fmt: skip


_FEWEST, _MOST = 5, 40
_TOO_OFTEN = 1e-2  # an entry that wraps so often is not counted as an error, but as no sum
_TABULATED = 2.0**20  # a factor falls as the variance grows, and here it is 1 + 2e-7
Analysis = Literal["best", "tight", "published"]


@dataclass(frozen=True, slots=True)
class _Candidate:
    """What a plan's error depends on, in units of the clipping norm."""

    dim: int
    cohort: int
    records: int
    colluding: int
    mu: float
    family: Family
    rounding: int
    least: int
    turns: int
    coefficients: tuple[int, ...]

    @property
    def grid(self) -> int:
        return 1 << (GRID_BITS if self.rounding else 0)

    @property
    def central_variance(self) -> float:
        """Of an entry of the sum with a trusted server's noise."""
        return 1.0 / self.mu**2

    def squared(self, scale: float) -> int:
        """The largest squared norm of an update of norm `scale` after rounding to the grid."""
        return _rounded_squared(self.dim, scale, GRID_BITS if self.rounding else 0)

    def variance(self, squared: int) -> float:
        """Of the honest clients' noise in an entry of the sum."""
        wanted = squared / self.grid**2 / self.mu**2
        most, fewest = self.cohort - self.colluding, self.least - self.colluding
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
        apart = contributions * sum(c * c for c in self.coefficients)
        alike = contributions * sum(self.coefficients)
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
                fits = self.coefficients[0] * isqrt(squared) / self.grid + 1 <= half
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
        allowed = (1 + _NO_WORSE) * self.central_variance * self.cohort / (self.cohort - self.colluding)
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
            raise Infeasible(
                f"no ring holds {self.cohort} updates of {self.dim} entries with this noise: choose a larger "
                "epsilon, or fewer rounds"
            )
        return which


def _rounded_squared(dim: int, norm: float, grid_bits: int) -> int:
    """The largest squared norm, in steps of the grid, of an update of that norm after rounding to it.

    Rounding adds at most min(dim / 4, sqrt(dim) norm) in expectation, and deviates from it by less than
    norm + sqrt(dim) / 2 at least four times in ten (Kairouz, Liu, Steinke 2021, section 4.2, with beta =
    exp(-1/2)); whoever exceeds it rounds again.
    """
    norm *= 1 << grid_bits
    return int(norm * norm + min(dim / 4, sqrt(dim) * norm) + norm + sqrt(dim) / 2) + 1


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
