"""Rounds in Flower's simulation engine, as a process of its own: prints what came of them as JSON.

    python tests/fedavg/adapters/engine.py FOLDER

Ten nodes, Flower's FedAvg as it is. In round k of the first run node 0 fails at its k-th message, and in the
fifth at none. Then the same training in the legacy API, with the workflow that takes the place of Flower's.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.client import NumPyClient
from flwr.clientapp import ClientApp
from flwr.common import ndarrays_to_parameters
from flwr.server import LegacyContext, ServerConfig
from flwr.server.strategy import FedAvg as LegacyFedAvg
from flwr.server.workflow import DefaultWorkflow
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

from fedavg.adapters.flower import SecAggGrid, SecAggPlusWorkflow, secagg_mod

NODES, ROUNDS, DIM = 10, 5, 1000
FAILS = {0, 2, 5, 9}  # of node 0's messages: the first of round 1, the second of round 2 ...
SETTINGS: dict[str, Any] = {"max_weight": 100, "clipping_norm": 100.0, "timeout": 60.0}
FOLDER = Path(sys.argv[1])
found: dict[str, Any] = {}


def place(context: Context) -> int:
    return int(context.node_config["partition-id"])


def fail(message: Message, context: Context, call_next: Any) -> Message:
    """A mod: node 0 counts its messages in a file, since Flower forgets the state of an app that fails."""
    if place(context) == 0:
        file = FOLDER / "messages"
        count = file.stat().st_size if file.exists() else 0
        with file.open("ab") as more:
            more.write(b".")
        if count in FAILS:
            raise RuntimeError("a fault on demand")
    reply: Message = call_next(message, context)
    return reply


new = ClientApp()


@new.train(mods=[fail, secagg_mod])
def train(message: Message, context: Context) -> Message:
    arrays = {
        k: Array(a.numpy() + np.float32(0.1 * (1 + place(context))))
        for k, a in message.content["arrays"].items()
    }
    metrics = MetricRecord({"num-examples": 10 + place(context)})
    return Message(RecordDict({"arrays": ArrayRecord(arrays), "metrics": metrics}), reply_to=message)


class Client(NumPyClient):
    def __init__(self, node: int) -> None:
        self.node = node

    def fit(self, parameters: Any, config: Any) -> Any:
        return [p + np.float32(0.1 * (1 + self.node)) for p in parameters], 10 + self.node, {}


legacy = ClientApp(lambda context: Client(place(context)).to_client(), mods=[secagg_mod])
server, legacy_server = ServerApp(), ServerApp()


@server.main()
def main(grid: Grid, context: Context) -> None:
    secure = SecAggGrid(grid, context, **SETTINGS)
    strategy = FedAvg(fraction_evaluate=0.0, min_available_nodes=NODES, min_train_nodes=NODES)
    result = strategy.start(secure, ArrayRecord([np.zeros(DIM, np.float32)]), num_rounds=ROUNDS)
    found["model"] = float(result.arrays["0"].numpy().mean())
    found["spread"] = float(np.ptp(result.arrays["0"].numpy()))
    found["included"] = [len(r.included) for r in secure.rounds]
    found["dropped"] = [list(r.dropped.values()) for r in secure.rounds]


@legacy_server.main()
def legacy_main(grid: Grid, context: Context) -> None:
    strategy = LegacyFedAvg(
        fraction_evaluate=0.0, min_available_clients=NODES, min_fit_clients=NODES,
        initial_parameters=ndarrays_to_parameters([np.zeros(DIM, np.float32)]),
    )  # fmt: skip
    state = LegacyContext(context, ServerConfig(num_rounds=2), strategy)
    DefaultWorkflow(fit_workflow=SecAggPlusWorkflow(NODES, 6, max_weight=100))(grid, state)
    (arrays,) = state.state.array_records.values()
    found["legacy"] = float(next(iter(arrays.values())).numpy().mean())


if __name__ == "__main__":
    backend: Any = {
        "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        "init_args": {"num_cpus": 2, "include_dashboard": False},
    }
    run_simulation(server, new, NODES, backend_config=backend)
    run_simulation(legacy_server, legacy, NODES, backend_config=backend)
    (FOLDER / "found.json").write_text(json.dumps(found))
