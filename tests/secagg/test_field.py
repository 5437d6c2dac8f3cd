"""`secagg.field` against Python's `pow` and integers of any size."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from secagg import field
from secagg.field import ORDER, P

ELEMENT = st.integers(0, P - 1) | st.sampled_from((0, 1, 2, P - 2, P - 1))
POINT = st.integers(1, ORDER) | st.sampled_from((1, 2, ORDER - 1, ORDER))
POINTS = st.lists(POINT, min_size=1, max_size=12, unique=True)


def scripted(words: list[int]) -> Callable[[int], bytes]:
    """A generator that hands out these 32-bit words and fails if more are asked for."""
    left = bytearray(b"".join(w.to_bytes(4, "little") for w in words))

    def rng(n: int) -> bytes:
        assert n <= len(left)
        taken = bytes(left[:n])
        del left[:n]
        return taken

    return rng


def test_the_modulus_is_prime_and_the_tables_cover_its_group() -> None:
    assert P == 2**16 + 1
    assert all(P % d for d in range(2, 257))
    powers = field.power_matrix(np.array([3]), ORDER)[0]  # every power of the generator
    assert sorted(powers.tolist()) == list(range(1, P))


@given(POINTS, st.integers(1, 40))
def test_powers_are_those_of_pow(points: list[int], degree: int) -> None:
    matrix = field.power_matrix(np.array(points), degree)
    assert matrix.tolist() == [[pow(x, j, P) for j in range(degree)] for x in points]


def test_powers_of_every_point() -> None:
    matrix = field.power_matrix(np.arange(1, P), 4)
    assert matrix.astype(int).tolist() == [[1, x, x * x % P, x * x * x % P] for x in range(1, P)]


@pytest.mark.parametrize("point", [1, 2, ORDER // 2, ORDER - 1, ORDER])
def test_high_powers(point: int) -> None:
    row = field.power_matrix(np.array([point]), 3000)[0]
    assert row.tolist() == [pow(point, j, P) for j in range(3000)]


@given(POINTS)
def test_lagrange_coefficients_are_products_of_quotients(points: list[int]) -> None:
    expected = []
    for x in points:
        product = 1
        for y in points:
            if y != x:
                product = product * y * pow(y - x, -1, P) % P
        expected.append(product)
    assert field.lagrange_at_zero(np.array(points)).tolist() == expected


@given(POINTS, st.data())
def test_lagrange_recovers_the_constant_term(points: list[int], data: st.DataObject) -> None:
    polynomial = data.draw(st.lists(ELEMENT, min_size=1, max_size=len(points)))
    values = [sum(c * x**j for j, c in enumerate(polynomial)) % P for x in points]
    coefficients = field.lagrange_at_zero(np.array(points))
    assert sum(int(c) * v for c, v in zip(coefficients, values, strict=True)) % P == polynomial[0]


@given(st.integers(1, 5), st.integers(1, 30), st.integers(1, 4), st.data())
def test_multiply_is_exact(rows: int, inner: int, columns: int, data: st.DataObject) -> None:
    def draw(height: int, width: int) -> list[list[int]]:
        row = st.lists(ELEMENT, min_size=width, max_size=width)
        return data.draw(st.lists(row, min_size=height, max_size=height))

    a, b = draw(rows, inner), draw(inner, columns)
    expected = [[sum(x * y for x, y in zip(r, c, strict=True)) % P for c in zip(*b, strict=True)] for r in a]
    assert field.multiply(np.array(a, np.float64), np.array(b)).tolist() == expected


@pytest.mark.parametrize("terms", [1 << 16, (1 << 20) - 1, 1 << 20])
@pytest.mark.parametrize("x", [P - 1, P - 2])
@pytest.mark.parametrize("y", [P - 1, P - 2])
def test_multiply_is_exact_at_the_extremes(terms: int, x: int, y: int) -> None:
    # 2^20 products of 2^32, or of odd numbers just below it: a float64 sum has no bit to spare.
    matrix, elements = np.full((1, terms), x, np.float64), np.full((terms, 1), y, np.int64)
    matrix[0, 0] = 1
    assert field.multiply(matrix, elements).tolist() == [[(y + (terms - 1) * x * y) % P]]


def test_more_terms_than_the_proof_covers_are_refused() -> None:
    terms = (1 << 20) + 1
    with pytest.raises(AssertionError):
        field.multiply(np.zeros((1, terms)), np.zeros((terms, 1), np.int64))


@given(
    st.lists(st.integers(0, 2**32 - 1) | st.sampled_from((2**32 - 1, 2**32 - 2, P)), min_size=1, max_size=50)
)
def test_uniform_rejects_exactly_the_words_that_would_bias(words: list[int]) -> None:
    # 2^32 - 1 = 65535 * 65537: one word is left over.
    kept = [w % P for w in words if w != 2**32 - 1]
    assert field.uniform(scripted(words), (len(kept),)).tolist() == kept


def test_uniform_asks_again_for_what_was_rejected() -> None:
    words = [5, 2**32 - 1, 2**32 - 1, 6, 2**32 - 1, 2**32 - 2, 7, 8, 9]
    found = field.uniform(scripted(words), (2, 3))
    assert found.tolist() == [[5, 6, P - 1], [7, 8, 9]]
    assert found.dtype == np.int64


@pytest.mark.parametrize("shape", [(0,), (0, 16), (3, 0), (2, 5), (1,)])
def test_uniform_has_the_shape_asked_for(shape: tuple[int, ...]) -> None:
    found = field.uniform(scripted([1] * int(np.prod(shape))), shape)
    assert found.shape == shape
