"""The executor: a table of legal moves, events in, envelopes out. Sans-I/O.

A protocol is two tables (one for clients, one for the server) of pure steps over frozen states; this
file runs them. It is the one place where a message is matched against a state, refused, blamed,
committed to the journal, or discarded unread. A machine reads no clock and does no I/O but through the
journal it was given.

Client steps:  step(context, state, message) -> (state, outbox)
Server steps:  accept(context, state, sender, message, frame) -> None, for each message of a stage, then
               close(context, state, gathered, total) -> (state, outbox, faults, total) when nobody is
               awaited any more or the driver closes the stage.
Both raise `RemoteError` or a primitive's `Invalid` (who sent this is to blame), or `Abort` (the session
cannot go on).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import reduce
from operator import or_
from types import GenericAlias
from typing import Any, Generic, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from protocols.errors import Aborted, AlreadyAnswered, Fault, LocalError, RemoteError
from protocols.journal import Answer, Contribution, Journal, MemoryJournal, seal_state, unseal_state
from protocols.session import Session
from protocols.wire import SERVER, Codec, Envelope, bitmap, members
from secagg.invalid import Invalid
from secagg.labels import Label, digest
from secagg.randomness import system
from secagg.ring import Vector


@dataclass(frozen=True, slots=True)
class Started:
    """Event: begin. For a client; a server begins by itself."""


@dataclass(frozen=True, slots=True)
class Received:
    """Event: the transport delivered `envelope` from the sender it names."""

    envelope: Envelope


@dataclass(frozen=True, slots=True)
class Input:
    """Event: a client's vector, `dim` integers within the bound; kept until it may be masked."""

    vector: Any = field(repr=False)


@dataclass(frozen=True, slots=True)
class StageClosed:
    """Event: the driver waits no longer in `stage`. Without effect on any other stage."""

    stage: str


Event = Started | Received | Input | StageClosed


@dataclass(frozen=True, slots=True)
class Aggregate:
    """The server's result: the exact sum, modulo 2^bits, of what the included clients sent.

    sum       vector of `dim` entries in the ring's unsigned dtype; with noise, centred, as int64
    included  names, ascending
    dropped   name -> why it is not in the sum
    faults    every deviation noticed, of included clients as well
    noise     variance that the noise of honest clients has in every entry, at least; 0 in the exact mode
    carried   how much of it each client's vector must have brought, as the session agreed
    """

    sum: NDArray[np.integer[Any]]
    included: tuple[str, ...]
    dropped: dict[str, Fault]
    faults: tuple[Fault, ...]
    noise: float = 0.0
    carried: float = 0.0


@dataclass(frozen=True, slots=True)
class Answered:
    """A client's result: it has revealed its shares for the sum over `included`."""

    included: tuple[str, ...]


class _Stopped(Exception):
    """A client says that it has given up."""


class Abort(Exception):
    """Raised inside a step: the session cannot go on."""

    def __init__(self, cause: str, culprits: tuple[str, ...] = (), faults: tuple[Fault, ...] = ()) -> None:
        super().__init__(cause)
        self.cause, self.culprits, self.faults = cause, culprits, faults


class State(msgspec.Struct, frozen=True, tag=True):
    """Base of all states: frozen, plain data. Secret fields: its repr shows none."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}(…)"

    def __rich_repr__(self) -> list[tuple[str, Any]]:  # what msgspec offers would show every field
        return []


Outbox = list[tuple[int, Any, Any]]
"""(position of the recipient, message, frame) for a server; a client's position is ignored."""


@dataclass(frozen=True)
class Rules:
    """One side of a protocol; a client's is no more than this.

    `moves` maps (state, message, or the event `Started` or `Input`) to a step; `stages` names the states,
    in order; no message is longer than `limit`; `stop` gives up, and `ends` is the state afterwards.
    """

    moves: Mapping[tuple[type, type], Callable[..., Any]]
    stages: Mapping[type, str]
    codec: Codec[Any]
    stop: type
    limit: Callable[[Session], int]
    ends: type

    @property
    def states(self) -> Any:
        """The union of all states, for snapshots."""
        return reduce(or_, self.stages)


