"""Arrays to one flat vector and back: shapes, dtypes and every value restored."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedavg.params import Layout

arrays = st.lists(
    st.sampled_from(["f2", "f4", "f8", ">f4", "g", "i8", "u1", "?"]).flatmap(
        lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
    ),
    max_size=5,
)


@given(arrays)
def test_flatten_and_restore_are_inverse(given_arrays: list[Any]) -> None:
    layout = Layout.of(given_arrays)
    vector = layout.flatten(given_arrays)
    assert vector.dtype == np.float64
    floats = sum(a.size for a in given_arrays if a.dtype.kind == "f")
    assert vector.shape == (layout.dim,) == (floats,)
    back = layout.restore(vector, given_arrays)
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


@pytest.mark.parametrize(
    "wrong", [np.zeros(2, complex), ["a"], [b"a"], [None], np.zeros(2, "M8[s]"), np.zeros(2, "f4,i4")]
)
def test_only_numbers(wrong: Any) -> None:
    with pytest.raises(ValueError, match="array 1: expected floats, integers or booleans, got "):
        Layout.of([np.zeros(2), wrong])


def test_integers_are_kept_and_never_averaged() -> None:
    before = [np.array([1.5, 2.5]), np.array(10**6), np.array([True, False]), np.float32([3.0])]
    after = [np.array([2.5, 4.5]), np.array(10**6 + 7), np.array([False, False]), np.float32([5.0])]
    layout = Layout.of(before)
    assert layout.dim == 3
    update = layout.flatten(after) - layout.flatten(before)
    assert update.tolist() == [1.0, 2.0, 2.0], "a counter would outweigh everything else"
    back = layout.restore(layout.flatten(before) + update / 2, before)
    assert [b.tolist() for b in back] == [[2.0, 3.5], 10**6, [True, False], [4.0]]
    assert [b.dtype for b in back] == [b.dtype for b in before]
    back[2][0] = False
    assert before[2].tolist() == [True, False]


def test_kept_arrays_are_demanded_and_checked() -> None:
    layout = Layout.of([np.zeros(2), np.array(3)])
    with pytest.raises(ValueError, match=r"array 1 is of int64, which is not averaged: expected `kept`"):
        layout.restore(np.zeros(2))
    for wrong in ([np.zeros(2)], [np.zeros(2), np.array(3, np.int32)], [np.zeros(2), np.zeros(1, int)]):
        with pytest.raises(ValueError, match=r"kept: expected float64\[2\], int64\[\]; got float64\[2\]"):
            layout.restore(np.zeros(2), wrong)
    floats = Layout.of([np.zeros(2)])
    assert floats.restore(np.ones(2), [np.zeros(2)])[0].tolist() == [1, 1]


def test_a_model_of_integers_alone_has_nothing_to_average() -> None:
    layout = Layout.of([np.arange(3)])
    assert layout.dim == 0
    assert layout.flatten([np.arange(3)]).size == 0


@pytest.mark.parametrize("dtype", ["f2", ">f2", "f4"])
def test_a_value_too_large_for_its_dtype_is_refused(dtype: str) -> None:
    layout, largest = Layout.of([np.zeros(1), np.zeros(2, dtype)]), float(np.finfo(dtype).max)
    assert layout.restore(np.array([1e300, largest, -largest]))[1].tolist() == [largest, -largest]
    for value in (largest * 1.01, -largest * 1.01, 1e300):
        with pytest.raises(ValueError, match="array 1: a value is beyond the largest"):
            layout.restore(np.array([0.0, 0.0, value]))
    assert np.isinf(layout.restore(np.array([0.0, np.inf, -np.inf]))[1]).all()


def test_long_doubles() -> None:
    given_arrays = [np.array([1.5, -2.25], np.longdouble)]
    layout = Layout.of(given_arrays)
    back = layout.restore(layout.flatten(given_arrays))
    assert back[0].dtype == np.longdouble
    np.testing.assert_array_equal(back[0], given_arrays[0])
    if np.finfo(np.longdouble).max > np.finfo(np.float64).max:
        with pytest.raises(ValueError, match="array 0: a value is beyond the largest float64"):
            layout.flatten([np.array([1, 2], np.longdouble) * (np.finfo(np.longdouble).max / 4)])


def test_arrays_may_come_from_any_iterable() -> None:
    named = {"weights": np.ones((2, 2)), "seen": np.array(5)}
    layout = Layout.of(named.values())
    vector = layout.flatten(a for a in named.values())
    assert vector.tolist() == [1, 1, 1, 1]
    assert layout.restore(vector, iter(named.values()))[1] == 5


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
