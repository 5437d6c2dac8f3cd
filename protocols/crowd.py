"""Many clients of one session, in chunks that can be worked on anywhere: here, in processes, on a cluster.

A chunk of clients is data between two stages: each machine's snapshot and its journal, the same that a
client which stores itself between messages would keep. So an engine needs no state of its own and no
process a client: it maps a pure function over chunks, in order, a few at a time, and the server takes in
one chunk's messages while the next is worked on. Nothing is held of a vector but while its chunk is in
work.

What it does not protect against: anyone who knows the seed, which all keys come from.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
import numpy as np

from protocols.errors import Aborted, LocalError
from protocols.journal import MemoryJournal
from protocols.machine import Answered, ClientMachine, Input, Received, ServerMachine, Started
from protocols.session import Session
from protocols.wire import Envelope
from secagg.keys import Identity
from secagg.prg import threaded
from secagg.randomness import Rng, seeded
from secagg.ring import Vector

if TYPE_CHECKING:
    from secagg.consortium import KeyShare

Delivery = tuple[str, Envelope | None]
"""A client, and what it is sent; None to begin."""


@dataclass(frozen=True, slots=True)
class Reaction:
    """What a client did about a delivery: what it sends, and the CPU seconds that it took."""

    name: str
    sent: list[Envelope]
    cpu_seconds: float


Result = Answered | Aborted | None


@dataclass(frozen=True)
class Crowd:
    """What all chunks of one simulation share.

    session    the public agreement
    seed       what every client's identity, randomness and, if there are no `vectors`, vector come from
    vectors    name -> vector, given to the clients at once; or None: each draws its own when it is due
    resending  whether a machine must still be able to repeat a message once its chunk was put away
    shares     of a consortium's key, by ascending name, if the session has one
    """

    session: Session
    seed: bytes = field(repr=False)
    vectors: Mapping[str, Any] | None = field(repr=False)
    resending: bool
    shares: Sequence[KeyShare] | None = field(default=None, repr=False)

    def rng(self, what: str, name: str) -> Rng:
        """One of a client's streams."""
        return seeded(b"simulate", self.seed, what.encode(), name.encode())

    def identity(self, name: str) -> Identity:
        """A client's identity."""
        return identity(self.seed, name)

    def share(self, name: str) -> KeyShare | None:
        """A client's share of the consortium's key, if there is one."""
        return None if self.shares is None else self.shares[self.session.positions[name]]

    def vector(self, name: str) -> Vector:
        """A client's random vector, spread over the whole range, so that no wrap could go unnoticed."""
        bound = self.session.bound
        words: Vector = np.frombuffer(self.rng("vector", name)(8 * self.session.dim), "<u8")
        return words if bound == 1 << 64 else words % np.uint64(bound)


def identity(seed: bytes, name: str) -> Identity:
    """The identity of a client of the simulation with this seed."""
    return Identity.generate(seeded(b"simulate", seed, b"identity", name.encode()))


class Chunk:
    """Some clients of a crowd, alive."""

    def __init__(self, crowd: Crowd, names: Sequence[str]) -> None:
        self._crowd = crowd
        self._journals = {name: MemoryJournal() for name in names}
        self._machines = {name: self._new(name) for name in names}

    def _new(self, name: str) -> ClientMachine:
        crowd = self._crowd
        return crowd.session.client(
            name, crowd.identity(name), rng=crowd.rng("client", name), journal=self._journals[name],
            share=crowd.share(name),
        )  # fmt: skip

    def deliver(self, deliveries: Iterable[Delivery]) -> list[Reaction]:
        """Let each client react to what it is sent."""
        return [self._react(name, envelope) for name, envelope in deliveries]

    def _react(self, name: str, envelope: Envelope | None) -> Reaction:
        machine, crowd = self._machines[name], self._crowd
        given = crowd.vectors[name] if envelope is None and crowd.vectors is not None else None
        start = time.process_time()
        out = machine.handle(Started() if envelope is None else Received(envelope))
        if given is not None:
            out += machine.handle(Input(given))
        elapsed = time.process_time() - start
        if crowd.vectors is None and machine.stage == "input":
            vector = crowd.vector(name)  # drawing it is no cost of the protocol
            start = time.process_time()
            out += machine.handle(Input(vector))
            elapsed += time.process_time() - start
        return Reaction(name, out, elapsed)

    def results(self) -> list[tuple[str, Result]]:
        """What each client came to; equal results are one object."""
        seen: dict[Any, Answered] = {}
        return [
            (name, seen.setdefault(result.included, result) if isinstance(result, Answered) else result)
            for name, result in ((name, machine.result) for name, machine in self._machines.items())
        ]

    def freeze(self) -> bytes:
        """The chunk as data, for `thaw`. Its machines are not to be used any more."""
        key = self._key()
        kept = [
            (name, self._journals[name].dump(), machine.snapshot(key, outbox=self._crowd.resending))
            for name, machine in self._machines.items()
        ]
        return msgspec.msgpack.encode(kept)

    @classmethod
    def thaw(cls, crowd: Crowd, frozen: bytes) -> Chunk:
        """The chunk that was frozen."""
        chunk = cls(crowd, ())
        for name, kept, snapshot in msgspec.msgpack.decode(frozen, type=list[tuple[str, bytes, bytes]]):
            journal = chunk._journals[name] = MemoryJournal.load(kept)
            chunk._machines[name] = crowd.session.restore_client(
                name, crowd.identity(name), journal, snapshot=snapshot, key=chunk._key(),
                share=crowd.share(name),
            )  # fmt: skip
        return chunk

    def _key(self) -> bytes:
        return self._crowd.rng("snapshots", "")(32)


