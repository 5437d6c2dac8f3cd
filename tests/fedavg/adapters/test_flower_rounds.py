"""Rounds over Flower in which nothing goes wrong: strategies, kinds of models, protocols, sizes, state."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import fixedclipping_mod
from flwr.common.serde import message_to_proto
from flwr.serverapp import strategy as strategies
from flwr.serverapp.strategy import (
    DifferentialPrivacyClientSideFixedClipping,
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedProx,
    FedYogi,
)

from fedavg.adapters.flower import SecAggGrid, secagg_mod
from protocols import pairwise, session, threshold_paillier
from secagg.ring import Ring


@pytest.mark.parametrize(
    ("strategy", "options"),
    [
        (FedAvg, {}),
        (FedAdam, {}),
        (FedAvgM, {"server_momentum": 0.9, "server_learning_rate": 0.7}),
        (FedYogi, {}),
        (FedAdagrad, {}),
        (FedProx, {"proximal_mu": 0.1}),
    ],
)
def test_an_untouched_strategy_gets_what_it_would_have(flower: Any, strategy: Any, options: Any) -> None:
    plain = flower.LocalGrid(flower.make_app(), 5)
    expected = strategy(**options).start(plain, flower.model(), num_rounds=3)
    play = flower.Play()
    found = strategy(**options).start(play.secure, flower.model(), num_rounds=3)
    for key, array in expected.arrays.items():
        np.testing.assert_allclose(found.arrays[key].numpy(), array.numpy(), atol=2e-5)
        assert found.arrays[key].dtype == array.dtype
    for n in (1, 2, 3):
        for name, after in (("loss", "train_metrics_clientapp"), ("accuracy", "evaluate_metrics_clientapp")):
            one, two = getattr(found, after)[n], getattr(expected, after)[n]
            assert one[name] == pytest.approx(two[name], abs=1e-6)
    assert [len(r.included) for r in play.secure.rounds] == [5] * 6
    assert [r.number for r in play.secure.rounds] == [1, 1, 2, 2, 3, 3]
    assert {r.task for r in play.secure.rounds} == {"flower/7/train", "flower/7/evaluate"}


def test_all_strategies_of_flower_are_known_here() -> None:
    """A new one must be looked at: does it average, or need single replies?"""
    tested = {"FedAvg", "FedAdam", "FedAvgM", "FedYogi", "FedAdagrad", "FedProx",
              "DifferentialPrivacyClientSideFixedClipping"}  # fmt: skip
    refused = {"Bulyan", "DifferentialPrivacyClientSideAdaptiveClipping",
               "DifferentialPrivacyServerSideAdaptiveClipping", "DifferentialPrivacyServerSideFixedClipping",
               "FedMedian", "FedTrimmedAvg", "FedXgbBagging", "FedXgbCyclic", "Krum", "MultiKrum",
               "QFedAvg"}  # fmt: skip
    assert set(strategies.__all__) - {"Strategy", "Result"} == tested | refused


def test_clipping_inside_with_noise_of_the_server(flower: Any) -> None:
    """The wrapper sends each round's clipping norm; the mod inside clips to it before anything is masked."""
    norm, found = 0.05, []
    for mods, secure in (([fixedclipping_mod], False), ([secagg_mod, fixedclipping_mod], True)):
        play = flower.Play(flower.make_app(*mods))
        strategy = DifferentialPrivacyClientSideFixedClipping(
            FedAvg(), noise_multiplier=0.0, clipping_norm=norm, num_sampled_clients=5
        )
        result = strategy.start(play.secure if secure else play.grid, flower.model(), num_rounds=1)
        found.append([a.numpy() for a in result.arrays.values()])
    change = [a - b.numpy() for a, b in zip(found[1], flower.model().values(), strict=True)]
    assert 0 < np.sqrt(sum((c**2).sum() for c in change)) <= norm * (1 + 1e-3)
    for one, two in zip(*found, strict=True):
        np.testing.assert_allclose(one, two, atol=1e-5)


