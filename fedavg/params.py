"""A model's arrays and one flat vector: there and back, dtypes and shapes restored exactly.

Floats are averaged. Integers and booleans are kept as the model went out with them: a counter, such as
batch normalisation's `num_batches_tracked`, has no mean across sites that would mean anything, and its
size would use up the clipping norm of every other entry.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

Arrays = list[NDArray[Any]]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Layout:
    """The shapes and dtypes of a model's arrays, in order."""

    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[np.dtype[Any], ...]

    @classmethod
    def of(cls, arrays: Iterable[Any]) -> Layout:
        """The layout of `arrays`. Raises `ValueError` unless all are of floats, integers or booleans."""
        given = [np.asarray(a) for a in arrays]
        for i, array in enumerate(given):
            is_averaged(array.dtype, f"array {i}")
        return cls(tuple(a.shape for a in given), tuple(a.dtype for a in given))

    @property
    def dim(self) -> int:
        """Entries of the flat vector: those that are averaged."""
        return sum(_size(shape) for shape, dtype in self._entries() if is_averaged(dtype))

    def flatten(self, arrays: Iterable[Any]) -> Floats:
        """The floats among arrays of this layout as one float64 vector of `dim` entries.

        Raises `ValueError` for another layout, and for a `longdouble` that no float64 can hold.
        """
        given = [np.asarray(a) for a in arrays]
        found = Layout.of(given)
        if found != self:
            raise ValueError(f"arrays: expected {self.describe()}; got {found.describe()}")
        parts = [
            (array if array.dtype == np.float64 else narrow(array, np.float64, f"array {i}")).ravel()
            for i, array in enumerate(given)
            if is_averaged(array.dtype)
        ]
        return np.concatenate(parts) if parts else np.zeros(0)

    def restore(self, vector: Floats, kept: Iterable[Any] | None = None) -> Arrays:
        """New arrays of this layout: floats from `vector`, each in its own dtype, others from `kept`.

        `kept` are all arrays of the model as it went out; needed only if some are not floats. Raises
        `ValueError` for a wrong length or layout, and for a value beyond what an array's dtype can hold.
        """
        if vector.shape != (self.dim,):
            raise ValueError(f"vector: expected {self.dim} entries, got shape {vector.shape}")
        before = None if kept is None else [np.asarray(a) for a in kept]
        if before is not None and (found := Layout.of(before)) != self:
            raise ValueError(f"kept: expected {self.describe()}; got {found.describe()}")
        arrays, start = [], 0
        for i, (shape, dtype) in enumerate(self._entries()):
            if is_averaged(dtype):
                part = vector[start : start + _size(shape)].reshape(shape)
                arrays.append(narrow(part, dtype, f"array {i}"))
                start += part.size
            elif before is not None:
                arrays.append(before[i].copy())
            else:
                raise ValueError(
                    f"array {i} is of {dtype}, which is not averaged: expected `kept`, the arrays of the "
                    "model as it went out"
                )
        return arrays

    def _entries(self) -> Iterable[tuple[tuple[int, ...], np.dtype[Any]]]:
        return zip(self.shapes, self.dtypes, strict=True)

    def describe(self) -> str:
        """Shapes and dtypes for an error message."""
        return ", ".join(f"{d}{list(s)}" for s, d in self._entries())


def is_averaged(dtype: np.dtype[Any], where: str = "array") -> bool:
    """Whether arrays of `dtype` are averaged (floats) or kept (integers, booleans).

    Raises `ValueError` for any other dtype, such as complex numbers, objects or strings.
    """
    if dtype.kind not in "fiub":
        raise ValueError(f"{where}: expected floats, integers or booleans, got {dtype}")
    return dtype.kind == "f"


def narrow(values: NDArray[Any], dtype: DTypeLike, where: str) -> NDArray[Any]:
    """Floats in a new array of `dtype`; NaN and infinity stay what they are.

    Raises `ValueError` where a finite value would become infinite.
    """
    with np.errstate(over="ignore"):  # it is an error here, not a warning
        result = values.astype(dtype, order="C")
    if result.itemsize < values.itemsize and (np.isinf(result) & np.isfinite(values)).any():
        raise ValueError(
            f"{where}: a value is beyond the largest {result.dtype}, {np.finfo(result.dtype).max}"
        )
    return result


def _size(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape))
