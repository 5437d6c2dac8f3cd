"""The comparison with Flower's SecAgg+ runs: its small edition, which checks sums. No figure is judged."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("flwr")

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
# In a process of its own, as it sets what must be set before numpy is there.
RUN = "import json, peers; found = peers.measure('small'); print(json.dumps([found, peers.report(found)]))"


def test_small_edition_runs() -> None:
    done = subprocess.run(
        [sys.executable, "-c", RUN], capture_output=True, text=True, check=False, cwd=BENCHMARKS
    )
    assert done.returncode == 0, done.stderr
    found, lines = json.loads(done.stdout)
    assert {"cpu", "commit", "flwr"} <= found["machine"].keys()
    # A sum that is wrong ends the run; what is left to see is that they were compared.
    assert all(0.0 < steps <= 1.01 for steps in found["off"].values())
    rows = found["rows"]
    assert [row["case"]["what"] for row in rows] == ["client"] * 2 + ["server"] * 4
    assert [row["case"]["dropout"] for row in rows] == [0.0, 0.0, 0.3, 0.3, 0.0, 0.0]
    for row in rows:
        assert (row["b"], row["threat_model"], row["noise"]) == (32, "honest-but-curious", "none")
        assert (len(row["ours"]), len(row["theirs"])) == tuple(row["case"]["repeats"])
        assert row["ratio"] == min(row["ours"]) / min(row["theirs"])
        assert all(x > 0 for pair in ("bytes_up", "peak") for x in row[pair])
    assert sum(line.startswith(("| client", "| server")) for line in lines) == 2 * len(rows)
