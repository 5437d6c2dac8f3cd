"""What the benchmarks share: editions, the clients of a session, a row of ratios, and where results go."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any, Literal

HERE = Path(__file__).resolve().parent

Edition = Literal["tiny", "small", "full"]
"""To see that it runs; in minutes; as published."""

HBC, SEMI, MALICIOUS = "honest-but-curious", "semi-malicious", "malicious"


@dataclass
class Row:
    """One line of a table.

    ours, unit  seconds of the repeats, taken in turn
    at_most     the ratio to stay below, where there is one
    peak_bytes  the most memory of the party above its process with all imports done
    """

    work: str
    n: int
    k: int
    t: int
    b: int
    dim: int
    dropout: float
    threat_model: str
    ours: list[float] = field(default_factory=list)
    unit: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)
    at_most: float | None = None
    peak_bytes: int | None = None
    noise: str = "none"

    def ratio(self) -> float:
        """Least to least: what the work takes when nothing else disturbs the machine."""
        return min(self.ours) / min(self.unit)

    def middle(self) -> float:
        """Median to median."""
        return median(self.ours) / median(self.unit)

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"ratio": self.ratio(), "ratio_of_medians": self.middle()}


ROW_HEAD = [
    "| work | n | k | t | b | entries | dropout | threat model | noise | ms | unit ms | ratio | of medians "
    "| at most | peak MiB |",
    "|---|--:|--:|--:|--:|--:|--:|---|---|--:|--:|--:|--:|--:|--:|",
]


def row_line(r: dict[str, Any]) -> str:
    """A `Row.as_json` as a line of the table."""
    limit = "" if r["at_most"] is None else f"{r['at_most']:g}"
    limit += " (missed)" if limit and r["ratio"] > r["at_most"] else ""
    peak = "" if r["peak_bytes"] is None else f"{r['peak_bytes'] / 2**20:.0f}"
    return (
        f"| {r['work']} | {r['n']:,} | {r['k']} | {r['t']} | {r['b']} | {r['dim']:,} | {r['dropout']:.0%} "
        f"| {r['threat_model']} | {r['noise']} | {min(r['ours']) * 1e3:.1f} | {min(r['unit']) * 1e3:.1f} "
        f"| **{r['ratio']:.2f}** | {r['ratio_of_medians']:.2f} | {limit} | {peak} |"
    )


def machine(*packages: str) -> dict[str, str]:
    """The processor, cores and memory, the versions of Python and of these packages, the commit."""
    cpu = next(
        (x.split(":")[1].strip() for x in _lines("/proc/cpuinfo") if x.startswith("model name")), "unknown"
    )
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=HERE, capture_output=True, text=True
    ).stdout.strip()
    versions = {p: found for p in packages if (found := _version(p)) is not None}
    room = next((x.split()[1] for x in _lines("/proc/meminfo") if x.startswith("MemTotal")), "0")
    where = f"{cpu}, {os.cpu_count()} cores, {int(room) >> 20} GiB, {platform.system()}"
    return {"cpu": where, "python": platform.python_version(), "commit": commit or "unknown", **versions}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def taken_on(where: dict[str, str]) -> str:
    """One sentence for a page."""
    versions = ", ".join(f"{k} {v}" for k, v in where.items() if k not in ("cpu", "python", "commit"))
    return f"{where['cpu']}, Python {where['python']}, {versions}, commit {where['commit'][:12]}"


def write(page: str, text: str, results: str, content: dict[str, Any]) -> None:
    """Write a page beside the benchmark, and its figures to `results/`."""
    (HERE / page).write_text(text)
    write_results(results, content)


def write_results(name: str, content: dict[str, Any], into: Path = HERE) -> None:
    """Write figures to `results/`."""
    (into / "results").mkdir(parents=True, exist_ok=True)
    (into / "results" / name).write_text(json.dumps(content, indent=2) + "\n")


def names_of(n: int) -> list[str]:
    """What `simulate` calls n clients."""
    return [f"client-{i:0{len(str(n - 1))}}" for i in range(n)]


def gone_of(n: int, fraction: float) -> dict[str, str]:
    """Who drops out before the masked vectors: the first so many, so that the last client stays.

    Their places in the graph are random all the same.
    """
    return dict.fromkeys(names_of(n)[: int(fraction * n + 1e-9)], "masked")


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []
