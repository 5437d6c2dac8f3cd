"""Rounds over Flower with noise: what it costs, who checks it, and who stops."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module
from typing import Any

import msgspec
import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg

from fedavg import accounting
from fedavg.accounting import epsilon_of
from fedavg.adapters.flower import ask, secagg_mod, statistics_app
from fedavg.adapters.flower.records import RECORD
from fedavg.adapters.opening import Opening
from fedavg.ledger import Ledger
from fedavg.statistics import Count, to_bytes
from protocols import threshold_paillier
from protocols.errors import Aborted, LocalError

NOISE = {
    "secagg-epsilon": 50.0, "secagg-delta": 1e-5, "secagg-rounds": 4, "secagg-clipping-norm": 1.0,
    "secagg-train-metrics": "", "secagg-max-weight": 0,
}  # fmt: skip
DIM = 3000


def pushing(value: float = 0.01, examples: int = 50, loss: float = 0.5) -> ClientApp:
    """Every node moves each of `DIM` parameters by `value`."""
    app = ClientApp()

    @app.train(mods=[secagg_mod])
    def train(message: Message, _: Any) -> Message:
        before = message.content["arrays"]["w"].numpy()
        arrays = ArrayRecord({"w": Array(before + value)})
        metrics = MetricRecord({"num-examples": examples, "loss": loss})
        return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)

    @app.evaluate(mods=[secagg_mod])
    def evaluate(message: Message, _: Any) -> Message:
        metrics = MetricRecord({"num-examples": examples, "accuracy": 0.75})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return app


def zeros() -> ArrayRecord:
    return ArrayRecord({"w": Array(np.zeros(DIM))})


def mean(replies: Mapping[int, Message]) -> Any:
    (first, *_) = (m for m in replies.values() if m.has_content())
    return first.content["arrays"]["w"].numpy()


def test_a_round_with_noise_of_the_planned_size(flower: Any) -> None:
    play = flower.Play(pushing(), 10, config=NOISE)
    replies = play.train(zeros())
    found = mean(replies)
    (opening,) = {opened(m).to_bytes() for n, m in play.grid.sent if RECORD in m.content.config_records}
    plan = Opening.from_bytes_checked(opening).plan
    assert plan is not None
    assert plan.colluding == 1  # a tenth may be corrupted: their noise is not counted on
    # `error` is of the sum, with the noise of all ten.
    assert np.sqrt(((found - 0.01) ** 2).mean()) == pytest.approx(plan.error / 10, rel=0.1)
    assert found.mean() == pytest.approx(0.01, abs=5 * plan.error / 10 / np.sqrt(DIM))
    assert {m.content["metrics"]["num-examples"] for m in replies.values()} == {1}


def opened(message: Message) -> Opening:
    return Opening.from_bytes_checked(bytes(message.content.config_records[RECORD]["opening"]))  # type: ignore[arg-type]


def test_noise_under_keys_of_their_own(flower: Any, sites: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same plan with threshold Paillier; one node vanishes, and no noise with it."""
    monkeypatch.setattr(threshold_paillier, "KEY_BITS", 2048)
    config = NOISE | {"secagg-protocol": "threshold-paillier", "secagg-corrupted": 0.2, "secagg-dropout": 0.2}
    play = flower.Play(pushing(), 5, config=config, folder=sites())
    play.grid.fault = lambda node, count, message: "silent" if (node, count) == (play.nodes[0], 2) else None
    found = mean(play.train(zeros()))
    assert play.secure.ledger.releases[-1].included == 4
    plan = opened(next(m for _, m in play.grid.sent if "opening" in m.content[RECORD])).plan
    assert plan is not None
    honest = 4 - plan.colluding
    least = np.sqrt(plan.variance * 4 / honest) / plan.scale / 4
    assert np.sqrt(((found - 0.01) ** 2).mean()) == pytest.approx(least, rel=0.1)


