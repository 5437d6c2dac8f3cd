"""Flower's own engines: the simulation, and deployments of processes."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[3]
README = (ROOT / "README.md").read_text()


def run(folder: Path, *command: str | Path, seconds: int) -> str:
    """Run a script with a Flower home of its own; what it printed."""
    env = os.environ | {
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_HOME": str(folder / "flwr"),
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    done = subprocess.run(
        [sys.executable, *map(str, command)], cwd=folder, env=env, capture_output=True, text=True,
        timeout=seconds,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_ten_nodes_in_the_simulation_engine_fail_at_each_stage(tmp_path: Path) -> None:
    run(tmp_path, ROOT / "tests/fedavg/adapters/engine.py", tmp_path, seconds=300)
    found = json.loads((tmp_path / "found.json").read_text())
    # Whose vector is masked already is in the sum: the fourth failure costs nothing.
    assert found["included"] == [9, 9, 9, 10, 10]
    assert [len(d) for d in found["dropped"]] == [1, 1, 1, 0, 0]
    assert all("a fault on demand" in reason for reasons in found["dropped"][:3] for reason in reasons)
    steps, weights = 0.1 * np.arange(1, 11), np.arange(10, 20)
    without = np.average(steps[1:], weights=weights[1:])
    everybody = np.average(steps, weights=weights)
    assert found["model"] == pytest.approx(3 * without + 2 * everybody, abs=1e-5)
    # Five rounds of at most included * step * max_weight / total weight each.
    assert found["spread"] < 5 * 10 * (100 / 2**27) * 100 / 145
    assert found["legacy"] == pytest.approx(2 * everybody, abs=1e-5)


def test_the_readmes_change_is_all_that_makes_the_example_secure(tmp_path: Path) -> None:
    (change,) = re.findall(r"^```diff\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    added = [line for line in change.splitlines() if re.match(r"\+(?!\+\+)", line)]
    assert len(added) <= 10
    shutil.copytree(ROOT / "examples/flower/learning", tmp_path / "plain")
    subprocess.run(["git", "init", "-q", tmp_path / "plain"], check=True)
    subprocess.run(
        ["git", "apply", "-R", "--unidiff-zero"], cwd=tmp_path / "plain", input=change, text=True, check=True
    )
    plain = {p.name: p.read_text() for p in (tmp_path / "plain").rglob("*.py")}
    assert not any("fedavg" in text or "secagg_mod" in text for text in plain.values())
    run(tmp_path, ROOT / "examples/hospitals.py", tmp_path / "plain", "10", seconds=60)
    apps = {"plain": tmp_path / "plain", "secure": ROOT / "examples/flower/learning"}
    models = {}
    for name, app in apps.items():
        script = tmp_path / f"{name}.py"
        script.write_text(
            "import sys\n"
            f"sys.path[:0] = [{str(ROOT / 'examples/flower')!r}]\n"
            "from deployment import Deployment\n"
            # As many as there are: Flower samples from those that have registered so far.
            f"config = {{'hospitals': 10, 'tables': {str(tmp_path / 'plain')!r}}}\n"
            f"config['model'] = {str(tmp_path / name)!r}\n"
            f"with Deployment(10) as federation:\n    run = federation.run({str(app)!r}, config)\n"
            "print(run.log)\n"
            "assert run.completed, run.details\n"
        )
        printed = run(tmp_path, script, seconds=300)
        assert "round 5: accuracy 0.9" in printed
        with np.load(tmp_path / f"{name}.npz") as found:
            models[name] = [found[key] for key in found.files]
    for a, b in zip(models["plain"], models["secure"], strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)
        assert a.dtype == b.dtype


@pytest.mark.slow
def test_a_federation_of_processes_survives_a_kill(tmp_path: Path) -> None:
    (command,) = re.findall(
        r"^\$ \.flower/bin/python (examples/flower/deploy.py) federation$", README, re.MULTILINE
    )
    printed = run(tmp_path, ROOT / command, "federation", seconds=600)
    assert "york was killed" in printed
    assert re.search(r"round 1 of flower/\d+/train: the sum of 5 nodes", printed)
    assert re.search(r"round 2 of flower/\d+/train: the sum of 4 nodes", printed)
    assert "without york" in printed
    assert re.search(r"round 2: accuracy 0\.9\d+ over all hospitals", printed)
    # The statistics are of those that are left.
    assert re.search(r"number of records   \d+   0   \d+   4", printed)
    left = subprocess.run(["ps", "-A", "-o", "args="], capture_output=True, text=True, check=True).stdout
    assert str(tmp_path) not in left
