"""`secagg.noise` against mpmath's Bessel functions, a published table, and statistics."""

from __future__ import annotations

import io
from collections.abc import Callable

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import chi2

from secagg.noise import FAMILIES, PRECISION, VARIANCES, Family, Noise, Steps, _resolve, noise, rounding
from secagg.noise import _stream as stream
from secagg.randomness import seeded
from secagg.ring import Ring

SEED = bytes(range(16))
KINDS = [
    (family, variance)
    for family in FAMILIES
    for variance in (VARIANCES[family][0], 0.1, 1.0, 33.3, 1e4)
]  # fmt: skip


def weight(family: Family, variance: float) -> Callable[[int], mpmath.mpf]:
    """A probability up to a factor, by mpmath."""
    if family == "skellam":
        return lambda k: mpmath.besseli(k, mpmath.mpf(variance))
    return lambda k: mpmath.exp(-(mpmath.mpf(k) ** 2) / (2 * mpmath.mpf(variance)))


@pytest.mark.parametrize(("family", "variance"), [*KINDS[:4], *KINDS[5:9]])  # mpmath is slow beyond
@pytest.mark.parametrize("bits", [PRECISION, 2 * PRECISION])
def test_the_distribution_function_is_enclosed(family: Family, variance: float, bits: int) -> None:
    steps = noise(family, variance).steps(bits)
    assert steps.first == -len(steps.low) // 2
    with mpmath.workprec(bits + 100):
        weights = weight(family, variance)
        reach = -steps.first + 40
        tail = mpmath.mpf(0)
        total = mpmath.exp(mpmath.mpf(variance)) if family == "skellam" else mpmath.mpf(0)
        if not total:
            total = weights(0) + 2 * mpmath.fsum(weights(k) for k in range(1, 2 * reach + 200))
        at = {}
        for k in range(2 * reach + 200, 0, -1):  # F(-k), smallest terms first
            tail += weights(k)
            at[-k], at[k - 1] = tail / total, 1 - tail / total
        for i, (low, high) in enumerate(zip(steps.low, steps.high, strict=True)):
            exact = at[steps.first + i] * mpmath.mpf(2) ** bits
            assert low <= exact <= high
            assert high - low <= 2
        beyond = at[steps.first - 1] * mpmath.mpf(2) ** bits
        assert beyond < 2  # steps are left out only where F is 0 or 1 to the precision


def test_the_half_gaussian_of_falcon() -> None:
    """The base sampler's table of the Falcon specification (table 3.1): 2^72 P(z > i) for sigma 1.8205."""
    published = [
        3024686241123004913666, 1564742784480091954050, 636254429462080897535, 199560484645026482916,
        47667343854657281903, 8595902006365044063, 1163297957344668388, 117656387352093658, 8867391802663976,
        496969357462633, 20680885154299, 638331848991, 14602316184, 247426747, 3104126, 28824, 198, 1,
    ]  # fmt: skip
    steps = noise("discrete-gaussian", 1.8205**2).steps()
    tails = [steps.low[-k - steps.first] for k in range(1, 20)]  # of F(-k)
    zero = (1 << steps.bits) - 2 * tails[0]
    for i, value in enumerate(published):
        mine = tails[i] * 2**72 // (zero + tails[0])
        assert mine == pytest.approx(value, rel=1e-13, abs=5), i  # our variance is a float


@pytest.mark.parametrize(("family", "variance"), KINDS)
def test_samples_fit_the_distribution(family: Family, variance: float) -> None:
    size = 1_000_000
    found = noise(family, variance).sample(SEED, size)
    assert found.dtype == np.int32
    assert misfit(found, noise(family, variance)) > 1e-4


