"""Where a benchmark ran, and where its figures go."""

from __future__ import annotations

import json
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent


def machine(*packages: str) -> dict[str, str]:
    """The processor, the versions of Python and of these packages, the commit."""
    cpu = next(
        (x.split(":")[1].strip() for x in _lines("/proc/cpuinfo") if x.startswith("model name")), "unknown"
    )
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=HERE, capture_output=True, text=True
    ).stdout.strip()
    versions = {p: version(p) for p in packages}
    return {"cpu": cpu, "python": platform.python_version(), "commit": commit or "unknown", **versions}


def write(page: str, text: str, results: str, content: dict[str, Any]) -> None:
    """Write a page beside the benchmark, and its figures to `results/`."""
    (HERE / page).write_text(text)
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results" / results).write_text(json.dumps(content, indent=2) + "\n")


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []
