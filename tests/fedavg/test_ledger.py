"""The ledger: what is charged, what is refused, and what a file of it must be."""

from __future__ import annotations

import json
import os
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from math import inf
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedavg.accounting import epsilon_of, mu_of
from fedavg.budget import BudgetSpent
from fedavg.files import alone
from fedavg.ledger import Ledger
from fedavg.privacy import plan
from protocols.errors import Aborted
from protocols.machine import Aggregate

PLAN = plan(10, 1.0, 10, 2.0, 1e-3, rounds=4, colluding=1, analysis="published")
MU = mu_of(2.0, 1e-3) / 2


def summed(noise: float, included: int = 10) -> Aggregate:
    names = tuple(f"c{i}" for i in range(included))
    return Aggregate(np.zeros(10, np.int64), names, {}, (), noise)


def test_the_budget_is_for_as_many_rounds_as_were_planned() -> None:
    ledger = Ledger(2.0, 1e-3, "one record")
    for number in range(4):
        ledger.reserve("t", number, PLAN)
        assert (ledger.releases[-1].mu, ledger.releases[-1].completed) == (PLAN.mu, False)
        ledger.settle(summed(PLAN.variance), PLAN)
    assert ledger.spent == pytest.approx(2.0, rel=1e-5)
    assert ledger.spent <= 2.0 * (1 + 1e-6)
    assert [r.honest for r in ledger.releases] == [9] * 4
    with pytest.raises(BudgetSpent, match=r"epsilon 2 of 2 is spent, .* make it 2\.2.*one record"):
        ledger.reserve("t", 4, PLAN)
    assert len(ledger.releases) == 4


def test_a_round_is_charged_for_the_noise_it_had() -> None:
    ledger = Ledger(2.0, 1e-3, "one record")
    ledger.reserve("t", 0, PLAN)
    ledger.settle(summed(PLAN.variance * 1.21), PLAN)
    assert ledger.releases[0].mu == pytest.approx(PLAN.mu / 1.1, rel=1e-4)


@pytest.mark.parametrize("revealed", [False, True])
def test_an_aborted_round_is_charged_if_anything_was_revealed(revealed: bool) -> None:
    ledger = Ledger(2.0, 1e-3, "one record")
    ledger.reserve("t", 0, PLAN)
    ledger.settle(Aborted("reveals", "too few", revealed=revealed), PLAN)
    assert ledger.spent == (pytest.approx(epsilon_of(PLAN.mu, 1e-3)) if revealed else 0.0)
    assert [r.completed for r in ledger.releases] == [False] * revealed


@pytest.mark.parametrize("noise", [0.0, PLAN.variance * 0.99])
def test_a_sum_without_its_noise_is_refused(noise: float) -> None:
    ledger = Ledger(2.0, 1e-3, "one record")
    ledger.reserve("t", 0, PLAN)
    with pytest.raises(ValueError, match="what it tells has no bound"):
        ledger.settle(summed(noise), PLAN)
    assert ledger.spent == inf
    with pytest.raises(BudgetSpent):
        ledger.reserve("t", 1, PLAN)


def test_a_sum_whose_vectors_should_have_brought_noise_and_did_not_is_refused() -> None:
    tight = plan(10, 1.0, 10, 2.0, 1e-3, rounds=4, analysis="tight")
    for carried, planned in ((0.0, tight), (4.0, PLAN)):
        ledger = Ledger(2.0, 1e-3, "one record")
        ledger.reserve("t", 0, planned)
        with pytest.raises(ValueError, match="what it tells has no bound"):
            ledger.settle(replace(summed(planned.variance), carried=carried), planned)


def test_a_round_that_was_never_heard_of_again_stays_charged(tmp_path: Path) -> None:
    path = tmp_path / "ledger.json"
    Ledger(2.0, 1e-3, "one record", path).reserve("t", 0, PLAN)
    after = Ledger(2.0, 1e-3, "one record", path)
    assert after.spent == pytest.approx(epsilon_of(PLAN.mu, 1e-3))
    assert not after.releases[0].completed


def test_two_ledgers_of_one_file_see_what_the_other_spent(tmp_path: Path) -> None:
    path = tmp_path / "ledger.json"
    one, two = (Ledger(2.0, 1e-3, "one record", path) for _ in range(2))
    for number in range(2):
        one.reserve("a", number, PLAN)
        two.reserve("b", number, PLAN)
    one.settle(Aborted("keys", "none"), PLAN)  # its own round, not the last in the file
    assert [(r.task, r.round) for r in one.releases] == [("a", 0), ("b", 0), ("b", 1)]
    two.settle(summed(PLAN.variance * 1.1), PLAN)
    assert [r.completed for r in Ledger(2.0, 1e-3, "one record", path).releases] == [False, False, True]


def _spend(path: str) -> int:
    ledger, spent = Ledger(2.0, 1e-3, "one record", Path(path)), 0
    try:
        for number in range(10):
            ledger.reserve(str(os.getpid()), number, PLAN)
            spent += 1
    except BudgetSpent:
        pass
    return spent


