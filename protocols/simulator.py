"""A whole session in memory: every party real, faults on demand, costs counted.

The parties are the real machines, driven through the same four events that a transport uses; the
simulator knows no protocol. One seed reproduces everything, keys included, so a simulation is for
learning, testing and measuring, never for data that must stay secret from whoever knows the seed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from protocols.crowd import Crowd, Delivery, Engine, Here, Reaction, Result, Run, identity
from protocols.errors import Aborted, LocalError
from protocols.graph import MALICIOUS
from protocols.machine import Aggregate, Answered, Received, ServerMachine, StageClosed
from protocols.session import Session, stages
from protocols.wire import SERVER, Envelope, check_name
from secagg.randomness import seeded

if TYPE_CHECKING:
    from secagg.consortium import KeyShare

STAGES = ("keys", "shares", "masked", "signatures", "reveals")
"""What clients send, in order, in the session that has them all (see `Session.stages`). A fault in the one
that only an honest-but-curious session leaves out, `signatures`, never happens there."""

Direction = Literal["up", "down"]

_NAMES_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Drop:
    """The client vanishes for good, `before` it sends its message of a stage or `after`."""

    before: str | None = None
    after: str | None = None


@dataclass(frozen=True, slots=True)
class Delay:
    """The client's message of this stage arrives after the stage has closed."""

    stage: str
    link: Direction = "up"


@dataclass(frozen=True, slots=True)
class Duplicate:
    """The message of this stage arrives twice."""

    stage: str
    link: Direction = "up"


@dataclass(frozen=True, slots=True)
class Reorder:
    """The client's message of this stage arrives after everybody else's."""

    stage: str


@dataclass(frozen=True, slots=True)
class Corrupt:
    """One bit of the message of this stage is flipped: bit `bit`, modulo its length."""

    stage: str
    bit: int = 0
    link: Direction = "up"


@dataclass(frozen=True, slots=True)
class Replay:
    """The client's message of `stage` arrives once more in stage `at`."""

    stage: str
    at: str


NetworkFault = Drop | Delay | Duplicate | Reorder | Corrupt | Replay


@dataclass(slots=True)
class Cost:
    """What a party spent in one stage."""

    cpu_seconds: float = 0.0
    bytes_up: int = 0
    bytes_down: int = 0


class Row(NamedTuple):
    """What a stage took: CPU seconds, and bytes of the mean client."""

    stage: str
    client_cpu_mean: float
    client_cpu_max: float
    client_bytes_up: int
    client_bytes_down: int
    server_cpu: float


@dataclass(frozen=True, slots=True)
class Sent:
    """One line of the transcript: what anyone on the network sees."""

    stage: str
    sender: str
    to: str
    size: int


@dataclass(frozen=True)
class Simulation:
    """What happened. `print` it for a table.

    result      the server's `Aggregate` or `Aborted`
    clients     each client's `Answered`, `Aborted` or None (it never came to an end)
    costs       party -> stage -> `Cost`; the server is "server"
    transcript  the public messages in order, if asked for
    seed        reproduces all of it
    """

    session: Session
    result: Aggregate | Aborted
    clients: dict[str, Answered | Aborted | None]
    costs: dict[str, dict[str, Cost]]
    transcript: list[Sent]
    seed: int
    seconds: float
    call: str = field(repr=False)

    @property
    def sum(self) -> NDArray[np.integer[Any]]:
        """The sum; raises the `Aborted` if there is none."""
        return self.result.sum

    def rows(self) -> list[Row]:
        """The costs by stage."""
        rows = []
        for stage in STAGES:
            theirs = [c[stage] for name, c in self.costs.items() if name != SERVER and stage in c]
            if not theirs:
                continue
            cpu = [c.cpu_seconds for c in theirs]
            server = self.costs[SERVER].get(stage, Cost())
            rows.append(
                Row(
                    stage, sum(cpu) / len(cpu), max(cpu), sum(c.bytes_up for c in theirs) // len(theirs),
                    sum(c.bytes_down for c in theirs) // len(theirs), server.cpu_seconds,
                )
            )  # fmt: skip
        return rows

    def __str__(self) -> str:
        head = (
            f"{'stage':<11}{'client ms':>10}{'max ms':>9}{'bytes up':>11}{'bytes down':>12}{'server ms':>11}"
        )
        lines = [repr(self.session), head]
        for stage, mean, most, up, down, server in self.rows():
            lines.append(
                f"{stage:<11}{mean * 1e3:>10.2f}{most * 1e3:>9.2f}{up:>11,}{down:>12,}{server * 1e3:>11.2f}"
            )
        if isinstance(self.result, Aborted):
            lines.append(str(self.result))
        else:
            what = "the exact sum"
            if self.session.noise is not None:
                what = f"the sum with noise of variance {self.result.noise:.6g} in each entry,"
            lines.append(f"{what} of {len(self.result.included)} of {len(self.session.names)} clients")
        for (stage, cause), names in self.dropped().items():
            shown = ", ".join(names[:_NAMES_SHOWN])
            more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
            lines.append(f"  dropped at {stage}: {shown}{more}: {cause}")
        return "\n".join(lines)

    def dropped(self) -> dict[tuple[str, str], list[str]]:
        """(stage, cause) -> the clients that were dropped there for that."""
        found: dict[tuple[str, str], list[str]] = {}
        for name, fault in self.result.dropped.items():
            found.setdefault((fault.stage, fault.cause), []).append(name)
        return found