def test_a_site_stops_when_its_privacy_is_spent(flower: Any) -> None:
    """Four sums were agreed on: two of training and two of evaluation, whatever the server wants."""
    config = NOISE | {"secagg-evaluate-metrics": "accuracy:0:1"}
    play = flower.Play(pushing(), 5, config=config)
    for kind in (play.train, play.evaluate, play.train, play.evaluate):
        replies = kind(zeros()) if kind == play.train else kind()
        assert all(m.has_content() for m in replies.values())
    ledger = play.secure.ledger
    assert ledger.spent == pytest.approx(50, rel=1e-2)
    assert ledger.spent <= 50 * (1 + 1e-6)
    play.refused(play.train(zeros()), "another round would make it")  # the server's own ledger
    play.secure = play.server()  # one that forgot
    play.refused(play.train(zeros()), "another round would make it")  # every node's


def test_what_a_site_sends_is_spent_whatever_becomes_of_it(flower: Any) -> None:
    """Nobody answers after the vectors: there is no sum, but as many may hold shares of one."""
    play = flower.Play(pushing(), 5, config=NOISE, fault=lambda node, count, _: "lost" * (count == 3))
    play.refused(play.train(zeros()))
    for node in play.nodes:
        kept = play.grid.contexts[node].state.config_records[RECORD]["ledger"]
        ledger = Ledger(50.0, 1e-5, "a site's whole contribution")
        ledger.load(kept)
        assert len(ledger.releases) == 1
        assert ledger.spent == pytest.approx(epsilon_of(ledger.releases[0].mu, 1e-5))
    play = flower.Play(pushing(), 5, config=NOISE, fault=lambda node, count, _: "lost" * (count == 1))
    play.refused(play.train(zeros()))  # before any vector
    for node in play.nodes:
        assert "ledger" not in play.grid.contexts[node].state.config_records[RECORD]


def test_weights_and_metrics_inside_the_same_guarantee(flower: Any) -> None:
    """Unequal weights cost accuracy, not privacy; a weight too large is cut, where it would be refused."""
    config = NOISE | {
        "secagg-epsilon": 5e4, "secagg-max-weight": 100, "secagg-train-metrics": "loss:0:1",
    }  # fmt: skip
    app = {None: pushing(0.005, 50, 0.25), 101: pushing(0.01, 500, 0.75)}
    replies = flower.Play(app, 5, config=config).train(zeros())
    assert mean(replies).mean() == pytest.approx((4 * 50 * 0.005 + 100 * 0.01) / 300, abs=2.5e-4)
    metrics = replies[102].content["metrics"]
    assert metrics["loss"] == pytest.approx((4 * 50 * 0.25 + 100 * 0.75) / 300, abs=0.03)
    assert metrics["num-examples"] == pytest.approx(60, abs=3.5)


def test_nodes_that_vanish_take_no_noise_away(flower: Any) -> None:
    """Three of ten are gone, one after it sent its vector: the sum has the noise of the plan still."""
    gone = {101: 1, 102: 2, 103: 3}
    play = flower.Play(
        pushing(), 10, config=NOISE | {"secagg-dropout": 0.3},
        fault=lambda node, count, _: "silent" * (count >= gone.get(node, 99)),
    )  # fmt: skip
    replies = play.train(zeros())
    release = play.secure.ledger.releases[-1]
    included = release.included
    assert included == 8  # one sent its vector before it fell silent
    (first,) = {opened(m).to_bytes() for n, m in play.grid.sent if RECORD in m.content.config_records}
    plan = Opening.from_bytes_checked(first).plan
    assert plan is not None
    honest = included - plan.colluding
    least = np.sqrt(plan.variance * included / honest) / plan.scale / included
    found = np.sqrt(((mean(replies) - 0.01) ** 2).mean())
    assert 0.9 * least < found < 1.1 * least
    assert release.mu <= plan.mu * (1 + 1e-6)


def another_run(play: Any) -> None:
    """The same nodes, with nothing left of the run before but their files."""
    for node, c in list(play.grid.contexts.items()):
        play.grid.contexts[node] = Context(8, node, c.node_config, RecordDict(), c.run_config)
    play.secure = play.server(Context(8, 1, {}, RecordDict(), dict(play.config)))


