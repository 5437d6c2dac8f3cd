"""Floats to integers on a grid, without bias: stochastic rounding from a cryptographic stream.

A value between two grid points goes up with a probability equal to its distance from the lower one, so
its expectation is the value itself, and the error is below one step for every entry.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedavg.params import Floats
from secagg.labels import Label
from secagg.randomness import Rng, seeded

_CHUNK = 1 << 14


def round_stochastically(values: Floats, rng: Rng) -> NDArray[np.int64]:
    """Each value's floor, or with probability its fractional part, one more.

    `values` have one dimension and lie between -2^52 and 2^52. The probability is right to 2^-53; an integer
    stays what it is. Takes 32 bytes of `rng`, and from them 8 bytes of its stream a value.
    """
    rounded = np.empty(values.size, np.int64)
    stream = seeded(Label.ROUNDING.value.encode(), rng(32))
    for start in range(0, values.size, _CHUNK):  # what is worked on stays in the cache
        part = values[start : start + _CHUNK]
        out = rounded[start : start + _CHUNK]
        floor = np.floor(part)
        uniform = (np.frombuffer(stream(8 * part.size), "<u8") >> np.uint64(11)).astype(np.float64)
        uniform *= 2.0**-53
        out[:] = floor
        out += uniform < part - floor
    return rounded
