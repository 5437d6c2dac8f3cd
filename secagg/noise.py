"""Exact noise on the integers: Skellam and discrete Gaussian samples from a cryptographic stream.

Skellam             the difference of two Poisson variables of mean variance / 2 each: P(k) is proportional to
                    I_k(variance). Closed under sums (Agarwal, Kairouz, Liu, "The Skellam Mechanism for
                    Differentially Private Federated Learning", NeurIPS 2021, section 2).
discrete Gaussian   P(k) proportional to exp(-k^2 / (2 variance)) (Canonne, Kamath, Steinke, "The Discrete
                    Gaussian for Differential Privacy", NeurIPS 2020, Definition 1).

Sampling is inversion: the sample is the least k with U < F(k), where U is uniform on [0, 1) and F the
distribution function. Of U, bits are read only as far as needed. Sixteen index a table, which decides all
but the few cells that a step of F cuts; there, 48 more are compared with F to 64 bits; in the cell of 2^-64
that holds the step itself, 64 more at a time are compared with F as big integers, computed to as many bits as
it takes. F is enclosed between integers rounded outwards, so no sample is decided by a rounding error: the
distribution is exact as far as the stream is uniform.

The same seed always gives the same samples: whoever is told a seed can take its noise out again.

What it does not protect against: timing. How often the slower steps are taken tells a little about the
samples, and they run on the client whose noise it is.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache, partial
from math import asinh, ceil, sqrt
from typing import Any, Literal

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from secagg.prg import SEED_BYTES
from secagg.ring import Ring, Vector

Family = Literal["skellam", "discrete-gaussian"]
FAMILIES: tuple[Family, ...] = ("skellam", "discrete-gaussian")

VARIANCES: dict[Family, tuple[float, float]] = {
    "skellam": (2.0**-40, 2.0**26),
    "discrete-gaussian": (2.0**-4, 2.0**26),
}
"""The least and the largest: tables reach 16 standard deviations to each side."""

PRECISION = 192  # bits of F at first
_MOST_PRECISION = 1 << 14  # where no step of F can still be undecided, unless this file is wrong
_CHUNK = 1 << 15  # samples at a time: what is worked on stays in the cache
_PREFIX = 16  # bits of U that index the table
_REST = 64 - _PREFIX


@dataclass(frozen=True, slots=True)
class Steps:
    """F between integers, in units of 2^-bits: `low[i] <= F(first + i) <= high[i]`, a step each."""

    bits: int
    first: int
    low: list[int]
    high: list[int]


class Noise:
    """One distribution: symmetric about zero, on all integers. Made by `noise`, which keeps its tables."""

    def __init__(self, family: Family, variance: float) -> None:
        if family not in FAMILIES:
            raise ValueError(f"family: expected one of {', '.join(FAMILIES)}, got {family!r}")
        least, largest = VARIANCES[family]
        if not least <= variance <= largest:
            raise ValueError(f"variance: expected {least:.3g} to {largest:.3g} for {family}, got {variance}")
        self.family, self.variance = family, float(variance)
        self._steps = {PRECISION: _steps(family, self.variance, PRECISION)}
        steps = self._steps[PRECISION]
        while any(lo >> steps.bits - 64 != hi >> steps.bits - 64 for lo, hi in zip(
            steps.low, steps.high, strict=True
        )):  # fmt: skip
            steps = self.steps(2 * steps.bits)
        self._first = steps.first
        # The cell of 2^-64 in which each step lies. F(k) < 1, so the last is 2^64 - 1 at most.
        self._cells = np.array([low >> steps.bits - 64 for low in steps.low], np.uint64)
        self._table = self._tabulate()

    def __repr__(self) -> str:
        return f"Noise({self.family!r}, {self.variance!r})"

    def steps(self, bits: int = PRECISION) -> Steps:
        """F, enclosed to about 2^-bits, at every k where it is not 0 or 1 to that precision."""
        if bits > _MOST_PRECISION:
            raise AssertionError(f"F of {self!r} is undecided to {_MOST_PRECISION} bits")
        if bits not in self._steps:
            self._steps[bits] = _steps(self.family, self.variance, bits)
        return self._steps[bits]

    def sample(self, seed: bytes, size: int) -> NDArray[np.int32]:
        """`size` independent samples: a function of `seed`, 16 secret uniform bytes used for nothing else.

        Raises `ValueError` for a seed of another length.
        """
        out = np.empty(size, np.int32)
        for start, part in self._chunks(seed, size):
            out[start : start + len(part)] = part
        return out

    def add(self, ring: Ring, vector: Vector, seed: bytes) -> None:
        """Add `sample(seed, len(vector))` to `vector`, which has the ring's dtype, in place; unreduced."""
        for start, part in self._chunks(seed, vector.size):
            vector[start : start + len(part)] += part.astype(ring.dtype)

    def subtract(self, ring: Ring, vector: Vector, seed: bytes) -> None:
        """Take `sample(seed, len(vector))` out of `vector`, as `add` put it in."""
        for start, part in self._chunks(seed, vector.size):
            vector[start : start + len(part)] -= part.astype(ring.dtype)

    def _chunks(self, seed: bytes, size: int) -> Iterator[tuple[int, NDArray[np.signedinteger[Any]]]]:
        """The samples in order; each part is overwritten by the next."""
        if not isinstance(seed, bytes) or len(seed) != SEED_BYTES:
            raise ValueError(f"seed: expected {SEED_BYTES} bytes")
        prefixes, rests, more = (_stream(seed, use) for use in range(3))
        index, part = np.empty(_CHUNK, np.intp), np.empty(_CHUNK, self._table.dtype)
        undecided = np.iinfo(self._table.dtype).min
        for start in range(0, size, _CHUNK):
            count = min(_CHUNK, size - start)
            prefix = np.frombuffer(prefixes(2 * count), "<u2")
            np.copyto(index[:count], prefix)
            found = part[:count]
            # "clip" is the mode without a check; no 16-bit index is outside the table.
            np.take(self._table, index[:count], out=found, mode="clip")
            left = np.flatnonzero(found == undecided)
            if left.size:
                found[left] = self._decide(prefix[left], rests, more)
            yield start, found

    def _decide(
        self, prefix: NDArray[np.uint16], rests: Callable[[int], bytes], more: Callable[[int], bytes]
    ) -> NDArray[np.int64]:
        """The samples whose first 16 bits of U are `prefix`, which a step cuts."""
        rest = np.frombuffer(rests(8 * prefix.size), "<u8") >> np.uint64(_PREFIX)
        u = prefix.astype(np.uint64) << np.uint64(_REST) | rest
        place = np.searchsorted(self._cells, u, side="left")
        found = place + self._first
        tied = np.flatnonzero(self._cells[np.minimum(place, self._cells.size - 1)] == u)
        for i in tied:
            found[i] = _resolve(self.steps, int(u[i]), 64, more)
        return found

    def _tabulate(self) -> NDArray[np.signedinteger[Any]]:
        """The sample of each prefix; the dtype's least value where a step cuts its cell."""
        cuts = self._cells >> np.uint64(_REST)
        places = np.searchsorted(cuts, np.arange(1 << _PREFIX, dtype=np.uint64), side="left")
        dtype: type[np.int16 | np.int32] = np.int16 if len(self._cells) < 1 << 15 else np.int32
        table: NDArray[np.signedinteger[Any]] = (places + self._first).astype(dtype)
        table[np.unique(cuts).astype(np.intp)] = np.iinfo(dtype).min
        return table


