"""`fedavg.rotate`: there and back, norms kept, and flat."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedavg.rotate import rotate, unrotate


@given(st.integers(0, 300), st.binary(max_size=8), st.integers(0, 1000))
def test_a_rotation_keeps_norms_and_can_be_undone(n: int, seed: bytes, data: int) -> None:
    values = np.random.default_rng(data).normal(size=n)
    turned = rotate(values, seed)
    assert turned.shape == values.shape
    assert np.linalg.norm(turned) == pytest.approx(np.linalg.norm(values), rel=1e-12)
    np.testing.assert_allclose(unrotate(turned, seed), values, atol=1e-12)


def test_it_is_linear_and_depends_on_the_seed() -> None:
    a, b = np.random.default_rng(1).normal(size=(2, 1001))
    np.testing.assert_allclose(rotate(a + 3 * b, b"s"), rotate(a, b"s") + 3 * rotate(b, b"s"), atol=1e-12)
    assert np.abs(rotate(a, b"s") - rotate(a, b"t")).max() > 0.1
    np.testing.assert_array_equal(rotate(a, b"s"), rotate(a, b"s"))


@pytest.mark.parametrize("n", [4096, 4095, 5003])
def test_whatever_the_vector_no_entry_is_large(n: int) -> None:
    """One entry, a wave, a constant: afterwards no entry is above six standard deviations."""
    place = np.arange(n)
    for values in (place == 7, np.sin(place), np.ones(n), (place % 2) * 2.0 - 1):
        turned = rotate(values.astype(float), b"seed")
        assert np.abs(turned).max() < 6 * np.linalg.norm(values) / np.sqrt(n)
