from flwr.serverapp import ServerApp

from fedavg.adapters.flower import SecAggGrid, ask
from fedavg.statistics import Contingency, Count, Variance, tabulate

QUERIES = [
    Count(),
    Variance("mean radius", 5, 30),
    Contingency("diagnosis", "diagnosis", ("malignant",), ("malignant",)),
]

app = ServerApp()


@app.main()
def main(grid, context):
    for title, rows in tabulate(ask(SecAggGrid(grid, context), QUERIES, max_records=1000)):
        print(title, *rows, sep="\n")
