"""Floats to integers on a grid, without bias: stochastic rounding from a cryptographic stream.

A value between two grid points goes up with a probability equal to its distance from the lower one, so
its expectation is the value itself, and the error is below one step for every entry. The stream is
cryptographic because rounding will be part of the privacy mechanism.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedavg.params import Floats
from secagg.randomness import Rng


def round_stochastically(values: Floats, rng: Rng) -> NDArray[np.int64]:
    """Each value's floor, or with probability its fractional part, one more.

    Values lie between -2^52 and 2^52. The probability is right to 2^-53; an integer stays what it is.
    Takes 8 bytes of `rng` a value.
    """
    floor = np.floor(values)
    uniform = (np.frombuffer(rng(8 * values.size), "<u8") >> np.uint64(11)).astype(np.float64) * 2.0**-53
    rounded: NDArray[np.int64] = floor.astype(np.int64) + (uniform < values - floor)
    return rounded