class Rounding:
    """Rounding to integers by a discrete Gaussian about the value itself; made by `rounding`.

    A value x, a multiple of 1 / grid, becomes k with a probability proportional to exp(-(k - x)^2 / (2
    variance)): without bias to speak of, and the rounding is itself noise (Peikert, "An Efficient and
    Parallel Gaussian Sampler for Lattices", CRYPTO 2010, section 3: sums of such are nearly discrete
    Gaussians again).
    """

    def __init__(self, grid_bits: int, variance: int) -> None:
        self.grid_bits, self.variance = grid_bits, variance
        self._weights: dict[int, tuple[list[int], list[int]]] = {}
        self._steps: dict[tuple[int, int], Steps] = {}
        grid, width = 1 << grid_bits, 64 - grid_bits
        tables, firsts = [], []
        keys: list[int] = []
        for part in range(grid):
            steps = self.steps(part)
            cells = [low >> steps.bits - width for low in steps.low]
            while cells != [high >> steps.bits - width for high in steps.high]:
                steps = self.steps(part, 2 * steps.bits)
                cells = [low >> steps.bits - width for low in steps.low]
            cuts = np.array([cell >> width - _INDEX for cell in cells], np.int64)
            table = np.searchsorted(cuts, np.arange(1 << _INDEX), side="left") + steps.first
            table[cuts] = np.iinfo(np.int8).min
            tables.append(table.astype(np.int8))
            firsts.append(steps.first - len(keys))
            keys += [part << width | cell for cell in cells]
        self._table = np.concatenate(tables)
        # Steps of all parts in one ascending list: the part in the upper bits, its cell in the lower.
        self._keys, self._firsts = np.array(keys, np.uint64), np.array(firsts, np.int64)

    def steps(self, part: int, bits: int = PRECISION) -> Steps:
        """F for values `part` / grid above an integer, enclosed to about 2^-bits."""
        if bits > _MOST_PRECISION:
            raise AssertionError(f"F of rounding is undecided to {_MOST_PRECISION} bits")
        if bits not in self._weights:
            self._weights[bits] = _fine_weights(self.variance, 1 << self.grid_bits, bits)
        if (part, bits) not in self._steps:
            self._steps[part, bits] = _part_steps(*self._weights[bits], part, 1 << self.grid_bits, bits)
        return self._steps[part, bits]

    def round(self, values: NDArray[np.int64], seed: bytes) -> NDArray[np.int64]:
        """Each of `values`, in units of 1 / grid, as an integer: a function of `seed`, as in `Noise`."""
        if not isinstance(seed, bytes) or len(seed) != SEED_BYTES:
            raise ValueError(f"seed: expected {SEED_BYTES} bytes")
        out = np.empty(values.size, np.int64)
        prefixes, rests, more = (_stream(seed, use) for use in range(3))
        undecided, width = np.iinfo(np.int8).min, 64 - self.grid_bits
        for start in range(0, values.size, _CHUNK):
            part = values[start : start + _CHUNK] & (1 << self.grid_bits) - 1
            prefix = np.frombuffer(prefixes(2 * part.size), "<u2").astype(np.int64) >> _PREFIX - _INDEX
            found = np.take(self._table, part << _INDEX | prefix).astype(np.int64)
            left = np.flatnonzero(found == undecided)
            rest = np.frombuffer(rests(8 * left.size), "<u8") >> np.uint64(self.grid_bits + _INDEX)
            u = prefix[left].astype(np.uint64) << np.uint64(width - _INDEX) | rest
            key = part[left].astype(np.uint64) << np.uint64(width) | u
            place = np.searchsorted(self._keys, key, side="left")
            found[left] = place + self._firsts[part[left]]
            for i in np.flatnonzero(self._keys[np.minimum(place, self._keys.size - 1)] == key):
                which = int(part[left[i]])
                found[left[i]] = _resolve(partial(self.steps, which), int(u[i]), width, more)
            out[start : start + _CHUNK] = found + (values[start : start + _CHUNK] >> self.grid_bits)
        return out


