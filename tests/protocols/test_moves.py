"""What is not in the tables is refused, in one place: every state of a real run against every message.

Client: anything but the one expected message ends its session for good and names the server.
Server: a message too early drops its sender and names it; a late or repeated one is ignored.
Nothing a peer says is raised at the driver. Events out of order are our caller's.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any

import pytest

from protocols import pairwise
from protocols.errors import Aborted, Fault, LocalError
from protocols.graph import THREAT_MODELS
from protocols.machine import Aggregate, Answered, Input, Received, StageClosed, Started
from protocols.pairwise import CLIENT_MOVES, SERVER_MOVES
from protocols.session import Session
from protocols.wire import SERVER, Envelope
from secagg.keys import Identity
from secagg.randomness import seeded

NAMES = tuple("abcdef")
VECTORS = {name: [i, i + 1] for i, name in enumerate(NAMES)}
UNSIGNED = THREAT_MODELS[0]
SERVER_STAGES = ("keys", "shares", "masked", "signatures", "reveals")
CLIENT_STAGES = ("start", "roster", "shares", "input", "survivors", "quorum", "finished")
UP = {
    "Advertise": "keys",
    "Dealt": "shares",
    "Masked": "masked",
    "Signed": "signatures",
    "Revealed": "reveals",
}
DOWN = {"Roster": "roster", "Shares": "shares", "Survivors": "survivors", "Quorum": "quorum"}
GARBAGE = {
    "nothing": b"",
    "version alone": b"\1",
    "another version": b"\2\x91\5",
    "no MessagePack": b"\1\xc1",
    "no array": b"\1\xa5hello",
    "unknown tag": b"\1\x91\x63",
    "too few fields": b"\1\x91\1",
    "wrong types": b"\1\x92\6\5",
    "second encoding": b"\1\x91\xcc\5",
    "trailing byte": b"\1\x91\5\0",
    "deep": b"\1" + b"\x91" * 5000,
    "noise": seeded(b"noise")(200),
    "long": b"\1" + bytes(1 << 20),
}

models = pytest.mark.parametrize("model", THREAT_MODELS)


class Run:
    """Real parties; `at` runs them honestly until one is where a test wants it."""

    def __init__(self, model: str) -> None:
        self.identities = {n: Identity.generate(seeded(n.encode())) for n in NAMES}
        roster = {n: i.public for n, i in self.identities.items()}
        self.session = Session(roster, 2, 100, threat_model=model, dropout=0.2)
        self.server = self.session.server()
        self.clients = {n: self.session.client(n, self.identities[n], rng=seeded(n.encode())) for n in NAMES}
        self.seen: dict[str, list[Envelope]] = {}

    def _note(self, envelopes: list[Envelope]) -> list[Envelope]:
        for e in envelopes:
            self.seen.setdefault(type(pairwise._CODEC.decode(e.body, 1 << 30)).__name__, []).append(e)
        return envelopes

    def rounds(self):
        """Yields before each half round, so that a test can stop where it likes."""
        yield
        up = self._note([e for c in self.clients.values() for e in c.handle(Started())])
        yield
        while self.server.result is None:
            down = self._note([e for m in up for e in self.server.handle(Received(m))])
            yield
            up = self._note([e for m in down for e in self.clients[m.to].handle(Received(m))])
            yield
            if self.clients["a"].stage == "input":
                up = self._note([e for n, c in self.clients.items() for e in c.handle(Input(VECTORS[n]))])
                yield

    def client_at(self, stage: str) -> Any:
        for _ in self.rounds():
            if self.clients["a"].stage == stage:
                return self.clients["a"]
        raise AssertionError(stage)

    def server_at(self, stage: str) -> Any:
        for _ in self.rounds():
            if self.server.stage == stage:
                return self.server
        raise AssertionError(stage)


@lru_cache
def samples(model: str) -> dict[str, list[Envelope]]:
    """Every message of a whole honest run, by type: well formed, and meant for this very session."""
    run = Run(model)
    for _ in run.rounds():
        pass
    assert isinstance(run.server.result, Aggregate)
    return run.seen


def to_client(run: Run, name: str, found: dict[str, list[Envelope]]) -> Envelope:
    """A message of that type, addressed to client a as if by the server."""
    for e in found.get(name, ()):
        if e.to == "a":
            return e
    body = GARBAGE[name] if name in GARBAGE else found[name][0].body if name in found else other(name)
    return Envelope(run.session.hash, SERVER, "a", body)


def to_server(run: Run, name: str, found: dict[str, list[Envelope]]) -> Envelope:
    """A message of that type, as if by client a."""
    for e in found.get(name, ()):
        if e.sender == "a":
            return e
    body = GARBAGE[name] if name in GARBAGE else found[name][0].body if name in found else other(name)
    return Envelope(run.session.hash, "a", SERVER, body)


def other(name: str) -> bytes:
    """Of a type that no run of this model has."""
    made = {
        "Stop": lambda: pairwise.Stop(),
        "Signed": lambda: pairwise.Signed(bytes(64)),
        "Quorum": lambda: pairwise.Quorum(b"\x3f", bytes(64 * 6)),
    }
    return pairwise._CODEC.encode(made[name]())


ALL = (*UP, *DOWN, "Stop", *GARBAGE)


def test_tables_and_this_file_agree():
    steps = {(s.__name__, e.__name__) for moves in CLIENT_MOVES.values() for s, e in moves}
    assert {e for _, e in steps} == {"Started", "Input", *DOWN}
    assert {m.__name__ for _, m in SERVER_MOVES} == set(UP)


# -------------------------------------------------------------------------------------------- clients


@models
@pytest.mark.parametrize("stage", CLIENT_STAGES)
@pytest.mark.parametrize("message", ALL)
def test_client_refuses_what_is_not_in_its_table(model, stage, message):
    if stage == "quorum" and model == UNSIGNED:
        pytest.skip("nothing is signed")
    run, found = Run(model), samples(model)
    client = run.client_at(stage)
    if DOWN.get(message) == stage:
        pytest.skip("the one that is expected")
    envelope = to_client(run, message, found)
    seen = [e for es in run.seen.values() for e in es if e.to == "a"]
    repeated = envelope.body in [e.body for e in seen]
    before, sent = client._dump(), client.resend()
    out = client.handle(Received(envelope))
    if repeated or client.stage == "finished":
        assert client._dump() == before
        assert out in ([], sent)
        return
    assert [type(pairwise._CODEC.decode(e.body, 99)).__name__ for e in out] == ["Stop"]
    assert isinstance(client.result, Aborted)
    assert client.result.stage == stage
    assert client.result.culprits == (() if message == "Stop" else (SERVER,))
    assert client.result.retry
    assert_sticky(run, client, found)


def assert_sticky(run: Run, client: Any, found: dict[str, list[Envelope]]) -> None:
    result, dump = client.result, client._dump()
    for message in ALL:
        assert client.handle(Received(to_client(run, message, found))) == []
    assert client.handle(StageClosed("roster")) == []
    assert client.resend() == []
    assert client.result is result
    assert client._dump() == dump
    assert client.stage == "stopped"
    assert client.waiting_for == ()
    with pytest.raises(LocalError, match="started twice"):
        client.handle(Started())


@models
@pytest.mark.parametrize("message", DOWN)
def test_client_refuses_a_frame(model, message):
    if message == "Quorum" and model == UNSIGNED:
        pytest.skip("nothing is signed")
    run = Run(model)
    client = run.client_at(DOWN[message])
    (envelope,) = (e for e in samples(model)[message] if e.to == "a")
    client.handle(Received(replace(envelope, frame=b"\0")))
    assert isinstance(client.result, Aborted)
    assert client.result.culprits == (SERVER,)
    assert "frame" in client.result.cause


@models
@pytest.mark.parametrize("stage", CLIENT_STAGES)
def test_clients_events_out_of_order(model, stage):
    if stage == "quorum" and model == UNSIGNED:
        pytest.skip("nothing is signed")
    client = Run(model).client_at(stage)
    before = client._dump()
    for closed in (*SERVER_STAGES, *CLIENT_STAGES, "nonsense", ""):
        assert client.handle(StageClosed(closed)) == []
    if stage != "start":
        with pytest.raises(LocalError, match="started twice"):
            client.handle(Started())
    if CLIENT_STAGES.index(stage) > CLIENT_STAGES.index("input"):
        for vector in ([0, 0], VECTORS["a"]):
            with pytest.raises(LocalError, match="already has its vector"):
                client.handle(Input(vector))
    for nonsense in (None, 7, "Started", Started, Envelope(bytes(32), SERVER, "a", b"")):
        with pytest.raises(LocalError, match="event: expected"):
            client.handle(nonsense)
    assert client._dump() == before


@models
@pytest.mark.parametrize("stage", CLIENT_STAGES[:4])
def test_input_may_come_early_but_once(model, stage):
    run = Run(model)
    client = run.client_at(stage)
    sent = client.handle(Input(VECTORS["a"]))
    assert [len(e.frame) for e in sent] == ([3] if stage == "input" else [])
    with pytest.raises(LocalError, match="already has its vector"):
        client.handle(Input(VECTORS["a"]))


@pytest.mark.parametrize("bad", [[1], [1, 2, 3], [-1, 0], [0, 100], [0.5, 1.0], ["a", "b"], None, [[1, 2]]])
def test_bad_input_changes_nothing_and_a_good_one_may_follow(bad):
    client = Run(UNSIGNED).client_at("input")
    before = client._dump()
    with pytest.raises(LocalError, match="input: expected"):
        client.handle(Input(bad))
    assert client._dump() == before
    assert len(client.handle(Input(VECTORS["a"]))) == 1


@models
@pytest.mark.parametrize(("sender", "to"), [(SERVER, "b"), ("b", "a"), ("a", "a"), ("a", SERVER), ("", "a")])
def test_misrouted_to_a_client(model, sender, to):
    run = Run(model)
    client = run.client_at("roster")
    for _ in range(2):  # recorded once, and ignored: who wrote these names is a peer
        assert client.handle(Received(Envelope(run.session.hash, sender, to, b"\1\x91\n"))) == []
        assert client.faults == (Fault((sender,), "roster", "not for this client, or not from the server"),)
    assert client.stage == "roster"
    assert client.result is None


# --------------------------------------------------------------------------------------------- server


@models
@pytest.mark.parametrize("stage", SERVER_STAGES)
@pytest.mark.parametrize("message", ALL)
def test_server_refuses_what_is_not_in_its_table(model, stage, message):
    if stage == "signatures" and model == UNSIGNED:
        pytest.skip("nothing is signed")
    if UP.get(message) == stage:
        pytest.skip("the one that is expected")
    run, found = Run(model), samples(model)
    server = run.server_at(stage)
    assert server.waiting_for == NAMES
    before = server._dump()
    assert server.handle(Received(to_server(run, message, found))) == []
    frozen = stage in ("signatures", "reveals")
    if message in UP and SERVER_STAGES.index(UP[message]) < SERVER_STAGES.index(stage):
        assert server._dump() == before  # late or repeated: no fault of the sender
        return
    assert server.waiting_for == NAMES[1:]
    blamed = () if message == "Stop" else ("a",)  # giving up may be another's doing
    assert server.faults[-1].culprits == blamed
    assert server.faults[-1].stage == stage
    assert (server.faults[-1].cause == "a stopped by itself") is (message == "Stop")
    assert ("a" in dict(server._named())) is not frozen
    after = server._dump()
    for again in ALL:  # whatever it says now is discarded unread
        assert server.handle(Received(to_server(run, again, found))) == []
    assert server._dump() == after
    up = [e for e in found[next(m for m, s in UP.items() if s == stage)] if e.sender != "a"]
    assert up
    if not frozen:
        server.handle(StageClosed(stage))
        assert isinstance(server.result, Aborted)
        assert server.result.dropped["a"] == Fault(blamed, stage, server.faults[0].cause)


@models
@pytest.mark.parametrize("stage", SERVER_STAGES)
def test_server_goes_on_without_who_sends_garbage(model, stage):
    if stage == "signatures" and model == UNSIGNED:
        pytest.skip("nothing is signed")
    run = Run(model)
    up: list[Envelope] = [
        e for n, c in run.clients.items() for v in (Started(), Input(VECTORS[n])) for e in c.handle(v)
    ]
    while run.server.result is None:
        if run.server.stage == stage:
            up = [replace(e, body=GARBAGE["noise"]) if e.sender == "a" else e for e in up]
        down = [e for m in up for e in run.server.handle(Received(m))]
        up = [e for m in down for e in run.clients[m.to].handle(Received(m))]
    result = run.server.result
    assert isinstance(result, Aggregate)
    included = NAMES if stage in ("signatures", "reveals") else NAMES[1:]
    assert result.included == included
    assert result.sum.tolist() == [sum(VECTORS[n][i] for n in included) for i in range(2)]
    assert [f.culprits for f in result.faults] == [("a",)]


@models
@pytest.mark.parametrize("message", ["Advertise", "Dealt", "Signed", "Revealed"])
def test_server_refuses_a_frame_where_none_belongs(model, message):
    if message == "Signed" and model == UNSIGNED:
        pytest.skip("nothing is signed")
    run, found = Run(model), samples(model)
    server = run.server_at(UP[message])
    server.handle(Received(replace(to_server(run, message, found), frame=b"\0")))
    assert server.faults[-1] == Fault(("a",), UP[message], "a frame where none belongs")


@models
@pytest.mark.parametrize(
    "frame",
    [b"", bytes(2), bytes(4), bytes(1 << 20), b"\0\0\x10"],
    ids=["none", "short", "long", "huge", "padded"],
)
def test_server_refuses_a_vector_of_the_wrong_length(model, frame):
    run, found = Run(model), samples(model)
    server = run.server_at("masked")
    server.handle(Received(replace(to_server(run, "Masked", found), frame=frame)))
    assert "a" in server._named()
    assert "packed vector: " in server.faults[-1].cause
    assert server._total is None


@models
@pytest.mark.parametrize("stage", SERVER_STAGES)
def test_stage_that_is_left_is_not_closed_again(model, stage):
    if stage == "signatures" and model == UNSIGNED:
        pytest.skip("nothing is signed")
    server = Run(model).server_at(stage)
    before = server._dump()
    for closed in (*(s for s in SERVER_STAGES if s != stage), "finished", "stopped", "nonsense", ""):
        assert server.handle(StageClosed(closed)) == []
    assert server._dump() == before
    assert server.stage == stage


@models
@pytest.mark.parametrize("stage", SERVER_STAGES)
def test_servers_events(model, stage):
    if stage == "signatures" and model == UNSIGNED:
        pytest.skip("nothing is signed")
    run = Run(model)
    server = run.server_at(stage)
    before = server._dump()
    for nonsense in (None, Started(), Input([1, 2]), "keys"):
        with pytest.raises(LocalError, match="a server takes Received and StageClosed"):
            server.handle(nonsense)
    assert server._dump() == before
    for to in ("a", "", "Server"):
        assert server.handle(Received(Envelope(run.session.hash, "a", to, b"\1\x91\5"))) == []
    assert server.faults == (Fault(("a",), stage, "not for the server: ignored"),)
    assert server.waiting_for == NAMES


@models
def test_finished_server_hears_nothing(model):
    run, found = Run(model), samples(model)
    for _ in run.rounds():
        pass
    result = run.server.result
    assert isinstance(result, Aggregate)
    for message in ALL:
        assert run.server.handle(Received(to_server(run, message, found))) == []
    for stage in (*SERVER_STAGES, "finished"):
        assert run.server.handle(StageClosed(stage)) == []
    assert run.server.result is result
    assert run.server.waiting_for == ()
    assert {type(c.result) for c in run.clients.values()} == {Answered}


@models
def test_stopped_server_hears_nothing(model):
    run, found = Run(model), samples(model)
    run.server.handle(StageClosed("keys"))
    result = run.server.result
    assert isinstance(result, Aborted)
    with pytest.raises(Aborted):
        _ = result.sum
    before = run.server._dump()
    for message in ALL:
        assert run.server.handle(Received(to_server(run, message, found))) == []
    for stage in (*SERVER_STAGES, "finished", "stopped"):
        assert run.server.handle(StageClosed(stage)) == []
    assert run.server._dump() == before
    assert run.server.stage == "stopped"
