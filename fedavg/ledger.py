"""What has been spent: every release of a noisy sum, and the epsilon that all of them come to.

A release is charged when it happened, with the noise that was really in it: of a round with few dropouts the
noise is what the plan says, of others at most 1.5 % more. A round that was aborted after clients revealed
anything is charged like a completed one, for they may have revealed enough; one aborted before is not.
Before each round the ledger must be asked: what would go beyond the budget is refused before anyone is.

The number is for everybody who sees the sums, the server included. It takes `honest` of the included clients
to have added their noise.

What it does not protect against: a file that is removed, or rolled back to an older copy; a second ledger
for the same data.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from fedavg.budget import BudgetSpent
from fedavg.privacy import Plan, composed, epsilon_of
from protocols.errors import Aborted
from protocols.machine import Aggregate


class Release(msgspec.Struct, frozen=True):
    """One sum with noise: it was `mu`-GDP, with the noise of `honest` of `included` clients."""

    task: str
    round: int
    mu: float
    included: int
    honest: int
    completed: bool


@dataclass
class Ledger:
    """What was released so far, against a budget of (`epsilon`, `delta`) for `unit`.

    unit      what is protected, in words: "one patient's record", "one hospital's whole contribution"
    path      a JSON file, read if it is there and written, whole, at every charge

    Raises `ValueError` for a file that is not a ledger, or is one of another budget or unit.
    """

    epsilon: float
    delta: float
    unit: str
    path: Path | None = None
    releases: list[Release] = field(default_factory=list)

    def __post_init__(self) -> None:
        epsilon_of(1.0, self.delta)  # refuses an impossible delta
        if not self.epsilon > 0:
            raise ValueError(f"epsilon: expected a positive number, got {self.epsilon}")
        if self.path is not None and self.path.exists():
            self._read(self.path)

    @property
    def spent(self) -> float:
        """The epsilon of all releases together, at `delta`."""
        return self._epsilon()

    def _epsilon(self, *more: float) -> float:
        mu = composed([*(release.mu for release in self.releases), *more])
        return epsilon_of(mu, self.delta)

    def check(self, mu: float) -> None:
        """Raise `BudgetSpent` if a further release would go beyond the budget. A hair beyond is rounding."""
        after = self._epsilon(mu)
        if after > self.epsilon * (1 + 1e-6):
            raise BudgetSpent(
                f"privacy: epsilon {self.spent:.4g} of {self.epsilon:g} is spent, and another round would "
                f"make it {after:.4g} (delta {self.delta:g}, {self.unit})"
            )

    def settle(self, task: str, round: int, result: Aggregate | Aborted, plan: Plan) -> None:
        """Charge what became of a round with the noise of `plan`; before its sum is used.

        Raises `ValueError` for a sum with less noise: it may have told everything, and nothing is charged
        that could say so.
        """
        if isinstance(result, Aborted):
            if result.revealed:
                self.charge(Release(task, round, plan.mu, 0, 0, False))
            return
        if result.noise < plan.variance * (1 - 1e-12):
            raise ValueError(
                f"aggregate: expected a sum with noise of variance {plan.variance:.4g} at least, got "
                f"{result.noise:.4g}: what it tells has no bound"
            )
        included = len(result.included)
        mu = min(plan.mu, plan.mu_with(result.noise, included - plan.colluding))
        self.charge(Release(task, round, mu, included, included - plan.colluding, True))

    def charge(self, release: Release) -> None:
        """Record a release; on the disk, if there is a file, when this returns."""
        self.releases.append(release)
        if self.path is not None:
            try:
                self._write(self.path)
            except OSError as error:
                raise ValueError(f"{self.path}: the ledger cannot be written: {error}") from None

    def _content(self) -> dict[str, Any]:
        return {
            "epsilon": self.epsilon, "delta": self.delta, "unit": self.unit, "releases": self.releases,
        }  # fmt: skip

    def _write(self, path: Path) -> None:
        beside = path.with_name(path.name + ".new")
        with beside.open("wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(self._content()), indent=1) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)

    def _read(self, path: Path) -> None:
        class Content(msgspec.Struct, forbid_unknown_fields=True):
            epsilon: float
            delta: float
            unit: str
            releases: list[Release]

        try:
            found = msgspec.json.decode(path.read_bytes(), type=Content)
        except (OSError, msgspec.MsgspecError) as error:
            raise ValueError(f"{path}: expected a ledger of privacy, got something else: {error}") from None
        if any(not release.mu >= 0 for release in found.releases):
            raise ValueError(f"{path}: expected a ledger of privacy, a release has a negative cost")
        mine, theirs = (self.epsilon, self.delta, self.unit), (found.epsilon, found.delta, found.unit)
        if mine != theirs:
            raise ValueError(
                f"{path}: it is a ledger for epsilon {theirs[0]:g}, delta {theirs[1]:g}, {theirs[2]}; asked "
                f"for was epsilon {mine[0]:g}, delta {mine[1]:g}, {mine[2]}"
            )
        self.releases = found.releases
