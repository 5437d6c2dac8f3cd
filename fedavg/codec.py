"""The way out and the way back: a weighted update becomes integers, a sum of them a weighted mean.

`Codec` is for exact sums, `PrivateCodec` for sums with noise (see `fedavg.privacy`).

Out: clip to norm C, scale by weight / max_weight (so every entry lies in [-C, C]), place on a grid of
2^bits - 1 points whose middle is zero, round without bias. Metrics (a loss, say) travel the same way, each
clipped to its own public range. The weight itself is the last coordinate: private like the rest, exact
because it is an integer.

Back: sum, less the middle for each included client, times the step, times max_weight, divided by the
sum of weights.

Error: an entry of one client is off by less than `step`, so an entry of the mean by less than
included * step * max_weight / (sum of weights): see `error`. Clipping is not an error but a choice.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import isclose, sqrt
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fedavg.clip import clip_l2, clip_max
from fedavg.params import Floats
from fedavg.privacy import Plan
from fedavg.quantize import round_stochastically
from fedavg.rotate import rotate, unrotate
from protocols.errors import Aborted
from secagg.labels import Label
from secagg.noise import rounding
from secagg.prg import SEED_BYTES
from secagg.randomness import Rng, seeded, system


@dataclass(frozen=True, slots=True)
class Codec:
    """How updates of `dim` floats travel. All clients of a session use the same.

    clipping_norm  largest norm of an update, in the update's own units
    max_weight     largest weight (say, number of training samples); a larger one is refused, never cut
    bits           the grid has 2^bits - 1 points, from 2 to 32 bits
    metrics        the lowest and highest value of each metric
    norm           "l2": the whole update is scaled down to the clipping norm; "max": each entry is cut to it
    """

    dim: int
    clipping_norm: float
    max_weight: int = 1
    bits: int = 16
    metrics: tuple[tuple[float, float], ...] = ()
    norm: Literal["l2", "max"] = "l2"

    def __post_init__(self) -> None:
        for name, low, high in (("dim", 0, 1 << 40), ("max_weight", 1, (1 << 32) - 1), ("bits", 2, 32)):
            value = getattr(self, name)
            if (
                isinstance(value, bool)
                or not isinstance(value, (int, np.integer))
                or not low <= value <= high
            ):
                raise ValueError(f"{name}: expected an integer from {low} to {high}, got {value!r}")
        if not 1e-100 <= self.clipping_norm <= 1e100:  # far from where the step would underflow
            raise ValueError(f"clipping_norm: expected a positive number to 1e100, got {self.clipping_norm}")
        if self.norm not in ("l2", "max"):
            raise ValueError(f"norm: expected 'l2' or 'max', got {self.norm!r}")
        for lowest, highest in self.metrics:
            if not -1e100 <= lowest < highest <= 1e100:
                raise ValueError(f"metrics: expected a lowest below a highest value, got {lowest}, {highest}")

    @property
    def middle(self) -> int:
        """The integer that stands for zero."""
        return (1 << self.bits - 1) - 1

    @property
    def step(self) -> float:
        """The distance of two grid points, in the units of a weighted update."""
        return self.clipping_norm / self.middle

    @property
    def bound(self) -> int:
        """Every entry that `encode` returns is below this, the weight included."""
        return max(2 * self.middle + 1, self.max_weight + 1)

    @property
    def length(self) -> int:
        """Entries of an encoded vector: the update, the metrics and the weight."""
        return self.dim + len(self.metrics) + 1

    def error(self, included: int, weights: int) -> float:
        """No entry of a decoded mean is further than this from the mean of the clipped updates."""
        return included * self.step * self.max_weight / weights

    def clips(self, update: Floats) -> bool:
        """Whether `encode` would change `update`, which is finite, by clipping."""
        order = None if self.norm == "l2" else np.inf
        return bool(self.dim) and float(np.linalg.norm(update, order)) > self.clipping_norm

    def encode(
        self, update: Floats, weight: int = 1, rng: Rng = system, metrics: Sequence[float] = ()
    ) -> NDArray[np.int64]:
        """An update, its metrics and its weight as `length` integers from 0 to `bound` - 1.

        Raises `ValueError` for NaN or infinity, a wrong shape or dtype, or a weight that is not an
        integer from 1 to `max_weight`.
        """
        update = self.checked(update, weight, metrics)
        clip = clip_l2 if self.norm == "l2" else clip_max
        clipped = clip(update, self.clipping_norm)
        placed = np.empty(self.dim + len(metrics))
        np.divide(clipped, self.step, out=placed[: self.dim])
        placed[self.dim :] = self.placed(metrics) * self.middle
        placed *= int(weight) / self.max_weight
        # Rounding may carry a last bit beyond the grid.
        np.clip(placed, -self.middle, self.middle, out=placed)
        rounded = round_stochastically(placed, rng)
        rounded += self.middle
        return np.append(rounded, int(weight))

    def checked(self, update: Floats, weight: int, metrics: Sequence[float]) -> Floats:
        """`update` as float64; raises what `encode` raises."""
        update = np.asarray(update)
        if update.dtype.kind != "f" or update.shape != (self.dim,):
            raise ValueError(
                f"update: expected {self.dim} floats, got {update.dtype} of shape {update.shape}"
            )
        if isinstance(weight, bool) or not isinstance(weight, (int, np.integer)):
            raise ValueError(f"weight: expected an integer, got {weight!r}")
        if not 1 <= weight <= self.max_weight:
            raise ValueError(f"weight: expected 1 to {self.max_weight} (max_weight), got {weight}")
        if len(metrics) != len(self.metrics):
            raise ValueError(f"metrics: expected {len(self.metrics)}, got {len(metrics)}")
        return update.astype(np.float64, copy=False)

    def placed(self, metrics: Sequence[float]) -> Floats:
        """Metrics from -1, the lowest value, to 1, the highest."""
        found = np.array(metrics, np.float64)
        if not np.isfinite(found).all():
            raise ValueError("metrics: expected finite numbers")
        low, high = np.array(self.metrics, np.float64).reshape(-1, 2).T
        place: Floats = (np.clip(found, low, high) - low) / (high - low)
        return 2.0 * place - 1.0

    def decode(self, total: NDArray[Any], included: int) -> tuple[Floats, int]:
        """The weighted mean of the `included` updates in the sum `total`, and the sum of their weights.

        Raises `ValueError` if the sum cannot be one of that many encoded vectors.
        """
        centred, weights = self._mean(total, included, slice(self.dim))
        return centred * self.step, weights

    def decode_metrics(self, total: NDArray[Any], included: int) -> list[float]:
        """The weighted mean of each metric, in order.

        Off by at most `error(included, weights) / clipping_norm` of half its range. Raises `ValueError` as
        `decode` does.
        """
        centred, _ = self._mean(total, included, slice(self.dim, -1))
        return [
            float(low + (high - low) * (place / self.middle + 1.0) / 2.0)
            for place, (low, high) in zip(centred, self.metrics, strict=True)
        ]

    def _mean(self, total: NDArray[Any], included: int, part: slice) -> tuple[Floats, int]:
        """The weighted mean of a part of the sum, on the grid and centred, and the sum of weights."""
        total = np.asarray(total)
        if total.shape != (self.length,):
            raise ValueError(f"sum: expected {self.length} entries, got shape {total.shape}")
        weights = int(total[-1])
        if included < 1 or not included <= weights <= included * self.max_weight:
            raise ValueError(f"sum: weights of {included} clients cannot add up to {weights}")
        # Exact in float64 below 2^53: sums are at most included * 2^32.
        centred = total[part].astype(np.float64) - float(included * self.middle)
        return centred * (self.max_weight / weights), weights


EXTRA = 0.25
"""With noise, the weight and each metric take this part of the clipping norm."""

_TRIES = 1000  # each succeeds at least four times in ten


def joint_norm(clipping_norm: float, extras: int) -> float:
    """The L2 norm of an update with so many extra entries: its weight, if it has one, and its metrics."""
    return clipping_norm * sqrt(1.0 + extras * EXTRA**2)


def to_integers(plan: Plan, values: NDArray[np.int64], rng: Rng = system) -> NDArray[np.int64]:
    """From the grid of a plan to integers: by rounding that is part of the noise, if there is a finer grid.

    Of zeros, it is what a client sends that has nothing to contribute, but must not be missing.
    """
    if not plan.rounding:
        return values
    return rounding(plan.grid_bits, plan.rounding).round(values, rng(SEED_BYTES))


@dataclass(frozen=True, slots=True)
class PrivateCodec:
    """How updates travel when their sum is to be differentially private: as `plan` says, in one round.

    plan           for `length` entries and the norm `joint_norm(clipping_norm, ...)`
    seed           of the public rotation: another in every round, the same for all clients
    dim, clipping_norm, max_weight, metrics
                   as in `Codec`; if `max_weight` is 1, every contribution counts 1
    counted        whether their number, or sum of weights, travels: always if `max_weight` is not 1; else
                   where it is not known without telling, as that of records is not

    Every entry, the weight's and the metrics' included, is inside the one sensitivity that the plan is for.
    """

    plan: Plan
    seed: bytes
    dim: int
    clipping_norm: float
    max_weight: int = 1
    metrics: tuple[tuple[float, float], ...] = ()
    counted: bool = False

    def __post_init__(self) -> None:
        Codec(self.dim, self.clipping_norm, self.max_weight, 2, self.metrics)  # checks these
        norm = joint_norm(self.clipping_norm, self.length - self.dim)
        if self.plan.dim != self.length or not isclose(self.plan.clipping_norm, norm, rel_tol=1e-9):
            raise ValueError(
                f"plan: expected one for {self.length} entries of norm {norm:.6g}, got {self.plan.dim} "
                f"entries of norm {self.plan.clipping_norm:.6g}"
            )

    @property
    def weighted(self) -> bool:
        """Whether a weight travels."""
        return self.counted or self.max_weight > 1

    @property
    def bound(self) -> int:
        """Every entry of a client's vector is below this in absolute value."""
        return self.plan.bound

    @property
    def length(self) -> int:
        """Entries of an encoded vector: the update, the metrics and, if there are any, the weight."""
        return self.dim + len(self.metrics) + self.weighted

    def error(self, included: int, weights: int) -> float:
        """Standard deviation of the noise in an entry of a decoded mean."""
        return self.plan.error * self.max_weight / weights

    def clips(self, update: Floats) -> bool:
        """Whether `encode` would change `update`, which is finite, by clipping."""
        return bool(self.dim) and float(np.linalg.norm(update)) > self.clipping_norm

    def encode(
        self, update: Floats, weight: int = 1, rng: Rng = system, metrics: Sequence[float] = ()
    ) -> NDArray[np.int64]:
        """An update, its metrics and its weight as `length` integers about zero.

        Raises `ValueError` as `Codec.encode` does.
        """
        return to_integers(self.plan, self._one(update, weight, rng, metrics), rng)

    def _one(self, update: Floats, weight: int, rng: Rng, metrics: Sequence[float]) -> NDArray[np.int64]:
        """A contribution on the grid, of bounded norm."""
        exact = Codec(self.dim, self.clipping_norm, self.max_weight, 2, self.metrics)
        update = exact.checked(update, weight, metrics)
        joined = np.empty(self.length)
        joined[: self.dim] = clip_l2(update, self.clipping_norm)
        extra = EXTRA * self.clipping_norm
        joined[self.dim : self.dim + len(metrics)] = exact.placed(metrics) * extra
        if self.weighted:
            joined[-1] = extra
        joined *= weight / self.max_weight
        return self._rounded(rotate(joined, self.seed) * (self.plan.scale * (1 << self.plan.grid_bits)), rng)

    def on_grid(
        self, updates: Iterable[Floats], rng: Rng = system, metrics: Iterable[Sequence[float]] | None = None
    ) -> NDArray[np.int64]:
        """The sum, on the grid, of what each record contributes: one of `updates`, and of `metrics`.

        `to_integers` makes of it what is sent. Raises `ValueError` as `encode` does, or for more records than
        the plan is for.
        """
        total = np.zeros(self.length, np.int64)
        rows = itertools.repeat(()) if metrics is None else metrics
        for number, (update, row) in enumerate(zip(updates, rows, strict=metrics is not None)):
            if number == self.plan.records:
                raise ValueError(f"updates: expected at most {self.plan.records}, one a record")
            total += self._one(update, 1, rng, row)
        return total

    def _rounded(self, values: Floats, rng: Rng) -> NDArray[np.int64]:
        """Rounded without bias, again and again until the norm is allowed (conditional rounding).

        The norm is that of the integers, found in integers: whatever floats did before, it is the
        sensitivity that the plan is for.
        """
        rng = seeded(Label.ROUNDING.value.encode(), rng(32))
        for _ in range(_TRIES):
            rounded = round_stochastically(values, rng)
            if _squares(rounded) <= self.plan.norm_squared:
                return rounded
        raise ValueError(
            f"rounding: no result within the norm in {_TRIES} tries; this plan is not for such updates"
        )

    def sums(self, total: NDArray[Any]) -> Floats:
        """The noisy sum of `length` entries: of updates, of metrics' places, and of weights.

        An update times its weight, a metric's place from -1 to 1 times the weight, and the weight. Raises
        `ValueError` for a sum that is none of this codec.
        """
        total = np.asarray(total)
        if total.shape != (self.length,) or total.dtype.kind != "i":
            raise ValueError(
                f"sum: expected {self.length} centred integers, got {total.dtype} of shape {total.shape}"
            )
        back = unrotate(total / self.plan.scale, self.seed) * self.max_weight
        back[self.dim :] /= EXTRA * self.clipping_norm
        return back

    def decode(self, total: NDArray[Any], included: int) -> tuple[Floats, int]:
        """The weighted mean of the `included` updates, with noise, and the sum of weights, rounded.

        Without weights, `included` counts contributions: clients, or records. Raises `Aborted` if the noisy
        sum of weights is not positive, `ValueError` if the sum is none of this codec.
        """
        back, weights = self._mean(total, included)
        return back[: self.dim], max(1, round(weights))

    def decode_metrics(self, total: NDArray[Any], included: int) -> list[float]:
        """The weighted mean of each metric, with noise, cut to its range."""
        back, _ = self._mean(total, included)
        places = np.clip(back[self.dim : self.dim + len(self.metrics)], -1.0, 1.0)
        return [
            float(low + (high - low) * (place + 1.0) / 2.0)
            for place, (low, high) in zip(places, self.metrics, strict=True)
        ]

    def _mean(self, total: NDArray[Any], included: int) -> tuple[Floats, float]:
        back = self.sums(total)
        if included < 1:
            raise ValueError(f"sum: expected at least one contribution, got {included}")
        weights = float(included)
        if self.weighted:
            weights = float(back[-1])
            if not weights > 0:
                raise Aborted("sum", "the noisy sum of weights is not positive", revealed=True)
        return back / weights, weights


def _squares(values: NDArray[np.int64]) -> int:
    """The exact squared L2 norm."""
    largest = int(np.abs(values).max(initial=0))
    if largest**2 * max(1, values.size) < 1 << 63:
        return int(np.dot(values, values))
    return sum(int(v) ** 2 for v in values)
