"""Models in plain numpy: logistic regression, a multilayer perceptron, linear regression.

A model is a stateless description; its parameters are a list of float64 arrays handed in and out.
x is float64 of shape (records, features); y is int64 classes, or float64 targets for regression.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fedavg.params import Arrays, Floats

Targets = NDArray[Any]


class Model(Protocol):
    """What training needs of a model."""

    def initial(self, rng: np.random.Generator) -> Arrays:
        """Parameters to start from."""
        ...

    def scores(self, params: Arrays, x: Floats) -> Floats:
        """Class probabilities (records, classes), or predicted targets (records,)."""
        ...

    def loss(self, params: Arrays, x: Floats, y: Targets) -> float:
        """Mean cross-entropy in nats, or half the mean squared error; plus the L2 penalty."""
        ...

    def gradient(self, params: Arrays, x: Floats, y: Targets) -> Arrays:
        """The gradient of `loss`."""
        ...


def _softmax(logits: Floats) -> Floats:
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities: Floats = shifted / shifted.sum(axis=1, keepdims=True)
    return probabilities


def _cross_entropy(probabilities: Floats, y: Targets) -> float:
    chosen = probabilities[np.arange(len(y)), y]
    return float(-np.log(np.maximum(chosen, np.finfo(np.float64).tiny)).mean())


def _residual(probabilities: Floats, y: Targets) -> Floats:
    """Gradient of the mean cross-entropy by the logits."""
    residual = probabilities.copy()
    residual[np.arange(len(y)), y] -= 1.0
    return residual / len(y)


class LogisticRegression:
    """Multinomial logistic regression with an L2 penalty on the weights."""

    def __init__(self, features: int, classes: int = 2, l2: float = 1e-3) -> None:
        self.features, self.classes, self.l2 = features, classes, l2

    def initial(self, rng: np.random.Generator) -> Arrays:
        """All zeros: the loss is convex."""
        return [np.zeros((self.features, self.classes)), np.zeros(self.classes)]

    def scores(self, params: Arrays, x: Floats) -> Floats:
        """Class probabilities."""
        return _softmax(x @ params[0] + params[1])

    def loss(self, params: Arrays, x: Floats, y: Targets) -> float:
        """Mean cross-entropy and penalty."""
        return _cross_entropy(self.scores(params, x), y) + 0.5 * self.l2 * float((params[0] ** 2).sum())

    def gradient(self, params: Arrays, x: Floats, y: Targets) -> Arrays:
        """Gradient by weights and bias."""
        residual = _residual(self.scores(params, x), y)
        return [x.T @ residual + self.l2 * params[0], residual.sum(axis=0)]


class MLP:
    """One hidden layer of rectified linear units, then softmax."""

    def __init__(self, features: int, classes: int = 2, hidden: int = 32, l2: float = 1e-4) -> None:
        self.features, self.classes, self.hidden, self.l2 = features, classes, hidden, l2

    def initial(self, rng: np.random.Generator) -> Arrays:
        """He initialisation (He et al. 2015)."""
        first = rng.normal(0.0, np.sqrt(2.0 / self.features), (self.features, self.hidden))
        second = rng.normal(0.0, np.sqrt(2.0 / self.hidden), (self.hidden, self.classes))
        return [first, np.zeros(self.hidden), second, np.zeros(self.classes)]

    def scores(self, params: Arrays, x: Floats) -> Floats:
        """Class probabilities."""
        hidden = np.maximum(x @ params[0] + params[1], 0.0)
        return _softmax(hidden @ params[2] + params[3])

    def loss(self, params: Arrays, x: Floats, y: Targets) -> float:
        """Mean cross-entropy and penalty."""
        penalty = float((params[0] ** 2).sum() + (params[2] ** 2).sum())
        return _cross_entropy(self.scores(params, x), y) + 0.5 * self.l2 * penalty

    def gradient(self, params: Arrays, x: Floats, y: Targets) -> Arrays:
        """Backpropagation."""
        before = x @ params[0] + params[1]
        hidden = np.maximum(before, 0.0)
        residual = _residual(_softmax(hidden @ params[2] + params[3]), y)
        back = (residual @ params[2].T) * (before > 0)
        return [
            x.T @ back + self.l2 * params[0], back.sum(axis=0),
            hidden.T @ residual + self.l2 * params[2], residual.sum(axis=0),
        ]  # fmt: skip


class LinearRegression:
    """Least squares with an L2 penalty on the weights."""

    def __init__(self, features: int, l2: float = 1e-3) -> None:
        self.features, self.l2 = features, l2

    def initial(self, rng: np.random.Generator) -> Arrays:
        """All zeros: the loss is convex."""
        return [np.zeros(self.features), np.zeros(1)]

    def scores(self, params: Arrays, x: Floats) -> Floats:
        """Predicted targets."""
        predicted: Floats = x @ params[0] + params[1]
        return predicted

    def loss(self, params: Arrays, x: Floats, y: Targets) -> float:
        """Half the mean squared error and penalty."""
        error = self.scores(params, x) - y
        return 0.5 * float((error**2).mean()) + 0.5 * self.l2 * float((params[0] ** 2).sum())

    def gradient(self, params: Arrays, x: Floats, y: Targets) -> Arrays:
        """Gradient by weights and intercept."""
        error = (self.scores(params, x) - y) / len(y)
        return [x.T @ error + self.l2 * params[0], error.sum(keepdims=True)]
