"""What has been spent: every release of a noisy sum, and the epsilon that all of them come to.

Before a round it is reserved, at the price that was planned, and refused if that would go beyond the budget.
Afterwards it is settled: charged with the noise that was really in it, or, if it was aborted before anyone
revealed anything, given back. One that was aborted later is charged in full, for clients may have revealed
enough; so is one of which nothing was heard again, because a process was killed.

The number is for everybody who sees the sums, the server included. It takes `honest` of the included clients
to have added their noise.

What it does not protect against: a file that is removed, or rolled back to an older copy; a second ledger
for the same data.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import inf
from pathlib import Path

import msgspec
from msgspec.structs import replace

from fedavg.budget import BudgetSpent
from fedavg.privacy import Plan, check_target, composed, epsilon_of, epsilon_sampled
from protocols.errors import Aborted
from protocols.machine import Aggregate


class Release(msgspec.Struct, frozen=True):
    """One sum with noise: it was `mu`-GDP, with the noise of `honest` of `included` clients.

    Not `completed` if it was aborted after a reveal, or never heard of again. Not `bounded` if it had less
    noise than it should: what it told, nobody knows. Where contributions take turns, `counts` says by which
    factor it told more of those of each turn.
    """

    task: str
    round: int
    mu: float
    included: int
    honest: int
    completed: bool
    bounded: bool = True
    sampling: float = 1.0
    counts: tuple[int, ...] = ()


class _Content(msgspec.Struct, forbid_unknown_fields=True):
    epsilon: float
    delta: float
    unit: str
    releases: list[Release]

    def to_bytes(self) -> bytes:
        return msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n"


@dataclass
class Ledger:
    """What was released so far, against a budget of (`epsilon`, `delta`) for `unit`.

    Where each round is of a secret sample, that counts in what is spent: against everybody who does not see
    the sample, the server included. `spent_if_seen` is the number against who does.

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
        check_target(self.epsilon, self.delta)
        self._known: bytes | None = None
        if self.path is not None and self.path.exists():
            try:
                self._known = self.path.read_bytes()
            except OSError as error:
                raise ValueError(f"{self.path}: the ledger cannot be read: {error}") from None
            self.load(self._known)

    @property
    def spent(self) -> float:
        """The epsilon of all releases together, at `delta`."""
        return self._epsilon()

    @property
    def spent_if_seen(self) -> float:
        """The same against who sees which records were sampled in each round."""
        if not all(release.bounded for release in self.releases):
            return inf
        return epsilon_of(composed(mu for mu, _ in _costs(self.releases)), self.delta)

    def _epsilon(self, *more: Release) -> float:
        if not all(release.bounded for release in self.releases):
            return inf
        spent = _costs([*self.releases, *more])
        if all(sampling == 1.0 for _, sampling in spent):
            return epsilon_of(composed(mu for mu, _ in spent), self.delta)
        return epsilon_sampled(spent, self.delta)

    def check(self, task: str, round: int, plan: Plan) -> None:
        """Raise `BudgetSpent` if this round would go beyond the budget. A hair beyond is rounding."""
        after = self._epsilon(_planned(task, round, plan))
        if after > self.epsilon * (1 + 1e-6):
            raise BudgetSpent(
                f"privacy: epsilon {self.spent:.4g} of {self.epsilon:g} is spent, and another round would "
                f"make it {after:.4g} (delta {self.delta:g}, {self.unit})"
            )

    def reserve(self, task: str, round: int, plan: Plan) -> None:
        """Charge a round of `plan` before it begins; `BudgetSpent` if that would go beyond the budget."""
        self.check(task, round, plan)
        self.charge(_planned(task, round, plan))

    def settle(self, result: Aggregate | Aborted, plan: Plan) -> None:
        """Say what became of the round that was reserved last; before its sum is used.

        Raises `ValueError` for a sum with less noise than planned, and nothing more can be afforded then.
        """
        reserved = self.releases[-1]
        if isinstance(result, Aborted):
            if not result.revealed:
                self._replace_last()
            return
        included = len(result.included)
        honest = included - plan.colluding
        enough = result.noise >= plan.variance * (1 - 1e-12) and result.carried == plan.rounding
        if not enough:
            self._replace_last(replace(reserved, included=included, completed=True, bounded=False))
            raise ValueError(
                f"aggregate: expected a sum with noise of variance {plan.variance:.4g} at least, "
                f"{plan.rounding} of it in each vector; got {result.noise:.4g} and {result.carried:g}: "
                "what it tells has no bound"
            )
        mu = plan.mu_with(result.noise, honest)
        self._replace_last(replace(reserved, mu=mu, included=included, honest=honest, completed=True))

    def charge(self, release: Release) -> None:
        """Record a release; on the disk, if there is a file, when this returns, or not at all."""
        self._set([*self.releases, release])

    def _replace_last(self, *release: Release) -> None:
        self._set([*self.releases[:-1], *release])

    def _set(self, releases: list[Release]) -> None:
        if self.path is not None:
            try:
                found = self.path.read_bytes() if self.path.exists() else None
                if found != self._known:
                    raise ValueError(f"{self.path}: somebody else has written this ledger: read it again")
                self._write(self.path, _Content(self.epsilon, self.delta, self.unit, releases).to_bytes())
            except OSError as error:
                raise ValueError(f"{self.path}: the ledger cannot be written: {error}") from None
        self.releases = releases

    def dump(self) -> bytes:
        """All of it as JSON, as it stands in a file."""
        return _Content(self.epsilon, self.delta, self.unit, self.releases).to_bytes()

    def load(self, data: bytes) -> None:
        """Go on from what `dump` gave; `ValueError` for anything else, or another budget or unit."""
        name = self.path or "ledger"
        try:
            found = msgspec.json.decode(data, type=_Content)
        except msgspec.MsgspecError as error:
            raise ValueError(f"{name}: expected a ledger of privacy, got something else: {error}") from None
        if any(
            not (0 < r.mu <= 1e6 and 0 < r.sampling <= 1 and all(0 <= c < 1 << 32 for c in r.counts))
            for r in found.releases
        ):
            raise ValueError(f"{name}: expected a ledger of privacy, a release has an impossible cost")
        mine, theirs = (self.epsilon, self.delta, self.unit), (found.epsilon, found.delta, found.unit)
        if mine != theirs:
            raise ValueError(
                f"{name}: it is a ledger for epsilon {theirs[0]:g}, delta {theirs[1]:g}, {theirs[2]}; asked "
                f"for was epsilon {mine[0]:g}, delta {mine[1]:g}, {mine[2]}"
            )
        self.releases = found.releases

    def _write(self, path: Path, data: bytes) -> None:
        beside = path.with_name(path.name + ".new")
        with beside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
        self._known = data


def _planned(task: str, round: int, plan: Plan) -> Release:
    """What a round costs if nothing more is heard of it."""
    counts = plan.counts(round) if plan.turns > 1 else ()
    return Release(task, round, plan.mu, 0, 0, False, True, plan.sampling, counts)


def _costs(releases: Iterable[Release]) -> list[tuple[float, float]]:
    """(mu, chance to be in it) of each release; of those in which contributions take turns, of all together.

    Who shares a turn is known within a task only: of each task, the turn of which most was told counts.
    """
    costs, by_turn = [], defaultdict[tuple[str, int], list[Release]](list)
    for release in releases:
        if release.counts:
            by_turn[release.task, len(release.counts)].append(release)
        else:
            costs.append((release.mu, release.sampling))
    for (_, turns), theirs in by_turn.items():
        told = (composed(r.mu * r.counts[turn] for r in theirs) for turn in range(turns))
        costs.append((max(told), 1.0))
    return costs