_INDEX = 11  # bits of U that index the table of one part: all parts' tables together stay in the cache


def _resolve(steps_to: Callable[[int], Steps], u: int, known: int, more: Callable[[int], bytes]) -> int:
    """The sample whose first `known` bits of U are `u`, where a step lies in that cell."""
    while True:
        steps = steps_to(max(PRECISION, 2 * known))
        shift = steps.bits - known
        lowest, highest = u << shift, u + 1 << shift  # lowest <= U < highest
        # Steps certainly at or below U, and those not certainly above all of its cell.
        below = bisect_right(steps.high, lowest)
        if below == bisect_left(steps.low, highest) and 0 < below < len(steps.low):
            return steps.first + below
        u, known = u << 64 | int.from_bytes(more(8), "big"), known + 64


@lru_cache(maxsize=4)
def rounding(grid_bits: int, variance: int) -> Rounding:
    """Rounding of multiples of 2^-grid_bits with that variance, a whole number from 1 to 64."""
    if not (0 <= grid_bits <= 10 and 1 <= variance <= 64):
        raise ValueError(f"rounding: expected a grid of 0 to 10 bits and a variance of 1 to 64, got "
                         f"{grid_bits!r} and {variance!r}")  # fmt: skip
    return Rounding(grid_bits, variance)


