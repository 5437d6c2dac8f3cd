"""The server's side: a Grid that runs a session where a strategy sends instructions and expects replies."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from msgspec.structs import replace as with_fields

from fedavg.adapters.flower.records import (
    ENVELOPES,
    RECORD,
    Form,
    bytes_of,
    category,
    claim,
    hash_instruction,
    log,
    pack,
    task,
    unpack,
)
from fedavg.adapters.flower.strategies import check_caller
from fedavg.adapters.opening import PREFIX, Opening, Settings
from fedavg.adapters.site import UNIT
from fedavg.budget import BudgetSpent
from fedavg.ledger import Ledger
from protocols.errors import Aborted, Infeasible, LocalError, RemoteError
from protocols.machine import Aggregate, Received, StageClosed
from protocols.roster import read_roster
from protocols.session import Session
from protocols.wire import Envelope
from secagg.invalid import Invalid
from secagg.keys import verify

# Seconds between two looks for replies: short at first, when a pause is most of what an exchange takes.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.005, 1.0

_LONGEST_REASON = 300


@dataclass(frozen=True, slots=True)
class Round:
    """What became of one round: who is in the sum, who is not, or why there is none.

    `number` counts from 1 within `task`; `dropped` is name -> reason.
    """

    task: str
    number: int
    included: tuple[str, ...]
    dropped: Mapping[str, str]
    aborted: Aborted | None = None


@dataclass(frozen=True, slots=True)
class Cohort:
    """Node -> the name of those that take part; node -> what went wrong with it."""

    names: dict[int, str]
    faults: dict[int, Error]


class SecAggGrid(Grid):
    """A grid whose `send_and_receive` runs a secure aggregation session with the nodes addressed.

    grid      the grid that Flower gave the ServerApp
    context   the context it gave with it; settings are read from its `run_config` at each call
    roster    path of the roster file (default: `secagg-roster` in `run_config`); without one, nodes have no
              identities of their own and only the honest-but-curious model is to be had
    settings  used instead of the library's defaults where `run_config` is silent

    `rounds` tells what became of each round so far; `ledger`, if there is noise, what was spent of privacy in
    this ServerApp (each node keeps its own, and that is what stops it).
    """

    def __init__(
        self, grid: Grid, context: Context, *, roster: str | os.PathLike[str] | None = None, **settings: Any
    ) -> None:
        self._grid, self._context, self._defaults = grid, context, settings
        path = roster or context.run_config.get(PREFIX + "roster")
        self._roster = read_roster(Path(str(path))) if path else None
        self._names: dict[int, str] = {}
        self._one_by_one = False
        self.rounds: list[Round] = []
        self.ledger: Ledger | None = None
        Settings.of(context.run_config, **settings)  # say early what is wrong

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """One round with the nodes that the messages address: see the top of the package.

        `timeout`, in seconds, is for the stage in which nodes work; None waits for all. Raises
        `LocalError` where there can be no such round: unprotected kinds of messages, strategies that need
        single replies, different instructions for different nodes. Too few nodes are no reason to end a run:
        such a round has no sum.
        """
        asked = list(messages)
        if not asked:
            return []
        settings = self.settings(len(asked))
        check_caller(settings.max_weight)
        _check_alike(asked)
        cohort = self.gather([m.metadata.dst_node_id for m in asked], asked[0], settings)
        form = Form.of(category(asked[0]), asked[0].content, settings)
        opening, name = self.open(asked[0], cohort, settings), task(self._context, asked[0])
        try:
            plan = form.plan(settings, self._session(opening, name)) if settings.epsilon else None
        except Infeasible as error:
            aborted = Aborted("opening", str(error))
            self._end(name, opening, cohort, aborted)
            return _nothing(aborted, asked, cohort)
        if plan is not None and self.ledger is None:
            log.info(
                "secagg: with noise: an entry of the mean of %d nodes is off by %.3g, an update's norm is "
                "at most %g; epsilon %g at delta %g for %s, over %d sums", plan.cohort,
                plan.error / plan.cohort, settings.clipping_norm, plan.epsilon, plan.delta, UNIT, plan.rounds,
            )  # fmt: skip
        codec = form.codec(settings, max(1, len(cohort.names)), plan, opening.instruction)
        opening = with_fields(opening, length=codec.length, bound=codec.bound, plan=plan)
        result = self.sum(asked[0], cohort, opening, timeout)
        if isinstance(result, Aborted):
            return _nothing(result, asked, cohort)
        try:
            arrays, metrics, weights = form.decode(result, codec)
        except (ValueError, Aborted) as error:
            return _nothing(self.spoilt(error), asked, cohort)
        content = form.reply(asked[0].content, arrays, metrics, weights / len(result.included))
        return _replies(content, result, asked, cohort)

    def settings(self, nodes: int) -> Settings:
        """The settings for a round of so many nodes."""
        return Settings.of(self._context.run_config, **self._defaults)

    def gather(self, asked: list[int], like: Message, settings: Settings) -> Cohort:
        """Who of these nodes takes part, and by what name: what it proves to be, or its number."""
        cohort = Cohort({}, {})
        if self._roster is None:
            cohort.names.update((node, str(node)) for node in asked)
            return cohort
        who = RecordDict({RECORD: ConfigRecord({"who": True})})
        unknown = {node: who for node in asked if node not in self._names}
        proved = set(self._names)
        for node, reply in self._exchange(unknown, like, settings.timeout):
            try:
                name = self._proved(reply, node)
            except _Failed as failed:
                cohort.faults[node] = failed.error
                continue
            proved.add(node)
            # A node that came back has a new number: the newest that proves the name is the one.
            self._names = {n: known for n, known in self._names.items() if known != name} | {node: name}
        for node in asked:
            if node in self._names:
                cohort.names[node] = self._names[node]
            else:
                why = "another node proved to be who it is" if node in proved else "it did not say who it is"
                silent = Error(ErrorCode.REPLY_MESSAGE_UNAVAILABLE, f"secagg: {why}")
                cohort.faults.setdefault(node, silent)
        return cohort

    def _proved(self, reply: Message | Error, node: int) -> str:
        assert self._roster is not None
        record = _content(reply).config_records.get(RECORD, ConfigRecord())
        name = record.get("name")
        try:
            if not isinstance(name, str) or name not in self._roster:
                raise RemoteError("it is not in the server's roster")
            verify(self._roster[name], claim(self._context.run_id, node), bytes_of(record, "signature"))
        except (Invalid, RemoteError) as error:
            raise _Failed(_refusal(error)) from None
        return name

    def open(
        self, like: Message, cohort: Cohort, settings: Settings, length: int = 1, bound: int = 2
    ) -> Opening:
        """The opening of the next round of its kind, for the instruction in `like`."""
        hashed = hash_instruction(like.content, like, self._context.run_config)
        number = self._count(task(self._context, like))
        return Opening(settings, number, sorted(cohort.names.values()), length, bound, hashed)

    def sum(
        self, like: Message, cohort: Cohort, opening: Opening, timeout: float | None
    ) -> Aggregate | Aborted:
        """The sum of what the cohort makes of the instruction in `like`.

        Adds to the cohort's faults, to `rounds` and to the ledger.
        """
        name, plan = task(self._context, like), opening.plan
        try:
            session = self._session(opening, name)
            if plan is not None:
                self._ledger(opening.settings).reserve(name, opening.round, plan)
        except (Infeasible, BudgetSpent) as error:
            return self._end(name, opening, cohort, Aborted("opening", str(error)))
        result = self._run(opening, session, cohort, like, timeout)
        if plan is not None:
            ledger = self._ledger(opening.settings)
            ledger.settle(result, plan)
            log.info("secagg: epsilon %.4g of %g is spent", ledger.spent, ledger.epsilon)
        return self._end(name, opening, cohort, result)

    def _session(self, opening: Opening, name: str) -> Session:
        """Its session; `Infeasible` with so few nodes: there may be others next time."""
        if not opening.cohort:
            raise Infeasible("no node takes part")
        return opening.session(name, self._roster)

    def _end(
        self, name: str, opening: Opening, cohort: Cohort, result: Aggregate | Aborted
    ) -> Aggregate | Aborted:
        """Say what became of a round."""
        for node, known in cohort.names.items():
            if known in result.dropped:
                fault = result.dropped[known]
                reason = f"secagg: at {fault.stage}: {fault.cause}"
                cohort.faults.setdefault(node, Error(ErrorCode.REPLY_MESSAGE_UNAVAILABLE, reason))
        said = {cohort.names.get(node, str(node)): _said(e) for node, e in cohort.faults.items()}
        if len(said) > 1 and len(set(said.values())) == 1 and len(said) == len(cohort.names):
            log.warning(
                "secagg: all nodes say the same: look at the app and its settings, and at one node's log"
            )
            if not any(reason.startswith("secagg: ") for reason in said.values()):
                log.warning("secagg: is secagg_mod attached to the function, first of all mods?")
        if isinstance(result, Aborted):
            self.rounds.append(Round(name, opening.round, (), said, result))
        else:
            without = {known: reason for known, reason in said.items() if known not in result.included}
            self.rounds.append(Round(name, opening.round, result.included, without))
        _tell(self.rounds[-1])
        return result

    def spoilt(self, error: ValueError | Aborted) -> Aborted:
        """The last round had a sum, but none that can be: no proof says that vectors are honest."""
        aborted = error if isinstance(error, Aborted) else Aborted("sum", str(error), revealed=True)
        self.rounds[-1] = replace(self.rounds[-1], included=(), aborted=aborted)
        _tell(self.rounds[-1])
        return aborted

    def _ledger(self, settings: Settings) -> Ledger:
        if self.ledger is None:
            self.ledger = Ledger(settings.epsilon, settings.delta, UNIT)
        return self.ledger

    def _count(self, name: str) -> int:
        """The number of this round of its task; in the context, where a second grid goes on from it."""
        counts = self._context.state.config_records.get(RECORD, ConfigRecord())
        last = counts.get(name, 0)
        assert isinstance(last, int)
        counts[name] = last + 1
        self._context.state[RECORD] = counts
        return last + 1

    def _run(
        self, opening: Opening, session: Session, cohort: Cohort, like: Message, timeout: float | None
    ) -> Aggregate | Aborted:
        """Drive the server's machine to its result."""
        server, nodes = session.server(), {name: node for node, name in cohort.names.items()}
        first = RecordDict({RECORD: ConfigRecord({"opening": opening.to_bytes()})})
        out = dict.fromkeys(nodes.values(), first)
        while server.result is None:
            stage, outbox = server.stage, []
            if server.collects:  # nodes work while the protocol waits for their vectors, and not before
                work: Any = dict(like.content.items())
                out = {node: RecordDict(dict(content) | work) for node, content in out.items()}
            wait = timeout if server.collects else opening.settings.timeout
            for node, reply in self._exchange(out, like, wait):
                try:
                    for envelope in _opened(reply, session, cohort.names[node]):
                        outbox += server.handle(Received(envelope))
                except _Failed as failed:
                    cohort.faults[node] = failed.error
            outbox += server.handle(StageClosed(stage))
            by_node: dict[int, list[Envelope]] = {}
            for envelope in outbox:
                by_node.setdefault(nodes[envelope.to], []).append(envelope)
            out = {node: RecordDict({ENVELOPES: pack(es)}) for node, es in by_node.items()}
        for _ in self._exchange(out, like, opening.settings.timeout):  # an abort: nodes forget the round
            pass
        return server.result

    def _exchange(
        self, out: Mapping[int, RecordDict], like: Message, timeout: float | None
    ) -> Iterator[tuple[int, Message | Error]]:
        """Send to nodes and yield (node, reply) as they come, until all came or time is up."""
        kind, group = like.metadata.message_type, like.metadata.group_id
        messages = [
            Message(content, node, kind, ttl=timeout, group_id=group) for node, content in out.items()
        ]
        waiting: dict[str, int] = {}
        if messages:
            # What could not be sent has no id in what this returns, but each message bears its own.
            sent = set(self._grid.push_messages(messages))
            ids = {m.metadata.message_id: m.metadata.dst_node_id for m in messages}
            waiting = {i: node for i, node in ids.items() if i in sent}
        del messages
        end = None if timeout is None else time.monotonic() + timeout
        pause = _FIRST_PAUSE
        while waiting:
            came = self._pull(waiting)
            for answered, reply in came:
                # Flower's own errors bear the SuperLink's number: what was answered tells whose they are.
                node = waiting.pop(answered, None)
                if node is not None:
                    yield node, reply
            left = _LONGEST_PAUSE if end is None else end - time.monotonic()
            if not waiting or left <= 0:
                return
            pause = _FIRST_PAUSE if came else min(2 * pause, _LONGEST_PAUSE)
            time.sleep(min(pause, left))

    def _pull(self, waiting: Mapping[str, int]) -> list[tuple[str, Message | Error]]:
        """What came, by the id of what it answers. A reply that Flower cannot read is its node's error.

        Flower gives out each reply once, and one that it cannot read takes with it what was pulled together.
        So from then on they are pulled one by one, and no node spoils more than one round for the others.
        """
        if not self._one_by_one:
            try:
                return _answers(self._grid.pull_messages(set(waiting)))
            except Exception as error:
                log.warning("secagg: replies cannot be read (%s): pulling one by one", type(error).__name__)
                self._one_by_one = True
        found: list[tuple[str, Message | Error]] = []
        unread = 0
        for one in waiting:
            try:
                found += _answers(self._grid.pull_messages({one}))
            except Exception as error:
                unread += 1
                found.append((one, _refusal(RemoteError(f"unreadable ({type(error).__name__})"))))
        if unread == len(waiting):  # not the nodes' doing, if it goes on
            return _answers(self._grid.pull_messages(set(waiting)))
        return found

    # What else a grid can do. What is pushed one by one would be answered one by one: refused.

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Refused: only `send_and_receive` is protected."""
        raise LocalError("push_messages is not protected: use send_and_receive, or the grid that Flower gave")

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Refused: only `send_and_receive` is protected."""
        raise LocalError("pull_messages is not protected: use send_and_receive, or the grid that Flower gave")

    def set_run(self, run: Any) -> None:
        """See `Grid.set_run`."""
        self._grid.set_run(run)

    @property
    def run(self) -> Any:
        """See `Grid.run`."""
        return self._grid.run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str,
        ttl: float | None = None,
    ) -> Message:  # fmt: skip
        """A message as `Message` makes it."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """See `Grid.get_node_ids`."""
        return self._grid.get_node_ids()

    def get_nodes(self) -> Iterable[Any]:
        """See `Grid.get_nodes`."""
        return self._grid.get_nodes()


class _Failed(Exception):
    """A node's reply is an error, or as good as one."""

    def __init__(self, error: Error) -> None:
        super().__init__(error.reason)
        self.error = error


