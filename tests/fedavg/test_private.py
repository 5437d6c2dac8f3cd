"""Training with a guarantee for every record: what is learnt, charged, kept and refused."""

from __future__ import annotations

from dataclasses import replace
from math import isqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedavg.budget import BudgetSpent
from fedavg.codec import PrivateCodec, to_integers
from fedavg.ledger import Ledger
from fedavg.models import MLP, LinearRegression, LogisticRegression
from fedavg.params import Layout
from fedavg.private import UNIT, PrivateSGD, _sample, by_record, placed
from fedavg.rotate import unrotate
from fedavg.round import PlainSum, SecureSum
from protocols.errors import Aborted
from secagg.randomness import seeded

RNG = np.random.default_rng(5)
X = RNG.normal(size=(200, 4))
Y = (X @ [1.0, -1.0, 0.5, 0.0] + 0.1 * RNG.normal(size=200) > 0).astype(np.int64)
HOSPITALS = {f"h{i}": (X[i::5], Y[i::5]) for i in range(5)}
AGREED = {"threat_model": "malicious", "corrupted": 0.2, "dropout": 0.2}
SETTINGS = PrivateSGD(LogisticRegression(4), rounds=12, learning_rate=2.0, max_records=40, seed=0)


def secure(found: Any, **more: Any) -> SecureSum:
    return SecureSum({**AGREED, "noise": found.noisy, "bits": found.bits}, **more)


def accuracy(params: Any) -> float:
    return float((SETTINGS.model.scores(params, X).argmax(axis=1) == Y).mean())


def test_it_learns_within_its_budget() -> None:
    found = SETTINGS.plan(5, 4.0, 1e-3)
    ledger = Ledger(4.0, 1e-3, UNIT)
    rounds = SETTINGS.run(HOSPITALS, secure(found), found, ledger)
    assert len(rounds) == 12
    assert accuracy(rounds[-1].params) > 0.85
    assert ledger.spent == pytest.approx(4.0, rel=1e-3)
    assert ledger.spent <= 4.0 * (1 + 1e-6)
    # The number of records is known as well as noise allows.
    assert np.mean([r.weight for r in rounds]) == pytest.approx(200, rel=0.2)


def test_with_little_noise_it_is_the_training_without() -> None:
    found = SETTINGS.plan(5, 1e5, 1e-3)
    rounds = SETTINGS.run(HOSPITALS, secure(found), found, Ledger(1e5, 1e-3, UNIT))
    plain = SETTINGS.without_noise(HOSPITALS)
    for done, params in zip(rounds, plain, strict=True):
        for a, b in zip(done.params, params, strict=True):
            np.testing.assert_allclose(a, b, atol=0.02)


@pytest.mark.parametrize("of", ["records", "hospitals"])
def test_taking_turns_is_the_training_without_noise_too(of: Any) -> None:
    """What is sent is combined over rounds, and comes back as what those of each turn contributed."""
    settings = replace(SETTINGS, turns=4, turns_of=of, rounds=13)
    found, ledger = settings.plan(5, 1e5, 1e-3), Ledger(1e5, 1e-3, UNIT)
    rounds = settings.run(HOSPITALS, secure(found), found, ledger)
    for done, params in zip(rounds, settings.without_noise(HOSPITALS), strict=True):
        for a, b in zip(done.params, params, strict=True):
            np.testing.assert_allclose(a, b, atol=0.05)
    assert ledger.spent <= 1e5 * (1 + 1e-6)
    # 4 of 5 hospitals have a turn of their own: in every fourth round are two, else one, of 40 records each.
    assert [r.weight for r in rounds[3:]] == [pytest.approx(50, abs=2)] * 10


