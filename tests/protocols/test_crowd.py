"""Clients in chunks: put away and taken out again, in other processes, with the same outcome as here."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols import crowd as crowds
from protocols.crowd import Chunk, Crowd, Done, Here, Processes, Run, Task, chunk_size
from protocols.errors import Aborted, LocalError
from protocols.machine import Answered
from protocols.session import Session
from protocols.simulator import STAGES, Corrupt, Delay, Drop, Duplicate, Reorder, Replay, Simulation, simulate
from secagg.consortium import deal
from secagg.randomness import seeded


class Frozen(Here):
    """Every chunk is put away as bytes after every stage, and all that travels is pickled."""

    def __init__(self, clients_per_chunk: int) -> None:
        self.clients_per_chunk = clients_per_chunk
        self.tasks = 0

    def clients_a_task(self, clients: int) -> int:
        return self.clients_per_chunk

    @contextmanager
    def running(self, crowd: Crowd) -> Iterator[Run]:
        common = pickle.dumps(crowd)

        def run(tasks: Iterable[Task]) -> Iterator[Done]:
            for task in tasks:
                self.tasks += 1
                chunk, deliveries = pickle.loads(pickle.dumps(task))  # noqa: S301 - our own
                done = crowds.work_frozen(pickle.loads(common), chunk, deliveries)  # noqa: S301
                yield pickle.loads(pickle.dumps(done))  # noqa: S301

        yield run


def same(a: Simulation, b: Simulation) -> None:
    """Everything but the seconds."""
    assert type(a.result) is type(b.result)
    if isinstance(a.result, Aborted):
        assert a.result.args == b.result.args
    else:
        assert a.sum.tolist() == b.sum.tolist()
        assert (a.result.included, a.result.dropped) == (b.result.included, b.result.dropped)
    assert a.result.faults == b.result.faults
    assert {n: repr(c) for n, c in a.clients.items()} == {n: repr(c) for n, c in b.clients.items()}
    for party, stages in a.costs.items():
        for stage, cost in stages.items():
            other = b.costs[party][stage]
            assert (cost.bytes_up, cost.bytes_down) == (other.bytes_up, other.bytes_down), (party, stage)


def faults() -> st.SearchStrategy[Any]:
    stage, link = st.sampled_from(STAGES), st.sampled_from(["up", "down"])
    return st.one_of(
        st.builds(Drop, before=stage), st.builds(Drop, after=stage), st.builds(Delay, stage, link),
        st.builds(Duplicate, stage, link), st.builds(Reorder, stage), st.builds(Replay, stage, stage),
        st.builds(Corrupt, stage, st.integers(0, 10_000), link),
    )  # fmt: skip


@given(
    st.sampled_from(["honest-but-curious", "malicious"]),
    st.dictionaries(st.integers(0, 6), st.lists(faults(), min_size=1, max_size=2), max_size=3),
    st.booleans(),
)
def test_chunks_that_are_put_away_come_to_the_same(
    threat_model: str, stricken: dict[int, list[Any]], given_vectors: bool
) -> None:  # fmt: skip
    names = [f"client-{i}" for i in range(7)]
    run: dict[str, Any] = {
        "dim": 9, "bound": 1 << 12, "threat_model": threat_model, "dropout": 0.3, "corrupted": 0.0,
        "faults": {names[i]: theirs for i, theirs in stricken.items()},
    }  # fmt: skip
    vectors = {name: np.arange(9) + i for i, name in enumerate(names)} if given_vectors else 7
    here = simulate(vectors, **run)
    for size in (7, 3):
        same(here, simulate(vectors, **run, engine=Frozen(size)))


def test_chunks_of_any_size_give_the_same_sum() -> None:
    runs = [
        simulate(60, dim=30, bound=1 << 16, protocol="secagg+", drop={"client-07": "masked"}, engine=engine)
        for engine in (Here(), Frozen(1), Frozen(7), Frozen(60), Frozen(100))
    ]
    for run in runs[1:]:
        same(runs[0], run)


@pytest.mark.parametrize("threat_model", ["honest-but-curious", "malicious"])
def test_processes_come_to_the_same(threat_model: str) -> None:
    run: dict[str, Any] = {
        "dim": 2000, "bound": 1 << 16, "threat_model": threat_model, "dropout": 0.2,
        "faults": {"client-03": Drop(before="masked"), "client-04": Duplicate("shares", "down")},
    }  # fmt: skip
    same(simulate(24, **run), simulate(24, **run, engine=Processes(2)))


def test_a_crowds_sum_is_that_of_the_vectors_it_drew() -> None:
    run = simulate(5, dim=40, bound=1 << 30, seed=7, drop={"client-2": "masked"}, dropout=0.2)
    crowd = Crowd(run.session, repr(7).encode(), None, False)
    vectors = {name: crowd.vector(name) for name in run.session.names}
    assert len({v.tobytes() for v in vectors.values()}) == 5
    assert all(int(v.min()) >= 0 and int(v.max()) < 1 << 30 for v in vectors.values())
    assert run.sum.tolist() == sum(v for name, v in vectors.items() if name != "client-2").tolist()


def test_a_caller_s_mistake_in_a_worker_is_raised_here() -> None:
    with pytest.raises(LocalError, match="entries from 0 to 9"):
        simulate({"a": [1], "b": [2], "c": [10]}, bound=10, engine=Processes(1))


class Fatal(list):
    """A vector; whoever unpacks it in another process ends there."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _end, ()