def test_identities_ledgers_in_files_and_a_second_run(flower: Any, sites: Any) -> None:
    """A site's ledger stands beside its key: another run goes on from it."""
    folder = sites()
    config = NOISE | {"secagg-rounds": 2, "secagg-corrupted": 0.2}
    play = flower.Play(pushing(), 5, config=config, folder=folder)
    for _ in range(2):
        assert all(m.has_content() for m in play.train(zeros()).values())
    ledgers = sorted(folder.glob("*.ledger.json"))
    assert [path.name for path in ledgers] == [f"site-{i}.ledger.json" for i in range(5)]
    another_run(play)
    play.refused(play.train(zeros()), "another round would make it")
    content = msgspec.json.decode(ledgers[0].read_bytes())
    assert len(content["releases"]) == 2


def test_a_budget_for_several_runs(flower: Any, sites: Any) -> None:
    folder = sites()
    play = flower.Play(pushing(), 5, config=NOISE | {"secagg-rounds": 1}, folder=folder)
    for config in (c.node_config for c in play.grid.contexts.values()):
        config["secagg-epsilon-budget"] = 200.0
    assert all(m.has_content() for m in play.train(zeros()).values())
    another_run(play)
    assert all(m.has_content() for m in play.train(zeros()).values())


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"secagg-epsilon": -1.0}, "epsilon: expected a positive number"),
        ({"secagg-epsilon": 3.0, "secagg-delta": 0.0}, "delta: expected a number"),
        ({"secagg-epsilon": 3.0}, "expected how many sums"),
        ({"secagg-epsilon": 3.0, "secagg-rounds": 1, "secagg-norm": "max"}, "norm = 'l2'"),
        ({"secagg-epsilon": 3.0, "secagg-rounds": 1, "secagg-bits": 16}, "bits = 0"),
        ({"secagg-epsilon": 3.0, "secagg-rounds": 1, "secagg-ring-bits": 25}, "ring-bits: with noise"),
    ],
)
def test_settings_that_cannot_be(flower: Any, config: dict[str, Any], reason: str) -> None:
    with pytest.raises(LocalError, match=reason):
        flower.Play(config=config)


def test_nothing_to_sum_but_noise_is_refused(flower: Any) -> None:
    play = flower.Play(pushing(), 5, config=NOISE | {"secagg-evaluate-metrics": ""})
    with pytest.raises(LocalError, match="fraction_evaluate=0"):
        play.evaluate()


def test_delta_above_one_over_the_cohort_is_refused(flower: Any) -> None:
    play = flower.Play(pushing(), 5, config=NOISE | {"secagg-delta": 0.5})
    with pytest.raises(ValueError, match="delta: expected at most 1 / 5"):
        play.train(zeros())


def test_a_ring_that_cannot_be_gives_no_sum(flower: Any) -> None:
    play = flower.Play(pushing(), 5, config=NOISE | {"secagg-ring-bits": 4})
    play.refused(play.train(zeros()), "bits: 4 make the mean squared error")


def test_statistics_are_refused_where_noise_is_demanded(flower: Any) -> None:
    play = flower.Play(config=NOISE)
    with pytest.raises(LocalError, match="statistics have no noise"):
        ask(play.secure, [Count()], min_nodes=3)


# -------------------------------------------------------------------- a server that wants to learn more


def lying(play: Any, change: Any) -> None:
    """From now on all nodes are told another opening."""

    def down(node: int, count: int, message: Message) -> None:
        record = message.content.config_records.get(RECORD)
        if record is not None and "opening" in record:
            record["opening"] = msgspec.msgpack.encode(change(opened(message)), order="deterministic")

    play.grid.down = down


