"""Statistics over tables that nodes hold, and no learning: a ClientApp, and what the ServerApp asks.

    app = statistics_app()                                                     # the ClientApp
    results = ask(SecAggGrid(grid, context), queries, max_records=10_000)      # in the ServerApp

A node's own configuration says what it holds and how it guards it: `secagg-table`, the path of a CSV file;
`secagg-min-cell`, below which it hides counts (default 5); `secagg-query-budget`, how many queries it answers
at all (default 20), counted in a file beside the table; `secagg-max-records`, the bound that a query must
name (default 10000 with an identity, else any). What these protect from, and what not, stands at the top of
`fedavg.statistics`.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from numpy.typing import NDArray

from fedavg.adapters.flower.grid import SecAggGrid
from fedavg.adapters.flower.mod import Refused, take_part
from fedavg.adapters.flower.records import bytes_of
from fedavg.adapters.opening import PREFIX, Opening
from fedavg.budget import Budget, BudgetSpent
from fedavg.statistics import (
    MIN_CELL,
    Query,
    Result,
    Site,
    answer,
    bound,
    finish,
    from_bytes_checked,
    length,
    to_bytes,
)
from fedavg.table import read_table
from protocols.errors import Aborted

_log = logging.getLogger("flwr.secagg")

QUERY = "query"
_KIND = "query.statistics"
_MAX_RECORDS = 10_000

AnyPath = str | os.PathLike[str]


def statistics_app(table: Callable[[Context], AnyPath] | None = None) -> ClientApp:
    """A ClientApp that answers the queries of `ask`, and nothing else.

    `table` gives the path of a node's CSV file where that is not `secagg-table` of its configuration: for
    simulations, in which nodes are told apart by `context.node_config["partition-id"]`.
    """
    app = ClientApp()

    @app.query("statistics")
    def statistics(message: Message, context: Context) -> Message:
        def make(instruction: RecordDict, opening: Opening) -> NDArray[np.int64]:
            return _answer(instruction, opening, context, table)

        return take_part(message, context, make)

    return app


def _answer(
    instruction: RecordDict, opening: Opening, context: Context, table: Callable[[Context], AnyPath] | None
) -> NDArray[np.int64]:
    record = instruction.config_records[QUERY]
    query, most = from_bytes_checked(bytes_of(record, "query")), record["max_records"]
    if not isinstance(most, int) or (length(query), bound(query, most)) != (opening.length, opening.bound):
        raise Refused("the query does not fit the round that was opened for it")
    own = context.node_config
    known = own.get(PREFIX + "max-records", _MAX_RECORDS if PREFIX + "identity" in own else most)
    if most != known:
        raise Refused(f"max_records is not {PREFIX}max-records of its own configuration")
    path = own.get(PREFIX + "table") if table is None else table(context)
    if path is None:
        raise ValueError(f"expected {PREFIX}table, the path of a CSV file, in the node's configuration")
    place = Path(str(path))
    budget = Budget(int(own.get(PREFIX + "query-budget", 20)), place.with_suffix(".budget"))
    site = Site(read_table(place), int(own.get(PREFIX + "min-cell", MIN_CELL)), budget)
    try:
        return answer(query, site, most)
    except BudgetSpent:
        raise Refused("its budget of queries is spent") from None


def ask(
    grid: SecAggGrid, queries: Iterable[Query], max_records: int, *, min_nodes: int = 3,
    timeout: float = 600.0,
) -> list[Result | Aborted]:  # fmt: skip
    """One round for each query, over all nodes once `min_nodes` are there; each one's result, or why none.

    `max_records` is a public bound on a node's records: one with more does not answer, and one with an
    identity only if its configuration has the same bound. `timeout`, in seconds, is for a node's work on a
    query.
    """
    results: list[Result | Aborted] = []
    for query in queries:
        content = RecordDict({QUERY: ConfigRecord({"query": to_bytes(query), "max_records": max_records})})
        while len(nodes := list(grid.get_node_ids())) < min_nodes:
            time.sleep(0.5)
        like = Message(content, nodes[0], _KIND)
        settings = grid.settings(len(nodes))
        cohort = grid.gather(nodes, like, settings)
        total = grid.sum(like, cohort, settings, length(query), bound(query, max_records), timeout)
        if isinstance(total, Aborted):
            results.append(total)
            continue
        try:
            results.append(finish(query, total.sum, len(total.included), max_records))
        except ValueError as error:  # no proof says that answers are honest: one node can spoil a sum
            results.append(Aborted("sum", str(error), revealed=True))
    return results