def test_turns_learn_within_the_budget_through_dropouts_and_a_restart(tmp_path: Path) -> None:
    settings, state = replace(SETTINGS, turns=4, rounds=24), tmp_path / "state"
    found = settings.plan(5, 20.0, 1e-3, least=4)
    ledger = Ledger(20.0, 1e-3, UNIT, tmp_path / "ledger")
    gone = {i: {f"h{i % 5}": ("keys", "masked", "reveals")[i % 3]} for i in range(0, 24, 3)}

    class Stopped(Exception):
        pass

    def stop(done: Any) -> None:
        if done.number == 10:
            raise Stopped

    with pytest.raises(Stopped):
        settings.run(HOSPITALS, secure(found, dropouts=gone), found, ledger, state=state, on_round=stop)
    ledger = Ledger(20.0, 1e-3, UNIT, tmp_path / "ledger")
    rounds = settings.run(HOSPITALS, secure(found, dropouts=gone), found, ledger, state=state)
    assert [r.number for r in rounds] == list(range(11, 24))
    assert accuracy(rounds[-1].params) > 0.85
    assert ledger.spent <= 20.0 * (1 + 1e-6)
    with pytest.raises(ValueError, match="turns 4 of records"):
        replace(settings, turns=3, rounds=30).run(
            HOSPITALS, secure(found), replace(settings, turns=3, rounds=30).plan(5, 20.0, 1e-3, least=4),
            ledger, state=state,
        )  # fmt: skip


def test_turns_that_do_not_fit_are_refused() -> None:
    found = SETTINGS.plan(5, 4.0, 1e-3)
    with pytest.raises(ValueError, match="plan: expected one for turns 2"):
        replace(SETTINGS, turns=2).run(HOSPITALS, secure(found), found, Ledger(4.0, 1e-3, UNIT))
    settings = replace(SETTINGS, turns=6, turns_of="hospitals")
    found = settings.plan(5, 4.0, 1e-3)
    with pytest.raises(ValueError, match="turns: expected at most 5"):
        settings.run(HOSPITALS, secure(found), found, Ledger(4.0, 1e-3, UNIT))
    with pytest.raises(ValueError, match="turns_of"):
        replace(SETTINGS, turns_of="patients")


def test_dropouts_change_neither_noise_nor_guarantee() -> None:
    found = SETTINGS.plan(5, 4.0, 1e-3, least=4)
    ledger = Ledger(4.0, 1e-3, UNIT)
    gone = {i: {"h1": ("keys", "masked", "reveals")[i % 3]} for i in range(0, 12, 2)}
    rounds = SETTINGS.run(HOSPITALS, secure(found, dropouts=gone), found, ledger)
    assert {len(r.included) for r in rounds} == {4, 5}
    assert ledger.spent <= 4.0 * (1 + 1e-6)
    # At most 1.5 % of variance too much: 0.75 % of a round's mu less is charged.
    assert all(found.mu / 1.008 <= r.mu <= found.mu for r in ledger.releases)


def test_it_stops_before_the_budget_is_exceeded() -> None:
    found = SETTINGS.plan(5, 4.0, 1e-3)
    ledger = Ledger(2.0, 1e-3, UNIT)
    rounds = SETTINGS.run(HOSPITALS, secure(found), found, ledger)
    assert 1 <= len(rounds) < 12
    assert ledger.spent <= 2.0
    with pytest.raises(BudgetSpent):
        SETTINGS.run(HOSPITALS, secure(found), found, ledger, task="another")


def test_an_aborted_round_leaves_the_model_and_is_charged_if_revealed() -> None:
    found = SETTINGS.plan(5, 4.0, 1e-3)
    ledger = Ledger(4.0, 1e-3, UNIT)
    gone = {0: {"h1": "masked", "h2": "masked"}, 1: {f"h{i}": "reveals" for i in range(3)}}
    rounds = SETTINGS.run(HOSPITALS, secure(found, dropouts=gone), found, ledger)
    assert [r.aborted is None for r in rounds] == [False, False] + [True] * 10
    assert all((p == 0).all() for r in rounds[:2] for p in r.params)
    assert [r.aborted.revealed for r in rounds[:2] if r.aborted] == [False, True]
    assert [(r.round, r.completed) for r in ledger.releases[:2]] == [(1, False), (2, True)]