@dataclass(frozen=True)
class ServerRules(Rules):
    """A server's side: how each stage `closes`, the message that `adds` a vector, the one that `reveals`.

    If `framed`, the vector is the frame beside that message, and the machine adds it to the running sum.
    Ciphertexts are not: each must be there, with its proof, when others check the list.
    """

    closes: Mapping[type, Callable[..., Any]]
    adds: type
    reveals: type
    framed: bool = True


R = TypeVar("R", bound=Rules)

_STOPPED = "stopped"
_ABORTED = tuple[str, str, tuple[str, ...], bool, tuple[Fault, ...], dict[str, Fault]]  # its `args`
_MOST_FAULTS = 10_000


class _Machine(Generic[R]):
    """What client and server share: steps, commits, snapshots."""

    def __init__(
        self, session: Session, name: str, rules: R, context: Any, state: State, journal: Journal | None
    ) -> None:
        self.session, self.name = session, name
        self._rules: R = rules
        self._context = context
        self._state = state
        self._journal: Journal = journal if journal is not None else MemoryJournal()
        self._id = machine_id(session, name)
        self._step = 0
        self._outbox: list[Envelope] = []
        self._faults: list[Fault] = []

    @property
    def stage(self) -> str:
        """What the party waits for, in one word."""
        return _STOPPED if self._failed is not None else self._rules.stages[type(self._state)]

    _failed: Aborted | None = None

    @property
    def faults(self) -> tuple[Fault, ...]:
        """Every deviation noticed so far."""
        return tuple(self._faults)

    @property
    def _frozen(self) -> bool:
        """Whether it is decided who is in the sum; from then on only those are awaited."""
        return hasattr(self._state, "included")

    @property
    def _over(self) -> bool:
        return self._failed is not None or isinstance(self._state, self._rules.ends)

    def _included(self) -> tuple[str, ...]:
        """Whom the state names as being in the sum; nobody before that is decided."""
        bits: bytes | None = getattr(self._state, "included", None)
        names = self.session.names
        return () if bits is None else tuple(names[i] for i in members(bits, len(names)))

    def _note(self, fault: Fault) -> None:
        """Record what was ignored, each thing once and not without end: anyone can cause it."""
        if fault not in self._faults and len(self._faults) < _MOST_FAULTS:
            self._faults.append(fault)

    def resend(self) -> list[Envelope]:
        """The messages of the last step again, byte for byte: after a restore, or if they were lost."""
        return list(self._outbox)

    def snapshot(self, key: bytes, *, outbox: bool = True) -> bytes:
        """The whole state, encrypted under a local 32-byte key, for `Session.restore_...`.

        Without its `outbox`, which holds the vector once it is masked, it cannot `resend()`: for a transport
        that delivers once or not at all.
        """
        return seal_state(key, self._dump(outbox), self._id, system)

    def _commit(
        self, outbox: list[Envelope], answer: Answer | None = None, contribution: Contribution | None = None
    ) -> None:
        """Record the step that was just taken; the caller undoes it if this raises."""
        self._outbox, self._step = outbox, self._step + 1
        self._journal.commit(self._id, self._step, self._dump, answer, contribution)

    def _restore(self, snapshot: bytes | None, key: bytes | None) -> None:
        if snapshot is not None:
            plain: bytes | None = unseal_state(key, snapshot, self._id)
        else:
            plain = self._journal.state(self._id)
        if plain is None:
            raise LocalError("journal: it keeps no state of this party in this session")
        try:
            self._load(plain)
        except (msgspec.ValidationError, msgspec.DecodeError):
            raise LocalError("snapshot: of another version of this library") from None
        last = self._journal.last_step(self._id)
        if self._step != last:
            raise LocalError(
                f"snapshot: it was taken at step {self._step}, its journal is at step {last}; "
                "only the newest state may continue"
            )

    def _check_fresh(self) -> None:
        if self._journal.last_step(self._id):
            raise LocalError(
                "journal: this session was already begun: restore it (Session.restore_client), or "
                "make a session with a higher attempt, or for the next round"
            )

    def _dump(self, outbox: bool = True) -> bytes:
        raise AssertionError

    def _packed_outbox(self, wanted: bool) -> list[tuple[str, bytes, bytes]]:
        return [(e.to, e.body, bytes(e.frame)) for e in self._outbox] if wanted else []

    def _load(self, plain: bytes) -> None:
        raise AssertionError

    def _envelope(self, to: str, message: Any, frame: Any = b"") -> Envelope:
        return Envelope(self.session.hash, self.name, to, self._rules.codec.encode(message), frame)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, stage={self.stage!r})"


