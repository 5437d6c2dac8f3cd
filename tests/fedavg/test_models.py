"""Every model's gradient against finite differences; descent makes the loss fall."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from fedavg.models import MLP, LinearRegression, LogisticRegression, Model

MODELS = {
    "logistic, two classes": LogisticRegression(4),
    "logistic, three classes": LogisticRegression(4, 3, l2=0.1),
    "mlp, two classes": MLP(4, hidden=5),
    "mlp, three classes": MLP(4, 3, hidden=6, l2=0.1),
    "linear": LinearRegression(4),
    "linear, strong penalty": LinearRegression(4, l2=0.5),
}
every_model = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS.keys())


def records(model: Model, count: int = 40) -> tuple[Any, Any]:
    rng = np.random.default_rng(7)
    x = rng.normal(size=(count, 4))
    if isinstance(model, LinearRegression):
        return x, x @ np.array([1.0, -2.0, 0.5, 0.0]) + 3.0 + 0.1 * rng.normal(size=count)
    classes = getattr(model, "classes")  # noqa: B009 - the protocol does not promise it
    return x, ((x[:, 0] + x[:, 1] > 0).astype(np.int64) + (x[:, 2] > 1)) % classes


@every_model
def test_gradient_equals_finite_differences(model: Model) -> None:
    x, y = records(model)
    rng = np.random.default_rng(3)
    params = [p + rng.normal(size=p.shape) * 0.5 for p in model.initial(rng)]
    gradient = model.gradient(params, x, y)
    assert [g.shape for g in gradient] == [p.shape for p in params]
    step = 1e-6
    for array, found in zip(params, gradient, strict=True):
        expected = np.empty_like(array)
        for place in np.ndindex(array.shape):
            kept = array[place]
            array[place] = kept + step
            high = model.loss(params, x, y)
            array[place] = kept - step
            expected[place] = (high - model.loss(params, x, y)) / (2 * step)
            array[place] = kept
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


@every_model
def test_descent_makes_the_loss_fall(model: Model) -> None:
    x, y = records(model)
    params = model.initial(np.random.default_rng(0))
    losses = [model.loss(params, x, y)]
    for _ in range(50):
        params = [p - 0.05 * g for p, g in zip(params, model.gradient(params, x, y), strict=True)]
        losses.append(model.loss(params, x, y))
    assert all(after < before for before, after in pairwise(losses))
    assert losses[-1] < 0.9 * losses[0]


@every_model
def test_nothing_given_is_changed(model: Model) -> None:
    x, y = records(model)
    params = model.initial(np.random.default_rng(0))
    before = [a.copy() for a in (*params, x, y)]
    model.gradient(params, x, y)
    model.scores(params, x)
    model.loss(params, x, y)
    for array, kept in zip((*params, x, y), before, strict=True):
        np.testing.assert_array_equal(array, kept)


@pytest.mark.parametrize("model", [LogisticRegression(4, 3), MLP(4, 3)])
def test_scores_are_probabilities_even_far_out(model: Model) -> None:
    x, y = records(model)
    params = [p + 1e3 for p in model.initial(np.random.default_rng(0))]
    for scale in (1.0, 1e4):
        scores = model.scores(params, scale * x)
        assert scores.shape == (len(x), 3)
        assert (scores >= 0).all()
        np.testing.assert_allclose(scores.sum(axis=1), 1.0)
    assert np.isfinite(model.loss(params, 1e4 * x, y))


def test_the_loss_before_training_is_known() -> None:
    x, y = records(LogisticRegression(4, 3))
    logistic = LogisticRegression(4, 3)
    assert logistic.loss(logistic.initial(np.random.default_rng(0)), x, y) == pytest.approx(np.log(3))
    linear = LinearRegression(4)
    x, y = records(linear)
    assert linear.loss(linear.initial(np.random.default_rng(0)), x, y) == pytest.approx((y**2).mean() / 2)


def test_linear_regression_finds_the_least_squares() -> None:
    model = LinearRegression(4, l2=0.0)
    x, y = records(model)
    best = np.linalg.lstsq(np.c_[x, np.ones(len(x))], y, rcond=None)[0]
    gradient = model.gradient([best[:4], best[4:]], x, y)
    assert max(np.abs(g).max() for g in gradient) < 1e-12
    assert model.scores([best[:4], best[4:]], x).shape == (len(x),)


def test_the_bias_is_not_penalised() -> None:
    for model in (LogisticRegression(4, 3, l2=10.0), LinearRegression(4, l2=10.0)):
        x, y = records(model)
        params = model.initial(np.random.default_rng(0))
        unpenalised = type(model)(*([4, 3] if len(params[0].shape) == 2 else [4]), l2=0.0)
        params[1] = params[1] + 1.0
        assert model.loss(params, x, y) == unpenalised.loss(params, x, y)


def test_mlp_starts_at_he_scale_and_from_its_seed() -> None:
    model = MLP(200, 3, hidden=300)
    first, bias, second, last = model.initial(np.random.default_rng(1))
    assert first.std() == pytest.approx(np.sqrt(2 / 200), rel=0.05)
    assert second.std() == pytest.approx(np.sqrt(2 / 300), rel=0.1)
    assert not bias.any()
    assert not last.any()
    np.testing.assert_array_equal(first, model.initial(np.random.default_rng(1))[0])
    assert (first != model.initial(np.random.default_rng(2))[0]).any()
