"""Statistics over the tables of several sites (hospitals), of which the server learns only sums over sites.

A query is public, and one round: each site answers it with a vector of non-negative integers, the
aggregator sums them, and `finish` reads the sum. Ranges, edges and lists of categories come from whoever
asks, so nothing about the data is spent on finding them. Records in which a column is empty are left out
of that column's statistics.

Each site protects its own small groups before anything leaves it. A cell that counts 1 to `min_cell` - 1
records is sent as 0, and a mean or variance over fewer than `min_cell` contributes nothing; the server
cannot tell this from a site without such records. Totals are of what was sent, so no margin of a table
gives a hidden cell away, and small counts come out too low, never too high.

What this does not protect against:

- Differences. Sums are exact, without noise. Two queries whose records differ by a few (a `where` and its
  complement, edges moved by one, the same query over other sites) differ by what those few are; a count
  less the cells of a histogram is how many were hidden or missing, in the sum over all sites; a mean over
  a narrow range counts those above it, however few. The budget of each site bounds how many such
  questions are answered, not what a clever set of them finds.
- Sites that collude: those that know all other contributions know the one that is left.
- A group that only one site has: the sum over all sites is then that site's, if at least `min_cell`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import accumulate, pairwise
from math import ceil, sqrt
from typing import Any, assert_never

import msgspec
import numpy as np
from msgspec.structs import force_setattr
from numpy.typing import NDArray

from fedavg.budget import Budget
from fedavg.params import Floats
from fedavg.round import Aggregator
from fedavg.table import Table
from protocols.errors import Aborted, RemoteError
from protocols.session import hash_model
from protocols.wire import Codec, check_text

MAX_CELLS = 1 << 16
MAX_QUERY_BYTES = 1 << 24  # more than the longest names in the largest table
MAX_RECORDS = (1 << 32) - 1
MIN_CELL = 5
OTHER = "(other)"
_LARGEST, _NARROWEST = 1e100, 1e-100  # far from where squares overflow or steps underflow
_FINEST_BITS = 32
_ROOM_BITS = 53  # of 63 for a sum of squares, 10 are for the number of sites

# ------------------------------------------------------------------------------------------- queries


class _Query(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag=str.lower
):
    """What all queries have: `where` a column equals a text, for those records only."""

    where: tuple[str, str] | None = None

    def __post_init__(self) -> None:
        if self.where is not None:
            where = _sequence("where", self.where)
            if len(where) != 2:
                raise ValueError(f"where: expected a column and a value, got {len(where)} texts")
            check_text("where: column", where[0], 1)
            _check_value("where: value", where[1])
            force_setattr(self, "where", where)


class Count(_Query, frozen=True):
    """How many records."""


class _Ranged(_Query, frozen=True):
    column: str
    low: float
    high: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check_text("column", self.column, 1)
        low, high = _numbers("range", (self.low, self.high))
        force_setattr(self, "low", low)
        force_setattr(self, "high", high)


class Mean(_Ranged, frozen=True):
    """The mean of a numeric column, values beyond `low` to `high` taken as the nearer of the two."""


class Variance(_Ranged, frozen=True):
    """Mean, variance (of the population) and deviation of a numeric column, clipped as for `Mean`."""


class Histogram(_Query, frozen=True):
    """How many values lie in each bin between ascending `edges`, below the first and above the last.

    A bin has its lower edge and not its upper, but for the last, which has both (as in numpy).
    """

    column: str
    edges: tuple[float, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        check_text("column", self.column, 1)
        force_setattr(self, "edges", _numbers("edges", self.edges))


class Quantile(_Ranged, frozen=True):
    """The quantiles `at` (fractions from 0 to 1) of a numeric column, clipped as for `Mean`.

    They are read from one histogram of `bins` equal bins, by linear interpolation within a bin. The
    quantile at q of n values is the k-th smallest, k = ceil(q n), at least 1; it lies in the same bin, so
    it is off by a bin's width at most. That is for the values that were sent: a bin of few at a site is
    hidden, so at small sites fewer bins are closer to the truth.
    """

    at: tuple[float, ...] = (0.25, 0.5, 0.75)
    bins: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        at = _floats("at", self.at)
        if not at or not all(0 <= q <= 1 for q in at):
            raise ValueError("at: expected one or more fractions from 0 to 1")
        force_setattr(self, "at", at)
        equal_edges(self.low, self.high, self.bins)

    @property
    def edges(self) -> tuple[float, ...]:
        """Of the `bins` equal bins."""
        return equal_edges(self.low, self.high, self.bins)


class Contingency(_Query, frozen=True):
    """How many records have each pair of values of two columns, compared as text.

    Values that are not listed count in a last cell of their row or column.
    """

    row: str
    column: str
    row_values: tuple[str, ...]
    column_values: tuple[str, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        for what in ("row", "column"):
            check_text(what, getattr(self, what), 1)
            values = _sequence(f"{what}_values", getattr(self, f"{what}_values"))
            for value in values:
                _check_value(f"{what}_values", value)
            if not values or len(set(values)) != len(values):
                raise ValueError(f"{what}_values: expected one or more different texts")
            force_setattr(self, f"{what}_values", values)
        if length(self) > MAX_CELLS:
            raise ValueError(f"contingency: expected at most {MAX_CELLS} cells, got {length(self)}")


Query = Count | Mean | Variance | Histogram | Quantile | Contingency

_CODEC: Codec[Query] = Codec(Query)


def equal_edges(low: float, high: float, bins: int) -> tuple[float, ...]:
    """The `bins` + 1 edges of equal bins from `low` to `high`; `ValueError` if there are none."""
    _check_integer("bins", bins, 1, MAX_CELLS - 1)
    low, high = _numbers("range", (low, high))
    return _numbers("range in so many bins", np.linspace(low, high, bins + 1).tolist())


def to_bytes(query: Query) -> bytes:
    """A query's one encoding: a version byte and MessagePack."""
    return _CODEC.encode(query)


