"""The comparison: secure and plain are two trainings whose difference is measured, and is 0."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fedavg import experiment, partition
from fedavg.datasets import Dataset
from fedavg.experiment import Outcome, make_model
from fedavg.round import PlainSum
from fedavg.server import FedAvg
from fedavg.train import LocalSGD
from protocols.errors import Aborted

NAMES = [f"h{i}" for i in range(6)]
AGREED = {"threat_model": "malicious", "corrupted": 0.0, "dropout": 0.2}
"""Of six hospitals, one may drop out."""


def dataset(task: str = "classification", records: int = 96) -> Dataset:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(records, 3)) * [1.0, 100.0, 0.01] + [0.0, 5.0, 1.0]
    value = x @ [1.0, 0.01, -50.0]
    y = (value > np.median(value)).astype(np.int64) if task == "classification" else value
    return Dataset("made", x, y, ("a", "b", "c"), ("no", "yes") if task == "classification" else ())


def compare(
    dropouts: Any = None, data: Dataset | None = None, rounds: int = 3, names: list[str] = NAMES, **more: Any
) -> Outcome:
    data = data or dataset()
    kind = "logistic" if data.classes else "linear"
    settings = FedAvg(make_model(kind, data), LocalSGD(1, 8, 0.1), rounds, clipping_norm=4.0)

    def evenly(train: Any) -> Any:
        return partition.iid(len(train), names, np.random.default_rng(0))

    return experiment.run(data, evenly, settings, AGREED, lambda _: dropouts or {}, **more)


def raw(rounds: Any) -> list[list[bytes]]:
    return [[p.tobytes() for p in r.params] for r in rounds]


TOO_MANY = dict.fromkeys(NAMES[:4], "masked")


@pytest.mark.parametrize("task", ["classification", "regression"])
@pytest.mark.parametrize(
    "gone",
    [[], [0], [1, 3], [0, 2, 3]],
    ids=lambda gone: "aborted " + (" ".join(map(str, gone)) or "never"),
)
def test_rounds_without_a_sum_leave_no_difference(task: str, gone: list[int]) -> None:
    dropouts = {r: TOO_MANY if r in gone else {NAMES[r]: "shares"} for r in range(4)}
    found = compare(dropouts, dataset(task), rounds=4)
    assert found.difference == 0
    assert raw(found.plain) == raw(found.secure)
    assert found.plain_scores == found.secure_scores
    assert [number for number, _ in experiment.aborted(found)] == gone
    for plain, secure in zip(found.plain, found.secure, strict=True):
        assert (plain.included, plain.weight, plain.change) == (secure.included, secure.weight, secure.change)
        assert len(secure.included) == (0 if secure.number in gone else 5)
    before = [None, *raw(found.secure)]
    assert [r for r in (1, 2, 3) if before[r] == before[r + 1]] == [r for r in gone if r]
    assert [(r, n) for r, n, _ in experiment.who_dropped(found)] == [
        (r, n) for r in range(4) for n in sorted(dropouts[r])
    ]


@pytest.mark.parametrize("stage", ["masked", "signatures", "reveals"])
def test_it_does_not_matter_at_which_stage_a_round_was_aborted(stage: str) -> None:
    found = compare({1: dict.fromkeys(NAMES[:4], stage)})
    ((number, why),) = experiment.aborted(found)
    assert (number, why.stage) == (1, stage)
    assert found.difference == 0
    assert raw(found.plain) == raw(found.secure)


def test_a_plain_training_that_did_differ_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def off_by_one(self: PlainSum, *words: Any) -> Any:
        result = exact(self, *words)
        if words[2] == 1:
            result.sum[0] += 1
        return result

    exact: Callable[..., Any] = PlainSum.__call__
    monkeypatch.setattr(PlainSum, "__call__", off_by_one)
    found = compare()
    assert 0 < found.difference < 0.01
    apart = [a != b for a, b in zip(raw(found.plain), raw(found.secure), strict=True)]
    assert apart == [False, True, True]


def test_if_no_round_gave_a_sum_the_first_reason_is_raised() -> None:
    with pytest.raises(Aborted, match="aborted at masked: 2 clients sent masked vectors"):
        compare(dict.fromkeys(range(3), TOO_MANY))


# --------------------------------------------------------------------------------- the public bound


@pytest.mark.parametrize(("records", "largest", "bound"), [(64, 8, 16), (56, 7, 8)])
def test_the_bound_on_records_is_by_default_the_next_power_of_two_above_the_largest(
    monkeypatch: pytest.MonkeyPatch, records: int, largest: int, bound: int
) -> None:
    told: list[int] = []
    really = FedAvg.run

    def run(self: FedAvg, *words: Any) -> Any:
        told.append(self.max_weight)
        return really(self, *words)

    monkeypatch.setattr(FedAvg, "run", run)
    monkeypatch.setattr(
        experiment, "moments", lambda t, s, most, m=experiment.moments: (told.append(most), m(t, s, most))[1]
    )
    found = compare(data=dataset(records=records), rounds=1)
    assert max(found.sizes.values()) == largest
    assert told == [bound] * 3, "for the features, for the secure and for the plain training"
    told.clear()
    compare(data=dataset(records=records), rounds=1, max_records=100)
    assert told == [100] * 3


def test_a_hospital_above_the_bound_on_records_is_refused() -> None:
    assert compare(rounds=1, max_records=12).difference == 0
    with pytest.raises(ValueError, match="table of h0: expected 1 to 11 records, got 12"):
        compare(max_records=11)


# ------------------------------------------------------------------------------------------ the test


@pytest.mark.parametrize("few", [0, 1, 7])
def test_a_class_of_fewer_than_eight_records_is_refused(few: int) -> None:
    data = dataset()
    y = np.ones(96, np.int64)
    y[:few] = 0
    with pytest.raises(ValueError, match=f"made: class 'no' has {few} records; at least 8 are needed"):
        experiment.split(Dataset("made", data.x, y, data.features, ("no", "yes")), 0)


def test_eight_records_of_a_class_are_on_both_sides() -> None:
    data = dataset()
    y = np.ones(96, np.int64)
    y[:8] = 0
    for seed in range(5):
        train, test = experiment.split(Dataset("made", data.x, y, data.features, ("no", "yes")), seed)
        assert sorted([*train, *test]) == list(range(96))
        assert len(test) == 24
        assert ((y[train] == 0).sum(), (y[test] == 0).sum()) == (6, 2)


def test_progress_is_told() -> None:
    told: list[tuple[str, int, int]] = []
    compare(on_step=lambda *step: told.append(step))
    for step, of in (("each hospital alone", 6), ("secure FedAvg", 3), ("plain FedAvg", 3)):
        assert [t for t in told if t[0] == step] == [(step, i, of) for i in range(1, of + 1)]
