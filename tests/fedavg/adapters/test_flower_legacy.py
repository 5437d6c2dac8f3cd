"""Flower's legacy API: `SecAggPlusWorkflow` in the place of Flower's own class of that name."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
from flwr.app import Message
from flwr.client import NumPyClient
from flwr.clientapp import ClientApp
from flwr.common import ndarrays_to_parameters
from flwr.server import LegacyContext, ServerConfig
from flwr.server.strategy import FedAvg, Krum
from flwr.server.workflow import DefaultWorkflow

from fedavg.adapters.flower import SecAggPlusWorkflow, secagg_mod
from fedavg.adapters.flower.records import RECORD
from fedavg.adapters.opening import Opening, Settings
from protocols.errors import LocalError
from protocols.graph import parameters
from protocols.roster import generate_party, write_roster

NODES = 10
METRICS = {"train_metrics": "loss:0:1", "evaluate_metrics": "loss:0:1, accuracy:0:1"}


class Client(NumPyClient):
    def __init__(self, node: int, fails: bool) -> None:
        self.node, self.fails = node, fails

    def fit(self, parameters: Any, config: Any) -> Any:
        if self.fails:
            raise RuntimeError("words of the client")
        rng = np.random.default_rng(self.node)
        new = [np.asarray(p + rng.normal(scale=0.1, size=p.shape), np.float32) for p in parameters]
        return new, 10 + self.node, {"loss": 1 / self.node}

    def evaluate(self, parameters: Any, config: Any) -> Any:
        return 1 / self.node, self.node, {"accuracy": 50 / self.node}


def legacy_app(*mods: Any, fails: int = 0) -> ClientApp:
    return ClientApp(lambda c: Client(c.node_id, c.node_id == fails).to_client(), mods=list(mods))


def weighted(results: Any) -> Any:
    total = sum(n for n, _ in results)
    return {k: sum(n * m[k] for n, m in results) / total for k in results[0][1]}


class Run:
    """A whole run of the legacy workflow over `NODES` nodes; what came of it."""

    def __init__(
        self, flower: Any, workflow: Any, *, kind: Any = FedAvg, fault: Any = None, rounds: int = 2,
        start: bool = True, app: Any = None, config: Any = None, evaluate: bool = True, nodes: Any = None,
        **options: Any,
    ) -> None:  # fmt: skip
        arrays = [a.numpy() for a in flower.model().values()]
        if start:
            options["initial_parameters"] = ndarrays_to_parameters(arrays)
        strategy = kind(
            min_available_clients=NODES, fit_metrics_aggregation_fn=weighted,
            evaluate_metrics_aggregation_fn=weighted, **options,
        )  # fmt: skip
        mods = [] if workflow is None else [secagg_mod]
        self.grid = flower.LocalGrid(legacy_app(*mods) if app is None else app, NODES, fault, None, nodes)
        context = LegacyContext(self.grid.context(config), ServerConfig(num_rounds=rounds), strategy)
        workflows = {} if workflow is None else {"fit_workflow": workflow}
        if workflow is not None and evaluate:
            workflows["evaluate_workflow"] = workflow.evaluate
        DefaultWorkflow(**workflows)(self.grid, context)
        (record,) = context.state.array_records.values()
        self.arrays = [a.numpy() for a in record.values()]
        self.history = context.history

    def openings(self) -> list[Opening]:
        records = [m.content.config_records[RECORD] for n, m in self.grid.sent
                   if n == 101 and RECORD in m.content]  # fmt: skip
        return [Opening.from_bytes_checked(record["opening"]) for record in records if "opening" in record]


def test_a_malicious_server_is_withstood_with_identities(flower: Any, sites: Any) -> None:
    """As the migration page says: the roster at the server, and at each node its identity and the terms."""
    folder = sites()
    files = {101 + i: generate_party(f"site-{i}", folder) for i in range(NODES)}
    write_roster(folder / "roster.json", [public for _, public in files.values()])
    terms = {
        "secagg-norm": "max", "secagg-clipping-norm": 8.0, "secagg-max-weight": 1000, "secagg-bits": 22,
        "secagg-weight-key": "num_examples", "secagg-roster": str(folder / "roster.json"),
    }  # fmt: skip
    nodes = {node: terms | {"secagg-identity": str(key)} for node, (key, _) in files.items()}
    workflow = SecAggPlusWorkflow(10, 6, timeout=5, threat_model="malicious", roster=folder / "roster.json")
    found = Run(flower, workflow, rounds=1, evaluate=False, nodes=nodes)
    same(found, Run(flower, None, rounds=1))
    assert (found.openings()[0].settings.protocol, found.openings()[0].settings.threshold) == ("secagg", 6)


def same(one: Run, two: Run, atol: float = 1e-4) -> None:
    for a, b in zip(one.arrays, two.arrays, strict=True):
        np.testing.assert_allclose(a, b, atol=atol)
        assert a.dtype == b.dtype


def test_it_takes_the_place_of_flowers(flower: Any) -> None:
    expected = Run(flower, None)
    workflow = SecAggPlusWorkflow(10, 6, timeout=5, **METRICS)
    found = Run(flower, workflow)
    same(found, expected)
    for name in ("losses_distributed",):
        ours, theirs = getattr(found.history, name), getattr(expected.history, name)
        assert [n for n, _ in ours] == [n for n, _ in theirs] == [1, 2]
        assert [v for _, v in ours] == pytest.approx([v for _, v in theirs], abs=1e-4)
    for part, name in (("metrics_distributed", "accuracy"), ("metrics_distributed_fit", "loss")):
        ours, theirs = getattr(found.history, part)[name], getattr(expected.history, part)[name]
        assert [v for _, v in ours] == pytest.approx([v for _, v in theirs], abs=1e-4)
    assert workflow._wrapped is not None
    assert [(r.task, r.number) for r in workflow._wrapped.rounds] == [
        ("flower/7/train", 1), ("flower/7/evaluate", 1), ("flower/7/train", 2), ("flower/7/evaluate", 2),
    ]  # fmt: skip


def test_its_arguments_are_settings(flower: Any) -> None:
    workflow = SecAggPlusWorkflow(
        10, 6, max_weight=500, clipping_range=2.5, quantization_range=1 << 16, modulus_range=1 << 40,
        timeout=5, train_metrics="loss:0:1",
    )  # fmt: skip
    run = Run(flower, workflow, rounds=1, evaluate=False)
    (opening,) = run.openings()
    assert opening.settings == Settings(
        protocol="secagg+", norm="max", weight_key="num_examples", max_weight=500, clipping_norm=2.5,
        bits=16, ring_bits=40, timeout=5.0, train_metrics="loss:0:1", degree=9, threshold=6,
    )  # fmt: skip
    assert opening.session("flower/7/train", None).ring.bits == 40
    rounded = SecAggPlusWorkflow(10, 6, quantization_range=100_000, modulus_range=1 << 40, timeout=5)
    assert Run(flower, rounded, rounds=1, evaluate=False).openings()[0].settings.bits == 16


def test_run_config_goes_before_arguments(flower: Any) -> None:
    config = {"secagg-max-weight": 300, "secagg-timeout": 0.5}
    run = Run(flower, SecAggPlusWorkflow(10, 6, timeout=5), rounds=1, evaluate=False, config=config)
    assert run.openings()[0].settings.max_weight == 300
    assert run.openings()[0].settings.timeout == 0.5


def test_nodes_that_drop_out(flower: Any) -> None:
    """One before its vector and one after it; and one whose client raises."""

    def fault(node: int, count: int, message: Message) -> str | None:
        late = {101: 1, 102: 3}.get(node)
        return None if late is None or count < late else "silent"

    workflow = SecAggPlusWorkflow(10, 6, timeout=0.01)
    app = legacy_app(secagg_mod, fails=103)
    run = Run(flower, workflow, fault=fault, rounds=1, evaluate=False, app=app)
    assert workflow._wrapped is not None
    (done,) = workflow._wrapped.rounds
    assert set(done.included) == {str(n) for n in range(101, 111)} - {"101", "103"}
    assert set(done.dropped) == {"101", "103"}
    assert "words of the client" not in str(done.dropped)
    nodes = [n for n in range(102, 111) if n != 103]
    start = flower.model()
    weights = sum(10 + n for n in nodes)
    for i, array in enumerate(start.values()):
        new = {n: [np.asarray(v) for v in Client(n, False).fit([a.numpy() for a in start.values()], {})[0]]
               for n in nodes}  # fmt: skip
        mean = sum((10 + n) * new[n][i].astype(float) for n in nodes) / weights
        np.testing.assert_allclose(run.arrays[i], mean, atol=1e-4)
        assert array.numpy().shape == run.arrays[i].shape


def test_a_client_that_says_it_failed(flower: Any) -> None:
    """In the legacy API a reply may be one by its status only."""

    def client(context: Any) -> Any:
        made = Client(context.node_id, False)
        if context.node_id == 103:
            return NumPyClient().to_client()  # it has no `fit`
        return made.to_client()

    workflow = SecAggPlusWorkflow(10, 6, timeout=0.01)
    run = Run(flower, workflow, rounds=1, evaluate=False, app=ClientApp(client, mods=[secagg_mod]))
    assert workflow._wrapped is not None
    (done,) = workflow._wrapped.rounds
    assert done.dropped == {"103": "secagg: the app says that it failed"}
    assert len(run.arrays) == 3


def test_too_many_drop_out(flower: Any) -> None:
    """The model stays, and the run goes on."""

    def fault(node: int, count: int, message: Message) -> str | None:
        return "silent" if node > 104 and 2 <= count < 4 else None

    workflow = SecAggPlusWorkflow(10, 6, timeout=0.01)
    run = Run(flower, workflow, fault=fault, rounds=1, evaluate=False)
    assert workflow._wrapped is not None
    assert workflow._wrapped.rounds[0].aborted is not None
    for array, start in zip(run.arrays, flower.model().values(), strict=True):
        assert (array == start.numpy()).all()


@pytest.mark.parametrize(
    ("shares", "threshold", "taken"),
    [
        (10, 6, (9, 6)), (10, 9, (9, 9)), (1.0, 0.6, (9, 6)), (1, 0.7, (9, 7)), (1.0, 7, (9, 7)),
        (99, 6, (9, 6)),
        (3, 2, None), (0.5, 0.5, None), (10, 2, None), (10, 10, None), (10, 99, None), (4.0, 1, None),
    ],
)  # fmt: skip
def test_shares_and_threshold(
    flower: Any, caplog: pytest.LogCaptureFixture, shares: float, threshold: float, taken: Any
) -> None:
    """Those that are safe for the cohort are taken; others are replaced, and a warning says so."""
    caplog.set_level(logging.WARNING, "flwr.secagg")
    run = Run(flower, SecAggPlusWorkflow(shares, threshold, timeout=5), rounds=1, evaluate=False)
    (opening,) = run.openings()
    session = opening.session("flower/7/train", None)
    warned = [r.getMessage() for r in caplog.records if "are not safe here" in r.getMessage()]
    if taken is None:
        assert (opening.settings.degree, opening.settings.threshold) == (0, 0)
        (said,) = warned
        assert said.endswith("taking 10 and 6")
        s = opening.settings
        demands = (NODES, s.corrupted, s.dropout, s.protocol, s.threat_model)
        assert session.parameters == parameters(*demands)
    else:
        assert (opening.settings.degree, opening.settings.threshold) == taken
        assert (session.parameters.degree, session.parameters.threshold) == taken
        assert not warned


def test_a_modulus_that_is_too_small(flower: Any) -> None:
    workflow = SecAggPlusWorkflow(10, 6, modulus_range=1 << 24, timeout=5)
    run = Run(flower, workflow, rounds=1, evaluate=False)
    assert workflow._wrapped is not None
    (done,) = workflow._wrapped.rounds
    assert done.aborted is not None
    assert "so that no sum can wrap" in str(done.aborted)
    assert run.openings() == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"num_shares": 0}, "num_shares: expected a number above 0, got 0"),
        ({"num_shares": -0.5}, "num_shares"), ({"num_shares": True}, "num_shares"),
        ({"num_shares": "3"}, "num_shares"), ({"num_shares": float("nan")}, "num_shares"),
        ({"num_shares": float("inf")}, "num_shares"),
        ({"reconstruction_threshold": 0.0}, "reconstruction_threshold"),
        ({"reconstruction_threshold": None}, "reconstruction_threshold"),
        ({"quantization_range": 3}, "quantization_range: expected an integer of at least 4"),
        ({"quantization_range": 2.0**22}, "quantization_range"),
        ({"quantization_range": True}, "quantization"),
        ({"modulus_range": 0}, "modulus_range"), ({"modulus_range": 3 << 30}, "a power of two"),
    ],
)  # fmt: skip
def test_arguments_that_are_wrong(options: dict[str, Any], said: str) -> None:
    with pytest.raises(LocalError, match=said):
        SecAggPlusWorkflow(**({"num_shares": 10, "reconstruction_threshold": 6} | options))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"clipping_range": 0.0}, "clipping_norm"), ({"max_weight": -1}, "max_weight"),
        ({"quantization_range": 1 << 33}, "bits"), ({"threat_model": "malicious"}, "not offered|identities"),
        ({"evaluate_metrics": "loss"}, "metrics: expected"), ({"timeout": -1.0}, "timeout"),
        ({"clipping": 1.0}, "unknown field `clipping`")
    ],
)  # fmt: skip
def test_arguments_that_make_no_round(flower: Any, options: dict[str, Any], said: str) -> None:
    workflow = SecAggPlusWorkflow(10, 6, **({"timeout": 5} | options))
    with pytest.raises(ValueError, match=said):
        Run(flower, workflow, rounds=1, evaluate=False)


def test_a_loss_without_a_range_is_withheld(flower: Any) -> None:
    workflow = SecAggPlusWorkflow(10, 6, timeout=5, evaluate_metrics="accuracy:0:1")
    run = Run(flower, workflow, rounds=1)
    ((_, loss),) = run.history.losses_distributed
    assert np.isnan(loss)
    assert run.history.metrics_distributed["accuracy"][0][1] > 0


def test_an_evaluation_that_is_not_protected_is_refused(flower: Any) -> None:
    """Flower's own evaluation asks each node for its loss: nodes do not answer."""
    workflow = SecAggPlusWorkflow(10, 6, timeout=5)
    run = Run(flower, workflow, rounds=1, evaluate=False)
    assert run.history.losses_distributed == []
    refused = [m for _, m in run.grid.said if m.has_error()]
    assert len(refused) == NODES
    assert all("without protection is refused" in m.error.reason for m in refused)


def test_initial_parameters_of_a_node_are_refused(flower: Any) -> None:
    """They may be a trained model; without any, there is nothing to average."""
    with pytest.raises(LocalError, match="has no initial_parameters"):
        Run(flower, SecAggPlusWorkflow(10, 6, timeout=5), start=False, rounds=1)


def test_strategies_that_need_single_replies(flower: Any) -> None:
    with pytest.raises(LocalError, match=r"^Krum compares single updates"):
        Run(flower, SecAggPlusWorkflow(10, 6, timeout=5), kind=Krum, rounds=1)


def test_it_needs_the_legacy_context(flower: Any) -> None:
    grid = flower.LocalGrid(None, 3)
    with pytest.raises(TypeError, match="context: expected a LegacyContext, got Context"):
        SecAggPlusWorkflow(10, 6)(grid, grid.context())
