"""What can go wrong, and who is to blame.

`LocalError`   our caller's mistake: raised at once, nothing changed, nothing sent.
`RemoteError`  a peer's message that does not check: raised inside a step, caught by the machine, recorded
               as a `Fault` with its culprit, never raised at the driver.
`Aborted`      the end of a session without a sum: nobody's call failed, so it is a result and not raised;
               but reading `.sum` from it raises it, since ignoring it would be unsafe.

No text here ever contains a secret, or words that a peer wrote; numbers, such as a length or a version, it
may.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn


class SecAggError(Exception):
    """The root of this library's exceptions."""


class LocalError(SecAggError, ValueError):
    """Our caller passed something that cannot be used; the message says what was expected."""


class Infeasible(LocalError):
    """No parameters meet the demands; the message says why and what would be feasible."""


class AlreadyAnswered(LocalError):
    """The journal says that this round was answered: one update, one answer."""


class RemoteError(SecAggError):
    """A peer sent something that must be refused; the machine knows which peer."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One deviation that was noticed. Two culprits mean a dispute: one of the two, unknown which."""

    culprits: tuple[str, ...]
    stage: str
    cause: str


class Aborted(SecAggError):
    """A session that ended without a sum.

    `stage` and `cause` say where and why; `culprits` who is named, if anyone; `revealed` whether
    this party (for the server: anybody) may have revealed a share; `retry` whether the same updates may be
    contributed again, in a session that differs only by a higher `attempt`. After a reveal they may not:
    the round counts as completed. (A client that masked but never answered may, with the same cohort: a
    second sum needs answers from a threshold of it, and each answers once a round.)
    """

    def __init__(
        self, stage: str, cause: str, culprits: tuple[str, ...] = (), revealed: bool = False,
        faults: tuple[Fault, ...] = (), dropped: dict[str, Fault] | None = None,
    ) -> None:  # fmt: skip
        # All of it as `args`, so that an `Aborted` can be copied, pickled and stored.
        super().__init__(stage, cause, culprits, revealed, faults, dropped or {})
        self.stage, self.cause, self.culprits, self.revealed = stage, cause, culprits, revealed
        self.faults, self.dropped = faults, dropped or {}

    def __str__(self) -> str:
        return f"aborted at {self.stage}: {self.cause}"

    @property
    def retry(self) -> bool:
        """Whether the round may be tried again with the same updates."""
        return not self.revealed

    @property
    def sum(self) -> NoReturn:
        """There is none: raises this object."""
        raise self