def _answers(replies: Iterable[Message]) -> list[tuple[str, Message | Error]]:
    return [(reply.metadata.reply_to_message_id, reply) for reply in replies]


def _said(error: Error) -> str:
    """What a node says of itself, fit for a log: one line, not too long."""
    text = error.reason or f"error {error.code}"
    if len(text) > _LONGEST_REASON:  # a traceback says what happened at its end
        text = f"{text[: _LONGEST_REASON // 3]} ... {text[-_LONGEST_REASON // 2 :]}"
    return "".join(c if c.isprintable() else " " for c in text)


def _refusal(error: Exception) -> Error:
    return Error(ErrorCode.MOD_FAILED_PRECONDITION, f"secagg: {error}")


def _content(reply: Message | Error) -> RecordDict:
    if isinstance(reply, Error):
        raise _Failed(reply)
    if reply.has_error():
        raise _Failed(reply.error)
    return reply.content


def _opened(reply: Message | Error, session: Session, name: str | None) -> list[Envelope]:
    """The envelopes in a reply, all of the node that Flower says it is from; else `_Failed`."""
    content = _content(reply)
    try:
        record = content.array_records.get(ENVELOPES)
        if record is None:
            raise RemoteError("it answered without protection: is secagg_mod attached to its function?")
        envelopes = unpack(record, session)
        if any(envelope.sender != name for envelope in envelopes):
            raise RemoteError("it sent in another's name")
    except RemoteError as error:
        raise _Failed(_refusal(error)) from None
    return envelopes


