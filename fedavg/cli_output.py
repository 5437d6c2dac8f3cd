"""What the commands share: the console, files that they write, and which options were given."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click


def console() -> Any:
    """As wide as the terminal; without one, 100 columns."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 100)


def table(title: str | None = None, columns: Iterable[str] = ()) -> Any:
    """In the one style; `columns` of numbers, to the right."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    found = Table(
        title=None if title is None else escape(title), box=box.SIMPLE_HEAD, title_justify="left",
        title_style="bold",
    )  # fmt: skip
    for column in columns:
        found.add_column(column, justify="right")
    return found


def is_default(option: str) -> bool:
    """Whether the running command was not given it."""
    source = click.get_current_context().get_parameter_source(option)
    return source is click.core.ParameterSource.DEFAULT


def refuse(options: Iterable[str], why: str) -> None:
    """Raise `ValueError` if the running command was given any of these."""
    for option in options:
        if not is_default(option):
            raise ValueError(f"--{_NAMES.get(option, option).replace('_', '-')} {why}")


_NAMES = {"ranges": "range", "as_json": "json", "json_file": "json"}


def check_writable(*paths: Path | None) -> None:
    """Before the work, not after it."""
    for path in paths:
        if path is not None and not path.absolute().parent.is_dir():
            raise ValueError(f"{path}: there is no such folder")
        if path is not None and not os.access(path.absolute().parent, os.W_OK):
            raise ValueError(f"{path}: its folder cannot be written to")


def write_json(path: Path, content: dict[str, Any]) -> None:
    try:
        path.write_text(json.dumps(content, indent=2) + "\n")
    except OSError as error:
        raise ValueError(f"{path}: cannot be written: {error}") from None
