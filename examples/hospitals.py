"""Tables to try things on: breast cancer records spread over uneven hospitals, a CSV file each.

python examples/hospitals.py FOLDER [HOSPITALS]
"""

import argparse
import csv
from pathlib import Path

import numpy as np

from fedavg.datasets import breast_cancer
from fedavg.partition import dirichlet

NAMES = ("oslo", "pisa", "york", "graz", "lyon", "cork", "riga", "bern", "gent", "brno")


def write(folder, count=5, seed=1):
    """Write `count` tables into `folder`; their paths."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    data, names = breast_cancer(), list(NAMES[:count])
    parts = dirichlet(data.y, names, np.random.default_rng(seed), 1.0, least=30)
    paths = []
    for name in names:
        paths.append(Path(folder) / f"{name}.csv")
        with paths[-1].open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow([*data.features, "diagnosis"])
            for i in parts[name]:
                writer.writerow([*(f"{v:.6g}" for v in data.x[i]), data.classes[data.y[i]]])
    return paths


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write tables of invented hospitals.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("count", type=int, nargs="?", default=5, choices=range(1, len(NAMES) + 1))
    parser.add_argument("seed", type=int, nargs="?", default=1)
    for path in write(**vars(parser.parse_args())):
        print(path)