def from_bytes_checked(data: bytes) -> Query:
    """The query that `data` encodes; `ValueError` for anything else, or another encoding of one."""
    try:
        return _CODEC.decode(data, MAX_QUERY_BYTES)
    except RemoteError as error:
        raise ValueError(f"query: {error}") from None


def describe(query: Query, what: str = "") -> str:
    """A query in words; `what` takes the place of the statistic's name."""
    match query:
        case Count():
            words = "number of records"
        case Mean() | Variance() | Quantile():
            name = what or type(query).__name__.lower()
            words = f"{name} of {query.column} in {query.low:g} to {query.high:g}"
        case Histogram():
            words = f"histogram of {query.column}"
        case Contingency():
            words = f"{query.row} by {query.column}"
        case _:
            assert_never(query)
    return words if query.where is None else f"{words}, where {query.where[0]} is {query.where[1]}"


def length(query: Query) -> int:
    """Entries of an answer."""
    match query:
        case Count():
            return 1
        case Mean():
            return 2
        case Variance():
            return 3
        case Histogram():
            return len(query.edges) + 1
        case Quantile():
            return query.bins
        case Contingency():
            return (len(query.row_values) + 1) * (len(query.column_values) + 1)
    assert_never(query)


def bound(query: Query, max_records: int) -> int:
    """Every entry of an answer is below this, at a site of at most `max_records` records.

    For all queries, 1000 times the bound fits 63 bits. Raises `ValueError` unless `max_records` is an
    integer from 1 to 2^32 - 1.
    """
    match query:
        case Mean():
            return max_records * _points(query, max_records) + 1
        case Variance():
            return max_records * _points(query, max_records) ** 2 + 1
    _check_integer("max_records", max_records, 1, MAX_RECORDS)
    return max_records + 1


def question_hash(query: Query, max_records: int) -> bytes:
    """32 bytes for the session's `model_hash`: sites that were asked different things get no sum."""
    _check_integer("max_records", max_records, 1, MAX_RECORDS)
    return hash_model(np.frombuffer(to_bytes(query), np.uint8), np.array([max_records], "<u8"))


