"""A server over Flower that does not do as it should: no node's vector comes out of it alone.

The server's own machine is honest here, and between it and the nodes sits who changes what some are told,
with all that it takes: it also rewrites the session and the echoes in every letter, so that both sides find
there what they expect. What it cannot make is what is under keys or signatures of the nodes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from fedavg.adapters.flower.records import ENVELOPES, RECORD, hash_instruction, instruction_in, pack
from fedavg.adapters.opening import LEARNING_TERMS, PREFIX, Opening, Settings
from protocols.wire import Envelope, from_bytes_checked
from secagg.labels import Label, digest

VECTOR = 2  # the message that brings the instruction, of four

How = Callable[[Opening], Opening]


def envelopes(message: Message) -> list[Envelope]:
    return [from_bytes_checked(a.data, 1 << 30) for a in message.content[ENVELOPES].values()]


def masked(play: Any, node: int) -> list[bytes]:
    """The vectors that a node has sent."""
    sent = [m for n, m in play.grid.said if n == node and m.has_content() and ENVELOPES in m.content]
    return [bytes(e.frame) for m in sent for e in envelopes(m) if len(e.frame)]


class Liar:
    """Tells the nodes in `deceived` another opening, and the instruction that fits it."""

    def __init__(
        self, play: Any, deceived: set[int], how: How = lambda opening: opening,
        instruct: Callable[[Message], None] = lambda message: None, roster: Any = None,
    ) -> None:  # fmt: skip
        self.play, self.deceived, self.how, self.instruct = play, deceived, how, instruct
        self.roster = roster
        self.true, self.false = b"", b""
        self.echoes: dict[bytes, bytes] = {}
        play.grid.down, play.grid.up = self.down, self.up

    def down(self, node: int, count: int, message: Message) -> None:
        if node not in self.deceived:
            return
        record = message.content.config_records.get(RECORD)
        if record is not None and "opening" in record:
            # What instruction it will be is known beforehand: the one that was asked for, changed.
            opening = Opening.from_bytes_checked(record["opening"])
            self.true = opening.session(f"flower/7/{message.metadata.message_type}", self.roster).hash
            lie = self.how(opening)
            self.false = lie.session(f"flower/7/{message.metadata.message_type}", self.roster).hash
            record["opening"] = lie.to_bytes()
        elif ENVELOPES in message.content:
            self.rewrite(message, self.true, self.false)
        if instruction_in(message.content):
            self.instruct(message)

    def up(self, node: int, count: int, reply: Message) -> Message:
        if node in self.deceived and reply.has_content() and ENVELOPES in reply.content:
            self.rewrite(reply, self.false, self.true)
        return reply

    def rewrite(self, message: Message, old: bytes, new: bytes) -> None:
        for letter in envelopes(message):
            assert letter.session == old
        found = []
        for e in envelopes(message):
            body = e.body.replace(old, new)
            for changed, echo in self.echoes.items():
                body = body.replace(changed, echo)
            self.echoes[digest(Label.ECHO, body)] = digest(Label.ECHO, e.body)
            found.append(Envelope(new, e.sender, e.to, body, e.frame))
        message.content[ENVELOPES] = pack(found)


def model_changed(message: Message) -> None:
    arrays = message.content["arrays"]
    arrays["layer.1"] = Array(arrays["layer.1"].numpy() + np.float32(1))


def rate_changed(message: Message) -> None:
    message.content["config"]["lr"] = 0.0


def one_more(message: Message) -> None:
    message.content["more"] = ConfigRecord({"epochs": 0})


def renamed(message: Message) -> None:
    message.content["other"] = message.content["config"]
    del message.content["config"]


def reordered(message: Message) -> None:
    arrays = message.content["arrays"]
    message.content["arrays"] = ArrayRecord(dict(reversed(arrays.items())))


INSTRUCTIONS = {f.__name__: f for f in (model_changed, rate_changed, one_more, renamed, reordered)}


@pytest.mark.parametrize("pinned", [False, True])
@pytest.mark.parametrize("how", INSTRUCTIONS.values(), ids=INSTRUCTIONS)
def test_another_instruction_than_was_announced(
    flower: Any, sites: Callable[[], Path], how: Any, pinned: bool
) -> None:
    play = flower.Play(folder=sites() if pinned else None)
    Liar(play, {104}, instruct=how, roster=play.secure._roster)
    replies = play.train()
    play.check(replies, [101, 102, 103, 105])
    reason = "secagg: the instruction is not the one that the round was opened for"
    assert replies[104].error.reason == reason
    assert masked(play, 104) == []


def announced(play: Any, how: Callable[[Message], None]) -> How:
    """An opening that fits the changed instruction."""

    def lie(opening: Opening) -> Opening:
        content = play.instruction()
        message = Message(content, 104, "train")
        how(message)
        hashed = hash_instruction(message.content, message, play.config)
        return msgspec.structs.replace(opening, instruction=hashed)

    return lie


def instructed(play: Any, flower: Any) -> None:
    play.instruction = lambda: RecordDict({"arrays": flower.model(), "config": ConfigRecord({"lr": 0.1})})


@pytest.mark.parametrize("pinned", [False, True])
@pytest.mark.parametrize("deceived", [{104}, {101, 102, 103, 105}], ids=["one", "all but one"])
@pytest.mark.parametrize("how", INSTRUCTIONS.values(), ids=INSTRUCTIONS)
def test_another_instruction_announced_to_some(
    flower: Any, sites: Callable[[], Path], how: Any, deceived: set[int], pinned: bool
) -> None:
    """Were it summed, it would be as good as one node's own: the others' can be made to be nothing."""
    play = flower.Play(folder=sites() if pinned else None)
    instructed(play, flower)
    Liar(play, deceived, announced(play, how), how, play.secure._roster)
    kept_apart(play, play.train(), deceived)


def kept_apart(play: Any, replies: Any, deceived: set[int]) -> None:
    """The sum, if there is one, is over nodes that were told the same."""
    done = play.secure.rounds[-1]
    included = {n for n in play.nodes if play.names[n] in done.included}
    assert not (included & deceived and included - deceived)
    if done.aborted is None:
        assert included == set(play.nodes) - deceived  # the liar's own machine is on their side
        play.check(replies, included)
    else:
        play.refused(replies)
    assert not [n for n in deceived if masked(play, n)] or not included


def setting(**fields: Any) -> How:
    return lambda o: msgspec.structs.replace(o, settings=msgspec.structs.replace(o.settings, **fields))


OPENINGS: dict[str, How] = {
    "clipping norm": setting(clipping_norm=1e-3),
    "weight": setting(weight_key="other"),
    "metrics": setting(train_metrics="loss:0:1e-3"),
    "norm": setting(norm="max"),
    "largest weight": setting(max_weight=999),
    "dropout": setting(dropout=0.3),
    "protocol": setting(protocol="secagg+"),
    "fewest": setting(min_included=5),
    "timeout": setting(timeout=7.0),
    "round": lambda o: msgspec.structs.replace(o, round=o.round + 1),
    "length": lambda o: msgspec.structs.replace(o, length=o.length + 1),
    "bound": lambda o: msgspec.structs.replace(o, bound=o.bound - 1),
    "cohort": lambda o: msgspec.structs.replace(
        o, cohort=[n for n in o.cohort if not n.endswith(("101", "-0"))]
    ),
}


TERMS = {"clipping norm", "weight", "metrics", "norm", "largest weight"}
OTHER_TERMS = "not what this site's own configuration says"


def own_terms(settings: Settings) -> dict[str, Any]:
    """The keys of a node's own configuration that agree to these settings."""
    return {
        PREFIX + name.replace("_", "-"): value
        for name, value in msgspec.structs.asdict(settings).items()
        if name in LEARNING_TERMS
    }


