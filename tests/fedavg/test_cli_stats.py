"""The command `secagg stats`: real files and sessions, numpy's answers, one clear line for what is wrong."""

import csv
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from fedavg.cli import cli

TOWNS = {"graz": 90, "oslo": 140, "pisa": 60, "york": 110}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Patients of four towns; some have no bmi, few are of stage 4."""
    where, rng = tmp_path_factory.mktemp("towns"), np.random.default_rng(5)
    for town, count in TOWNS.items():
        with (where / f"{town}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["age", "bmi", "sex", "stage", "ward", "time:hours"])
            for _ in range(count):
                bmi = f"{rng.normal(26, 4):.1f}" if rng.random() < 0.9 else ""
                stage = rng.choice(["1", "2", "3", "4"], p=[0.5, 0.3, 0.18, 0.02])
                age, sex, ward = rng.integers(1, 105), rng.choice(["f", "m"]), rng.choice(["a", "b"])
                writer.writerow([age, bmi, sex, stage, ward, age / 7])
    (where / "bad.csv").write_text("age,bmi,sex,stage,ward\n40,20,f,1,a\n41,hush,m,1,a\n")
    (where / "ragged.csv").write_text("age,sex\n40,f\n41\n")
    (where / "empty.csv").write_text("")
    (where / "set[new].csv").write_text("age\n" + "40\n" * 6)
    (where / "server.csv").write_text("age\n" + "40\n" * 6)
    (where / "more").mkdir()
    (where / "more" / "oslo.csv").write_text("age\n40\n")
    return where


def stats(folder: Path, *words: object, towns: Any = tuple(TOWNS)) -> Result:
    files = [str(folder / f"{town}.csv") for town in towns]
    return CliRunner().invoke(cli, ["stats", *files, *(str(w) for w in words)], prog_name="secagg")


def works(folder: Path, *words: object, towns: Any = tuple(TOWNS)) -> str:
    result = stats(folder, *words, towns=towns)
    assert result.exit_code == 0, (result.output, result.exception)
    return str(result.output)


def fails(folder: Path, *words: object, towns: Any = tuple(TOWNS)) -> str:
    """The one line in which the command says what is wrong."""
    result = stats(folder, *words, towns=towns)
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    (line,) = result.output.strip().splitlines()
    assert line.startswith("Error: ")
    return line.removeprefix("Error: ")


def pooled(folder: Path, column: str, towns: Any = TOWNS, **where: str) -> Any:
    """A column of these towns as numpy sees it, without its empty cells."""
    found = []
    for town in towns:
        with (folder / f"{town}.csv").open(newline="") as file:
            rows = [r for r in csv.DictReader(file) if all(r[k] == v for k, v in where.items())]
        found += [float(r[column]) for r in rows if r[column]]
    return np.array(found)


ALL = (
    "--count", "--mean", "age:0:120", "--variance", "bmi:5:60", "--quantiles", "age:0:120", "--histogram",
    "age:0:120:12", "--contingency", "sex=f,m", "stage=1,2,3", "--min-cell", 1,
)  # fmt: skip


@pytest.mark.parametrize("threat_model", ["honest-but-curious", "malicious"])
def test_everything_is_numpys(folder: Path, tmp_path: Path, threat_model: str) -> None:
    output = works(folder, *ALL, "--threat-model", threat_model, "--json", tmp_path / "s.json")
    assert f"Results: {tmp_path / 's.json'}" in output
    content = json.loads((tmp_path / "s.json").read_text())
    assert content["sites"] == sorted(TOWNS)
    assert (content["min_cell"], content["max_records"]) == (1, 256)
    assert content["agreed"]["threat_model"] == threat_model
    count, mean, variance, quantiles, histogram, contingency = content["results"]
    age, bmi = pooled(folder, "age"), pooled(folder, "bmi")
    assert count["count"] == len(age) == 400
    assert mean["mean"] == pytest.approx(age.mean(), abs=mean["error"] + 1e-12)
    assert variance["count"] == len(bmi) < 400
    assert variance["deviation"] == pytest.approx(bmi.std(), abs=variance["error"] + 1e-12)
    assert variance["variance"] == pytest.approx(bmi.var(), abs=variance["variance_error"] + 1e-12)
    expected = np.quantile(age, [0.25, 0.5, 0.75], method="inverted_cdf")
    np.testing.assert_allclose(quantiles["values"], expected, atol=quantiles["error"])
    assert quantiles["query"]["bins"] == 64
    assert histogram["counts"] == np.histogram(age, 12, (0, 120))[0].tolist()
    stages = [[len(pooled(folder, "age", sex=s, stage=t)) for t in "1234"] for s in "fm"]
    assert contingency["counts"] == [*stages, [0, 0, 0, 0]]


def test_what_is_shown(folder: Path) -> None:
    # Columns are as wide as they need to be: what counts is the words in each line.
    lines = [" ".join(line.split()) for line in works(folder, *ALL).splitlines()]
    age = pooled(folder, "age")
    assert "number of records 400 0 400 4" in lines
    assert any(line.startswith(f"mean of age in 0 to 120 {age.mean():.6g} ") for line in lines)
    assert f"10 to 20 {((age >= 10) & (age < 20)).sum()}" in lines
    assert "sex \\ stage 1 2 3 (other) all" in lines
    assert "(other) 0 0 0 0 0" in lines
    assert "what counted below 1 at a site went into them as 0" in lines[-1]


def test_small_cells_are_hidden_unless_a_site_says_otherwise(folder: Path, tmp_path: Path) -> None:
    words = ("--contingency", "sex=f,m", "stage=1,2,3,4", "--json", tmp_path / "s.json")

    def counts(*more: object) -> Any:
        works(folder, *words, *more)
        return np.array(json.loads((tmp_path / "s.json").read_text())["results"][0]["counts"])

    hidden, whole = counts(), counts("--min-cell", 1)
    assert whole.sum() == 400
    assert (hidden <= whole).all()
    for i, sex in enumerate("fm"):
        for j, stage in enumerate("1234"):
            each = [len(pooled(folder, "age", [town], sex=sex, stage=stage)) for town in TOWNS]
            assert whole[i, j] == sum(each)
            assert hidden[i, j] == sum(count for count in each if count >= 5)
    assert (hidden < whole).any()
    assert (counts("--min-cell", 1000) == 0).all()


def test_where_and_a_column_with_a_colon(folder: Path, tmp_path: Path) -> None:
    works(folder, "--mean", "time:hours:0:20", "--count", "--where", "ward=b", "--json", tmp_path / "s.json")
    count, mean = json.loads((tmp_path / "s.json").read_text())["results"]
    hours = pooled(folder, "time:hours", ward="b")
    assert count["count"] == mean["count"] == len(hours) < 400
    assert mean["mean"] == pytest.approx(hours.mean(), abs=mean["error"] + 1e-12)
    assert mean["query"]["where"] == ["ward", "b"]


def test_where_nobody_is_left_there_is_no_number(folder: Path) -> None:
    output = works(folder, "--mean", "age:0:120", "--quantiles", "age:0:120", "--where", "ward=z")
    rows = [line.split() for line in output.splitlines() if "ward is z" in line]
    assert len(rows) == 4
    assert all("none" in row and row[-2:] == ["0", "4"] for row in rows)


def test_statistics_may_be_repeated(folder: Path) -> None:
    output = works(
        folder, "--mean", "age:0:120", "--mean", "bmi:5:60", "--histogram", "age:0:100:4", "--histogram",
        "bmi:20:30:2", "--contingency", "sex=f", "stage=1", "--contingency", "ward=a", "sex=m",
    )  # fmt: skip
    for title in (
        "mean of age",
        "mean of bmi",
        "histogram of age",
        "histogram of bmi",
        "sex by stage",
        "ward by sex",
    ):
        assert title in output
    assert "below 20" in output
    assert "above 30" in output


def test_bins_are_the_users(folder: Path, tmp_path: Path) -> None:
    works(folder, "--quantiles", "age:0:120", "--bins", 10, "--json", tmp_path / "s.json")
    (found,) = json.loads((tmp_path / "s.json").read_text())["results"]
    assert found["error"] == pytest.approx(12)


def test_the_picture(folder: Path, tmp_path: Path) -> None:
    for words in (ALL, ("--count",), ("--histogram", "age:20:60:4")):
        output = works(folder, *words, "--picture", tmp_path / "s.png")
        assert f"Picture: {tmp_path / 's.png'}" in output
        data = (tmp_path / "s.png").read_bytes()
        assert data[:8] == b"\x89PNG\r\n\x1a\n"
        width, height = struct.unpack(">II", data[16:24])
        assert width == 880
        assert 90 < height < 1200
        assert len(data) > 3000


def test_a_name_with_brackets_is_shown(folder: Path, tmp_path: Path) -> None:
    words = ("--contingency", "sex=[/f],m", "stage=1,2")
    assert "[/f]" in works(folder, *words)
    works(folder, "--count", "--json", tmp_path / "s.json", towns=("graz", "oslo", "set[new]"))
    assert "set[new]" in json.loads((tmp_path / "s.json").read_text())["sites"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "nothing is asked: give --count, --mean or another statistic (see --help)"),
        (["--mean", "age"], "--mean: expected COLUMN:LOW:HIGH, got 'age'"),
        (["--mean", "age:0"], "--mean: expected COLUMN:LOW:HIGH, got 'age:0'"),
        (["--mean", ":0:1"], "--mean: expected COLUMN:LOW:HIGH, got ':0:1'"),
        (["--mean", "age:zero:9"], "--mean: expected COLUMN:LOW:HIGH, got 'age:zero:9'"),
        (["--mean", "age:0:nan"], "--mean: range: expected numbers from -1e100 to 1e100, got nan"),
        (["--variance", "age:9:0"], "--variance: range: expected ascending numbers, got 9 before 0"),
        (["--quantiles", "age:1:inf"], "--quantiles: range: expected numbers from -1e100 to 1e100, got inf"),
        (["--histogram", "age:0:120"], "--histogram: expected COLUMN:LOW:HIGH:BINS, got 'age:0:120'"),
        (["--histogram", "age:0:9:1.5"], "--histogram: expected COLUMN:LOW:HIGH:BINS, got 'age:0:9:1.5'"),
        (["--histogram", "age:0:9:inf"], "--histogram: expected COLUMN:LOW:HIGH:BINS, got 'age:0:9:inf'"),
        (["--histogram", "age:0:9:0"], "--histogram: bins: expected an integer from 1 to 65535, got 0"),
        (["--histogram", "age:-1e308:1e308:3"], "--histogram: range: expected numbers from -1e100 to 1e100"),
        (["--contingency", "sex", "stage=1"], "--contingency: expected COLUMN=VALUE,VALUE..., got 'sex'"),
        (["--contingency", "sex=f", "stage="], "--contingency: expected COLUMN=VALUE,VALUE..., got 'stage='"),
        (
            ["--contingency", "sex=f,f", "stage=1"],
            "--contingency: row_values: expected one or more different",
        ),
        (["--contingency", "sex=f,", "stage=1"], "--contingency: row_values: expected a string of 1 to 255"),
        (["--count", "--where", "ward"], "--where: expected COLUMN=VALUE, got 'ward'"),
        (["--mean", "age:0:9", "--where", "w=" + "x" * 300], "--where: where: value: expected a string of 1"),
        (
            ["--mean", "height:0:9"],
            "site graz: {}/graz.csv: no column 'height'; the columns are age, bmi, sex",
        ),
        (["--mean", "sex:0:9"], "site graz: {}/graz.csv, line 2, column 'sex': expected a finite number"),
        (["--count", "--max-records", 100], "site oslo: {}/oslo.csv: expected at most 100 records, got 140"),
        (
            ["--count", "--budget", 0],
            "site graz: budget: 0 queries may be answered, and 0 were: none is left",
        ),
        (["--count", "--mean", "age:0:9", "--budget", 1], "site graz: budget: 1 queries may be answered"),
        (["--count", "--json", "no/s.json"], "no/s.json: there is no such folder"),
        (["--count", "--picture", "no/s.png"], "no/s.png: there is no such folder"),
        (["--count", "--picture", "s.xyz"], "s.xyz: the picture cannot be written"),
        (["--count", "--protocol", "secagg+", "--threat-model", "malicious"], "not offered"),
    ],
)
def test_bad_words_give_one_clear_line(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[object], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message.replace("{}", str(folder)) in fails(folder, *words)


@pytest.mark.parametrize(
    ("towns", "message"),
    [
        (["oslo", "pisa"], "a cohort of 2: at least 3 are needed"),
        (["oslo", "pisa", "none"], "none.csv: cannot be read as CSV"),
        (["oslo", "pisa", "more"], "more.csv: cannot be read as CSV"),
        (["oslo", "pisa", "empty"], "empty.csv: expected a header and at least one record"),
        (["oslo", "pisa", "ragged"], "ragged.csv, line 3: expected 2 fields, got 1"),
        (["oslo", "pisa", "oslo"], "oslo.csv: there is already a site named 'oslo': rename the file"),
        (["oslo", "pisa", "more/oslo"], "more/oslo.csv: there is already a site named 'oslo'"),
        (["oslo", "pisa", "server"], "name: 'server' is the server's own"),
    ],
)
def test_bad_files_give_one_clear_line(folder: Path, towns: list[str], message: str) -> None:
    assert message in fails(folder, "--count", towns=towns)


def test_a_bad_value_is_not_repeated(folder: Path) -> None:
    said = fails(folder, "--mean", "bmi:0:60", towns=("oslo", "pisa", "bad"))
    assert said.endswith("bad.csv, line 3, column 'bmi': expected a finite number")


def test_a_folder_or_nothing_is_refused_by_the_command_line(folder: Path) -> None:
    for words in ([], [str(folder)], [str(folder / "oslo.csv"), "--count", "--min-cell", "0"]):
        result = CliRunner().invoke(cli, ["stats", *words], prog_name="secagg")
        assert result.exit_code == 2
        assert "Error: " in result.output


def test_help_shows_how_to_ask() -> None:
    output = CliRunner().invoke(cli, ["stats", "--help"], prog_name="secagg").output
    for word in ("age:0:120", "bmi:10:60", "age:0:120:12", "sex=f,m stage=1,2,3", "ward=3", "--threat-model"):
        assert word in output