def with_plan(**fields: Any) -> Any:
    return lambda opening: msgspec.structs.replace(opening, plan=replace(opening.plan, **fields))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (with_plan(variance=1.0), "its noise does not give epsilon"),
        (with_plan(norm_squared=2**60), "other sums"),
        (with_plan(mu=1e-3), "its noise does not give epsilon"),
        (with_plan(mu=1e3, variance=1.0), "its noise does not give epsilon"),
        (with_plan(epsilon=1e4), "not for the guarantee"),
        (with_plan(rounds=1), "not for the guarantee"),
        (with_plan(colluding=0), "not for the guarantee"),
        (with_plan(delta=0.1), "not for the guarantee"),
        (with_plan(records=1000), "other sums"),
        (with_plan(cohort=1000), "other sums"),
        (with_plan(dim=7), "other sums"),
        (with_plan(sampling=0.01), "no sampling"),
        (with_plan(family="discrete-gaussian"), "those of discrete-gaussian are from"),
        (with_plan(rounding=1), "known rounding"),
        (with_plan(rounding=0), "other sums than this round's"),
        (with_plan(scale=float("nan")), "positive scale"),
        (with_plan(variance=float("nan")), "expected a positive variance"),
        (with_plan(variance=float("inf")), "expected a positive variance"),
        (with_plan(norm_squared=-1), "isqrt() argument"),
        (with_plan(bits=99), "bits"),
        (lambda opening: msgspec.structs.replace(opening, plan=None), "does not fit"),
    ],
)
def test_a_plan_that_gives_less_than_the_terms(flower: Any, change: Any, reason: str) -> None:
    """The server says what noise there is: every node finds out whether it is enough."""
    play = flower.Play(pushing(), 10, config=NOISE)
    lying(play, change)
    replies = play.train(zeros())
    play.refused(replies)
    assert all(reason in play.secure.rounds[-1].dropped[play.names[n]] for n in play.nodes)
    assert not any("ledger" in c.state.config_records.get(RECORD, {}) for c in play.grid.contexts.values())


@pytest.mark.parametrize(
    "terms",
    [{"epsilon": 0.0}, {"epsilon": 500.0}, {"rounds": 1}, {"delta": 1e-2}, {"clipping_norm": 100.0}],
)
def test_a_site_with_an_identity_states_its_guarantee(flower: Any, sites: Any, terms: dict[str, Any]) -> None:
    """The settings of the whole round are others than the sites' own: they refuse, whatever the plan."""
    play = flower.Play(pushing(), 5, config=NOISE, folder=sites())
    play.config |= {"secagg-" + name.replace("_", "-"): value for name, value in terms.items()}
    play.secure = play.server()
    play.refused(play.train(zeros()), "not what this site's own configuration says")


def test_a_site_that_demands_noise_gives_no_statistics(flower: Any, sites: Any) -> None:
    play = flower.Play(statistics_app(), 5, config=NOISE, folder=sites())
    play.config["secagg-epsilon"] = 0.0
    (result,) = ask(play.server(), [Count()], min_nodes=3, timeout=0.001)
    assert "epsilon: not what this site's own configuration says" in str(play.grid.said[-1][1].error.reason)
    assert not hasattr(result, "count")


def test_a_strategy_trains_to_the_end_of_the_budget(flower: Any) -> None:
    play = flower.Play(pushing(), 5, config=NOISE | {"secagg-evaluate-metrics": "accuracy:0:1"})
    result = FedAvg().start(play.secure, zeros(), num_rounds=3)
    assert [r.aborted is None for r in play.secure.rounds] == [True] * 4 + [False] * 2
    assert result.arrays["w"].numpy().shape == (DIM,)


@pytest.mark.parametrize("missing", ["dp_accounting", "scipy"])
def test_without_the_extra_a_node_says_what_is_missing(
    flower: Any, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    play = flower.Play(pushing(), 5, config=NOISE)
    plain = play.grid._handle

    def absent(name: str) -> Any:
        if name.startswith(missing):
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)
        return import_module(name)

    def handle(message: Message) -> Message | None:
        with monkeypatch.context() as patched:
            patched.setattr(accounting, "import_module", absent)
            for cached in (accounting.gaussian_factor, accounting.rounding_factor, accounting._steepest,
                           accounting._gaussian_loss):  # fmt: skip
                cached.cache_clear()
            found: Message | None = plain(message)
        return found

    play.grid._handle = handle
    play.refused(play.train(zeros()), "pip install 'secagg[dp]'")


# ------------------------------------------------------------------------- what absence would tell


