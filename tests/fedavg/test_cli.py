"""The command `secagg`: what it prints and writes, and one clear line for everything that is wrong."""

import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from fedavg.cli import cli
from fedavg.cli_train import random_dropouts
from fedavg.datasets import from_csv
from fedavg.round import Dropouts
from protocols import threshold_paillier
from protocols.graph import parameters

SAME = "0 (bit for bit the same)"


def secagg(*words: object) -> Result:
    """Run the command in this process; warnings are errors here."""
    return CliRunner().invoke(cli, [str(w) for w in words], prog_name="secagg")


def works(*words: object) -> str:
    result = secagg(*words)
    assert result.exit_code == 0, (result.output, result.exception)
    return str(result.output)


def fails(*words: object) -> str:
    """The one line in which the command says what is wrong."""
    result = secagg(*words)
    assert result.exit_code != 0, result.output
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    lines = result.output.strip().splitlines()
    assert sum(line.startswith("Error: ") for line in lines) == 1
    if not lines[0].startswith("Usage: "):
        assert len(lines) == 1, lines
    # Only what click itself refuses comes with its usage, and over several lines.
    return "\n".join(lines)[result.output.index("Error: ") + len("Error: ") :]


def python(code: str, *, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, timeout=60, check=False
    )


def command(*words: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "secagg", *map(str, words)],
        cwd=cwd, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def without(module: str, *words: str) -> str:
    """Code that runs the command where a module is not installed."""
    return f"""
import runpy, sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            raise ModuleNotFoundError("No module named " + repr(name), name=name)

sys.meta_path.insert(0, Missing())
sys.argv = ["secagg", *{list(words)!r}]
runpy.run_module("secagg", run_name="__main__")
"""


