"""The two built-in sets, and CSV files good and bad: every refusal says where."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedavg.datasets import DATASETS, breast_cancer, diabetes, from_csv


@pytest.fixture
def csv(tmp_path: Path) -> Any:
    """Write a file of this text (or these bytes) and read it."""

    def read(text: str | bytes, label: str = "y", group: str | None = None, name: str = "data.csv") -> Any:
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return from_csv(path, label, group)

    return read


def test_breast_cancer() -> None:
    data = breast_cancer()
    assert data.x.shape == (569, 30)
    assert data.x.dtype == np.float64
    assert data.task == "classification"
    assert data.classes == ("benign", "malignant")
    assert np.bincount(data.y).tolist() == [357, 212]
    # The larger tumours are the malignant ones.
    radius = data.x[:, data.features.index("mean radius")]
    assert radius[data.y == 1].mean() > radius[data.y == 0].mean() + 4


def test_diabetes() -> None:
    data = diabetes()
    assert data.x.shape == (442, 10)
    assert data.task == "regression"
    assert data.classes == ()
    assert data.y.dtype == np.float64
    assert (data.y.min(), data.y.max()) == (25, 346)
    assert data.x[:, data.features.index("age")].max() == 79, "in natural units"


def test_the_table_of_sets() -> None:
    assert {name: DATASETS[name]().name for name in DATASETS} == {n: n for n in ("breast-cancer", "diabetes")}


def test_string_labels(csv: Any) -> None:
    data = csv("a,y,b\n1,cat,2\n3,ant,4.5\n-5e1,cat,6\n")
    assert data.name == "data"
    assert data.features == ("a", "b")
    assert data.x.tolist() == [[1, 2], [3, 4.5], [-50, 6]]
    assert data.classes == ("ant", "cat")
    assert data.y.tolist() == [1, 0, 1]
    assert data.y.dtype == np.int64
    assert data.groups is None


def test_whole_numbers_are_classes_in_order_of_value(csv: Any) -> None:
    data = csv("a,y\n1,10\n2,2\n3,-1\n4,10.0\n")
    assert data.classes == ("-1", "2", "10")
    assert data.y.tolist() == [2, 1, 0, 2]


def test_a_label_with_one_word_among_numbers_is_a_class(csv: Any) -> None:
    assert csv("a,y\n1,1\n2,unknown\n").classes == ("1", "unknown")


@pytest.mark.parametrize("values", [["0.5", "1", "2"], [str(i) for i in range(21)], ["7.5", "7.5"]])
def test_a_quantity_is_a_target(csv: Any, values: list[str]) -> None:
    data = csv("a,y\n" + "".join(f"{i},{v}\n" for i, v in enumerate(values)))
    assert data.task == "regression"
    assert data.y.dtype == np.float64
    assert data.y.tolist() == [float(v) for v in values]


def test_twenty_whole_numbers_are_still_classes(csv: Any) -> None:
    assert len(csv("a,y\n" + "".join(f"{i},{i}\n" for i in range(20))).classes) == 20


def test_the_group_column_is_no_feature(csv: Any) -> None:
    data = csv("where,a,y\noslo,1,0\n riga ,2,1\noslo,3,0\n", group="where")
    assert data.features == ("a",)
    assert data.groups == ("oslo", "riga", "oslo")
    assert data.x.tolist() == [[1], [2], [3]]


@pytest.mark.parametrize(
    "text",
    [
        "\ufeffy,a\n0,1\n1,2\n",
        "y,a\r\n0,1\r\n1,2\r\n",
        "y,a\n0,1\n\n1,2\n\n\n",
        'y,a\n"0","1"\n"1"," 2 "\n',
        "y,a\n0,1\n1,2",
    ],
    ids=["BOM", "CRLF", "blank lines", "quotes", "no last newline"],
)
def test_what_spreadsheets_write(csv: Any, text: str) -> None:
    data = csv(text)
    assert data.features == ("a",)
    assert data.x.tolist() == [[1], [2]]
    assert data.y.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "data.csv: expected a header and at least one record"),
        ("a,y\n", "data.csv: expected a header and at least one record"),
        ("\n1,2\n", "data.csv: expected a header and at least one record"),
        ("a,b\n1,2\n", "data.csv: no column 'y'; the columns are a, b"),
        ("a,a,y\n1,2,3\n", "data.csv: the column 'a' occurs twice in the header"),
        ("y\n1\n2\n", "data.csv: no column is left for features"),
        ("a,b,y\n1,2,0\n1,two,1\n", "data.csv, line 3, column 'b': expected a number, got 'two'"),
        ("a,y\n1,0\n\n,1\n", "data.csv, line 4, column 'a': expected a number, got ''"),
        ("a,y\n1,0\nnan,1\n", "data.csv, line 3, column 'a': expected a finite number, got 'nan'"),
        ("a,y\n-inf,0\n1,1\n", "data.csv, line 2, column 'a': expected a finite number, got '-inf'"),
        ("a,y\n1e999,0\n1,1\n", "data.csv, line 2, column 'a': expected a finite number, got '1e999'"),
        ("a,b,y\n1,2,0\n1,1\n", "data.csv, line 3: expected 3 fields, got 2"),
        ("a,b,y\n1,2,0\n\n1,2,3,4\n", "data.csv, line 4: expected 3 fields, got 4"),
        ("a,y\n1,0\n2,\n", "data.csv, line 3, column 'y': the label is missing"),
        ("a,y\n1,  \n2,1\n", "data.csv, line 2, column 'y': the label is missing"),
        ("a,y\n1,cat\n2,cat\n", "data.csv, column 'y': expected at least two classes, got 1"),
        ("a,y\n1,3\n2,3\n", "data.csv, column 'y': expected at least two classes, got 1"),
        ("a,y\n1,1\n2,nan\n", "data.csv, line 3, column 'y': expected a finite number, got 'nan'"),
        (b"a,y\n1,caf\xe9\n", "data.csv: cannot be read as CSV"),
        ("a,y\n1," + "x" * 200_000 + "\n", "data.csv: cannot be read as CSV: field larger than field limit"),
    ],
)
def test_a_bad_file_is_refused_with_its_place(csv: Any, text: str | bytes, message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is compared below, path and all
        csv(text)
    assert message in str(caught.value)


def test_a_missing_group_column(csv: Any) -> None:
    with pytest.raises(ValueError, match=r"data\.csv: no column 'where'; the columns are a, y"):
        csv("a,y\n1,2\n", group="where")


def test_a_missing_file_and_a_directory(tmp_path: Path) -> None:
    for path in (tmp_path / "none.csv", tmp_path):
        with pytest.raises(ValueError, match=f"{path.name}: cannot be read as CSV"):
            from_csv(path, "y")


def refused(csv: Any, text: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        csv(text)
    assert message in str(caught.value)


def test_a_missing_label_after_a_blank_line(csv: Any) -> None:
    refused(csv, "a,y\n1,cat\n\n2,\n", "line 4, column 'y': the label is missing")


def test_a_bad_field_after_a_field_of_two_lines(csv: Any) -> None:
    refused(csv, 'a,y\n1,"big\ncat"\nx,dog\n', "line 4, column 'a': expected a number, got 'x'")


def test_a_label_that_is_not_a_number_names_its_line(csv: Any) -> None:
    refused(csv, "a,y\n1,1\n2,nan\n", "line 3, column 'y'")


def test_a_column_that_occurs_twice_is_named(csv: Any) -> None:
    refused(csv, "a,b,a,y\n1,2,3,4\n", "'a'")


def test_a_header_and_blank_lines_are_no_record(csv: Any) -> None:
    refused(csv, "a,y\n\n\n", "expected a header and at least one record")


def test_the_path_does_not_decide_what_a_label_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("float").write_text("a,y\n1,cat\n2,dog\n")
    assert from_csv("float", "y").classes == ("cat", "dog")