def test_processes_at_once_never_spend_more_than_there_is(tmp_path: Path) -> None:
    """Four have a budget for four rounds together."""
    with ProcessPoolExecutor(4, get_context("spawn")) as pool:
        spent = list(pool.map(_spend, [str(tmp_path / "ledger.json")] * 4))
    assert sum(spent) == 4
    assert len(Ledger(2.0, 1e-3, "one record", tmp_path / "ledger.json").releases) == 4


def test_one_waits_until_the_other_is_done(tmp_path: Path) -> None:
    """Between reading what was spent and writing what will be, nobody else does either."""
    path = tmp_path / "ledger.json"
    ledger = Ledger(2.0, 1e-3, "one record", path)
    with ThreadPoolExecutor(1) as other:
        with alone(path):
            waiting = other.submit(ledger.reserve, "t", 0, PLAN)
            with pytest.raises(TimeoutError):
                waiting.result(0.3)
            assert not path.exists()
        waiting.result(10)
    assert path.exists()


def test_a_file_goes_on_where_it_was(tmp_path: Path) -> None:
    path = tmp_path / "ledger.json"
    one = Ledger(2.0, 1e-3, "one record", path)
    assert not path.exists()
    one.reserve("t", 0, PLAN)
    one.reserve("t", 1, PLAN)
    two = Ledger(2.0, 1e-3, "one record", path)
    assert two.releases == one.releases
    assert two.spent == one.spent
    assert not (tmp_path / "ledger.json.new").exists()
    for other in ({"delta": 1e-4}, {"unit": "one hospital"}):
        with pytest.raises(ValueError, match=r"it is a ledger for delta 0\.001, one record"):
            Ledger(**{"epsilon": 2.0, "delta": 1e-3, "unit": "one record", "path": path} | other)  # type: ignore[arg-type]


def test_a_budget_may_be_raised_and_lowered(tmp_path: Path) -> None:
    """What was spent stays; what may be is decided by who asks."""
    path = tmp_path / "ledger.json"
    for number in range(4):
        Ledger(2.0, 1e-3, "one record", path).reserve("t", number, PLAN)
    with pytest.raises(BudgetSpent):
        Ledger(2.0, 1e-3, "one record", path).reserve("t", 4, PLAN)
    Ledger(3.0, 1e-3, "one record", path).reserve("t", 4, PLAN)
    with pytest.raises(BudgetSpent):
        Ledger(1.0, 1e-3, "one record", path).reserve("t", 5, PLAN)


def test_what_is_charged_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file, and then the folder that has its new name: or a power failure gives it back."""
    synced: list[str] = []
    true = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}")) or true(fd))
    Ledger(2.0, 1e-3, "one record", tmp_path / "ledger.json").reserve("t", 0, PLAN)
    assert [path for path in synced if "lock" not in path] == [
        str(tmp_path / "ledger.json.new"),
        str(tmp_path),
    ]


@pytest.mark.parametrize(
    "change",
    [
        lambda c: "no json", lambda c: json.dumps([]), lambda c: json.dumps({**c, "more": 1}),
        lambda c: json.dumps({**c, "releases": [{}]}), lambda c: "",
        lambda c: json.dumps({**c, "releases": [{**c["releases"][0], "mu": -1.0}]}),
        lambda c: json.dumps({**c, "releases": None}),
    ],
)  # fmt: skip
def test_a_file_that_is_no_ledger_is_refused_and_left(tmp_path: Path, change: Any) -> None:
    path = tmp_path / "ledger.json"
    Ledger(2.0, 1e-3, "one record", path).reserve("t", 0, PLAN)
    spoilt = change(json.loads(path.read_text()))
    path.write_text(spoilt)
    with pytest.raises(ValueError, match="expected a ledger of privacy"):
        Ledger(2.0, 1e-3, "one record", path)
    assert path.read_text() == spoilt


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the ledger cannot be written"):
        Ledger(2.0, 1e-3, "one record", tmp_path / "gone" / "ledger.json").reserve("t", 0, PLAN)


@pytest.mark.parametrize(
    ("epsilon", "delta"),
    [
        (0.0, 1e-5),
        (-1.0, 1e-5),
        (float("nan"), 1e-5),
        (1.0, 0.0),
        (1.0, 1.0),
        (float("inf"), 1e-5),
        (1.0, 1e-300),
    ],
)
def test_an_impossible_budget_is_refused(epsilon: float, delta: float) -> None:
    with pytest.raises(ValueError, match="expected"):
        Ledger(epsilon, delta, "one record")


def test_colluding_clients_are_said() -> None:
    ledger = Ledger(2.0, 1e-3, "one record")
    ledger.reserve("t", 0, PLAN)
    ledger.settle(summed(PLAN.variance, 8), replace(PLAN, colluding=3))
    assert (ledger.releases[0].included, ledger.releases[0].honest) == (8, 5)
