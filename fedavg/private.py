"""Training with a guarantee for every patient: gradient descent on sums with noise.

Each round, every hospital computes the gradient of each of its records alone, clips it, and adds them up as
integers; the clients' own noise is in the sum before anyone sees it (DP-SGD, Abadi et al., CCS 2016, with the
noise distributed; in a round are all records, a secret sample of them, or those whose turn it is). The server
divides by the noisy number of records and takes a step with momentum, which costs no further privacy.

What one record changes is bounded, and so is what anybody learns of it: the guarantee of `Plan` with one
record as the contribution. A hospital's records together are protected by less.

What it does not protect against: what is decided outside, on the data in the clear: the features and their
public ranges, learning rate, clipping norm, number of rounds.
"""

from __future__ import annotations

import struct
import zlib
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from math import exp
from pathlib import Path
from typing import Any, Literal
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from fedavg.budget import BudgetSpent
from fedavg.clip import clip_l2
from fedavg.codec import PrivateCodec, joint_norm, to_integers
from fedavg.files import replace_file
from fedavg.ledger import Ledger
from fedavg.models import Model, Targets
from fedavg.params import Arrays, Floats, Layout
from fedavg.privacy import Plan, plan
from fedavg.round import Aggregator
from fedavg.server import Hospitals, Round, check_hospitals
from fedavg.turns import Receiver, Sender
from protocols.errors import Aborted
from protocols.session import hash_model
from secagg.randomness import Rng, seeded, system

UNIT = "one record, there or not"
MOMENTUM = 0.5


@dataclass
class _Progress:
    """Where a training is: what the server knows, and what each hospital still sends of turns before."""

    params: Arrays
    velocity: Floats
    norm: float
    senders: dict[str, Sender]
    receiver: Receiver
    record_counts: deque[float]
    seed: bytes


