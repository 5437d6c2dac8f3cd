"""Our client and server beside those of Flower's own SecAgg+, both really run, as ratios taken in one run.

The unit is a second of CPU time of one process, all its threads. One party of one round is timed, in all
stages, ours and theirs in turn; both are given floats and a weight, or give them:

ours, client    `Codec.encode` (clip, weigh, round) and every `handle` of the client machine
ours, server    every `handle` of the server machine, and `Codec.decode`
theirs, client  every call of `secaggplus_mod`, but for the training function that it calls
theirs, server  `SecAggPlusWorkflow`, but for the time in the grid, with a strategy that does nothing

So training, the strategy's own averaging, the model's way to the clients and the transport are in no figure,
and serialising only as far as the machine, the mod or the workflow does it itself.

Our party answers a recorded round among real clients. A client of Flower's has neighbours with keys of
their own. Its server has stand-ins that share one set of keys, so that masks of all can be made from two
and the sum checked at full size; the server cannot tell. With real clients it is checked at a small size.

Needs the extra `flower`, Linux (where a process can reset its high-water mark) and 3 GB.
"""

from __future__ import annotations

import ctypes
import logging
import multiprocessing
import os
import random
import statistics
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from time import process_time
from types import SimpleNamespace
from typing import Any

os.environ |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
os.environ |= {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.app.message_type import MessageType
from flwr.client.mod import secaggplus_mod
from flwr.common import Code, FitIns, FitRes, Parameters, Status, ndarray_to_bytes, ndarrays_to_parameters
from flwr.common.secure_aggregation.crypto.shamir import create_shares
from flwr.common.secure_aggregation.crypto.symmetric_encryption import encrypt, generate_shared_key
from flwr.common.secure_aggregation.ndarrays_arithmetic import factor_combine
from flwr.common.secure_aggregation.quantization import quantize
from flwr.common.secure_aggregation.secaggplus_constants import RECORD_KEY_CONFIGS, Key, Stage
from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen, share_keys_plaintext_concat
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.compat.common.recorddict_compat import fitres_to_recorddict
from flwr.server import LegacyContext
from flwr.server.strategy import FedAvg
from flwr.server.workflow import SecAggPlusWorkflow
from flwr.supercore.primitives import asymmetric
from flwr.supercore.task_identity import TaskIdentity
from numpy.typing import NDArray
from record import Edition, machine

from fedavg.codec import Codec
from secagg import Aborted, Answered, Identity, Input, Received, Session, StageClosed, Started
from secagg.randomness import seeded

Floats = NDArray[np.float32]
Event = Started | Received | Input | StageClosed

# Flower's defaults, and for our ring and grid the same.
CLIP, GRID, RING, MAX_WEIGHT = 8.0, 1 << 22, 1 << 32, 1000
WEIGHT = 500
CORRUPTED, DROPOUT = 0.05, 0.3  # what our sessions must withstand, also where nobody drops out


@dataclass(frozen=True)
class Case:
    """One party of one kind of round. `shares` counts as Flower does: a client's neighbours and itself."""

    what: str
    n: int
    shares: int
    dim: int
    dropout: float = 0.0
    target: float | None = None
    repeats: tuple[int, int] = (5, 5)

    @property
    def gone(self) -> int:
        return int(self.dropout * self.n)

    @property
    def codec(self) -> Codec:
        return Codec(self.dim, CLIP, MAX_WEIGHT, GRID.bit_length() - 1, norm="max")

    @property
    def update(self) -> Floats:
        return an_update(self.dim)


@cache
def an_update(dim: int) -> Floats:
    """What was trained."""
    return np.random.default_rng(0).normal(0.0, 0.05, dim).astype(np.float32)


@dataclass
class Row:
    """One line of the table: a case, what was agreed on, and what either side needed."""

    case: Case
    t: int
    b: int
    threat_model: str
    noise: str = "none"
    ours: list[float] = field(default_factory=list)
    theirs: list[float] = field(default_factory=list)
    bytes_up: tuple[int, int] = (0, 0)
    peak: tuple[int, int] = (0, 0)

    @property
    def ratio(self) -> float:
        return min(self.ours) / min(self.theirs)


@dataclass
class Run:
    """One party, once: CPU seconds, a server's mean, and on Flower's side what one client sent."""

    seconds: float
    mean: NDArray | None = None
    sent: list[Message] = field(default_factory=list)


# ------------------------------------------------------------------------------------------------ ours


class Clock:
    """CPU seconds spent inside the party under test."""

    def __init__(self) -> None:
        self.spent = 0.0

    def __call__(self, work: Callable[[], list]) -> list:
        start = process_time()
        out = work()
        self.spent += process_time() - start
        return out


def session_once(session: Session, identities: dict, dropped: set[str], vector: NDArray) -> None:
    """Run a session among real clients, and check its sum."""
    clients = {name: session.client(name, i) for name, i in identities.items()}
    server = session.server()
    up = [e for n, c in clients.items() for e in c.handle(Started()) + c.handle(Input(vector))]
    while server.result is None:
        stage, down = server.stage, []
        for envelope in up:
            if stage != "masked" or envelope.sender not in dropped:
                down += server.handle(Received(envelope))
        down += server.handle(StageClosed(stage))
        gone = dropped if stage == "masked" else set()
        up = [out for e in down if e.to not in gone for out in clients[e.to].handle(Received(e))]
    if isinstance(server.result, Aborted):
        raise server.result
    expected = (vector.astype(np.uint64) * len(server.result.included)).astype(server.result.sum.dtype)
    assert np.array_equal(server.result.sum, expected), "the benchmark computed a wrong sum"


class Tap:
    """A machine that notes what it is given."""

    def __init__(self, tapped: Any) -> None:
        self._machine, self.events = tapped, list[Event]()

    def handle(self, event: Event) -> list:
        self.events.append(event)
        return self._machine.handle(event)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._machine, name)


