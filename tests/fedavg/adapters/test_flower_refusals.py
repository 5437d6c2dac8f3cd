"""What is refused over Flower, by the node or by the server's grid, and the reason that is given."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common import ndarrays_to_parameters
from flwr.server import strategy as legacy
from flwr.serverapp import strategy as strategies
from flwr.serverapp.strategy import FedAvg

from fedavg.adapters.flower import SecAggGrid, secagg_mod, statistics_app
from fedavg.adapters.flower.strategies import _SEE_SINGLE, check_averages
from protocols.errors import LocalError

# ------------------------------------------------------------------------------------------- at the node


def plain(flower: Any, app: Any, kind: str, content: RecordDict) -> str:
    grid = flower.LocalGrid(app, 3)
    (reply,) = grid.send_and_receive([Message(content, 101, kind)])
    assert reply.has_error(), "it answered"
    assert not grid.contexts[101].state
    return str(reply.error.reason)


@pytest.mark.parametrize("kind", ["train", "evaluate"])
def test_an_unprotected_message(flower: Any, kind: str) -> None:
    for content in (RecordDict({"arrays": flower.model()}), RecordDict()):
        reason = plain(flower, flower.make_app(secagg_mod), kind, content)
        assert reason.startswith(
            f"secagg: {kind}: a message without protection is refused: send it by SecAggGrid"
        )


@pytest.mark.parametrize("kind", ["query", "query.more", "evaluate.more"])
@pytest.mark.parametrize("content", ["plain", "opening"])
def test_kinds_that_are_not_learning(flower: Any, kind: str, content: str) -> None:
    """A mod before a query refuses it whatever it looks like: there is no vector in it to protect."""
    app = ClientApp()
    category, _, name = kind.partition(".")
    getattr(app, category)(*filter(None, [name]), mods=[secagg_mod])(lambda message, context: 1 / 0)
    record = RecordDict({"secagg": ConfigRecord({"opening": b""})} if content == "opening" else {})
    reason = plain(flower, app, kind, record)
    if kind.startswith("query") or content == "plain":
        assert reason.startswith(
            f"secagg: {kind}: a message without protection is refused: send it by SecAggGrid"
        )
    else:
        assert reason == "secagg: the opening of the round cannot be decoded"


@pytest.mark.parametrize("kind", ["train", "evaluate", "get_parameters", "get_properties", "reconnect"])
def test_a_legacy_app(flower: Any, kind: str) -> None:
    def client(context: Context) -> Any:
        raise AssertionError("it was asked")

    reason = plain(flower, ClientApp(client, mods=[secagg_mod]), kind, RecordDict())
    assert reason.startswith(
        f"secagg: {kind}: a message without protection is refused: send it by SecAggGrid"
    )


def test_a_statistics_app(flower: Any) -> None:
    assert "without protection" in plain(flower, statistics_app(), "query.statistics", RecordDict())


@pytest.mark.parametrize(
    "record",
    [
        {}, {"opening": 1}, {"opening": b"x" * 100}, {"opening": "text"}, {"letters": b""},
    ],
)  # fmt: skip
def test_an_opening_that_is_none(flower: Any, record: dict[str, Any]) -> None:
    content = RecordDict({"secagg": ConfigRecord(record), "arrays": flower.model()})
    reason = plain(flower, flower.make_app(secagg_mod), "train", content)
    assert reason in ("secagg: opening: expected bytes", "secagg: the opening of the round cannot be decoded")


def test_letters_out_of_the_blue(flower: Any) -> None:
    content = RecordDict({"secagg.envelopes": ArrayRecord({"0": Array("uint8", (3,), "", b"abc")})})
    reason = plain(flower, flower.make_app(secagg_mod), "train", content)
    assert reason == "secagg: nothing is kept of this round: it ended, or never began here"


@pytest.mark.parametrize(
    ("key", "value"),
    [("secagg-clipping-norm", 1.0), ("secagg-dropout", 0.0), ("secagg-protocol", "secagg+"),
     ("secagg-train-metrics", ""), ("learning-rate", 0.1), ("secagg-no-such", 1)],
)  # fmt: skip
def test_a_node_that_was_told_other_settings(flower: Any, key: str, value: Any) -> None:
    """What the run's configuration says at a node is what it says at the server, ours or not."""
    play = flower.Play()
    play.grid.contexts[103].run_config[key] = value
    replies = play.train()
    play.check(replies, [101, 102, 104, 105])
    reason = "secagg: the instruction is not the one that the round was opened for"
    assert replies[103].error.reason == reason


