"""The benchmark of the cost model runs: its small edition. No figure in seconds is judged here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "model.py"


def test_small_edition_runs() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", SCRIPT, "--small"], capture_output=True, text=True, check=True
    )
    rows = [[cell.strip() for cell in x.split("|")[1:-1]] for x in done.stdout.splitlines() if x[:1] == "|"][
        2:
    ]
    assert len(rows) == done.stderr.count("measured") == 6
    complete = [row for row in rows if row[2] == "secagg"]
    assert complete
    assert all(row[-4] == row[-3] and row[-2] == row[-1] for row in complete), "bytes are exact"