Schedule = Mapping[str, NetworkFault | Sequence[NetworkFault]]


def simulate(
    vectors: Mapping[str, Any] | int, *, bound: int, dim: int | None = None,
    drop: Mapping[str, str] | None = None, faults: Schedule | None = None, seed: int = 0,
    transcript: bool = False, on_event: Callable[[str, int, int], None] | None = None,
    engine: Engine | None = None, shares: Sequence[KeyShare] | None = None, **agreed: Any,
) -> Simulation:  # fmt: skip
    """Run one session in memory.

    vectors     name -> vector, or a number of clients, who get random vectors of `dim` entries
    bound       entries are below it
    drop        name -> the stage in which the client no longer sends: short for `Drop(before=stage)`
    faults      name -> a fault or several
    seed        reproduces keys, vectors and all other randomness, with any engine
    transcript  keep the list of public messages
    on_event    called with (stage, messages delivered, messages expected), for a progress bar
    engine      where the clients run: here if None, else `Processes(2)`, say
    shares      of a consortium's key, by ascending name, if `agreed` has one
    agreed      what else `Session` takes: protocol, threat_model, dropout, round ...

    The server takes in each message as it comes, so what is held at once is its one sum, the machines'
    states, and the vectors of the clients that are at work.
    """
    if isinstance(vectors, np.integer):
        vectors = int(vectors)
    if isinstance(vectors, int):
        if isinstance(vectors, bool) or vectors < 1 or dim is None:
            raise LocalError("vectors: a number of clients needs to be positive and to come with dim")
        width = len(str(vectors - 1))
        names = [f"client-{i:0{width}}" for i in range(vectors)]
    elif not isinstance(vectors, Mapping):
        raise LocalError(f"vectors: expected names and vectors, or a number, got {type(vectors).__name__}")
    else:
        vectors = dict(vectors)  # any mapping will do, and not all can be sent to another process
        names = list(vectors)
        dim = len(next(iter(vectors.values()), ())) if dim is None else dim
    call = _call(vectors, bound, dim, drop, faults, seed, agreed)
    for name in names:
        check_name(name)
    root = repr(seed).encode()
    session = Session({name: identity(root, name).public for name in names}, dim, bound, **agreed)
    schedule = _schedule(session, drop, faults)
    if not isinstance(vectors, int):
        for vector in vectors.values():  # the caller's mistakes, before any work
            session.vector(vector)
    resending = any(isinstance(f, Duplicate) for theirs in schedule.values() for f in theirs)
    if shares is not None and (not isinstance(shares, Sequence) or len(shares) != len(names)):
        raise LocalError(f"shares: expected {len(names)} in a sequence, one a client by ascending name")
    crowd = Crowd(session, root, None if isinstance(vectors, int) else vectors, resending, shares)
    engine = Here() if engine is None else engine
    if isinstance(engine, type) or not hasattr(engine, "clients_a_task"):
        raise LocalError(f"engine: expected an engine such as Processes(2), got {engine!r}")
    start = time.perf_counter()
    server = engine.server(session, seeded(b"simulate", root, b"server"))
    with engine.running(crowd) as run_tasks:
        chunks = _chunks(session.names, engine.clients_a_task(len(names)))
        run = _Run(server, chunks, run_tasks, schedule, on_event, [] if transcript else None)
        result = run.all()
        clients = run.results()
    seconds = time.perf_counter() - start
    return Simulation(session, result, clients, run.costs, run.transcript or [], seed, seconds, call)


