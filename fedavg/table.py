"""A site's records, read from a CSV file and kept as text until a column is asked for.

Errors name the file, the line and the column, never what stands there: they may end up in a log.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fedavg.params import Floats

Lines = list[tuple[int, list[str]]]
"""The fields of each record, after the number of the line on which it ends."""


@dataclass(frozen=True, slots=True)
class Table:
    """`columns` name -> the text of each record, stripped, empty where it is missing.

    name   where the records come from, for errors
    lines  the line of each record in its file, for errors
    """

    name: str
    columns: Mapping[str, tuple[str, ...]] = field(repr=False)
    lines: tuple[int, ...] = field(repr=False)

    def __post_init__(self) -> None:
        for column, values in self.columns.items():
            if len(values) != len(self.lines):
                raise ValueError(
                    f"{self.name}: expected {len(self.lines)} records, column {column!r} has {len(values)}"
                )

    def __len__(self) -> int:
        return len(self.lines)

    def texts(self, column: str) -> tuple[str, ...]:
        """A column's values as they are; `ValueError` if there is no such column."""
        if column not in self.columns:
            raise ValueError(
                f"{self.name}: no column {column!r}; the columns are {', '.join(filter(None, self.columns))}"
            )
        return self.columns[column]

    def numbers(self, column: str) -> Floats:
        """A column as float64 (records,), NaN where it is missing.

        Raises `ValueError` for a value that is not a finite number, naming its line.
        """
        texts = self.texts(column)
        found = np.full(len(texts), np.nan)
        for i, text in enumerate(texts):
            if text:
                with suppress(ValueError):
                    found[i] = float(text)
                if not np.isfinite(found[i]):
                    raise ValueError(
                        f"{self.name}, line {self.lines[i]}, column {column!r}: expected a finite number"
                    )
        return found


def read_table(path: str | Path) -> Table:
    """A CSV file with a header: UTF-8, with or without a byte-order mark; blank lines are no records.

    Raises `ValueError` for a file that cannot be read or has no records, a column that occurs twice, or
    a line of another number of fields than the header.
    """
    header, body = read_lines(path)
    columns = {name: tuple(row[i].strip() for _, row in body) for i, name in enumerate(header)}
    return Table(str(path), columns, tuple(line for line, _ in body))


def read_lines(path: str | Path) -> tuple[list[str], Lines]:
    """The header, its names stripped, and the records of a CSV file; errors as of `read_table`."""
    try:
        with Path(path).open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            header = [name.strip() for name in next(reader, [])]
            body = [(reader.line_num, row) for row in reader if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: cannot be read as CSV: {error}") from None
    if not header or not body:
        raise ValueError(f"{path}: expected a header and at least one record")
    twice = [name for name in header if header.count(name) > 1]
    if twice:
        raise ValueError(f"{path}: the column {twice[0]!r} occurs twice in the header")
    for line, row in body:
        if len(row) != len(header):
            raise ValueError(f"{path}, line {line}: expected {len(header)} fields, got {len(row)}")
    return header, body