def _end() -> None:
    os._exit(1)


def test_a_process_that_ends_is_told_of_in_a_line() -> None:
    vectors = {"a": Fatal([1]), "b": [2], "c": [3]}
    with pytest.raises(LocalError, match="workers: a process ended by itself"):
        simulate(vectors, bound=10, engine=Processes(1))


def test_shares_of_a_consortiums_key_are_at_hand_wherever_a_chunk_is() -> None:
    key, shares = deal(4, 3, 2048, seeded(b"a consortium"))
    agreed: dict[str, Any] = {
        "protocol": "threshold-paillier", "threat_model": "malicious", "consortium": key, "shares": shares,
    }  # fmt: skip
    same(
        simulate(4, dim=3, bound=100, seed=1, **agreed),
        simulate(4, dim=3, bound=100, seed=1, engine=Frozen(2), **agreed),
    )


def test_a_frozen_chunk_of_another_crowd_does_not_thaw() -> None:
    run = simulate(4, dim=3, bound=10)
    session = run.session
    one, other = (Crowd(session, seed, None, False) for seed in (b"0", b"1"))
    frozen = Chunk(one, session.names).freeze()
    Chunk.thaw(one, frozen)
    with pytest.raises(LocalError):
        Chunk.thaw(other, frozen)


def test_a_chunk_put_away_holds_no_vector() -> None:
    """What makes the memory of a simulation that of the chunks at work."""
    sizes: list[int] = []

    class Watched(Frozen):
        @contextmanager
        def running(self, crowd: Crowd) -> Iterator[Run]:
            with super().running(crowd) as run:

                def watched(tasks: Iterable[Task]) -> Iterator[Done]:
                    for chunk, done in run(tasks):
                        sizes.append(len(chunk))
                        yield chunk, done

                yield watched

    dim = 100_000
    run = simulate(5, dim=dim, bound=1 << 16, engine=Watched(1))
    assert run.result.included == run.session.names
    assert 0 < max(sizes) < dim / 10


def test_results_of_a_chunk_are_one_object_where_they_are_equal() -> None:
    run = simulate(6, dim=3, bound=10, engine=Frozen(3))
    answers = [r for r in run.clients.values() if isinstance(r, Answered)]
    assert len(answers) == 6
    assert len({id(a) for a in answers}) == 1


def test_tasks_are_taken_only_as_they_can_be_worked_on() -> None:
    taken: list[int] = []

    def tasks() -> Iterator[Any]:
        for i in range(10):
            taken.append(i)
            yield i

    done = []
    for result in crowds.ahead(lambda task: task, lambda handle: handle, tasks(), 3):
        done.append(result)
        assert len(taken) <= len(done) + 3
    assert done == list(range(10))


@pytest.mark.parametrize("clients", [1, 3, 10, 100, 10_000])
@pytest.mark.parametrize("workers", [1, 2, 64])
def test_chunks_are_small_and_many(clients: int, workers: int) -> None:
    size = chunk_size(clients, workers)
    assert 1 <= size <= 64
    assert size == 1 or clients // size >= 4 * workers


@pytest.mark.parametrize("workers", [0, -1, True, 1.0, "2"])
def test_an_impossible_number_of_workers_is_refused(workers: Any) -> None:
    with pytest.raises(LocalError, match="workers: expected a positive integer"):
        Processes(workers)


def test_a_crowd_shows_no_secret() -> None:
    session: Session = simulate(3, dim=2, bound=4).session
    text = repr(Crowd(session, b"SECRET", {"a": [77]}, False))
    assert "SECRET" not in text
    assert "77" not in text


@pytest.mark.parametrize("engine", [2, Processes, "processes"])
def test_what_is_no_engine_is_refused(engine: Any) -> None:
    with pytest.raises(LocalError, match="engine: expected an engine"):
        simulate(3, dim=2, bound=4, engine=engine)


def test_what_is_no_cohort_is_refused() -> None:
    for wrong in ("abc", [1, 2], {1: [1], 2: [2], 3: [3]}):
        with pytest.raises(LocalError):
            simulate(wrong, bound=4)  # type: ignore[arg-type]
    assert len(simulate(np.int64(3), dim=2, bound=4).result.included) == 3  # type: ignore[arg-type]


def test_any_mapping_of_vectors_reaches_another_process() -> None:
    vectors = MappingProxyType({"a": [1], "b": [2], "c": [3]})
    assert simulate(vectors, bound=10, engine=Processes(1)).sum.tolist() == [6]
