"""Nodes that go silent, crash or cheat over Flower: the mean of the others, or no sum and the model stays."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAdam, FedAvg
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedavg.adapters.flower import secagg_mod
from fedavg.adapters.flower.mod import take_part
from fedavg.adapters.flower.records import ENVELOPES, pack
from fedavg.codec import Codec
from protocols.wire import Envelope, from_bytes_checked

SHARED = [HealthCheck.function_scoped_fixture]  # the stage is the same for all examples
KINDS = ("silent", "lost", "crash", "raise")
PLAIN, SIGNED = 4, 6  # messages of a round: honest-but-curious, and malicious with who each node is
VECTOR_PLAIN, VECTOR_SIGNED = 2, 3  # which of them brings the vector

Schedule = dict[int, tuple[int, str]]
"""Node -> from which message on it fails, and how."""


def follow(schedule: Schedule) -> Any:
    def fault(node: int, count: int, message: Message) -> str | None:
        first, kind = schedule.get(node, (99, ""))
        # "lost" is one reply: later messages arrive, and answers to them.
        return kind if (count == first if kind == "lost" else count >= first) else None

    return fault


# --------------------------------------------------------------------------------- silence and crashes


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("first", range(PLAIN))
def test_a_node_that_fails(flower: Any, first: int, kind: str) -> None:
    play = flower.Play(fault=follow({103: (first, kind)}))
    included = [n for n in play.nodes if n != 103 or first > VECTOR_PLAIN]
    play.check(play.train(), included)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("first", range(SIGNED))
def test_a_node_with_an_identity_that_fails(
    flower: Any, sites: Callable[[], Path], first: int, kind: str
) -> None:
    play = flower.Play(fault=follow({103: (first, kind)}), folder=sites())
    included = [n for n in play.nodes if n != 103 or first > VECTOR_SIGNED]
    play.check(play.train(), included)


def test_several_in_different_stages(flower: Any, sites: Callable[[], Path]) -> None:
    schedule = {101: (0, "silent"), 102: (1, "crash"), 103: (2, "raise"), 104: (3, "silent")}
    play = flower.Play(nodes=9, fault=follow(schedule))
    play.check(play.train(), play.nodes[3:])
    schedule = {
        101: (0, "crash"),
        102: (1, "silent"),
        103: (2, "lost"),
        104: (3, "raise"),
        105: (4, "silent"),
    }
    play = flower.Play(nodes=12, fault=follow(schedule), folder=sites())
    play.check(play.train(), play.nodes[4:])


@settings(max_examples=80, suppress_health_check=SHARED)
@given(
    st.dictionaries(
        st.integers(101, 105), st.tuples(st.integers(0, PLAIN - 1), st.sampled_from(KINDS)), max_size=5
    )
)
def test_the_first_property(flower: Any, schedule: Schedule) -> None:
    """The exact mean of those whose vector came, or no sum and errors only; then a round without faults."""
    play = flower.Play(fault=follow(schedule))
    replies = play.train()
    if play.secure.rounds[-1].aborted is None:
        play.check(replies, [n for n in play.nodes if schedule.get(n, (99, ""))[0] > VECTOR_PLAIN])
    else:
        play.refused(replies)
        assert len(schedule) > 2
    play.grid.fault = lambda node, count, message: None
    play.check(play.train(), play.nodes)


@settings(max_examples=25, suppress_health_check=SHARED)
@given(
    st.dictionaries(
        st.integers(101, 107), st.tuples(st.integers(0, SIGNED - 1), st.sampled_from(KINDS)), max_size=4
    )
)
def test_the_first_property_with_identities(
    flower: Any, sites: Callable[[], Path], schedule: Schedule
) -> None:
    play = flower.Play(nodes=7, fault=follow(schedule), folder=sites())
    replies = play.train()
    if play.secure.rounds[-1].aborted is None:
        play.check(replies, [n for n in play.nodes if schedule.get(n, (99, ""))[0] > VECTOR_SIGNED])
    else:
        play.refused(replies)
        assert len(schedule) > 1


def failing_app(node: int, words: str) -> ClientApp:
    app = ClientApp()

    @app.train(mods=[secagg_mod])
    def train(message: Message, context: Context) -> Message:
        if context.node_id == node:
            raise RuntimeError(words)
        metrics = MetricRecord({"num-examples": 10 + context.node_id, "loss": 0.5})
        return Message(RecordDict({"a": message.content["arrays"], "metrics": metrics}), reply_to=message)

    return app


def test_an_app_that_raises_in_its_work(flower: Any) -> None:
    replies = (play := flower.Play(failing_app(102, "my words"))).train()
    reason = "secagg: it has nothing to send (RuntimeError); its own log says why"
    assert replies[102].error.reason == reason
    assert play.secure.rounds[-1].dropped == {"102": reason}
    assert play.secure.rounds[-1].included == ("101", "103", "104", "105")


@pytest.mark.parametrize(
    ("weight", "loss"), [(0, 0.5), (1001, 0.5), (2.0, 0.5), (None, 0.5), (5, None), (5, float("nan"))]
)
def test_what_an_app_may_not_reply(flower: Any, weight: Any, loss: Any) -> None:
    app = ClientApp()

    @app.train(mods=[secagg_mod])
    def train(message: Message, context: Context) -> Message:
        numbers = {"num-examples": weight, "loss": loss}
        own = numbers if context.node_id == 102 else {"num-examples": 5, "loss": 0.5}
        metrics = MetricRecord({k: v for k, v in own.items() if v is not None})
        return Message(RecordDict({"a": message.content["arrays"], "m": metrics}), reply_to=message)

    replies = (play := flower.Play(app)).train()
    assert [n for n in play.nodes if replies[n].has_error()] == [102]
    assert replies[102].error.reason.endswith("nothing to send (ValueError); its own log says why")


def other_arrays(what: str, arrays: dict[str, Any]) -> dict[str, ArrayRecord]:
    key, *others = arrays
    match what:
        case "renamed":
            changed = {"other": arrays[key]} | {k: arrays[k] for k in others}
        case "missing":
            changed = {k: arrays[k] for k in others}
        case "reshaped":
            changed = arrays | {key: arrays[key].T}
        case "integers":
            changed = arrays | {key: arrays[key].astype(int)}
        case "infinite":
            changed = arrays | {key: arrays[key] + np.inf}
        case _:
            changed = arrays
    record = ArrayRecord({k: Array(np.asarray(a, order="C")) for k, a in changed.items()})
    return {"none": {}, "two": {"a": record, "b": record}}.get(what, {"a": record})


@pytest.mark.parametrize("what", ["renamed", "missing", "reshaped", "integers", "infinite", "none", "two"])
def test_arrays_that_are_not_the_models(flower: Any, what: str) -> None:
    app = ClientApp()

    @app.train(mods=[secagg_mod])
    def train(message: Message, context: Context) -> Message:
        arrays = {k: a.numpy() for k, a in message.content["arrays"].items()}
        content = RecordDict({"m": MetricRecord({"num-examples": 1, "loss": 0.5})})
        for name, record in other_arrays(what if context.node_id == 102 else "", arrays).items():
            content[name] = record
        return Message(content, reply_to=message)

    replies = (play := flower.Play(app)).train()
    assert [n for n in play.nodes if replies[n].has_error()] == [102]


# ------------------------------------------------------------------------------------------------ cheats

Cheat = Callable[[Message, list[Message]], RecordDict]
"""(a reply, what this node has sent so far) -> what it sends instead."""


def letters(reply: Message) -> list[bytes]:
    return [a.data for a in reply.content[ENVELOPES].values()]


def packed(*data: bytes) -> RecordDict:
    return RecordDict(
        {ENVELOPES: ArrayRecord({str(i): Array("uint8", (len(d),), "", d) for i, d in enumerate(data)})}
    )


def flipped(place: float) -> Cheat:
    def cheat(reply: Message, before: list[Message]) -> RecordDict:
        changed = []
        for data in letters(reply):
            at = min(len(data) - 1, int(place * len(data)))
            changed.append(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        return packed(*changed)

    return cheat


NEXT = {"104": "105", "site-3": "site-4", "101": "105", "site-0": "site-4"}


def renamed(reply: Message, before: list[Message]) -> RecordDict:
    """As the one whose reply comes after its own, and would be a duplicate then."""
    found = [from_bytes_checked(data, 1 << 30) for data in letters(reply)]
    other = [Envelope(e.session, NEXT[e.sender], e.to, e.body, e.frame) for e in found]
    return RecordDict({ENVELOPES: pack(other)})


def other_session(reply: Message, before: list[Message]) -> RecordDict:
    found = [from_bytes_checked(data, 1 << 30) for data in letters(reply)]
    other = [Envelope(bytes(32), e.sender, e.to, e.body, e.frame) for e in found]
    return RecordDict({ENVELOPES: pack(other)})


CHEATS: dict[str, Cheat] = {
    "nothing at all": lambda reply, before: RecordDict(),
    "no letters": lambda reply, before: packed(),
    "a plain reply": lambda reply, before: RecordDict(
        {"arrays": ArrayRecord(), "metrics": MetricRecord({"num-examples": 1})}
    ),
    "garbage": lambda reply, before: packed(b"garbage" * 100),
    "empty letter": lambda reply, before: packed(b""),
    "too long": lambda reply, before: packed(letters(reply)[0] + bytes(1 << 20)),
    "a ConfigRecord": lambda reply, before: RecordDict({ENVELOPES: ConfigRecord({"0": letters(reply)[0]})}),
    "in our own record": lambda reply, before: RecordDict(
        {"secagg": ConfigRecord({"opening": b"", "who": True})}
    ),
    "another's name": renamed,
    "another session": other_session,
    "an earlier letter": lambda reply, before: packed(*letters(before[0])) if len(before) > 1 else packed(),
    "first byte": flipped(0.0),
    "last byte": flipped(1.0),
}


@pytest.mark.parametrize("count", range(VECTOR_PLAIN + 1))
@pytest.mark.parametrize("cheat", CHEATS.values(), ids=CHEATS)
def test_a_cheat_is_out_and_named(flower: Any, count: int, cheat: Cheat) -> None:
    """Where its reply decodes after all (a flipped bit of a masked vector), it is a vector like any other."""
    play = flower.Play()
    sent: list[Message] = []

    def up(node: int, number: int, reply: Message) -> Message:
        if node != 104:
            return reply
        sent.append(reply)
        if number == count:
            reply.content = cheat(reply, sent)
        return reply

    play.grid.up = up
    replies = play.train()
    if cheat is CHEATS["last byte"]:  # of a key, a sealed share or the masked vector: see below
        assert play.secure.rounds[-1].aborted is None or replies[101].has_error()
        return
    play.check(replies, [101, 102, 103, 105])
    if cheat is CHEATS["too long"]:  # before any of it is looked at
        assert "envelope too long" in replies[104].error.reason


@pytest.mark.parametrize("cheat", CHEATS.values(), ids=CHEATS)
def test_a_cheat_in_the_last_stage_changes_nothing(flower: Any, cheat: Cheat) -> None:
    """Its vector is in the sum already; its shares are one too few to matter."""
    play = flower.Play()
    sent: list[Message] = []

    def up(node: int, number: int, reply: Message) -> Message:
        if node == 104:
            sent.append(reply)
            if number == PLAIN - 1:
                reply.content = cheat(reply, sent)
        return reply

    play.grid.up = up
    play.check(play.train(), play.nodes)


@pytest.mark.parametrize(
    ("cheat", "count"),
    [(cheat, count) for cheat in ("garbage", "a ConfigRecord", "nothing at all") for count in range(SIGNED)]
    + [(cheat, count) for cheat in ("another's name", "another session") for count in range(1, SIGNED)],
)
def test_a_cheat_with_an_identity(flower: Any, sites: Callable[[], Path], count: int, cheat: str) -> None:
    play = flower.Play(folder=sites())

    def up(node: int, number: int, reply: Message) -> Message:
        if node == 104 and number == count:
            first = reply if ENVELOPES in reply.content else play.grid.sent[0][1]
            known = Message(first.content if ENVELOPES in first.content else packed(b""), reply_to=reply)
            reply.content = CHEATS[cheat](known, [])
        return reply

    play.grid.up = up
    play.check(play.train(), [n for n in play.nodes if n != 104 or count > VECTOR_SIGNED])


def test_replies_that_come_twice(flower: Any) -> None:
    """Or that nobody asked for: a grid may deliver anything."""
    play = flower.Play()
    pull, before = play.grid.pull_messages, []

    def twice(ids: Any) -> list[Message]:
        found = pull(ids)
        again = [*before, *found, *map(flower.copy, found)]
        before[:] = found
        return again

    play.grid.pull_messages = twice
    play.check(play.train(), play.nodes)


def test_a_thousand_letters(flower: Any) -> None:
    """The first is taken, the others are read and mean nothing."""
    play = flower.Play()

    def up(node: int, number: int, reply: Message) -> Message:
        if node == 104:
            reply.content = packed(*letters(reply) * 1000)
        return reply

    play.grid.up = up
    play.check(play.train(), play.nodes)


def test_an_error_without_a_reason(flower: Any) -> None:
    play = flower.Play()

    def up(node: int, number: int, reply: Message) -> Message:
        if node == 104:
            reply.__dict__["_content"] = None
            reply.error = Error(9)
        return reply

    play.grid.up = up
    replies = play.train()
    assert replies[104].error.code == 9
    assert play.secure.rounds[-1].dropped == {"104": "error 9"}
    assert len(play.secure.rounds[-1].included) == 4


def vector_app(make: Callable[[], Any]) -> ClientApp:
    """A node that takes part as it should, with a vector of its own making."""
    app = ClientApp()
    app.train()(lambda message, context: take_part(message, context, lambda *_: make))
    return app


def test_sums_that_cannot_be(flower: Any) -> None:
    """Vectors are not proved to be honest: a node can spoil a sum, but not the server's run."""
    record = flower.model()
    codec = Codec(18, 10.0, 1000, 29, ((0.0, 1.0),))
    zeros = vector_app(lambda: np.zeros(codec.length, np.int64))
    play = flower.Play({101: zeros, 102: zeros, 103: zeros, None: flower.make_app(secagg_mod)})
    replies = play.train(record)  # 104 + 10 and 105 + 10 examples of five nodes: a sum of weights that may be
    assert play.secure.rounds[-1].aborted is None
    play = flower.Play(dict.fromkeys([None], zeros))
    replies = play.train(record)
    play.refused(replies, "cannot add up to 0")
    play.grid.app = flower.make_app(secagg_mod)
    play.check(play.train(), play.nodes)


