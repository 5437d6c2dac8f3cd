"""What a node lets out over Flower, and what it keeps: nothing in the clear, no secret after the end."""

from __future__ import annotations

import sqlite3
import struct
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.serde import message_to_proto, recorddict_to_proto

from fedavg.adapters.flower import secagg_mod
from fedavg.adapters.flower.records import ENVELOPES, RECORD
from protocols.journal import SqliteJournal
from protocols.roster import read_party

PATTERN = b"\x3d\xc3\xa5\x5a" * 4  # floats of about -2e16 and 0.1, by the order of their bytes
WEIGHT, LOSS, OTHER = 1_518_421_735, 0.123456789, 0.987654321
WORDS = "patient seven of ward three"


def varint(n: int) -> bytes:
    return bytes([n & 127 | 128]) + varint(n >> 7) if n > 127 else bytes([n])


# As protobuf, MessagePack, numpy, text would have them.
TRACES = [
    PATTERN[:8], PATTERN[::-1][:8], varint(WEIGHT), varint(2 * WEIGHT),
    struct.pack("<I", WEIGHT), struct.pack(">I", WEIGHT),
    struct.pack("<d", WEIGHT), str(WEIGHT).encode(), WORDS.encode(), b"ward three",
    *(form for loss in (LOSS, OTHER) for form in (
        struct.pack("<d", loss), struct.pack(">d", loss), struct.pack("<f", loss), struct.pack(">f", loss),
        str(loss).encode())),
]  # fmt: skip


def telling_app(how: Callable[[int], str] = lambda node: "") -> ClientApp:
    """An update, a weight, two metrics, all recognisable; and ways to fail that tell them all."""
    app = ClientApp()

    def reply(message: Message, context: Context) -> Message:
        found = f"{WORDS} {WEIGHT} {LOSS} {PATTERN!r}"
        match how(context.node_id):
            case "raises":
                raise RuntimeError(found)
            case "raises a ValueError":
                raise ValueError(found)
            case "replies with an error":
                return Message(Error(71, found), reply_to=message)
            case "too large a weight":
                weight, loss = 2 * WEIGHT, LOSS
            case "no number":
                weight, loss = WEIGHT, float("nan")
            case _:
                weight, loss = WEIGHT, LOSS
        content = RecordDict({"m": MetricRecord({"num-examples": weight, "loss": loss, "other": OTHER})})
        if message.metadata.message_type == "train":
            update = np.frombuffer(PATTERN * 8, ">f4").astype(np.float32)
            content["arrays"] = ArrayRecord({"w": Array(update)})
        content["words"] = ConfigRecord({"found": found})
        return Message(content, reply_to=message)

    app.train(mods=[secagg_mod])(reply)
    app.evaluate(mods=[secagg_mod])(reply)
    return app


CONFIG = {
    "secagg-max-weight": 2_000_000_000, "secagg-train-metrics": "loss:0:1",
    "secagg-evaluate-metrics": "loss:0:1",
}  # fmt: skip
START = ArrayRecord({"w": Array(np.zeros(32, np.float32))})
FAILURES = ["raises", "raises a ValueError", "replies with an error", "too large a weight", "no number"]


def traces(message: Message) -> list[bytes]:
    whole = message_to_proto(message).SerializeToString()
    return [trace for trace in TRACES if trace in whole]


def test_the_traces_can_be_found(flower: Any) -> None:
    """Without the mod they are all there: this search would find them."""
    app = telling_app()
    grid = flower.LocalGrid(lambda message, context: app(message, context), 3)
    inner: Any = ClientApp()

    @inner.train()
    def train(message: Message, context: Context) -> Message:
        update = ArrayRecord({"w": Array(np.frombuffer(PATTERN * 8, ">f4").astype(np.float32))})
        metrics = MetricRecord({"num-examples": WEIGHT, "loss": LOSS, "other": OTHER})
        text = ConfigRecord({"found": f"{WORDS} {WEIGHT} {LOSS}"})
        return Message(RecordDict({"a": update, "m": metrics, "t": text}), reply_to=message)

    grid.app = inner
    (reply,) = grid.send_and_receive([Message(RecordDict({"arrays": START}), 101, "train")])
    assert {PATTERN[::-1][:8], varint(2 * WEIGHT), struct.pack("<d", LOSS), WORDS.encode()} <= set(
        traces(reply)
    )


