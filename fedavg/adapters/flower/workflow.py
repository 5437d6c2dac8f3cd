"""The legacy API: a workflow that takes the place of Flower's own SecAgg+, with its arguments."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from math import inf
from typing import Any

import msgspec
from flwr.app import Context, Message
from flwr.serverapp import Grid

from fedavg.adapters.flower.grid import SecAggGrid
from fedavg.adapters.flower.records import log
from fedavg.adapters.flower.strategies import check_averages
from fedavg.adapters.opening import Settings
from protocols.errors import Infeasible, LocalError
from protocols.graph import MALICIOUS, SECAGG, SECAGG_PLUS, parameters


class SecAggPlusWorkflow:
    """In the place of Flower's class of that name, with its arguments.

        workflow = SecAggPlusWorkflow(num_shares=..., reconstruction_threshold=...)
        DefaultWorkflow(fit_workflow=workflow, evaluate_workflow=workflow.evaluate)

    num_shares, reconstruction_threshold
                        taken where they are safe for the cohort; else the parameter finder's own, and a
                        warning says both. As fractions: of the cohort, and of the shares
    max_weight          largest number of examples of a client; a larger one is refused, not cut
    clipping_range      each entry of an update (not of the parameters) is cut to it
    quantization_range  points of the grid, rounded down to a power of two
    modulus_range       a power of two; refused where the sum of all clients would not fit
    timeout             seconds to wait in each stage; None waits for all to train, and then a minute a stage

    Other settings (`threat_model`, `evaluate_metrics` ...) are keywords, or stand in `run_config`: see
    `fedavg.adapters.opening.Settings`.
    """

    def __init__(
        self, num_shares: float, reconstruction_threshold: float, *, max_weight: float = 1000.0,
        clipping_range: float = 8.0, quantization_range: int = 1 << 22, modulus_range: int = 1 << 32,
        timeout: float | None = None, roster: str | os.PathLike[str] | None = None, **settings: Any,
    ) -> None:  # fmt: skip
        for name, value in (("quantization_range", quantization_range), ("modulus_range", modulus_range)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 4:
                raise LocalError(f"{name}: expected an integer of at least 4, got {value!r}")
        for name, share in (
            ("num_shares", num_shares),
            ("reconstruction_threshold", reconstruction_threshold),
        ):
            if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share < inf:
                raise LocalError(f"{name}: expected a number above 0, got {share!r}")
        if modulus_range.bit_count() != 1:
            raise LocalError(f"modulus_range: expected a power of two, got {modulus_range}")
        self._shares, self._threshold, self._timeout = num_shares, reconstruction_threshold, timeout
        self._roster = roster
        self._given = {
            # The sparse graph of Flower's own, but where a server could choose it.
            "protocol": SECAGG if settings.get("threat_model") == MALICIOUS else SECAGG_PLUS,
            "norm": "max", "weight_key": "num_examples",
            "max_weight": int(max_weight), "clipping_norm": float(clipping_range),
            "bits": quantization_range.bit_length() - 1, "ring_bits": modulus_range.bit_length() - 1,
            **({} if timeout is None else {"timeout": float(timeout)}), **settings,
        }  # fmt: skip
        self._wrapped: _WorkflowGrid | None = None

    def __call__(self, grid: Grid, context: Context) -> None:
        """One round of training."""
        self._work("default_fit_workflow", grid, context)

    def evaluate(self, grid: Grid, context: Context) -> None:
        """One round of evaluation: losses and metrics summed like updates."""
        self._work("default_evaluate_workflow", grid, context)

    def _work(self, which: str, grid: Grid, context: Context) -> None:
        from flwr.server import LegacyContext
        from flwr.server.workflow import default_workflows

        if not isinstance(context, LegacyContext):
            raise TypeError(f"context: expected a LegacyContext, got {type(context).__name__}")
        check_averages(context.strategy, self._given["max_weight"])
        if not any(len(arrays) for arrays in context.state.array_records.values()):
            raise LocalError(
                "the strategy has no initial_parameters, and nodes are not asked for theirs: give it some"
            )
        if self._wrapped is None:  # one for all rounds: it remembers which node is who
            wanted = (self._shares, self._threshold, self._timeout)
            self._wrapped = _WorkflowGrid(grid, context, wanted, self._roster, self._given)
        getattr(default_workflows, which)(self._wrapped, context)


class _WorkflowGrid(SecAggGrid):
    """A grid that takes degree and threshold from the number of shares, and has a timeout of its own."""

    def __init__(
        self, grid: Grid, context: Context, wanted: tuple[float, float, float | None],
        roster: str | os.PathLike[str] | None, settings: Mapping[str, Any],
    ) -> None:  # fmt: skip
        super().__init__(grid, context, roster=roster, **settings)
        self._wanted = wanted
        self._taken: tuple[int, int] | None = None

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        return super().send_and_receive(messages, timeout=self._wanted[2] if timeout is None else timeout)

    def settings(self, nodes: int) -> Settings:
        found = super().settings(nodes)
        shares, threshold, _ = self._wanted
        shares = round(shares * nodes) if isinstance(shares, float) or shares == 1 else shares
        threshold = round(threshold * shares) if isinstance(threshold, float) or threshold == 1 else threshold
        degree, threshold = min(int(shares), nodes) - 1, int(threshold)
        demands = (nodes, found.corrupted, found.dropout, found.protocol, found.threat_model)
        try:
            own = parameters(*demands)
        except Infeasible:  # not for the shares' sake: the round says why
            return found
        try:
            parameters(*demands, degree=degree, threshold=threshold)
        except Infeasible as error:
            taken = (own.degree + 1, own.threshold)
            if taken != self._taken:
                self._taken = taken
                log.warning(
                    "secagg: num_shares %d and reconstruction_threshold %d are not safe here (%s): "
                    "taking %d and %d", shares, threshold, error, *taken,
                )  # fmt: skip
            return found
        return msgspec.structs.replace(found, degree=degree, threshold=threshold)
