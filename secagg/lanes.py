"""Lanes: many small integers in one large one, so far apart that sums of them do not meet.

Each value is given so many bits that no sum of as many vectors, with as large weights, as were declared can
reach the next. What it does not protect against: values that are larger than was declared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secagg.invalid import Invalid
from secagg.ring import MAX_BITS, MIN_BITS, Ring


@dataclass(frozen=True, slots=True)
class Lanes:
    """How vectors of integers share plaintexts: `width` bits a value, `count` values a plaintext.

    Value i is in plaintext i // count, from bit (i % count) * width on. No sum can reach the next lane if
    it is below 2^width: see `fitting`.
    """

    width: int
    count: int

    @classmethod
    def fitting(cls, plaintext_bits: int, bound: int, clients: int, weight: int = 1) -> Lanes:
        """Lanes for sums of at most so many vectors of values below `bound`, each times at most `weight`.

        In plaintexts of so many bits at most (one less than a modulus has). Raises `ValueError` where no lane
        is wide enough: 64 bits is the widest.
        """
        for name, value in (("bound", bound - 1), ("clients", clients), ("weight", weight)):
            if value < 1:
                raise ValueError(f"{name}: expected more, got {value}")
        width = max(MIN_BITS, (clients * weight * (bound - 1)).bit_length())
        if width > min(MAX_BITS, plaintext_bits):
            raise ValueError(
                f"lanes: {clients} clients of values below {bound} and weights to {weight} need {width} bits "
                f"a value; {min(MAX_BITS, plaintext_bits)} are available"
            )
        return cls(width, plaintext_bits // width)

    def plaintexts(self, dim: int) -> int:
        """How many plaintexts hold so many values."""
        return -(-dim // self.count)

    def pack(self, values: NDArray[Any]) -> list[int]:
        """Plaintexts of values that are all from 0 to 2^width - 1; `ValueError` for others."""
        values = np.asarray(values)
        if values.ndim != 1 or values.dtype.kind not in "iu":
            raise ValueError(
                f"values: expected integers in one dimension, got {values.dtype} of shape {values.shape}; "
                "quantise floats first"
            )
        if values.size and (int(values.min()) < 0 or int(values.max()) >> self.width):
            raise ValueError(f"values: expected them from 0 to 2^{self.width} - 1")
        rows, ring = self.plaintexts(values.size), Ring(self.width)
        padded = np.zeros((rows, self._padded), ring.dtype)
        flat = np.zeros(rows * self.count, ring.dtype)
        flat[: values.size] = values
        padded[:, : self.count] = flat.reshape(rows, self.count)
        data, size = bytes(ring.pack(padded.reshape(-1))), self._padded * self.width // 8
        return [int.from_bytes(data[i : i + size], "little") for i in range(0, rows * size, size)]

    def unpack(self, plaintexts: Sequence[int], dim: int, *, strict: bool = True) -> NDArray[Any]:
        """The `dim` values in plaintexts; `Invalid` if there is more in them, which else is left out."""
        if len(plaintexts) != self.plaintexts(dim):
            raise Invalid(f"plaintexts: expected {self.plaintexts(dim)}, got {len(plaintexts)}")
        all_lanes = (1 << self.count * self.width) - 1
        if strict and any(not 0 <= m <= all_lanes for m in plaintexts):
            raise Invalid("plaintext: expected nothing above its lanes")
        size, ring = self._padded * self.width // 8, Ring(self.width)
        data = b"".join(int(m & all_lanes).to_bytes(size, "little") for m in plaintexts)
        lanes = ring.unpack(data, len(plaintexts) * self._padded).reshape(-1, self._padded)[:, : self.count]
        found = lanes.reshape(-1)
        if strict and found[dim:].any():
            raise Invalid("plaintext: expected nothing beyond the last value")
        return found[:dim]

    @property
    def _padded(self) -> int:
        """Lanes of which a plaintext is a whole number of bytes."""
        return -(-self.count // 8) * 8