def _chunks(names: Sequence[str], size: int) -> list[Sequence[str]]:
    return [names[start : start + size] for start in range(0, len(names), size)]


def _call(
    vectors: Any, bound: int, dim: int, drop: Any, faults: Any, seed: int, agreed: Mapping[str, Any]
) -> str:
    """The call to paste, to see the same again."""
    if not isinstance(vectors, int):
        vectors = {name: np.asarray(v).tolist() for name, v in vectors.items()}
    given = {"bound": bound, "dim": dim, "drop": drop, "faults": faults, "seed": seed, **agreed}
    return (
        f"simulate({vectors!r}, " + ", ".join(f"{k}={v!r}" for k, v in given.items() if v is not None) + ")"
    )


def _schedule(
    session: Session, drop: Mapping[str, str] | None, faults: Schedule | None
) -> dict[str, list[NetworkFault]]:
    schedule: dict[str, list[NetworkFault]] = {}
    for name, given in (faults or {}).items():
        schedule[name] = [given] if isinstance(given, NetworkFault) else list(given)
    for name, stage in (drop or {}).items():
        schedule.setdefault(name, []).append(Drop(before=stage))
    for name, theirs in schedule.items():
        if name not in session.positions:
            raise LocalError(f"faults: {name!r} is not a client")
        for fault in theirs:
            marks = (getattr(fault, a, None) for a in ("before", "after", "stage", "at"))
            named = [s for s in marks if s is not None]
            there = stages(session.protocol, MALICIOUS, session.consortium is not None)
            if not named or any(s not in there for s in named):
                raise LocalError(
                    f"faults: expected stages of {session.protocol}, {', '.join(there)}; got {fault}"
                )
    return schedule


