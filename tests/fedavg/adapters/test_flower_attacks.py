"""Attacks on the Flower adapter by a server or a node, one by one: what it would learn or end, and does not.

A server here chooses what is sent to whom, the run's configuration at each node, and the settings.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common import (
    Code,
    EvaluateRes,
    FitRes,
    Status,
    ndarrays_to_parameters,
)
from flwr.compat.common import recorddict_compat as compat
from flwr.server import strategy as legacy
from flwr.serverapp.strategy import DifferentialPrivacyClientSideFixedClipping, FedAvg
from flwr.supercore import privacy_accounting as accounting
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

from fedavg import statistics as st
from fedavg.adapters.flower import ask, grid, secagg_mod, statistics_app
from fedavg.adapters.flower.mod import take_part
from fedavg.adapters.flower.records import RECORD, _numbers
from fedavg.adapters.flower.strategies import check_averages
from fedavg.adapters.flower.workflow import _WorkflowGrid
from fedavg.adapters.opening import Opening, Settings
from fedavg.adapters.site import Site
from fedavg.budget import Budget
from protocols.errors import Aborted, LocalError
from protocols.roster import read_party

Sites = Callable[[], Path]

OTHER_INSTRUCTION = "secagg: the instruction is not the one that the round was opened for"


def replying(metrics: Callable[[int], dict[str, Any]]) -> ClientApp:
    """Leaves the arrays as they are; metrics by node."""
    app = ClientApp()

    @app.train(mods=[secagg_mod])
    def train(message: Message, context: Context) -> Message:
        content = RecordDict({"arrays": message.content["arrays"],
                              "metrics": MetricRecord(metrics(context.node_id))})  # fmt: skip
        return Message(content, reply_to=message)

    @app.evaluate(mods=[secagg_mod])
    def evaluate(message: Message, context: Context) -> Message:
        content = RecordDict({"metrics": MetricRecord(metrics(context.node_id))})
        return Message(content, reply_to=message)

    return app


def nothing_told(play: Any, replies: dict[int, Message], reason: str) -> None:
    """The same error from each: nothing by which one could be told from another."""
    play.refused(replies)
    assert {m.error.reason for m in replies.values()} == {reason}


# ---------------------------------------------------------------------------- one node is told something else


def stepping(rate: Callable[[Message, Context], float]) -> ClientApp:
    app = ClientApp()

    @app.train(mods=[secagg_mod])
    def train(message: Message, context: Context) -> Message:
        w = message.content["arrays"]["w"].numpy() + rate(message, context) * np.arange(1, 5)
        content = RecordDict({"arrays": ArrayRecord({"w": Array(w.astype(np.float32))}),
                              "metrics": MetricRecord({"num-examples": 100, "loss": 0.5})})  # fmt: skip
        return Message(content, reply_to=message)

    return app


def untold(play: Any) -> None:
    """Node 103 alone was to move: it is not in the sum, and the sum does not move."""
    replies = play.train(ArrayRecord({"w": Array(np.zeros(4, np.float32))}))
    assert replies[103].error.reason == OTHER_INSTRUCTION
    assert len(play.secure.rounds[-1].included) == 4
    mean = replies[101].content["arrays"]["w"].numpy()
    np.testing.assert_allclose(mean, 0, atol=1e-6)


def test_one_node_is_told_another_learning_rate_by_run_config(flower: Any, sites: Sites) -> None:
    """Were it in the sum, all others moving by nothing, the sum would be its update."""
    app = stepping(lambda message, context: float(context.run_config["learning-rate"]))
    play = flower.Play(app, folder=sites(), config={"learning-rate": 0.0})
    play.grid.contexts[103].run_config["learning-rate"] = 0.1
    untold(play)


def test_one_node_is_told_something_by_group_id(flower: Any, sites: Sites) -> None:
    """An app can read a message's group; it is as good as another learning rate."""
    play = flower.Play(stepping(lambda message, context: float(message.metadata.group_id == "1")),
                       folder=sites())  # fmt: skip

    def down(node: int, count: int, message: Message) -> None:
        message.metadata.__dict__["_group_id"] = "1" if node == 103 else ""

    play.grid.down = down
    untold(play)


