"""Secure aggregation for Flower (extra `flower`): a grid for its ServerApp, a mod for its ClientApp.

    grid = SecAggGrid(grid, context)              # in the ServerApp, before strategy.start(grid=grid, ...)
    @app.train(mods=[secagg_mod])                 # in the ClientApp; the same for @app.evaluate

The strategy stays as it is. It hands the grid one instruction for each node; the grid runs a session with
those nodes and hands back one reply for each that is in the sum. All these replies are alike: the weighted
mean of the sites' arrays and metrics, and as `num-examples` an equal part of the sum of the weights, so that
whatever a strategy computes from weighted means and total weights comes out as it would have, and what
needs to see one site's reply cannot work; strategies known to need that are refused. Nodes that dropped out
get an error reply. A round without a sum gives errors only, after which Flower's strategies keep the model.

Integer arrays (counters) are not averaged: they stay as the server sent them. Metrics travel masked like the
rest, if their names and ranges are set (`secagg-train-metrics`, `secagg-evaluate-metrics`), and else not at
all. See `fedavg.adapters.opening.Settings` for what can be set in `run_config`.

What it does not protect: what the ServerApp sends; what a ClientApp sends by functions without the mod.
"""

from fedavg.adapters.flower.grid import Round, SecAggGrid
from fedavg.adapters.flower.mod import secagg_mod
from fedavg.adapters.flower.statistics import ask, statistics_app
from fedavg.adapters.flower.workflow import SecAggPlusWorkflow

__all__ = ["Round", "SecAggGrid", "SecAggPlusWorkflow", "ask", "secagg_mod", "statistics_app"]