@pytest.mark.parametrize("silent", [False, True], ids=["configured", "not configured"])
@pytest.mark.parametrize("what", OPENINGS)
def test_another_opening_for_one(flower: Any, what: str, silent: bool) -> None:
    """A node refuses what its own configuration contradicts; else it is in a session of its own."""
    play = flower.Play()
    if not silent:
        play.grid.contexts[104].node_config.update(own_terms(Settings.of(play.config)))
    Liar(play, {104}, OPENINGS[what])
    replies = play.train()
    kept_apart(play, replies, {104})
    assert not masked(play, 104)
    if not silent and what in TERMS:
        assert OTHER_TERMS in replies[104].error.reason
        assert play.grid.counts[104] == 1
    else:  # as far as the shares, which no longer open: the lie is not noticed by its form
        assert play.grid.counts[104] > 1


@pytest.mark.parametrize("what", sorted(OPENINGS.keys() - {"protocol"} | {"threat model"}))
def test_another_opening_for_one_with_an_identity(flower: Any, sites: Callable[[], Path], what: str) -> None:
    """On terms that are its own too, it is in a session of its own."""
    how = (OPENINGS | {"threat model": setting(threat_model="semi-malicious")})[what]
    play = flower.Play(nodes=6, folder=sites())
    lie = how(Opening(Settings.of(play.config), 1, [], 1, 2, b""))
    play.grid.contexts[104].node_config.update(own_terms(lie.settings))
    Liar(play, {104}, how, roster=play.secure._roster)
    replies = play.train()
    kept_apart(play, replies, {104})
    assert OTHER_TERMS not in replies[104].error.reason


