"""What `secagg stats` asks, from the words of its options, and how it shows the answers."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedavg.budget import Budget
from fedavg.statistics import (
    Contingency,
    Count,
    Histogram,
    Holding,
    Mean,
    Quantile,
    Query,
    Result,
    Variance,
    equal_edges,
    shown,
    tabulate,
)
from fedavg.table import read_table


def queries(options: Mapping[str, Any]) -> list[Query]:
    """The queries that the command's options ask for, by kind; `ValueError` names the option."""
    try:
        where = None if options["where"] is None else _split(options["where"], "=", "COLUMN=VALUE")
        count = Count(where=where)
    except ValueError as error:
        raise ValueError(f"--where: {error}") from None
    asked: list[Query] = [count] if options["count"] else []
    for option in ("mean", "variance", "quantiles", "histogram", "contingency"):
        for words in options[option]:
            try:
                asked.append(_query(option, words, where, options["bins"]))
            except ValueError as error:
                raise ValueError(f"--{option}: {error}") from None
    if not asked:
        raise ValueError("nothing is asked: give --count, --mean or another statistic (see --help)")
    return asked


def _query(option: str, words: Any, where: Any, bins: int) -> Query:
    if option == "contingency":
        pairs = (_split(side, "=", "COLUMN=VALUE,VALUE...") for side in words)
        (row, row_values), (column, column_values) = (
            (name, tuple(value.strip() for value in values.split(","))) for name, values in pairs
        )
        return Contingency(row, column, row_values, column_values, where=where)
    if option == "histogram":
        column, low, high, parts = _ranged(words, "COLUMN:LOW:HIGH:BINS")
        if not parts.is_integer():
            raise ValueError(f"expected COLUMN:LOW:HIGH:BINS, got {words!r}")
        return Histogram(column, equal_edges(low, high, int(parts)), where=where)
    column, low, high = _ranged(words, "COLUMN:LOW:HIGH")
    if option == "quantiles":
        return Quantile(column, low, high, bins=bins, where=where)
    return (Mean if option == "mean" else Variance)(column, low, high, where=where)


def _ranged(words: str, form: str) -> Any:
    """A column and as many numbers as the form has."""
    column, *numbers = _split(words, ":", form)
    try:
        return (column, *(float(number) for number in numbers))
    except ValueError:
        raise ValueError(f"expected {form}, got {words!r}") from None


def _split(words: str, mark: str, form: str) -> Any:
    """The parts between the marks that the form has; a column's name may have colons of its own."""
    parts = words.rsplit(mark, form.count(mark)) if mark == ":" else words.split(mark, form.count(mark))
    if len(parts) <= form.count(mark) or not all(part.strip() for part in parts):
        raise ValueError(f"expected {form}, got {words!r}")
    return tuple(part.strip() for part in parts)


def sites(paths: Sequence[Path], min_cell: int, budget: int) -> dict[str, Holding]:
    """A site for each file, by the file's name without its ending."""
    found: dict[str, Holding] = {}
    for path in paths:
        if path.stem in found:
            raise ValueError(f"{path}: there is already a site named {path.stem!r}: rename the file")
        found[path.stem] = Holding(read_table(path), min_cell, Budget(budget))
    return found


def show(results: Sequence[Result], min_cell: int) -> None:
    """Tables of the results, on the terminal."""
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 110)
    for title, (heading, *rows) in tabulate(results):
        console.print(f"\n[bold]{escape(title)}[/]" if title else "", highlight=False)
        table = Table(box=box.SIMPLE_HEAD, show_edge=False)
        for place, name in enumerate(heading):
            table.add_column(escape(str(name)), justify="right" if place else "left")
        for row in rows:
            table.add_row(*(escape(shown(value)) for value in row))
        console.print(table)
    console.print(
        f"\nThe server saw these sums alone; what counted below {min_cell} at a site went into them as 0.",
        highlight=False,
    )
