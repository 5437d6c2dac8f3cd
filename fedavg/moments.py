"""Mean and standard deviation of every column over all hospitals, through secure sums alone.

A column's mean takes two sums. First each hospital marks the power of two that covers its largest absolute
value; the sum of the marks tells how many hospitals are at each power, and the largest is the public
range. Then each adds its number of records and, scaled by that range to fixed point, its sum of values.
The deviation is the root of the mean, found the same way, of the squared distances from the mean.

All four are over the same hospitals, or there is no result. The server learns those four sums and nothing
of any one hospital beyond them. What the sums themselves tell (how many hospitals need which range, the
total count) it does learn.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fedavg.params import Floats
from fedavg.round import Aggregator
from protocols.errors import Aborted

_LOWEST, _HIGHEST = -130, 130  # powers of two told apart
_LARGEST = 2.0**64  # so that squared distances stay within them
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
    more than `max_records` (public) records. A mean is right to 2^-24 of the column's range, a variance
    to 2^-24 of its largest squared distance plus the square of the mean's error; a deviation below 2^-20
    of the range counts as 0. Rounds 0 to 3 of the aggregator.

    Raises `Aborted` if a sum fails, `ValueError` for a table that cannot be used.
    """
    if not 1 <= max_records < 1 << 32:
        raise ValueError(f"max_records: expected 1 to 2^32 - 1, got {max_records}")
    columns = {_check(name, table, max_records) for name, table in tables.items()}
    if len(columns) != 1:
        raise ValueError(f"tables: expected the same number of columns everywhere, got {sorted(columns)}")
    sums, scale, included = _sums(tables, aggregate, max_records, 0, counting=True)
    count = int(sums[-1])
    mean = sums[:-1] / count
    squares = {name: (table - mean) ** 2 for name, table in tables.items()}
    distances, _, again = _sums(squares, aggregate, max_records, 2, counting=False)
    if again != included:
        raise Aborted("sum", "the sums are over different hospitals: some dropped out in between")
    deviation = np.sqrt(np.maximum(distances / count, 0.0))
    deviation[deviation < scale * 2.0**-20] = 0.0  # what the mean's own rounding makes of a constant
    return Moments(count, mean, deviation)


def _sums(
    tables: Mapping[str, Floats], aggregate: Aggregator, max_records: int, first: int, counting: bool
) -> tuple[Floats, Floats, tuple[str, ...]]:
    """Sum and range of each column, and who is in them; takes the rounds `first` and `first` + 1.

    `counting` appends the number of records to the sums. That is asked for only once: two counts over
    different hospitals would differ by the records of one.
    """
    scale, ranged = _ranges(tables, aggregate, first)
    unit, vectors = 1 << _FRACTION_BITS, {}
    for name, table in tables.items():
        scaled = table / scale
        if name in ranged and np.abs(scaled).max() > 1.0:
            raise ValueError(f"table of {name}: values beyond the range that was found")
        sums = np.rint(np.clip(scaled, -1.0, 1.0).sum(axis=0) * unit).astype(np.int64) + max_records * unit
        vectors[name] = np.append(sums, len(table)) if counting else sums
    result = aggregate(vectors, 2 * max_records * unit + 1, first + 1)
    if isinstance(result, Aborted):
        raise result
    if set(result.included) != set(ranged):
        raise Aborted("sum", "the sums are over different hospitals: some dropped out in between")
    total = [int(v) for v in result.sum]
    offset = len(result.included) * max_records * unit
    columns = len(scale)
    sums = np.array([(v - offset) / unit for v in total[:columns]]) * scale
    return np.append(sums, total[columns:]), scale, result.included


def _ranges(
    tables: Mapping[str, Floats], aggregate: Aggregator, number: int
) -> tuple[Floats, tuple[str, ...]]:
    """For each column, the least power of two that no absolute value of the included exceeds; and those."""
    powers, marks, width = _HIGHEST - _LOWEST + 1, {}, 0
    for name, table in tables.items():
        largest = np.abs(table).max(axis=0)
        exponent = np.where(largest > 0, np.frexp(largest)[1], _LOWEST)
        width = len(largest)
        mark = np.zeros((width, powers), np.int64)
        mark[np.arange(width), np.clip(exponent, _LOWEST, _HIGHEST) - _LOWEST] = 1
        marks[name] = mark.ravel()
    result = aggregate(marks, 2, number)
    if isinstance(result, Aborted):
        raise result
    seen = np.asarray(result.sum).reshape(width, powers) > 0
    highest = powers - 1 - seen[:, ::-1].argmax(axis=1)
    ranges: Floats = np.ldexp(np.ones(width), highest + _LOWEST)
    return ranges, result.included


def _check(name: str, table: Floats, max_records: int) -> int:
    if table.ndim != 2 or table.dtype != np.float64:
        raise ValueError(
            f"table of {name}: expected float64 of two dimensions, got {table.dtype}, {table.shape}"
        )
    if not 1 <= len(table) <= max_records:
        raise ValueError(f"table of {name}: expected 1 to {max_records} records, got {len(table)}")
    if not np.isfinite(table).all() or np.abs(table).max(initial=0.0) >= _LARGEST:
        raise ValueError(f"table of {name}: expected finite numbers below 2^64")
    return int(table.shape[1])