def test_a_node_that_is_told_less(flower: Any) -> None:
    play = flower.Play()
    play.grid.contexts[101].run_config.clear()
    replies = play.train()
    play.check(replies, play.nodes[1:])
    reason = "secagg: the instruction is not the one that the round was opened for"
    assert replies[101].error.reason == reason


def test_a_node_whose_own_configuration_has_no_such_setting(
    flower: Any, caplog: pytest.LogCaptureFixture
) -> None:
    play = flower.Play()
    play.grid.contexts[101].node_config["secagg-no-such"] = 1
    reason = play.train()[101].error.reason
    assert reason == "secagg: its own configuration cannot be used; its log says why"
    assert "secagg-no-such: there is no such setting" in caplog.text


# ------------------------------------------------------------------------------------------- strategies


def single(name: str) -> Any:
    kind = getattr(strategies, name)
    if "DifferentialPrivacy" not in name:
        return kind(**{"QFedAvg": {"client_learning_rate": 0.1}}.get(name, {}))
    options = {"noise_multiplier": 0.1, "num_sampled_clients": 5}
    if "Fixed" in name:
        options["clipping_norm"] = 1.0
    return kind(FedAvg(), **options)


CURRENT = sorted(set(_SEE_SINGLE) & set(strategies.__all__))


@pytest.mark.parametrize("name", CURRENT)
def test_strategies_that_need_single_replies(flower: Any, name: str) -> None:
    play, start = flower.Play(), flower.model()
    if name.startswith("FedXgb"):
        start = ArrayRecord({"0": Array(np.zeros(9, np.uint8))})
    with pytest.raises(LocalError, match=f"^{name} .*: under secure aggregation there is only their mean$"):
        single(name).start(play.secure, start, num_rounds=1)
    assert play.grid.sent == []

    own: Any = type("MyOwn", (getattr(strategies, name),), {})
    strategy = single(name)
    strategy.__class__ = own
    with pytest.raises(LocalError, match=r"^MyOwn "):
        strategy.start(play.secure, start, num_rounds=1)
    fixed = strategies.DifferentialPrivacyClientSideFixedClipping(
        single(name), noise_multiplier=0.1, clipping_norm=1.0, num_sampled_clients=5
    )
    with pytest.raises(LocalError, match=f"^{name} "):
        fixed.start(play.secure, start, num_rounds=1)
    assert play.grid.sent == []


def test_all_that_are_refused_are_there() -> None:
    """A name of Flower's that is written wrongly here would be refused never."""
    there = set(strategies.__all__) | set(legacy.__all__)
    assert set(_SEE_SINGLE) - {"MultiKrum"} <= there
    assert len(CURRENT) >= 11


def test_a_strategy_of_the_same_name_that_is_not_flowers(flower: Any) -> None:
    """The names are Flower's; somebody's own `Krum` may be anything."""

    class Krum(FedAvg):
        pass

    Krum().start((play := flower.Play()).secure, flower.model(), num_rounds=1)
    assert play.secure.rounds[-1].aborted is None


@pytest.mark.parametrize("name", sorted(set(_SEE_SINGLE) & set(legacy.__all__)))
def test_legacy_strategies_that_need_single_replies(name: str) -> None:
    kind = getattr(legacy, name)
    start = ndarrays_to_parameters([np.zeros(3)])
    if name.startswith("DP"):
        options = {"clip_norm": 1.0} if "Fixed" in name else {}
        strategy = kind(legacy.FedAvg(), num_sampled_clients=5, **options)
    elif name.startswith("Diff"):
        options = {"clipping_norm": 1.0} if "Fixed" in name else {}
        strategy = kind(legacy.FedAvg(), noise_multiplier=0.1, num_sampled_clients=5, **options)
    else:
        strategy = kind(initial_parameters=start)
    with pytest.raises(LocalError, match=f"^{name} "):
        check_averages(strategy, 1)


