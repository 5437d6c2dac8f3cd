"""t-of-n secret sharing (Shamir 1979) of 32-byte secrets, several secrets and all limbs at once.

Sixteen 16-bit limbs of a secret are the constant terms of sixteen random polynomials of degree t - 1
over GF(65537); holder x gets their values at x. Fewer than t shares say nothing about the secret.
Shares carry no proof: who needs blame commits to them (see `protocols.pairwise`).

A share is 34 bytes: sixteen field elements of 17 bits, little-endian, each at most 65536.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from secagg import field
from secagg.field import Elements
from secagg.invalid import Invalid, exact_length
from secagg.randomness import Rng

SECRET_BYTES = 32
SHARE_BYTES = 34
_LIMBS = 16
_BITS = 17


@lru_cache(maxsize=4)
def _powers(points: tuple[int, ...], threshold: int) -> NDArray[np.float64]:
    return field.power_matrix(np.array(points, np.int64), threshold)


@lru_cache(maxsize=256)
def _lagrange(points: tuple[int, ...]) -> NDArray[np.float64]:
    return field.lagrange_at_zero(np.array(points, np.int64))


def split(secrets: Sequence[bytes], threshold: int, points: Sequence[int], rng: Rng) -> list[list[bytes]]:
    """Share each 32-byte secret among the holders at `points`; any `threshold` of them recover it.

    `points` are distinct, from 1 to 65536. Returns, for each secret, one 34-byte share a point.
    """
    points = tuple(points)
    if not 1 <= threshold <= len(points):
        raise ValueError(f"threshold: expected 1 to {len(points)} (the number of holders), got {threshold}")
    if len(set(points)) != len(points) or min(points) < 1 or max(points) > field.ORDER:
        raise ValueError("points: expected distinct integers from 1 to 65536")
    for secret in secrets:
        exact_length("secret", secret, SECRET_BYTES)
    limbs = np.frombuffer(b"".join(secrets), "<u2").astype(np.int64)
    coefficients = np.concatenate((limbs[None, :], field.uniform(rng, (threshold - 1, limbs.size))))
    values = field.multiply(_powers(points, threshold), coefficients)
    packed = _to_bytes(values.reshape(len(points), len(secrets), _LIMBS))
    return [[packed[i, s].tobytes() for i in range(len(points))] for s in range(len(secrets))]


def combine(shares: Sequence[Sequence[bytes]], points: Sequence[int]) -> list[bytes]:
    """Recover one 32-byte secret from each row of shares; share j of a row was dealt to points[j].

    Give exactly as many shares as the threshold. The coefficients are computed once for all rows.
    Raises `Invalid` if a share is malformed or the result is not a secret that `split` can have shared:
    that is all this can notice, so a caller checks what it got against a commitment or a public key.
    """
    if not shares:
        return []
    if len(set(points)) != len(points) or any(len(row) != len(points) for row in shares) or min(points) < 1:
        raise ValueError("shares: expected one for each of several distinct points from 1 on")
    values = np.concatenate([_from_bytes_checked(row) for row in shares], axis=1)
    limbs = field.multiply(_lagrange(tuple(points))[None, :], values)[0]
    if limbs.max() > 0xFFFF:
        raise Invalid("shares do not combine to a secret")
    raw = limbs.astype("<u2").tobytes()
    return [raw[i : i + SECRET_BYTES] for i in range(0, len(raw), SECRET_BYTES)]


def malformed(shares: Sequence[bytes]) -> list[int]:
    """Which of `shares`, each of 34 bytes, are not the one encoding of a share: their places."""
    return [int(i) for i in np.flatnonzero((_from_bytes(shares) >= field.P).any(axis=1))]


def _to_bytes(values: Elements) -> NDArray[np.uint8]:
    """(..., 16) elements to (..., 34) bytes."""
    bits = (values[..., None] >> np.arange(_BITS)) & 1
    flat = bits.astype(np.uint8).reshape(*values.shape[:-1], _LIMBS * _BITS)
    return np.packbits(flat, axis=-1, bitorder="little")


def _from_bytes_checked(row: Sequence[bytes]) -> Elements:
    """A row of shares to (len(row), 16) elements."""
    values = _from_bytes(row)
    if values.size and values.max() >= field.P:
        raise Invalid("share: a limb is not a field element")
    return values


def _from_bytes(row: Sequence[bytes]) -> Elements:
    for share in row:
        exact_length("share", share, SHARE_BYTES)
    raw = np.frombuffer(b"".join(row), np.uint8).reshape(len(row), SHARE_BYTES)
    bits = np.unpackbits(raw, axis=-1, bitorder="little").reshape(len(row), _LIMBS, _BITS)
    values: Elements = bits.astype(np.int64) @ (1 << np.arange(_BITS))
    return values
