"""One party of a simulated session in a process of its own, so that its CPU time and its memory are its own.

`Apart` is an engine for `protocols.simulator.simulate`: every client runs here and is put away as bytes
between stages, but one party, the server or a client, lives in a child process, which is fed envelopes
as a transport would feed it: the server reads each into the same buffer, so that a received vector is
where the socket would have left it. What the party spends in `handle` is what is counted, and beside it,
in the same process, the units: OpenSSL's AES-128-CTR alone, between the repeats, and numpy's addition of
a received vector to a sum, before or after each vector in turn (caches are as cold then).
"""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from time import perf_counter, process_time
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from protocols.crowd import Chunk, Crowd, Done, Here, Run, work_frozen
from protocols.machine import Received, StageClosed
from protocols.session import Session
from protocols.simulator import STAGES
from protocols.wire import Envelope, from_bytes_checked, to_bytes
from secagg.prg import threaded
from secagg.randomness import seeded

CHUNK_BYTES = 1 << 17
SERVER_SEED = b"benchmark"
"""What a server apart draws from: the graph's seed first of all."""


@dataclass(frozen=True)
class Spent:
    """What the party apart spent in a session.

    CPU and wall seconds by stage, the CPU seconds of numpy's additions alone, and by stage the most memory
    above that of its process with all imports done.
    """

    cpu: dict[str, float]
    wall: dict[str, float]
    additions: float
    peaks: dict[str, int]

    @property
    def seconds(self) -> float:
        return sum(self.cpu.values())


@cache
def the_vector(dim: int, bound: int, dtype: np.dtype) -> Any:
    """What every client has."""
    return (np.arange(dim) % bound).astype(dtype)


class _Alike(Crowd):
    """Clients with one vector, given to each when it may mask it, as by an app that trains in between."""

    def vector(self, name: str) -> Any:
        return the_vector(self.session.dim, self.session.bound, self.session.ring.dtype)


