"""The way out and the way back: a weighted update becomes integers, a sum of them a weighted mean.

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

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fedavg.clip import clip_l2, clip_max
from fedavg.params import Floats
from fedavg.quantize import round_stochastically
from secagg.randomness import Rng, system


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
        clip = clip_l2 if self.norm == "l2" else clip_max
        clipped = clip(update.astype(np.float64, copy=False), self.clipping_norm)
        placed = np.empty(self.dim + len(metrics))
        np.divide(clipped, self.step, out=placed[: self.dim])
        placed[self.dim :] = self._placed(metrics)
        placed *= int(weight) / self.max_weight
        # Rounding may carry a last bit beyond the grid.
        np.clip(placed, -self.middle, self.middle, out=placed)
        rounded = round_stochastically(placed, rng)
        rounded += self.middle
        return np.append(rounded, int(weight))

    def _placed(self, metrics: Sequence[float]) -> Floats:
        """Metrics on the grid: the lowest value at -`middle`, the highest at `middle`."""
        found = np.array(metrics, np.float64)
        if not np.isfinite(found).all():
            raise ValueError("metrics: expected finite numbers")
        low, high = np.array(self.metrics, np.float64).reshape(-1, 2).T
        place: Floats = (np.clip(found, low, high) - low) / (high - low)
        return (2.0 * place - 1.0) * self.middle

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
