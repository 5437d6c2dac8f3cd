"""How many queries a site answers: each is spent before it is answered, and none is given back.

Exact sums tell more with every query (two of them differ by what lies between), so what a site gives away
is bounded by how many it answers. That a query is the same as one before does not make it free: the sites
in the sum may be others, and the difference is then theirs.

What it does not protect against: a file that is removed, or rolled back to an older copy.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from os import PathLike
from threading import Lock


class BudgetSpent(ValueError):
    """Nothing more is answered, or released: what was to be given away is given."""


class Budget:
    """At most `limit` queries, in the memory of this process or, if `path` is given, in a SQLite file.

    The file is opened for each query: any number of processes and threads may spend from it, and what is
    spent is on the disk when `spend` returns (`synchronous = EXTRA`). It keeps what was spent, not the
    limit: a site may start again with another.

    Raises `ValueError` for a limit that is not an integer from 0, or a file that cannot be used.
    """

    def __init__(self, limit: int = 20, path: str | PathLike[str] | None = None) -> None:
        if isinstance(limit, bool) or not isinstance(limit, int) or not 0 <= limit < 1 << 63:
            raise ValueError(f"budget: expected a limit from 0 to 2^63 - 1, got {limit!r}")
        self.limit, self.path = limit, path
        self._spent, self._lock = 0, Lock()
        _ = self.spent  # an unusable file is noticed now

    @property
    def spent(self) -> int:
        """Queries charged so far; of a file, by anyone and at any time."""
        return self._spent if self.path is None else self._charge(0)

    @property
    def left(self) -> int:
        """Queries that may still be asked."""
        return max(0, self.limit - self.spent)

    def spend(self) -> None:
        """Charge one query; `BudgetSpent` if none is left, `ValueError` if the file cannot be written."""
        if self.path is not None:
            self._charge(1)
            return
        with self._lock:
            self._check(self._spent)
            self._spent += 1

    def _check(self, spent: int) -> None:
        if spent >= self.limit:
            raise BudgetSpent(f"budget: {self.limit} queries may be answered, and {spent} were: none is left")

    def _charge(self, queries: int) -> int:
        """Add `queries` to those spent, in one transaction; how many there were before."""
        assert self.path is not None
        try:
            with closing(sqlite3.connect(self.path, isolation_level=None, timeout=30)) as db:
                db.execute("PRAGMA synchronous = EXTRA")
                db.execute("BEGIN IMMEDIATE")  # nobody else reads until this one has written
                db.execute("CREATE TABLE IF NOT EXISTS budget (id INTEGER PRIMARY KEY, spent INTEGER)")
                db.execute("INSERT OR IGNORE INTO budget VALUES (0, 0)")
                spent = int(db.execute("SELECT spent FROM budget").fetchone()[0])
                if queries:
                    self._check(spent)
                db.execute("UPDATE budget SET spent = spent + ?", (queries,))
                db.execute("COMMIT")
        except sqlite3.Error as error:
            raise ValueError(f"budget: cannot use {self.path}: {error}") from None
        return spent

    def __repr__(self) -> str:
        return f"Budget(limit={self.limit}, path={None if self.path is None else str(self.path)!r})"