class Ours(Session):
    """A session whose server and last client are repeatable: what one was given, another can be given."""

    def __init__(self, case: Case) -> None:
        identities = {f"{i:04}": Identity.generate(seeded(b"peers", bytes([i]))) for i in range(case.n)}
        sparse = {"protocol": "secagg+", "degree": case.shares - 1} if case.shares < case.n else {}
        super().__init__(
            {name: i.public for name, i in identities.items()}, case.codec.length, GRID,
            bits=RING.bit_length() - 1, corrupted=CORRUPTED, dropout=DROPOUT, **sparse,
        )  # fmt: skip
        self.case, self.by_name, self.one = case, identities, self.names[-1]
        self.given: dict[str, list[Event]] = {}
        self.bytes_up = 0

    def new(self, what: str) -> Any:
        """The server or the last client, as it always begins."""
        if what == "server":
            return super().server(rng=seeded(b"peers, server"))
        return super().client(self.one, self.by_name[self.one], rng=seeded(b"peers, client"))

    def client(self, name: str, identity: Identity, **named: Any) -> Any:
        return self._tapped("client") if name == self.one else super().client(name, identity, **named)

    def server(self, **named: Any) -> Any:
        return self._tapped("server")

    def _tapped(self, what: str) -> Tap:
        tap = Tap(self.new(what))
        self.given[what] = tap.events
        return tap

    def record(self) -> None:
        """One round among real clients, which checks its sum."""
        vector = self.case.codec.encode(self.case.update, WEIGHT)
        session_once(self, self.by_name, set(self.names[: self.case.gone]), vector)
        up = [e.envelope for e in self.given["server"] if isinstance(e, Received)]
        self.bytes_up = sum(e.size for e in up if e.sender == self.one)


def our_client(session: Ours, events: Iterable[Event]) -> Run:
    """Our client, from a trained update to its last answer."""
    update, codec = session.case.update, session.case.codec
    start = process_time()
    client = session.new("client")
    for event in events:
        client.handle(Input(codec.encode(update, WEIGHT)) if isinstance(event, Input) else event)
    run = Run(process_time() - start)
    assert isinstance(client.result, Answered), client.result
    return run


def our_server(session: Ours, events: Iterable[Event]) -> Run:
    """Our server, from the first message to the mean."""
    codec = session.case.codec
    start = process_time()
    server = session.new("server")
    for event in events:
        server.handle(event)
    mean, _ = codec.decode(server.result.sum, len(server.result.included))
    return Run(process_time() - start, mean)


