"""Simulations too large for one machine, and the unmasking of a large server, on Ray (extra `ray`).

    ray.init()                                    # or ray.init(address="auto"), on a cluster
    simulate(100_000, dim=10_000, bound=1 << 16, protocol="secagg+", engine=OnRay())
    session.server(expand=OnRay().expand)         # a real server's masks, by ranges of coordinates

A task is a chunk of clients and ends with its stage; what the clients keep stays in Ray's object store. To
expand masks, workers are given the seeds of the round's masks: the cluster is the server, and must be
trusted as it is. Ray does not share an environment with Flower, which needs a version of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import ray

from protocols.crowd import Crowd, Done, Run, Task, ahead, chunk_size, work_frozen
from protocols.errors import LocalError
from protocols.machine import ServerMachine
from protocols.session import Session
from secagg.prg import accumulate, ranges
from secagg.randomness import Rng
from secagg.ring import Ring, Vector

_WORTH_A_TASK = 1 << 26  # bytes of keystream: about ten milliseconds of work, ten times what a task costs


class OnRay:
    """An engine for `simulate`, and what expands a server's masks: on the Ray that this process is part of.

    workers  how many tasks to keep going; by default as many as the cluster has CPUs

    Raises `LocalError` if `ray.init` was not called.
    """

    def __init__(self, workers: int | None = None) -> None:
        if not ray.is_initialized():
            raise LocalError("ray: not connected: call ray.init() first")
        if workers is not None and (type(workers) is not int or workers < 1):
            raise LocalError(f"workers: expected a positive integer, got {workers!r}")
        resources: Any = ray.cluster_resources  # it has no types
        self.workers = workers or max(1, int(resources().get("CPU", 1)))

    def server(self, session: Session, rng: Rng) -> ServerMachine:
        """In this process, its masks expanded on the cluster."""
        return session.server(rng=rng, expand=self.expand)

    def clients_a_task(self, clients: int) -> int:
        """How many clients make a task."""
        return chunk_size(clients, self.workers)

    @contextmanager
    def running(self, crowd: Crowd) -> Iterator[Run]:
        """Put what is common to all tasks into the object store, once."""
        common = ray.put(crowd)
        remote: Any = ray.remote(num_returns=2)(work_frozen)

        def submit(task: Task) -> Any:
            return remote.remote(common, *task)

        def result(refs: Any) -> Done:
            chunk, done = refs
            return chunk, ray.get(done)  # the chunk stays where it is

        yield lambda tasks: ahead(submit, result, tasks, 2 * self.workers)

    def expand(
        self, ring: Ring, vector: Vector, add: Sequence[bytes] = (), subtract: Sequence[bytes] = ()
    ) -> Vector:
        """`secagg.prg.accumulate`, each range of coordinates a task; little work is done here."""
        worth = vector.nbytes * (len(add) + len(subtract)) // _WORTH_A_TASK
        parts = ranges(ring, vector.size, min(self.workers, worth))
        if len(parts) < 2:
            return accumulate(ring, vector, add, subtract)
        remote: Any = ray.remote(_expanded)
        seeds = ray.put((list(add), list(subtract)))
        masks = ray.get([remote.remote(ring, end - start, seeds, start) for start, end in parts])
        out = vector.copy()
        for (start, end), mask in zip(parts, masks, strict=True):
            np.add(out[start:end], mask, out=out[start:end])
        return out


def _expanded(ring: Ring, size: int, seeds: tuple[list[bytes], list[bytes]], offset: int) -> Vector:
    return accumulate(ring, ring.zeros(size), *seeds, offset=offset)
