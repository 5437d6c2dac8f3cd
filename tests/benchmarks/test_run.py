"""The benchmarks run: their tiny editions, which check their own sums. No figure in seconds is judged."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def tiny(part: str, into: Path) -> tuple[dict[str, Any], list[str]]:
    """What the command's tiny edition found in a part, and that part's section of the page."""
    words = [sys.executable, BENCHMARKS / "run.py", "--tiny", "--only", part, "--into", into]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads((into / "results" / f"{part}.json").read_text())
    assert {"cpu", "commit", "numpy"} <= found["machine"].keys()
    page = (into / "RESULTS.md").read_text()
    headings = {
        "limit": "To the limit", "noise": "Noise", "growth": "Growth", "model": "The cost model",
        "paillier": "Paillier",
    }  # fmt: skip
    (section,) = [text for text in page.split("\n## ") if text.startswith(headings[part])]
    return found, section.splitlines()


STATED = {"n", "k", "t", "b", "dim", "dropout", "threat_model", "noise"}


def test_to_the_limit(tmp_path: Path) -> None:
    found, lines = tiny("limit", tmp_path)
    rows = [*found["parties"], found["many_lost"], *found["memory"]]
    for row in rows:
        assert row.keys() >= STATED
        assert row["ratio"] == min(row["ours"]) / min(row["unit"])
        assert len(row["ours"]) == len(row["unit"])
    assert {r["threat_model"] for r in rows} >= {"honest-but-curious", "semi-malicious", "malicious"}
    assert found["crowd"]["n"] == 60
    assert all(1.0 < r["bytes"] / r["packed_vector"] < 1.1 for r in found["bytes_up"])
    assert sum(line.startswith("| ") for line in lines) == len(rows) + len(found["bytes_up"]) + 3


def test_noise(tmp_path: Path) -> None:
    found, lines = tiny("noise", tmp_path)
    for row in found["errors"]:
        assert abs(row["measured"] / row["planned"] - 1) < 6 * row["deviation"]
    for row in found["dropouts"]:
        assert row.keys() >= STATED
        assert 1 <= row["planned"] <= 1.015
        assert abs(row["measured"] / row["planned"] - 1) < 6 * row["deviation"]
    assert all(row["p"] > 1e-4 for row in found["fit"])
    rows = sum(len(found[part]) for part in ("samplers", "fit", "errors", "dropouts"))
    assert sum(line.startswith("| ") for line in lines) == rows + 4


def test_paillier(tmp_path: Path) -> None:
    found, lines = tiny("paillier", tmp_path)
    one = found["one_key"]
    assert len(one["encrypt"]) == len(one["unit"]) == len(one["phe_encrypt"])
    assert one["ciphertexts"] * one["lane"] < 2 * one["bits"] * one["ciphertexts"]
    assert min(one["phe_encrypt"]) > 10 * min(one["encrypt"])  # one by one, whatever else the machine does
    assert len(found["safe_primes"]["ours"]) == len(found["safe_primes"]["theirs"])
    assert [row["work"] for row in found["sessions"]][:2] == ["secagg", "threshold-paillier"]
    assert all(row.keys() >= STATED for row in found["sessions"])
    tables = 1 + 1 + 1 + any(name in found["lattices"] for name in ("TenSEAL", "OpenFHE"))
    rows = 7 + 3 + 3 + sum(name in found["lattices"] for name in ("TenSEAL", "OpenFHE"))
    assert sum(line.startswith("| ") for line in lines) == rows + tables


def test_growth(tmp_path: Path) -> None:
    found, lines = tiny("growth", tmp_path)
    for sweep in ("clients", "entries", "dropout"):
        assert all(p.keys() >= STATED | {"client", "server", "up", "down"} for p in found[sweep])
        assert {p["protocol"] for p in found[sweep]} == {"secagg", "secagg+"}
    # Bytes have no noise: they grow with the vector, and in SecAgg+ slower than in SecAgg.
    up = {(p["protocol"], p["threat_model"], p["n"]): p["up"] for p in found["clients"]}
    for protocol, model in {(p, m) for p, m, _ in up}:
        ascending = [up[k] for k in sorted(up) if k[:2] == (protocol, model)]
        assert ascending == sorted(ascending)
    assert up["secagg+", "honest-but-curious", 60] < up["secagg", "honest-but-curious", 60]
    assert (
        sum(line.startswith("| ") for line in lines)
        == sum(len(rows) for rows in found.values() if isinstance(rows, list)) + 3
    )


def test_the_cost_model(tmp_path: Path) -> None:
    found, lines = tiny("model", tmp_path)
    assert len(found["rows"]) == 6
    assert sum(line.startswith("| ") for line in lines) == 6 + 1
    for row in found["rows"]:
        if row["protocol"] == "secagg":  # on a sparse graph, which neighbours are left is a matter of luck
            assert (row["up"], row["down"]) == (row["up_predicted"], row["down_predicted"])


@pytest.mark.parametrize("drawn", [("growth",), ("growth", "model", "limit", "peers")])
def test_the_published_figures_make_the_published_page(drawn: tuple[str, ...], tmp_path: Path) -> None:
    """Pictures and page come from `results/` alone."""
    script = (
        "import json, sys; from pathlib import Path; here, there, *parts = sys.argv[1:]; "
        "sys.path.insert(0, here); import plots; "
        "kept = {p: json.loads((Path(here) / 'results' / f'{p}.json').read_text()) for p in parts}; "
        "plots.draw(kept, Path(there))"
    )
    words = [sys.executable, "-c", script, str(BENCHMARKS), str(tmp_path), *drawn]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    names = {path.name for path in tmp_path.iterdir()}
    assert names >= {"growth-clients.png", "growth-entries.png", "growth-dropout.png"}
    assert ("summary.png" in names) == ("limit" in drawn)
