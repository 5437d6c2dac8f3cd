"""What a hospital does on its own data: local SGD (McMahan et al. 2017, Algorithm 1, ClientUpdate)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedavg.models import Model, Targets
from fedavg.params import Arrays, Floats

_DIVERGED = 1e30


@dataclass(frozen=True, slots=True)
class LocalSGD:
    """Plain minibatch gradient descent: `epochs` passes in batches of `batch_size` records."""

    epochs: int = 1
    batch_size: int = 32
    learning_rate: float = 0.1

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 1 or not 0 < self.learning_rate < np.inf:
            raise ValueError("LocalSGD: expected positive epochs, batch_size and learning_rate")

    def __call__(
        self, model: Model, params: Arrays, x: Floats, y: Targets, rng: np.random.Generator
    ) -> Arrays:
        """New parameters; those given are left as they are.

        Raises `ValueError` if training diverges to infinity or NaN.
        """
        params = [p.copy() for p in params]
        with np.errstate(over="ignore", invalid="ignore"):
            for _ in range(self.epochs):
                order = rng.permutation(len(y))
                for start in range(0, len(y), self.batch_size):
                    batch = order[start : start + self.batch_size]
                    for p, g in zip(params, model.gradient(params, x[batch], y[batch]), strict=True):
                        p -= self.learning_rate * g
        # Beyond any sensible size is divergence too: squares and products of such parameters overflow.
        if not all((np.abs(p) < _DIVERGED).all() for p in params):
            raise ValueError(f"training diverged at learning rate {self.learning_rate}: try a smaller one")
        return params
