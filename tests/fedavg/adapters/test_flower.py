"""The Flower adapter over real messages and apps, node by node in this process."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAdam, FedAvg

from fedavg.adapters.flower import SecAggGrid, SecAggPlusWorkflow, secagg_mod

SHAPES = ((4, 3), (5,), ())


def model(seed: int = 0) -> ArrayRecord:
    rng = np.random.default_rng(seed)
    return ArrayRecord(
        {f"layer.{i}": Array(np.asarray(rng.normal(size=s), np.float32)) for i, s in enumerate(SHAPES)}
    )


def make_app(*mods: Any) -> ClientApp:
    app = ClientApp()

    @app.train(mods=list(mods))
    def train(message: Message, context: Context) -> Message:
        rng = np.random.default_rng(context.node_id)
        arrays = {
            k: Array(np.asarray(a.numpy() + rng.normal(scale=0.1, size=a.shape), np.float32))
            for k, a in message.content["arrays"].items()
        }
        metrics = MetricRecord({"num-examples": 10 + context.node_id, "loss": 1 / context.node_id})
        return Message(RecordDict({"arrays": ArrayRecord(arrays), "metrics": metrics}), reply_to=message)

    @app.evaluate(mods=list(mods))
    def evaluate(message: Message, context: Context) -> Message:
        metrics = MetricRecord({"num-examples": context.node_id, "accuracy": 50 / context.node_id})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return app


CONFIG = {
    "secagg-max-weight": 1000,
    "secagg-train-metrics": "loss:0:1",
    "secagg-evaluate-metrics": "accuracy:0:1",
}


@pytest.mark.parametrize("strategy", [FedAvg, FedAdam])
def test_an_untouched_strategy_gets_what_it_would_have(local_grid: Any, strategy: Any) -> None:
    plain = local_grid(make_app(), 10)
    expected = strategy().start(plain, model(), num_rounds=3)
    grid = local_grid(make_app(secagg_mod), 10, run_config=CONFIG)
    secure = SecAggGrid(grid, grid.context(CONFIG))
    found = strategy().start(secure, model(), num_rounds=3)
    for key, array in expected.arrays.items():
        np.testing.assert_allclose(found.arrays[key].numpy(), array.numpy(), atol=1e-5)
        assert found.arrays[key].dtype == array.dtype
    for n in (1, 2, 3):
        assert found.train_metrics_clientapp[n]["loss"] == pytest.approx(
            expected.train_metrics_clientapp[n]["loss"], abs=1e-6
        )
        assert found.evaluate_metrics_clientapp[n]["accuracy"] == pytest.approx(
            expected.evaluate_metrics_clientapp[n]["accuracy"], abs=1e-6
        )
    assert [len(r.included) for r in secure.rounds] == [10] * 6


# ---------------------------------------------------------------------------------------- the legacy API


def legacy_app(*mods: Any) -> ClientApp:
    from flwr.client import NumPyClient

    class Client(NumPyClient):
        def __init__(self, node: int) -> None:
            self.node = node

        def fit(self, parameters: Any, config: Any) -> Any:
            rng = np.random.default_rng(self.node)
            new = [np.asarray(p + rng.normal(scale=0.1, size=p.shape), np.float32) for p in parameters]
            return new, 10 + self.node, {"loss": 1 / self.node}

        def evaluate(self, parameters: Any, config: Any) -> Any:
            return 1 / self.node, self.node, {"accuracy": 50 / self.node}

    return ClientApp(lambda context: Client(context.node_id).to_client(), mods=list(mods))


def run_legacy(local_grid: Any, app: ClientApp, strategy: Any, rounds: int = 2, **workflows: Any) -> Any:
    from flwr.server import LegacyContext, ServerConfig
    from flwr.server.workflow import DefaultWorkflow

    grid = local_grid(app, 10)
    context = LegacyContext(grid.context(), ServerConfig(num_rounds=rounds), strategy)
    DefaultWorkflow(**workflows)(grid, context)
    (arrays,) = context.state.array_records.values()
    return [a.numpy() for a in arrays.values()], context.history


def weighted(results: Any) -> Any:
    total = sum(n for n, _ in results)
    return {k: sum(n * m[k] for n, m in results) / total for k in results[0][1]}


def test_the_legacy_workflow_takes_the_place_of_flowers(local_grid: Any) -> None:
    from flwr.common import ndarrays_to_parameters
    from flwr.server.strategy import FedAvg as LegacyFedAvg

    def strategy() -> Any:
        start = ndarrays_to_parameters([a.numpy() for a in model().values()])
        return LegacyFedAvg(
            initial_parameters=start, min_available_clients=10, fit_metrics_aggregation_fn=weighted,
            evaluate_metrics_aggregation_fn=weighted,
        )  # fmt: skip

    expected, history = run_legacy(local_grid, legacy_app(), strategy())
    workflow = SecAggPlusWorkflow(
        10, 6, train_metrics="loss:0:1", evaluate_metrics="loss:0:1, accuracy:0:1", timeout=5
    )
    found, ours = run_legacy(
        local_grid,
        legacy_app(secagg_mod),
        strategy(),
        fit_workflow=workflow,
        evaluate_workflow=workflow.evaluate,
    )
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)
        assert a.dtype == b.dtype
    assert ours.losses_distributed[1][1] == pytest.approx(history.losses_distributed[1][1], abs=1e-4)
    assert ours.metrics_distributed["accuracy"][1][1] == pytest.approx(
        history.metrics_distributed["accuracy"][1][1], abs=1e-4
    )