def _nothing(aborted: Aborted, asked: list[Message], cohort: Cohort) -> list[Message]:
    """What the strategy gets where there is no sum: errors."""
    none = _refusal(RemoteError(f"no sum in this round, the model stays as it was: {aborted}"))
    return [Message(cohort.faults.get(m.metadata.dst_node_id, none), reply_to=m) for m in asked]


def _replies(content: RecordDict, result: Aggregate, asked: list[Message], cohort: Cohort) -> list[Message]:
    """What the strategy gets: the mean for each node in the sum, an error for each other."""
    replies, included = [], set(result.included)
    for m in asked:
        node = m.metadata.dst_node_id
        if cohort.names.get(node) in included:  # whatever happened to it afterwards
            # Strategies empty or replace records of a reply: each has its own, the arrays are shared.
            records: Any = content.items()
            own = RecordDict({name: type(record)(dict(record)) for name, record in records})
            replies.append(Message(own, reply_to=m))
        else:
            replies.append(Message(cohort.faults[node], reply_to=m))
    return replies


def _tell(done: Round) -> None:
    what = (done.number, done.task)
    if done.aborted is not None:
        log.warning("secagg: round %d of %s: %s", *what, done.aborted)
    else:
        log.info("secagg: round %d of %s: the sum of %d nodes", *what, len(done.included))
    for name, reason in done.dropped.items():
        log.warning("secagg: without %s: %s", name, reason)


def _check_alike(asked: list[Message]) -> None:
    """One kind, one instruction, each node once."""
    kinds = {m.metadata.message_type for m in asked}
    if len(kinds) != 1 or category(asked[0]) not in ("train", "evaluate"):
        raise LocalError(
            f"only train or evaluate messages of one kind can be protected, got {', '.join(sorted(kinds))}"
        )
    if len({m.metadata.dst_node_id for m in asked}) != len(asked):
        raise LocalError("a node is addressed twice in one round")
    different = {id(m.content): m.content for m in asked}
    groups = {m.metadata.group_id for m in asked}
    if len(groups) > 1 or len({hash_instruction(c, asked[0], {}) for c in different.values()}) > 1:
        raise LocalError(
            "the strategy gives nodes different instructions: a sum over those could be one node's alone"
        )