def arriving(events: Iterable[Event]) -> Iterable[Event]:
    """The same events as a transport would hand them over: each in memory of its own, which is then free."""
    for event in events:
        if isinstance(event, Received):
            event = Received(replace(event.envelope, frame=bytes(event.envelope.frame)))
        yield event


# ---------------------------------------------------------------------------------------------- Flower's


class KeyPair:
    """A pair as Flower sends it."""

    def __init__(self) -> None:
        self.secret, public = asymmetric.generate_key_pairs()
        self.secret_bytes = asymmetric.private_key_to_bytes(self.secret)
        self.public = asymmetric.public_key_to_bytes(public)


def trained(update: NDArray, weight: int) -> RecordDict:
    """What Flower's training function returns."""
    result = FitRes(Status(Code.OK, ""), ndarrays_to_parameters([update]), weight, {})
    return fitres_to_recorddict(result, keep_input=False)


def blank(node: int) -> Context:
    """A node that remembers nothing."""
    return Context(run_id=1, node_id=node, node_config={}, state=RecordDict(), run_config={})


def node_ids(n: int) -> list[int]:
    """Ids as long as Flower's, ascending."""
    return sorted(random.Random(0).sample(range(1 << 60, 1 << 62), n))


def size(message: Message) -> int:
    """Bytes of the records, as protobuf."""
    return recorddict_to_proto(message.content).ByteSize()


class Neighbours:
    """All around one client of Flower's: neighbours with keys of their own, and a server."""

    def __init__(self, case: Case, t: int) -> None:
        self.case = case
        *self.others, self.me = node_ids(case.shares)
        self.settings = {
            Key.SAMPLE_NUMBER: case.n, Key.SHARE_NUMBER: case.shares, Key.THRESHOLD: t, Key.MOD_RANGE: RING,
            Key.CLIPPING_RANGE: CLIP, Key.TARGET_RANGE: GRID, Key.MAX_WEIGHT: float(MAX_WEIGHT),
        }  # fmt: skip
        self._pairs = {node: (KeyPair(), KeyPair()) for node in self.others}
        self.public = {str(node): [p.public for p in pair] for node, pair in self._pairs.items()}
        # Nobody puts these together: only their length matters here.
        self._shares = [create_shares(secret, 2, 2)[0] for secret in (bytes(32), KeyPair().secret_bytes)]

    def boxes(self, public: bytes) -> list[bytes]:
        """The shares that each neighbour seals for the client with this key."""
        channel = asymmetric.bytes_to_public_key(public)
        return [
            encrypt(
                generate_shared_key(pair[1].secret, channel),
                share_keys_plaintext_concat(node, self.me, *self._shares),
            )
            for node, pair in self._pairs.items()
        ]


def their_client(around: Neighbours) -> Run:
    """Flower's client, from a trained update to its last answer."""
    case, me, others = around.case, around.me, around.others
    context, mine, training, sent = blank(me), Clock(), Clock(), []

    def train(message: Message, _: Context) -> Message:
        return training(lambda: Message(trained(case.update, WEIGHT), reply_to=message))

    def say(stage: str, content: dict[str, Any]) -> ConfigRecord:
        record = ConfigRecord({Key.STAGE: stage, **content})
        told = RecordDict({RECORD_KEY_CONFIGS: record})
        message = Message(told, dst_node_id=me, message_type=MessageType.TRAIN)
        sent.append(mine(lambda: secaggplus_mod(message, context, train)))
        return sent[-1].content.config_records[RECORD_KEY_CONFIGS]

    keys = say(Stage.SETUP, around.settings)
    own = [keys[Key.PUBLIC_KEY_1], keys[Key.PUBLIC_KEY_2]]
    say(Stage.SHARE_KEYS, {**around.public, str(me): own})
    sealed = {Key.CIPHERTEXT_LIST: around.boxes(own[1]), Key.SOURCE_LIST: others}
    say(Stage.COLLECT_MASKED_VECTORS, sealed)
    answer = say(Stage.UNMASK, {Key.ACTIVE_NODE_ID_LIST: [*others, me], Key.DEAD_NODE_ID_LIST: []})
    assert len(answer[Key.SHARE_LIST]) == case.shares
    return Run(mine.spent - training.spent, sent=sent)