# --------------------------------------------------------------------------------------------- the grid


def test_what_else_a_grid_can_do(flower: Any) -> None:
    play = flower.Play()
    message = Message(RecordDict({"arrays": flower.model()}), 101, "train")
    with pytest.raises(LocalError, match=r"^push_messages is not protected"):
        play.secure.push_messages([message])
    with pytest.raises(LocalError, match=r"^pull_messages is not protected"):
        play.secure.pull_messages(["1"])
    assert play.grid.sent == []


@pytest.mark.parametrize("kind", ["query", "query.statistics", "get_parameters", "get_properties"])
def test_kinds_of_messages(flower: Any, kind: str) -> None:
    play = flower.Play()
    with pytest.raises(LocalError, match=f"only train or evaluate messages of one kind.*got {kind}$"):
        play.send(kind, RecordDict({"arrays": flower.model()}))
    assert play.grid.sent == []


def test_two_kinds_in_one_round(flower: Any) -> None:
    play, content = flower.Play(), RecordDict({"arrays": flower.model()})
    messages = [Message(content, n, "train" if n < 103 else "evaluate") for n in play.nodes]
    with pytest.raises(LocalError, match=r"got evaluate, train$"):
        play.secure.send_and_receive(messages)
    messages = [Message(content, n, "train" if n < 103 else "train.fast") for n in play.nodes]
    with pytest.raises(LocalError, match=r"got train, train\.fast$"):
        play.secure.send_and_receive(messages)


def changed(flower: Any, how: str) -> RecordDict:
    content = RecordDict({"arrays": flower.model(), "config": ConfigRecord({"lr": 0.1, "n": 1})})
    match how:
        case "an array":
            content["arrays"]["layer.1"] = Array(content["arrays"]["layer.1"].numpy() + np.float32(1e-6))
        case "a shape":
            content["arrays"]["layer.0"] = Array(content["arrays"]["layer.0"].numpy().reshape(3, 4))
        case "the order":
            content["arrays"] = ArrayRecord(dict(reversed(content["arrays"].items())))
        case "a setting":
            content["config"]["lr"] = 0.0
        case "a type":
            content["config"]["n"] = 1.0
        case "a key":
            arrays = dict(content["arrays"].items())
            content["arrays"] = ArrayRecord({k.replace("1", "9"): a for k, a in arrays.items()})
        case "a record's name":
            content["setup"] = content.pop("config")
        case "a record's kind":
            content["config"] = MetricRecord({"lr": 0.1, "n": 1})
        case "one more":
            content["more"] = MetricRecord({"x": 1})
    return content


@pytest.mark.parametrize(
    "how",
    ["an array", "a shape", "the order", "a setting", "a type", "a key", "a record's name",
     "a record's kind", "one more"],
)  # fmt: skip
def test_different_instructions(flower: Any, how: str) -> None:
    play = flower.Play()
    messages = [Message(changed(flower, how if n == 104 else ""), n, "train") for n in play.nodes]
    with pytest.raises(LocalError, match="different instructions: a sum over those could be one node's"):
        play.secure.send_and_receive(messages)
    assert play.grid.sent == []


def test_equal_instructions_in_different_objects(flower: Any) -> None:
    play = flower.Play()
    replies = play.secure.send_and_receive([Message(changed(flower, ""), n, "train") for n in play.nodes])
    assert all(m.has_content() for m in replies)


def test_a_node_twice(flower: Any) -> None:
    play = flower.Play()
    with pytest.raises(LocalError, match="addressed twice"):
        play.train(nodes=[101, 102, 103, 103])


@pytest.mark.parametrize("count", [1, 2])
def test_too_few_nodes(flower: Any, count: int) -> None:
    """A round without a sum, after which the run goes on; nodes are not even told of it."""
    play = flower.Play(nodes=count)
    play.refused(play.train(), f"a cohort of {count}: at least 3 are needed")
    assert play.secure.rounds[-1].aborted.stage == "opening"
    fewest = {f"min_{what}_nodes": count for what in ("train", "evaluate", "available")}
    result = FedAvg(**fewest).start(play.secure, flower.model(), num_rounds=2)
    assert len(play.secure.rounds) == 5
    assert all(done.aborted.stage == "opening" for done in play.secure.rounds)
    assert not result.train_metrics_clientapp
    assert play.grid.sent == []


