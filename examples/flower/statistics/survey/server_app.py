from flwr.serverapp import ServerApp

from fedavg.adapters.flower import SecAggGrid, ask
from fedavg.statistics import Count, Histogram, Variance, equal_edges, shown
from protocols.errors import Aborted

QUERIES = [Count(), Variance("mean radius", 5, 30), Histogram("worst area", equal_edges(0, 3000, 6))]

app = ServerApp()


@app.main()
def main(grid, context):
    for found in ask(SecAggGrid(grid, context), QUERIES):
        rows = [(str(found),)] if isinstance(found, Aborted) else found.rows()
        print(*("   ".join(map(shown, row)) for row in rows), sep="\n")
