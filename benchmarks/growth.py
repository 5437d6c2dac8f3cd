"""Growth: what clients and servers spend, and send, over cohort, dimension and dropout.

Beside each measured figure stands the protocol's asymptotic line (Bell et al. 2020, Table 1, and Bonawitz
et al. 2017, section 7), scaled to the largest measured point: what grows faster than its line is a fault of
ours. CPU seconds of real parties, all stages, least of the repeats.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from time import perf_counter
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from record import HBC, MALICIOUS, SEMI, Edition, gone_of, machine

from protocols.crowd import Here, Processes
from protocols.errors import Aborted
from protocols.simulator import simulate

MODELS = {"secagg": (HBC, MALICIOUS), "secagg+": (HBC, SEMI)}

# Client and server work, as functions of n, k, d and the fraction that drops out.
CLIENT: dict[str, Callable[..., float]] = {
    "secagg": lambda n, k, d, drop: n * d,  # n masks of d entries; n^2 for the shares, while n is below d
    "secagg+": lambda n, k, d, drop: k * d,
}
SERVER: dict[str, Callable[..., float]] = {
    "secagg": lambda n, k, d, drop: n * (1 - drop) * (1 + n * drop) * d,
    "secagg+": lambda n, k, d, drop: n * (1 - drop) * (1 + k * drop) * d,
}


def point(protocol: str, model: str, n: int, dim: int, drop: float, repeats: int) -> dict[str, Any]:
    """One session of random vectors."""
    gone = gone_of(n, drop)
    engine = Processes(2) if n > 1000 else Here()
    agreed: dict[str, Any] = {"protocol": protocol, "threat_model": model, "corrupted": 0.05}
    agreed["dropout"] = 0.33 if drop <= 0.33 else 0.45
    client, server = [], []
    for seed in range(repeats):
        run = simulate(n, dim=dim, bound=1 << 16, drop=gone, seed=seed, engine=engine, **agreed)
        if isinstance(run.result, Aborted):
            raise run.result
        rows = run.rows()
        client.append(sum(row.client_cpu_mean for row in rows))
        server.append(sum(row.server_cpu for row in rows))
    p = run.session.parameters
    return {
        "protocol": protocol, "threat_model": model, "n": n, "k": p.degree, "t": p.threshold,
        "b": run.session.ring.bits, "dim": dim, "dropout": drop, "noise": "none",
        "client": client, "server": server, "up": sum(r.client_bytes_up for r in rows),
        "down": sum(r.client_bytes_down for r in rows),
    }  # fmt: skip


def measure(edition: Edition) -> dict[str, Any]:
    """Three sweeps, each over one size while the others stay."""
    found: dict[str, Any] = {"machine": machine("secagg", "numpy", "cryptography", "pynacl", "msgspec")}
    start = perf_counter()
    full = edition == "full"
    dim = 10_000 if full else 1_000
    cohorts = {"tiny": [10, 60], "small": [10, 30, 100, 300],
               "full": [10, 30, 100, 300, 1000, 3000, 10_000]}[edition]  # fmt: skip
    found["clients"] = [
        point(protocol, model, n, dim, 0.1, 3 if full and n <= 300 else 1)
        for protocol, models in MODELS.items()
        for model in models
        for n in cohorts
        # Complete graphs cost n^2, and so do signatures: everyone verifies those of more than half of all.
        if (n <= 1000 or (protocol == "secagg+" and model == HBC)) and (protocol == "secagg" or n >= 50)
    ]
    print(f"  growth: clients: {perf_counter() - start:.0f} s", flush=True)
    start = perf_counter()
    dims = [10**e for e in range(3, {"tiny": 5, "small": 6, "full": 8}[edition])]
    found["entries"] = [
        point(protocol, model, 64, dim, 0.1, 3 if full and dim <= 10**5 else 1)
        for protocol, models in MODELS.items()
        for model in models
        for dim in dims
        if dim <= 10**6 or model == HBC
    ]
    print(f"  growth: entries: {perf_counter() - start:.0f} s", flush=True)
    start = perf_counter()
    found["dropout"] = [
        point(
            protocol,
            model,
            60 if edition == "tiny" else 100,
            10**5 if full else 10**4,
            drop,
            3 if full else 1,
        )
        for protocol, models in MODELS.items()
        for model in models
        for drop in ((0.0, 0.1, 0.2, 0.3, 0.4) if full else (0.0, 0.4))
    ]
    print(f"  growth: dropout: {perf_counter() - start:.0f} s", flush=True)
    return found


def line(found: list[dict[str, Any]], party: str) -> list[float]:
    """The asymptotic line through the largest of these points, which are of one protocol and model."""
    form = (CLIENT if party == "client" else SERVER)[found[0]["protocol"]]
    shape = [form(p["n"], p["k"], p["dim"], p["dropout"]) for p in found]
    return [y / shape[-1] * min(found[-1][party]) for y in shape]


def series(found: list[dict[str, Any]]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """The points of each protocol and model."""
    by: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for p in found:
        by.setdefault((p["protocol"], p["threat_model"]), []).append(p)
    return by


def report(found: dict[str, Any]) -> list[str]:
    """The section of the page."""
    lines = [
        "## Growth",
        "",
        "Least CPU seconds of a client (the mean over all) and of the server in a whole session of random",
        "vectors, 10 % of the clients dropping out after they dealt shares if the row says nothing else. The",
        "asymptotic line goes through the last row of each series: `n d` for a client of SecAgg, `k d` of",
        "SecAgg+; `(1 - δ) n (1 + δ n) d` and `(1 - δ) n (1 + δ k) d` for the servers, δ being the fraction",
        "that drops out. Small rounds lie above it by what does not grow with d: agreements, boxes, shares.",
    ]
    for sweep in ("clients", "entries", "dropout"):
        lines += [
            "",
            f"![{sweep}](results/growth-{sweep}.png)",
            "",
            "| protocol | threat model | n | k | t | b | entries | dropout | noise | client ms | line "
            "| server ms | line | bytes up | bytes down |",
            "|---|---|--:|--:|--:|--:|--:|--:|---|--:|--:|--:|--:|--:|--:|",
        ]
        for points in series(found[sweep]).values():
            lined = zip(points, line(points, "client"), line(points, "server"), strict=True)
            lines += [
                f"| {p['protocol']} | {p['threat_model']} | {p['n']:,} | {p['k']} | {p['t']} | {p['b']} "
                f"| {p['dim']:,} | {p['dropout']:.0%} | {p['noise']} | {min(p['client']) * 1e3:.2f} "
                f"| {client * 1e3:.2f} | {min(p['server']) * 1e3:.1f} | {server * 1e3:.1f} | {p['up']:,} "
                f"| {p['down']:,} |"
                for p, client, server in lined
            ]
    return lines