@pytest.mark.parametrize("kind", ["train", "evaluate"])
@pytest.mark.parametrize("failure", ["", *FAILURES])
def test_nothing_in_the_clear(flower: Any, kind: str, failure: str) -> None:
    """In no message of any node, failing or not; nor in what the server makes of them."""
    play = flower.Play(telling_app(lambda node: failure if node == 103 else ""), config=CONFIG)
    replies = play.send(kind, RecordDict({"arrays": START}))
    assert replies[103].has_error() == bool(failure)
    assert replies[101].has_content()
    assert len(play.grid.said) >= 5 * 3
    for _, message in play.grid.said:
        assert not traces(message)
    told = "".join(play.secure.rounds[-1].dropped.values()).encode()
    assert not [trace for trace in TRACES if trace in told]


def test_all_fail(flower: Any) -> None:
    play = flower.Play(telling_app(lambda node: FAILURES[node - 101]), config=CONFIG)
    play.refused(play.send("train", RecordDict({"arrays": START})))
    for _, message in play.grid.said:
        assert not traces(message)


def test_only_what_is_configured_comes_back(flower: Any) -> None:
    play = flower.Play(telling_app(), config=CONFIG)
    (content,) = (m.content for n, m in play.send("train", RecordDict({"arrays": START})).items() if n == 101)
    assert set(content) == {"arrays", "metrics"}
    assert set(content["metrics"]) == {"num-examples", "loss"}
    play = flower.Play(telling_app(), config=CONFIG | {"secagg-evaluate-metrics": ""})
    for m in play.send("evaluate", RecordDict({"arrays": START})).values():
        assert list(m.content) == ["metrics"]
        assert dict(m.content["metrics"]) == {"num-examples": float(WEIGHT)}


def test_examples_come_back_in_equal_shares(flower: Any) -> None:
    play = flower.Play()
    shares = {m.content["metrics"]["num-examples"] for m in play.train().values()}
    assert shares == {sum(map(flower.weight, play.nodes)) / 5}


def test_a_failure_is_told_in_the_nodes_own_log(flower: Any, caplog: pytest.LogCaptureFixture) -> None:
    play = flower.Play(telling_app(lambda node: "raises" if node == 103 else ""), config=CONFIG)
    caplog.set_level("ERROR", "flwr.secagg")
    play.send("train", RecordDict({"arrays": START}))
    (record,) = [r for r in caplog.records if r.levelname == "ERROR"]
    assert WORDS in str(record.exc_info)


# ------------------------------------------------------------------------------------------ what is kept


def kept(play: Any, node: int) -> set[str]:
    return set(play.grid.contexts[node].state.config_records.get(RECORD, ConfigRecord()))


def watch(play: Any, look: Callable[[int, int], None]) -> None:
    """Look at a node before each message of a round of training: (node, messages it had)."""
    play.grid.down = lambda node, count, message: look(node, count)
    play.check(play.train(), play.nodes)


def test_between_messages_and_after(flower: Any) -> None:
    play = flower.Play()

    def look(node: int, count: int) -> None:
        assert kept(play, node) == ({"opening", "snapshot", "key", "journal", "terms"} if count else set())

    watch(play, look)
    for node in play.nodes:
        assert kept(play, node) == {"journal", "terms"}
        whole = recorddict_to_proto(play.grid.contexts[node].state).SerializeToString()
        steps, answered, sent = msgspec.msgpack.decode(
            play.grid.contexts[node].state[RECORD]["journal"], strict=False
        )
        assert list(steps.values()) == [5]
        assert [(task, number) for (_, task), number in answered] == [("flower/7/train", 1)]
        assert len(sent) == 1
        assert len(whole) < 600


def states(play: Any) -> list[bytes]:
    """What the journals of all sites keep of states; a byte string of none is none."""
    found: list[bytes] = []
    for name in play.names.values():
        party = read_party(play.roster.with_name(f"{name}.key"))
        path = play.roster.with_name(f"{name}.journal")
        with closing(sqlite3.connect(path)) as db:
            machines = [bytes(row[0]) for row in db.execute("SELECT machine FROM steps")]
        journal = SqliteJournal(path, party.journal_key)
        found += filter(None, map(journal.state, machines))
        journal.close()
    return found


def test_between_messages_and_after_with_an_identity(flower: Any, sites: Callable[[], Path]) -> None:
    """The state is in the context and nowhere else, under a key that is not."""
    play = flower.Play(folder=sites())

    def look(node: int, count: int) -> None:
        assert kept(play, node) == ({"opening", "snapshot", "terms"} if count > 1 else set())
        assert not count or not states(play)

    watch(play, look)
    assert [kept(play, node) for node in play.nodes] == [{"terms"}] * 5
    assert not states(play)