def machine_id(session: Session, name: str) -> bytes:
    """The key under which a journal knows this party in this session: 32 bytes."""
    return digest(Label.MACHINE, session.hash, name.encode())


class ClientMachine(_Machine[Rules]):
    """One client in one session. `handle` events; send what it returns; read `result`."""

    def __init__(
        self, session: Session, index: int, rules: Rules, context: Any, state: State, identity: bytes,
        journal: Journal | None, snapshot: tuple[bytes | None, bytes | None] | None,
    ) -> None:  # fmt: skip
        super().__init__(session, session.names[index], rules, context, state, journal)
        self._identity = identity
        self._pending: Vector | None = None
        self._given = False
        self._handled: list[bytes] = []
        if snapshot is None:
            self._check_fresh()
            self._check_unanswered()
        else:
            self._restore(*snapshot)

    @property
    def result(self) -> Answered | Aborted | None:
        """None until the end; then what this client did."""
        if self._failed is not None:
            return self._failed
        return Answered(self._included()) if self._over else None

    @property
    def waiting_for(self) -> tuple[str, ...]:
        """The server, unless this client is finished or its own input is missing."""
        idle = self._over or not self._step or (Input in self._legal() and not self._given)
        return () if idle else (SERVER,)

    def _legal(self) -> set[type]:
        return {event for state, event in self._rules.moves if state is type(self._state)}

    def handle(self, event: Event) -> list[Envelope]:
        """React to one event; returns what to send. Raises `LocalError` for the caller's own mistakes."""
        match event:
            case Started():
                if Started not in self._legal() or self._over:
                    raise LocalError(f"started twice: {self.name!r} is at {self.stage!r}")
                return self._take(event) or self._mask()
            case Input(vector):
                return self._input(vector)
            case Received(Envelope() as envelope):
                return self._received(envelope)
            case StageClosed():
                return []  # stages are the server's
            case _:
                raise LocalError(
                    "event: expected Started, Input, Received (of an Envelope) or StageClosed, got "
                    f"{type(event).__name__}"
                )

    def _input(self, values: Any) -> list[Envelope]:
        if self._given:
            raise LocalError(f"input: {self.name!r} already has its vector for this session")
        vector = self.session.vector(values)
        self._check_unanswered()
        # Kept, it is a copy: the caller may go on with the array. Masked at once, it is only read.
        self._given, self._pending = True, vector if Input in self._legal() else vector.copy()
        try:
            return [] if self._over else self._guarded(self._mask)
        except BaseException:
            self._given, self._pending = False, None
            raise

    def _mask(self) -> list[Envelope]:
        """Feed the input to the protocol as soon as it may be masked."""
        if self._pending is None or Input not in self._legal():
            return []
        vector, self._pending = self._pending, None  # the journal must not keep it beyond this step
        try:
            return self._take(Input(vector))
        except BaseException:
            self._pending = vector
            raise

    def _received(self, envelope: Envelope) -> list[Envelope]:
        if self._failed is not None:
            return []
        if envelope.to != self.name or envelope.sender != SERVER:  # both are what a peer wrote
            self._note(Fault((envelope.sender,), self.stage, "not for this client, or not from the server"))
            return []
        if envelope.session != self.session.hash:
            self._note(Fault((SERVER,), self.stage, "a message of another session was ignored"))
            return []
        seal = digest(Label.HANDLED, envelope.body)
        if seal in self._handled:  # delivered again: the same bytes again, or nothing if long past
            return self._guarded(lambda: self._mask() or self.resend()) if seal == self._handled[-1] else []
        if self._over:
            return []
        return self._guarded(lambda: self._decide(envelope, seal))

    def _decide(self, envelope: Envelope, seal: bytes) -> list[Envelope]:
        """Find the one step that this message may cause, and take it."""
        if len(envelope.frame):
            raise RemoteError("a frame where none belongs")
        message = self._rules.codec.decode(envelope.body, self._rules.limit(self.session))
        if isinstance(message, self._rules.stop):
            raise Abort("the server stopped the session")
        if type(message) not in self._legal():
            raise RemoteError(f"{type(message).__name__} is not expected at stage {self.stage!r}")
        # An early input is masked in the same breath; no step that leads to it sends anything itself.
        return self._take(message, seal) or self._mask()

    def _guarded(self, work: Callable[[], list[Envelope]]) -> list[Envelope]:
        """Whatever the server did wrong ends this client's session, and names the server."""
        try:
            return work()
        except (RemoteError, Invalid) as error:
            return self._abort(str(error), (SERVER,))
        except Abort as abort:
            return self._abort(abort.cause, abort.culprits)
        except AlreadyAnswered as error:  # asked in a second session for what was answered in another
            return self._abort(str(error), (), revealed=True)

    def _take(self, event: Any, seal: bytes | None = None) -> list[Envelope]:
        step = self._rules.moves[type(self._state), type(event)]
        before = (self._state, self._outbox, self._step, list(self._handled))
        state, outbox = step(self._context, self._state, event)
        answer, contribution = None, None
        mine = (self._identity, self.session.task, self.session.round)
        if isinstance(state, self._rules.ends):
            answer = mine
        if isinstance(event, Input):
            contribution = (*mine, self.session.cohort_hash)
        if seal is not None:
            self._handled.append(seal)
        self._state = state
        try:
            sent = [self._envelope(SERVER, message, frame) for _, message, frame in outbox]
            self._commit(sent, answer, contribution)
        except BaseException:
            self._state, self._outbox, self._step, self._handled = before
            raise
        return sent

    def _abort(self, cause: str, culprits: tuple[str, ...], revealed: bool = False) -> list[Envelope]:
        """Sticky: the secrets are dropped, later events have no effect."""
        stage = self.stage
        self._faults.append(Fault(culprits, stage, cause))
        self._failed = Aborted(stage, cause, culprits, revealed, self.faults)
        self._state = self._rules.ends(bitmap((), len(self.session.names)))
        self._pending, self._outbox, self._handled = None, [], []
        with suppress(LocalError):  # a clone that fell behind: it has nothing to send anyway
            self._commit([])
        return [self._envelope(SERVER, self._rules.stop())]

    def _check_unanswered(self) -> None:
        last = self._journal.last_answered(self._identity, self.session.task)
        if last >= self.session.round:
            raise AlreadyAnswered(
                f"round {self.session.round} of task {self.session.task!r} was already answered (up to round "
                f"{last}): one update, one answer"
            )

    def _dump(self, outbox: bool = True) -> bytes:
        pending = None if self._pending is None else self._pending.tobytes()
        failed = None if self._failed is None else self._failed.args
        return msgspec.msgpack.encode(
            (
                self._step, self._state, self._packed_outbox(outbox), self._handled, self._given, pending,
                self._faults, failed,
            )
        )  # fmt: skip

    def _load(self, plain: bytes) -> None:
        kind = GenericAlias(tuple, (
            int, self._rules.states, list[tuple[str, bytes, bytes]], list[bytes], bool,
            bytes | None, list[Fault], _ABORTED | None,
        ))  # fmt: skip
        step, state, outbox, handled, given, pending, faults, failed = msgspec.msgpack.decode(
            plain, type=kind
        )
        self._step, self._state, self._handled, self._given = step, state, handled, given
        self._outbox = [Envelope(self.session.hash, self.name, to, body, frame) for to, body, frame in outbox]
        self._pending = None if pending is None else np.frombuffer(pending, self.session.ring.dtype).copy()
        self._faults = faults
        self._failed = None if failed is None else Aborted(*failed)