@lru_cache(maxsize=64)
def noise(family: Family, variance: float) -> Noise:
    """The distribution, with its tables; those of the last 64 are kept.

    family    "skellam" or "discrete-gaussian"
    variance  in `VARIANCES`: of a Skellam variable exactly its variance; of a discrete Gaussian its sigma^2,
              from which the variance differs by less than 1e-6 of it where sigma^2 is 1 or more
    """
    return Noise(family, variance)


def _stream(seed: bytes, use: int) -> Callable[[int], bytes]:
    """One of the streams of a seed: AES-128-CTR from a counter that no other reaches."""
    counter = (use << 120).to_bytes(16, "big")
    encryptor = Cipher(algorithms.AES128(seed), modes.CTR(counter)).encryptor()
    return lambda n: encryptor.update(bytes(n))


# ------------------------------------------------------------- the distribution functions, enclosed
# All numbers are integers in units of 2^-w, in pairs: rounded down, and up.

_GUARD = 64  # bits beyond those asked for: what tens of thousands of roundings cost, and to spare


def _steps(family: Family, variance: float, bits: int) -> Steps:
    """F(k) for all k at which it differs from 0 and 1 by 2^-bits or more."""
    w = bits + _GUARD
    ratios = _skellam_ratios if family == "skellam" else _gaussian_ratios
    low, high = [1 << w], [1 << w]  # weights relative to that of 0
    for low_ratio, high_ratio in ratios(Fraction(variance), _reach(variance, bits), w):
        low.append(low[-1] * low_ratio >> w)
        high.append(-(-high[-1] * high_ratio >> w))
    # Ratios fall (both distributions are log-concave), so what is beyond is less than a geometric series.
    beyond = -(-high[-1] * high_ratio // ((1 << w) - high_ratio))
    # Tail sums: of the weights of k and all beyond.
    low_tail, high_tail = [0] * len(low), [0] * len(low)
    below, above = 0, beyond
    for k in range(len(low) - 1, -1, -1):
        below, above = below + low[k], above + high[k]
        low_tail[k], high_tail[k] = below, above
    low_sum, high_sum = 2 * low_tail[0] - high[0], 2 * high_tail[0] - low[0]
    # F(-k) is the tail from k on; F(k - 1) = 1 - F(-k).
    one = 1 << bits
    lower = [(tail << bits) // high_sum for tail in low_tail[:0:-1]]
    upper = [-((-tail << bits) // low_sum) for tail in high_tail[:0:-1]]
    told_apart = bisect_left(lower, 1)  # ascending, like F
    lower, upper = lower[told_apart:], upper[told_apart:]
    return Steps(
        bits, -len(lower), lower + [one - f for f in reversed(upper)],
        upper + [one - f for f in reversed(lower)],
    )  # fmt: skip


def _fine_weights(variance: int, grid: int, bits: int) -> tuple[list[int], list[int]]:
    """The discrete Gaussian on the grid itself: weights of 0, 1, 2 ... relative to that of 0, enclosed."""
    w = bits + _GUARD
    low, high = [1 << w], [1 << w]
    fine = variance * grid * grid
    for low_ratio, high_ratio in _gaussian_ratios(Fraction(fine), _reach(fine, bits) + 2 * grid, w):
        low.append(low[-1] * low_ratio >> w)
        high.append(-(-high[-1] * high_ratio >> w))
    return low, high


def _part_steps(low: list[int], high: list[int], part: int, grid: int, bits: int) -> Steps:
    """F of rounding a value `part` / grid above an integer: k has the weight of (k * grid - part) there."""
    reach = (len(low) - 1) // grid - 1
    places = [abs(k * grid - part) for k in range(-reach, reach + 2)]
    # What is beyond on either side is less than the last weight, twice: from one k to the next they fall by
    # more than half, so far out.
    low_sum = sum(low[p] for p in places)
    high_sum = sum(high[p] for p in places) + high[places[0]] + high[places[-1]]
    lower, upper, below, above = [], [], 0, high[places[0]]
    for place in places:
        below, above = below + low[place], above + high[place]
        lower.append((below << bits) // high_sum)
        upper.append(-((-above << bits) // low_sum))
    if 2 * part == grid:  # symmetric about it, so that F(0) is a half exactly, which no enclosure would tell
        lower[reach] = upper[reach] = 1 << bits - 1
    kept = [i for i in range(len(lower)) if lower[i] >= 1 and upper[i] < 1 << bits]
    first, last = kept[0], kept[-1] + 1
    return Steps(bits, first - reach, lower[first:last], upper[first:last])


def _reach(variance: float, bits: int) -> int:
    """How far from zero F is told apart from 0 and 1 to `bits` bits; roughly, but not too near.

    By Chernoff's bound for Skellam, whose tails are the heavier ones: P(Z >= k) is at most
    exp(-(k asinh(k / v) - sqrt(k^2 + v^2) + v)).
    """
    wanted = (bits + 8) * 0.6932
    k = ceil(sqrt(2 * wanted * variance)) + 1
    while k * asinh(k / variance) - k * k / (sqrt(k * k + variance * variance) + variance) < wanted:
        k += k // 16 + 1
    return k


def _skellam_ratios(variance: Fraction, reach: int, w: int) -> Iterator[tuple[int, int]]:
    """I_k(v) / I_(k-1)(v) for k = 1 to `reach`.

    By the recurrence I_(k-1) = (2k / v) I_k + I_(k+1), downwards: r_k = 1 / (2k / v + r_(k+1)). It begins
    with all that is possible, 0 < r < 1, and an enclosure shrinks by r^2 a step; `reach` and five standard
    deviations more leave nothing of it.
    """
    start = reach + 5 * ceil(sqrt(variance)) + 3 * w // 4 + 8
    top, low, high = 1 << 2 * w, 0, 1 << w
    found = []
    for k in range(start, 0, -1):
        term, remainder = divmod(2 * k * variance.denominator << w, variance.numerator)
        low, high = top // (term + (remainder > 0) + high), -(-top // (term + low))
        if k <= reach:
            found.append((low, high))
    return reversed(found)


def _gaussian_ratios(variance: Fraction, reach: int, w: int) -> Iterator[tuple[int, int]]:
    """exp(-(2k - 1) / (2v)) for k = 1 to `reach`, each from the last by a factor exp(-1 / v)."""
    low, high = _exponential(1 / (2 * variance), w)
    low_factor, high_factor = low * low >> w, -(-high * high >> w)
    for _ in range(reach):
        yield low, high
        low, high = low * low_factor >> w, -(-high * high_factor >> w)


def _exponential(y: Fraction, w: int) -> tuple[int, int]:
    """exp(-y) for y >= 0: by its series at y / 2^s below a half, then squared s times."""
    halvings = max(0, (y.numerator // y.denominator).bit_length() + 1)
    extra = 2 * halvings + 8
    one = 1 << w + extra
    y /= 1 << halvings
    # Alternating and falling: the sum lies between any two that follow each other. Each term is rounded
    # down once, so the sum is off by less than one unit a term.
    term, total, count = one, 0, 0
    while term:
        total += -term if count % 2 else term
        count += 1
        term = term * y.numerator // (y.denominator * count)
    low, high = total - count - 1, total + count + 1
    for _ in range(halvings):
        low, high = low * low >> w + extra, -(-high * high >> w + extra)
    return low >> extra, -(-high >> extra)
