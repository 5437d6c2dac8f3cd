"""GF(65537): the field in which secrets are shared.

Why this prime: a 32-byte secret is exactly sixteen 16-bit limbs, each a field element; a product of two
elements is below 2^33, so a float64 matrix product over up to 2^20 terms is exact (below 2^53) and runs
at BLAS speed; and the multiplicative group has order 2^16, so two tables of 512 KiB turn powers
and quotients into additions. The field bounds the number of holders to 65536.

Tables of logarithms are indexed by evaluation points (public positions of holders), never by secrets.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from secagg.randomness import Rng

P = 65537
ORDER = P - 1
_GENERATOR = 3  # 3 generates GF(65537)*, as it does for every Fermat prime above 3

Elements = NDArray[np.int64]
"""Field elements from 0 to 65536."""


def _tables() -> tuple[Elements, Elements]:
    powers = np.ones(ORDER, np.int64)
    filled = 1
    while filled < ORDER:  # double the table: g^(i + filled) = g^i * g^filled
        powers[filled : 2 * filled] = powers[:filled] * pow(_GENERATOR, filled, P) % P
        filled *= 2
    logs = np.zeros(P, np.int64)
    logs[powers] = np.arange(ORDER)
    return powers, logs


_POWERS, _LOGS = _tables()


def power_matrix(points: Elements, degree: int) -> NDArray[np.float64]:
    """points[i]^j for j below `degree`: shape (len(points), degree), float64 used as exact integers."""
    exponents = _LOGS[points][:, None] * np.arange(degree) % ORDER
    powers: NDArray[np.float64] = _POWERS[exponents].astype(np.float64)
    return powers


def lagrange_at_zero(points: Elements) -> NDArray[np.float64]:
    """Coefficients c with f(0) = sum c_i f(points_i) for every f of degree below len(points).

    The points are distinct and not zero. Shape (len(points),), float64 used as exact integers.
    """
    logs = _LOGS[points]
    differences = _LOGS[(points[None, :] - points[:, None]) % P]  # log 0 = 0 on the diagonal
    exponents = logs.sum() - logs - differences.sum(axis=1)
    coefficients: NDArray[np.float64] = _POWERS[exponents % ORDER].astype(np.float64)
    return coefficients


def multiply(matrix: NDArray[np.float64], elements: Elements) -> Elements:
    """matrix @ elements mod 65537, exactly.

    Entries are at most 2^16, so a sum of m products is at most m * 2^32: exact in float64 for m up to
    2^20, which the number of holders (2^16) never reaches. BLAS may sum in any order for that reason.
    """
    assert matrix.shape[1] <= 1 << 20
    return (matrix @ elements.astype(np.float64)).astype(np.int64) % P


def uniform(rng: Rng, shape: tuple[int, ...]) -> Elements:
    """Uniform field elements by rejection: 32-bit words below the largest multiple of 65537."""
    count = int(np.prod(shape))
    found = np.empty(0, np.int64)
    while found.size < count:  # 2^32 mod 65537 = 1: one word in 2^32 is rejected
        words = np.frombuffer(rng(4 * (count - found.size)), "<u4").astype(np.int64)
        found = np.concatenate((found, words[words < 2**32 // P * P] % P))
    return found.reshape(shape)
