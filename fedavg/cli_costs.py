"""What `secagg simulate` prints: costs by stage, of a session that was run or of one that is estimated."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from protocols.errors import Aborted
from protocols.estimate import Estimate, Link
from protocols.estimate import estimate as predict
from protocols.simulator import Row, Simulation

_CHECKED = 400  # clients: benchmarks/model.py
_OPTIONS = ("link_up", "link_down", "latency", "server_link", "cores", "aggregators", "fanout")


def title(found: Simulation | Estimate) -> str:
    """Which session, in a line."""
    s = found if isinstance(found, Estimate) else found.session
    n, bits = (s.n, s.bits) if isinstance(s, Estimate) else (len(s.names), s.ring.bits)
    return (
        f"{s.protocol}, {s.threat_model}: {n:,} clients, {s.parameters.degree} neighbours, "
        f"threshold {s.parameters.threshold},\n{s.dim:,} entries of {bits} bits"
    )


def _table(found: Simulation | Estimate) -> None:
    """By stage, and all together; with a column for the wall time, and the roster first, if estimated."""
    estimated, table = isinstance(found, Estimate), Table(box=box.SIMPLE_HEAD)
    table.add_column("stage")
    for column in ("client ms", "slowest ms", "bytes up", "bytes down", "server ms", "wall s"):
        if column != ("slowest ms" if estimated else "wall s"):
            table.add_column(column, justify="right")

    def cells(row: Row, wall: float) -> list[str]:
        stage, mean, most, up, down, server = row
        shown = [stage, f"{mean * 1e3:,.2f}", f"{up:,}", f"{down:,}", f"{server * 1e3:,.2f}"]
        if estimated:
            return [*shown, f"{wall:,.2f}"]
        return [*shown[:2], f"{most * 1e3:,.2f}" if most else "", *shown[2:]]

    rows = found.rows()
    walls: dict[str, float] = {}
    if isinstance(found, Estimate):
        walls = {stage: sum(parts.values()) for stage, parts in found.wall.items()}
        table.add_row(*cells(found.roster, walls.pop("roster")), style="dim", end_section=True)
    for row in rows:
        table.add_row(*cells(row, walls.get(row.stage, 0.0)))
    _, means, _, up, down, server = zip(*rows, strict=True)
    total = Row("all", sum(means), 0.0, sum(up), sum(down), sum(server))
    table.add_row(*cells(total, sum(walls.values())), style="bold")
    _console().print(title(found), style="bold", highlight=False)
    _console().print(table)


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() else 110)


# ------------------------------------------------------------------------------------------------ run


def measured(run: Simulation) -> dict[str, Any]:
    """For JSON."""
    session, result = run.session, run.result
    return {
        "clients": len(session.names), "dim": session.dim, "bits": session.ring.bits,
        "protocol": session.protocol, "threat_model": session.threat_model,
        "parameters": asdict(session.parameters),
        "included": None if isinstance(result, Aborted) else len(result.included),
        "aborted": str(result) if isinstance(result, Aborted) else None, "wall_seconds": run.seconds,
        "stages": [row._asdict() for row in run.rows()],
    }  # fmt: skip


def show(run: Simulation) -> None:
    """The table, and that there is a sum."""
    _table(run)
    if not isinstance(run.result, Aborted):
        included = len(run.result.included)
        _console().print(
            f"The exact sum of {included} of {len(run.session.names)} clients, in {run.seconds:.1f} s.",
            highlight=False,
        )


# ------------------------------------------------------------------------------------------ estimated


def estimating(options: dict[str, Any]) -> bool:
    """Whether to estimate; refuses what goes with that alone."""
    given = ["--" + name.replace("_", "-") for name in _OPTIONS if options[name] is not None]
    if given and not options["estimate"]:
        raise ValueError(f"{', '.join(given)}: only with --estimate")
    return bool(options["estimate"])


def estimate(options: dict[str, Any]) -> Estimate:
    """Measure this machine and predict."""
    given = {name: options[name] for name in _OPTIONS if options[name] is not None}
    units = {"link_up": ("up", 1e6), "link_down": ("down", 1e6), "server_link": ("server", 1e6)}
    units["latency"] = ("latency", 1e-3)
    link = Link(**{name: given.pop(key) * unit for key, (name, unit) in units.items() if key in given})
    agreed = {k: options[k] for k in ("protocol", "threat_model", "corrupted", "dropout", "dropping", "at")}
    what = "Timing keys, shares, signatures, masks and three tiny sessions on this machine"
    with Console(stderr=True).status(what):  # nothing where that is not a terminal
        return predict(
            options["clients"], options["dim"], bound=1 << options["bits"], link=link, **agreed, **given
        )


def estimated(found: Estimate) -> dict[str, Any]:
    """For JSON; seconds and bytes."""
    return {
        "clients": found.n, "dim": found.dim, "bits": found.bits, "protocol": found.protocol,
        "threat_model": found.threat_model, "parameters": asdict(found.parameters),
        "included": found.included, "aborted": None, "wall_seconds": found.seconds,
        "stages": [row._asdict() for row in found.rows()], "roster": found.roster._asdict(),
        "wall": found.wall,
        "streams": found.streams, "server_memory": found.memory, "server_memory_most": found.memory_bytes,
        "client_work": found.work["client"], "server_work": found.work["server"],
        "heaviest": {of: {"what": what, "part": part} for of, (what, part) in found.heaviest().items()},
        "tree": None if found.tree is None else asdict(found.tree), "micro": asdict(found.micro),
    }  # fmt: skip


def show_estimate(found: Estimate) -> None:
    """The table, and what stands behind it."""
    _table(found)
    m, tree = found.micro, found.tree
    who = "The server" if tree is None else "One of the leaves, which the server's figures are of,"
    masks, roster = found.streams / (tree.leaves if tree else 1), sum(found.wall["roster"].values())
    lines = [
        f"A sum of {found.included:,} of {found.n:,} clients in about {_time(found.seconds)}, after "
        f"{_time(roster)} for the roster, which everybody has before.",
        f"{who} holds {_bytes(found.memory_bytes)} and expands {masks:,.0f} masks. For a client, what "
        f"grows with the cohort: {_bytes(found.roster.client_bytes_down)} of roster, "
        f"{_bytes(-(-found.n // 8))} each time it is told who is in the sum.",
    ]
    if tree is not None:
        lines.append(
            f"{tree.leaves:,} leaves of {tree.clients:,} clients: {tree.leaf_seconds:,.1f} s of CPU each, "
            f"{_bytes(tree.leaf_bytes)} from one another. Above them {tree.nodes:,} in {tree.depth} levels: "
            f"{tree.node_seconds * 1e3:,.1f} ms and {_bytes(tree.node_bytes)} each, {tree.seconds:,.2f} s to "
            "the root. Together they are the one server, and learn what it would."
        )
    most = found.heaviest()
    lines.append("Takes most, the roster included:")
    for of, what in (
        ("client", "a client's CPU"), ("bytes down", "its bytes down"), ("server", "the server's CPU"),
        ("memory", "its memory"), ("wall", "the wall time"),
    ):  # fmt: skip
        lines.append(f"  {what:<16} {most[of][0]} ({most[of][1]:.0%})")
    lines.append(
        f"Measured here: {m.agree * 1e6:.0f} µs for a key agreement, {m.verify * 1e6:.0f} µs to check a "
        f"signature, {m.member * 1e6:.0f} µs for an entry of the roster, "
        f"{m.stream_byte * 1e9:.2f} ns for a byte of a mask."
    )
    if found.n > _CHECKED:
        lines.append(
            f"Real sessions of up to {_CHECKED} clients come within 25 % of this; beyond, it extrapolates."
        )
    for line in lines:
        _console().print(line, highlight=False, soft_wrap=True)


def _time(seconds: float) -> str:
    for unit, size in (("days", 86_400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:,.1f} s"


def _bytes(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            break
        count /= 1000
    return f"{count:,.0f} {unit}" if unit == "bytes" else f"{count:,.1f} {unit}"