def failing(how: str) -> ClientApp:
    """Node 101's app fails, in a way that depends on its data; the others push by 0.01."""
    app = ClientApp()

    @app.train(mods=[secagg_mod])
    def train(message: Message, context: Any) -> Message:
        before, metrics = message.content["arrays"]["w"].numpy(), {"num-examples": 50, "loss": 0.5}
        after = before + 0.01
        if context.node_id == 101:
            if how == "raises":
                raise RuntimeError("a rare disease was found")
            if how == "replies with an error":
                return Message(Error(1, "a rare disease"), reply_to=message)
            metrics |= {"weight": {"num-examples": 0}, "loss": {"loss": float("nan")}}.get(how, {})
            after = {"nan": np.full(DIM, np.nan), "shape": np.zeros(3)}.get(how, after)
        record = RecordDict({"arrays": ArrayRecord({"w": Array(after)}), "metrics": MetricRecord(metrics)})
        return Message(record, reply_to=message)

    return app


@pytest.mark.parametrize("how", ["raises", "replies with an error", "weight", "loss", "nan", "shape"])
def test_with_noise_a_node_whose_work_fails_is_not_missing(flower: Any, how: str) -> None:
    """A server could have it fail where the data are as it suspects: absence would tell, and cost nothing."""
    config = NOISE | {"secagg-epsilon": 5e4, "secagg-train-metrics": "loss:0:1"}
    play = flower.Play(failing(how), 5, config=config)
    replies = play.train(zeros())
    assert all(m.has_content() for m in replies.values())
    assert mean(replies).mean() == pytest.approx(0.008, abs=3e-4)  # it added zeros
    for node in play.nodes:
        assert "ledger" in play.grid.contexts[node].state.config_records[RECORD]
    plain = flower.Play(failing(how), 5)  # without noise, as ever
    assert plain.train(zeros())[101].has_error()


def test_a_plan_cannot_make_a_node_stumble_over_its_own_size(flower: Any) -> None:
    """A norm with no room for a contribution's own would tell, by who cannot round, how long theirs is."""

    def coherent(**fields: Any) -> Any:
        def change(opening: Opening) -> Opening:
            assert opening.plan is not None
            plan = replace(opening.plan, **fields)
            return msgspec.structs.replace(opening, plan=plan, bound=plan.bound)

        return change

    for fields in ({"scale": 100.0}, {"norm_squared": 1}, {"norm_squared": 1, "scale": 1e-2, "rounding": 0}):
        play = flower.Play(pushing(), 10, config=NOISE)
        lying(play, coherent(variance=1e7, **fields))
        play.refused(play.train(zeros()), "no room for what rounding adds")


def test_statistics_are_refused_with_whatever_plan(flower: Any, sites: Any) -> None:
    """The settings claim the site's own epsilon, and bring a plan, for a sum to which nothing adds noise."""
    play = flower.Play(statistics_app(), 5, config=NOISE, folder=sites())
    play.secure = play.server()
    like = Message(RecordDict({"query": ConfigRecord({"query": to_bytes(Count())})}), 101, "query.statistics")
    settings = play.secure.settings(5)
    cohort = play.secure.gather(play.nodes, like, settings)
    bare = play.secure.open(like, cohort, settings)
    forged = settings.plan(1, 0, bare.session("flower/7/query.statistics", play.secure._roster))
    opening = msgspec.structs.replace(bare, length=forged.dim, bound=forged.bound, plan=forged)
    assert isinstance(play.secure.sum(like, cohort, opening, 0.001), Aborted)
    assert "not answered where noise is demanded" in str(play.grid.said)


def test_a_ledger_that_cannot_be_used_is_not_described_to_the_server(flower: Any, sites: Any) -> None:
    folder = sites()
    play = flower.Play(pushing(), 5, config=NOISE, folder=folder)
    for i in range(5):
        (folder / f"site-{i}.ledger.json").write_text("{}")
    play.refused(play.train(zeros()), "its ledger of privacy cannot be used; its log says why")
    assert not any(str(folder) in str(m.error.reason) for _, m in play.grid.said if m.has_error())


def test_a_budget_is_raised_between_runs(flower: Any, sites: Any) -> None:
    play = flower.Play(pushing(), 5, config=NOISE | {"secagg-rounds": 1}, folder=sites())
    assert all(m.has_content() for m in play.train(zeros()).values())
    another_run(play)
    play.refused(play.train(zeros()), "another round would make it")
    for config in (c.node_config for c in play.grid.contexts.values()):
        config["secagg-epsilon-budget"] = 200.0
    another_run(play)
    assert all(m.has_content() for m in play.train(zeros()).values())