class Clients:
    """Flower's grid in memory, with clients behind it: those `gone` fall silent instead of masking."""

    def __init__(self, case: Case, t: int) -> None:
        self.case, self.t, self.nodes = case, t, node_ids(case.n)
        # Spread over the order of the ids; the last stays, and what it sends is kept.
        self.gone = set(random.Random(1).sample(self.nodes[:-1], case.gone))
        self.clock, self.sent = Clock(), list[Message]()

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        return self.clock(lambda: list(self._replies(messages)))

    def _replies(self, messages: Iterable[Message]) -> Iterable[Message]:
        for message in messages:
            node = message.metadata.dst_node_id
            heard = message.content.config_records[RECORD_KEY_CONFIGS]
            if heard[Key.STAGE] == Stage.COLLECT_MASKED_VECTORS and node in self.gone:
                continue
            reply = self.answer(node, message)
            if node == self.nodes[-1]:
                self.sent.append(reply)
            yield reply

    def answer(self, node: int, message: Message) -> Message:
        raise NotImplementedError


class RealClients(Clients):
    """Every client is Flower's own, with an update and a weight of its own."""

    def __init__(self, case: Case, t: int) -> None:
        super().__init__(case, t)
        rng = np.random.default_rng(2)
        self._contexts = {node: blank(node) for node in self.nodes}
        self._trained = {
            node: (case.update * rng.uniform(0.5, 1.5, case.dim), int(rng.integers(WEIGHT, MAX_WEIGHT)))
            for node in self.nodes
        }

    def answer(self, node: int, message: Message) -> Message:
        # Copied, as by a transport: the mod takes from its message, which is the same for all in one stage.
        content = recorddict_from_proto(recorddict_to_proto(message.content))
        copy = Message(content, dst_node_id=node, message_type=MessageType.TRAIN)
        return secaggplus_mod(
            copy, self._contexts[node], lambda m, _: Message(trained(*self._trained[node]), reply_to=m)
        )

    @property
    def mean(self) -> NDArray:
        """The weighted mean of those that did not fall silent."""
        stayed = [self._trained[node] for node in self.nodes if node not in self.gone]
        return np.average([update for update, _ in stayed], axis=0, weights=[weight for _, weight in stayed])


class StandIns(Clients):
    """Clients that all have the same keys, seed and update.

    Then every private mask is one P and every pairwise mask one Q, and a client's vector x + P + c Q, where
    c is the number of neighbours with lower ids less that of those with higher ones.
    """

    def __init__(self, case: Case, t: int) -> None:
        super().__init__(case, t)
        mask, channel, seed = KeyPair(), KeyPair(), os.urandom(32)
        self._public = {Key.PUBLIC_KEY_1: mask.public, Key.PUBLIC_KEY_2: channel.public}
        self._seed_shares = create_shares(seed, t, case.shares)
        self._key_shares = create_shares(mask.secret_bytes, t, case.shares)
        plain = share_keys_plaintext_concat(0, 0, self._seed_shares[0], self._key_shares[0])
        own = asymmetric.bytes_to_public_key(channel.public)
        self._box = encrypt(generate_shared_key(channel.secret, own), plain)
        ratio = WEIGHT / MAX_WEIGHT
        self._x = factor_combine(round(ratio * GRID), quantize([case.update * ratio], CLIP, GRID))
        agreed = generate_shared_key(mask.secret, asymmetric.bytes_to_public_key(mask.public))
        self._p, self._q = (pseudo_rand_gen(s, RING, [a.shape for a in self._x]) for s in (seed, agreed))
        self._known: dict[int, list[int]] = {}

    def answer(self, node: int, message: Message) -> Message:
        heard, content = message.content.config_records[RECORD_KEY_CONFIGS], RecordDict()
        said: dict[str, Any]
        match heard[Key.STAGE]:
            case Stage.SETUP:
                said = self._public
            case Stage.SHARE_KEYS:
                self._known[node] = sorted(int(key) for key in heard if key != Key.STAGE)
                others = [i for i in self._known[node] if i != node]
                said = {Key.DESTINATION_LIST: others, Key.CIPHERTEXT_LIST: [self._box] * len(others)}
            case Stage.COLLECT_MASKED_VECTORS:
                content = trained(np.zeros(0, np.float32), WEIGHT)
                for record in content.array_records.values():
                    record.clear()
                said = {Key.MASKED_PARAMETERS: self._masked(node)}
            case _:
                alive, dead = heard[Key.ACTIVE_NODE_ID_LIST], heard[Key.DEAD_NODE_ID_LIST]
                # A holder's place among the dealer's neighbours tells which of the shares it was dealt.
                shares = [self._seed_shares[self._known[dealer].index(node)] for dealer in alive]
                shares += [self._key_shares[self._known[dealer].index(node)] for dealer in dead]
                said = {Key.NODE_ID_LIST: [*alive, *dead], Key.SHARE_LIST: shares}
        content.config_records[RECORD_KEY_CONFIGS] = ConfigRecord(said)
        return Message(content, reply_to=message)

    def _masked(self, node: int) -> list[bytes]:
        c = sum((i < node) - (i > node) for i in self._known[node])
        masked = [(x + p + c * q) % RING for x, p, q in zip(self._x, self._p, self._q, strict=True)]
        return [ndarray_to_bytes(array) for array in masked]


