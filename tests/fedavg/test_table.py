"""A site's file: what spreadsheets write is read, what is wrong is named by line and column, not by value."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedavg.table import Table, read_table


@pytest.fixture
def csv(tmp_path: Path) -> Any:
    def read(text: str | bytes) -> Table:
        path = tmp_path / "oslo.csv"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return read_table(path)

    return read


def test_columns_are_text_until_numbers_are_asked_for(csv: Any) -> None:
    table = csv("age, sex ,stage\n 61 ,f,\n,m,2\n4.5e1,f,x\n")
    assert len(table) == 3
    assert table.texts("sex") == ("f", "m", "f")
    assert table.texts("stage") == ("", "2", "x")
    np.testing.assert_array_equal(table.numbers("age"), [61, np.nan, 45])
    assert table.lines == (2, 3, 4)


@pytest.mark.parametrize(
    "text",
    [
        "\ufeffa,b\n1,2\n3,4\n",
        "a,b\r\n1,2\r\n3,4\r\n",
        "a,b\n\n1,2\n\n3,4",
        'a,b\n"1","2"\n"3"," 4 "\n',
        " a , b \n1,2\n3,4\n",
    ],
    ids=["BOM", "CRLF", "blank lines", "quotes", "spaces"],
)
def test_what_spreadsheets_write(csv: Any, text: str) -> None:
    table = csv(text)
    assert dict(table.columns) == {"a": ("1", "3"), "b": ("2", "4")}


def test_one_column_may_have_no_name(csv: Any) -> None:
    # It is what a table written with its row numbers looks like; no query can name it.
    table = csv(",a\n0,7\n1,8\n")
    assert table.numbers("a").tolist() == [7, 8]
    with pytest.raises(ValueError, match=r"no column 'b'; the columns are a$"):
        table.texts("b")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "oslo.csv: expected a header and at least one record"),
        ("a,b\n", "oslo.csv: expected a header and at least one record"),
        ("a,b\n\n\n", "oslo.csv: expected a header and at least one record"),
        ("\n1,2\n", "oslo.csv: expected a header and at least one record"),
        ("a,b, a\n1,2,3\n", "oslo.csv: the column 'a' occurs twice in the header"),
        (",a,\n1,2,3\n", "oslo.csv: the column '' occurs twice in the header"),
        ("a,b\n1,2\n3\n", "oslo.csv, line 3: expected 2 fields, got 1"),
        ("a,b\n1,2\n\n3,4,5\n", "oslo.csv, line 4: expected 2 fields, got 3"),
        (b"a,b\n1,caf\xe9\n", "oslo.csv: cannot be read as CSV: 'utf-8' codec"),
        ('a,b\n1,"2\n3,4\n', "oslo.csv: cannot be read as CSV: unexpected end of data"),
        ("a,b\n1," + "x" * 200_000 + "\n", "oslo.csv: cannot be read as CSV: field larger than field limit"),
    ],
)
def test_a_bad_file_is_refused_with_its_place(csv: Any, text: str | bytes, message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is compared below, path and all
        csv(text)
    assert message in str(caught.value)


def test_a_missing_file_and_a_directory(tmp_path: Path) -> None:
    for path in (tmp_path / "none.csv", tmp_path):
        with pytest.raises(ValueError, match=f"{path.name}: cannot be read as CSV"):
            read_table(path)


@pytest.mark.parametrize("value", ["4711secret", "nan", "inf", "-inf", "1e999", "1,5"])
def test_a_value_that_is_no_number_is_named_by_its_place_alone(csv: Any, value: str) -> None:
    table = csv(f'age,sex\n61,f\n\n"{value}",m\n')
    with pytest.raises(ValueError, match=r"oslo\.csv, line 4, column 'age': expected a finite number$"):
        table.numbers("age")
    assert table.texts("sex") == ("f", "m"), "other columns can be used"


def test_a_line_after_a_field_of_two_lines(csv: Any) -> None:
    table = csv('age,note\n1,"two\nlines"\nx,one\n')
    with pytest.raises(ValueError, match=r"line 4, column 'age'"):
        table.numbers("age")


def test_no_value_is_in_a_repr(csv: Any) -> None:
    assert "4711" not in repr(csv("a,b\n4711,2\n"))


def test_columns_of_different_lengths_are_no_table() -> None:
    with pytest.raises(ValueError, match="here: expected 2 records, column 'a' has 1"):
        Table("here", {"a": ("1",)}, (2, 3))


def test_an_empty_column_is_all_missing(csv: Any) -> None:
    assert all(math.isnan(v) for v in csv("a,b\n,1\n ,2\n").numbers("a"))
