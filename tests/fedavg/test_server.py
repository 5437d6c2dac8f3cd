"""Federated averaging: secure equals plain bit for bit, and plain is the weighted mean it claims to be."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedavg.models import MLP, LinearRegression, LogisticRegression, Model
from fedavg.params import Layout
from fedavg.round import PlainSum, SecureSum
from fedavg.server import FedAvg, Round
from fedavg.train import LocalSGD
from protocols.errors import Aborted
from protocols.machine import Aggregate
from protocols.session import hash_model

NAMES = [f"h{i}" for i in range(7)]
MODES = [
    ("secagg", "honest-but-curious"),
    ("secagg", "semi-malicious"),
    ("secagg", "malicious"),
    ("secagg+", "honest-but-curious"),
    ("secagg+", "semi-malicious"),
]
STAGES = ("keys", "shares", "masked", "signatures", "reveals")
MODELS: dict[str, Model] = {
    "logistic": LogisticRegression(4, 3),
    "mlp": MLP(4, 3, hidden=5),
    "linear": LinearRegression(4),
}


def agreement(protocol: str = "secagg", threat_model: str = "honest-but-curious") -> dict[str, Any]:
    """Of seven hospitals, two may drop out."""
    return {"protocol": protocol, "threat_model": threat_model, "corrupted": 0.0, "dropout": 0.3}


def records(kind: str, seed: int = 0) -> dict[str, Any]:
    """Hospitals of 3 to 21 records, a class or a quantity that can be learnt from them."""
    rng, found = np.random.default_rng(seed), {}
    for i, name in enumerate(NAMES):
        x = rng.normal(size=(3 + 3 * i, 4))
        quantity = x @ np.array([1.0, -1.0, 0.5, 0.0])
        found[name] = (x, quantity if kind == "linear" else np.digitize(quantity, [-0.7, 0.7]))
    return found


def raw(params: Any) -> list[bytes]:
    """The bits of a model."""
    return [p.tobytes() for p in params]


@dataclass
class Both:
    """Gives the same integers to the secure and to the plain sum, and insists on the same answer."""

    secure: SecureSum
    plain: PlainSum
    included: list[tuple[str, ...]] = field(default_factory=list)

    def __call__(self, vectors: Any, bound: int, round: int, model_hash: bytes = bytes(32)) -> Any:
        secure = self.secure(vectors, bound, round, model_hash)
        plain = self.plain(vectors, bound, round, model_hash)
        assert isinstance(secure, Aggregate), secure
        assert isinstance(plain, Aggregate), plain
        assert secure.included == plain.included
        assert [int(v) for v in secure.sum] == [int(v) for v in plain.sum]
        self.included.append(plain.included)
        return secure


schedules = st.lists(
    st.dictionaries(st.sampled_from(NAMES), st.sampled_from(STAGES), max_size=2), min_size=3, max_size=3
).map(lambda rounds: dict(enumerate(rounds)))


@pytest.mark.parametrize("kind", MODELS)
@settings(max_examples=20)
@given(
    st.sampled_from(MODES), schedules, st.booleans(), st.integers(0, 2**32), st.sampled_from([2, 8, 16, 32])
)
def test_secure_fedavg_equals_plain_bit_for_bit_at_every_round(
    kind: str, mode: tuple[str, str], dropouts: Any, weighted: bool, seed: int, bits: int
) -> None:  # fmt: skip
    train = FedAvg(
        MODELS[kind], LocalSGD(1, 8, 0.1), 3, weighted, max_weight=21, clipping_norm=0.5, bits=bits, seed=seed
    )  # fmt: skip
    hospitals = records(kind, seed)
    plain = train.run(hospitals, PlainSum(dropouts))
    secure = train.run(hospitals, SecureSum(agreement(*mode), dropouts, seed))
    assert len(plain) == len(secure) == 3
    for number, (a, b) in enumerate(zip(plain, secure, strict=True)):
        gone = {n for n, stage in dropouts[number].items() if stage in ("keys", "shares", "masked")}
        assert set(a.included) == set(NAMES) - gone
        assert a.included == b.included
        assert (a.number, a.weight, a.change) == (b.number, b.weight, b.change)
        assert raw(a.params) == raw(b.params)
        assert a.aborted is b.aborted is None
        weight = sum(len(hospitals[n][1]) for n in a.included) if weighted else len(a.included)
        assert a.weight == weight


@pytest.mark.parametrize("mode", MODES, ids=[" ".join(m) for m in MODES])
def test_rounding_by_the_system_too_gives_equal_sums_of_the_same_integers(mode: tuple[str, str]) -> None:
    dropouts = {0: {"h1": "shares"}, 1: {"h2": "masked", "h5": "reveals"}, 2: {}}
    both = Both(SecureSum(agreement(*mode), dropouts), PlainSum(dropouts))
    history = FedAvg(MODELS["mlp"], rounds=3, seed=None).run(records("mlp"), both)
    assert [len(r.included) for r in history] == [6, 6, 7]
    assert both.included == [r.included for r in history]
    assert all(np.isfinite(p).all() for p in history[-1].params)


# --------------------------------------------------------------------------------- what the mean is


def moving(move: Callable[[Any, Any, Any], Any]) -> Any:
    """Local training that adds to the flat model what `move` makes of it and the records."""

    def local(model: Any, params: Any, x: Any, y: Any, rng: Any) -> Any:
        layout = Layout.of(params)
        flat = layout.flatten(params)
        return layout.restore(flat + move(flat, x, y))

    return local


@pytest.mark.parametrize("bits", [4, 16, 32])
@pytest.mark.parametrize("weighted", [True, False])
@given(st.integers(0, 2**32), st.sets(st.sampled_from(NAMES), max_size=5))
def test_the_step_is_the_weighted_mean_of_the_updates(
    weighted: bool, bits: int, seed: int, gone: set[str]
) -> None:
    # Each hospital's update is the first record it has, so that the mean is known.
    rng = np.random.default_rng(seed)
    hospitals = {n: (rng.normal(size=(int(rng.integers(1, 51)), 5)), np.zeros(1)) for n in NAMES}
    hospitals = {n: (x, np.zeros(len(x))) for n, (x, _) in hospitals.items()}
    model = LinearRegression(4)
    train = FedAvg(
        model, moving(lambda flat, x, y: x[0]), 1, weighted, max_weight=50, clipping_norm=100.0, bits=bits
    )
    (done,) = train.run(hospitals, PlainSum({0: dict.fromkeys(gone, "masked")}))
    assert set(done.included) == set(NAMES) - gone
    weights = np.array([len(hospitals[n][1]) if weighted else 1 for n in done.included])
    expected = np.average([hospitals[n][0][0] for n in done.included], axis=0, weights=weights)
    found = np.concatenate(done.params)
    codec = train.codec(5)
    bound = len(weights) * codec.step * codec.max_weight / weights.sum()
    assert (np.abs(found - expected) <= bound * (1 + 1e-9) + 1e-12).all()
    assert done.weight == weights.sum()
    assert done.change == pytest.approx(np.linalg.norm(found))


def test_a_long_update_is_clipped() -> None:
    hospitals = {n: (np.full((2, 5), 40.0), np.zeros(2)) for n in NAMES}
    train = FedAvg(
        LinearRegression(4), moving(lambda flat, x, y: x[0]), 1, max_weight=2, clipping_norm=3.0, bits=32
    )
    (done,) = train.run(hospitals, PlainSum())
    np.testing.assert_allclose(np.concatenate(done.params), 3.0 / np.sqrt(5), rtol=1e-6)


def test_one_hospital_alone_is_local_training() -> None:
    x, y = records("logistic")["h6"]
    model = LogisticRegression(4, 3)
    local = LocalSGD(1, 100, 0.5)
    history = FedAvg(model, local, 3, max_weight=21, clipping_norm=5.0, bits=32).run(
        {"h6": (x, y)}, PlainSum()
    )
    params = model.initial(np.random.default_rng(0))
    for done in history:
        params = local(model, params, x, y, np.random.default_rng(1))
        for found, expected in zip(done.params, params, strict=True):
            np.testing.assert_allclose(found, expected, atol=1e-7)


@pytest.mark.parametrize("kind", MODELS)
def test_the_pooled_loss_falls(kind: str) -> None:
    hospitals, model = records(kind), MODELS[kind]
    x = np.vstack([x for x, _ in hospitals.values()])
    y = np.concatenate([y for _, y in hospitals.values()])
    history = FedAvg(model, LocalSGD(2, 8, 0.1), 10).run(hospitals, PlainSum())
    losses = [model.loss(r.params, x, y) for r in history]
    assert losses[-1] < 0.8 * model.loss(model.initial(np.random.default_rng(0)), x, y)
    assert losses[-1] < losses[0]


# --------------------------------------------------------------------------------------- the rounds


def test_an_aborted_round_leaves_the_model_as_it_was_and_is_recorded() -> None:
    dropouts = {1: dict.fromkeys(NAMES[:5], "masked"), 2: dict.fromkeys(NAMES[:6], "reveals")}
    train = FedAvg(MODELS["mlp"], rounds=4, tolerance=1e-9)
    history = train.run(records("mlp"), SecureSum(agreement(), dropouts))
    assert [r.number for r in history] == [0, 1, 2, 3], "a change of zero by an abort is no convergence"
    assert [isinstance(r.aborted, Aborted) for r in history] == [False, True, True, False]
    first, second, third, last = history
    assert raw(first.params) == raw(second.params) == raw(third.params) != raw(last.params)
    for done in (second, third):
        assert (done.included, done.weight, done.change) == ((), 0, 0.0)
    assert second.aborted is not None
    assert second.aborted.stage == "masked"
    assert {name for f in second.faults for name in f.culprits} == set(NAMES[:5])
    # The plain sum, told which rounds gave none, has the same model after every round.
    told = train.run(records("mlp"), PlainSum(dropouts, {1, 2}))
    assert [raw(r.params) for r in told] == [raw(r.params) for r in history]
    assert [r.aborted is None for r in told] == [True, False, False, True]
    # What happened before does not show: the last round is the plain one from the same model.
    plain = train.run(records("mlp"), PlainSum({r: dict.fromkeys(NAMES, "keys") for r in (1, 2)}))
    assert raw(plain[-1].params) == raw(last.params)


def test_faults_are_recorded() -> None:
    dropouts = {0: {"h1": "keys", "h4": "masked"}}
    for aggregate in (PlainSum(dropouts), SecureSum(agreement(), dropouts)):
        (done,) = FedAvg(MODELS["logistic"], rounds=1).run(records("logistic"), aggregate)
        assert {(f.culprits, f.stage) for f in done.faults} == {(("h1",), "keys"), (("h4",), "masked")}


def halving(**settings: Any) -> list[Round]:
    """Each round goes half the way to a model of norm 8: changes of 4, 2, 1, 0.5 ..."""
    goal = np.array([8.0, 0, 0, 0, 0])
    hospitals = {n: (np.zeros((2, 4)), np.zeros(2)) for n in NAMES}
    local = moving(lambda flat, x, y: (goal - flat) / 2)
    return FedAvg(
        LinearRegression(4), local, 12, max_weight=2, bits=32, clipping_norm=10.0, **settings
    ).run(hospitals, PlainSum())  # fmt: skip


def test_tolerance_stops_early() -> None:
    history = halving(tolerance=0.75)
    np.testing.assert_allclose([r.change for r in history], [4, 2, 1, 0.5], rtol=1e-6)
    assert len(halving(tolerance=0.0)) == 12
    assert len(halving(tolerance=100.0)) == 1


def test_a_hospital_with_too_many_records_is_refused() -> None:
    hospitals = records("logistic")
    for aggregate in (PlainSum(), SecureSum(agreement())):
        with pytest.raises(ValueError, match="hospital h6: 21 records are more than the 20"):
            FedAvg(MODELS["logistic"], rounds=1, max_weight=20).run(hospitals, aggregate)
    (done,) = FedAvg(MODELS["logistic"], rounds=1, max_weight=21).run(hospitals, PlainSum())
    assert done.weight == sum(range(3, 22, 3))
    (done,) = FedAvg(MODELS["logistic"], rounds=1, max_weight=20, weighted=False).run(hospitals, PlainSum())
    assert done.weight == 7


def test_a_hospital_without_records_is_refused() -> None:
    hospitals = records("logistic") | {"h9": (np.zeros((0, 4)), np.zeros(0, np.int64))}
    for weighted in (True, False):
        with pytest.raises(ValueError, match="hospital h9: expected records and as many targets, got 0, 0"):
            FedAvg(MODELS["logistic"], rounds=1, weighted=weighted).run(hospitals, PlainSum())


@pytest.mark.parametrize(("records_", "targets"), [(3, 4), (4, 3), (0, 1), (1, 0)])
def test_a_hospital_needs_a_target_for_each_record(records_: int, targets: int) -> None:
    hospitals = records("linear") | {"h9": (np.zeros((records_, 4)), np.zeros(targets))}
    message = f"hospital h9: expected records and as many targets, got {records_}, {targets}"
    with pytest.raises(ValueError, match=message):
        FedAvg(MODELS["linear"], rounds=1).run(hospitals, PlainSum())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rounds": 0}, "rounds: expected at least 1, got 0"),
        ({"rounds": -3}, "rounds: expected at least 1, got -3"),
        ({"tolerance": -0.5}, r"tolerance: expected 0 or more, got -0\.5"),
        ({"tolerance": float("nan")}, "tolerance: expected 0 or more, got nan"),
        ({"seed": -1}, "seed: expected 0 or more, got -1"),
    ],
)
def test_bad_settings_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FedAvg(MODELS["linear"], **wrong)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"clipping_norm": 0.0}, "clipping_norm: expected"),
        ({"bits": 33}, "bits"),
        ({"max_weight": 0}, "max_"),
    ],
)
def test_what_the_codec_refuses_is_refused_before_any_training(wrong: dict[str, Any], message: str) -> None:
    def never(*_: Any) -> Any:
        raise AssertionError("trained")

    with pytest.raises(ValueError, match=message):
        FedAvg(MODELS["linear"], never, **wrong).run(records("linear"), PlainSum())


def test_a_diverged_model_is_refused() -> None:
    hospitals = records("linear")
    local = moving(lambda flat, x, y: np.full(5, np.nan))
    with pytest.raises(ValueError, match="update: expected finite numbers, entry 0 is nan"):
        FedAvg(MODELS["linear"], local, 1).run(hospitals, PlainSum())
    with pytest.raises(ValueError, match=r"training diverged at learning rate 1e\+300: try a smaller one"):
        FedAvg(MODELS["linear"], LocalSGD(3, 4, 1e300), 1).run(hospitals, PlainSum())


@pytest.mark.parametrize("kind", MODELS)
def test_a_seed_reproduces(kind: str) -> None:
    one, same, other = (
        FedAvg(MODELS[kind], rounds=2, seed=s, max_weight=21).run(records(kind), PlainSum())[-1]
        for s in (5, 5, 6)
    )
    assert raw(one.params) == raw(same.params) != raw(other.params)


def test_without_a_seed_no_two_runs_are_alike() -> None:
    one, other = (
        FedAvg(MODELS["logistic"], rounds=2, seed=None).run(records("logistic"), PlainSum())[-1]
        for _ in range(2)
    )
    assert raw(one.params) != raw(other.params)


def test_the_order_of_hospitals_does_not_matter() -> None:
    hospitals = records("logistic")
    backwards = dict(reversed(hospitals.items()))
    train = FedAvg(MODELS["logistic"], rounds=2)
    a, b = (train.run(h, SecureSum(agreement()))[-1] for h in (hospitals, backwards))
    assert raw(a.params) == raw(b.params)


def test_each_client_rounds_from_a_stream_of_its_own_each_round() -> None:
    sent: list[Any] = []

    def aggregate(vectors: Any, bound: int, round: int, model_hash: bytes = bytes(32)) -> Any:
        sent.extend(tuple(v[:-1].tolist()) for v in vectors.values())
        return PlainSum()(vectors, bound, round)

    # Everybody's update is the same half step, so that the vectors show the coins.
    hospitals = {n: (np.zeros((1, 40)), np.zeros(1)) for n in NAMES}
    local = moving(lambda flat, x, y: np.full(41, 0.5))
    FedAvg(LinearRegression(40), local, 3, False, clipping_norm=127.0, bits=8).run(hospitals, aggregate)
    assert {v for vector in sent for v in vector} == {127, 128}
    assert len(set(sent)) == len(sent) == 21


def test_what_the_aggregator_is_told() -> None:
    told: list[tuple[int, int, bytes]] = []

    def aggregate(vectors: Any, bound: int, round: int, model_hash: bytes = bytes(32)) -> Any:
        assert max(int(v.max()) for v in vectors.values()) < bound
        told.append((round, bound, model_hash))
        return PlainSum()(vectors, bound, round)

    model, seen = MODELS["mlp"], []
    history = FedAvg(model, rounds=3, bits=10, max_weight=50).run(records("mlp"), aggregate, seen.append)
    start = model.initial(np.random.default_rng(0))
    models = [start, *(r.params for r in history[:-1])]
    assert told == [(i, 2**10 - 1, hash_model(*params)) for i, params in enumerate(models)]
    assert seen == history
