"""The benchmark runs: its small edition, whose sums it checks itself. No figure is judged here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "masking.py"


def test_small_edition_runs() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", SCRIPT, "--small"], capture_output=True, text=True, check=True
    )
    rows = [line for line in done.stdout.splitlines() if line.startswith(("| client", "| server"))]
    assert len(rows) == 7
    assert done.stderr.count("measured") == 7
