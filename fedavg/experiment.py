"""The comparison that `secagg demo` and `secagg train` show: alone, federated in the clear, federated
under secure aggregation, and pooled, on one held-out test set; or, with noise, alone and federated without it
and with it (`run_private`).

Everything is run for real: secure and plain federated averaging are two separate trainings, and that
they agree bit for bit is measured, round by round.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedavg.datasets import CLASSIFICATION, Dataset
from fedavg.ledger import Ledger
from fedavg.models import MLP, LinearRegression, LogisticRegression, Model
from fedavg.moments import Moments, moments
from fedavg.params import Arrays, Floats
from fedavg.partition import Partition
from fedavg.privacy import Plan
from fedavg.private import PrivateSGD, placed
from fedavg.round import Aggregator, Dropouts, PlainSum, SecureSum, Vectors
from fedavg.server import FedAvg, Hospitals, Round, check_hospitals
from fedavg.train import LocalSGD
from protocols.errors import Aborted
from protocols.graph import parameters
from protocols.machine import Aggregate

TEST_SHARE = 0.25
LEAST_OF_A_CLASS = 8
_PASSES = 60  # over pooled data, beside a training with noise


@dataclass(frozen=True, slots=True)
class Score:
    """On the test set: accuracy and area under the ROC curve, or R squared and root mean squared error."""

    first: float
    second: float


@dataclass
class Outcome:
    """What an experiment found. `scores` are by round; `difference` the largest between any parameter of
    the secure and the plain training, over all rounds. A round without a sum is left out of both."""

    metrics: tuple[str, str]
    sizes: dict[str, int]
    test_size: int
    alone: dict[str, Score]
    pooled: Score
    plain: list[Round]
    secure: list[Round]
    plain_scores: list[Score]
    secure_scores: list[Score]
    difference: float
    aggregator: SecureSum
    dropouts: Dropouts
    model: Arrays = field(repr=False)
    standard: Moments = field(repr=False)
    targets: Moments | None = field(repr=False, default=None)


def make_model(kind: str, data: Dataset) -> Model:
    """A model by name for a data set. Raises `ValueError` if they do not go together."""
    features, classes = data.x.shape[1], len(data.classes)
    if (kind == "linear") == (data.task == CLASSIFICATION):
        raise ValueError(f"model {kind!r} does not fit {data.name}, which is for {data.task}")
    if kind == "linear":
        return LinearRegression(features)
    return LogisticRegression(features, classes) if kind == "logistic" else MLP(features, classes)


def split(data: Dataset, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices for training and for the held-out test (a quarter), stratified by class."""
    from sklearn.model_selection import train_test_split

    strata = data.y if data.task == CLASSIFICATION else None
    if strata is not None:
        for label, count in zip(data.classes, np.bincount(strata, minlength=len(data.classes)), strict=True):
            if count < LEAST_OF_A_CLASS:
                raise ValueError(
                    f"{data.name}: class {label!r} has {count} records; at least {LEAST_OF_A_CLASS} are "
                    "needed to test on some of them"
                )
    train, test = train_test_split(
        np.arange(len(data.y)), test_size=TEST_SHARE, random_state=seed, stratify=strata
    )
    return np.sort(train), np.sort(test)


def score(model: Model, params: Arrays, x: Floats, y: NDArray[Any], task: str) -> Score:
    """A model's score on records it has not seen."""
    from sklearn.metrics import accuracy_score, r2_score, roc_auc_score

    found = model.scores(params, x)
    if task != CLASSIFICATION:
        return Score(float(r2_score(y, found)), float(np.sqrt(((found - y) ** 2).mean())))
    accuracy = float(accuracy_score(y, found.argmax(axis=1)))
    if found.shape[1] == 2:
        return Score(accuracy, float(roc_auc_score(y, found[:, 1])))
    return Score(
        accuracy, float(roc_auc_score(y, found, multi_class="ovr", labels=np.arange(found.shape[1])))
    )