def test_a_half_that_is_pushed_beyond_its_range(flower: Any) -> None:
    """Clipping bounds each honest node's update, and no dishonest one's."""
    record = ArrayRecord({"w": Array(np.full(3, 65000, np.float16))})
    large = vector_app(lambda: np.array([(1 << 29) - 2] * 3 + [0] + [1]))
    play = flower.Play({None: large}, config={"secagg-clipping-norm": 1e5, "secagg-bits": 29})
    play.refused(play.train(record), "beyond the largest float16")


# ---------------------------------------------------------------------------------- too few for a sum


@pytest.mark.parametrize("strategy", [FedAvg, FedAdam])
@pytest.mark.parametrize("first", range(PLAIN))
def test_below_the_threshold_the_model_stays(flower: Any, strategy: Any, first: int) -> None:
    """In the second of three rounds, half of the nodes go: that round changes nothing, the next one works."""
    play = flower.Play(nodes=6, config={"secagg-min-included": 4})
    plain = flower.LocalGrid(flower.make_app(), 6, lambda n, count, message: "raise" if count == 1 else None)
    before: Counter[int] = Counter()

    def fault(node: int, count: int, message: Message) -> str | None:
        if len(play.secure.rounds) != 1 or node > 103:
            return None
        before[node] += 1
        return "silent" if before[node] > first else None

    play.grid.fault = fault
    options = {"fraction_evaluate": 0.0}
    found = strategy(**options).start(play.secure, flower.model(), num_rounds=3, timeout=0.001)
    expected = strategy(**options).start(plain, flower.model(), num_rounds=3)
    aborted = [r.aborted is not None for r in play.secure.rounds]
    assert aborted == [False, True, False]
    assert 2 not in found.train_metrics_clientapp
    for key, array in expected.arrays.items():
        np.testing.assert_allclose(found.arrays[key].numpy(), array.numpy(), atol=2e-5)
        assert found.arrays[key].dtype == array.dtype


