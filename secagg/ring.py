"""Vectors over Z_2^b for b from 8 to 64, held in the smallest numpy dtype, sent at exactly b bits an entry.

Arithmetic wraps modulo the width of the dtype, which 2^b divides, so a running sum need only be reduced
once, at its end. The packed form is little-endian: entry i occupies bits i*b to (i+1)*b - 1 of the byte
string; what is left of the last byte is zero, so that a vector has one encoding.
"""

from __future__ import annotations

from math import gcd
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secagg.invalid import Invalid, exact_length

Vector = NDArray[np.unsignedinteger[Any]]
_ROWS = 2048  # groups converted at a time: the working set stays in cache


class Ring:
    """The group Z_2^bits in which vectors are masked and summed."""

    __slots__ = ("bits", "dtype", "_group", "_words")

    def __init__(self, bits: int) -> None:
        if not isinstance(bits, int) or not 8 <= bits <= 64:
            raise ValueError(f"bits: expected an integer from 8 to 64, got {bits!r}")
        self.bits = bits
        width = next(w for w in (8, 16, 32, 64) if w >= bits)
        self.dtype: np.dtype[Any] = np.dtype(f"<u{width // 8}")
        # _group entries fill exactly _words 64-bit words: the period of the packed form.
        self._group = 64 // gcd(bits, 64)
        self._words = bits // gcd(bits, 64)

    @property
    def native(self) -> bool:
        """Whether the packed form is simply the array's own bytes."""
        return self.dtype.itemsize * 8 == self.bits

    def zeros(self, dim: int) -> Vector:
        """A vector of `dim` zeros in the ring's dtype."""
        return np.zeros(dim, self.dtype)

    def reduce(self, vector: Vector) -> None:
        """Bring every entry below 2^bits, in place."""
        if not self.native:
            np.bitwise_and(vector, self.dtype.type((1 << self.bits) - 1), out=vector)

    def packed_size(self, dim: int) -> int:
        """Bytes on the wire of a vector of `dim` entries: ceil(dim * bits / 8)."""
        return (dim * self.bits + 7) // 8

    def pack(self, vector: Vector) -> bytes | memoryview:
        """The packed form of a reduced vector.

        The native widths (8, 16, 32, 64) are returned as a view on the array, without a copy.
        """
        if self.native:
            return np.ascontiguousarray(vector, self.dtype).data.cast("B")
        size = self.packed_size(vector.size)
        groups = -(-vector.size // self._group)
        out = np.zeros(groups * self._words, "<u8")
        for row in range(0, groups, _ROWS):
            rows = min(_ROWS, groups - row)
            part = vector[row * self._group : (row + rows) * self._group]
            columns = np.zeros(rows * self._group, np.uint64)
            columns[: part.size] = part
            columns = np.ascontiguousarray(columns.reshape(rows, self._group).T)
            words = np.zeros((self._words, rows), np.uint64)
            for i in range(self._group):
                word, shift = divmod(i * self.bits, 64)
                words[word] |= columns[i] << np.uint64(shift)
                if shift + self.bits > 64:
                    words[word + 1] |= columns[i] >> np.uint64(64 - shift)
            out[row * self._words : (row + rows) * self._words].reshape(rows, self._words)[:] = words.T
        return out.data.cast("B")[:size]

    def check_packed(self, data: bytes | memoryview, dim: int) -> None:
        """Refuse `data` unless it is the one encoding of some vector of `dim` entries.

        Raises `Invalid` if the length is wrong or a padding bit is set.
        """
        exact_length("packed vector", data, self.packed_size(dim))
        used = dim * self.bits % 8
        if used and data[-1] >> used:
            raise Invalid("packed vector: padding bits are not zero")

    def add_packed(self, total: Vector, data: bytes | memoryview) -> None:
        """Add a packed vector to `total`, in place, modulo the dtype; nothing of full length is made.

        Raises `Invalid`, with `total` untouched, if `data` is not the encoding of a vector of that size.
        """
        self.check_packed(data, total.size)
        if self.native:
            np.add(total, np.frombuffer(data, self.dtype), out=total)
            return
        group, per_group = self._group, self._words * 8
        for start in range(0, total.size, _ROWS * group):
            part = total[start : start + _ROWS * group]
            rows = -(-part.size // group)
            raw = data[start // group * per_group : (start // group + rows) * per_group]
            if len(raw) < rows * per_group:  # the last group may be cut short
                raw = bytes(raw).ljust(rows * per_group, b"\0")
            words = np.ascontiguousarray(np.frombuffer(raw, "<u8").reshape(rows, self._words).T)
            entries = np.empty((rows, group), self.dtype)
            keep = np.uint64((1 << self.bits) - 1)
            for i in range(group):
                word, shift = divmod(i * self.bits, 64)
                column = words[word] >> np.uint64(shift)
                if shift + self.bits > 64:
                    column |= words[word + 1] << np.uint64(64 - shift)
                entries[:, i] = column & keep
            np.add(part, entries.reshape(-1)[: part.size], out=part)

    def unpack(self, data: bytes | memoryview, dim: int) -> Vector:
        """The vector of `dim` entries that `data` encodes; `Invalid` if it encodes none."""
        vector = self.zeros(dim)
        self.add_packed(vector, data)
        return vector
