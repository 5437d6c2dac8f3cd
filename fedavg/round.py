"""One round over any aggregator. The plain sum is the oracle: secure aggregation must equal it exactly.

An aggregator takes each client's integers and gives `Aggregate` (sum, included, dropped) or `Aborted`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from protocols.errors import Aborted, Fault
from protocols.machine import Aggregate
from protocols.simulator import Cost, simulate
from protocols.wire import SERVER
from secagg.randomness import system

Vectors = Mapping[str, NDArray[np.int64]]
Dropouts = Mapping[int, Mapping[str, str]]
"""Round -> client -> the stage in which it no longer sends (see `protocols.simulator.STAGES`)."""

Event = Callable[[str, int, int], None]


class Aggregator(Protocol):
    """Sums vectors of integers below `bound`."""

    def __call__(
        self, vectors: Vectors, bound: int, round: int, model_hash: bytes = bytes(32)
    ) -> Aggregate | Aborted: ...


class PlainSum:
    """The sum in the clear, of those who would have been included: what the secure sum must equal.

    It knows no thresholds: `aborted` are the rounds in which there is none.
    """

    def __init__(self, dropouts: Dropouts | None = None, aborted: Collection[int] = ()) -> None:
        self.dropouts, self.aborted = dropouts or {}, aborted

    def __call__(
        self, vectors: Vectors, bound: int, round: int, model_hash: bytes = bytes(32)
    ) -> Aggregate | Aborted:
        """Add up all vectors but those of clients gone before they could have sent theirs."""
        gone = {
            name: Fault((name,), stage, "silent")
            for name, stage in self.dropouts.get(round, {}).items()
            if stage in ("keys", "shares", "masked")
        }
        included = tuple(sorted(set(vectors) - set(gone)))
        if not included or round in self.aborted:
            return Aborted("masked", "too few are left", dropped=gone)
        total = np.zeros(len(vectors[included[0]]), np.uint64)
        for name in included:
            total += vectors[name].astype(np.uint64)
        return Aggregate(total, included, gone, tuple(gone.values()))


@dataclass
class SecureSum:
    """A whole secure-aggregation session in memory for each round, with dropouts on schedule.

    agreed    what `protocols.session.Session` takes: protocol, threat_model, corrupted, dropout ...
    seed      of the simulation: keys, masks and noise are reproducible, by anyone who knows it; None takes
              the system's generator
    costs     filled while it runs: party -> what it spent in all rounds
    """

    agreed: Mapping[str, Any] = field(default_factory=dict)
    dropouts: Dropouts = field(default_factory=dict)
    seed: int | None = 0
    on_event: Event | None = None
    costs: dict[str, Cost] = field(default_factory=dict)

    def __call__(
        self, vectors: Vectors, bound: int, round: int, model_hash: bytes = bytes(32)
    ) -> Aggregate | Aborted:
        """Run the session of one round."""
        secret = int.from_bytes(system(32), "big") if self.seed is None else (self.seed << 32) + round
        run = simulate(
            vectors, bound=bound, drop=self.dropouts.get(round), seed=secret,
            on_event=self.on_event, round=round, model_hash=model_hash, **self.agreed,
        )  # fmt: skip
        for party, stages in run.costs.items():
            total = self.costs.setdefault(party, Cost())
            for cost in stages.values():
                total.cpu_seconds += cost.cpu_seconds
                total.bytes_up += cost.bytes_up
                total.bytes_down += cost.bytes_down
        return run.result

    def clients(self) -> list[Cost]:
        """What each client spent in all rounds."""
        return [cost for party, cost in self.costs.items() if party != SERVER]
