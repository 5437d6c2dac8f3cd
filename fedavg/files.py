"""Files that are replaced as a whole, and by one at a time."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

_PATIENCE = 30.0  # seconds that one who wants a file waits for another


def replace_file(path: Path, data: bytes) -> None:
    """Write a file whole or not at all; it is on the disk when this returns, also if the power fails then."""
    beside = path.with_name(path.name + ".new")
    with beside.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
    if os.name == "posix":  # the new name has to be written too; elsewhere folders cannot be opened
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Nobody else who asks for this is let in at the same time, in any process; a lock dies with its owner.

    Raises `OSError` if the file beside cannot be used, or somebody else does not come out of it.
    """
    try:
        with closing(sqlite3.connect(path.with_name(path.name + ".lock"), timeout=_PATIENCE)) as lock:
            lock.isolation_level = None
            lock.execute("BEGIN EXCLUSIVE")
            try:
                yield
            finally:
                lock.execute("ROLLBACK")
    except sqlite3.Error as error:
        raise OSError(f"it cannot be locked: {error}") from None
