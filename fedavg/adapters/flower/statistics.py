"""Statistics over tables that nodes hold, and no learning: a ClientApp, and what the ServerApp asks.

    app = statistics_app()                                                     # the ClientApp
    results = ask(SecAggGrid(grid, context), queries)                          # in the ServerApp

A node's own configuration says what it holds and how it guards it: see `fedavg.adapters.site.Own`. The budget
of queries is counted in a file beside the table. What all this protects from, and what not, stands at the top
of `fedavg.statistics`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from msgspec import UNSET
from numpy.typing import NDArray

from fedavg.adapters.flower.grid import SecAggGrid
from fedavg.adapters.flower.mod import Refused, Vector, take_part
from fedavg.adapters.flower.records import bytes_of
from fedavg.adapters.opening import PREFIX, STATISTICS_TERMS, Opening
from fedavg.adapters.site import Own, Site
from fedavg.budget import Budget, BudgetSpent
from fedavg.statistics import (
    Holding,
    Query,
    Result,
    answer,
    bound,
    finish,
    from_bytes_checked,
    length,
    to_bytes,
)
from fedavg.table import read_table
from protocols.errors import Aborted, LocalError

QUERY = "query"
_KIND = "query.statistics"

AnyPath = str | os.PathLike[str]


def statistics_app(table: Callable[[Context], AnyPath] | None = None) -> ClientApp:
    """A ClientApp that answers the queries of `ask`, and nothing else.

    `table` gives the path of a node's CSV file where that is not `secagg-table` of its configuration: for
    simulations, in which nodes are told apart by `context.node_config["partition-id"]`.
    """
    app = ClientApp()

    @app.query("statistics")
    def statistics(message: Message, context: Context) -> Message:
        def make(instruction: RecordDict, opening: Opening, site: Site) -> Callable[[], Vector]:
            if opening.plan is not None or opening.settings.epsilon:
                raise Refused("statistics have no noise, and are not answered where noise is demanded")
            return lambda: _answer(instruction, opening, site.own, None if table is None else table(context))

        return take_part(message, context, make, STATISTICS_TERMS)

    return app


def _answer(instruction: RecordDict, opening: Opening, own: Own, table: AnyPath | None) -> NDArray[np.int64]:
    most = opening.settings.max_records
    query = from_bytes_checked(bytes_of(instruction.config_records[QUERY], "query"))
    if (length(query), bound(query, most)) != (opening.length, opening.bound):
        raise Refused("the query does not fit the round that was opened for it")
    if table is None and own.table is UNSET:
        raise ValueError(f"expected {PREFIX}table, the path of a CSV file, in the node's configuration")
    path = Path(str(own.table) if table is None else table)
    holding = Holding(read_table(path), own.min_cell, Budget(own.query_budget, path.with_suffix(".budget")))
    try:
        return answer(query, holding, most)
    except BudgetSpent:
        raise Refused("its budget of queries is spent") from None


def ask(
    grid: SecAggGrid, queries: Iterable[Query], *, min_nodes: int = 3, timeout: float = 600.0
) -> list[Result | Aborted]:
    """One round for each query, over all nodes once `min_nodes` are there; each one's result, or why none.

    `secagg-max-records` is a public bound on a node's records: one with more does not answer. `timeout`, in
    seconds, is for a node's work on a query; for `min_nodes` it waits without limit. Raises `LocalError` for
    settings that cannot be.
    """
    results: list[Result | Aborted] = []
    for query in queries:
        while len(nodes := list(grid.get_node_ids())) < min_nodes:
            time.sleep(0.5)
        like = Message(RecordDict({QUERY: ConfigRecord({"query": to_bytes(query)})}), nodes[0], _KIND)
        settings = grid.settings(len(nodes))
        if settings.epsilon:
            raise LocalError(f"statistics have no noise: expected no {PREFIX}epsilon in the configuration")
        cohort, most = grid.gather(nodes, like, settings), settings.max_records
        opening = grid.open(like, cohort, settings, length(query), bound(query, most))
        total = grid.sum(like, cohort, opening, timeout)
        if isinstance(total, Aborted):
            results.append(total)
            continue
        try:
            results.append(finish(query, total.sum, len(total.included), most))
        except ValueError as error:
            results.append(grid.spoilt(error))
    return results