class Nothing(FedAvg):
    """Asks all nodes without sending a model, and takes the mean as the workflow made it."""

    def __init__(self, nodes: list[int]) -> None:
        super().__init__()
        self._nodes = nodes

    def configure_fit(self, server_round: int, parameters: Parameters, client_manager: Any) -> Any:
        return [(SimpleNamespace(node_id=node), FitIns(parameters, {})) for node in self._nodes]

    def aggregate_fit(self, server_round: int, results: Any, failures: Any) -> Any:
        return results[0][1].parameters, {}


def their_server(clients: Clients) -> Run:
    """Flower's server, from the first message to the mean."""
    context = LegacyContext(blank(0), strategy=Nothing(clients.nodes))
    context.state["config"] = ConfigRecord({"current_round": 1})
    context.state["parameters"] = ArrayRecord()
    workflow = SecAggPlusWorkflow(
        clients.case.shares, clients.t, max_weight=float(MAX_WEIGHT), clipping_range=CLIP,
        quantization_range=GRID, modulus_range=RING,
    )  # fmt: skip
    random.seed(3)  # it draws the graph
    start = process_time()
    workflow(clients, context)
    seconds = process_time() - start - clients.clock.spent
    means = context.state.array_records["parameters"].to_numpy_ndarrays()
    if not means:
        raise RuntimeError("Flower's round gave no result")
    return Run(seconds, means[0], clients.sent)


def check(mean: NDArray, expected: NDArray) -> float:
    """How far a mean is off, in steps of the grid at this weight."""
    off = float(np.abs(mean - expected).max()) / (2 * CLIP / GRID * MAX_WEIGHT / WEIGHT)
    # By the rounding of entries less than one; our grid has a point less, and Flower rounds weights too.
    if not off <= 1.01:
        raise RuntimeError(f"the benchmark computed a wrong mean: off by {off:.3g} steps of the grid")
    return off


def checked(run: Run, case: Case) -> Run:
    """The same, once its mean was checked if it has one: every client had the same update."""
    if run.mean is not None:
        check(run.mean, case.update)
    return run


def self_test() -> dict[str, float]:
    """Rounds of Flower's server and real clients of its own: how far the mean is off, in steps of the grid.

    Also that a stand-in sends what a real client sends, to the byte.
    """
    off = {}
    for graph, shares, t in (("sparse", 9, 3), ("complete", 20, 8)):
        case = Case("server", 20, shares, 1000, dropout=DROPOUT)
        clients = RealClients(case, t)
        real, stood_in = their_server(clients), their_server(StandIns(case, t))
        off[graph] = check(real.mean, clients.mean)
        sizes = [[size(message) for message in run.sent] for run in (real, stood_in)]
        if sizes[0] != sizes[1]:
            raise RuntimeError(f"bytes of a client in the stages: {sizes[0]}; of a stand-in: {sizes[1]}")
    return off


# ---------------------------------------------------------------------------------------------- measuring