@pytest.mark.parametrize("pinned", [False, True])
@pytest.mark.parametrize("what", sorted(TERMS))
def test_the_same_lie_for_all(flower: Any, sites: Callable[[], Path], what: str, pinned: bool) -> None:
    """One session, with which all agree, but that it is not on their own terms."""
    play = flower.Play(folder=sites() if pinned else None)
    if not pinned:
        for context in play.grid.contexts.values():
            context.node_config.update(own_terms(Settings.of(play.config)))
    Liar(play, set(play.nodes), OPENINGS[what], roster=play.secure._roster)
    replies = play.train()
    play.refused(replies)
    assert all(OTHER_TERMS in m.error.reason for m in replies.values())


@pytest.mark.parametrize("what", sorted(TERMS))
def test_terms_that_change_within_a_run(flower: Any, what: str) -> None:
    """Nodes that have said nothing of terms take those of a run's first round for the whole of it."""
    play = flower.Play()
    play.check(play.train(), play.nodes)
    Liar(play, set(play.nodes), OPENINGS[what])
    for replies in (play.train(), play.evaluate(), play.train()):
        play.refused(replies)
        said = "secagg: the settings are not those of this run's first round"
        assert {m.error.reason for m in replies.values()} == {said}
    play.grid.down, play.grid.up = (lambda node, count, message: None), (lambda node, count, reply: reply)
    play.check(play.train(), play.nodes)


@pytest.mark.parametrize("what", ["length", "bound"])
def test_a_size_that_is_not_the_instructions(flower: Any, what: str) -> None:
    """Of a round opened for shorter vectors, say, the rest of each would be missing."""
    play = flower.Play()
    Liar(play, set(play.nodes), OPENINGS[what])
    replies = play.train()
    play.refused(replies)
    said = "secagg: the instruction does not fit the round that was opened for it"
    assert {m.error.reason for m in replies.values()} == {said}


def test_a_session_for_fewer(flower: Any) -> None:
    """A cohort of two, or one made of a node and names that are nobody's, is refused or leads nowhere."""
    play = flower.Play(policy="cohort:5")
    Liar(play, {104}, lambda o: msgspec.structs.replace(o, cohort=["103", "104", "105"]))
    kept_apart(play, play.train(), {104})
    play = flower.Play()
    content = Opening.from_bytes_checked(play_opening(play))
    for cohort in (["104"], ["103", "104"], ["101", "102", "103"]):
        play.grid.up, play.grid.down = (lambda node, count, reply: reply), (lambda node, count, message: None)
        answer = tell(play, 104, msgspec.structs.replace(content, cohort=cohort, round=9))
        assert answer.has_error()


def play_opening(play: Any) -> bytes:
    play.train()
    opening: bytes = play.grid.sent[0][1].content[RECORD]["opening"]
    return opening


def tell(play: Any, node: int, opening: Opening) -> Message:
    content = RecordDict({RECORD: ConfigRecord({"opening": opening.to_bytes()})})
    (reply,) = play.grid.send_and_receive([Message(content, node, "train")])
    return reply


# ----------------------------------------------------------------------------------------------- repeats


