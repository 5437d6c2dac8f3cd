"""The benchmark of Flower rounds runs: its small edition, which checks its own means. No figure is judged."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "flower.py"


@pytest.mark.skipif(not (find_spec("flwr") and find_spec("ray")), reason="needs Flower's simulation engine")
def test_small_edition_runs(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, SCRIPT, "--small"], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    rows = [[cell.strip() for cell in x.split("|")[1:-1]] for x in done.stdout.splitlines() if x[:1] == "|"]
    assert len([row for row in rows if row[1] == "10,000"]) == 3
    survived = {row[1]: row[2:] for row in rows if row[0] == "this library" and len(row) == 4}
    without = ["mean of the other 9"] * 2
    assert survived == {
        "keys": without, "shares": without, "masked": without, "reveals": ["mean of all 10"] * 2
    }  # fmt: skip