def assert_png(path: Path) -> None:
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", data[16:24])
    assert 600 <= width <= 3000
    assert 300 <= height <= 2000
    assert 10_000 < len(data) < 1_000_000
    assert b"IEND" in data[-12:]


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CSV files of four hospitals: classes in `kind`, a quantity in `amount`."""
    folder = tmp_path_factory.mktemp("tables")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(120, 3))
    kinds = np.array(["ant", "bee", "cat"])[np.digitize(x[:, 0] + 0.3 * x[:, 1], [-0.5, 0.5])]
    amounts = x @ [1.0, 2.0, -1.0] + 10
    towns = [f"town-{i}" for i in rng.integers(0, 4, 120)]
    lines = [f"{a:.6f},{b:.6f},{c:.6f}" for a, b, c in x]

    def write(name: str, label: str, values: Any, places: Any = towns) -> None:
        rows = [f"{line},{v},{t}" for line, v, t in zip(lines, values, places, strict=True)]
        (folder / name).write_text(f"a,b,c,{label},town\n" + "\n".join(rows) + "\n")

    write("kinds.csv", "kind", kinds)
    write("amounts.csv", "amount", [f"{v:.4f}" for v in amounts])
    write("two-towns.csv", "kind", kinds, ["x", "y"] * 60)
    write("no-name.csv", "kind", kinds, ["", "x", "y"] * 40)
    write("a-server.csv", "kind", kinds, ["server", "x", "y"] * 40)
    write("rare.csv", "kind", ["rare", *(["ant", "bee"] * 60)[:119]])
    write("seven.csv", "kind", ["rare"] * 7 + ["ant", "bee"] * 56 + ["ant"])
    write("eight.csv", "kind", ["rare"] * 8 + ["ant", "bee"] * 56)
    write("set[new].csv", "kind", kinds)
    write("brackets.csv", "kind", kinds, ["[/a]", "[/b]", "[/c]", "[/d]"] * 30)
    (folder / "ragged.csv").write_text("a,kind\n1,x\n2\n")
    (folder / "word.csv").write_text("a,kind\n1,x\ntwo,y\n")
    (folder / "sixteen.csv").write_text("a,kind,town\n" + "1,x,t\n2,y,t\n" * 8)
    (folder / "few.csv").write_text("a,kind\n1,x\n2,y\n3,x\n4,y\n5,x\n6,y\n")
    return folder


# --------------------------------------------------------------------------------------------- demo


@pytest.fixture(scope="module")
def demonstrated(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    picture = tmp_path_factory.mktemp("demo") / "curves.png"
    return works("demo", "--rounds", 7, "--picture", picture), picture


def test_demo_ends_with_the_comparison(demonstrated: tuple[str, Path]) -> None:
    output, picture = demonstrated
    assert f"Largest difference, secure to plain, any parameter, 7 rounds: {SAME}" in output
    rows = {line.strip()[:16]: line.split()[-2:] for line in output.splitlines()}
    assert rows["by plain FedAvg "] == rows["by secure FedAvg"]
    assert float(rows["by secure FedAvg"][0]) > 0.9
    assert "by each of 10 hospitals alone (range)" in output
    assert "on pooled data" in output
    assert f"Learning curves: {picture}" in output


def test_demo_says_who_dropped_out(demonstrated: tuple[str, Path]) -> None:
    rows = [line.split() for line in demonstrated[0].splitlines()]
    assert ["2", "oslo", "(keys)", "9", "of", "10"] in rows
    assert ["4", "riga", "(shares),", "cork", "(masked)", "8", "of", "10"] in rows
    (seventh,) = [" ".join(r) for r in rows if r[:1] == ["7"]]
    for who in ("pisa (masked)", "lyon (signatures)", "york (reveals)", "9 of 10"):
        assert who in seventh


def test_demo_draws_a_picture(demonstrated: tuple[str, Path]) -> None:
    assert_png(demonstrated[1])


def test_demo_under_keys_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threshold_paillier, "KEY_BITS", 2048)
    picture = tmp_path / "curves.png"
    output = works("demo", "--protocol", "threshold-paillier", "--rounds", 1, "--picture", picture)
    assert "7 of 10 owners of keys open the sum" in " ".join(output.split())
    assert "any parameter, 1 rounds: 0 (bit for bit the same)" in " ".join(output.split())
    assert_png(picture)


def test_demo_from_the_shell(tmp_path: Path) -> None:
    done = command("demo", "--rounds", 1, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert SAME in done.stdout
    assert done.stderr == ""
    assert_png(tmp_path / "secagg-demo.png")


# -------------------------------------------------------------------------------------------- train


def trained(tmp_path: Path, *words: object) -> dict[str, Any]:
    """The scores of a short training, which has found secure and plain the same."""
    scores = tmp_path / "scores.json"
    output = works("train", "--rounds", 2, "--epochs", 1, "--json", scores, *words)
    assert SAME in output
    found: dict[str, Any] = json.loads(scores.read_text())
    assert found["difference"] == 0
    assert found["plain"] == found["secure"]
    assert len(found["secure"]) == 2
    assert set(found["alone"]) == set(found["hospitals"])
    return found


@pytest.mark.parametrize("partition", ["iid", "dirichlet", "quantity", "column"])
@pytest.mark.parametrize("model", ["logistic", "mlp"])
def test_train_classes_from_csv(tables: Path, tmp_path: Path, partition: str, model: str) -> None:
    found = trained(
        tmp_path, "--csv", tables / "kinds.csv", "--label", "kind",
        "--group" if partition == "column" else "--ignore", "town", "--hospitals", 4,
        "--partition", partition, "--model", model,
    )  # fmt: skip
    assert sum(found["hospitals"].values()) + found["test_size"] == 120
    assert found["test_size"] == 30
    assert set(found["secure"][0]) == {"accuracy", "AUC"}
    name = "town-{}" if partition == "column" else "hospital-{}"
    first = 0 if partition == "column" else 1
    assert sorted(found["hospitals"]) == [name.format(i) for i in range(first, first + 4)]
    if partition == "iid":
        assert set(found["hospitals"].values()) <= {22, 23}


@pytest.mark.parametrize("partition", ["iid", "dirichlet", "quantity", "column"])
def test_train_a_quantity_from_csv(tables: Path, tmp_path: Path, partition: str) -> None:
    found = trained(
        tmp_path, "--csv", tables / "amounts.csv", "--label", "amount",
        "--group" if partition == "column" else "--ignore", "town",
        "--hospitals", 4, "--partition", partition, "--learning-rate", 0.1,
    )  # fmt: skip
    assert set(found["secure"][0]) == {"R²", "RMSE"}
    assert found["pooled"]["R²"] > 0.5
    assert 0 < found["pooled"]["RMSE"] < 2


@pytest.mark.parametrize(
    ("protocol", "threat_model"),
    [("secagg", "semi-malicious"), ("secagg", "malicious"), ("secagg+", "honest-but-curious")],
)
def test_train_on_diabetes(tmp_path: Path, protocol: str, threat_model: str) -> None:
    found = trained(
        tmp_path, "--dataset", "diabetes", "--protocol", protocol, "--threat-model", threat_model,
        "--corrupted", 0, "--dropout", 0.3, "--dropping", 0.2, "--equal-weights", "--seed", 4,
    )  # fmt: skip
    assert set(found["secure"][-1]) == {"R²", "RMSE"}
    assert 40 < found["pooled"]["RMSE"] < 80, "in the units of the label"
    assert all(8 <= len(names) <= 10 for names in found["included"])
    assert set(found["costs"]) == {"server", *found["hospitals"]}
    assert all(cost["bytes_up"] > 0 for cost in found["costs"].values())


def test_train_writes_model_and_picture_and_its_seed_reproduces_them(tmp_path: Path) -> None:
    files = [tmp_path / f"{n}.npz" for n in "abc"]
    for file, seed in zip(files, (1, 1, 2), strict=True):
        works(
            "train", "--rounds", 2, "--hospitals", 5, "--seed", seed, "--save", file,
            "--picture", tmp_path / "curves.png",
        )  # fmt: skip
    one, same, other = ([np.load(f)[k] for k in ("parameter_0", "parameter_1")] for f in files)
    assert [a.shape for a in one] == [(30, 2), (2,)]
    assert all((a == b).all() for a, b in zip(one, same, strict=True))
    assert (one[0] != other[0]).any()
    assert_png(tmp_path / "curves.png")


def test_a_saved_model_can_be_used_on_its_own(tables: Path, tmp_path: Path) -> None:
    """Columns, their moments and the classes are in the file: enough to predict on the raw records."""
    words = ("--csv", tables / "kinds.csv", "--label", "kind", "--group", "town", "--rounds", 20)
    works("train", *words, "--save", tmp_path / "m.npz")
    with np.load(tmp_path / "m.npz") as found:
        assert str(found["model"]) == "logistic"
        data = from_csv(tables / "kinds.csv", "kind", "town")
        assert found["columns"].tolist() == list(data.features)
        x = (data.x - found["mean"]) / found["deviation"]
        guess = (x @ found["parameter_0"] + found["parameter_1"]).argmax(axis=1)
        right = (found["classes"][guess] == np.array(data.classes)[data.y]).mean()
    assert right > 0.7
    works("train", "--dataset", "diabetes", "--rounds", 1, "--save", tmp_path / "d.npz")
    with np.load(tmp_path / "d.npz") as found:
        assert found["target_mean"].shape == found["target_deviation"].shape == (1,)


def test_a_group_is_the_partition(tables: Path) -> None:
    csv = ("--csv", tables / "kinds.csv", "--label", "kind", "--group", "town", "--rounds", 1)
    towns = len(set(from_csv(tables / "kinds.csv", "kind", "town").groups or ()))
    assert f", {towns} hospitals," in works("train", *csv)
    assert "it needs no other --partition" in fails("train", *csv, "--partition", "iid")
    assert "name it .npz" in fails("train", *csv, "--save", "model.pkl")


def test_train_stops_at_the_tolerance(tmp_path: Path) -> None:
    output = works("train", "--rounds", 5, "--tolerance", 1000)
    assert f"any parameter, 1 rounds: {SAME}" in output


def test_train_shows_a_round_without_a_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    # Random dropouts are as many in every round: too many in one would be too many in all.
    def in_the_second(names: list[str], *_: object) -> Dropouts:
        return {1: dict.fromkeys(names[:3], "masked")}

    monkeypatch.setattr("fedavg.cli_train.random_dropouts", in_the_second)
    output = works("train", "--rounds", 3, "--hospitals", 5)
    assert (
        "Round 2 gave no sum and left the model as it was: aborted at masked: 2 clients sent masked" in output
    )
    assert "hospital-1 (masked), hospital-2 (masked), hospital-3 (masked)" in output
    assert " 0 of 5" in output
    assert f"any parameter, 3 rounds: {SAME}" in output, "the plain training leaves the same round out"
    rows = {line.strip()[:16]: line.split()[-2:] for line in output.splitlines()}
    assert rows["by plain FedAvg "] == rows["by secure FedAvg"]


@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.99])
def test_random_dropouts(fraction: float) -> None:
    names, stages = [f"h{i}" for i in range(10)], ["keys", "masked"]
    found = random_dropouts(names, 20, fraction, stages, 3)
    assert list(found) == list(range(20))
    assert {len(gone) for gone in found.values()} == {int(10 * fraction)}
    assert found == random_dropouts(names, 20, fraction, stages, 3)
    if fraction:
        assert {stage for gone in found.values() for stage in gone.values()} == set(stages)
        assert {name for gone in found.values() for name in gone} == set(names)


# ------------------------------------------------------------------------------------ simulate, params


def test_simulate_prints_a_table() -> None:
    output = works("simulate", "--clients", 10, "--dim", 50, "--dropping", 0.1)
    assert "secagg, honest-but-curious: 10 clients, 9 neighbours, threshold 6," in output
    assert "50 entries of 20 bits" in output
    assert "The exact sum of 9 of 10 clients" in output
    first = [line.split()[0] for line in output.splitlines() if line.split()]
    for stage in ("keys", "shares", "masked", "reveals", "all"):
        assert stage in first
    assert "signatures" not in first


def test_simulate_prints_json_and_draws(tmp_path: Path) -> None:
    picture = tmp_path / "costs.png"
    output = works(
        "simulate", "--clients", 8, "--dim", 20, "--bits", 10, "--threat-model", "malicious", "--json",
        "--dropping", 0.125, "--at", "signatures", "--dropout", 0.2, "--picture", picture,
    )  # fmt: skip
    found = json.loads(output)
    assert (found["clients"], found["dim"], found["bits"]) == (8, 20, 13)
    assert (found["protocol"], found["threat_model"]) == ("secagg", "malicious")
    assert found["included"] == 8
    assert found["aborted"] is None
    assert [s["stage"] for s in found["stages"]] == ["keys", "shares", "masked", "signatures", "reveals"]
    assert all(s["client_bytes_up"] > 0 for s in found["stages"])
    assert found["parameters"]["threshold"] == parameters(8, 0.1, 0.2, "secagg", "malicious").threshold
    assert_png(picture)


def test_simulate_in_processes_comes_to_the_same() -> None:
    words = ("simulate", "--clients", 20, "--dim", 30, "--dropping", 0.1, "--json")
    here, there = (json.loads(works(*words, *more)) for more in ((), ("--workers", 2)))
    assert there["included"] == here["included"] == 18
    for a, b in zip(here["stages"], there["stages"], strict=True):
        for field in ("stage", "client_bytes_up", "client_bytes_down"):
            assert a[field] == b[field]


def test_simulate_a_sparse_graph() -> None:
    found = json.loads(works("simulate", "--clients", 60, "--dim", 4, "--protocol", "secagg+", "--json"))
    assert found["parameters"]["degree"] < 59
    assert found["included"] == 60


def test_an_aborted_simulation_fails_after_its_costs() -> None:
    words = ("simulate", "--clients", 10, "--dim", 4, "--dropping", 0.8)
    result = secagg(*words)
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    last = result.output.strip().splitlines()[-1]
    assert last == (
        "Error: aborted at masked: 2 clients sent masked vectors, at least 6 must be included; "
        "8 dropped out, the session withstands 1: raise --dropout"
    )
    assert "exact sum" not in result.output
    assert "bytes up" in result.output
    result = secagg(*words, "--json")
    assert result.exit_code == 1
    found, _ = json.JSONDecoder().raw_decode(result.output)
    assert found["included"] is None
    assert "aborted at masked" in found["aborted"]


def test_params() -> None:
    found = parameters(40, 0.2, 0.1, "secagg", "malicious")
    words = ("params", "--clients", 40, "--corrupted", 0.2, "--threat-model", "malicious")
    output = works(*words)
    values = {" ".join(line.split()[:-1]): int(line.split()[-1]) for line in output.splitlines()}
    assert values == {
        "neighbours each client masks with": found.degree,
        "shares that open a secret": found.threshold,
        "corrupted clients withstood": 8,
        "dropouts guaranteed to be survived": 4,
        "fewest clients in a sum": found.min_included,
        "signatures before anyone reveals": found.quorum,
    }
    as_json = json.loads(works(*words, "--json"))
    assert as_json["threshold"] == found.threshold
    assert as_json["quorum"] == found.quorum
    assert "none in this model" in works("params", "--clients", 10)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--clients", 2], "a cohort of 2: at least 3 are needed, or a sum tells too much"),
        (["--clients", 100, "--protocol", "secagg+", "--threat-model", "malicious"], "who could choose the"),
        (["--clients", 10, "--threat-model", "malicious", "--corrupted", 0.8], "lower corrupted or dropout"),
        (["--clients", 10, "--dropout", 0.9], "leave fewer than 2 honest contributors"),
        (["--clients", 10, "--dropout", 1], "'--dropout': 1.0 is not in the range 0<=x<1."),
        (["--clients", 10, "--dropout", "nan"], "'--dropout': nan is not in the range 0<=x<1."),
        (["--clients", 10, "--corrupted", -0.1], "'--corrupted': -0.1 is not in the range 0<=x<1."),
        (["--clients", 70_000], "the complete graph takes at most 65536 clients, got 70000: use secagg+"),
    ],
)
def test_params_refuses_with_the_reason(words: list[object], reason: str) -> None:
    assert reason in fails("params", *words)


# ---------------------------------------------------------------------------------------- bad input

CSV = ("train", "--rounds", 1, "--csv")
SIGNATURES = "nothing is signed in the honest-but-curious model: choose another stage with --at"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nonsense"], "No such command 'nonsense'"),
        (["params"], "Missing option '--clients'"),
        (["params", "--clients", "many"], "'many' is not a valid integer"),
        (["simulate", "--clients", 2], "2 is not in the range x>=3"),
        (["simulate", "--workers", 0], "0 is not in the range x>=1"),
        (["simulate", "--estimate", "--workers", 2], "nothing is run with --estimate"),
        (["simulate", "--estimate", "--ray"], "nothing is run with --estimate"),
        (["simulate", "--dim", 0], "0 is not in the range"),
        (["simulate", "--bits", 64], "64 is not in the range 1<=x<=63"),
        (["simulate", "--clients", 5, "--dim", 2, "--bits", 63], "so that no sum can wrap"),
        (["simulate", "--clients", 5, "--dim", 2, "--dropping", 1], "'--dropping': 1.0 is not in the range"),
        (["simulate", "--dropping", -0.5], "'--dropping': -0.5 is not in the range 0<=x<1."),
        (["simulate", "--seed", -1], f"'--seed': -1 is not in the range 0<=x<={2**32 - 1}."),
        (["train", "--seed", -1], f"'--seed': -1 is not in the range 0<=x<={2**32 - 1}."),
        (["simulate", "--clients", 5, "--dim", 2, "--at", "signatures"], SIGNATURES),
        (["simulate", "--threat-model", "honest-but-curious", "--at", "signatures"], SIGNATURES),
        (["simulate", "--at", "lunch"], "'lunch' is not one of"),
        (["simulate", "--threat-model", "kind"], "'kind' is not one of"),
        (["simulate", "--corrupted", 2], "'--corrupted': 2.0 is not in the range 0<=x<1."),
        (["simulate", "--picture", "no/where.png"], "no/where.png: there is no such folder"),
        (["simulate", "--clients", 5, "--dim", 2, "--picture", "a.foo"], "a.foo: the picture cannot be"),
        (["demo", "--rounds", 0], "0 is not in the range x>=1"),
        (["demo", "--rounds", 1, "--picture", "no/where.png"], "no/where.png: there is no such folder"),
        (["train", "--rounds", 1, "--learning-rate", 0], "expected positive epochs, batch_size and learn"),
        (["train", "--rounds", 1, "--learning-rate", "nan"], "expected positive epochs, batch_size and"),
        (
            ["train", "--rounds", 1, "--clipping-norm", 0],
            "clipping_norm: expected a positive number to 1e100, got 0.0",
        ),
        (["train", "--rounds", 1, "--bits", 33], "bits: expected an integer from 2 to 32, got 33"),
        (["train", "--rounds", 1, "--alpha", 0], "alpha must be positive and below a million, got 0.0"),
        (["train", "--rounds", 1, "--dropping", 1.5], "'--dropping': 1.5 is not in the range 0<=x<1."),
        (["train", "--rounds", 1, "--hospitals", 200], "426 records are too few for 200 hospitals"),
        (["train", "--rounds", 1, "--hospitals", 2], "2 is not in the range x>=3"),
        (["train", "--rounds", 1, "--partition", "column"], "partition column: needs --csv and --group"),
        (["train", "--rounds", 1, "--model", "linear"], "model 'linear' does not fit breast-cancer"),
        (["train", "--rounds", 1, "--dataset", "diabetes", "--model", "mlp"], "does not fit diabetes"),
        (["train", "--rounds", 1, "--json", "no/where.json"], "no/where.json: there is no such folder"),
        (["train", "--rounds", 1, "--save", "no/where.npz"], "no/where.npz: there is no such folder"),
        (["train", "--rounds", 1, "--threat-model", "malicious", "--protocol", "secagg+"], "not offered"),
        (["train", "--rounds", 1, "--picture", "no/where.png"], "no/where.png: there is no such folder"),
        (["train", "--rounds", 1, "--picture", "."], "'--picture': File '.' is a directory."),
        (["train", "--rounds", 2, "--hospitals", 4, "--dropping", 0.9], "aborted at "),
        (["train", "--rounds", 1, "--label", "y"], "--label, --group and --ignore go with --csv"),
        (["train", "--rounds", 1, "--group", "town"], "--label, --group and --ignore go with --csv"),
        (["train", "--rounds", 1, "--tolerance", -1], "tolerance: expected 0 or more, got -1.0"),
        (["train", "--rounds", 1, "--tolerance", "nan"], "tolerance: expected 0 or more, got nan"),
        (
            ["train", "--rounds", 1, "--max-records", 0],
            "'--max-records': 0 is not in the range 1<=x<=4294967295.",
        ),
        (
            ["train", "--rounds", 1, "--max-records", 2**32],
            "4294967296 is not in the range 1<=x<=4294967295.",
        ),
        (["train", "--rounds", 1, "--max-records", 3], "expected 1 to 3 records, got "),
        ([*CSV, "none.csv"], "--csv needs --label, the column to predict"),
        ([*CSV, "none.csv", "--label", "y"], "none.csv: cannot be read as CSV"),
        ([*CSV, ".", "--label", "y"], ".: cannot be read as CSV"),
        ([*CSV, "{}/kinds.csv", "--label", "colour"], "kinds.csv: no column 'colour'; the columns are a, b,"),
        ([*CSV, "{}/kinds.csv", "--label", "kind"], "line 2, column 'town': expected a number, got 'town-"),
        ([*CSV, "{}/ragged.csv", "--label", "kind"], "ragged.csv, line 3: expected 2 fields, got 1"),
        ([*CSV, "{}/word.csv", "--label", "kind"], "word.csv, line 3, column 'a': expected a number"),
        (
            [*CSV, "{}/few.csv", "--label", "kind"],
            "few: class 'x' has 3 records; at least 8 are needed to test on some of them",
        ),
        (
            [*CSV, "{}/rare.csv", "--label", "kind", "--ignore", "town"],
            "rare: class 'rare' has 1 records; at least 8 are needed to test on some of them",
        ),
        (
            [*CSV, "{}/sixteen.csv", "--label", "kind", "--ignore", "town"],
            "12 records are too few for 10 hospitals of at least 4",
        ),
        ([*CSV, "{}/kinds.csv", "--label", "kind", "--group", "where"], "kinds.csv: no column 'where'"),
        (
            [*CSV, "{}/kinds.csv", "--label", "kind", "--ignore", "town", "--model", "linear"],
            "model 'linear' does not fit kinds, which is for classification",
        ),
        (
            [*CSV, "{}/two-towns.csv", "--label", "kind", "--group", "town", "--partition", "column"],
            "a cohort of 2: at least 3 are needed",
        ),
        (
            [*CSV, "{}/no-name.csv", "--label", "kind", "--group", "town", "--partition", "column"],
            "no-name.csv, line 2, column 'town': the hospital's name is missing",
        ),
        (
            [*CSV, "{}/a-server.csv", "--label", "kind", "--group", "town", "--partition", "column"],
            "name: 'server' is the server's own",
        ),
    ],
)
def test_bad_input_gives_one_clear_line(
    tables: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[object], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in fails(*(str(w).replace("{}", str(tables)) for w in words))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["simulate", "--clients", 5, "--dim", 2, "--dropping", "inf"], "'--dropping': inf is not in the"),
        (["simulate", "--clients", 5, "--dim", 2, "--dropping", "nan"], "dropping"),
        (["train", "--rounds", 1, "--dropping", "nan"], "dropping"),
        (["simulate", "--clients", 5, "--dim", 2, "--seed", 1 << 200], "'--seed': "),
        (["simulate", "--clients", 5, "--dim", 10**16], f"dim: expected 1 to {2**40}, got {10**16}"),
        (["demo", "--rounds", 1, "--seed", -1], "'--seed': -1 is not in the range"),
        (["train", "--rounds", 1, "--seed", 1 << 63], "'--seed': "),
        (["train", "--rounds", 1, "--max-records", 10**12], "max"),
        (["train", "--rounds", 1, "--alpha", "inf"], "alpha must be positive and below a million, got inf"),
        (["train", "--rounds", 1, "--learning-rate", "1e300"], "training diverged at learning rate 1e+300"),
        (["train", "--rounds", 1, "--clipping-norm", "1e-320"], "clipping_norm: expected a positive number"),
    ],
)
def test_bad_numbers_give_one_clear_line(tmp_path: Path, words: list[object], message: str) -> None:
    assert message in fails(*words)


def test_eight_records_of_a_class_are_needed_and_enough(tables: Path, tmp_path: Path) -> None:
    words = ("--label", "kind", "--ignore", "town", "--hospitals", 3)
    assert "seven: class 'rare' has 7 records" in fails(*CSV, tables / "seven.csv", *words)
    found = trained(tmp_path, "--csv", tables / "eight.csv", *words)
    assert all(np.isfinite(v) for scores in found["secure"] for v in scores.values())


@pytest.mark.parametrize(
    "words", [["simulate", "--dropout", 1], ["train", "--seed", -1], ["params", "--clients", 0]]
)
def test_what_click_refuses_exits_with_2_and_what_we_refuse_with_1(words: list[object]) -> None:
    assert secagg(*words).exit_code == 2
    assert secagg("simulate", "--at", "signatures").exit_code == 1


def test_the_largest_seed_works_and_a_larger_one_is_refused_by_name() -> None:
    works("simulate", "--clients", 5, "--dim", 2, "--seed", 2**32 - 1)
    works("train", "--rounds", 1, "--epochs", 1, "--hospitals", 3, "--seed", 2**32 - 1)
    for command in ("simulate", "train", "demo"):
        assert "'--seed'" in fails(command, "--seed", 2**32)


def test_a_missing_folder_is_refused_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("worked")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fedavg.experiment.run", never)
    monkeypatch.setattr("protocols.simulator.simulate", never)
    (tmp_path / "file").touch()
    for folder in ("no", "no/more", "file", tmp_path / "no"):
        for words in (
            ("demo", "--picture"), ("train", "--picture"), ("train", "--save"), ("train", "--json"),
            ("simulate", "--picture"),
        ):  # fmt: skip
            assert fails(*words, f"{folder}/out") == f"{folder}/out: there is no such folder"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_max_records_is_a_public_bound_on_a_hospital(tmp_path: Path) -> None:
    words = ("--hospitals", 5, "--partition", "iid")
    found = trained(tmp_path, *words, "--save", tmp_path / "default.npz")
    largest = max(found["hospitals"].values())
    assert largest == 86, "the default is then the next power of two, 128"
    # It scales the grid: the same bound is the same training to the bit, another rounds otherwise.
    same = trained(tmp_path, *words, "--max-records", 128, "--save", tmp_path / "same.npz")
    for key in ("secure", "plain", "pooled", "alone", "hospitals", "included"):
        assert same[key] == found[key]
    trained(tmp_path, *words, "--max-records", largest, "--save", tmp_path / "least.npz")
    default, same_model, least = (
        np.load(tmp_path / f"{n}.npz")["parameter_0"] for n in ("default", "same", "least")
    )
    assert (default == same_model).all()
    assert (default != least).any()
    np.testing.assert_allclose(default, least, atol=0.02)
    said = fails("train", "--rounds", 1, *words, "--max-records", largest - 1)
    assert f"expected 1 to {largest - 1} records, got {largest}" in said


@pytest.mark.parametrize("threat_model", ["semi-malicious", "malicious"])
def test_signatures_may_be_missed_where_there_are_some(threat_model: str) -> None:
    output = works(
        "simulate", "--clients", 8, "--dim", 4, "--threat-model", threat_model, "--dropping", 0.125,
        "--at", "signatures", "--dropout", 0.2,
    )  # fmt: skip
    assert "signatures" in output
    assert "The exact sum of 8 of 8 clients" in output


def test_a_file_name_with_brackets_is_shown(tables: Path, tmp_path: Path) -> None:
    output = works(
        "train", "--rounds", 1, "--csv", tables / "set[new].csv", "--label", "kind", "--ignore", "town"
    )
    assert "set[new], logistic, 10 hospitals" in output


def test_a_hospital_name_with_brackets_is_shown(tables: Path) -> None:
    output = works(
        "train", "--rounds", 2, "--csv", tables / "brackets.csv", "--label", "kind", "--group", "town",
        "--partition", "column", "--dropout", 0.25, "--dropping", 0.25,
    )  # fmt: skip
    assert "[/" in output


def test_bad_input_from_the_shell(tmp_path: Path) -> None:
    done = command("train", "--csv", "none.csv", "--label", "y", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        "Error: none.csv: cannot be read as CSV: [Errno 2] No such file or directory: 'none.csv'"
    ]


# --------------------------------------------------------------------------------- imports and extras


def test_help_names_the_commands() -> None:
    for flag in ("--help", "-h"):
        output = works(flag)
        for name in ("demo", "train", "simulate", "params"):
            assert f"\n  {name} " in output
    for name in ("demo", "train", "simulate", "params"):
        assert f"Usage: secagg {name}" in works(name, "--help")


def test_version() -> None:
    assert works("--version").startswith("secagg, version ")


def test_help_imports_nothing_heavy(tmp_path: Path) -> None:
    heavy = ("numpy", "sklearn", "matplotlib", "cryptography", "nacl", "msgspec", "scipy", "rich.console")
    code = f"import sys, fedavg.cli; print([m for m in {heavy!r} if m in sys.modules])"
    done = python(code, cwd=tmp_path)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


@pytest.mark.parametrize("words", [[], ["--help"], ["params", "--clients", "10"]])
def test_without_click_the_command_says_what_to_install(tmp_path: Path, words: list[str]) -> None:
    done = python(without("click", *words), cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "The command needs its extra: pip install 'secagg[cli]'\n"


def test_without_rich_the_command_says_what_to_install(tmp_path: Path) -> None:
    done = python(without("rich", "simulate", "--clients", "5", "--dim", "2"), cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "The command needs its extra: pip install 'secagg[cli]'\n"


@pytest.mark.parametrize(
    "words", [["demo", "--rounds", "1"], ["train", "--rounds", "1"]], ids=["demo", "train"]
)
def test_without_sklearn_the_command_says_what_to_install(tmp_path: Path, words: list[str]) -> None:
    done = python(without("sklearn", *words), cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(
        "This needs an extra, for sklearn: pip install 'secagg[demo]', or in a clone"
    )


@pytest.mark.parametrize("command", ["simulate", "train"])
def test_without_gmpy2_only_paillier_fails(tmp_path: Path, command: str) -> None:
    words = [command, "--threat-model", "malicious"]
    words += ["--clients", "5", "--dim", "2"] if command == "simulate" else ["--rounds", "1"]
    done = python(without("gmpy2", *words, "--protocol", "threshold-paillier"), cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("This needs an extra, for gmpy2: pip install 'secagg[paillier]', or in a")
    if command == "simulate":
        done = python(without("gmpy2", *words), cwd=tmp_path)
        assert done.returncode == 0, done.stderr


def test_without_gmpy2_python_says_what_is_missing(tmp_path: Path) -> None:
    code = "import sys\nsys.modules['gmpy2'] = None\nimport secagg.paillier"
    done = python(code, cwd=tmp_path)
    assert "ModuleNotFoundError: Paillier needs gmpy2, of the extra paillier: in a clone" in done.stderr


def test_without_matplotlib_only_pictures_fail(tmp_path: Path) -> None:
    simulate = ["simulate", "--clients", "5", "--dim", "2"]
    done = python(without("matplotlib", *simulate, "--picture", "a.png"), cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(
        "This needs an extra, for matplotlib: pip install 'secagg[demo]', or in a clone"
    )
    done = python(without("matplotlib", *simulate), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "The exact sum of 5 of 5 clients" in done.stdout
