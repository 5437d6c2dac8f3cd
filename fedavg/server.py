"""Federated averaging (McMahan et al. 2017, Algorithm 1) over an aggregator that only sums.

Each round: the model goes out, every hospital trains locally and encodes its update (new less old
parameters) with its weight, the aggregator sums, the weighted mean is added to the model. A round that
is aborted leaves the model as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from fedavg.codec import Codec
from fedavg.models import Model, Targets
from fedavg.params import Arrays, Floats, Layout
from fedavg.round import Aggregator
from fedavg.train import LocalSGD
from protocols.errors import Aborted, Fault
from protocols.session import hash_model
from secagg.randomness import Rng, seeded, system

Hospitals = Mapping[str, tuple[Floats, Targets]]
"""Name -> (records, targets)."""


def check_hospitals(hospitals: Hospitals, most: int | None) -> None:
    """Raise `ValueError` unless each has records, as many targets, and not more than `most`."""
    for name, (x, y) in hospitals.items():
        if len(y) < 1 or len(x) != len(y):
            raise ValueError(f"hospital {name}: expected records and as many targets, got {len(x)}, {len(y)}")
        if most is not None and len(y) > most:
            raise ValueError(f"hospital {name}: {len(y)} records are more than the {most} that are allowed")


@dataclass(frozen=True, slots=True)
class Round:
    """What one round did. `change` is the L2 norm of the mean update; `aborted` why there was none."""

    number: int
    params: Arrays
    included: tuple[str, ...]
    faults: tuple[Fault, ...]
    weight: int
    change: float
    aborted: Aborted | None = None


@dataclass(frozen=True, slots=True)
class FedAvg:
    """The settings of a training run.

    rounds       at most so many
    weighted     weigh hospitals by their number of records; else every hospital counts 1 (the 1/K mean)
    max_weight   largest number of records a hospital may have; public
    clipping_norm, bits
                 see `Codec`
    tolerance    stop when the mean update's L2 norm falls below this
    seed         of data order and rounding; None rounds from the system's generator
    """

    model: Model
    local: LocalSGD = field(default_factory=LocalSGD)
    rounds: int = 20
    weighted: bool = True
    max_weight: int = 10_000
    clipping_norm: float = 10.0
    bits: int = 16
    tolerance: float = 0.0
    seed: int | None = 0

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ValueError(f"rounds: expected at least 1, got {self.rounds}")
        if not self.tolerance >= 0:
            raise ValueError(f"tolerance: expected 0 or more, got {self.tolerance}")
        if self.seed is not None and self.seed < 0:
            raise ValueError(f"seed: expected 0 or more, got {self.seed}")

    def run(
        self, hospitals: Hospitals, aggregate: Aggregator, on_round: Callable[[Round], None] | None = None
    ) -> list[Round]:
        """Train; returns every round, the last one holding the final parameters."""
        start = np.random.default_rng(self.seed)
        params = self.model.initial(start)
        layout = Layout.of(params)
        if not layout.dim:
            raise ValueError("model: expected at least one array of floats: there is nothing to average")
        self.codec(layout.dim)  # says what is wrong before any training
        check_hospitals(hospitals, self.max_weight if self.weighted else None)
        history: list[Round] = []
        for number in range(self.rounds):
            done = self._round(number, params, layout, hospitals, aggregate)
            params = done.params
            history.append(done)
            if on_round is not None:
                on_round(done)
            if done.aborted is None and done.change < self.tolerance:
                break
        return history

    def codec(self, dim: int) -> Codec:
        """How updates of `dim` parameters travel."""
        return Codec(dim, self.clipping_norm, self.max_weight if self.weighted else 1, self.bits)

    def _round(
        self, number: int, params: Arrays, layout: Layout, hospitals: Hospitals, aggregate: Aggregator
    ) -> Round:
        codec, before = self.codec(layout.dim), layout.flatten(params)
        vectors = {}
        for place, name in enumerate(sorted(hospitals)):
            x, y = hospitals[name]
            order = np.random.default_rng(None if self.seed is None else [self.seed, number, place])
            trained = self.local(self.model, params, x, y, order)
            weight = len(y) if self.weighted else 1
            vectors[name] = codec.encode(
                layout.flatten(trained) - before, weight, self._rounding(number, name)
            )
        result = aggregate(vectors, codec.bound, number, hash_model(*params))
        if isinstance(result, Aborted):
            return Round(number, params, (), result.faults, 0, 0.0, result)
        mean, weight = codec.decode(result.sum, len(result.included))
        after = layout.restore(before + mean)
        return Round(number, after, result.included, result.faults, weight, float(np.linalg.norm(mean)))

    def _rounding(self, number: int, name: str) -> Rng:
        if self.seed is None:
            return system
        return seeded(
            b"rounding", self.seed.to_bytes(16, "big", signed=True), number.to_bytes(8, "big"), name.encode()
        )
