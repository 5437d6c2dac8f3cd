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
    least = context.run_config["hospitals"]
    strategy = FedAvg(min_available_nodes=least, min_train_nodes=least, min_evaluate_nodes=least)
    start = ArrayRecord([np.zeros(6, np.float32), np.zeros((), np.float32)])
    result = strategy.start(grid, start, num_rounds=context.run_config["rounds"])
    if not result.arrays:
        raise SystemExit("no round had a sum: the model is what it was at the start")
    np.savez(context.run_config["model"], *result.arrays.to_numpy_ndarrays())
    for number, metrics in result.evaluate_metrics_clientapp.items():
        print(f"round {number}: accuracy {metrics['accuracy']:.3f} over all hospitals")
