"""Mean and standard deviation of every column over all hospitals, through secure sums alone.

Two sums. First each hospital marks, for each column, the power of two that covers its largest absolute
value; the sum of the marks tells how many hospitals are at each power, and the largest is the public
range. Then each adds its number of records and, scaled by that range to fixed point, its sums of values
and of squares. The server learns those two sums and nothing of any one hospital beyond them. What the
sums themselves tell (the range, the total count) it does learn.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fedavg.params import Floats
from fedavg.round import Aggregator
from protocols.errors import Aborted

_LOWEST, _HIGHEST = -32, 64  # powers of two told apart
_FRACTION_BITS = 24


@dataclass(frozen=True, slots=True)
class Moments:
    """`count` records; `mean` and `deviation` (population, 0 for a constant) of each column."""

    count: int
    mean: Floats
    deviation: Floats

    def standardise(self, x: Floats) -> Floats:
        """Columns of mean 0 and deviation 1; a constant column becomes 0."""
        return (x - self.mean) / np.where(self.deviation > 0, self.deviation, 1.0)

    def restore(self, x: Floats) -> Floats:
        """The inverse of `standardise`."""
        return x * np.where(self.deviation > 0, self.deviation, 1.0) + self.mean


def moments(tables: Mapping[str, Floats], aggregate: Aggregator, max_records: int = 10_000) -> Moments:
    """Moments of the columns of all hospitals' tables together.

    `tables` are name -> float64 (records, columns), finite and below 2^64 in absolute value; nobody has
    more than `max_records` (public) records. Means and mean squares are right to 2^-24 of the square of
    the column's range. Raises `Aborted` if a sum fails, `ValueError` for a table that cannot be used.
    """
    columns = {_check(name, table, max_records) for name, table in tables.items()}
    if len(columns) != 1:
        raise ValueError(f"tables: expected the same number of columns everywhere, got {sorted(columns)}")
    width = columns.pop()
    scale = _ranges(tables, aggregate, width)
    unit = 1 << _FRACTION_BITS
    vectors = {}
    for name, table in tables.items():
        scaled = table / scale
        sums = np.rint(scaled.sum(axis=0) * unit).astype(np.int64) + max_records * unit
        squares = np.rint((scaled**2).sum(axis=0) * unit).astype(np.int64)
        vectors[name] = np.concatenate(([len(table)], sums, squares))
    result = aggregate(vectors, 2 * max_records * unit + 1, 1)
    if isinstance(result, Aborted):
        raise result
    total = [int(v) for v in result.sum]
    count = total[0]
    offset = len(result.included) * max_records * unit
    mean = np.array([(v - offset) / unit for v in total[1 : 1 + width]]) / count
    square = np.array([v / unit for v in total[1 + width :]]) / count
    deviation = np.sqrt(np.maximum(square - mean**2, 0.0))
    deviation[deviation < 2.0 ** (-_FRACTION_BITS / 2 + 2)] = 0.0  # below what fixed point can tell from zero
    return Moments(count, mean * scale, deviation * scale)


def _ranges(tables: Mapping[str, Floats], aggregate: Aggregator, width: int) -> Floats:
    powers = _HIGHEST - _LOWEST + 1
    marks = {}
    for name, table in tables.items():
        _, exponent = np.frexp(np.abs(table).max(axis=0))
        place = np.clip(exponent, _LOWEST, _HIGHEST) - _LOWEST
        mark = np.zeros((width, powers), np.int64)
        mark[np.arange(width), place] = 1
        marks[name] = mark.ravel()
    result = aggregate(marks, 2, 0)
    if isinstance(result, Aborted):
        raise result
    seen = np.asarray(result.sum).reshape(width, powers) > 0
    highest = powers - 1 - seen[:, ::-1].argmax(axis=1)
    ranges: Floats = np.ldexp(np.ones(width), highest + _LOWEST)
    return ranges


def _check(name: str, table: Floats, max_records: int) -> int:
    if table.ndim != 2 or table.dtype != np.float64:
        raise ValueError(
            f"table of {name}: expected float64 of two dimensions, got {table.dtype}, {table.shape}"
        )
    if not 1 <= len(table) <= max_records:
        raise ValueError(f"table of {name}: expected 1 to {max_records} records, got {len(table)}")
    if not np.isfinite(table).all() or np.abs(table).max(initial=0.0) >= 2.0**_HIGHEST:
        raise ValueError(f"table of {name}: expected finite numbers below 2^{_HIGHEST}")
    return int(table.shape[1])