def peak(run: Callable[[], object], before: Callable[[], object]) -> int:
    """Bytes by which the memory of a fork rises at most while it runs this, once it ran `before`."""
    here, there = multiprocessing.Pipe(duplex=False)

    def alone() -> None:
        before()
        # What was freed must not be there to be used unnoticed, and the high-water mark is the parent's.
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        start = memory("VmRSS")
        run()
        there.send(memory("VmHWM") - start)

    process = multiprocessing.get_context("fork").Process(target=alone)
    process.start()
    there.close()
    rise = int(here.recv())
    process.join()
    return rise


def memory(which: str) -> int:
    """Bytes, of this process, now (`VmRSS`) or at most since the mark was reset (`VmHWM`)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(which))


PARTIES = {
    "client": (our_client, their_client, Neighbours),
    "server": (our_server, their_server, StandIns),
}
"""Ours, Flower's, and what stands around Flower's."""


def compare(case: Case) -> Row:
    """Both sides of one case, in turn."""
    ours, theirs, around = PARTIES[case.what]
    session, tiny = Ours(case), Ours(replace(case, n=4, shares=4, dim=10, dropout=0.0))
    session.record()
    tiny.record()
    t, given = session.parameters.threshold, session.given[case.what]
    row = Row(case, t, session.ring.bits, session.threat_model)
    for i in range(max(case.repeats)):
        if i < case.repeats[0]:
            run = ours(session, given)
            row.ours.append(checked(run, case).seconds)
        if i < case.repeats[1]:
            run = theirs(around(case, t))
            row.theirs.append(checked(run, case).seconds)
            row.bytes_up = session.bytes_up, sum(map(size, run.sent))
    # A tiny round before maps the code: what rises then is memory for data.
    there, before = around(case, t), around(tiny.case, tiny.parameters.threshold)
    row.peak = (
        peak(lambda: ours(session, arriving(given)), lambda: ours(tiny, tiny.given[case.what])),
        peak(lambda: theirs(there), lambda: theirs(before)),
    )
    print(f"  {case.what}, {case.shares} shares, {case.gone} gone: measured", file=sys.stderr)
    return row


def cases(full: bool) -> list[Case]:
    """The table's lines."""
    dim, client, server = (1_000_000, (9, 9), (3, 2)) if full else (1000, (2, 1), (2, 1))
    sparse, complete = ((100, 31), (100, 100)) if full else ((50, 21), (20, 20))
    return [
        Case("client", *sparse, dim, 0.0, 1 / 6 if full else None, client),
        Case("client", *complete, dim, 0.0, 1 / 15 if full else None, client),
        Case("server", *sparse, dim, DROPOUT, 1 / 25 if full else None, server),
        Case("server", *complete, dim, DROPOUT, 1 / 60 if full else None, server),
        Case("server", *sparse, dim, 0.0, None, server),
        Case("server", *complete, dim, 0.0, 1 / 300 if full else None, server),
    ]


def measure(edition: Edition) -> dict[str, Any]:
    """Everything, as JSON can hold it."""
    logging.getLogger("flwr").setLevel(logging.CRITICAL)
    TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 1  # it makes no message without
    off = self_test()
    rows = [compare(case) for case in cases(edition == "full")]
    where = machine("secagg", "numpy", "cryptography", "flwr", "pycryptodome")
    content = [{**asdict(row), "ratio": row.ratio} for row in rows]
    return {"machine": where, "off": off, "rows": content}