def run(
    data: Dataset, partition: Callable[[NDArray[np.int64]], Partition], settings: FedAvg,
    agreed: Mapping[str, Any], dropouts: Callable[[list[str]], Dropouts], *, seed: int = 0,
    max_records: int | None = None, on_step: Callable[[str, int, int], None] | None = None,
) -> Outcome:  # fmt: skip
    """Run the whole comparison.

    `partition` splits the training indices; `dropouts` gives the schedule for the sorted hospitals' names.
    `max_records` is the public bound on a hospital's records; by default, as this is a simulation, the next
    power of two above the largest. `on_step` is called with (what, done, of how many).

    Raises `Aborted` if the statistics cannot be summed or no round succeeds.
    """
    tell = on_step or (lambda what, done, of: None)
    train, test = split(data, seed)
    parts = {name: train[rows] for name, rows in partition(train).items()}
    if max_records is None:
        max_records = 1 << max(len(rows) for rows in parts.values()).bit_length()
    settings = replace(settings, max_weight=max_records)
    model = settings.model
    schedule = dropouts(sorted(parts))
    tables = {name: data.x[rows] for name, rows in parts.items()}
    sums = 4 if data.task == CLASSIFICATION else 8  # ranges and sums, of values and of squares
    number = itertools.count(1)

    def counted(task: str) -> Aggregator:
        """Secure sums of which each is told when it is there."""
        aggregate = SecureSum({**agreed, "task": task}, seed=seed)

        def one(
            vectors: Vectors, bound: int, round: int, model_hash: bytes = bytes(32)
        ) -> Aggregate | Aborted:
            result = aggregate(vectors, bound, round, model_hash)
            tell("ranges and means", next(number), sums)
            return result

        return one

    standard = moments(tables, counted("features"), max_records)
    x, y, restore = standard.standardise(data.x), data.y, None
    if data.task != CLASSIFICATION:
        targets = {name: data.y[rows, None] for name, rows in parts.items()}
        restore = moments(targets, counted("targets"), max_records)
        y = restore.standardise(data.y[:, None])[:, 0]
    hospitals: Hospitals = {name: (x[rows], y[rows]) for name, rows in parts.items()}

    def judge(params: Arrays) -> Score:
        found = score(model, params, x[test], y[test], data.task)
        if restore is None:
            return found
        return Score(found.first, found.second * float(restore.deviation[0]))

    passes = settings.rounds * settings.local.epochs
    alone = {}
    for done, (name, (theirs, labels)) in enumerate(hospitals.items(), 1):
        alone[name] = judge(_central(settings, theirs, labels, passes))
        tell("each hospital alone", done, len(hospitals))
    pooled = judge(_central(settings, x[train], y[train], passes))
    secure_sum = SecureSum(agreed, schedule, seed)
    secure = settings.run(
        hospitals, secure_sum, lambda r: tell("secure FedAvg", r.number + 1, settings.rounds)
    )
    failures = {r.number: r.aborted for r in secure if r.aborted is not None}
    if len(failures) == len(secure):
        raise failures[0]
    plain_sum = PlainSum(schedule, failures)
    plain = settings.run(hospitals, plain_sum, lambda r: tell("plain FedAvg", r.number + 1, settings.rounds))
    metrics = ("accuracy", "AUC") if data.task == CLASSIFICATION else ("R²", "RMSE")
    return Outcome(
        metrics, {name: len(rows) for name, rows in parts.items()}, len(test), alone, pooled, plain, secure,
        [judge(r.params) for r in plain], [judge(r.params) for r in secure], _difference(plain, secure),
        secure_sum, schedule, secure[-1].params, standard, restore,
    )  # fmt: skip


@dataclass
class PrivateOutcome:
    """What a training with a guarantee for every record found, beside the same without noise."""

    metrics: tuple[str, str]
    sizes: dict[str, int]
    test_size: int
    alone: dict[str, Score]
    pooled: Score
    plain_scores: list[Score]
    rounds: list[Round]
    scores: list[Score]
    plan: Plan
    ledger: Ledger
    seeded: bool
    model: Arrays = field(repr=False)