def test_the_state_is_small(flower: Any) -> None:
    """No vector is in it, masked or not: Flower stores it after each message."""
    sizes: list[int] = []
    play = flower.Play(nodes=3, config={"secagg-clipping-norm": 100.0})
    record = ArrayRecord({"w": Array(np.zeros(100_000, np.float32))})
    play.grid.down = lambda node, count, message: sizes.append(
        recorddict_to_proto(play.grid.contexts[node].state).ByteSize()
    )
    play.check(play.train(record), play.nodes, record)
    assert 0 < max(sizes) < 10_000


def test_the_update_is_not_in_the_state(flower: Any) -> None:
    play = flower.Play(telling_app(), config=CONFIG)

    def down(node: int, count: int, message: Message) -> None:
        whole = recorddict_to_proto(play.grid.contexts[node].state).SerializeToString()
        assert not [trace for trace in TRACES if trace in whole]

    play.grid.down = down
    play.send("train", RecordDict({"arrays": START}))


@pytest.mark.parametrize("pinned", [False, True])
def test_a_round_that_was_not_finished(flower: Any, sites: Callable[[], Path], pinned: bool) -> None:
    """Its state stays until the next opening, and no longer."""
    last = 4 if pinned else 3
    play = flower.Play(folder=sites() if pinned else None)
    play.grid.fault = lambda node, count, message: "silent" if node == 103 and count == last else None
    play.train()
    old = play.grid.contexts[103].state[RECORD]["snapshot"]
    assert isinstance(old, bytes)
    play.grid.fault = lambda node, count, message: None
    seen = []
    play.grid.down = lambda node, count, message: seen.append(
        play.grid.contexts[103].state.config_records.get(RECORD, ConfigRecord()).get("snapshot")
    )
    play.check(play.train(), play.nodes)
    assert len({state for state in seen if state != old}) > 2
    assert "snapshot" not in kept(play, 103)
    if pinned:
        assert not states(play)


@pytest.mark.parametrize("pinned", [False, True])
@pytest.mark.parametrize("after", [1, 2])
def test_an_abort_is_told_to_the_nodes(
    flower: Any, sites: Callable[[], Path], pinned: bool, after: int
) -> None:
    """Those that are left are told to stop, and keep nothing."""
    play = flower.Play(folder=sites() if pinned else None)
    first = after + pinned
    play.grid.fault = lambda node, count, message: (
        "silent" if node in (101, 102, 103) and count >= first else None
    )
    play.refused(play.train())
    assert "snapshot" in kept(play, 101)
    for node in (104, 105):
        assert kept(play, node) <= {"journal", "terms"}
    if pinned:
        assert not states(play)


@pytest.mark.parametrize("pinned", [False, True])
def test_a_refusal_in_a_round_erases_it(flower: Any, sites: Callable[[], Path], pinned: bool) -> None:
    """Whether its work failed or what came was nonsense."""
    for what in ("work", "nonsense"):
        app = telling_app(lambda node, what=what: "raises" if node == 103 and what == "work" else "")  # type: ignore[misc]
        play = flower.Play(app, config=CONFIG, folder=sites() if pinned else None)

        def down(node: int, count: int, message: Message, what: str = what) -> None:
            if node == 103 and what == "nonsense" and ENVELOPES in message.content:
                message.content[ENVELOPES] = ArrayRecord({"0": Array("uint8", (3,), "", b"abc")})

        play.grid.down = down
        replies = play.send("train", RecordDict({"arrays": START}))
        assert replies[103].has_error()
        assert kept(play, 103) <= {"journal", "terms"}
        if pinned:
            assert not states(play)


def test_the_apps_own_state_is_its_own(flower: Any) -> None:
    """Kept between rounds; not touched when ours is erased."""
    app = ClientApp()

    @app.train(mods=[secagg_mod])
    def train(message: Message, context: Context) -> Message:
        rounds = context.state.config_records.get("own", ConfigRecord({"rounds": 0}))["rounds"]
        context.state["own"] = ConfigRecord({"rounds": rounds + 1})
        metrics = MetricRecord({"num-examples": 1, "loss": 0.5})
        return Message(RecordDict({"a": message.content["arrays"], "m": metrics}), reply_to=message)

    play = flower.Play(app)
    play.train()
    play.train()
    play.grid.send_and_receive([Message(RecordDict(), n, "train") for n in play.nodes])  # refused
    for context in play.grid.contexts.values():
        assert context.state["own"]["rounds"] == 2
        assert set(context.state) == {"own", RECORD}
