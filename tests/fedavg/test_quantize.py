"""Stochastic rounding: no bias, off by less than one, integers untouched."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedavg.quantize import round_stochastically
from secagg.randomness import seeded, system

values = hnp.arrays(np.float64, st.integers(0, 30), elements=st.floats(-(2.0**52), 2.0**52))


@given(values, st.binary(max_size=8))
def test_off_by_less_than_one(given_values: Any, seed: bytes) -> None:
    rounded = round_stochastically(given_values, seeded(seed))
    assert rounded.dtype == np.int64
    assert rounded.shape == given_values.shape
    down, up = np.floor(given_values).astype(np.int64), np.ceil(given_values).astype(np.int64)
    assert ((rounded == down) | (rounded == up)).all()


@given(hnp.arrays(np.int64, st.integers(0, 30), elements=st.integers(-(2**52), 2**52)))
def test_integers_stay(integers: Any) -> None:
    np.testing.assert_array_equal(round_stochastically(integers.astype(np.float64), system), integers)


@pytest.mark.parametrize("value", [0.5, 0.1, 0.9, -0.25, -7.75, 1e-3, 41.999])
def test_unbiased(value: float) -> None:
    tries = 200_000
    rounded = round_stochastically(np.full(tries, value), seeded(b"unbiased", str(value).encode()))
    up = value - np.floor(value)
    deviation = np.sqrt(up * (1 - up) / tries)
    assert abs(rounded.mean() - value) < 5 * deviation  # a chance of 6e-7, and the seed is fixed
    assert abs(rounded.var() - up * (1 - up)) < 0.01


def test_entries_are_rounded_independently() -> None:
    rounded = round_stochastically(np.full((1 << 16), 0.5), seeded(b"independent"))
    pairs = np.bincount(rounded[::2] * 2 + rounded[1::2], minlength=4) / (1 << 15)
    np.testing.assert_allclose(pairs, 0.25, atol=0.015)


def test_the_probability_uses_the_high_bits_of_eight_bytes_a_value_of_the_stream() -> None:
    asked: list[int] = []

    def rng(count: int) -> bytes:
        asked.append(count)
        return bytes(range(count))

    values = np.linspace(-3, 3, 40_000)  # longer than what is worked on at a time
    stream = seeded(b"rounding", bytes(range(32)))(8 * values.size)
    uniform = np.array([w >> 11 for w in np.frombuffer(stream, "<u8").tolist()]) / 2**53
    expected = np.floor(values) + (uniform < values - np.floor(values))
    np.testing.assert_array_equal(round_stochastically(values, rng), expected)
    assert asked == [32]


def test_the_same_stream_rounds_the_same() -> None:
    given_values = np.linspace(-3, 3, 50)
    first, again, other = (round_stochastically(given_values, seeded(s)) for s in (b"a", b"a", b"b"))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
