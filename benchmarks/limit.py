"""To the limit: what masking and unmasking cost beside the cipher alone, and what goes over the wire.

The unit of a time is the CPU time in which OpenSSL makes the same number of AES-128-CTR keystreams of the
same length, and nothing else; for a server at which nobody drops out, that and one addition by numpy of
each received vector. Party and unit take turns in one process, on one thread. All parties are real; only
the one in the process apart is timed, in all stages, training excluded.
"""

from __future__ import annotations

import os
import resource
from time import perf_counter, process_time
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
from apart import SERVER_SEED, Apart, raw, the_vector
from record import HBC, MALICIOUS, ROW_HEAD, SEMI, Edition, Row, gone_of, machine, names_of, row_line

from protocols.crowd import Processes
from protocols.errors import Aborted
from protocols.simulator import Simulation, simulate
from secagg import prg, shamir
from secagg.randomness import seeded, system
from secagg.ring import Ring


def kernel(k: int, dim: int, repeats: int) -> Row:
    """Masking alone: k streams added to a vector."""
    ring = Ring(32)
    vector = ring.zeros(dim)
    row = Row("masking kernel", k + 1, k, 0, 32, dim, 0.0, "any", at_most=1.2)
    for _ in range(repeats):
        seeds = [os.urandom(16) for _ in range(k)]
        row.unit.append(raw(k, vector.nbytes))
        start = process_time()
        prg.accumulate(ring, vector, seeds[: k // 2], seeds[k // 2 :])
        row.ours.append(process_time() - start)
    return row


def streams_opened(run: Simulation) -> int:
    """How many keystreams the server expanded: exactly, from the graph that it drew."""
    session, included = run.session, run.result.included
    alive = {session.positions[name] for name in included}
    if session.complete:
        return len(alive) * (1 + len(session.names) - len(alive))
    graph = session.graph(seeded(SERVER_SEED)(32))  # what the server draws first of all
    gone = set(range(len(session.names))) - alive
    return len(alive) + sum(len(alive.intersection(graph.neighbours(i))) for i in gone)


def session(
    work: str, apart: Apart, n: int, dim: int, repeats: int, drop: float, at_most: float | None = None,
    **agreed: Any,
) -> Row:  # fmt: skip
    """One party of a whole session, again and again, and the unit in turn.

    The server is in a new session each time; a client in one, whose messages it is then given again.
    """
    gone = gone_of(n, drop)
    row: Row | None = None
    for _ in range(repeats if apart.party == "server" else 1):
        run = simulate(n, dim=dim, bound=1 << 16, drop=gone, engine=apart, **agreed)
        if isinstance(run.result, Aborted):
            raise run.result
        ring = run.session.ring
        expected = the_vector(dim, 1 << 16, ring.dtype) * ring.dtype.type(len(run.result.included))
        ring.reduce(expected)
        assert np.array_equal(run.sum, expected), "the benchmark computed a wrong sum"
        spent, p = apart.spent(), run.session.parameters
        if row is None:
            row = Row(work, n, p.degree, p.threshold, ring.bits, dim, drop, run.session.threat_model,
                      at_most=at_most, peak_bytes=0)  # fmt: skip
        streams = streams_opened(run) if apart.party == "server" else p.degree + 1
        for _ in range(1 if apart.party == "server" else 3 * repeats):
            row.ours.append(spent.seconds if apart.party == "server" else apart.replay())
            row.unit.append(apart.raw(streams, dim * ring.dtype.itemsize) + spent.additions)
        row.peak_bytes = max(row.peak_bytes or 0, apart.peak(run.session, spent))
        row.wall.append(sum(spent.wall.values()))
    assert row is not None
    return row


def parties(edition: Edition) -> list[Row]:
    """Client and server, in all models."""
    n = 60 if edition == "tiny" else 100
    dim, repeats = {"tiny": (2000, 1), "small": (100_000, 3), "full": (1_000_000, 7)}[edition]
    rows = [kernel(k, dim, 3 * repeats) for k in (30, 99)]
    sparse = {"protocol": "secagg+", "degree": 30, "corrupted": 0.05, "dropout": 0.3, "bits": 32}
    complete = {"corrupted": 0.05, "dropout": 0.3, "bits": 32}
    last = names_of(n)[-1]
    with Apart(last) as client:
        for work, agreed, limit in (
            ("client", complete, 1.45),
            ("client", sparse, 1.6),
            ("client, bits packed", {**complete, "bits": 23}, None),
            ("client, bits packed", {**sparse, "bits": 23}, None),
            ("client", {**complete, "threat_model": MALICIOUS}, None),
            ("client", {**sparse, "threat_model": SEMI, "degree": None}, None),
        ):
            rows.append(session(work, client, n, dim, repeats, 0.0, limit, **agreed))
    with Apart("server", additions=True) as server:
        rows.append(session("server (unit with additions)", server, n, dim, repeats, 0.0, 1.5, **sparse))
    with Apart("server") as server:
        for work, drop, agreed, limit in (
            ("server", 0.0, sparse, None),
            ("server", 0.1, sparse, 1.7),
            ("server", 0.3, sparse, 1.5),
            ("server, bits packed", 0.3, {**sparse, "bits": 23}, None),
            ("server", 0.3, complete, None),
            ("server", 0.3, {**complete, "threat_model": MALICIOUS}, None),
            ("server", 0.3, {**sparse, "threat_model": SEMI, "degree": None}, None),
        ):
            rows.append(session(work, server, n, dim, repeats, drop, limit, **agreed))
    return rows


def threads(edition: Edition) -> dict[str, Any]:
    """Wall time of the server's last stage on one core and on two."""
    n, dim, repeats = (100, 1_000_000, 5) if edition == "full" else (60, 100_000, 1)
    agreed = {"protocol": "secagg+", "degree": 30, "corrupted": 0.05, "dropout": 0.3, "bits": 32}
    walls: dict[int, list[float]] = {1: [], 2: []}
    with Apart("server", 1) as one, Apart("server", 2) as two:
        for _ in range(repeats):
            for cores, apart in ((1, one), (2, two)):
                simulate(n, dim=dim, bound=2, drop=gone_of(n, 0.3), engine=apart, **agreed)
                walls[cores].append(apart.spent().wall["reveals"])
    ratio = min(walls[2]) / min(walls[1])
    return {"n": n, "k": 30, "dim": dim, "dropout": 0.3, "wall": walls, "ratio": ratio, "at_most": 0.68}


def many_lost(edition: Edition) -> Row:
    """The server of SecAgg where many drop out, each of whose masks with all survivors must be undone."""
    n, dim = (600, 100_000) if edition == "full" else (60, 10_000)
    with Apart("server") as server:
        return session("server, SecAgg", server, n, dim, 1, 0.1, corrupted=0.1, dropout=0.1)


def memory(edition: Edition) -> list[Row]:
    """The server's memory."""
    n, dim = {"tiny": (60, 1000), "small": (200, 100_000), "full": (1000, 1_000_000)}[edition]
    rows = []
    with Apart("server", one_by_one=True) as server:
        for protocol in ("secagg+", "secagg"):
            if protocol == "secagg" and edition == "full":
                n = 300  # clients of the complete graph cost n^2; the row says so
            agreed = {"protocol": protocol, "corrupted": 0.05, "dropout": 0.33}
            rows.append(session(f"server, {protocol}", server, n, dim, 1, 0.1, **agreed))
    return rows


def shares(edition: Edition) -> dict[str, Any]:
    """A 32-byte secret among 1000, 667 of whom recover it."""
    points, t, repeats = tuple(range(1, 1001)), 667, 30 if edition == "full" else 5
    secret, split, combined = os.urandom(32), [], []
    for _ in range(repeats + 1):
        start = process_time()
        (row,) = shamir.split([secret], t, points, system)
        split.append(process_time() - start)
        start = process_time()
        assert shamir.combine([row[:t]], points[:t]) == [secret]
        combined.append(process_time() - start)
    found = {"first_split": split[0], "first_combine": combined[0]}
    found |= {"split": min(split[1:]), "combine": min(combined[1:])}
    return {"holders": 1000, "t": t, **found, "split_at_most": 0.010, "combine_at_most": 0.002}


def bytes_up(edition: Edition) -> list[dict[str, Any]]:
    """Bytes that a client sends in all stages, against its vector packed at 16 bits an entry.

    The session is run at a small dimension; the masked vector's size at 2^20 is exact arithmetic.
    """
    n, dim, found = 1024 if edition == "full" else 64, 1 << 20, []
    for protocol, model, limit in (
        ("secagg", HBC, 1.73), ("secagg+", HBC, 1.64), ("secagg", MALICIOUS, None), ("secagg+", SEMI, None),
    ):  # fmt: skip
        engine = Processes(2) if edition == "full" else None
        run = simulate(n, dim=64, bound=1 << 16, protocol=protocol, threat_model=model, engine=engine)
        assert not isinstance(run.result, Aborted)
        ring, p = run.session.ring, run.session.parameters
        costs = run.costs[run.session.names[0]]
        total = sum(c.bytes_up for c in costs.values()) - ring.packed_size(64) + ring.packed_size(dim)
        found.append({
            "n": n, "k": p.degree, "t": p.threshold, "b": ring.bits, "dim": dim, "noise": "none",
            "protocol": protocol, "threat_model": model, "bytes": total, "ratio": total / (2 * dim),
            "packed_vector": ring.packed_size(dim), "at_most": limit if edition == "full" else None,
        })  # fmt: skip
    return found


def crowd(edition: Edition) -> dict[str, Any]:
    """Ten thousand clients, every key, share and mask real, on two processes."""
    n, dim = {"tiny": (60, 100), "small": (300, 1000), "full": (10_000, 10_000)}[edition]
    gone = gone_of(n, 0.1)
    agreed: dict[str, Any] = {"protocol": "secagg+", "corrupted": 0.05, "dropout": 0.33}
    start = perf_counter()
    run = simulate(n, dim=dim, bound=1 << 16, drop=gone, engine=Processes(2), **agreed)
    wall = perf_counter() - start
    assert not isinstance(run.result, Aborted)
    p, kib = run.session.parameters, 1 << 10
    return {
        "n": n, "k": p.degree, "t": p.threshold, "b": run.session.ring.bits, "dim": dim, "dropout": 0.1,
        "threat_model": run.session.threat_model, "noise": "none", "wall": wall, "at_most": 600,
        "server_cpu": sum(c.cpu_seconds for c in run.costs["server"].values()),
        "client_cpu": sum(row.client_cpu_mean for row in run.rows()),
        "peak_bytes": kib * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "peak_bytes_a_worker": kib * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss,
    }  # fmt: skip


def _judged(row: Row, edition: Edition) -> dict[str, Any]:
    """The limits are for vectors of a million entries."""
    return row.as_json() | ({} if edition == "full" else {"at_most": None})


def measure(edition: Edition) -> dict[str, Any]:
    """All of it."""
    parts = {
        "crowd": lambda: crowd(edition),  # first: the process has held nothing yet
        "parties": lambda: [_judged(row, edition) for row in parties(edition)],
        "threads": lambda: threads(edition),
        "many_lost": lambda: many_lost(edition).as_json(),
        "memory": lambda: [row.as_json() for row in memory(edition)],
        "shares": lambda: shares(edition),
        "bytes_up": lambda: bytes_up(edition),
    }
    found: dict[str, Any] = {"machine": machine("secagg", "numpy", "cryptography", "pynacl", "msgspec")}
    for part, work in parts.items():
        start = perf_counter()
        found[part] = work()
        print(f"  limit: {part}: {perf_counter() - start:.0f} s", flush=True)
    return found


def report(found: dict[str, Any]) -> list[str]:
    """The section of the page."""
    t, s, c = found["threads"], found["shares"], found["crowd"]
    mib, ms = 2**20, 1e3
    lines = [
        "## To the limit",
        "",
        "The unit is the CPU time in which OpenSSL makes the same number of AES-128-CTR keystreams, in the",
        "same process and between the repeats, and nothing else; where the row says so, that and one",
        "addition by numpy of each received vector. One thread; least of the repeats, and the ratio of the",
        "medians beside it. All stages are counted. Peak: the party's memory above its process with imports.",
        "",
        *ROW_HEAD,
        *(row_line(r) for r in found["parties"]),
        "",
        f"The server's last stage takes on two threads **{t['ratio']:.2f}** of the wall time on one (at most",
        f"{t['at_most']}): n = {t['n']}, k = {t['k']}, {t['dim']:,} entries, {t['dropout']:.0%} dropout.",
        "",
        f"A 32-byte secret among {s['holders']} holders, {s['t']} of whom recover it: shared in",
        f"**{s['split'] * ms:.2f} ms** (at most {s['split_at_most'] * ms:g}), recovered in",
        f"**{s['combine'] * ms:.2f} ms** (at most {s['combine_at_most'] * ms:g}); the first time, before",
        f"powers and coefficients are known, in {s['first_split'] * ms:.0f} and "
        f"{s['first_combine'] * ms:.0f} ms.",
        "",
        "The server of SecAgg where each of many lost clients' masks with all others must be undone, and the",
        "memory of servers, without the sealed shares in transit that they hold between two stages:",
        "",
        *ROW_HEAD,
        *(row_line(r) for r in [found["many_lost"], *found["memory"]]),
        "",
        f"**{c['n']:,} clients**, every key, share and mask real, {c['dim']:,} entries,",
        f"{c['dropout']:.0%} dropout, {c['threat_model']}, k = {c['k']}, t = {c['t']}, b = {c['b']}, on two",
        f"processes: **{c['wall']:.0f} s** (at most {c['at_most']}), {c['peak_bytes'] / mib:,.0f} MiB in the",
        f"server's process and {c['peak_bytes_a_worker'] / mib:,.0f} MiB in the larger of the others; the",
        f"server took {c['server_cpu']:.1f} s of CPU, a client {c['client_cpu'] * ms:.1f} ms.",
        "",
        "Bytes a client sends in all stages, against its vector at 16 bits an entry and against the same",
        "vector packed at the b bits that the sum needs:",
        "",
        "| protocol | n | k | t | b | entries | threat model | noise | bytes up | of 16 bits | of b bits "
        "| at most |",
        "|---|--:|--:|--:|--:|--:|---|---|--:|--:|--:|--:|",
    ]
    for r in found["bytes_up"]:
        limit = "" if r["at_most"] is None else f"{r['at_most']:g}"
        lines.append(
            f"| {r['protocol']} | {r['n']} | {r['k']} | {r['t']} | {r['b']} | {r['dim']:,} "
            f"| {r['threat_model']} | {r['noise']} | {r['bytes']:,} | **{r['ratio']:.3f}** "
            f"| {r['bytes'] / r['packed_vector']:.3f} | {limit} |"
        )
    return lines