def _points(query: Mean | Variance, max_records: int) -> int:
    """Steps of the grid from `low` to `high` on which values travel: as many as a sum has room for."""
    _check_integer("max_records", max_records, 1, MAX_RECORDS)
    room = _ROOM_BITS - max_records.bit_length()
    return 1 << (room // 2 if isinstance(query, Variance) else min(room, _FINEST_BITS))


# ------------------------------------------------------------------------------------- at a site


@dataclass(frozen=True, slots=True)
class Holding:
    """What a site holds and its own rules: cells below `min_cell` records are hidden (1 hides none)."""

    table: Table
    min_cell: int = MIN_CELL
    budget: Budget = field(default_factory=Budget)

    def __post_init__(self) -> None:
        _check_integer("min_cell", self.min_cell, 1, MAX_RECORDS)


def answer(query: Query, holding: Holding, max_records: int) -> NDArray[np.int64]:
    """A site's answer: `length(query)` integers from 0 to `bound(query, max_records)` - 1.

    The query is charged to the site's budget first, whatever comes of it. Counts are one entry a cell. A
    mean is a count and the sum of values on a grid of `low` to `high`, a variance also that of their
    squares.

    Raises `BudgetSpent`, or `ValueError` for a table with more than `max_records` records, without a
    column that is asked for, or with a value in it that is not a number, where one is needed.
    """
    _check_integer("max_records", max_records, 1, MAX_RECORDS)
    table = holding.table
    holding.budget.spend()
    if len(table) > max_records:
        raise ValueError(f"{table.name}: expected at most {max_records} records, got {len(table)}")
    kept = _where(query, table)
    match query:
        case Count():
            cells = np.array([kept.sum()])
        case Mean() | Variance():
            sums = _moments(query, _present(table.numbers(query.column)[kept]), max_records)
            return sums if sums[0] >= holding.min_cell else np.zeros_like(sums)
        case Histogram():
            values = _present(table.numbers(query.column)[kept])
            place = np.searchsorted(query.edges, values, side="right")
            place[values == query.edges[-1]] -= 1
            cells = np.bincount(place, minlength=length(query))
        case Quantile():
            values = np.clip(_present(table.numbers(query.column)[kept]), query.low, query.high)
            place = np.searchsorted(query.edges, values, side="right") - 1
            cells = np.bincount(np.minimum(place, query.bins - 1), minlength=length(query))
        case Contingency():
            rows, there = _categories(table.texts(query.row), query.row_values)
            columns, also = _categories(table.texts(query.column), query.column_values)
            pairs = rows * (len(query.column_values) + 1) + columns
            cells = np.bincount(pairs[kept & there & also], minlength=length(query))
        case _:
            assert_never(query)
    return np.where(cells < holding.min_cell, 0, cells).astype(np.int64)


def _where(query: Query, table: Table) -> NDArray[np.bool_]:
    if query.where is None:
        return np.ones(len(table), np.bool_)
    column, value = query.where
    return np.array([text == value for text in table.texts(column)], np.bool_)


def _present(values: Floats) -> Floats:
    return values[~np.isnan(values)]


def _moments(query: Mean | Variance, values: Floats, max_records: int) -> NDArray[np.int64]:
    points = _points(query, max_records)
    scaled = (np.clip(values, query.low, query.high) - query.low) / (query.high - query.low)
    placed = np.rint(scaled * points).astype(np.int64)
    powers = [np.ones_like(placed), placed, placed**2][: length(query)]
    return np.array([power.sum() for power in powers], np.int64)


def _categories(texts: Sequence[str], listed: tuple[str, ...]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The place of each text in the list, its length for others; and which texts are there at all."""
    places = {value: i for i, value in enumerate(listed)}
    found = np.array([places.get(text, len(listed)) for text in texts], np.int64)
    return found, np.array([text != "" for text in texts], np.bool_)


# ---------------------------------------------------------------------------------- at the server

Rows = list[tuple[str | int | float | None, ...]]
"""A table to show, its heading first; None where there is no number."""

NUMBERS = ("statistic", "value", "off by at most", "values", "sites")
"""The heading of results that are single numbers."""


@dataclass(frozen=True, slots=True)
class Counted:
    """`count` records at `sites` sites, those of sites with fewer than their `min_cell` left out."""

    query: Count
    sites: int
    count: int

    def rows(self) -> Rows:
        """A heading and one row."""
        return [NUMBERS, (describe(self.query), self.count, 0, self.count, self.sites)]


@dataclass(frozen=True, slots=True)
class Average:
    """The `mean` of `count` values, None for none. It is off by `error` at most, in the column's units:
    half a step of the grid, and the last bits of floats."""

    query: Mean
    sites: int
    count: int
    mean: float | None
    error: float

    def rows(self) -> Rows:
        """A heading and one row."""
        return [NUMBERS, (describe(self.query), self.mean, self.error, self.count, self.sites)]


@dataclass(frozen=True, slots=True)
class Spread:
    """`mean`, `variance` (of the population) and `deviation` of `count` values, None for none.

    Mean and deviation are off by `error` at most, as of `Average`, and so the variance by `variance_error`.
    """

    query: Variance
    sites: int
    count: int
    mean: float | None
    variance: float | None
    deviation: float | None
    error: float
    variance_error: float

    def rows(self) -> Rows:
        """A heading and three rows."""
        found = (
            ("mean", self.mean, self.error),
            ("variance", self.variance, self.variance_error),
            ("deviation", self.deviation, self.error),
        )
        return [NUMBERS, *((describe(self.query, n), v, e, self.count, self.sites) for n, v, e in found)]


@dataclass(frozen=True, slots=True)
class Cuts:
    """`values` of the quantiles that were asked for, of `count` values; None for none.

    They are off by `error` at most, the width of a bin (and a last bit), for the values that were sent.
    """

    query: Quantile
    sites: int
    count: int
    values: tuple[float | None, ...]
    error: float

    def rows(self) -> Rows:
        """A heading and a row for each quantile."""
        pairs = zip(self.query.at, self.values, strict=True)
        return [
            NUMBERS,
            *(
                (describe(self.query, f"{q:g}-quantile"), v, self.error, self.count, self.sites)
                for q, v in pairs
            ),
        ]


@dataclass(frozen=True, slots=True)
class Bars:
    """`counts` of the bins between the query's edges, and of values `below` and `above` all of them."""

    query: Histogram
    sites: int
    counts: tuple[int, ...]
    below: int
    above: int

    def rows(self) -> Rows:
        """A heading, a row for each bin, and for what is below and above if there is any."""
        edges = [f"{edge:g}" for edge in self.query.edges]
        rows: Rows = [(self.query.column, "values")]
        rows += [(f"below {edges[0]}", self.below)] if self.below else []
        rows += [(f"{a} to {b}", n) for (a, b), n in zip(pairwise(edges), self.counts, strict=True)]
        return rows + ([(f"above {edges[-1]}", self.above)] if self.above else [])


@dataclass(frozen=True, slots=True)
class CrossTable:
    """`counts` by row and column, in the order of the query's values, those not listed last."""

    query: Contingency
    sites: int
    counts: tuple[tuple[int, ...], ...]

    def rows(self) -> Rows:
        """A heading, and rows with totals of the cells shown."""
        query = self.query
        totals = [sum(column) for column in zip(*self.counts, strict=True)]
        names = (*query.row_values, OTHER, "all")
        return [
            (f"{query.row} \\ {query.column}", *query.column_values, OTHER, "all"),
            *((name, *row, sum(row)) for name, row in zip(names, (*self.counts, totals), strict=True)),
        ]


Result = Counted | Average | Spread | Cuts | Bars | CrossTable


def tabulate(results: Iterable[Result]) -> list[tuple[str, Rows]]:
    """Results as tables to show, each with a title; single numbers in a row share one, untitled."""
    tables: list[tuple[str, Rows]] = []
    for result in results:
        heading, *rows = result.rows()
        if heading != NUMBERS:
            tables.append((f"{describe(result.query)} ({result.sites} sites)", [heading, *rows]))
        elif tables and tables[-1][1][0] == NUMBERS:
            tables[-1][1].extend(rows)
        else:
            tables.append(("", [heading, *rows]))
    return tables


def shown(value: str | int | float | None) -> str:
    """A cell of `Rows` as text: six digits of a float, all of an integer."""
    if value is None:
        return "none"
    return f"{value:,}" if isinstance(value, int) else f"{value:.6g}" if isinstance(value, float) else value


def finish(query: Query, total: NDArray[Any], included_count: int, max_records: int) -> Result:
    """What the sum `total` of the answers of `included_count` sites says.

    Raises `ValueError` if it cannot be such a sum.
    """
    total = np.asarray(total)
    if total.shape != (length(query),) or total.dtype.kind not in "iu":
        raise ValueError(f"sum: expected {length(query)} integers, got {total.dtype} of shape {total.shape}")
    _check_integer("included", included_count, 1, (1 << 63) - 1)
    sums, records = [int(v) for v in total], included_count * max_records
    if isinstance(query, Mean | Variance):
        return _finish_moments(query, sums, included_count, max_records)
    # A record is in one cell, so no more than all records are in all of them.
    _check_sum(min(sums) >= 0 and sum(sums) <= records, included_count)
    match query:
        case Count():
            return Counted(query, included_count, sums[0])
        case Histogram():
            return Bars(query, included_count, tuple(sums[1:-1]), sums[0], sums[-1])
        case Quantile():
            edges = query.edges
            error = max(b - a for a, b in pairwise(edges)) + _last_bit(query)
            values = tuple(_quantile(q, sums, edges) for q in query.at)
            return Cuts(query, included_count, sum(sums), values, error)
        case Contingency():
            width = len(query.column_values) + 1
            counts = tuple(tuple(sums[i : i + width]) for i in range(0, len(sums), width))
            return CrossTable(query, included_count, counts)
    assert_never(query)


def _finish_moments(
    query: Mean | Variance, sums: list[int], included: int, max_records: int
) -> Average | Spread:
    points, (count, first) = _points(query, max_records), sums[:2]
    _check_sum(0 <= count <= included * max_records and 0 <= first <= count * points, included)
    low, high = Fraction(query.low), Fraction(query.high)
    step = (high - low) / points
    # Half a step from rounding to the grid; a little more, and a unit in the last place, from floats.
    error = float(step) * (0.5 + 2.0**-16) + _last_bit(query)
    # Fractions are exact: each number is rounded once, at its end.
    mean = float(low + step * first / count) if count else None
    if isinstance(query, Mean):
        return Average(query, included, count, mean, error)
    # Whole numbers from 0 to `points` lie below their squares, which lie below `points` times themselves.
    _check_sum(first <= sums[2] <= first * points and count * sums[2] >= first**2, included)
    if not count:
        return Spread(query, included, 0, None, None, None, error, error**2)
    variance = float(step**2 * (count * sums[2] - first**2) / count**2)
    deviation = sqrt(variance)
    variance_error = error * (2 * deviation + error)
    return Spread(query, included, count, mean, variance, deviation, error, variance_error)


def _last_bit(query: Mean | Variance | Quantile) -> float:
    """What rounding to a float can do to a value in the query's range, and as much again."""
    return float(np.spacing(max(abs(query.low), abs(query.high))))


def _quantile(q: float, counts: list[int], edges: tuple[float, ...]) -> float | None:
    upto = list(accumulate(counts))
    count = upto[-1]
    if not count:
        return None
    share = q * count * (1 - 2.0**-51)  # so that 0.07 of 100 is the 7th and not, by a last bit, the 8th
    i = bisect_left(upto, max(1, ceil(share)))
    part = (q * count - (upto[i] - counts[i])) / counts[i]
    return min(edges[i] + (edges[i + 1] - edges[i]) * min(max(part, 0.0), 1.0), edges[i + 1])


def _check_sum(possible: bool, included: int) -> None:
    if not possible:
        raise ValueError(f"sum: {included} sites' answers to this query cannot add up to it")


# ------------------------------------------------------------------------------------- in memory


def ask(
    queries: Iterable[Query], sites: Mapping[str, Holding], aggregate: Aggregator, max_records: int
) -> list[Result]:
    """Ask all sites in memory, one round of the aggregator for each query, counted from 0.

    `max_records` (public, 1 to 2^32 - 1) is the most that any site has. Raises `Aborted` if a sum fails,
    and `ValueError`, naming the site, if one cannot answer.
    """
    results = []
    for number, query in enumerate(queries):
        vectors = {}
        for name, site in sites.items():
            try:
                vectors[name] = answer(query, site, max_records)
            except ValueError as error:
                raise type(error)(f"site {name}: {error}") from None
        result = aggregate(vectors, bound(query, max_records), number, question_hash(query, max_records))
        if isinstance(result, Aborted):
            raise result
        results.append(finish(query, result.sum, len(result.included), max_records))
    return results


# ---------------------------------------------------------------------------------------- checks


def _check_integer(what: str, value: Any, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"{what}: expected an integer from {low} to {high}, got {value!r}")


def _sequence(what: str, values: Any) -> tuple[Any, ...]:
    if not isinstance(values, tuple | list | np.ndarray):
        raise ValueError(f"{what}: expected a tuple or list, got {values!r}")
    return tuple(values)


def _floats(what: str, values: Any) -> tuple[float, ...]:
    found = _sequence(what, values)
    for value in found:
        if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
            raise ValueError(f"{what}: expected numbers, got {value!r}")
        exact = value if isinstance(value, int) else float(value)  # an integer may be too large for a float
        if not -_LARGEST <= exact <= _LARGEST:  # nor is NaN
            raise ValueError(f"{what}: expected numbers from -1e100 to 1e100, got {value!r}")
    return tuple(float(value) + 0.0 for value in found)  # no negative zero: one encoding


def _numbers(what: str, values: Any) -> tuple[float, ...]:
    """Two or more ascending floats."""
    found = _floats(what, values)
    if not 2 <= len(found) <= MAX_CELLS:
        raise ValueError(f"{what}: expected 2 to {MAX_CELLS} numbers, got {len(found)}")
    for low, high in pairwise(found):
        if not high - low >= _NARROWEST:
            raise ValueError(f"{what}: expected ascending numbers, got {low:g} before {high:g}")
    return found


def _check_value(what: str, value: object) -> None:
    check_text(what, value, 1)
    if value != str(value).strip():
        raise ValueError(f"{what}: expected a text without spaces at its ends, got {value!r}")