@pytest.mark.parametrize(
    ("records", "said"),
    [
        ({}, "expected one ArrayRecord to train on, got 0"),
        ({"a": 1.0, "b": 1.0}, "expected one ArrayRecord to train on, got 2"),
        ({"a": 1}, "there is no array of floats"),
        ({"a": None}, "there is no array of floats"),
    ],
)
def test_instructions_that_cannot_be_averaged(flower: Any, records: dict[str, Any], said: str) -> None:
    content = RecordDict(
        {
            name: ArrayRecord({} if value is None else {"w": Array(np.full(3, value))})
            for name, value in records.items()
        }
    )
    play = flower.Play()
    with pytest.raises(LocalError, match=said):
        play.send("train", content)
    assert play.grid.sent == []


@pytest.mark.parametrize(
    "array",
    [
        Array("float32", (1,), "torch.save", b"abcd"),
        Array("float32", (1,), "numpy.ndarray", b"abcd"),
        Array(np.array([1j])),
        Array(np.array(["x"])),
    ],
)
def test_arrays_that_cannot_be_read(flower: Any, array: Any) -> None:
    """The caller's mistake, like all that is wrong with an instruction."""
    play = flower.Play()
    with pytest.raises(ValueError, match="array"):
        play.send("train", RecordDict({"arrays": ArrayRecord({"w": array})}))
    assert play.grid.sent == []


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"secagg-clipping-nrom": 1.0}, "secagg-clipping-nrom: there is no such setting"),
        ({"secagg-clipping-norm": "10"}, "Expected `float`, got `str`"),
        ({"secagg-train-metrics": "loss"}, "metrics: expected name:lowest:highest"),
    ],
)
def test_settings_are_refused_early(flower: Any, config: dict[str, Any], said: str) -> None:
    grid = flower.LocalGrid(None, 3)
    with pytest.raises(LocalError, match=said):
        SecAggGrid(grid, grid.context(config))
    with pytest.raises(LocalError):
        SecAggGrid(grid, grid.context(), clipping_nrom=1.0)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"secagg-protocol": "secagg++"}, "protocol: expected one of"),
        ({"secagg-threat-model": "malicious"}, "needs identities that were agreed on"),
        ({"secagg-max-weight": -1}, "max_weight: expected an integer from 1"),
        ({"secagg-clipping-norm": -1.0}, "clipping_norm: expected a positive number"),
    ],
)
def test_settings_that_make_no_round(flower: Any, config: dict[str, Any], said: str) -> None:
    play = flower.Play(config=config)
    with pytest.raises(ValueError, match=said):
        play.train()
    assert play.grid.sent == []
    assert play.secure.rounds == []


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"secagg-corrupted": 0.9}, "corrupted"),
        ({"secagg-ring-bits": 16}, "so that no sum can wrap"),
        ({"secagg-min-included": 99}, "min_included: expected 3 to 5"),
        ({"secagg-threshold": 99}, "threshold"),
        ({"secagg-degree": 2}, "degree"),
    ],
)
def test_settings_that_make_no_round_of_these_nodes(flower: Any, config: dict[str, Any], said: str) -> None:
    """Of others, or more, they might."""
    play = flower.Play(config=config)
    play.refused(play.train(), said)
    assert play.secure.rounds[-1].aborted.stage == "opening"
    assert play.grid.sent == []


def test_a_roster_that_cannot_be_read(flower: Any, tmp_path: Any) -> None:
    grid = flower.LocalGrid(None, 3)
    for context, option in (
        ({"secagg-roster": str(tmp_path / "none")}, {}),
        ({}, {"roster": tmp_path / "none"}),
    ):
        with pytest.raises(LocalError, match="none: cannot be read"):
            SecAggGrid(grid, grid.context(context), **option)