class _Run:
    """The loop: deliver, let faults happen, close the stage when the network is quiet."""

    def __init__(
        self, server: ServerMachine, chunks: list[Sequence[str]],
        run_tasks: Run, schedule: dict[str, list[NetworkFault]],
        on_event: Callable[[str, int, int], None] | None, transcript: list[Sent] | None,
    ) -> None:  # fmt: skip
        self.server, self.schedule = server, schedule
        self.run_tasks = run_tasks
        self.chunks: list[Any] = list(chunks)
        self.home = {name: i for i, names in enumerate(chunks) for name in names}
        self.place = {name: i for i, name in enumerate(self.home)}
        self.on_event, self.transcript = on_event, transcript
        self.costs: dict[str, dict[str, Cost]] = {SERVER: {}, **{name: {} for name in self.home}}
        self.gone: set[str] = set()
        self.sent: dict[tuple[str, str], Envelope] = {}
        self.late_up: list[Envelope] = []
        self.late_down: list[Envelope] = []
        self.next: list[Envelope] = []

    def all(self) -> Aggregate | Aborted:
        queue: list[Delivery] = [(name, None) for name in self.home]
        while (result := self.server.result) is None:
            stage = self.server.stage
            last: list[Envelope] = []
            self.next = []
            delayed, self.late_up = self.late_up, []
            for done, reaction in enumerate(self._deliver(queue, stage), 1):
                cost = self.costs[reaction.name].setdefault(stage, Cost())
                cost.cpu_seconds += reaction.cpu_seconds
                cost.bytes_up += sum(e.size for e in reaction.sent)
                for envelope in reaction.sent:
                    self._up(envelope, stage, last)
                if self.on_event is not None:
                    self.on_event(stage, done, len(self.home))
            for fault_name, faults in self.schedule.items():
                for fault in faults:
                    if (
                        isinstance(fault, Replay)
                        and fault.at == stage
                        and (fault_name, fault.stage) in self.sent
                    ):
                        self._to_server(self.sent[fault_name, fault.stage], stage)
            for envelope in last + delayed:
                self._to_server(envelope, stage)
            self.next += self._timed(SERVER, stage, self._closing(stage))
            queue = [(e.to, e) for e in self.late_down + self._down(stage)]
            self.late_down = self._delayed_down
        last_words = [(name, envelope) for name, envelope in queue if name not in self.gone]
        for _ in self._work(last_words):  # the server's, if it stopped
            pass
        return result

    def results(self) -> dict[str, Result]:
        """What each client came to."""
        results: dict[str, Result] = {}
        seen: dict[Any, Answered] = {}  # thousands of clients name the same thousands of survivors
        for _, theirs in self.run_tasks((chunk, None) for chunk in self.chunks):
            for name, result in theirs:
                if isinstance(result, Answered):
                    result = seen.setdefault(result.included, result)
                results[name] = result
        return results

    def _deliver(self, queue: list[Delivery], stage: str) -> Iterator[Reaction]:
        """What the clients that are still there answer; some vanish before, some after."""
        there: list[Delivery] = []
        for name, envelope in queue:
            if any(isinstance(f, Drop) and f.before == stage for f in self.schedule.get(name, ())):
                self.gone.add(name)
            if name in self.gone:
                continue
            there.append((name, envelope))
            cost = self.costs[name].setdefault(stage, Cost())
            cost.bytes_down += 0 if envelope is None else envelope.size
            if any(isinstance(f, Drop) and f.after == stage for f in self.schedule.get(name, ())):
                self.gone.add(name)
        return self._work(there)

    def _work(self, deliveries: list[Delivery]) -> Iterator[Reaction]:
        """Have the chunks worked on; each chunk's state is what came back of it."""
        inboxes: dict[int, list[Delivery]] = {}
        # In the order of the roster, so that the server is told in the same order whatever the chunks.
        for name, envelope in sorted(deliveries, key=lambda delivery: self.place[delivery[0]]):
            inboxes.setdefault(self.home[name], []).append((name, envelope))
        busy = list(inboxes)
        tasks = ((self.chunks[i], inboxes.pop(i)) for i in busy)
        for i, (chunk, reactions) in zip(busy, self.run_tasks(tasks), strict=True):
            self.chunks[i] = chunk
            yield from reactions

    def _closing(self, stage: str) -> Callable[[], list[Envelope]]:
        return lambda: self.server.handle(StageClosed(stage))

    def _timed(self, party: str, stage: str, work: Callable[[], list[Envelope]]) -> list[Envelope]:
        start = time.process_time()
        out = work()
        cost = self.costs[party].setdefault(stage, Cost())
        cost.cpu_seconds += time.process_time() - start
        return out

    def _up(self, envelope: Envelope, stage: str, last: list[Envelope]) -> None:
        theirs = [f for f in self.schedule.get(envelope.sender, ()) if getattr(f, "stage", None) == stage]
        if any(isinstance(f, Replay) for f in theirs):
            self.sent[envelope.sender, stage] = envelope
        for fault in theirs:
            if isinstance(fault, Corrupt) and fault.link == "up":
                envelope = _flip(envelope, fault.bit)
        copies = 2 if any(isinstance(f, Duplicate) and f.link == "up" for f in theirs) else 1
        for _ in range(copies):
            if any(isinstance(f, Delay) and f.link == "up" for f in theirs):
                self.late_up.append(envelope)
            elif any(isinstance(f, Reorder) for f in theirs):
                last.append(envelope)
            else:
                self._to_server(envelope, stage)

    def _to_server(self, envelope: Envelope, stage: str) -> None:
        self._note(stage, envelope)
        self.next += self._timed(SERVER, stage, lambda: self.server.handle(Received(envelope)))
        self.costs[SERVER][stage].bytes_down += envelope.size

    def _down(self, stage: str) -> list[Envelope]:
        queue: list[Envelope] = []
        self._delayed_down: list[Envelope] = []
        for envelope in self.next:
            self._note(stage, envelope)
            self.costs[SERVER][stage].bytes_up += envelope.size
            theirs = [f for f in self.schedule.get(envelope.to, ()) if getattr(f, "stage", None) == stage]
            theirs = [f for f in theirs if getattr(f, "link", "up") == "down"]
            for fault in theirs:
                if isinstance(fault, Corrupt):
                    envelope = _flip(envelope, fault.bit)
            copies = [envelope] * (2 if any(isinstance(f, Duplicate) for f in theirs) else 1)
            (self._delayed_down if any(isinstance(f, Delay) for f in theirs) else queue).extend(copies)
        return queue

    def _note(self, stage: str, envelope: Envelope) -> None:
        if self.transcript is not None:
            self.transcript.append(Sent(stage, envelope.sender, envelope.to, envelope.size))


def _flip(envelope: Envelope, bit: int) -> Envelope:
    data = bytearray(envelope.body + bytes(envelope.frame))
    bit %= 8 * len(data)
    data[bit // 8] ^= 1 << bit % 8
    cut = len(envelope.body)
    return Envelope(envelope.session, envelope.sender, envelope.to, bytes(data[:cut]), bytes(data[cut:]))