def misfit(found: NDArray[np.int32], of: Noise) -> float:
    """The probability that a chi-square statistic as large comes from samples of that distribution."""
    steps = of.steps()
    f = np.array([low / (1 << steps.bits) for low in steps.low])
    p = np.diff(f, prepend=0.0, append=1.0)  # the first and last cells hold all that is beyond
    counts = np.bincount(np.clip(found - steps.first, 0, len(p) - 1), minlength=len(p))
    # Cells are joined from the left until ten samples are expected in each.
    groups = (np.cumsum(p * found.size) // 10).astype(int)
    expected = np.bincount(groups, p * found.size)
    seen = np.bincount(groups, counts)
    kept = expected > 1
    if kept.sum() < 2:
        return float(found.size * p.max() - counts.max() < 50)
    statistic = ((seen - expected)[kept] ** 2 / expected[kept]).sum()
    return float(chi2.sf(statistic, kept.sum() - 1))


def test_a_wrong_variance_does_not_fit() -> None:
    assert misfit(noise("skellam", 33.3).sample(SEED, 4_000_000), noise("skellam", 33.3 * 0.99)) < 1e-6
    assert misfit(noise("skellam", 33.3).sample(SEED, 4_000_000), noise("discrete-gaussian", 33.3)) < 1e-6


@pytest.mark.parametrize(("family", "variance"), KINDS)
def test_moments(family: Family, variance: float) -> None:
    size = 1_000_000
    found = noise(family, variance).sample(SEED, size).astype(float)
    steps = noise(family, variance).steps()
    f = np.array([low / (1 << steps.bits) for low in steps.low])
    k = np.arange(steps.first, -steps.first + 1)
    p = np.diff(f, prepend=0.0, append=1.0)
    true, fourth = float(p @ k**2), float(p @ k.astype(float) ** 4)
    if family == "skellam":
        assert true == pytest.approx(variance, rel=1e-12)
    elif variance >= 1:
        assert true == pytest.approx(variance, rel=1e-6)
    assert abs(found.mean()) < 5 * (true / size) ** 0.5
    assert abs(found.var() - true) < 5 * ((fourth - true**2) / size) ** 0.5 + 1e-9


def test_samples_are_a_function_of_the_seed() -> None:
    one = noise("skellam", 100.0)
    assert (one.sample(SEED, 100_000)[:70_000] == one.sample(SEED, 70_000)).all()
    assert (one.sample(SEED, 1000) != one.sample(bytes(16), 1000)).any()
    assert one is noise("skellam", 100.0)
    assert one.sample(SEED, 0).size == 0


@given(
    st.sampled_from(KINDS), st.integers(0, 70_000), st.sampled_from([8, 12, 16, 21, 32, 40, 64]),
)  # fmt: skip
@settings(max_examples=40)
def test_what_was_added_can_be_subtracted(kind: tuple[Family, float], dim: int, bits: int) -> None:
    ring, of = Ring(bits), noise(*kind)
    start = np.frombuffer(seeded(b"noise")(dim * ring.dtype.itemsize), ring.dtype).copy()
    vector = start.copy()
    of.add(ring, vector, SEED)
    samples = of.sample(SEED, dim)
    difference = (vector - start).astype(np.dtype(f"<i{ring.dtype.itemsize}"))
    assert (difference == samples.astype(difference.dtype)).all()
    of.subtract(ring, vector, SEED)
    assert (vector == start).all()


@pytest.mark.parametrize(("family", "variance"), KINDS)
def test_ties_are_resolved_by_more_bits(family: Family, variance: float) -> None:
    """U just below and just above a step of F, told apart only by its two-hundredth bits or later."""
    of = noise(family, variance)
    bits = 2 * PRECISION
    steps = of.steps(bits)
    for i in range(0, len(steps.low), max(1, len(steps.low) // 50)):
        k = steps.first + i
        if not 1 << 8 < steps.low[i] < (1 << bits) - (1 << 8):
            continue
        for u, expected in ((steps.low[i] - 4, k), (steps.high[i] + 4, k + 1)):
            rest = (u & (1 << bits - 64) - 1).to_bytes((bits - 64) // 8, "big")
            found = _resolve(of.steps, u >> bits - 64, 64, io.BytesIO(rest).read)
            assert found == expected


@pytest.mark.parametrize(("family", "variance"), KINDS)
def test_each_way_of_deciding_agrees(family: Family, variance: float) -> None:
    """The table, the 64-bit steps and the big integers give the same sample for the same U."""
    of = noise(family, variance)
    steps: Steps = of.steps()
    us = np.frombuffer(seeded(b"u")(8 * 2000), "<u8")
    edges = np.concatenate([of._cells[::37], of._cells[::37] + np.uint64(1), of._cells[::41] - np.uint64(1)])
    for u in (int(u) for u in np.concatenate([us, edges])):
        scaled = (2 * u + 1) << steps.bits - 65  # the middle of U's cell of 2^-64
        expected = steps.first + sum(high <= scaled for high in steps.high)
        prefix = np.array([u >> 48], np.uint16)
        by_table = int(of._table[prefix[0]])
        if by_table != np.iinfo(of._table.dtype).min:
            assert by_table == expected
        rest = ((u & (1 << 48) - 1) << 16).to_bytes(8, "little")
        half = b"\x80" + bytes(7)
        found = of._decide(prefix, lambda _, rest=rest: rest, lambda _, half=half: half)
        if u not in of._cells:
            assert found[0] == expected


@pytest.mark.parametrize(
    ("family", "variance"),
    [("skellam", 0.0), ("skellam", -1.0), ("skellam", float("nan")), ("skellam", 1e9),
     ("skellam", float("inf")), ("discrete-gaussian", 0.01), ("laplace", 1.0)],
)  # fmt: skip
def test_impossible_distributions_are_refused(family: Family, variance: float) -> None:
    with pytest.raises(ValueError, match="expected"):
        noise(family, variance)


@pytest.mark.parametrize("seed", [b"", bytes(15), bytes(32), "0" * 16])
def test_a_seed_of_another_length_is_refused_and_not_shown(seed: bytes) -> None:
    with pytest.raises(ValueError, match="expected 16 bytes") as caught:
        noise("skellam", 1.0).sample(seed, 10)
    assert repr(seed) not in str(caught.value)


GRIDS = [(7, 2), (9, 4), (0, 1), (8, 9), (3, 64)]


@pytest.mark.parametrize(("grid_bits", "variance"), GRIDS)
def test_rounding_is_enclosed(grid_bits: int, variance: int) -> None:
    grid = 1 << grid_bits
    with mpmath.workprec(PRECISION + 100):
        for part in {0, 1 % grid, grid // 3, grid - 1}:
            steps = rounding(grid_bits, variance).steps(part)
            weights = [
                mpmath.exp(-((mpmath.mpf(k) - mpmath.mpf(part) / grid) ** 2) / (2 * variance))
                for k in range(-200, 201)
            ]
            total, below = mpmath.fsum(weights), mpmath.mpf(0)
            for k, weight in zip(range(-200, 201), weights, strict=True):
                below += weight
                exact, i = below / total * mpmath.mpf(2) ** PRECISION, k - steps.first
                if part * 2 == grid and k == 0:
                    assert steps.low[i] == steps.high[i] == 1 << PRECISION - 1
                elif 0 <= i < len(steps.low):
                    assert steps.low[i] <= exact <= steps.high[i]
                    assert steps.high[i] - steps.low[i] <= 2
                else:
                    assert exact < 2 or exact > mpmath.mpf(2) ** PRECISION - 2


@pytest.mark.parametrize(("grid_bits", "variance"), GRIDS)
def test_rounded_values_fit_the_distribution(grid_bits: int, variance: int) -> None:
    size, grid = 400_000, 1 << grid_bits
    of = rounding(grid_bits, variance)
    for value in (0, 1, -1, 5 * grid + grid // 3, -7 * grid + grid // 2):
        found = of.round(np.full(size, value, np.int64), value.to_bytes(16, "big", signed=True))
        steps = of.steps(value % grid)
        f = np.array([low / (1 << steps.bits) for low in steps.low])
        p = np.diff(f, prepend=0.0, append=1.0)
        places = np.clip(found - value // grid - steps.first, 0, len(p) - 1)
        counts, common = np.bincount(places, minlength=len(p)), p * size > 10
        statistic = ((counts - p * size)[common] ** 2 / (p * size)[common]).sum()
        assert chi2.sf(statistic, common.sum() - 1) > 1e-4
        if variance >= 2:
            assert found.mean() == pytest.approx(value / grid, abs=5 * (variance / size) ** 0.5)
            assert found.var() == pytest.approx(variance, rel=5 * (2 / size) ** 0.5)


def test_each_way_of_rounding_agrees() -> None:
    """The table, the steps in 57 bits and the big integers give the same for the same U."""
    of = rounding(9, 4)
    values = np.arange(-1000, 1000).repeat(20)
    found = of.round(values, SEED)
    prefixes, rests = (stream(SEED, use) for use in (0, 1))
    for value, rounded in zip(values.tolist(), found.tolist(), strict=True):
        steps = of.steps(value % 512)
        u = int.from_bytes(prefixes(2), "little") >> 5
        cut = {low >> steps.bits - 11 for low in steps.low}
        shift = steps.bits - 11
        if u in cut:
            u = u << 44 | int.from_bytes(rests(8), "little") >> 20
            shift = steps.bits - 55
        # Unless U's cell holds a step, any point in it decides.
        assert rounded == value // 512 + steps.first + sum(high <= u << shift for high in steps.high)


@pytest.mark.parametrize(("grid_bits", "variance"), [(11, 4), (-1, 4), (7, 0), (7, 65)])
def test_impossible_rounding_is_refused(grid_bits: int, variance: int) -> None:
    with pytest.raises(ValueError, match="rounding: expected"):
        rounding(grid_bits, variance)


def test_rounding_needs_a_seed() -> None:
    with pytest.raises(ValueError, match="expected 16 bytes"):
        rounding(7, 4).round(np.zeros(3, np.int64), bytes(15))
