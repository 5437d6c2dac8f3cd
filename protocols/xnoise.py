"""How the noise of a sum is divided among clients, and what of it is taken out when few drop out.

Jiang, Wang, Chen, "Efficient Federated Learning with Dropout-Resilient Differential Privacy" (Dordis),
EuroSys 2024, section 3: XNoise. Every client adds as much noise as would be needed if as many dropped out as
may, in a base and components; once it is known who is in the sum, those included reveal the seeds of the
components that turn out to be too much. The sum has the noise it needs, whoever vanished.

Where this deviates from the paper:
- Its components are one for each number of dropouts. Here component i has 2^i units of variance, so that
  their number grows with the logarithm of the dropouts allowed; the price is at most `OVERSHOOT` too much
  noise.
- There a client reveals its own seeds, and a further round recovers those of whoever vanished since. Here
  every holder reveals its shares of the seeds, as it does for the seeds of masks: no further round.
- Clients whose noise cannot be counted on (they collude, or did not add it) are a declared number.

What it does not protect against: more of those clients than declared; fewer survivors than a session's
`min_included`, which are no sum at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import ceil, inf, log, nextafter, sqrt

from protocols.errors import Infeasible, LocalError
from secagg import keys, prg
from secagg.labels import Label
from secagg.noise import FAMILIES, VARIANCES, Family, Noise, noise

OVERSHOOT = 0.015
"""The noise in a sum is at most this fraction above what is needed, in variance."""

_MOST = 2.0**60

SMOOTH = 4.0
"""A sum of discrete Gaussians, each with a variance of at least this, is one again but for a factor of
1 + 10^-16 in every probability (see `fedavg.privacy`); of narrower ones it is not."""


@dataclass(frozen=True, slots=True)
class Noisy:
    """What noise every entry of a sum must have: part of what a session agrees on.

    variance   of the noise that honest clients contribute, in squared units of the integers that are summed
    colluding  how many included clients' noise is not counted on
    family     "skellam": a sum of Skellam variables is one, however the noise is divided
    carried    variance of noise that each client's vector has in it already when it is given to the session:
               of rounding by `secagg.noise.rounding`
    """

    variance: float
    colluding: int = 0
    family: Family = "skellam"
    carried: float = 0.0

    def __post_init__(self) -> None:
        for variance in (self.variance, self.carried):
            if isinstance(variance, bool) or not isinstance(variance, (int, float)):
                raise LocalError(f"noise: expected a variance, got {variance!r}")
        if not 0 < self.variance < _MOST:
            raise LocalError(f"noise: expected a positive variance below {_MOST:g}, got {self.variance}")
        if isinstance(self.colluding, bool) or not isinstance(self.colluding, int) or self.colluding < 0:
            raise LocalError(f"noise: expected a number of colluding clients, got {self.colluding!r}")
        if self.family not in FAMILIES:
            raise LocalError(f"noise: expected one of {', '.join(FAMILIES)}; got {self.family!r}")
        if not 0 <= self.carried < _MOST:
            raise LocalError(f"noise: expected a carried variance from 0 to {_MOST:g}, got {self.carried}")


@dataclass(frozen=True, slots=True)
class Levels:
    """The noise of one client of a cohort: `base`, and `count` components that may be taken out.

    Component i has variance `unit` * 2^i. All in squared units of the integers that are summed. What the
    vector carries comes on top; `base` is 0 if that is enough.
    """

    noisy: Noisy
    base: float
    unit: float
    count: int

    @property
    def parts(self) -> tuple[Noise, ...]:
        """The distribution of each component, ascending, and last that of the base, if there is one."""
        variances = [self.unit * 2**i for i in range(self.count)] + [self.base] * (self.base > 0)
        return tuple(noise(self.noisy.family, variance) for variance in variances)

    @property
    def reach(self) -> int:
        """What no entry of one client's noise is beyond, but for a chance of 2^-100.

        Bernstein's inequality, which centred Poisson variables obey with a scale of 1/3, and sums of them; a
        discrete Gaussian is narrower.
        """
        variance, nats = self.base + self.unit * ((1 << self.count) - 1), 101 * log(2)
        return ceil(nats / 3 + sqrt(nats**2 / 9 + 2 * nats * variance))

    def offset(self, bound: int) -> int:
        """What no value is beyond, to either side, that was below `bound` before one client's noise."""
        return bound - 1 + self.reach

    def bits(self, bound: int, clients: int) -> int:
        """Of a ring in which no sum of so many clients' such values wraps."""
        return (2 * clients * self.offset(bound)).bit_length()

    def _kept(self, included: int) -> int:
        """The least number of units that each of so many included clients must keep beside its base."""
        if not self.count:
            return 0
        each = Fraction(self.noisy.variance) / (included - self.noisy.colluding)
        kept = each - Fraction(self.base) - Fraction(self.noisy.carried)
        return max(0, ceil(kept / Fraction(self.unit)))

    def excess(self, included: int) -> tuple[int, ...]:
        """The components to take out of the noise of every client, of so many included."""
        spare = (1 << self.count) - 1 - self._kept(included)
        return tuple(i for i in range(self.count) if spare >> i & 1)

    def remaining(self, included: int) -> float:
        """The variance that honest clients' noise leaves in a sum of so many, when the excess is out."""
        each = self.noisy.carried + self.base + self._kept(included) * self.unit
        return (included - self.noisy.colluding) * each


def levels(noisy: Noisy, n: int, least: int) -> Levels:
    """The noise of a client of a cohort of `n`, at least `least` of whom are included.

    Raises `Infeasible` where the clients that are not counted on leave nobody, or where a part of the noise
    is beyond what `secagg.noise` samples.
    """
    if least <= noisy.colluding:
        raise Infeasible(
            f"noise: {noisy.colluding} clients are not counted on, and as few as {least} may be included: "
            "expect fewer dropouts, or a larger cohort"
        )
    # Rounded up: whatever floats lose, they lose on the safe side.
    fewest = nextafter(noisy.variance / (n - noisy.colluding), inf)
    most = nextafter(noisy.variance / (least - noisy.colluding), inf)
    base = nextafter(fewest - noisy.carried, inf) if fewest > noisy.carried else 0.0
    if noisy.carried and 0 < base < VARIANCES[noisy.family][0]:  # hardly any: as little as can be sampled
        base = VARIANCES[noisy.family][0]
    count, unit = 0, 0.0
    if least < n and most > base + noisy.carried:
        span, count = nextafter(most - base - noisy.carried, inf), 1
        while span > ((1 << count) - 1) * OVERSHOOT * fewest * (1 - 1e-9):
            count += 1
        unit = nextafter(span / ((1 << count) - 1), inf)
    smallest, largest = VARIANCES[noisy.family]
    if noisy.family == "discrete-gaussian":
        smallest = SMOOTH
    parts = [base] * (base > 0) + [unit * 2**i for i in range(count)]
    if parts and (min(parts) < smallest or max(parts) > largest):
        raise Infeasible(
            f"noise: each of {n} clients adds parts of variance {min(parts):.3g} to {max(parts):.3g}; those "
            f"of {noisy.family} are from {smallest:.3g} to {largest:.3g}: choose another scale"
        )
    return Levels(noisy, base, unit, count)


def noise_seed(session_hash: bytes, secret: bytes) -> bytes:
    """The 16-byte AES key of one part of a client's noise, from its 32 secret bytes."""
    return keys.derive(secret, Label.NOISE, session_hash, length=prg.SEED_BYTES)
