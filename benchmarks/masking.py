"""What masking and unmasking cost, as ratios to the raw cipher, taken in one run.

    python benchmarks/masking.py            the whole table, about ten minutes
    python benchmarks/masking.py --small    a thousandth of it, to see that it runs
    python benchmarks/masking.py --write    also write benchmarks/RESULTS.md and results/masking.json

The unit is the CPU time OpenSSL needs for the same number of AES-128-CTR keystreams of the same length,
and nothing else, measured between the repeats of what is compared with it. All parties are real; only
the one under test is timed. Every figure is the least of the repeats, on one thread.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from time import process_time
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from record import machine, write

from protocols.simulator import simulate
from secagg import Aborted, Identity, Input, Received, Session, StageClosed, Started
from secagg.prg import CHUNK_BYTES


@dataclass
class Row:
    """One line of the table."""

    what: str
    n: int
    k: int
    t: int
    b: int
    dim: int
    threat_model: str
    streams: int
    seconds: float
    raw_seconds: float
    target: float | None

    @property
    def ratio(self) -> float:
        return self.seconds / self.raw_seconds


def raw(streams: int, nbytes: int) -> float:
    """CPU seconds of OpenSSL alone for so many keystreams of `nbytes` bytes."""
    zeros, out = bytes(CHUNK_BYTES), bytearray(CHUNK_BYTES)
    start = process_time()
    for _ in range(streams):
        cipher = Cipher(algorithms.AES128(os.urandom(16)), modes.CTR(bytes(16))).encryptor()
        for _ in range(nbytes // CHUNK_BYTES):
            cipher.update_into(zeros, out)
        cipher.update_into(zeros[: nbytes % CHUNK_BYTES], out)
    return process_time() - start


class Clock:
    """CPU seconds spent inside the party under test."""

    def __init__(self) -> None:
        self.spent = 0.0

    def __call__(self, work: Callable[[], list]) -> list:
        start = process_time()
        out = work()
        self.spent += process_time() - start
        return out


def session_once(
    session: Session, identities: dict, dropped: set[str], vector: np.ndarray
) -> tuple[float, float]:
    """Run a session; CPU seconds of the last client by name, which stays to the end, and of the server."""
    clients = {name: session.client(name, i) for name, i in identities.items()}
    server, one = session.server(), max(clients)
    mine, its = Clock(), Clock()

    def at(name: str, work: Callable[[], list]) -> list:
        return mine(work) if name == one else work()

    up = [
        e
        for n, c in clients.items()
        for e in at(n, lambda c=c: c.handle(Started()) + c.handle(Input(vector)))
    ]
    while server.result is None:
        stage, down = server.stage, []
        for envelope in up:
            if stage != "masked" or envelope.sender not in dropped:
                down += its(lambda e=envelope: server.handle(Received(e)))
        down += its(lambda now=stage: server.handle(StageClosed(now)))
        gone = dropped if stage == "masked" else set()
        up = [
            out
            for e in down
            if e.to not in gone
            for out in at(e.to, lambda e=e: clients[e.to].handle(Received(e)))
        ]
    if isinstance(server.result, Aborted):
        raise server.result
    expected = (vector.astype(np.uint64) * len(server.result.included)).astype(server.result.sum.dtype)
    assert np.array_equal(server.result.sum, expected), "the benchmark computed a wrong sum"
    return mine.spent, its.spent


def measure(what: str, repeats: int, drop: float, target: float | None, **agreed: Any) -> Row:
    """Time one party of one kind of session."""
    n = int(agreed.pop("n"))
    identities = {f"{i:04}": Identity.generate() for i in range(n)}
    session = Session({name: i.public for name, i in identities.items()}, **agreed)
    # Spread over the cohort's names, so that the timed client (the last) stays.
    dropped = {f"{i:04}" for i in range(int(drop * n))}
    vector = np.arange(session.dim, dtype=np.uint32) % session.bound
    k, alive = session.parameters.degree, n - len(dropped)
    width = session.dim * session.ring.dtype.itemsize
    best, best_raw, streams = float("inf"), float("inf"), 0
    for _ in range(repeats):
        if what.startswith("client"):
            streams = k + 1
            seconds = session_once(session, identities, dropped, vector)[0]
        else:
            # A dropped client's key opens one stream for each surviving neighbour: k * alive / n on average.
            streams = alive + round(len(dropped) * k * alive / (n - 1))
            seconds = session_once(session, identities, dropped, vector)[1]
        best, best_raw = min(best, seconds), min(best_raw, raw(streams, width))
    print(f"  {what}, {session.threat_model}, b = {session.ring.bits}: measured", file=sys.stderr)
    return Row(
        what, n, k, session.parameters.threshold, session.ring.bits, session.dim, session.threat_model,
        streams, best, best_raw, target,
    )  # fmt: skip


def bytes_up(n: int, dim: int, threat_model: str) -> dict[str, object]:
    """Bytes a client sends over the complete graph, against its vector of 16-bit entries.

    The session is run at a small dimension; the masked vector's size at `dim` is exact arithmetic.
    """
    print(f"  bytes up, {threat_model}, n = {n}: running", file=sys.stderr)
    run = simulate(n, dim=64, bound=1 << 16, threat_model=threat_model)
    assert not isinstance(run.result, Aborted)
    ring, name = run.session.ring, run.session.names[0]
    rest = sum(c.bytes_up for c in run.costs[name].values()) - ring.packed_size(64)
    total = rest + ring.packed_size(dim)
    return {
        "n": n, "k": n - 1, "t": run.session.parameters.threshold, "b": ring.bits, "dim": dim,
        "threat_model": threat_model, "bytes": total, "ratio": total / (2 * dim),
    }  # fmt: skip


def report(where: dict[str, str], rows: list[Row], sent: list[dict]) -> str:
    """The table as Markdown."""
    lines = [
        "# Masking, as a ratio to the raw cipher",
        "",
        f"Taken in one run on {where['cpu']}, Python {where['python']}, numpy {where['numpy']},",
        f"cryptography {where['cryptography']}, commit {where['commit'][:12]}; one thread, least of the",
        "repeats. The unit is the CPU time of OpenSSL's AES-128-CTR for the same keystreams and",
        "nothing else. All stages are counted. n clients, k neighbours each, t shares open a secret, b bits",
        'an entry in the ring; streams are the keystreams that the timed party must expand; "at most" is',
        "the figure to stay below, where there is one.",
        "Made by `benchmarks/masking.py --write`.",
        "",
        "| work | n | k | t | b | entries | threat model | streams | ms | raw ms | ratio | at most |",
        "|---|--:|--:|--:|--:|--:|---|--:|--:|--:|--:|--:|",
    ]
    for r in rows:
        target = "" if r.target is None else f"{r.target:.1f}"
        lines.append(
            f"| {r.what} | {r.n} | {r.k} | {r.t} | {r.b} | {r.dim:,} | {r.threat_model} | {r.streams} "
            f"| {r.seconds * 1e3:.1f} | {r.raw_seconds * 1e3:.1f} | **{r.ratio:.2f}** | {target} |"
        )
    lines += [
        "",
        "Bytes a client sends in all stages over the complete graph, against its vector at 16 bits an entry",
        "(the figure in Bonawitz et al. 2017 is 1.73 for n = 1024):",
        "",
        "| n | k | t | b | entries | threat model | bytes up | ratio |",
        "|--:|--:|--:|--:|--:|---|--:|--:|",
    ]
    for s in sent:
        lines.append(
            f"| {s['n']} | {s['k']} | {s['t']} | {s['b']} | {s['dim']:,} | {s['threat_model']} "
            f"| {s['bytes']:,} | **{s['ratio']:.3f}** |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print, and write if asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    dim, repeats, cohort = (1000, 1, 40) if options.small else (1_000_000, 5, 1024)
    client = {"n": 32, "dim": dim, "bound": 1 << 16, "bits": 32}
    sparse = {"n": 100, "dim": dim, "bound": 1 << 16, "protocol": "secagg+", "degree": 32, "dropout": 0.3}
    sparse |= {"corrupted": 0.05, "bits": 32}
    rows = [
        measure("client", repeats, 0.0, 1.8, **client),
        measure("client", repeats, 0.0, None, **client | {"bits": 21}),
        measure("client", repeats, 0.0, None, **client, threat_model="malicious"),
        measure("server, 30 % dropout", repeats, 0.3, 2.0, **sparse),
        measure("server, 30 % dropout", repeats, 0.3, None, **sparse | {"bits": 23}),
        measure("server, no dropout", repeats, 0.0, None, **sparse),
        measure(
            "server, 30 % dropout", repeats, 0.3, None,
            n=100, dim=dim, bound=1 << 16, bits=32, dropout=0.3, threat_model="malicious",
        ),
    ]  # fmt: skip
    sent = [bytes_up(cohort, 1 << 20, model) for model in ("honest-but-curious", "malicious")]
    where = machine("secagg", "numpy", "cryptography", "pynacl", "msgspec")
    text = report(where, rows, sent)
    print(text)
    if options.write:
        content = {"machine": where, "rows": [asdict(r) | {"ratio": r.ratio} for r in rows], "bytes_up": sent}
        write("RESULTS.md", text, "masking.json", content)


if __name__ == "__main__":
    main()
