"""The library against a naive reference written from the papers: same included, same sum, or both abort."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any

import pytest
from hypothesis import event, given, note
from hypothesis import strategies as st

from protocols.errors import Infeasible
from protocols.graph import SECAGG, SECAGG_PLUS, THREAT_MODELS, parameters
from protocols.machine import Aggregate, Input, Received, StageClosed, Started
from protocols.session import Session
from protocols.simulator import STAGES, simulate
from secagg.keys import Identity
from secagg.randomness import seeded


def _load() -> ModuleType:
    """By path: in importlib mode test folders are not packages."""
    spec = importlib.util.spec_from_file_location("naive_secagg", Path(__file__).with_name("naive_secagg.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


naive = _load()


def by_reference(
    run: dict[str, Any], session: Session, graph_seed: bytes
) -> tuple[list[str], list[int]] | None:
    graph, names = session.graph(graph_seed), session.names
    sets = [
        {name: [names[j] for j in which(i)] for i, name in enumerate(names)}
        for which in (graph.neighbours, graph.holders)
    ]
    p = session.parameters
    try:
        return naive.aggregate(
            run["vectors"], run["bound"], *sets, p.threshold, session.min_included, p.quorum, run["drop"],
            Random(run["seed"]),
        )  # fmt: skip
    except naive.Abort:
        return None


def compare(run: dict[str, Any], session: Session, result: Any, graph_seed: bytes = b"") -> None:
    expected = by_reference(run, session, graph_seed)
    if expected is None:
        assert not isinstance(result, Aggregate)
        return
    assert isinstance(result, Aggregate), result
    assert (list(result.included), result.sum.tolist()) == expected


@st.composite
def runs(draw: st.DrawFn) -> dict[str, Any]:
    n, protocol = draw(st.integers(3, 9)), draw(st.sampled_from([SECAGG, SECAGG_PLUS]))
    models = THREAT_MODELS[:2] if protocol == SECAGG_PLUS else THREAT_MODELS
    bound, dim = draw(st.sampled_from([2, 100, 2**16, 2**40])), draw(st.integers(1, 4))
    names = [f"c{i}" for i in range(n)]
    rows = st.lists(st.integers(0, bound - 1), min_size=dim, max_size=dim)
    gone = draw(st.lists(st.sampled_from(names), max_size=n - 1, unique=True))
    return {
        "vectors": {name: draw(rows) for name in names}, "bound": bound,
        "drop": {name: draw(st.sampled_from(STAGES)) for name in gone},
        "protocol": protocol, "threat_model": draw(st.sampled_from(models)),
        "corrupted": draw(st.sampled_from([0.0, 0.1, 0.2, 0.3])),
        "dropout": draw(st.sampled_from([0.0, 0.1, 0.2, 0.3, 0.4])), "seed": draw(st.integers(0, 2**16)),
    }  # fmt: skip


@given(runs())
def test_same_sum_of_the_same_or_both_abort(run: dict[str, Any]) -> None:
    try:
        simulation = simulate(**run)
    except Infeasible:
        event("infeasible")
        return
    note(simulation.call)
    event(type(simulation.result).__name__)
    compare(run, simulation.session, simulation.result)


@pytest.mark.parametrize("model", THREAT_MODELS[:2])
@pytest.mark.parametrize("dropping", [0.0, 0.05, 0.15, 0.3, 0.6])
def test_sparse_graph(model: str, dropping: float) -> None:
    """A cohort large enough for SecAgg+ to be sparse, at and beyond the dropout it was made for."""
    coins = Random(f"{model} {dropping}")
    names = [f"c{i:02}" for i in range(54)]
    vectors = {name: [coins.randrange(1000) for _ in range(3)] for name in names}
    drop = {name: coins.choice(STAGES) for name in names if coins.random() < dropping}
    run = {"vectors": vectors, "bound": 1000, "drop": drop, "seed": 1}
    agreed = {"protocol": SECAGG_PLUS, "threat_model": model, "corrupted": 0.05, "dropout": 0.15}
    session, result, graph_seed = driven(run, agreed)
    assert not session.complete
    compare(run, session, result, graph_seed)


def driven(run: dict[str, Any], agreed: dict[str, Any]) -> tuple[Session, Any, bytes]:
    """The machines themselves, so that the server's graph is known."""
    identities = {n: Identity.generate(seeded(n.encode())) for n in run["vectors"]}
    session = Session({n: i.public for n, i in identities.items()}, 3, run["bound"], **agreed)
    server = session.server(rng=seeded(b"server"))
    graph_seed = server._state.graph_seed
    clients = {n: session.client(n, i) for n, i in identities.items()}
    up = [e for n, c in clients.items() for v in (Started(), Input(run["vectors"][n])) for e in c.handle(v)]
    gone: set[str] = set()
    while server.result is None:
        stage = server.stage
        gone |= {n for n, s in run["drop"].items() if s == stage}
        down = [e for m in up if m.sender not in gone for e in server.handle(Received(m))]
        down += server.handle(StageClosed(stage))
        up = [e for m in down for e in clients[m.to].handle(Received(m))]
    return session, server.result, graph_seed


def test_reference_shares_open_its_secrets() -> None:
    """The reference itself, on the known: any t of the shares, and no fewer, give the secret."""
    coins = Random(1)
    shares = list(naive.share(12345, 3, list("abcde"), coins).values())
    for chosen in (shares[:3], shares[2:], [shares[0], shares[2], shares[4]]):
        assert naive.reconstruct(chosen) == 12345
    assert naive.reconstruct(shares[:2]) != 12345


def test_reference_masks_what_it_sums() -> None:
    everyone = {u: [v for v in "abcd" if v != u] for u in "abcd"}
    holders = {u: list("abcd") for u in "abcd"}
    vectors = {u: [i, 9 - i] for i, u in enumerate("abcd")}
    for gone, included in (({}, "abcd"), ({"b": "masked"}, "acd"), ({"b": "reveals"}, "abcd")):
        found = naive.aggregate(vectors, 10, everyone, holders, 3, 3, 0, gone, Random(2))
        assert found == (list(included), [sum(vectors[u][i] for u in included) for i in range(2)])
    with pytest.raises(naive.Abort):
        naive.aggregate(vectors, 10, everyone, holders, 3, 3, 0, {"a": "reveals", "b": "reveals"}, Random(2))


@pytest.mark.parametrize("model", THREAT_MODELS)
def test_one_dropout_at_each_stage(model: str) -> None:
    """Every pair of stages in which two clients of seven vanish."""
    vectors = {f"c{i}": [i, 50 - i] for i in range(7)}
    for first in STAGES:
        for second in STAGES:
            run = {"vectors": vectors, "bound": 100, "drop": {"c0": first, "c6": second}, "seed": 3}
            simulation = simulate(**run, threat_model=model, dropout=0.29)
            assert parameters(7, 0.1, 0.29, threat_model=model).dropped == 2
            assert isinstance(simulation.result, Aggregate)
            compare(run, simulation.session, simulation.result, b"")