class ServerMachine(_Machine[ServerRules]):
    """The server of one session. Its running sum is its one mutable buffer: memory O(dim).

    Where vectors are not `framed`, it holds what it gathered of a stage until the stage is closed.
    """

    def __init__(
        self, session: Session, rules: ServerRules, context: Any, state: State, journal: Journal | None,
        snapshot: tuple[bytes | None, bytes | None] | None,
    ) -> None:  # fmt: skip
        super().__init__(session, SERVER, rules, context, state, journal)
        self._awaited = set(range(len(session.names)))
        self._gathered: dict[int, Any] = {}
        self._dropped: dict[int, Fault] = {}
        self._total: Vector | None = None
        self._revealed = False
        self._aggregate: Aggregate | None = None
        if snapshot is None:
            self._check_fresh()
        else:
            self._restore(*snapshot)

    @property
    def result(self) -> Aggregate | Aborted | None:
        """None until the end; then the sum, or why there is none."""
        return self._failed or self._aggregate

    @property
    def waiting_for(self) -> tuple[str, ...]:
        """Clients whose message is still owed in this stage."""
        return () if self.result is not None else tuple(self.session.names[i] for i in sorted(self._awaited))

    @property
    def collects(self) -> bool:
        """Whether the clients' vectors are what this stage waits for: the time to give them their work."""
        return self.result is None and (type(self._state), self._rules.adds) in self._rules.moves

    def handle(self, event: Event) -> list[Envelope]:
        """React to one event; returns what to send. A peer's fault is recorded, never raised."""
        match event:
            case Received(Envelope() as envelope):
                return self._received(envelope)
            case StageClosed(stage):
                return self._close() if stage == self.stage and self.result is None else []
            case _:
                raise LocalError(
                    f"event: a server takes Received and StageClosed, got {type(event).__name__}"
                )

    def _received(self, envelope: Envelope) -> list[Envelope]:
        if self.result is not None:
            return []
        sender = self.session.positions.get(envelope.sender)
        if sender is None or envelope.to != SERVER:
            cause = "not in the cohort" if sender is None else "not for the server"
            self._note(Fault((envelope.sender,), self.stage, f"{cause}: ignored"))
            return []
        if sender not in self._awaited:
            return []  # a duplicate, or a late message of a dropped client: discarded unread
        if envelope.session != self.session.hash:
            self._note(
                Fault((envelope.sender,), self.stage, "another session (other model, round or parameters)")
            )
            return []
        try:
            self._accept(sender, envelope)
        except (RemoteError, Invalid) as error:
            self._lose(sender, str(error))
        except _Stopped:  # perhaps by another's doing: told apart from a fault of its own
            self._lose(sender, f"{envelope.sender} stopped by itself", blamed=False)
        return [] if self._awaited else self._close()

    def _accept(self, sender: int, envelope: Envelope) -> None:
        message = self._rules.codec.decode(envelope.body, self._rules.limit(self.session))
        if isinstance(message, self._rules.stop):
            raise _Stopped
        kind = type(message)
        accept = self._rules.moves.get((type(self._state), kind))
        if accept is None:
            stages = list(self._rules.stages)
            homes = [stages.index(state) for state, wanted in self._rules.moves if wanted is kind]
            if homes and homes[0] < stages.index(type(self._state)):
                return  # repeated or delayed from an earlier stage: no fault of the sender
            raise RemoteError(f"{kind.__name__} is not expected at stage {self.stage!r}")
        framed = self._rules.framed and kind is self._rules.adds
        if len(envelope.frame) and not framed:
            raise RemoteError("a frame where none belongs")
        accept(self._context, self._state, sender, message)
        if framed:
            self._add(envelope.frame)
        self._gathered[sender] = message
        self._awaited.discard(sender)

    def _add(self, frame: bytes | memoryview) -> None:
        total = self.session.ring.zeros(self.session.dim) if self._total is None else self._total
        try:
            self.session.ring.add_packed(total, frame)
        except Invalid:
            raise  # refused before anything was added
        except BaseException:  # out of memory, or interrupted: half a vector may be in the sum
            self._abort("the running sum was interrupted", ())
            raise
        self._total = total

    def _lose(self, sender: int, cause: str, blamed: bool = True) -> None:
        """Stop waiting for a client: dropped if its vector is not in the sum, else only named."""
        fault = Fault((self.session.names[sender],) if blamed else (), self.stage, cause)
        self._faults.append(fault)
        self._awaited.discard(sender)
        if not self._frozen:
            self._dropped[sender] = fault

    def _close(self) -> list[Envelope]:
        """End the stage; where that cannot be committed, nothing has happened."""
        before = (
            self._state, self._gathered, set(self._awaited), dict(self._dropped), list(self._faults),
            self._revealed, self._outbox, self._step, self._total, self._failed,
        )  # fmt: skip
        try:
            return self._move_on()
        except BaseException:
            (self._state, self._gathered, self._awaited, self._dropped, self._faults,
             self._revealed, self._outbox, self._step, self._total, self._failed) = before  # fmt: skip
            raise

    def _move_on(self) -> list[Envelope]:
        said = {f.culprits: f.cause for f in self._faults}
        for sender in sorted(self._awaited):
            last = said.get((self.session.names[sender],))
            self._lose(sender, "silent" if last is None else f"silent, and before: {last}")
        try:
            close = self._rules.closes[type(self._state)]
            state, outbox, faults, total = close(self._context, self._state, self._gathered, self._total)
        except Abort as abort:
            self._faults.extend(abort.faults)
            return self._abort(abort.cause, abort.culprits)
        self._faults.extend(faults)
        gathered, self._gathered, self._state = self._gathered, {}, state
        self._awaited = {to for to, _, _ in outbox}
        for fault in faults:  # whom the step itself turned away
            for sender in (self.session.positions[name] for name in fault.culprits):
                if sender in gathered and sender not in self._awaited and not self._frozen:
                    self._dropped[sender] = fault
        self._revealed = self._revealed or any(isinstance(m, self._rules.reveals) for _, m, _ in outbox)
        if isinstance(state, self._rules.ends):
            assert total is not None
            self._total, self._aggregate = total, self._finish(total)
            return []  # nothing is sent, so nothing need be committed first
        names = self.session.names
        one_each = {id(message): message for _, message, _ in outbox}  # often the same for everybody
        bodies = {key: self._rules.codec.encode(message) for key, message in one_each.items()}
        sent = [
            Envelope(self.session.hash, SERVER, names[to], bodies[id(message)], frame)
            for to, message, frame in outbox
        ]
        self._commit(sent)
        return sent

    def _finish(self, total: Vector) -> Aggregate:
        included, levels = self._included(), self.session.levels
        noise = () if levels is None else (levels.remaining(len(included)), float(levels.noisy.carried))
        return Aggregate(self.session.read(total), included, self._named(), self.faults, *noise)

    def _named(self) -> dict[str, Fault]:
        return {self.session.names[i]: fault for i, fault in sorted(self._dropped.items())}

    def _abort(self, cause: str, culprits: tuple[str, ...]) -> list[Envelope]:
        stage, names = self.stage, self.session.names
        live = [i for i in range(len(names)) if i not in self._dropped]
        self._faults.append(Fault(culprits, stage, cause))
        self._failed = Aborted(stage, cause, culprits, self._revealed, self.faults, self._named())
        self._state = self._rules.ends(bitmap((), len(names)))
        self._gathered, self._total = {}, None
        sent = [self._envelope(names[i], self._rules.stop()) for i in live]
        self._commit(sent)
        return sent

    def _dump(self, outbox: bool = True) -> bytes:
        failed = None if self._failed is None else self._failed.args
        return msgspec.msgpack.encode(
            (
                self._step, self._state, self._packed_outbox(outbox), self._gathered, sorted(self._awaited),
                self._dropped, self._faults, self._revealed,
                None if self._total is None else self._total.tobytes(), failed,
            )
        )  # fmt: skip

    def _load(self, plain: bytes) -> None:
        gathered = GenericAlias(dict, (int, self._rules.codec.union))
        kind = GenericAlias(tuple, (
            int, self._rules.states, list[tuple[str, bytes, bytes]], gathered, set[int],
            dict[int, Fault], list[Fault], bool, bytes | None, _ABORTED | None,
        ))  # fmt: skip
        (self._step, self._state, outbox, self._gathered, self._awaited, self._dropped, self._faults,
         self._revealed, total, failed) = msgspec.msgpack.decode(plain, type=kind)  # fmt: skip
        self._outbox = [Envelope(self.session.hash, SERVER, to, body, frame) for to, body, frame in outbox]
        if failed is not None:
            self._failed = Aborted(*failed)
        elif total is not None:
            self._total = np.frombuffer(total, self.session.ring.dtype).copy()
            if isinstance(self._state, self._rules.ends):
                self._aggregate = self._finish(self._total)
