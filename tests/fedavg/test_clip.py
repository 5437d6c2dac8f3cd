"""Clipping: the norm comes down to the bound, the direction stays, nonsense is refused."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedavg.clip import clip_l2

vectors = hnp.arrays(
    np.float64, st.integers(1, 20), elements=st.floats(-1e6, 1e6, allow_subnormal=False).map(float)
)
norms = st.floats(1e-3, 1e3)


@given(vectors, norms)
def test_norm_and_direction(update: Any, norm: float) -> None:
    before = update.copy()
    clipped = clip_l2(update, norm)
    np.testing.assert_array_equal(update, before)
    long = float(np.linalg.norm(update))
    if long <= norm * (1 - 1e-12):
        np.testing.assert_array_equal(clipped, update)
    else:
        assert float(np.linalg.norm(clipped)) == pytest.approx(min(norm, long), rel=1e-12)
        # Below the normal range a float has no 12 digits: there, a few of its smallest steps.
        np.testing.assert_allclose(clipped, update * (norm / long), rtol=1e-12, atol=1e-318)


@pytest.mark.parametrize("scale", [1e-300, 1e-160, 1e160, 1e300])
def test_squares_neither_overflow_nor_vanish(scale: float) -> None:
    clipped = clip_l2(np.array([3.0, -4.0]) * scale, scale)
    np.testing.assert_allclose(clipped, np.array([0.6, -0.8]) * scale, rtol=1e-12)


def test_zero_and_empty() -> None:
    assert clip_l2(np.zeros(3), 1.0).tolist() == [0, 0, 0]
    assert clip_l2(np.zeros(0), 1.0).shape == (0,)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite_is_refused_with_its_place(bad: float) -> None:
    with pytest.raises(ValueError, match=f"update: expected finite numbers, entry 2 is {bad}"):
        clip_l2(np.array([0.0, 1.0, bad, bad]), 1.0)


def test_a_norm_beyond_the_largest_float_is_still_clipped_to_the_bound() -> None:
    clipped = clip_l2(np.full(4, 1.7e308), 1.0)
    np.testing.assert_allclose(clipped, np.full(4, 0.5), rtol=1e-9)