def test_kinds_of_arrays(flower: Any) -> None:
    """Integers stay as the server sent them; each float comes back in the precision in which it was sent."""
    record = ArrayRecord(
        {
            "half": Array(np.linspace(-1, 1, 7, dtype=np.float16)),
            "single": Array(np.ones((2, 0, 3), np.float32)),
            "double": Array(np.linspace(-1, 1, 6).reshape(2, 3)),
            "counter": Array(np.array(2**62 + 1)),
            "scalar": Array(np.array(0.5)),
            "bytes": Array(np.arange(256, dtype=np.uint8)),
        }
    )
    play = flower.Play()
    play.check(play.train(record), play.nodes, record)


def test_booleans_stay(flower: Any) -> None:
    record = ArrayRecord({"mask": Array(np.array([True, False])), "w": Array(np.zeros(3, np.float32))})
    app = ClientApp()

    @app.train(mods=[secagg_mod])
    def train(message: Message, context: Context) -> Message:
        arrays = ArrayRecord({"mask": Array(np.array([False, False])), "w": Array(np.ones(3, np.float32))})
        metrics = MetricRecord({"num-examples": 1, "loss": 0.5})
        return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)

    replies = flower.Play(app).train(record)
    for m in replies.values():
        assert m.content["arrays"]["mask"].numpy().tolist() == [True, False]
        np.testing.assert_allclose(m.content["arrays"]["w"].numpy(), 1, atol=1e-4)


def test_an_app_may_answer_in_another_precision(flower: Any) -> None:
    """FedAdam sends float64 from its second round on, to apps that train in float32."""
    record = ArrayRecord({"w": Array(np.zeros(3))})
    app = ClientApp()

    @app.train(mods=[secagg_mod])
    def train(message: Message, context: Context) -> Message:
        arrays = ArrayRecord({"w": Array(np.ones(3, np.float32))})
        metrics = MetricRecord({"num-examples": 1, "loss": 0.5})
        return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)

    for m in flower.Play(app).train(record).values():
        assert m.content["arrays"]["w"].dtype == "float64"
        np.testing.assert_allclose(m.content["arrays"]["w"].numpy(), 1, atol=1e-4)