class Apart(Here):
    """Everybody here but `party`: "server", or a client's name. Use as a context manager."""

    def __init__(
        self, party: str, threads: int = 1, additions: bool = False, one_by_one: bool = False
    ) -> None:
        self.party, self.threads, self.additions, self.sealed = party, threads, additions, 0
        self.one_by_one = one_by_one
        context = get_context("spawn")
        self._line, theirs = context.Pipe()
        self._process = context.Process(target=_child, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()

    def __enter__(self) -> Apart:
        return self

    def __exit__(self, *_: object) -> None:
        self._line.send(None)
        self._process.join()

    def ask(self, what: str, *arguments: Any) -> Any:
        """Have the child do something, and return what it says."""
        self._line.send((what, arguments))
        answer = self._line.recv()
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def raw(self, streams: int, nbytes: int) -> float:
        """CPU seconds in the child of so many keystreams of `nbytes` bytes."""
        return float(self.ask("raw", streams, nbytes))

    def spent(self) -> Spent:
        """Of the session that has just ended."""
        return self.ask("spent")

    def replay(self) -> float:
        """CPU seconds of the client once more, from the beginning, given what it was given in that session.

        A simulated client's randomness is its own and repeatable, so what others said still fits.
        """
        return float(self.ask("replay"))

    def peak(self, session: Session, spent: Spent) -> int:
        """The most memory, without the two vectors of the unit and without sealed shares in transit.

        When it forwards them a server has the shares as they came, as messages to send, and encoded; while it
        takes in vectors, encoded, to send them again.
        """
        unit = 2 * session.dim * session.ring.dtype.itemsize if self.additions else 0
        sealed = {"shares": 3 * self.sealed, "masked": self.sealed}
        return max(peak - sealed.get(stage, 0) for stage, peak in spent.peaks.items()) - unit

    # What follows is the engine.

    def server(self, session: Session, rng: Any) -> Any:
        """The server, there or here."""
        return _ServerThere(self, session) if self.party == "server" else super().server(session, rng)

    @contextmanager
    def running(self, crowd: Crowd) -> Iterator[Run]:
        """Clients here, except the one that is there; all with the same vector."""
        crowd = _Alike(crowd.session, crowd.seed, None, crowd.resending)
        if self.party != "server":
            self.ask("client", crowd, self.party)

        def one(chunk: Any, deliveries: Any) -> Done:
            if chunk == (self.party,):
                return chunk, self.ask("deliver", deliveries)
            return work_frozen(crowd, chunk, deliveries)

        yield lambda tasks: (one(*task) for task in tasks)


class _ServerThere:
    """What the simulator needs of a server."""

    def __init__(self, apart: Apart, session: Session) -> None:
        self._apart = apart
        self._waiting: list[bytes] = []
        self._turn = 0
        apart.sealed = 0
        self.result: Any = None
        self.stage: str = apart.ask("server", session, apart.threads, apart.additions, apart.one_by_one)

    def handle(self, event: Any) -> list[Envelope]:
        # Messages without a vector are handed over by the stage, as waking a process for each would be
        # counted; or one by one, so that the memory is the server's alone.
        if isinstance(event, Received) and not len(event.envelope.frame):
            self._apart.sealed += len(event.envelope.body) if self.stage == "shares" else 0
            self._waiting.append(to_bytes(event.envelope))
            if not self._apart.one_by_one:
                return []
        out = []
        if self._waiting:
            out = self._order("handle", self._waiting)
            self._waiting = []
        if isinstance(event, Received):
            data, frame = to_bytes(event.envelope), event.envelope.frame
            self._turn += 1
            if self._apart.additions and self._turn % 2:
                self._add(frame)
            out += self._order("expect", len(data), len(data) - len(frame), data=data)
            if self._apart.additions and not self._turn % 2:
                self._add(frame)
            return out
        return out + self._order("close", event.stage)

    def _add(self, frame: Any) -> None:
        self._apart._line.send(("add", ()))
        self._apart._line.send_bytes(frame)
        self._apart._line.recv()

    def _order(self, what: str, *arguments: Any, data: bytes | None = None) -> list[Envelope]:
        line = self._apart._line
        line.send((what, arguments))
        if data is not None:
            line.send_bytes(data)
        answer = line.recv()
        if isinstance(answer, BaseException):
            raise answer
        count, self.stage, self.result = answer
        return [from_bytes_checked(line.recv_bytes(), 1 << 40) for _ in range(count)]


class _Child:
    """What runs there."""

    def __init__(self, line: Any) -> None:
        self.line = line
        self.room = bytearray()
        self.cpu: dict[str, float] = {}
        self.wall: dict[str, float] = {}
        self.before = 0
        self.chunk: Chunk | None = None

    def raw(self, streams: int, nbytes: int) -> float:
        return raw(streams, nbytes)

    def add(self) -> None:
        self.line.recv_bytes_into(self.received.data.cast("B"))
        start = process_time()
        np.add(self.total, self.received, out=self.total)
        self.added += process_time() - start

    trim = False

    def _begin(self) -> None:
        self.cpu, self.wall, self.added = {}, {}, 0.0
        self.machine = self.chunk = None
        self.room = bytearray()
        self.peaks: dict[str, int] = {}
        _reset_peak(self.trim)
        self.before = _memory("VmRSS")

    def client(self, crowd: Crowd, name: str) -> None:
        self._begin()
        self.crowd, self.name, self.given = crowd, name, []
        self.chunk = Chunk(crowd, [name])
        signed = crowd.session.signed
        self.stages = iter([stage for stage in STAGES if signed or stage != "signatures"])

    def deliver(self, deliveries: Any) -> Any:
        if deliveries is None:
            return self.chunk.results()
        self.given.append(deliveries)
        wall = perf_counter()
        reactions = self.chunk.deliver(deliveries)
        stage = next(self.stages)
        self.wall[stage] = perf_counter() - wall
        self.cpu[stage] = sum(r.cpu_seconds for r in reactions)
        self._mark(stage)
        return [_with_bytes(r) for r in reactions]

    def replay(self) -> float:
        chunk = Chunk(self.crowd, [self.name])
        return sum(r.cpu_seconds for deliveries in self.given for r in chunk.deliver(deliveries))

    def server(self, session: Session, threads: int, additions: bool, trim: bool) -> str:
        self.trim = trim
        self._begin()
        if additions:
            self.total, self.received = session.ring.zeros(session.dim), session.ring.zeros(session.dim)
        self.room = bytearray(session.max_envelope_bytes + 16)
        expand = threaded(threads)
        self.machine = session.server(rng=seeded(SERVER_SEED), expand=expand)
        return self.machine.stage

    def expect(self, size: int, head: int) -> None:
        start = -head % 16  # as a driver would that reads the vector into a buffer of its own: aligned
        self.line.recv_bytes_into(self.room, start)
        self._take([Received(from_bytes_checked(memoryview(self.room)[start : start + size], size))])

    def handle(self, several: list[bytes]) -> None:
        self._take([Received(from_bytes_checked(data, len(data))) for data in several])

    def close(self, stage: str) -> None:
        self._take([StageClosed(stage)])

    def _take(self, events: list[Any]) -> None:
        machine, stage = self.machine, self.machine.stage
        wall, cpu = perf_counter(), process_time()
        out = [envelope for event in events for envelope in machine.handle(event)]
        self.cpu[stage] = self.cpu.get(stage, 0.0) + process_time() - cpu
        self.wall[stage] = self.wall.get(stage, 0.0) + perf_counter() - wall
        if machine.stage != stage:
            self._mark(stage)
        self.line.send((len(out), machine.stage, machine.result))
        for envelope in out:
            self.line.send_bytes(to_bytes(envelope))

    def spent(self) -> Spent:
        return Spent(self.cpu, self.wall, self.added, self.peaks)

    def _mark(self, stage: str) -> None:
        self.peaks[stage] = _memory("VmHWM") - self.before
        _reset_peak(self.trim)


def _child(line: Any) -> None:
    child = _Child(line)
    while (order := line.recv()) is not None:
        what, arguments = order
        try:
            answer = getattr(child, what)(*arguments)
        except BaseException as error:
            answer = error
        if what not in ("expect", "handle", "close") or answer is not None:
            line.send(answer)


def _with_bytes(reaction: Any) -> Any:
    for i, e in enumerate(reaction.sent):
        reaction.sent[i] = Envelope(e.session, e.sender, e.to, e.body, bytes(e.frame))
    return reaction


def _reset_peak(trim: bool) -> None:
    """Forget the peak; and what an earlier stage left to the allocator, where memory is what is measured.

    Where time is, it stays: pages given back would be faulted in again, and counted.
    """
    if trim:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def _memory(field: str) -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith(field + ":"))


def raw(streams: int, nbytes: int) -> float:
    """CPU seconds of OpenSSL alone for so many AES-128-CTR keystreams of `nbytes` bytes."""
    zeros, out = bytes(CHUNK_BYTES), bytearray(CHUNK_BYTES)
    whole, rest = divmod(nbytes, CHUNK_BYTES)
    start = process_time()
    for _ in range(streams):
        cipher = Cipher(algorithms.AES128(os.urandom(16)), modes.CTR(bytes(16))).encryptor()
        for _ in range(whole):
            cipher.update_into(zeros, out)
        cipher.update_into(zeros[:rest], out)
    return process_time() - start
