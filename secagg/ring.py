"""Vectors over Z_2^b for b from 4 to 64, held in the smallest numpy dtype, sent at exactly b bits an entry.

Arithmetic wraps modulo the width of the dtype, which 2^b divides, so a running sum need only be reduced
once, at its end. The packed form is little-endian: entry i occupies bits i*b to (i+1)*b - 1 of the byte
string; what is left of the last byte is zero, so that a vector has one encoding.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secagg.invalid import Invalid, exact_length

MIN_BITS, MAX_BITS = 4, 64
Vector = NDArray[np.unsignedinteger[Any]]
_GROUP = 8  # entries that fill a whole number of bytes, whatever the width
_GROUPS = 1 << 15  # groups converted at a time: the working set stays in cache
_SLACK = 9  # bytes: a window reaches so far beyond the group it begins in, at most


class Ring:
    """The group Z_2^bits in which vectors are masked and summed."""

    __slots__ = ("bits", "dtype", "_window")

    def __init__(self, bits: int) -> None:
        if not isinstance(bits, int) or not MIN_BITS <= bits <= MAX_BITS:
            raise ValueError(f"bits: expected an integer from {MIN_BITS} to {MAX_BITS}, got {bits!r}")
        self.bits = bits
        width = next(w for w in (8, 16, 32, 64) if w >= bits)
        self.dtype: np.dtype[Any] = np.dtype(f"<u{width // 8}")
        # An entry is reached through a little-endian word that begins in the byte of its lowest bit.
        self._window = np.dtype("<u4" if bits + 7 <= 32 else "<u8")

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

    def centred(self, vector: Vector) -> NDArray[np.int64]:
        """A reduced vector as integers from -2^(bits - 1) to 2^(bits - 1) - 1."""
        away = np.uint64(64 - self.bits)
        return (vector.astype(np.uint64) << away).view(np.int64) >> away.astype(np.int64)

    def packed_size(self, dim: int) -> int:
        """Bytes on the wire of a vector of `dim` entries: ceil(dim * bits / 8)."""
        return (dim * self.bits + 7) // 8

    def pack(self, vector: Vector) -> bytes | memoryview:
        """The packed form of a reduced vector.

        The native widths (8, 16, 32, 64) are returned as a view on the array, without a copy.
        """
        if self.native:
            return np.ascontiguousarray(vector, self.dtype).data.cast("B")
        size, groups = self.packed_size(vector.size), -(-vector.size // _GROUP)
        if vector.size % _GROUP:
            vector = np.concatenate((np.asarray(vector, self.dtype), self.zeros(-vector.size % _GROUP)))
        by_group = vector.reshape(-1, _GROUP)
        out = np.zeros(groups * self.bits + _SLACK, np.uint8)
        for first in range(0, groups, _GROUPS):
            part = by_group[first : first + _GROUPS]
            for i, shift, window, beyond in self._windows(out, first, len(part)):
                column = part[:, i].astype(self._window)
                if beyond is not None:
                    beyond |= (column >> self._window.type(64 - shift)).astype(np.uint8)
                column <<= self._window.type(shift)
                window |= column
        return out.data[:size]

    def _windows(
        self, raw: NDArray[np.uint8], first: int, groups: int
    ) -> Iterator[tuple[int, int, Vector, NDArray[np.uint8] | None]]:
        """For each place i in a group: the words in which the i-th entries of some groups begin.

        Yields i, the shift of the entry in its word, the words (views on `raw`, unaligned and one a group),
        and, where an entry is wider than what the shift leaves of 64 bits, the bytes after them.
        """
        for i in range(_GROUP):
            byte, shift = divmod(i * self.bits, 8)
            start, step = first * self.bits + byte, (self.bits,)
            window: Vector = np.ndarray((groups,), self._window, raw.data, start, step)
            beyond = None
            if shift + self.bits > 64:
                beyond = np.ndarray((groups,), np.uint8, raw.data, start + 8, step)
            yield i, shift, window, beyond

    def check_packed(self, data: bytes | memoryview, dim: int) -> None:
        """Refuse `data` unless it is the one encoding of some vector of `dim` entries.

        Raises `Invalid` if the length is wrong or a padding bit is set.
        """
        exact_length("packed vector", data, self.packed_size(dim))
        used = dim * self.bits % 8
        if used and data[-1] >> used:
            raise Invalid("packed vector: padding bits are not zero")

    def add_packed(self, total: Vector, data: bytes | memoryview) -> None:
        """Add a packed vector to `total`, in place; nothing of full length is made.

        Entries wrap modulo the dtype and are left unreduced, as by `prg.accumulate`. Raises `Invalid`, with
        `total` untouched, if `data` is not the encoding of a vector of that size.
        """
        self.check_packed(data, total.size)
        raw = np.frombuffer(data, np.uint8)
        if self.native:
            np.add(total, raw.view(self.dtype), out=total)
            return
        inside = min(total.size // _GROUP, max(0, raw.size - _SLACK) // self.bits)
        self._add_groups(total[: inside * _GROUP], raw)
        rest = total[inside * _GROUP :]
        if rest.size:  # whose windows would reach beyond the data
            groups = -(-rest.size // _GROUP)
            padded, last = np.zeros(groups * self.bits + _SLACK, np.uint8), self.zeros(groups * _GROUP)
            tail = raw[inside * self.bits :]
            padded[: tail.size] = tail
            self._add_groups(last, padded)
            np.add(rest, last[: rest.size], out=rest)

    def _add_groups(self, total: Vector, raw: NDArray[np.uint8]) -> None:
        by_group = total.reshape(-1, _GROUP)
        for first in range(0, len(by_group), _GROUPS):
            part = by_group[first : first + _GROUPS]
            for i, shift, window, beyond in self._windows(raw, first, len(part)):
                entries = np.empty(len(part), self.dtype)
                # Above the entry in its word are multiples of 2^bits: gone when the sum is reduced.
                np.right_shift(window, self._window.type(shift), out=entries, casting="unsafe")
                if beyond is not None:
                    entries |= beyond.astype(self.dtype) << self.dtype.type(64 - shift)
                column = part[:, i]
                np.add(column, entries, out=column)

    def unpack(self, data: bytes | memoryview, dim: int) -> Vector:
        """The vector of `dim` entries that `data` encodes; `Invalid` if it encodes none."""
        vector = self.zeros(dim)
        self.add_packed(vector, data)
        self.reduce(vector)
        return vector