def test_too_few_are_told_apart(flower: Any) -> None:
    play = flower.Play(fault=follow(dict.fromkeys((101, 102, 103), (1, "silent"))))
    replies = play.train()
    play.refused(replies)
    assert "no sum in this round, the model stays as it was" in replies[104].error.reason
    done = play.secure.rounds[-1]
    assert str(done.aborted) in replies[104].error.reason
    assert set(done.dropped) >= {"101", "102", "103"}
    assert "silent" in done.dropped["101"]


def test_all_are_gone(flower: Any, sites: Callable[[], Path]) -> None:
    """Also before anybody has said who it is."""
    play = flower.Play(fault=lambda node, count, message: "silent")
    play.refused(play.train())
    play = flower.Play(fault=lambda node, count, message: "silent", folder=sites())
    play.refused(play.train(), "did not say who")
    play.grid.fault = lambda node, count, message: None
    play.check(play.train(), play.nodes)
    play.grid.fault = lambda node, count, message: "silent"
    play.refused(play.train())


@pytest.mark.parametrize("left", [1, 2, 3])
def test_too_few_say_who_they_are(flower: Any, sites: Callable[[], Path], left: int) -> None:
    play = flower.Play(fault=follow(dict.fromkeys(range(101 + left, 106), (0, "silent"))), folder=sites())
    replies = play.train()
    if play.secure.rounds[-1].aborted:
        play.refused(replies, "did not say who")
        assert len(play.secure.rounds) == 1
    else:
        play.check(replies, play.nodes[:left])
    play.grid.fault = lambda node, count, message: None
    play.check(play.train(), play.nodes)


def test_too_few_that_take_part(flower: Any) -> None:
    """A server that cannot know it beforehand must not stop: the rest of the run may have more nodes."""
    play = flower.Play(flower.make_app())  # nobody has the mod
    replies = play.evaluate()
    play.refused(replies)
    assert all("is secagg_mod attached" in m.error.reason for m in replies.values())
