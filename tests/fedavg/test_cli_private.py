"""`secagg train --epsilon`, `secagg demo --epsilon` and `secagg privacy`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from fedavg.accounting import mu_of
from fedavg.cli import cli
from fedavg.datasets import breast_cancer, diabetes, from_csv
from fedavg.ledger import Ledger
from fedavg.private import UNIT
from protocols import threshold_paillier


def secagg(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(cli, [str(w) for w in words], prog_name="secagg")
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def works(*words: object) -> str:
    code, printed = secagg(*words)
    assert code == 0, printed
    return printed


def fails(*words: object) -> str:
    code, printed = secagg(*words)
    assert code != 0, printed
    assert printed.count("Error: ") == 1
    return printed


def one_line(text: str) -> str:
    return " ".join(text.split())


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Records with a class and a quantity that follow from two features."""
    rng = np.random.default_rng(1)
    age, dose = rng.integers(20, 80, 240), rng.uniform(0, 10, 240)
    lines = [
        f"{a},{d:.3f},{'high' if d > 5 else 'low'},{a / 10 + d:.3f}" for a, d in zip(age, dose, strict=True)
    ]
    path = tmp_path / "table.csv"
    path.write_text("age,dose,risk,outcome\n" + "\n".join(lines) + "\n")
    return path