# ------------------------------------------------------------------------------------------- floors


@pytest.mark.parametrize(("policy", "least", "offered"), [
    ("malicious, cohort:5, included:5, corrupted:0.2", 0.2, 0.05), (None, 0.1, 0.0),
])  # fmt: skip
def test_a_small_cohort_out_of_a_large_roster_meets_no_floor(
    flower: Any, sites: Sites, policy: str | None, least: float, offered: float
) -> None:
    """Of a cohort of five, a fifth is one; of a roster of twenty it is four: all the others in the cohort."""
    config = {"secagg-corrupted": offered, "secagg-dropout": 0.0}
    play = flower.Play(nodes=20, folder=sites(), policy=policy, config=config)
    replies = play.train(nodes=play.nodes[:5])
    said = f"secagg: policy: corrupted must be at least {least}, the settings have {offered}"
    nothing_told(play, replies, said)


# ------------------------------------------------------------------------- settings that make a sum tell


HONEST = {"secagg-clipping-norm": 10.0, "secagg-norm": "max", "secagg-max-weight": 1 << 14}
ATTACKS: dict[str, dict[str, Any]] = {
    "signs by a tiny clipping norm": {"secagg-clipping-norm": 1e-9},
    "a weight by max_weight": {"secagg-max-weight": 137},
    "a metric by weight_key": {"secagg-weight-key": "deaths"},
    "a metric by its range": {"secagg-train-metrics": "loss:0:1, deaths:0:1"},
    "a rounding by bits": {"secagg-bits": 2},
    "another norm": {"secagg-norm": "l2"},
}


def counting(flower: Any, **options: Any) -> Any:
    """Nodes whose weights and numbers of deaths a server bisects: one that is above a bound errs."""
    app = replying(lambda n: {"num-examples": 100 + n * 7 % 90, "deaths": n - 100, "loss": 0.5})
    return flower.Play(app, config=HONEST, **options)


def offer(play: Any, settings: dict[str, Any]) -> None:
    """The server's settings from now on, which are the run's for all nodes too."""
    for context in (play.secure._context, *play.grid.contexts.values()):
        context.run_config.update(settings)


@pytest.mark.parametrize("attack", ATTACKS)
def test_settings_that_are_not_a_sites_own(flower: Any, sites: Sites, attack: str) -> None:
    play = counting(flower, folder=sites())
    offer(play, ATTACKS[attack])
    (key,) = ATTACKS[attack]
    nothing_told(play, play.train(), f"secagg: settings: {key}: not what this site's own configuration says")
    offer(play, play.config | {"secagg-weight-key": "num-examples", "secagg-bits": 0})
    assert play.train()[101].has_content()


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_site_that_says_nothing_of_settings_has_the_defaults(
    flower: Any, sites: Sites, attack: str
) -> None:
    play = flower.Play(folder=sites())
    for context in play.grid.contexts.values():
        for key in [k for k in context.node_config if k in play.config]:
            del context.node_config[key]
    other = {k: v for k, v in ATTACKS[attack].items() if k != "secagg-norm"} or {"secagg-norm": "max"}
    offer(
        play, {"secagg-max-weight": 10_000, "secagg-train-metrics": "", "secagg-evaluate-metrics": ""} | other
    )
    (key,) = other
    nothing_told(play, play.train(), f"secagg: settings: {key}: not what this site's own configuration says")


@pytest.mark.parametrize("attack", ATTACKS)
def test_settings_that_change_within_a_run(flower: Any, attack: str) -> None:
    """Bisection takes many rounds: a node without an identity agrees to what comes first, and no other."""
    play = counting(flower)
    assert play.train()[101].has_content()
    before = dict(play.secure._context.run_config)
    offer(play, ATTACKS[attack])
    for _ in range(2):
        nothing_told(play, play.train(), "secagg: the settings are not those of this run's first round")
    nothing_told(play, play.evaluate(), "secagg: the settings are not those of this run's first round")
    offer(play, {"secagg-weight-key": "num-examples", "secagg-bits": 0} | before)
    assert play.train()[101].has_content()


