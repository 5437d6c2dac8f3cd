"""Arrays to one flat vector and back: shapes, dtypes and every value restored."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedavg.params import Layout

arrays = st.lists(
    st.sampled_from(["f2", "f4", "f8", ">f4"]).flatmap(
        lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
    ),
    max_size=5,
)


@given(arrays)
def test_flatten_and_restore_are_inverse(given_arrays: list[Any]) -> None:
    layout = Layout.of(given_arrays)
    vector = layout.flatten(given_arrays)
    assert vector.dtype == np.float64
    assert vector.shape == (layout.dim,) == (sum(np.asarray(a).size for a in given_arrays),)
    back = layout.restore(vector)
    assert [(b.shape, b.dtype) for b in back] == [(a.shape, a.dtype) for a in given_arrays]
    for before, after in zip(given_arrays, back, strict=True):
        np.testing.assert_array_equal(before, after)


def test_order_is_row_by_row_and_array_by_array() -> None:
    given_arrays = [np.array([[1.0, 2.0], [3.0, 4.0]]), np.array(5.0), np.array([6.0])]
    assert Layout.of(given_arrays).flatten(given_arrays).tolist() == [1, 2, 3, 4, 5, 6]


def test_restored_arrays_are_the_callers_own() -> None:
    layout = Layout.of([np.zeros(3)])
    vector = np.ones(3)
    layout.restore(vector)[0][0] = 7.0
    assert vector.tolist() == [1, 1, 1]


@pytest.mark.parametrize("wrong", [np.zeros(2, int), np.zeros(2, bool), np.zeros(2, complex), ["a"]])
def test_only_floats(wrong: Any) -> None:
    with pytest.raises(ValueError, match="array 1: expected floats"):
        Layout.of([np.zeros(2), wrong])


@pytest.mark.parametrize(
    "other",
    [
        [np.zeros((3, 2)), np.zeros(1)],
        [np.zeros((2, 3))],
        [np.zeros((2, 3), np.float32), np.zeros(1)],
        [np.zeros((2, 3)), np.zeros(1), np.zeros(1)],
    ],
)
def test_another_layout_is_refused(other: list[Any]) -> None:
    layout = Layout.of([np.zeros((2, 3)), np.zeros(1)])
    with pytest.raises(ValueError, match=r"arrays: expected float64\[2, 3\], float64\[1\]; got"):
        layout.flatten(other)


@pytest.mark.parametrize("shape", [(6,), (8,), (7, 1), ()])
def test_a_vector_of_another_length_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="vector: expected 7 entries, got shape"):
        Layout.of([np.zeros((2, 3)), np.zeros(1)]).restore(np.zeros(shape))


def test_no_arrays_are_an_empty_vector() -> None:
    layout = Layout.of([])
    assert layout.dim == 0
    assert layout.flatten([]).shape == (0,)
    assert layout.restore(np.zeros(0)) == []