def test_a_training_goes_on_from_where_it_was(tmp_path: Path) -> None:
    """Killed in a round: what was charged stays charged, and the rest comes out as it would have."""
    found = SETTINGS.plan(5, 4.0, 1e-3)

    class Killed(Exception):
        pass

    def kill_in(number: int) -> Any:
        def on_round(done: Any) -> None:
            if done.number == number:
                raise Killed

        return on_round

    def run(name: str, **more: Any) -> Any:
        state = tmp_path / name
        ledger = Ledger(4.0, 1e-3, UNIT, tmp_path / f"{name}.json")
        return SETTINGS.run(HOSPITALS, secure(found), found, ledger, state=state, **more), ledger

    whole, _ = run("whole")
    with pytest.raises(Killed):
        run("cut", on_round=kill_in(4))
    rest, ledger = run("cut")
    assert [r.number for r in rest] == list(range(5, 12))
    assert len(ledger.releases) == 12
    for a, b in zip(rest[-1].params, whole[-1].params, strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(ValueError, match="rounds: 12 are done"):
        run("cut")
    with pytest.raises(ValueError, match=r"kept with learning_rate 2\.0.* asked for is learning_rate 1"):
        replace(SETTINGS, learning_rate=1.0, rounds=20).run(
            HOSPITALS, secure(found), found, ledger, state=tmp_path / "cut"
        )
    (tmp_path / "cut").unlink()
    with pytest.raises(ValueError, match="the ledger has 12 rounds of a training that is not here"):
        run("cut")


@pytest.mark.parametrize(
    "change",
    [{}, {"progress": np.array([-1.0, 1.0])}, {"progress": np.array([1.0])}, {"progress": np.array("x")},
     {"progress": np.array([1.0, 0.0])}, {"velocity": np.zeros(10, complex)}, {"velocity": np.array("x")}],
)  # fmt: skip
def test_a_state_that_is_none_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    found, state = SETTINGS.plan(5, 4.0, 1e-3), tmp_path / "state"
    short = replace(SETTINGS, rounds=1)
    short.run(HOSPITALS, secure(found), found, Ledger(4.0, 1e-3, UNIT), state=state)
    with np.load(state) as kept:
        content = dict(kept) | change
    with state.open("wb") as file:
        np.savez(file, **content) if change else file.write(b"nothing")
    with pytest.raises(ValueError, match="expected a training that was kept here"):
        SETTINGS.run(HOSPITALS, secure(found), found, Ledger(4.0, 1e-3, UNIT), state=state)


def test_a_round_of_which_nothing_was_heard_is_charged(tmp_path: Path) -> None:
    """Killed when the sum is out and before it is settled, again and again: each is paid for."""
    found = SETTINGS.plan(5, 4.0, 1e-3)

    class Killed(Exception):
        pass

    def kill(*given: Any, **named: Any) -> Any:
        secure(found)(*given, **named)
        raise Killed

    for times in (1, 2, 3):
        ledger = Ledger(4.0, 1e-3, UNIT, tmp_path / "ledger.json")
        with pytest.raises(Killed):
            SETTINGS.run(HOSPITALS, kill, found, ledger)
        assert [r.round for r in ledger.releases] == list(range(times))
        assert not any(r.completed for r in ledger.releases)


@pytest.mark.parametrize("most", [40, 4000])
def test_many_records_that_all_say_the_same_fit_the_bound(most: int) -> None:
    """However small one record's norm is in integers: refusing their sum would tell of them."""
    alike = np.zeros((min(most, 400), 4))
    alike[:, 0] = 1.0
    for epsilon in (0.1, 1.0, 30.0):
        found = replace(SETTINGS, max_records=most).plan(5, epsilon, 1e-6)
        codec = PrivateCodec(found, b"", found.dim - 1, 1.0, counted=True)
        rows = np.tile(unrotate(np.eye(found.dim)[0], b"")[: found.dim - 1], (len(alike), 1))
        sent = to_integers(found, codec.on_grid(rows * 100))
        assert np.abs(sent).max() < codec.bound
        worst = np.full(3, most * isqrt(found.norm_squared)) >> found.grid_bits
        assert (worst + (64 if found.rounding else 0) < codec.bound).all()


def test_a_state_of_another_model_is_refused(tmp_path: Path) -> None:
    found, state = SETTINGS.plan(5, 4.0, 1e-3), tmp_path / "state"
    SETTINGS.run(HOSPITALS, secure(found), found, Ledger(4.0, 1e-3, UNIT), state=state)
    other = PrivateSGD(MLP(4, 2, 3), rounds=20, learning_rate=2.0, max_records=40, seed=0)
    found = other.plan(5, 4.0, 1e-3)
    with pytest.raises(ValueError, match="it is of another model"):
        other.run(HOSPITALS, secure(found), found, Ledger(4.0, 1e-3, UNIT), state=state)


def test_a_sum_without_noise_is_never_used() -> None:
    found = SETTINGS.plan(5, 4.0, 1e-3)
    with pytest.raises(ValueError, match="what it tells has no bound"):
        SETTINGS.run(HOSPITALS, PlainSum(), found, Ledger(4.0, 1e-3, UNIT))


def test_rounding_is_not_reused_and_by_default_nobody_can_repeat_it() -> None:
    found = SETTINGS.plan(5, 4.0, 1e-3)
    codec = PrivateCodec(found, b"", found.dim - 1, 1.0, counted=True)

    def encoded(settings: PrivateSGD, task: str, number: int, name: str) -> list[int]:
        rng = settings._rng(task, number, name)
        grid = codec.on_grid(X[:5, [0, 1, 2, 3] * 2 + [0, 1]], rng)
        return to_integers(found, grid, rng).tolist()

    default = PrivateSGD(LogisticRegression(4))
    assert encoded(default, "t", 0, "a") != encoded(default, "t", 0, "a")
    places = [("t", 0, "a"), ("t", 1, "a"), ("t", 0, "b"), ("u", 0, "a")]
    assert len({str(encoded(SETTINGS, *place)) for place in places}) == 4
    assert encoded(SETTINGS, "t", 0, "a") == encoded(SETTINGS, "t", 0, "a")


@pytest.mark.parametrize("model", [LogisticRegression(4), MLP(4, 2, 5), LinearRegression(4)])
def test_gradients_by_record_are_those_of_the_whole(model: Any) -> None:
    params = model.initial(np.random.default_rng(1))
    targets = Y if not isinstance(model, LinearRegression) else Y.astype(float)
    layout = Layout.of(params)
    rows = by_record(model, params, layout, X, targets)
    assert rows.shape == (200, layout.dim)
    np.testing.assert_allclose(
        rows.mean(axis=0), layout.flatten(model.gradient(params, X, targets)), atol=1e-12
    )


def test_placed_uses_nothing_but_the_public_ranges() -> None:
    table = np.array([[0.0, 5.0], [10.0, -3.0], [5.0, 100.0]])
    np.testing.assert_allclose(placed(table, [(0, 10), (0, 20)]), [[-2, -1], [2, -2], [0, 2]])


@pytest.mark.parametrize(
    "change",
    [{"rounds": 0}, {"max_records": 0}, {"learning_rate": 0.0}, {"momentum": 1.0}, {"seed": -1},
     {"learning_rate": float("inf")}, {"clipping_norm": 0.0}, {"quantile": 0.0}, {"quantile": 1.0}],
)  # fmt: skip
def test_impossible_settings_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected"):
        PrivateSGD(LogisticRegression(4), **change)


def test_hospitals_that_cannot_take_part_are_named() -> None:
    found = SETTINGS.plan(5, 4.0, 1e-3)
    for x, y, says in ((X[:0], Y[:0], "hospital h0"), (X[:41], Y[:41], "41 records are more than the 40")):
        with pytest.raises(ValueError, match=says):
            SETTINGS.run({**HOSPITALS, "h0": (x, y)}, secure(found), found, Ledger(4.0, 1e-3, UNIT))


def test_no_sum_at_all_is_said() -> None:
    found = SETTINGS.plan(5, 4.0, 1e-3)
    gone = {i: {f"h{j}": "masked" for j in range(3)} for i in range(12)}
    rounds = SETTINGS.run(HOSPITALS, secure(found, dropouts=gone), found, Ledger(4.0, 1e-3, UNIT))
    assert all(isinstance(r.aborted, Aborted) for r in rounds)


@pytest.mark.parametrize("start", [100.0, 0.05])
def test_the_clipping_norm_finds_its_quantile(start: float, tmp_path: Path) -> None:
    """From far above and far below, with noise, to where half of the gradients are below it."""
    adaptive = PrivateSGD(
        LogisticRegression(4), rounds=60, learning_rate=1e-6, momentum=0.0, clipping_norm=start, quantile=0.5,
        max_records=40,
    )  # fmt: skip
    found = adaptive.plan(5, 20.0, 1e-3)
    assert found.dim == 10 + 2
    state = tmp_path / "state"
    rounds = adaptive.run(HOSPITALS, secure(found), found, Ledger(20.0, 1e-3, UNIT), state=state)
    with np.load(state) as kept:
        done, norm = kept["progress"]
    assert done == 60
    layout = Layout.of(rounds[-1].params)
    lengths = np.linalg.norm(by_record(adaptive.model, rounds[-1].params, layout, X, Y), axis=1)
    assert 0.35 < (lengths <= norm).mean() < 0.65


def test_adaptive_clipping_learns_within_the_same_budget() -> None:
    adaptive = replace(SETTINGS, quantile=0.5, clipping_norm=0.1)
    found = adaptive.plan(5, 4.0, 1e-3)
    ledger = Ledger(4.0, 1e-3, UNIT)
    rounds = adaptive.run(HOSPITALS, secure(found), found, ledger)
    assert accuracy(rounds[-1].params) > 0.8
    assert ledger.spent <= 4.0 * (1 + 1e-6)


def test_a_secret_sample_is_credited_and_both_numbers_are_kept() -> None:
    sampled = replace(SETTINGS, sampling=0.2)
    found = sampled.plan(5, 2.0, 1e-3)
    assert found.noise_multiplier < SETTINGS.plan(5, 2.0, 1e-3).noise_multiplier / 2
    ledger = Ledger(2.0, 1e-3, UNIT)
    rounds = sampled.run(HOSPITALS, secure(found), found, ledger)
    assert len(rounds) == 12
    assert np.mean([r.weight for r in rounds]) == pytest.approx(40, rel=0.5)
    assert 1.9 < ledger.spent <= 2.0 * (1 + 1e-6)
    assert ledger.spent_if_seen > 2 * ledger.spent


def test_samples_are_of_the_right_size_and_not_repeated() -> None:
    rng = seeded(b"sample")
    sizes = [len(_sample(1000, 0.2, rng)) for _ in range(300)]
    assert np.mean(sizes) == pytest.approx(200, abs=4)
    assert np.var(sizes) == pytest.approx(160, rel=0.4)
    assert _sample(5, 1.0, rng).tolist() == list(range(5))
    # Perhaps nobody is in it.
    assert len(_sample(3, 1e-12, rng)) == 0
    empty = replace(SETTINGS, sampling=1e-9, rounds=1)
    found = replace(SETTINGS, rounds=1).plan(5, 4.0, 1e-3)
    (done,) = empty.run(HOSPITALS, secure(found), replace(found, sampling=1e-9), Ledger(4.0, 1e-3, UNIT))
    assert done.weight < 100  # of 200
