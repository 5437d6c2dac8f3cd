"""The server: Flower's federated averaging, as it is."""

import numpy as np
from flwr.app import ArrayRecord
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

from fedavg.adapters.flower import SecAggGrid

app = ServerApp()


@app.main()
def main(grid, context):
    grid = SecAggGrid(grid, context)
    strategy = FedAvg(min_available_nodes=3, min_train_nodes=3, min_evaluate_nodes=3)
    start = ArrayRecord([np.zeros(6, np.float32), np.zeros((), np.float32)])
    result = strategy.start(grid, start, num_rounds=context.run_config["rounds"])
    if not result.arrays:
        raise SystemExit("no round had a sum: the model is what it was at the start")
    np.savez(context.run_config["model"], *result.arrays.to_numpy_ndarrays())
    for number, metrics in result.evaluate_metrics_clientapp.items():
        print(f"round {number}: accuracy {metrics['accuracy']:.3f} over all hospitals")