def test_the_demo_with_a_guarantee(tmp_path: Path) -> None:
    picture = tmp_path / "curves.png"
    printed = one_line(works("demo", "--epsilon", 3, "--rounds", 12, "--seed", 3, "--picture", picture))
    assert "Guarantee: epsilon 3 at delta 1e-05 for one record, there or not" in printed
    assert "together, with the guarantee 0.9" in printed
    assert "of 7 to 10 hospitals" in printed
    assert "at most 3 of the hospitals leave out their noise" in printed
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_guarantee_under_keys_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The noise is the same, whatever protocol carries it."""
    monkeypatch.setattr(threshold_paillier, "KEY_BITS", 2048)
    scores = tmp_path / "scores.json"
    works("train", "--protocol", "threshold-paillier", "--threat-model", "malicious", "--epsilon", 8,
          "--hospitals", 4, "--rounds", 4, "--dropout", 0.25, "--dropping", 0.25, "--seed", 2,
          "--json", scores, "--picture", tmp_path / "p.png")  # fmt: skip
    found = json.loads(scores.read_text())
    assert len(found["with_noise"]) == 4
    assert found["with_noise"][-1]["accuracy"] > 0.8
    assert found["spent"] > 7.9


def test_train_with_a_guarantee_writes_what_was_asked(tmp_path: Path) -> None:
    scores, model, state = tmp_path / "scores.json", tmp_path / "model.npz", tmp_path / "state"
    words = ("train", "--epsilon", 4, "--hospitals", 5, "--colluding", 1, "--dropout", 0.2, "--dropping", 0.2,
             "--seed", 1)  # fmt: skip
    printed = one_line(
        works(*words, "--rounds", 8, "--json", scores, "--save", model, "--state", state,
              "--picture", tmp_path / "p.png")
    )  # fmt: skip
    assert "at most 1 of the hospitals leave out their noise" in printed
    found = json.loads(scores.read_text())
    assert len(found["with_noise"]) == 8
    assert found["with_noise"][-1]["accuracy"] > 0.85
    assert 3.9 < found["spent"] <= 4.0 * (1 + 1e-6)
    assert found["plan"]["colluding"] == 1
    with np.load(model) as kept:
        assert kept["ranges"].shape == (30, 2)
        assert kept["parameter_0"].shape == (30, 2)
    ledger = Ledger(4.0, 1e-5, UNIT, tmp_path / "state.ledger.json")
    assert len(ledger.releases) == 8
    assert "rounds: 8 are done" in fails(*words, "--rounds", 8, "--state", state)
    # For more rounds there is nothing left.
    assert "another round would make it" in one_line(fails(*words, "--rounds", 200, "--state", state))


def test_a_quantity_and_public_ranges_of_a_file(table: Path) -> None:
    ranges = ("--range", "age:0:100", "--range", "dose:0:10", "--range", "target:0:20")
    words = (
        "train",
        "--csv",
        table,
        "--label",
        "outcome",
        "--ignore",
        "risk",
        "--epsilon",
        8,
        "--hospitals",
        4,
    )
    printed = works(*words, *ranges, "--rounds", 40)
    score = float(printed.split("together, with the guarantee")[1].split()[0])
    assert score > 0.5
    assert "--range 'age:LOW:HIGH' --range 'dose:LOW:HIGH' --range 'target:LOW" in one_line(fails(*words))
    assert "not from the data: --range 'target:LOW:HIGH' (target is" in one_line(fails(*words, *ranges[:4]))


def test_a_class_of_a_file(table: Path) -> None:
    words = (
        "train",
        "--csv",
        table,
        "--label",
        "risk",
        "--ignore",
        "outcome",
        "--epsilon",
        8,
        "--hospitals",
        4,
    )
    printed = works(*words, "--range", "age:0:100", "--range", "dose:0:10", "--partition", "iid")
    assert float(printed.split("together, with the guarantee")[1].split()[0]) > 0.8


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--epsilon", 0], "epsilon: expected a positive number"),
        (["--epsilon", "nan"], "epsilon: expected a positive number"),
        (["--epsilon", 1, "--delta", 0.5], "one over the contributions"),
        (["--epsilon", 1, "--delta", 0], "delta: expected a number between 1e-24 and 1"),
        (["--epsilon", 1, "--bits", 12], "--bits does not go with --epsilon"),
        (["--epsilon", 1, "--epochs", 1], "--epochs does not go with --epsilon"),
        (["--epsilon", 1, "--equal-weights"], "--equal-weights does not go with --epsilon"),
        (["--epsilon", 1, "--colluding", 10], "expected fewer than are in a sum"),
        (["--epsilon", 1, "--range", "age"], "expected COLUMN:LOW:HIGH"),
        (["--epsilon", 1, "--range", "age:0:1"], "there is no feature 'age'"),
        (["--epsilon", 1, "--range", "mean radius:5:5"], "expected a low below a high value"),
        (["--epsilon", 1, "--dropout", 0.9], "fewer than 2 honest contributors"),
        (["--state", "x"], "--state goes with --epsilon"),
        (["--colluding", 1], "--colluding goes with --epsilon"),
        (["--epsilon", 1, "--state", "/nowhere/x"], "there is no such folder"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_said_in_one_line(words: list[object], says: str) -> None:
    assert says in one_line(fails("train", *words))


def test_a_plan_is_a_table_a_picture_and_json(tmp_path: Path) -> None:
    picture = tmp_path / "plan.png"
    words = ("privacy", "--hospitals", 10, "--max-records", 64, "--dim", 63)
    printed = works(*words, "--picture", picture)
    assert "4 4.84 10 4.84 4.835 15.29" in one_line(printed)
    assert picture.read_bytes().startswith(b"\x89PNG")
    found = json.loads(works(*words, "--epsilon", 2, "--epsilon", 4, "--json"))
    assert [p["epsilon"] for p in found] == [2, 4]
    assert found[0]["noise_multiplier"] == pytest.approx(8.92, abs=0.01)
    assert found[0]["noise_multiplier"] == pytest.approx(20**0.5 / mu_of(2.0, 1e-5))
    assert "one hospital's whole contribution" in works("privacy", "--epsilon", 1)
    assert "bits: 4 make the mean squared error" in fails(
        "privacy", "--epsilon", 100, "--bits", 4, "--dim", 100_000
    )


def test_public_ranges_hold_every_record() -> None:
    """The descriptions were rounded outwards: nothing is cut."""
    for data in (breast_cancer(), diabetes()):
        assert data.ranges is not None
        low, high = np.array(data.ranges).T
        columns = data.x if data.classes else np.column_stack([data.x, data.y])
        assert columns.shape[1] == len(data.ranges)
        assert (columns.min(axis=0) >= low).all()
        assert (columns.max(axis=0) <= high).all()


def test_a_file_has_no_ranges_of_its_own(table: Path) -> None:
    assert from_csv(table, "risk", ignore=("outcome",)).ranges is None


def test_an_audit_says_what_it_found() -> None:
    printed = one_line(works("privacy", "--audit", "--epsilon", 4, "--canaries", 2000))
    assert "One round of 10 hospitals, 2,000 canaries" in printed
    assert "refuted" not in printed
    (found,) = json.loads(works("privacy", "--audit", "--epsilon", 4, "--canaries", 2000, "--json"))
    assert 2 < found["gaussian"] <= 4
    assert not found["refuted"]
    assert "--dim does not go with --audit" in fails("privacy", "--audit", "--dim", 10)
    assert "--canaries goes with --audit" in fails("privacy", "--canaries", 1000)


def test_sampling_is_planned_and_trained_with() -> None:
    words = ("privacy", "--max-records", 64, "--epsilon", 1, "--json")
    everybody, some = (json.loads(works(*words, "--sampling", q))[0] for q in (1.0, 0.1))
    assert some["noise_multiplier"] < everybody["noise_multiplier"] / 3
    printed = one_line(
        works("train", "--epsilon", 2, "--sampling", 0.3, "--clip-quantile", 0.5, "--rounds", 15)
    )
    assert "a secret sample of 0.3 of the records; who sees it learns more: epsilon" in printed
    for option in ("--sampling", "--clip-quantile"):
        assert f"{option} goes with --epsilon" in fails("train", option, 0.5)


def test_turns_are_planned_and_trained_with() -> None:
    printed = one_line(works("privacy", "--turns", 5, "--epsilon", 1, "--max-records", 64))
    assert "times 4, 3, 2, 2, 2 in it" in printed
    assert "their error is 0.65 times what it would be with independent noise" in printed
    printed = one_line(works("train", "--epsilon", 8, "--turns", 3, "--turns-of", "hospitals"))
    assert "In each round are those whose turn it is, one in 3." in printed
    assert "--turns-of goes with --epsilon" in fails("train", "--turns-of", "hospitals")
    assert "not both" in fails("train", "--epsilon", 8, "--turns", 3, "--sampling", 0.5)


def test_what_accuracy_is_left_is_found_by_training(tmp_path: Path) -> None:
    picture = tmp_path / "accuracy.png"
    words = ("privacy", "--dataset", "breast-cancer", "--hospitals", 4, "--rounds", 10)
    printed = works(*words, "--epsilon", 0.1, "--epsilon", 8, "--picture", picture)
    rows = [line.split() for line in printed.splitlines() if line.split()[:1] in (["0.1"], ["8"])]
    assert float(rows[0][-2]) < float(rows[1][-2]) > 0.85
    assert picture.read_bytes().startswith(b"\x89PNG")
    (found,) = json.loads(works(*words, "--epsilon", 8, "--json"))
    assert found["plan"]["epsilon"] == 8
    assert "--dim does not go with --dataset" in fails(*words, "--dim", 9)


def test_nobody_can_repeat_the_noise_unless_a_seed_was_given(tmp_path: Path) -> None:
    """By default the seed is of the split alone: who knew that of the noise could take it out again."""
    words = ("train", "--epsilon", 2, "--rounds", 2, "--hospitals", 4, "--save", tmp_path / "model.npz")

    def model(*more: object) -> tuple[list[float], str]:
        printed = one_line(works(*words, *more))
        with np.load(tmp_path / "model.npz") as found:
            return found["parameter_0"].ravel().tolist(), printed

    warning = "came from the --seed that was given: to who knows it, nothing is guaranteed"
    (one, said), (two, _) = model(), model()
    assert one != two
    assert warning not in said
    (one, said), (two, _) = model("--seed", 0), model("--seed", 0)
    assert one == two
    assert warning in said
    assert "--delta goes with --epsilon" in fails("train", "--delta", 0.3)


def test_a_training_goes_on_and_draws_its_picture(tmp_path: Path) -> None:
    words = ("train", "--epsilon", 4, "--hospitals", 4, "--state", tmp_path / "state")
    works(*words, "--rounds", 3)
    picture = tmp_path / "curves.png"
    (tmp_path / "state.ledger.json").rename(tmp_path / "elsewhere")
    assert "that the ledger does not know: is it lost?" in one_line(fails(*words, "--rounds", 6))
    (tmp_path / "elsewhere").rename(tmp_path / "state.ledger.json")
    assert "3 are done, and no more than 3 were asked for: ask for more" in one_line(
        fails(*words, "--rounds", 3)
    )
    printed = one_line(works(*words[:2], 9, *words[3:], "--rounds", 6, "--picture", picture))
    assert "3 of 3 rounds gave a sum" in printed
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "colluding 1" in one_line(fails(*words, "--rounds", 9, "--colluding", 1))