def test_a_metric_is_named_as_the_weight(flower: Any, sites: Sites) -> None:
    """Its weighted mean would be a sum of squares; and, of two honest nodes, both weights."""
    for key, metrics in (("num-examples", "num-examples:0:1000"), ("n", "loss:0:1, n:0:9"),
                         ("n", "num_examples:0:9")):  # fmt: skip
        config = {"secagg-weight-key": key, "secagg-train-metrics": metrics}
        with pytest.raises(LocalError, match="a weight cannot be a metric too"):
            flower.Play(config=config)
        with pytest.raises(LocalError, match="a weight cannot be a metric too"):
            Settings(weight_key=key, evaluate_metrics=metrics)

    def down(node: int, count: int, message: Message) -> None:
        if (record := message.content.config_records.get(RECORD)) is not None and "opening" in record:
            opening = msgspec.msgpack.decode(record["opening"])
            opening["settings"]["train_metrics"] = "num-examples:0:1000"
            record["opening"] = msgspec.msgpack.encode(opening, order="deterministic")

    play = flower.Play()
    play.grid.down = down
    nothing_told(play, play.train(), "secagg: the opening of the round cannot be decoded")


# ----------------------------------------------------------------------------------------- statistics


SIZES = {101: 37, 102: 53, 103: 64, 104: 77, 105: 41}


def tables(flower: Any, tmp_path: Path, **options: Any) -> Any:
    paths = {node: tmp_path / f"{node}.csv" for node in SIZES}
    for node, path in paths.items():
        path.write_text("age\n" + "".join(f"{20 + i % 60}\n" for i in range(SIZES[node])))
    config = {"secagg-max-records": options.pop("most", 1000)}
    return flower.Play(statistics_app(lambda context: paths[context.node_id]), config=config, **options)


def test_records_by_max_records_cost_what_answers_cost(flower: Any, tmp_path: Path) -> None:
    """A server that asks in steps how many records a node has pays for each, and needs as many runs."""
    for most in (30, 50, 70):
        play = tables(flower, tmp_path, most=most)
        ask(play.secure, [st.Count()])
    for node in SIZES:
        assert Budget(20, tmp_path / f"{node}.budget").spent == 3
    play.secure = play.server(max_records=60)
    del play.config["secagg-max-records"]
    for context in (*play.grid.contexts.values(), play.secure._context):
        del context.run_config["secagg-max-records"]
    (none,) = ask(play.secure, [st.Count()])
    assert isinstance(none, Aborted)
    assert "not those of this run's first round" in play.secure.rounds[-1].dropped["101"]


def test_records_by_max_records_with_an_identity(flower: Any, sites: Sites, tmp_path: Path) -> None:
    for own in (None, 100):
        for most in (30, 50, 9_999):
            play = tables(flower, tmp_path, most=most, folder=sites())
            for context in play.grid.contexts.values():
                context.node_config.pop("secagg-max-records", None)
                context.node_config.update({} if own is None else {"secagg-max-records": own})
            (none,) = ask(play.secure, [st.Count()])
            assert isinstance(none, Aborted)
            assert all("secagg-max-records: not what" in r for r in play.secure.rounds[-1].dropped.values())
    assert not list(tmp_path.glob("*.budget"))
    (count,) = ask(tables(flower, tmp_path, most=100, folder=sites()).secure, [st.Count()])
    assert isinstance(count, st.Counted)
    assert count.count == sum(SIZES.values())


