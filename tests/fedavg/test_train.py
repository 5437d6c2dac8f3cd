"""Local SGD: every record once an epoch, batches of the stated size, plain descent."""

from itertools import chain
from typing import Any

import numpy as np
import pytest

from fedavg.models import LinearRegression, LogisticRegression
from fedavg.train import LocalSGD


class Recorder(LinearRegression):
    """Remembers the batches it was given, by their first feature."""

    def __init__(self) -> None:
        super().__init__(1, l2=0.0)
        self.batches: list[list[int]] = []

    def gradient(self, params: Any, x: Any, y: Any) -> Any:
        assert (x[:, 0] == y).all(), "records and targets are shuffled together"
        self.batches.append([int(v) for v in x[:, 0]])
        return super().gradient(params, x, y)


@pytest.mark.parametrize(("records", "size"), [(10, 3), (10, 5), (10, 1), (10, 100), (1, 4)])
def test_each_record_once_an_epoch(records: int, size: int) -> None:
    model = Recorder()
    x = np.arange(records, dtype=np.float64)
    LocalSGD(3, size, 1e-6)(
        model, model.initial(np.random.default_rng(0)), x[:, None], x, np.random.default_rng(5)
    )
    a_pass = -(-records // size)
    assert len(model.batches) == 3 * a_pass
    for epoch in range(3):
        batches = model.batches[epoch * a_pass : (epoch + 1) * a_pass]
        assert all(len(b) == size for b in batches[:-1])
        assert sorted(chain.from_iterable(batches)) == list(range(records))
    if records > 5:
        assert model.batches[:a_pass] != model.batches[a_pass : 2 * a_pass]


def test_one_full_batch_is_one_gradient_step() -> None:
    model = LogisticRegression(3)
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(9, 3)), rng.integers(0, 2, 9)
    params = [rng.normal(size=p.shape) for p in model.initial(rng)]
    kept = [p.copy() for p in params]
    trained = LocalSGD(1, 100, 0.25)(model, params, x, y, np.random.default_rng(0))
    for new, old, g, copy in zip(trained, params, model.gradient(kept, x, y), kept, strict=True):
        np.testing.assert_array_equal(old, copy)
        np.testing.assert_allclose(new, old - 0.25 * g, rtol=1e-12, atol=1e-15)


def test_the_seed_reproduces() -> None:
    model = LogisticRegression(3)
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(50, 3)), rng.integers(0, 2, 50)
    start = model.initial(rng)
    one, same, other = (
        LocalSGD(2, 8, 0.1)(model, start, x, y, np.random.default_rng(s))[0] for s in (3, 3, 4)
    )
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()


def test_the_loss_falls() -> None:
    model = LogisticRegression(3)
    rng = np.random.default_rng(1)
    x = rng.normal(size=(100, 3))
    y = (x[:, 0] > 0).astype(np.int64)
    start = model.initial(rng)
    trained = LocalSGD(5, 16, 0.2)(model, start, x, y, rng)
    assert model.loss(trained, x, y) < 0.6 * model.loss(start, x, y)


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0}, {"epochs": -1}, {"batch_size": 0}, {"learning_rate": 0.0},
        {"learning_rate": -0.1}, {"learning_rate": float("nan")}, {"learning_rate": float("inf")},
    ],
)  # fmt: skip
def test_bad_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected positive epochs, batch_size and learning_rate"):
        LocalSGD(**wrong)


@pytest.mark.parametrize("rate", [1e3, 1e300])
def test_training_that_diverges_is_refused_without_a_warning(rate: float) -> None:
    model, rng = LinearRegression(2), np.random.default_rng(0)
    x, y = rng.normal(size=(20, 2)) * 100, rng.normal(size=20)
    start = model.initial(rng)
    kept = [p.copy() for p in start]
    with pytest.raises(ValueError, match=r"training diverged at learning rate .*: try a smaller one"):
        LocalSGD(50, 2, rate)(model, start, x, y, rng)
    for given, copy in zip(start, kept, strict=True):
        np.testing.assert_array_equal(given, copy)