@pytest.mark.parametrize("protocol", sorted(session._HOMES))
def test_every_protocol_by_the_one_setting(
    flower: Any, sites: Any, protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    signed = protocol == "threshold-paillier"  # its lists are, so nodes have identities
    monkeypatch.setattr(threshold_paillier, "KEY_BITS", 2048)
    play = flower.Play(config={"secagg-protocol": protocol}, folder=sites() if signed else None)
    play.check(play.train(), play.nodes)


def test_a_sparse_graph(flower: Any) -> None:
    """From fifty nodes on, SecAgg+ masks with few of them."""
    config = {"secagg-protocol": "secagg+", "secagg-corrupted": 0.05, "secagg-dropout": 0.05}
    play = flower.Play(nodes=60, config=config)
    play.grid.fault = lambda node, count, message: "silent" if node == 160 else None
    play.check(play.train(), play.nodes[:-1])


def test_no_protocol_is_known_to_the_adapter() -> None:
    """A protocol is a setting: no file here names one of its stages."""
    stages = {*pairwise._CLIENT_STAGES.values(), *pairwise._SERVER_STAGES.values()} - {"roster"}  # a file too
    folder = Path(__file__).parents[3] / "fedavg" / "adapters"
    files = [folder / "opening.py", *sorted((folder / "flower").glob("*.py"))]
    assert len(files) > 5
    for file in files:
        tree = ast.parse(file.read_text())
        found = {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
        assert not found & stages, file
        assert "pairwise" not in file.read_text()


def test_masked_vectors_are_packed(flower: Any) -> None:
    """What a node sends is three hundredths more than its vector at most, at 100,000 parameters."""
    record = ArrayRecord({"w": Array(np.zeros(100_000, np.float32))})
    play = flower.Play(nodes=3, config={"secagg-clipping-norm": 100.0})
    replies = play.train(record)
    play.check(replies, play.nodes, record)
    largest = max(message_to_proto(m).ByteSize() for _, m in play.grid.said)
    packed = Ring(32).packed_size(100_002)
    assert packed < largest <= 1.03 * packed


def test_fresh_keys_in_each_round(flower: Any) -> None:
    play = flower.Play(nodes=3)
    play.train()
    play.train()
    first = [m.content["secagg.envelopes"]["0"].data for n, m in play.grid.said if n == 101]
    assert len(first) == 8
    assert len({d[-64:] for d in first}) == 8
    bodies = [d[d.index(b"101server") :] for d in (first[0], first[4])]
    assert bodies[0] != bodies[1]


def test_replies_are_each_its_own(flower: Any) -> None:
    """Strategies empty or replace records of a reply; another's stays whole."""
    play = flower.Play()
    one, two, *_ = play.train().values()
    one.content["metrics"]["num-examples"] = -1
    one.content["arrays"].clear()
    assert two.content["metrics"]["num-examples"] > 0
    assert list(two.content["arrays"]) == list(flower.model())


def test_some_of_the_nodes(flower: Any) -> None:
    play = flower.Play(nodes=6)
    some = play.nodes[1:5]
    play.check(play.train(nodes=some), some)
    assert [n for n in play.nodes if play.grid.counts[n]] == some


def test_nobody_asked(flower: Any) -> None:
    play = flower.Play()
    assert list(play.secure.send_and_receive([])) == []
    assert play.secure.rounds == []


def test_named_functions_of_an_app(flower: Any) -> None:
    """`train.fast` is a task of its own."""
    app = ClientApp()

    @app.train("fast", mods=[secagg_mod])
    def fast(message: Message, context: Context) -> Message:
        content = RecordDict({"arrays": message.content["arrays"],
                              "metrics": MetricRecord({"num-examples": 1, "loss": 0.25})})  # fmt: skip
        return Message(content, reply_to=message)

    play = flower.Play(app)
    replies = play.send("train.fast", RecordDict({"arrays": flower.model()}))
    for m in replies.values():
        assert m.content["metrics"]["loss"] == pytest.approx(0.25, abs=1e-6)
    assert play.secure.rounds[-1].task == "flower/7/train.fast"


def test_the_record_may_have_any_name_and_metrics_any_weight(flower: Any) -> None:
    app = ClientApp()

    @app.train(mods=[secagg_mod])
    def train(message: Message, context: Context) -> Message:
        assert message.content["setup"]["epochs"] == [1, 2]
        content = RecordDict(
            {"weights": message.content["weights"], "m": MetricRecord({"n": context.node_id})}
        )
        return Message(content, reply_to=message)

    config = {"secagg-weight-key": "n", "secagg-train-metrics": ""}
    play = flower.Play(app, config=config)
    content = RecordDict({"weights": flower.model(), "setup": ConfigRecord({"epochs": [1, 2], "x": b"\x00"})})
    for m in play.send("train", content).values():
        assert set(m.content) == {"weights", "metrics"}
        assert dict(m.content["metrics"]) == {"n": 103.0}


def test_the_grid_is_one(flower: Any) -> None:
    play = flower.Play()
    assert isinstance(play.secure, SecAggGrid)
    assert list(play.secure.get_node_ids()) == play.nodes
    assert [n.node_id for n in play.secure.get_nodes()] == play.nodes
    assert play.secure.run.run_id == 7
    with pytest.raises(NotImplementedError):
        play.secure.set_run(8)  # goes to Flower's own
    made = play.secure.create_message(RecordDict(), "train", 101, "g", 5.0)
    assert (made.metadata.dst_node_id, made.metadata.group_id, made.metadata.ttl) == (101, "g", 5.0)