def run_private(
    data: Dataset, partition: Callable[[NDArray[np.int64]], Partition], settings: PrivateSGD,
    agreed: Mapping[str, Any], dropouts: Callable[[list[str]], Dropouts], ledger: Ledger, *, seed: int = 0,
    colluding: int | None = None, max_records: int | None = None, state: Path | None = None,
    on_step: Callable[[str, int, int], None] | None = None,
) -> PrivateOutcome:  # fmt: skip
    """Train with the guarantee that `ledger` is a budget of, and without any, on the same split.

    Features, and a float target, are brought to scale by the data set's public ranges: no statistics are
    asked. By default as many hospitals' noise is not counted on as may be corrupted. `seed` is of the split;
    the one of `settings` reproduces the noise as well. `state` is as in `PrivateSGD.run`. For the rest see
    `run`. Raises `Aborted` if no round succeeds, `BudgetSpent` if the ledger affords none.
    """
    tell = on_step or (lambda what, done, of: None)
    if data.ranges is None:
        raise ValueError(f"{data.name}: a guarantee needs the public range of every feature")
    train, test = split(data, seed)
    parts = {name: train[rows] for name, rows in partition(train).items()}
    if max_records is None:
        max_records = 1 << max(len(rows) for rows in parts.values()).bit_length()
    settings = replace(settings, max_records=max_records)
    features = data.x.shape[1]
    x, y, width = placed(data.x, data.ranges[:features]), data.y, 1.0
    if data.task != CLASSIFICATION:
        low, high = data.ranges[features]
        y, width = placed(data.y[:, None], [(low, high)])[:, 0], (high - low) / 4
    hospitals: Hospitals = {name: (x[rows], y[rows]) for name, rows in parts.items()}
    check_hospitals(hospitals, settings.max_records)

    def judge(params: Arrays) -> Score:
        found = score(settings.model, params, x[test], y[test], data.task)
        return found if data.task == CLASSIFICATION else Score(found.first, found.second * width)

    alone = {}
    for done, name in enumerate(hospitals, 1):
        alone[name] = judge(replace(settings, turns=1).without_noise({name: hospitals[name]})[-1])
        tell("each hospital alone", done, len(hospitals))
    # What one would do without any of this.
    usual = FedAvg(settings.model, LocalSGD(1, 16, 0.05), seed=seed)
    pooled = judge(_central(usual, x[train], y[train], _PASSES))
    plain = [judge(params) for params in settings.without_noise(hospitals)]
    tell("without noise", 1, 1)
    demands = {k: agreed[k] for k in ("corrupted", "dropout", "protocol", "threat_model") if k in agreed}
    exact = parameters(len(hospitals), **{"corrupted": 0.1, "dropout": 0.1, **demands})
    colluding = exact.corrupted if colluding is None else colluding
    found = settings.plan(
        len(hospitals), ledger.epsilon, ledger.delta, colluding=colluding,
        least=max(exact.min_included, len(hospitals) - exact.dropped),
    )  # fmt: skip
    agreed = {**agreed, "noise": found.noisy, "bits": found.bits}
    aggregator = SecureSum(agreed, dropouts(sorted(parts)), settings.seed)
    rounds = settings.run(
        hospitals, aggregator, found, ledger, state=state,
        on_round=lambda r: tell("with noise", r.number + 1, settings.rounds),
    )  # fmt: skip
    if all(r.aborted is not None for r in rounds):
        assert rounds[0].aborted is not None
        raise rounds[0].aborted
    metrics = ("accuracy", "AUC") if data.task == CLASSIFICATION else ("R²", "RMSE")
    return PrivateOutcome(
        metrics, {name: len(rows) for name, rows in parts.items()}, len(test), alone, pooled, plain, rounds,
        [judge(r.params) for r in rounds], found, ledger, settings.seed is not None, rounds[-1].params,
    )  # fmt: skip


def _central(settings: FedAvg, x: Floats, y: NDArray[Any], passes: int) -> Arrays:
    """Ordinary training in one place, with as many passes over the data as the federation makes."""
    rng = np.random.default_rng(settings.seed)
    params = settings.model.initial(np.random.default_rng(settings.seed))
    for _ in range(passes // settings.local.epochs):
        params = settings.local(settings.model, params, x, y, rng)
    return params


def _difference(plain: list[Round], secure: list[Round]) -> float:
    """The largest absolute difference of any parameter after any round; infinite if the lengths differ."""
    if len(plain) != len(secure):
        return float("inf")
    return max(
        float(np.abs(p - s).max())
        for a, b in zip(plain, secure, strict=True)
        for p, s in zip(a.params, b.params, strict=True)
    )


def who_dropped(outcome: Outcome) -> list[tuple[int, str, str]]:
    """(round, hospital, stage) of every dropout that really happened, in order."""
    return [
        (r.number, fault.culprits[0], fault.stage)
        for r in outcome.secure
        for fault in r.faults
        if len(fault.culprits) == 1
    ]


def aborted(outcome: Outcome) -> list[tuple[int, Aborted]]:
    """The rounds that gave no sum, and why."""
    return [(r.number, r.aborted) for r in outcome.secure if r.aborted is not None]