def report(content: dict[str, Any]) -> list[str]:
    """The section of the page: the tables, and what must be known to read them."""
    rows = content["rows"]
    off = " and ".join(f"{steps:.2f} ({graph} graph)" for graph, steps in content["off"].items())
    stated = "n | k | t | b | entries | dropout | threat model | noise"
    ruled = "--:|--:|--:|--:|--:|--:|---|---"
    lines = [
        "## To a peer: Flower's own SecAgg+",
        "",
        "One party of a round. Both sides really run, in one process and in turn; seconds are of the CPU,",
        "user and system, of all threads. Timed are all stages of the protocol, from floats and a weight to",
        "their weighted mean; neither training, nor the strategy, nor a transport. The first lines of",
        "`benchmarks/peers.py` say it for each party.",
        "",
        "n clients, k neighbours each (Flower's `num_shares` is k + 1), t shares open a secret, b bits an",
        f"entry in the ring; on both sides clipping to {CLIP}, a grid of 2^{GRID.bit_length() - 1} points,",
        'and an entry more for the weight. "Dropout" is what falls silent once shares were dealt and before',
        f"the masked vector. Our sessions are agreed to withstand {DROPOUT:.0%} of it in every row, and of",
        f"corrupted clients {CORRUPTED:.0%}: that gives t, and Flower is given the same. Ratios are of the",
        'least times, ours over Flower\'s; "at most" is the figure to stay below, where there is one.',
        "",
        f"| work | {stated} | ours s | median | Flower s | median | ratio | at most |",
        f"|---|{ruled}|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        ours, theirs, target = row["ours"], row["theirs"], row["case"]["target"]
        lines.append(
            f"| {settings(row)} | {min(ours):.4f} | {statistics.median(ours):.4f} "
            f"| {min(theirs):.3f} | {statistics.median(theirs):.3f} "
            f"| **1/{1 / row['ratio']:.1f}** | {_limit(row['ratio'], target)} |"
        )
    lines += [
        "",
        "Bytes that a client which stays to the end sends in all stages (ours: bodies and frames of its",
        "envelopes; Flower's: its records, as protobuf), and how far the memory of the party rises, in a",
        "fork that runs it once, in MB (10^6 bytes). Our server adds each vector as it comes; Flower's is",
        "given those of all clients at once.",
        "",
        f"| work | {stated} | ours bytes | Flower bytes | ratio | ours MB | Flower MB | ratio |",
        f"|---|{ruled}|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        (mine, its), (low, high) = row["bytes_up"], row["peak"]
        more = f"1/{high / low:.1f}" if low < high else f"{low / high:.1f}"
        lines.append(
            f"| {settings(row)} | {mine:,} | {its:,} | **1/{its / mine:.2f}** "
            f"| {low / 1e6:.1f} | {high / 1e6:.1f} | **{more}** |"
        )
    lines += [
        "",
        "Sums are checked: ours in every run; those of Flower's server in every run, at full size, with",
        "stand-ins for clients; and with 20 real clients of Flower's, each with its own update and weight,",
        f"of which 6 drop out. There the mean is off by at most {off} steps of the grid.",
        "",
        *DIFFERENCES.splitlines(),
    ]
    return lines


DIFFERENCES = """\
### What is not the same

Said of Flower is what the code of the version above does, as read and tried.

- **Masks.** Ours are AES-128-CTR under keys of 128 bits. Flower's `pseudo_rand_gen` is numpy's
  `RandomState`, the Mersenne Twister, which is no cryptographic generator, seeded with one 32-bit word.
- **Threat model.** That of our rows is honest-but-curious. Flower's code states none; public keys are not
  signed there.
- **Recovered secrets.** Flower compares none with what was announced. A wrong share of a seed gives a wrong
  mean without a word; one of a key, which no longer parses, ends the run by an exception. Our server holds
  each seed against its commitment and each key against the public one, and stops where they differ.
- **Dropouts.** Both give the sum of the others where a client falls silent before its masked vector, and of
  all where it does before it reveals. Earlier, while keys and shares go round, one silent client ends
  Flower's round without a result, and ours goes on without it (in Flower's engine: [FLOWER.md](FLOWER.md)).
- **Work.** Agreement is X25519 here, and P-384 with keys as PEM there. Shares are of 32 bytes and in numpy
  here; there they are of the PEM text, 16 bytes at a time, in pycryptodome's Python and a pool of threads,
  and a secret is opened with all shares that came rather than with t. Vectors are sent in b bits an entry
  here, and in 64 there.
"""


def _limit(ratio: float, target: float | None) -> str:
    """The figure to stay below, and whether it was not."""
    return "" if target is None else f"1/{1 / target:.0f}" + (" (missed)" if ratio > target else "")


def settings(row: dict[str, Any]) -> str:
    """What every row must state."""
    case = row["case"]
    return (
        f"{case['what']} | {case['n']} | {case['shares'] - 1} | {row['t']} | {row['b']} | {case['dim']:,} "
        f"| {case['dropout']:.0%} | {row['threat_model']} | {row['noise']}"
    )