Task = tuple[Any, Sequence[Delivery] | None]
"""A chunk (at first its clients' names) and what its clients are sent; None asks for their results."""

Done = tuple[Any, Any]
"""The chunk afterwards, and the reactions (or the results)."""

Run = Callable[[Iterable[Task]], Iterator[Done]]
"""What has tasks worked on: as many as it can at a time, but done in their order."""


def work(crowd: Crowd, chunk: Any, deliveries: Sequence[Delivery] | None) -> Done:
    """What an engine does with a task, where chunks stay alive."""
    if not isinstance(chunk, Chunk):
        chunk = Chunk(crowd, chunk)
    return chunk, chunk.results() if deliveries is None else chunk.deliver(deliveries)


def work_frozen(crowd: Crowd, chunk: Any, deliveries: Sequence[Delivery] | None) -> Done:
    """What an engine does with a task, where chunks travel: frozen, and vectors as bytes."""
    alive = Chunk.thaw(crowd, chunk) if isinstance(chunk, bytes) else chunk
    alive, done = work(crowd, alive, deliveries)
    if deliveries is None:
        return b"", done
    sent = [replace(r, sent=[replace(e, frame=bytes(e.frame)) for e in r.sent]) for r in done]
    return alive.freeze(), sent


class Engine(Protocol):
    """Where the parties of a simulation run.

    `running` prepares for one crowd and gives the map from tasks to what was done, in the same order; tasks
    are taken from their iterator only as they can be worked on.
    """

    def server(self, session: Session, rng: Rng) -> ServerMachine:
        """The server of the session, with randomness from `rng`."""
        ...

    def clients_a_task(self, clients: int) -> int:
        """How many of so many clients make a task."""
        ...

    def running(self, crowd: Crowd) -> AbstractContextManager[Run]:
        """Ready to work for this crowd."""
        ...


class Here:
    """In this thread, one client after the other."""

    def server(self, session: Session, rng: Rng) -> ServerMachine:
        """The server, its masks expanded on this thread."""
        return session.server(rng=rng)

    def clients_a_task(self, clients: int) -> int:
        """One at a time: the server has its message before the next client begins."""
        return 1

    @contextmanager
    def running(self, crowd: Crowd) -> Iterator[Run]:
        """Nothing to prepare."""
        yield lambda tasks: (work(crowd, *task) for task in tasks)


class Processes:
    """In `workers` processes of this machine, and the server's masks on as many threads.

    The processes import the main module anew, so a script needs `if __name__ == "__main__":` around what it
    does.
    """

    def __init__(self, workers: int) -> None:
        if type(workers) is not int or workers < 1:
            raise LocalError(f"workers: expected a positive integer, got {workers!r}")
        self.workers = workers

    def server(self, session: Session, rng: Rng) -> ServerMachine:
        """In this process, its masks expanded on threads."""
        return session.server(rng=rng, expand=threaded(self.workers))

    def clients_a_task(self, clients: int) -> int:
        """Small enough that every worker has several, and that a chunk's vectors are few."""
        return chunk_size(clients, self.workers)

    @contextmanager
    def running(self, crowd: Crowd) -> Iterator[Run]:
        """Start the processes; each is told once what is common to all."""
        context = get_context("spawn")  # forking a process that has threads is not safe
        with ProcessPoolExecutor(self.workers, context, _begin, (crowd,)) as pool:
            try:
                yield lambda tasks: ahead(
                    lambda task: pool.submit(_work_in_process, *task), Future.result, tasks, 2 * self.workers
                )
            except BrokenProcessPool:
                raise LocalError(
                    "workers: a process ended by itself: for lack of memory perhaps (then fewer of them), or "
                    'because a script does its work outside of `if __name__ == "__main__":`'
                ) from None


_MOST_IN_A_CHUNK = 64


def chunk_size(clients: int, workers: int) -> int:
    """Clients a task: at least four tasks a worker, at most 64 clients each."""
    return max(1, min(_MOST_IN_A_CHUNK, clients // (4 * workers)))


def ahead(
    submit: Callable[[Task], Any], result: Callable[[Any], Done], tasks: Iterable[Task], most: int
) -> Iterator[Done]:
    """Submit tasks, at most so many ahead of the one whose result is due; results in order."""
    waiting: deque[Any] = deque()
    for task in tasks:
        waiting.append(submit(task))
        if len(waiting) == most:
            yield result(waiting.popleft())
    while waiting:
        yield result(waiting.popleft())


_crowd: Crowd | None = None  # of a worker process, set when it begins


def _begin(crowd: Crowd) -> None:
    global _crowd
    _crowd = crowd


def _work_in_process(chunk: Any, deliveries: Sequence[Delivery] | None) -> Done:
    assert _crowd is not None
    return work_frozen(_crowd, chunk, deliveries)