@dataclass(frozen=True, slots=True)
class PrivateSGD:
    """The settings of a training run with a guarantee for each record.

    max_records    largest number of records a hospital may have; public
    clipping_norm  largest L2 norm of one record's gradient
    quantile       if given, the norm is only where to begin: it is moved so that this part of the records
                   stays below it (Andrew et al., "Differentially Private Learning with Adaptive Clipping",
                   NeurIPS 2021, Algorithm 1). How many do is summed with the rest, inside the same guarantee
    sampling       the chance of a record to be in a round: each hospital tosses its own coins in secret
    turns, turns_of
                   only each `turns`-th of every hospital's "records", or of the "hospitals", is in a round:
                   that much less work, and noise that cancels over rounds (see `fedavg.turns`)
    seed           of the initial parameters, rounding and samples; None takes the system's generator. As
                   rounding is part of the noise, there is no guarantee against who knows the seed
    """

    model: Model
    rounds: int = 30
    learning_rate: float = 1.0
    momentum: float = MOMENTUM
    clipping_norm: float = 1.0
    quantile: float | None = None
    sampling: float = 1.0
    turns: int = 1
    turns_of: Literal["records", "hospitals"] = "records"
    max_records: int = 10_000
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.max_records < 1:
            raise ValueError("rounds, max_records: expected at least 1")
        if not (0 < self.learning_rate < np.inf and 0 <= self.momentum < 1):
            raise ValueError("expected a positive learning_rate, and a momentum from 0 to below 1")
        if not 1e-100 <= self.clipping_norm <= 1e100:
            raise ValueError(f"clipping_norm: expected a positive number to 1e100, got {self.clipping_norm}")
        if self.quantile is not None and not 0 < self.quantile < 1:
            raise ValueError(f"quantile: expected a fraction between 0 and 1, got {self.quantile}")
        if self.seed is not None and self.seed < 0:
            raise ValueError(f"seed: expected 0 or more, got {self.seed}")
        if self.turns_of not in ("records", "hospitals"):
            raise ValueError(f"turns_of: expected 'records' or 'hospitals', got {self.turns_of!r}")

    def plan(
        self, hospitals: int, epsilon: float, delta: float, *, colluding: int = 0, least: int | None = None
    ) -> Plan:
        """The plan for all rounds of a federation of so many hospitals; see `fedavg.privacy.plan`."""
        dim = Layout.of(self.model.initial(np.random.default_rng(self.seed))).dim
        return plan(
            dim + self._extras, joint_norm(1.0, self._extras), hospitals, epsilon, delta, rounds=self.rounds,
            records=self.max_records, colluding=colluding, least=least, sampling=self.sampling,
            turns=self.turns, momentum=self.momentum,
        )  # fmt: skip

    def _settings(self, plan: Plan) -> str:
        """What a training that goes on must have in common with what was kept of it."""
        return (
            f"learning_rate {self.learning_rate}, momentum {self.momentum}, "
            f"clipping_norm {self.clipping_norm}, quantile {self.quantile}, sampling {self.sampling}, "
            f"turns {self.turns} of {self.turns_of}, seed {self.seed}, colluding {plan.colluding}"
        )

    @property
    def _extras(self) -> int:
        """Entries beside the gradient: the number of records, and of those below the norm."""
        return 1 + (self.quantile is not None)

    def run(
        self, hospitals: Hospitals, aggregate: Aggregator, plan: Plan, ledger: Ledger, *, task: str = "train",
        state: Path | None = None, on_round: Callable[[Round], None] | None = None,
    ) -> list[Round]:  # fmt: skip
        """Train; returns every round, the last one holding the final parameters.

        Ends before a round that the ledger cannot afford. `state` is a file in which the training is kept
        after each round, and from which it goes on if it is there; what was combined over rounds begins anew,
        so that noise of rounds before does not cancel any more. Raises `BudgetSpent` if the ledger affords
        no round at all, `ValueError` where `aggregate` sums without the noise of `plan`.
        """
        params = self.model.initial(np.random.default_rng(self.seed))
        layout = Layout.of(params)
        velocity, norm, first = np.zeros(layout.dim), self.clipping_norm, 0
        if state is not None and state.exists():
            params, velocity, norm, first = _read_state(state, layout, self._settings(plan))
        if (plan.turns, plan.sampling) != (self.turns, self.sampling):
            raise ValueError(
                f"plan: expected one for turns {self.turns} and sampling {self.sampling}, got {plan.turns} "
                f"and {plan.sampling}"
            )
        if self.turns_of == "hospitals" and self.turns > len(hospitals):
            raise ValueError(
                f"turns: expected at most {len(hospitals)}, one for each hospital, got {self.turns}"
            )
        check_hospitals(hospitals, self.max_records)
        done = [release.round + 1 for release in ledger.releases if release.task == task]
        if state is not None and done and not first:
            raise ValueError(f"{state}: the ledger has {len(done)} rounds of a training that is not here")
        if first and not done:
            raise ValueError(f"{state}: {first} rounds are done that the ledger does not know: is it lost?")
        # A round that was charged but is not in the state was lost: its number is used up all the same.
        first = max([first, *done])
        if first >= self.rounds:
            raise ValueError(
                f"rounds: {first} are done, and no more than {self.rounds} were asked for"
                + ("" if state is None else f": ask for more, or take the parameters from {state}")
            )
        now = _Progress(
            params, velocity, norm, {name: Sender(plan.coefficients) for name in hospitals},
            Receiver(plan.coefficients), deque(maxlen=plan.turns), hash_model(*params),
        )  # fmt: skip
        history: list[Round] = []
        for number in range(first, self.rounds):
            try:
                ledger.reserve(task, number, plan)
            except BudgetSpent:
                if not history:
                    raise
                break
            history.append(self._round(number, now, layout, hospitals, aggregate, plan, task, ledger))
            if state is not None:
                _write_state(state, self._settings(plan), now.params, now.velocity, now.norm, number + 1)
            if on_round is not None:
                on_round(history[-1])
        return history

    def _round(
        self, number: int, now: _Progress, layout: Layout, hospitals: Hospitals, aggregate: Aggregator,
        plan: Plan, task: str, ledger: Ledger,
    ) -> Round:  # fmt: skip
        """One round: moves where the training is `now`. Gradients travel in units of the norm."""
        model_hash = hash_model(*now.params, np.array(now.norm))
        below = () if self.quantile is None else ((0.0, 1.0),)
        # What is added up over rounds must be rotated alike.
        seed = now.seed if plan.turns > 1 else model_hash + number.to_bytes(8, "big")
        codec = PrivateCodec(plan, seed, layout.dim, 1.0, metrics=below, counted=True)
        vectors = {}
        for place, name in enumerate(sorted(hospitals)):
            x, y = hospitals[name]
            rng = self._rng(task, number, name)
            chosen = self._on_turn(_sample(len(y), plan.sampling, rng), place, number)
            gradients = by_record(self.model, now.params, layout, x[chosen], y[chosen]) / now.norm
            short = (np.linalg.norm(gradients, axis=1, keepdims=True) <= 1.0).astype(np.float64)
            grid = codec.on_grid(gradients, rng, short[:, : len(below)])
            vectors[name] = to_integers(plan, now.senders[name].send(grid), rng)
        result = aggregate(vectors, codec.bound, number, model_hash)
        ledger.settle(result, plan)  # reserved before the round began
        if isinstance(result, Aborted):
            now.receiver.skip()
            return Round(number, now.params, (), result.faults, 0, 0.0, result)
        estimate = now.receiver.receive(codec.sums(result.sum))
        # In turns: of as many rounds as it takes for everybody's, for the noise cancels in a total only.
        now.record_counts.append(float(estimate[-1]))
        records = float(np.mean(now.record_counts))
        if not records > 0:
            none = Aborted("sum", "the noisy number of records is not positive", revealed=True)
            return Round(number, now.params, (), result.faults, 0, 0.0, none)
        now.velocity *= self.momentum
        now.velocity -= self.learning_rate * now.norm * estimate[: layout.dim] / records
        now.params = layout.restore(layout.flatten(now.params) + now.velocity)
        change = float(np.linalg.norm(now.velocity))
        if self.quantile is not None:
            part = (float(estimate[layout.dim]) / records + 1) / 2
            now.norm *= exp(-_NORM_RATE * (min(1.0, max(0.0, part)) - self.quantile))
        weight = max(1, round(records))
        return Round(number, now.params, result.included, result.faults, weight, change)

    def _on_turn(self, chosen: NDArray[np.int64], place: int, number: int) -> NDArray[np.int64]:
        """Those of a hospital's records whose turn it is in this round."""
        each = np.full(len(chosen), place) if self.turns_of == "hospitals" else chosen + place
        found: NDArray[np.int64] = chosen[each % self.turns == number % self.turns]
        return found

    def without_noise(self, hospitals: Hospitals) -> list[Arrays]:
        """Training with exact sums in the clear and no guarantee: parameters after each round.

        Otherwise the same, but of all records where others are sampled, and at a fixed clipping norm.
        """
        params = self.model.initial(np.random.default_rng(self.seed))
        layout = Layout.of(params)
        velocity, history = np.zeros(layout.dim), []
        counts: deque[int] = deque(maxlen=self.turns)
        for number in range(self.rounds):
            total, count = np.zeros(layout.dim), 0
            for place, name in enumerate(sorted(hospitals)):
                x, y = hospitals[name]
                chosen = self._on_turn(np.arange(len(y)), place, number)
                for row in by_record(self.model, params, layout, x[chosen], y[chosen]):
                    total += clip_l2(row, self.clipping_norm)
                count += len(chosen)
            counts.append(count)
            velocity = self.momentum * velocity - self.learning_rate * total / max(
                1.0, float(np.mean(counts))
            )
            params = layout.restore(layout.flatten(params) + velocity)
            history.append(params)
        return history

    def _rng(self, task: str, number: int, name: str) -> Rng:
        if self.seed is None:
            return system
        parts = (self.seed.to_bytes(16, "big"), task.encode(), number.to_bytes(8, "big"), name.encode())
        return seeded(b"rounding", *parts)


