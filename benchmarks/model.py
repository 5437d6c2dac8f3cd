"""The cost model against real sessions: CPU seconds and bytes, predicted and measured, over a grid.

Every session is real and in one process. Predictions and sessions take turns, and of either the least of the
repeats counts. All on one thread: other threads of the linear algebra wait busily, and that would be counted.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from random import Random
from time import process_time
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from record import Edition, machine, names_of

from protocols.estimate import estimate
from protocols.graph import COMPLETE_BELOW
from protocols.simulator import simulate
from secagg import Aborted

BOUND = 1 << 16
WITHIN = 0.25
AGREED = {"corrupted": 0.05, "dropout": 0.3}
KINDS = (
    ("secagg", "honest-but-curious"),
    ("secagg", "malicious"),
    ("secagg+", "honest-but-curious"),
    ("secagg+", "semi-malicious"),
)
MOST_ENTRIES = 10**8  # of all vectors together: they are all in this process


@dataclass
class Row:
    """One kind of session. Seconds of CPU of a mean client and of the server; bytes of a mean client."""

    n: int
    dim: int
    protocol: str
    threat_model: str
    dropping: float
    k: int
    t: int
    b: int
    client: float
    client_predicted: float
    server: float
    server_predicted: float
    up: int
    up_predicted: int
    down: int
    down_predicted: int

    @property
    def ratios(self) -> tuple[float, float]:
        return self.client_predicted / self.client, self.server_predicted / self.server

    @property
    def within(self) -> bool:
        return all(abs(ratio - 1) <= WITHIN for ratio in self.ratios)


def grid(edition: Edition) -> Iterator[dict[str, Any]]:
    """The sessions to run."""
    cohorts, dims, fractions = {
        "tiny": ((10, 60), (1000,), (0.1,)),
        "small": ((10, 100), (10**3, 10**5), (0.0, 0.3)),
        "full": ((10, 100, 400), (10**3, 10**5, 10**6), (0.0, 0.3)),
    }[edition]
    for n, dim, (protocol, model), dropping in product(cohorts, dims, KINDS, fractions):
        if protocol == "secagg+" and n < COMPLETE_BELOW:
            continue  # the complete graph again
        if n * dim <= MOST_ENTRIES:
            yield {
                "n": n, "dim": dim, "protocol": protocol, "threat_model": model, "dropping": dropping
            }  # fmt: skip


def lower(least: list[float], rows: list[Any]) -> None:
    """Keep the lesser of client seconds and of server seconds, each over all stages."""
    for side, whose in enumerate(("client_cpu_mean", "server_cpu")):
        least[side] = min(least[side], sum(getattr(row, whose) for row in rows))


def compare(repeats: int, enough: float, *, n: int, dim: int, dropping: float, **kind: str) -> Row:
    """Predict and run one kind of session."""
    best, predicted = [float("inf")] * 2, [float("inf")] * 2
    drop = dict.fromkeys(Random(n).sample(names_of(n), round(dropping * n)), "masked")
    for _ in range(repeats):
        found = estimate(n, dim, bound=BOUND, dropping=dropping, **AGREED, **kind)
        lower(predicted, found.rows())
        start = process_time()
        while True:  # short sessions again and again, for so many seconds as are enough
            run = simulate(n, dim=dim, bound=BOUND, drop=drop, **AGREED, **kind)
            if isinstance(run.result, Aborted):
                raise run.result
            lower(best, run.rows())
            if process_time() - start > enough:
                break
    up, down = (
        (sum(row.client_bytes_up for row in its.rows()) for its in (run, found)),
        (sum(row.client_bytes_down for row in its.rows()) for its in (run, found)),
    )
    row = Row(
        n, dim, kind["protocol"], kind["threat_model"], dropping, found.parameters.degree,
        found.parameters.threshold, found.bits, best[0], predicted[0], best[1], predicted[1],
        *up, *down,
    )  # fmt: skip
    client, server = row.ratios
    print(
        f"  n = {n}, {dim:,} entries, {kind['protocol']}, {kind['threat_model']}, {dropping:.0%} gone: "
        f"measured; client {client:.2f}, server {server:.2f}",
        file=sys.stderr,
    )
    return row


def measure(edition: Edition) -> dict[str, Any]:
    """The grid."""
    rows = [compare(*((1, 0.2) if edition == "tiny" else (2, 1.0)), **kind) for kind in grid(edition)]
    where = machine("secagg", "numpy", "cryptography", "pynacl", "msgspec")
    return {"machine": where, "rows": [asdict(r) | {"within": r.within} for r in rows]}


def rows_of(content: dict[str, Any]) -> list[Row]:
    """The rows again."""
    return [Row(**{k: v for k, v in row.items() if k != "within"}) for row in content["rows"]]


def report(content: dict[str, Any]) -> list[str]:
    """The section of the page."""
    rows = rows_of(content)
    worst = max(abs(a / b - 1) for r in rows for a, b in ((r.up_predicted, r.up), (r.down_predicted, r.down)))
    lines = [
        "## The cost model against real sessions",
        "",
        "CPU milliseconds of a mean client and of the server in all stages: p predicted by",
        "`secagg simulate --estimate`, from operations timed for two seconds, m measured in a session; one",
        "thread, least of the repeats of either. `gone` is the fraction that drops out after dealing shares;",
        "no noise.",
        "",
        f"{sum(r.within for r in rows)} of {len(rows)} rows have both ratios within {WITHIN:.0%} of 1. Bytes "
        f"up and down are at most {worst:.2%} off.",
        "",
        "![predicted against measured](results/model.png)",
        "",
        "| n | entries | protocol | threat model | gone | k | t | b | client p | client m | p/m "
        "| server p | server m | p/m | bytes up p | m | down p | m |",
        "|--:|--:|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for r in rows:
        client, server = r.ratios
        lines.append(
            f"| {r.n} | {r.dim:,} | {r.protocol} | {r.threat_model} | {r.dropping:.0%} | {r.k} | {r.t} "
            f"| {r.b} | {r.client_predicted * 1e3:.2f} | {r.client * 1e3:.2f} | **{client:.2f}** "
            f"| {r.server_predicted * 1e3:.1f} | {r.server * 1e3:.1f} | **{server:.2f}** "
            f"| {r.up_predicted:,} | {r.up:,} | {r.down_predicted:,} | {r.down:,} |"
        )
    return lines


def picture(content: dict[str, Any], path: Path) -> None:
    """Predicted against measured, client and server, with the band of 25 %."""
    from matplotlib.figure import Figure

    rows = rows_of(content)
    figure = Figure(figsize=(9.0, 4.4), dpi=120, layout="constrained")
    for axes, who in zip(figure.subplots(1, 2), ("client", "server"), strict=True):
        for (protocol, model), colour in zip(
            KINDS, ("#2166ac", "#e08214", "#b2182b", "#444444"), strict=True
        ):
            its = [r for r in rows if (r.protocol, r.threat_model) == (protocol, model)]
            measured = [getattr(r, who) * 1e3 for r in its]
            predicted = [getattr(r, f"{who}_predicted") * 1e3 for r in its]
            axes.plot(measured, predicted, "o", ms=4, alpha=0.7, color=colour, label=f"{protocol}, {model}")
        ends = [min(getattr(r, who) for r in rows) * 7e2, max(getattr(r, who) for r in rows) * 1.4e3]
        axes.plot(ends, ends, color="#888888", lw=1)
        axes.fill_between(
            ends,
            [e * (1 - WITHIN) for e in ends],
            [e * (1 + WITHIN) for e in ends],
            color="#888888",
            alpha=0.2,
        )
        axes.set(xscale="log", yscale="log", xlabel="measured, CPU ms", ylabel="predicted, CPU ms")
        axes.set_title("a mean client" if who == "client" else "the server", loc="left", fontsize=11)
        axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path)