@pytest.mark.parametrize("pinned", [False, True])
def test_a_round_twice(flower: Any, sites: Callable[[], Path], pinned: bool) -> None:
    """A server that counts from the beginning again gets no second sum over the same round."""
    play = flower.Play(folder=sites() if pinned else None)
    play.check(play.train(), play.nodes)
    play.secure = play.server()
    replies = play.train()
    play.refused(replies)
    assert play.secure.rounds[-1].number == 1
    assert all("this session was already begun" in m.error.reason for m in replies.values())
    play.secure = play.server()
    replies = play.train(flower.model(1))
    play.refused(replies)
    said = "round 1 of task 'flower/7/train' was already answered"
    assert all(said in m.error.reason for m in replies.values())
    play.check(play.train(), play.nodes)  # its second
    play.check(play.evaluate() and play.train(), play.nodes)


@pytest.mark.parametrize("pinned", [False, True])
def test_a_round_that_was_not_answered_goes_to_no_other_cohort(
    flower: Any, sites: Callable[[], Path], pinned: bool
) -> None:
    """The same update in a sum with one node less: their difference would be that node's."""
    last = 4 if pinned else 3
    play = flower.Play(nodes=6, folder=sites() if pinned else None)
    play.grid.fault = lambda node, count, message: "silent" if count >= last else None
    play.refused(play.train())
    assert all(masked(play, n) for n in play.nodes)
    play.grid.fault = lambda node, count, message: None
    sent = len(play.grid.said)
    play.secure = play.server()
    replies = play.train(nodes=play.nodes[:5])
    play.refused(replies)
    play.grid.said = play.grid.said[sent:]
    assert not any(masked(play, n) for n in play.nodes)
    assert any("a vector was already sent for round 1" in m.error.reason or "stopped" in m.error.reason
               for m in replies.values())  # fmt: skip


@pytest.mark.parametrize("change", [False, True])
def test_the_same_message_twice(flower: Any, change: bool) -> None:
    """Asked for its vector again, a node has none to give, to whatever instruction."""
    play = flower.Play()
    kept: list[Message] = []
    again: list[Message] = []

    def down(node: int, count: int, message: Message) -> None:
        if node == 104 and count == VECTOR:
            kept.append(flower.copy(message))
        if node == 104 and count == VECTOR + 1:
            message.content = kept[0].content
            if change:
                model_changed(message)

    def up(node: int, count: int, reply: Message) -> Message:
        if node == 104 and count == VECTOR + 1:
            again.append(flower.copy(reply))
        return reply

    play.grid.down, play.grid.up = down, up
    play.check(play.train(), play.nodes)
    assert len(masked(play, 104)) == 1
    assert again[0].has_error()


def test_an_instruction_before_its_time(flower: Any) -> None:
    """A node may do its work early; it masks when the protocol is ready, and once."""
    play = flower.Play()

    def down(node: int, count: int, message: Message) -> None:
        if count == 0:
            for name, record in play.instruction().items():
                message.content[name] = record

    instructed(play, flower)
    play.grid.down = down
    replies = play.train()
    assert all(len(masked(play, n)) <= 1 for n in play.nodes)
    if play.secure.rounds[-1].aborted is None:
        play.check(replies, play.nodes)


@pytest.mark.parametrize("count", range(1, 4))
def test_letters_of_another_node(flower: Any, count: int) -> None:
    """What was for one is brought to another: it stops, and the rest have their sum."""
    play = flower.Play()
    kept: dict[int, Any] = {}

    def down(node: int, number: int, message: Message) -> None:
        if number == count and node == 103:
            kept[0] = message.content[ENVELOPES]
        if number == count and node == 104:
            message.content[ENVELOPES] = kept[0]

    play.grid.down = down
    replies = play.train()
    play.check(replies, play.nodes if count > VECTOR else [101, 102, 103, 105])


def test_the_server_asks_for_a_name_in_every_message(flower: Any, sites: Callable[[], Path]) -> None:
    """Who a node is, it may be asked at any time: it costs nothing and ends nothing."""
    play = flower.Play(folder=sites())
    assert isinstance(play.secure._roster, dict)
    play.check(play.train(), play.nodes)
    play.secure._names.clear()
    play.check(play.train(), play.nodes)