_NORM_RATE = 0.2  # the paper's, section 3


def _write_state(
    path: Path, settings: str, params: Arrays, velocity: Floats, norm: float, rounds: int
) -> None:
    content: dict[str, Any] = {f"parameter_{i}": array for i, array in enumerate(params)}
    content |= {"settings": np.array(settings), "velocity": velocity}
    data = BytesIO()
    np.savez(data, allow_pickle=False, progress=np.array([rounds, norm]), **content)
    try:
        replace_file(path, data.getvalue())
    except OSError as error:
        raise ValueError(f"{path}: the training cannot be kept: {error}") from None


_UNREADABLE = (
    OSError, KeyError, ValueError, TypeError, EOFError, RuntimeError, BadZipFile, zlib.error, struct.error,
)  # fmt: skip
"""What numpy and zipfile raise for files that are damaged."""


def _read_state(path: Path, layout: Layout, settings: str) -> tuple[Arrays, Floats, float, int]:
    try:
        with np.load(path, allow_pickle=False) as found:
            params = [found[f"parameter_{i}"] for i in range(len(found.files) - 3)]
            velocity, kept = found["velocity"], str(found["settings"])
            rounds, norm = (float(value) for value in found["progress"])
            if velocity.dtype != np.float64 or not (0 <= rounds < 2**31 and 0 < norm < np.inf):
                raise ValueError
    except _UNREADABLE:
        raise ValueError(f"{path}: expected a training that was kept here, got something else") from None
    if Layout.of(params) != layout or velocity.shape != (layout.dim,):
        raise ValueError(f"{path}: it is of another model")
    if kept != settings:
        raise ValueError(f"{path}: it was kept with {kept}; asked for is {settings}")
    return params, velocity, norm, int(rounds)


def by_record(model: Model, params: Arrays, layout: Layout, x: Floats, y: Targets) -> Floats:
    """The gradient of each record's own loss, a row each."""
    rows = [layout.flatten(model.gradient(params, x[i : i + 1], y[i : i + 1])) for i in range(len(y))]
    return np.array(rows).reshape(len(y), layout.dim)


def _sample(records: int, chance: float, rng: Rng) -> NDArray[np.int64]:
    """The records that are in a round: a Poisson sample, from a cryptographic stream, right to 2^-64."""
    if chance == 1.0:
        return np.arange(records)
    coins = np.frombuffer(rng(8 * records), "<u8")
    return np.flatnonzero(coins < np.uint64(int(chance * 2**64)))


def placed(table: Floats, ranges: Sequence[tuple[float, float]]) -> Floats:
    """Columns cut to their public ranges and brought to -2 to 2: no statistics of the data are needed."""
    low, high = np.array(ranges, np.float64).T
    out: Floats = (np.clip(table, low, high) - (low + high) / 2) * (4 / (high - low))
    return out
