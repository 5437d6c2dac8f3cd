"""What must survive a crash so that a party never answers twice: steps taken, rounds answered.

A machine commits every step here *before* its messages are given to the driver. A step that was already
committed cannot be committed again, so of two clones of one state only one can go on; and a restored
state that is older than its journal is refused. (An old state would put a second vector under the same
mask, and the difference of the two would be in the clear.)

Across sessions the journal remembers, for each identity and task, the highest round in which it revealed
shares: for that round, and any before it, nothing is contributed again. And it remembers the last round
in which a vector was sent, and to which cohort: until the next round it goes to no other. (A client that
sent its vector and was never asked may be in a sum all the same; the same vector in the sum of another
cohort would give the difference of the two.)

What it does not protect against: a copy of the journal itself rolled back together with the state.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from os import PathLike
from typing import Any, Protocol

import msgspec

from protocols.errors import AlreadyAnswered, LocalError
from secagg import box
from secagg.invalid import Invalid
from secagg.labels import Label, bind
from secagg.randomness import Rng, system

Answer = tuple[bytes, str, int]
"""Identity, task and round of a client that is about to reveal shares."""

Contribution = tuple[bytes, str, int, bytes]
"""Identity, task, round and cohort (`Session.cohort_hash`) of a client that is about to send its vector."""


class Journal(Protocol):
    """A store of steps; both implementations below are complete."""

    def commit(
        self, machine: bytes, step: int, state: Callable[[], bytes], answer: Answer | None = None,
        contribution: Contribution | None = None,
    ) -> None:  # fmt: skip
        """Record that `machine` (32 bytes) takes step number `step`; the first is 1.

        Raises `LocalError`, recording nothing, unless its last step was `step - 1`, and its subclass
        `AlreadyAnswered` if `answer` names a round that is not above the last one answered, or
        `contribution` a round below the last one contributed to, or that round with another cohort.
        """
        ...

    def last_step(self, machine: bytes) -> int:
        """The last step recorded; 0 if none."""
        ...

    def last_answered(self, identity: bytes, task: str) -> int:
        """The highest round answered; -1 if none."""
        ...

    def state(self, machine: bytes) -> bytes | None:
        """The state after the last step, to restore the machine from; None if it is not kept."""
        ...


def _check(
    machine_last: int, step: int, answered: int, answer: Answer | None, sent: tuple[int, bytes] | None,
    contribution: Contribution | None,
) -> None:  # fmt: skip
    if machine_last != step - 1:
        raise LocalError(
            f"journal: step {step} does not follow step {machine_last}: this state is a copy or out of date"
        )
    if answer is not None and answer[2] <= answered:
        raise AlreadyAnswered(f"journal: round {answer[2]} of task {answer[1]!r} was already answered")
    if contribution is not None and sent is not None:
        _, task, number, cohort = contribution
        if number < sent[0] or (number == sent[0] and cohort != sent[1]):
            raise AlreadyAnswered(
                f"journal: a vector was already sent for round {sent[0]} of task {task!r}: it may go to the "
                "same cohort again, with a higher attempt, or the next round may begin"
            )


_DUMPED = tuple[
    dict[bytes, int],
    list[tuple[tuple[bytes, str], int]],
    list[tuple[tuple[bytes, str], tuple[int, bytes]]],
]


class MemoryJournal:
    """A journal for one process: protects against clones and reruns, not against a crash."""

    def __init__(self) -> None:
        self._steps: dict[bytes, int] = {}
        self._answered: dict[tuple[bytes, str], int] = {}
        self._sent: dict[tuple[bytes, str], tuple[int, bytes]] = {}

    def dump(self) -> bytes:
        """All of it, public, for a framework that keeps what outlives a message; see `load`."""
        return msgspec.msgpack.encode((self._steps, list(self._answered.items()), list(self._sent.items())))

    @classmethod
    def load(cls, kept: bytes | None) -> MemoryJournal:
        """The journal that `dump` gave, or for None a new one; `LocalError` if it is damaged."""
        journal = cls()
        if kept is not None:
            try:
                steps, answered, sent = msgspec.msgpack.decode(kept, type=_DUMPED)
            except (msgspec.MsgspecError, UnicodeDecodeError):
                raise LocalError("journal: what was kept of it cannot be read") from None
            journal._steps, journal._answered, journal._sent = steps, dict(answered), dict(sent)
        return journal

    def commit(
        self, machine: bytes, step: int, state: Callable[[], bytes], answer: Answer | None = None,
        contribution: Contribution | None = None,
    ) -> None:  # fmt: skip
        """See `Journal.commit`; the state is not kept."""
        answered = -1 if answer is None else self.last_answered(answer[0], answer[1])
        sent = None if contribution is None else self._sent.get(contribution[:2])
        _check(self.last_step(machine), step, answered, answer, sent, contribution)
        self._steps[machine] = step
        if contribution is not None:
            self._sent[contribution[:2]] = contribution[2:]
        if answer is not None:
            self._answered[answer[:2]] = answer[2]

    def last_step(self, machine: bytes) -> int:
        """See `Journal.last_step`."""
        return self._steps.get(machine, 0)

    def last_answered(self, identity: bytes, task: str) -> int:
        """See `Journal.last_answered`."""
        return self._answered.get((identity, task), -1)

    def state(self, machine: bytes) -> bytes | None:
        """None: nothing outlives the process anyway."""
        return None


class SqliteJournal:
    """A journal in a SQLite file that also keeps each machine's newest state, sealed under `key`.

    `key` is 32 bytes kept apart from the file. `states` false keeps no state, only that steps were taken: for
    a framework that keeps the states itself, and may never come back for a round. Writes are durable when
    `commit` returns: SQLite's `synchronous = EXTRA`, which also syncs the folder, without which a lost power
    supply could bring an older state back.
    Raises `LocalError` if the file cannot be opened or is something else.
    """

    def __init__(
        self, path: str | PathLike[str], key: bytes, *, states: bool = True, rng: Rng = system
    ) -> None:
        check_key(key)
        self._key, self._states, self._rng = key, states, rng
        try:
            self._db = sqlite3.connect(path, isolation_level=None)
            self._db.execute("PRAGMA synchronous = EXTRA")
            self._db.execute("PRAGMA secure_delete = ON")
            self._db.execute(
                "CREATE TABLE IF NOT EXISTS steps (machine BLOB PRIMARY KEY, step INTEGER, state BLOB)"
            )
            self._db.execute(
                "CREATE TABLE IF NOT EXISTS answered (identity BLOB, task TEXT, round INTEGER, "
                "PRIMARY KEY (identity, task))"
            )
            self._db.execute(
                "CREATE TABLE IF NOT EXISTS sent (identity BLOB, task TEXT, round INTEGER, cohort BLOB, "
                "PRIMARY KEY (identity, task))"
            )
        except sqlite3.Error as error:
            raise LocalError(f"journal: cannot use {path}: {error}") from None

    def commit(
        self, machine: bytes, step: int, state: Callable[[], bytes], answer: Answer | None = None,
        contribution: Contribution | None = None,
    ) -> None:  # fmt: skip
        """See `Journal.commit`; all of it is stored in one transaction."""
        sealed = seal_state(self._key, state(), machine, self._rng) if self._states else None
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                answered = -1 if answer is None else self.last_answered(answer[0], answer[1])
                _check(
                    self.last_step(machine), step, answered, answer, self._sent(contribution), contribution
                )
                self._db.execute("INSERT OR REPLACE INTO steps VALUES (?, ?, ?)", (machine, step, sealed))
                if contribution is not None:
                    self._db.execute("INSERT OR REPLACE INTO sent VALUES (?, ?, ?, ?)", contribution)
                if answer is not None:
                    self._db.execute("INSERT OR REPLACE INTO answered VALUES (?, ?, ?)", answer)
                self._db.execute("COMMIT")
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            raise LocalError(f"journal: cannot write: {error}") from None

    def _sent(self, contribution: Contribution | None) -> tuple[int, bytes] | None:
        if contribution is None:
            return None
        query = "SELECT round, cohort FROM sent WHERE identity = ? AND task = ?"
        row = self._row(query, *contribution[:2])
        return (int(row[0]), bytes(row[1])) if row else None

    def last_step(self, machine: bytes) -> int:
        """See `Journal.last_step`."""
        row = self._row("SELECT step FROM steps WHERE machine = ?", machine)
        return int(row[0]) if row else 0

    def last_answered(self, identity: bytes, task: str) -> int:
        """See `Journal.last_answered`."""
        row = self._row("SELECT round FROM answered WHERE identity = ? AND task = ?", identity, task)
        return int(row[0]) if row else -1

    def state(self, machine: bytes) -> bytes | None:
        """See `Journal.state`; `LocalError` if it was stored under another key."""
        row = self._row("SELECT state FROM steps WHERE machine = ? AND state IS NOT NULL", machine)
        return unseal_state(self._key, bytes(row[0]), machine) if row else None

    def erase(self, machine: bytes) -> None:
        """Forget a finished machine's state; that its steps were taken stays known."""
        self._row("UPDATE steps SET state = NULL WHERE machine = ?", machine)

    def _row(self, query: str, *values: object) -> tuple[Any, ...] | None:
        try:
            row: tuple[Any, ...] | None = self._db.execute(query, values).fetchone()
        except sqlite3.Error as error:
            raise LocalError(f"journal: cannot read: {error}") from None
        return row

    def close(self) -> None:
        """Close the file; a journal that nobody holds any more closes itself."""
        self._db.close()

    def __del__(self) -> None:
        if hasattr(self, "_db"):  # not if it could not even be opened
            self._db.close()


def check_key(key: object) -> None:
    """Refuse what is not a 32-byte key."""
    if not isinstance(key, bytes) or len(key) != box.KEY_BYTES:
        raise LocalError(f"key: expected {box.KEY_BYTES} bytes")


def seal_state(key: bytes, state: bytes, machine: bytes, rng: Rng) -> bytes:
    """A machine's state, encrypted under a local key and bound to the machine."""
    return box.seal(key, state, bind(Label.SNAPSHOT, machine), rng)


def unseal_state(key: bytes | None, sealed: bytes, machine: bytes) -> bytes:
    """What `seal_state` sealed; `LocalError` under another key or for another machine."""
    check_key(key)
    assert key is not None
    try:
        return box.unseal(key, sealed, bind(Label.SNAPSHOT, machine))
    except Invalid:
        raise LocalError("snapshot: does not open: another key, session or party, or damaged") from None