def test_one_node_ends_no_row_of_queries(flower: Any, tmp_path: Path) -> None:
    """What it sends is more than there can be: that query has no result, and those after it have."""
    bad = ClientApp()

    @bad.query("statistics")
    def lies(message: Message, context: Context) -> Message:
        def make(instruction: RecordDict, opening: Opening, site: Site) -> Any:
            return lambda: np.full(opening.length, opening.bound - 1)

        return take_part(message, context, make)

    play = tables(flower, tmp_path)
    play.grid.app = {103: bad, None: play.grid.app}
    edges = tuple(float(e) for e in range(0, 100, 5))
    none, count = ask(play.secure, [st.Histogram("age", edges), st.Count()])
    assert isinstance(none, Aborted)
    assert none.stage == "sum"
    assert isinstance(count, st.Counted)
    assert count.sites == 5


def test_one_silent_node_holds_up_no_query(
    flower: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that goes as fast as anyone sleeps."""
    assert signature(ask).parameters["timeout"].default == 600
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds
        assert now[0] < 1000, "it waits and waits"

    monkeypatch.setattr(grid, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=sleep))
    play = tables(
        flower, tmp_path, fault=lambda n, count, message: "silent" if n == 103 and count == 2 else None
    )
    (count,) = ask(play.secure, [st.Count()])
    assert isinstance(count, st.Counted)
    assert count.count == sum(SIZES.values()) - SIZES[103]
    assert 500 < now[0] < 700


# ------------------------------------------------------------------------------------------------ texts


WORDS = "patient Jane Doe has glucose=412"


def test_texts_of_an_app_that_replies_with_an_error(flower: Any, caplog: pytest.LogCaptureFixture) -> None:
    app = ClientApp()

    @app.train(mods=[secagg_mod])
    def train(message: Message, context: Context) -> Message:
        if context.node_id == 102:
            return Message(Error(71, WORDS), reply_to=message)
        metrics = MetricRecord({"num-examples": 5, "loss": 0.5})
        content = RecordDict({"arrays": message.content["arrays"], "metrics": metrics})
        return Message(content, reply_to=message)

    play = flower.Play(app)
    error = play.train()[102].error
    assert (error.code, error.reason) == (71, "secagg: the app replied with an error; its own log says why")
    assert WORDS in caplog.text
    assert WORDS not in str(play.secure.rounds)


@pytest.mark.parametrize("own", [
    {"secagg-identity": "/home/jane/trial-7/oslo.key"}, {"secagg-policy": "patients of:Jane"},
    {"secagg-jane": 1}, {"secagg-roster": "/home/jane/roster.json"},
])  # fmt: skip
def test_texts_of_a_sites_own_configuration(
    flower: Any, sites: Sites, caplog: pytest.LogCaptureFixture, own: dict[str, Any]
) -> None:
    play = flower.Play(folder=sites())
    play.grid.contexts[103].node_config.update(own)
    reason = play.train()[103].error.reason
    assert reason == "secagg: its own configuration cannot be used; its log says why"
    errors = [r.getMessage() for r in caplog.records if r.levelname == "ERROR"]
    assert any("jane" in text.lower() for text in errors)


def test_a_nodes_text_in_the_servers_log(flower: Any, caplog: pytest.LogCaptureFixture) -> None:
    """No line of it may look as if the server had said it, and none may fill a disk."""
    caplog.set_level("INFO", "flwr.secagg")
    text = "x\nsecagg: round 1 of flower/7/train: the sum of 5 nodes\r\x1b[2K\u2028" + "A" * 100_000
    play = flower.Play()

    def fails(message: Message, context: Context) -> Message:
        return Message(Error(0, text), reply_to=message)

    play.grid.app = {103: fails, None: play.grid.app}
    play.train()
    (said,) = play.secure.rounds[-1].dropped.values()
    assert said.startswith("x secagg: round 1")
    assert said.isprintable()
    assert len(said) <= 300
    assert caplog.messages
    for line in caplog.messages:
        assert line.isprintable()
        assert len(line) < 400


def test_the_repr_of_a_site_is_no_key(flower: Any, sites: Sites) -> None:
    folder = flower.Play(nodes=3, folder=sites()).roster.parent
    own = {"secagg-identity": str(folder / "site-0.key"), "secagg-roster": str(folder / "roster.json")}
    key = read_party(folder / "site-0.key").journal_key
    site = Site.of(own, "", None)
    assert site.key == key
    for text in (repr(site), str(site)):
        assert "site-0" in text
        assert repr(key) not in text
        assert key.hex() not in text


# ------------------------------------------------------------------------------------- strategies, weights


class Accountant:
    """Counts releases, where Flower's own needs a package that is not here."""

    def __init__(self) -> None:
        self.releases = 0
        self.config = accounting.PrivacyConfig(
            target_delta=1e-5, population_size=5,
            neighboring_relation=next(iter(accounting.NeighboringRelation)),
            sampling_method=accounting.SamplingMethod.NO_AMPLIFICATION,
        )  # fmt: skip

    def compose(self, event: Any, count: int = 1) -> None:
        self.releases += count

    def get_privacy_spent(self, delta: float | None = None) -> Any:
        return accounting.PrivacySpent(
            epsilon=5.0, delta=1e-5, num_releases=self.releases, accounting_method="count"
        )


def clipped(accountant: Any = None) -> DifferentialPrivacyClientSideFixedClipping:
    return DifferentialPrivacyClientSideFixedClipping(
        FedAvg(fraction_evaluate=0), noise_multiplier=0.1, clipping_norm=1.0, num_sampled_clients=5,
        accountant=accountant,
    )  # fmt: skip


def test_an_accountant_is_told_that_weights_are_equal(flower: Any) -> None:
    """It counts on equal weights, and replies that are all alike look so whatever they were."""
    app = replying(lambda node: {"num-examples": 996 if node == 105 else 1, "loss": 0.5})
    play, accountant = flower.Play(app), Accountant()
    with pytest.raises(LocalError, match=r"accounts for equal weights.*set secagg-max-weight = 1"):
        clipped(accountant).start(play.secure, flower.model(), num_rounds=1)
    assert play.grid.sent == []
    play = flower.Play(app, config={"secagg-max-weight": 1})
    clipped(accountant).start(play.secure, flower.model(), num_rounds=1)
    assert set(play.secure.rounds[0].dropped) == {"105"}  # its weight is not 1
    play = flower.Play(
        replying(lambda node: {"num-examples": 1, "loss": 0.5}), config={"secagg-max-weight": 1}
    )
    clipped(accountant).start(play.secure, flower.model(), num_rounds=1)
    assert len(play.secure.rounds[0].included) == 5
    assert accountant.releases == 1
    play = flower.Play(app)
    clipped().start(play.secure, flower.model(), num_rounds=1)
    assert len(play.secure.rounds[0].included) == 5


def test_a_strategy_that_takes_means_without_weights() -> None:
    strategy = legacy.DPFedAvgFixed(legacy.FedAvg(), 5, 1.0)
    with pytest.raises(LocalError, match=r"^DPFedAvgFixed takes a mean without weights"):
        check_averages(strategy, 1)


def test_a_weight_of_another_name(flower: Any) -> None:
    """A strategy finds it in the replies under the name that it was told."""
    app = replying(lambda node: {"n": node - 100, "loss": 1 / node, "accuracy": 0.5})
    play = flower.Play(app, config={"secagg-weight-key": "n"})
    result = FedAvg(weighted_by_key="n").start(play.secure, flower.model(), num_rounds=1)
    loss = sum((n - 100) / n for n in play.nodes) / 15
    assert result.train_metrics_clientapp[1]["loss"] == pytest.approx(loss, abs=1e-6)
    assert result.evaluate_metrics_clientapp[1]["accuracy"] == pytest.approx(0.5, abs=1e-6)


def test_a_metric_in_the_name_of_the_legacy_weight_or_loss() -> None:
    status = Status(Code.OK, "")
    fit = FitRes(status, ndarrays_to_parameters([np.zeros(2)]), 500, {"num_examples": 7, "loss": 0.1})
    found = _numbers(compat.fitres_to_recorddict(fit, keep_input=False))
    assert (found["num_examples"], found["loss"]) == (500, 0.1)
    evaluated = EvaluateRes(status, 2.5, 500, {"loss": 0.1, "num_examples": 9})
    found = _numbers(compat.evaluateres_to_recorddict(evaluated))
    assert (found["num_examples"], found["loss"]) == (500, 2.5)


# ----------------------------------------------------------------------------------- the end of a whole run


@pytest.mark.parametrize("pinned", [False, True])
def test_one_node_less_than_the_fewest_ends_no_run(flower: Any, sites: Sites, pinned: bool) -> None:
    play = flower.Play(
        folder=sites() if pinned else None, config={"secagg-min-included": 5, "secagg-dropout": 0.0},
        fault=lambda node, count, message: "silent" if node == 103 else None,
    )  # fmt: skip
    FedAvg(fraction_evaluate=0).start(play.secure, flower.model(), num_rounds=2)
    play.grid.fault = lambda node, count, message: None
    assert [done.aborted is None for done in play.secure.rounds] == [False, False]
    play.check(play.train(), play.nodes)
    if not pinned:  # a node that is not even there
        play.grid.nodes.pop()
        FedAvg(fraction_evaluate=0).start(play.secure, flower.model(), num_rounds=1)
        assert "min_included: expected 3 to 4" in str(play.secure.rounds[-1].aborted)


def test_a_cohort_too_small_for_the_workflow(flower: Any) -> None:
    play = flower.Play(nodes=2)
    play.secure = _WorkflowGrid(play.grid, play.grid.context(play.config), (3, 2, 0.001), None, {})
    play.refused(play.train(), "a cohort of 2: at least 3 are needed")
    assert play.grid.sent == []


def as_flower_pulls(play: Any, unreadable: int) -> None:
    """Replies by way of Flower's objects, each given out once; those of one node cannot be inflated."""
    given: set[str] = set()
    pull = play.grid.pull_messages

    def objects(reply: Message) -> Message:
        contents = {o.object_id: o.deflate() for o in get_all_nested_objects(reply).values()}
        if reply.metadata.src_node_id == unreadable:
            record = next(k for k, v in contents.items() if v.startswith(b"RecordDict"))
            head, body = contents[record].split(b"\x00", 1)
            contents[record] = head + b"\x00" + b"\xff" * len(body)
        found = inflate_object_from_contents(reply.object_id, contents)
        assert isinstance(found, Message)
        return found

    def pull_messages(ids: Any) -> list[Message]:
        again = [
            Message(Error(0, "unavailable"), reply_to=m)
            for m in asked
            if m.metadata.message_id in given & set(ids)
        ]
        came = pull(set(ids) - given)
        given.update(m.metadata.reply_to_message_id for m in came)
        return again + [objects(m) for m in came]

    asked: list[Message] = []
    push = play.grid.push_messages

    def push_messages(messages: Any) -> Any:
        messages = list(messages)
        asked.extend(messages)
        return push(messages)

    play.grid.pull_messages, play.grid.push_messages = pull_messages, push_messages


def test_a_reply_that_flower_cannot_inflate(flower: Any) -> None:
    """It takes with it what was pulled together, once; then its node is found, and the others go on."""
    play = flower.Play()
    as_flower_pulls(play, 103)
    FedAvg(fraction_evaluate=0).start(play.secure, flower.model(), num_rounds=1)
    assert play.secure.rounds[-1].aborted is not None
    replies = play.train()
    play.check(replies, [101, 102, 104, 105])
    assert replies[103].error.reason.startswith("secagg: unreadable (")


def test_a_grid_that_fails_is_no_nodes_doing(flower: Any) -> None:
    play = flower.Play()

    def pull_messages(ids: Any) -> list[Message]:
        raise ConnectionError("the SuperLink is gone")

    play.grid.pull_messages = pull_messages
    with pytest.raises(ConnectionError, match="the SuperLink is gone"):
        play.train()
