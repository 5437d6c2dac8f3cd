"""Bounding an update: its L2 norm, or each of its entries, is brought down to the clipping norm."""

from __future__ import annotations

from math import sqrt

import numpy as np

from fedavg.params import Floats


def clip_l2(update: Floats, clipping_norm: float) -> Floats:
    """`update` scaled to an L2 norm of at most `clipping_norm`; unchanged if it is below.

    Raises `ValueError` for NaN or infinity: clipping would turn them into nonsense silently.
    """
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        squares = float(np.dot(update, update))
    if 1e-200 < squares < 1e200:  # far from where squares underflow; NaN and infinity are not in between
        norm = sqrt(squares)
        return update if norm <= clipping_norm else update * (clipping_norm / norm)
    _check_finite(update)
    # Scaling by the largest entry first keeps squares and norm from overflowing.
    largest = float(np.abs(update).max(initial=0.0))
    if largest == 0.0:
        return update
    scaled = update / largest
    norm = float(np.linalg.norm(scaled))
    return update if largest * norm <= clipping_norm else scaled * (clipping_norm / norm)


def clip_max(update: Floats, clipping_norm: float) -> Floats:
    """`update` with each entry cut to at most `clipping_norm` in absolute value.

    Raises `ValueError` for NaN or infinity.
    """
    _check_finite(update)
    clipped: Floats = np.clip(update, -clipping_norm, clipping_norm)
    return clipped


def _check_finite(update: Floats) -> None:
    if not np.isfinite(update).all():
        bad = int(np.flatnonzero(~np.isfinite(update))[0])
        raise ValueError(f"update: expected finite numbers, entry {bad} is {update[bad]}")
