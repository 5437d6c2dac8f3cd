"""Simulations and unmasking on a local Ray of two workers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from protocols import crowd
from protocols.errors import Aborted, LocalError
from protocols.simulator import Delay, Drop, Duplicate, simulate
from secagg import prg
from secagg.randomness import seeded
from secagg.ring import Ring

ray = pytest.importorskip("ray")
OnRay: Any = pytest.importorskip("fedavg.adapters.ray").OnRay
pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own, of files and processes it leaves open


def test_without_a_cluster_it_says_what_to_call() -> None:
    assert not ray.is_initialized()
    with pytest.raises(LocalError, match="ray: not connected"):
        OnRay()


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    yield
    ray.shutdown()


@pytest.mark.parametrize("threat_model", ["honest-but-curious", "malicious"])
def test_the_same_sum_costs_and_results_as_here(cluster: None, threat_model: str) -> None:
    names = [f"client-{i:02}" for i in range(40)]
    run: dict[str, Any] = {
        "dim": 300, "bound": 1 << 12, "threat_model": threat_model, "dropout": 0.2,
        "faults": {names[3]: Drop(before="masked"), names[4]: Drop(after="masked"), names[5]: Delay("shares"),
                   names[6]: Duplicate("masked"), names[7]: Duplicate("shares", "down")},
    }  # fmt: skip
    here, there = simulate(40, **run), simulate(40, **run, engine=OnRay())
    assert there.sum.tolist() == here.sum.tolist()
    assert there.result.included == here.result.included
    assert set(here.result.dropped) == {names[3], names[5]}
    assert there.result.dropped == here.result.dropped
    assert there.clients == here.clients
    for name, stages in here.costs.items():
        for stage, cost in stages.items():
            other = there.costs[name][stage]
            assert (other.bytes_up, other.bytes_down) == (cost.bytes_up, cost.bytes_down)


def test_a_sparse_graph_of_hundreds(cluster: None) -> None:
    drop = {f"client-{i:03}": "masked" for i in range(20)}
    run = simulate(200, dim=50, bound=1 << 16, protocol="secagg+", drop=drop, engine=OnRay())
    assert len(run.result.included) == 180
    common = crowd.Crowd(run.session, repr(0).encode(), None, False)
    total = sum(common.vector(name).astype(object) for name in run.result.included)
    assert run.sum.tolist() == (total % (1 << run.session.ring.bits)).tolist()


def test_an_abort_reaches_everyone(cluster: None) -> None:
    drop = {f"client-{i}": "masked" for i in range(5)}
    run = simulate(8, dim=5, bound=10, drop=drop, engine=OnRay())
    assert isinstance(run.result, Aborted)
    assert all(isinstance(run.clients[f"client-{i}"], Aborted) for i in range(5, 8))


@pytest.mark.parametrize("bits", [16, 23, 32, 64])
@pytest.mark.parametrize("workers", [1, 2, 5])
def test_masks_are_expanded_by_ranges(
    cluster: None, bits: int, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedavg.adapters.ray._WORTH_A_TASK", 1)
    ring = Ring(bits)
    dim = 3 * prg.CHUNK_BYTES // ring.dtype.itemsize + 7
    start = np.frombuffer(seeded(b"ray")(dim * ring.dtype.itemsize), ring.dtype)
    seeds = [bytes([i]) * 16 for i in range(5)]
    expected = prg.accumulate(ring, start, seeds[:2], seeds[2:])
    found = OnRay(workers).expand(ring, start, seeds[:2], seeds[2:])
    assert np.array_equal(found, expected)


def test_a_bad_seed_is_refused(cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedavg.adapters.ray._WORTH_A_TASK", 1)
    vector = Ring(32).zeros(prg.CHUNK_BYTES)
    with pytest.raises(ValueError, match="seed"):
        OnRay(2).expand(Ring(32), vector, [bytes(16), bytes(15)])


@pytest.mark.parametrize("workers", [0, -1, True, 1.5])
def test_an_impossible_number_of_workers_is_refused(cluster: None, workers: Any) -> None:
    with pytest.raises(LocalError, match="workers: expected a positive integer"):
        OnRay(workers)


def test_the_command_runs_on_the_cluster(cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from click.testing import CliRunner

    from fedavg.cli import cli

    monkeypatch.setattr(ray, "init", lambda **_: None)  # the fixture's is there already
    words = ["simulate", "--clients", "12", "--dim", "9", "--dropping", "0.1", "--ray", "--json"]
    done = CliRunner().invoke(cli, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["included"] == 11
