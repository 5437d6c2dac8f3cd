"""A model's arrays and one flat vector: there and back, dtypes and shapes restored exactly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = list[NDArray[Any]]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Layout:
    """The shapes and dtypes of a model's arrays, in order."""

    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[np.dtype[Any], ...]

    @classmethod
    def of(cls, arrays: Sequence[Any]) -> Layout:
        """The layout of `arrays`. Raises `ValueError` unless all are of floats."""
        given = [np.asarray(a) for a in arrays]
        for i, array in enumerate(given):
            if array.dtype.kind != "f":
                raise ValueError(f"array {i}: expected floats, got {array.dtype}")
        return cls(tuple(a.shape for a in given), tuple(a.dtype for a in given))

    @property
    def dim(self) -> int:
        """Entries of the flat vector."""
        return sum(int(np.prod(shape)) for shape in self.shapes)

    def flatten(self, arrays: Sequence[Any]) -> Floats:
        """Arrays of this layout as one float64 vector of `dim` entries."""
        found = Layout.of(arrays)
        if found != self:
            raise ValueError(f"arrays: expected {self.describe()}; got {found.describe()}")
        parts = [np.asarray(a, np.float64).ravel() for a in arrays]
        return np.concatenate(parts) if parts else np.zeros(0)

    def restore(self, vector: Floats, kept: Sequence[Any] = ()) -> Arrays:
        """The arrays that `flatten` made `vector` of, each in its own dtype."""
        if vector.shape != (self.dim,):
            raise ValueError(f"vector: expected {self.dim} entries, got shape {vector.shape}")
        arrays, start = [], 0
        for shape, dtype in zip(self.shapes, self.dtypes, strict=True):
            size = int(np.prod(shape))
            arrays.append(vector[start : start + size].reshape(shape).astype(dtype))
            start += size
        return arrays

    def describe(self) -> str:
        """Shapes and dtypes for an error message."""
        return ", ".join(f"{d}{list(s)}" for s, d in zip(self.shapes, self.dtypes, strict=True))
