"""A hospital: logistic regression on its own table, the path of which is in its node's configuration."""

import csv
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedavg.adapters.flower import secagg_mod

# What is measured, and what is known of it from elsewhere: a usual value, and how far people differ.
COLUMNS = {
    "mean radius": (14.0, 3.5),
    "mean texture": (19.0, 4.0),
    "mean smoothness": (0.1, 0.015),
    "mean concavity": (0.09, 0.08),
    "worst radius": (16.0, 5.0),
    "worst concave points": (0.11, 0.065),
}

app = ClientApp()


def load(context):
    """Features (records, columns), and 1 for malignant."""
    tables = sorted(Path(context.run_config["tables"]).glob("*.csv"))  # of a simulation
    own = context.node_config
    path = own["secagg-table"] if "secagg-table" in own else tables[own["partition-id"]]
    with Path(path).open(newline="") as file:
        records = list(csv.DictReader(file))
    x = [[(float(r[c]) - usual) / spread for c, (usual, spread) in COLUMNS.items()] for r in records]
    return np.array(x), np.array([float(r["diagnosis"] == "malignant") for r in records])


def predict(arrays, x):
    weights, bias = arrays
    return 1 / (1 + np.exp(-(x @ weights + bias)))


@app.train(mods=[secagg_mod])
def train(message, context):
    x, y = load(context)
    weights, bias = message.content["arrays"].to_numpy_ndarrays()
    for _ in range(20):
        wrong = predict((weights, bias), x) - y
        weights = weights - context.run_config["learning-rate"] * x.T @ wrong / len(y)
        bias = bias - context.run_config["learning-rate"] * wrong.mean()
    chance = np.clip(predict((weights, bias), x), 1e-6, 1 - 1e-6)
    loss = -np.mean(y * np.log(chance) + (1 - y) * np.log(1 - chance))
    arrays = ArrayRecord([weights.astype(np.float32), np.asarray(bias, np.float32)])
    metrics = MetricRecord({"num-examples": len(y), "loss": float(loss)})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)


@app.evaluate(mods=[secagg_mod])
def evaluate(message, context):
    x, y = load(context)
    right = (predict(message.content["arrays"].to_numpy_ndarrays(), x) > 0.5) == y
    metrics = MetricRecord({"num-examples": len(y), "accuracy": float(right.mean())})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)
