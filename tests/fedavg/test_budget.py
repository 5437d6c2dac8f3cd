"""A budget is spent once, whoever spends: other threads, other processes, and after a restart."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fedavg.budget import Budget, BudgetSpent


def spend_all(budget: Budget) -> int:
    """How many queries could be spent until none was left."""
    for spent in range(1000):
        try:
            budget.spend()
        except BudgetSpent:
            return spent
    raise AssertionError("no limit")


@pytest.fixture(params=["memory", "file"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    return tmp_path / "budget" if request.param == "file" else None


@pytest.mark.parametrize("limit", [0, 1, 7])
def test_exactly_the_limit_can_be_spent(path: Path | None, limit: int) -> None:
    budget = Budget(limit, path)
    assert (budget.spent, budget.left) == (0, limit)
    assert spend_all(budget) == limit
    assert (budget.spent, budget.left) == (limit, 0)
    with pytest.raises(BudgetSpent, match=f"{limit} queries may be answered, and {limit} were: none is left"):
        budget.spend()
    assert budget.spent == limit, "a refusal costs nothing"


def test_twenty_by_default() -> None:
    assert spend_all(Budget()) == 20


def test_threads_share_a_budget(path: Path | None) -> None:
    budget = Budget(40, path)
    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(spend_all, [budget] * 8)) == 40


def test_a_file_outlives_its_budget(tmp_path: Path) -> None:
    first = Budget(5, tmp_path / "budget")
    first.spend()
    first.spend()
    del first
    again = Budget(5, tmp_path / "budget")
    assert again.left == 3
    assert spend_all(again) == 3
    raised = Budget(7, tmp_path / "budget")
    assert spend_all(raised) == 2
    lowered = Budget(2, tmp_path / "budget")
    assert (lowered.spent, lowered.left) == (7, 0)
    with pytest.raises(BudgetSpent, match="2 queries may be answered, and 7 were"):
        lowered.spend()


def test_two_in_memory_are_two() -> None:
    first, second = Budget(1), Budget(1)
    first.spend()
    assert second.left == 1


def test_processes_cannot_both_spend_the_last(tmp_path: Path) -> None:
    code = """
import sys
from fedavg.budget import Budget, BudgetSpent
spent = 0
try:
    while True:
        Budget(300, sys.argv[1]).spend()
        spent += 1
except BudgetSpent:
    print(spent)
"""
    processes = [
        subprocess.Popen([sys.executable, "-c", code, tmp_path / "budget"], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    counts = [int(process.communicate(timeout=60)[0]) for process in processes]
    assert sum(counts) == 300
    assert Budget(300, tmp_path / "budget").left == 0


def test_what_is_spent_is_there_when_the_process_is_killed(tmp_path: Path) -> None:
    code = "import os, sys; from fedavg.budget import Budget; Budget(3, sys.argv[1]).spend(); os._exit(9)"
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "budget"], timeout=60, check=False)
    assert done.returncode == 9
    assert Budget(3, tmp_path / "budget").spent == 1


def test_a_file_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("this is no database, but long enough to be looked at " * 4)
    for name in ("text", "no/budget", "."):
        with pytest.raises(ValueError, match="budget: cannot use") as caught:
            Budget(3, tmp_path / name)
        assert not isinstance(caught.value, BudgetSpent)


def test_a_file_that_goes_bad_stops_the_spending(tmp_path: Path) -> None:
    budget = Budget(3, tmp_path / "budget")
    (tmp_path / "budget").write_text("this is no database, but long enough to be looked at " * 4)
    with pytest.raises(ValueError, match="budget: cannot use"):
        budget.spend()


@pytest.mark.parametrize("limit", [-1, 1.5, True, "3", None, 1 << 63])
def test_a_limit_that_is_none(limit: object) -> None:
    with pytest.raises(ValueError, match=r"budget: expected a limit from 0 to 2\^63 - 1, got"):
        Budget(limit)  # type: ignore[arg-type]


def test_the_repr_says_limit_and_place(tmp_path: Path) -> None:
    assert repr(Budget(3)) == "Budget(limit=3, path=None)"
    assert repr(Budget(3, tmp_path / "b")) == f"Budget(limit=3, path={str(tmp_path / 'b')!r})"
