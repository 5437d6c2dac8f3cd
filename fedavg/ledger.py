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

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import inf
from pathlib import Path

import msgspec
from msgspec.structs import replace

from fedavg.accounting import check_target, composed, epsilon_of, epsilon_sampled
from fedavg.budget import BudgetSpent
from fedavg.files import alone, replace_file
from fedavg.privacy import Plan
from protocols.errors import Aborted
from protocols.machine import Aggregate


class Release(msgspec.Struct, frozen=True):
    """One sum with noise: it was `mu`-GDP, with the noise of `honest` of `included` clients.

    Not `completed` if it was aborted after a reveal, or never heard of again. Not `bounded` if it had less
    noise than it should: what it told, nobody knows. Where contributions take turns, `factors` says by
    how much more it told of those of each turn.
    """

    task: str
    round: int
    mu: float
    included: int
    honest: int
    completed: bool
    bounded: bool = True
    sampling: float = 1.0
    factors: tuple[int, ...] = ()


class _Content(msgspec.Struct, forbid_unknown_fields=True):
    epsilon: float
    delta: float
    unit: str
    releases: list[Release]


@dataclass
class Ledger:
    """What was released so far, against a budget of (`epsilon`, `delta`) for `unit`.

    Where each round is of a secret sample, that counts in what is spent: against everybody who does not see
    the sample, the server included. `spent_if_seen` is the number against who does.

    unit      what is protected, in words: "one patient's record", "one hospital's whole contribution"
    path      a JSON file, read if it is there and written, whole, at every change; any number of processes
              may spend from it, one at a time, each within a budget of its own

    Raises `ValueError` for a file that is not a ledger, or is one of another delta or unit.
    """

    epsilon: float
    delta: float
    unit: str
    path: Path | None = None
    releases: list[Release] = field(default_factory=list, init=False)
    _reserved: tuple[str, int] | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        check_target(self.epsilon, self.delta)
        self._read()

    @property
    def spent(self) -> float:
        """The epsilon of all releases together, at `delta`."""
        return self._epsilon(_costs(self.releases))

    @property
    def spent_if_seen(self) -> float:
        """The same against who sees which records were sampled in each round."""
        return self._epsilon([(mu, 1.0) for mu, _ in _costs(self.releases)])

    def _epsilon(self, costs: Sequence[tuple[float, float]]) -> float:
        if not all(release.bounded for release in self.releases):
            return inf
        if all(sampling == 1.0 for _, sampling in costs):
            return epsilon_of(composed(mu for mu, _ in costs), self.delta)
        return epsilon_sampled(costs, self.delta)

    def check(self, task: str, round: int, plan: Plan) -> None:
        """Raise `BudgetSpent` if this round would go beyond the budget. A hair beyond is rounding."""
        after = self._epsilon(_costs([*self.releases, _planned(task, round, plan)]))
        if after > self.epsilon * (1 + 1e-6):
            raise BudgetSpent(
                f"privacy: epsilon {self.spent:.4g} of {self.epsilon:g} is spent, and another round would "
                f"make it {after:.4g} (delta {self.delta:g}, {self.unit})"
            )

    def reserve(self, task: str, round: int, plan: Plan) -> None:
        """Charge a round of `plan` before it begins; `BudgetSpent` if that would go beyond the budget.

        It is on the disk, if there is a file, when this returns, or not at all.
        """
        with self._alone():
            self.check(task, round, plan)
            self._keep([*self.releases, _planned(task, round, plan)])
        self._reserved = (task, round)

    def settle(self, result: Aggregate | Aborted, plan: Plan) -> None:
        """Say what became of the round that was reserved last; before its sum is used.

        Raises `ValueError` for a sum with less noise than planned, and nothing more can be afforded then.
        """
        with self._alone():
            releases = list(self.releases)
            (place,) = [i for i, r in enumerate(releases) if (r.task, r.round) == self._reserved][-1:]
            if isinstance(result, Aborted):
                if not result.revealed:
                    del releases[place]
                    self._keep(releases)
                return
            included = len(result.included)
            honest = included - plan.colluding
            enough = result.noise >= plan.variance * (1 - 1e-12) and result.carried == plan.rounding
            mu = plan.mu_with(result.noise, honest) if enough else releases[place].mu
            releases[place] = replace(
                releases[place], mu=mu, included=included, honest=honest if enough else 0, completed=True,
                bounded=enough,
            )  # fmt: skip
            self._keep(releases)
        if not enough:
            raise ValueError(
                f"aggregate: expected a sum with noise of variance {plan.variance:.4g} at least, "
                f"{plan.rounding} of it in each vector; got {result.noise:.4g} and {result.carried:g}: "
                "what it tells has no bound"
            )

    def dump(self) -> bytes:
        """All of it as JSON, as it stands in a file."""
        content = _Content(self.epsilon, self.delta, self.unit, self.releases)
        return msgspec.json.format(msgspec.json.encode(content), indent=1) + b"\n"

    def load(self, data: bytes) -> None:
        """Go on from what `dump` gave, with the budget that is here.

        Raises `ValueError` for anything else, or another delta or unit.
        """
        name = self.path or "ledger"
        try:
            found = msgspec.json.decode(data, type=_Content)
        except msgspec.MsgspecError as error:
            raise ValueError(f"{name}: expected a ledger of privacy, got something else: {error}") from None
        if any(
            not (0 < r.mu <= 1e6 and 0 < r.sampling <= 1 and all(0 <= f < 1 << 32 for f in r.factors))
            for r in found.releases
        ):
            raise ValueError(f"{name}: expected a ledger of privacy, a release has an impossible cost")
        if (self.delta, self.unit) != (found.delta, found.unit):
            raise ValueError(
                f"{name}: it is a ledger for delta {found.delta:g}, {found.unit}; asked for was delta "
                f"{self.delta:g}, {self.unit}"
            )
        self.releases = found.releases

    def _read(self) -> None:
        if self.path is not None and self.path.exists():
            try:
                data = self.path.read_bytes()
            except OSError as error:
                raise ValueError(f"{self.path}: the ledger cannot be read: {error}") from None
            self.load(data)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Nobody else changes the file meanwhile, and what others have changed is read."""
        if self.path is None:
            yield
            return
        try:
            with alone(self.path):
                self._read()
                yield
        except OSError as error:
            raise ValueError(f"{self.path}: the ledger cannot be written: {error}") from None

    def _keep(self, releases: list[Release]) -> None:
        before, self.releases = self.releases, releases
        if self.path is not None:
            try:
                replace_file(self.path, self.dump())
            except OSError:
                self.releases = before
                raise


def _planned(task: str, round: int, plan: Plan) -> Release:
    """What a round costs if nothing more is heard of it."""
    factors = plan.factors(round) if plan.turns > 1 else ()
    return Release(task, round, plan.mu, 0, 0, False, True, plan.sampling, factors)


def _costs(releases: Iterable[Release]) -> list[tuple[float, float]]:
    """(mu, chance to be in it) of each release; of those in which contributions take turns, of all together.

    Who shares a turn is known within a task only: of each task, the turn of which most was told counts.
    """
    costs, by_turn = [], defaultdict[tuple[str, int], list[Release]](list)
    for release in releases:
        if release.factors:
            by_turn[release.task, len(release.factors)].append(release)
        else:
            costs.append((release.mu, release.sampling))
    for (_, turns), theirs in by_turn.items():
        told = (composed(r.mu * r.factors[turn] for r in theirs) for turn in range(turns))
        costs.append((max(told), 1.0))
    return costs
