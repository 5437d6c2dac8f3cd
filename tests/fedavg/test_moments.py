"""Moments through secure sums: numpy's within fixed-point precision, and secure equal to plain."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedavg.moments import Moments, moments
from fedavg.round import PlainSum, SecureSum
from protocols.errors import Aborted
from protocols.machine import Aggregate

UNIT = 2.0**-24
ZERO = 2.0**-20
"""A deviation below this part of the range counts as none."""


def cover(column: Any) -> float:
    """The power of two that covers a column."""
    return float(np.ldexp(1.0, np.frexp(np.abs(column).max())[1]))


def assert_right(found: Moments, tables: Mapping[str, Any]) -> None:
    pooled = np.vstack(list(tables.values()))
    assert found.count == len(pooled)
    for j, column in enumerate(pooled.T):
        scale, off = cover(column), abs(found.mean[j] - column.mean())
        assert off <= UNIT * scale
        # Distances are from the mean that was found, which adds the square of what that is off by.
        near = UNIT * cover((column - found.mean[j]) ** 2) + off**2 + 1e-14 * column.var()
        if found.deviation[j] == 0.0:
            assert column.var() <= (ZERO * scale) ** 2 + near
        else:
            assert abs(found.deviation[j] ** 2 - column.var()) <= near
            assert found.deviation[j] >= ZERO * scale


@st.composite
def hospitals(draw: st.DrawFn) -> dict[str, Any]:
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    width = draw(st.integers(1, 4))
    scale = 2.0 ** np.array(draw(st.lists(st.integers(-25, 50), min_size=width, max_size=width)))
    shift = np.array(draw(st.lists(st.sampled_from([-3.0, 0.0, 1.0]), min_size=width, max_size=width)))
    return {
        f"h{i}": (rng.normal(size=(draw(st.integers(1, 30)), width)) + shift) * scale
        for i in range(draw(st.integers(3, 6)))
    }


@given(hospitals())
def test_moments_are_numpys(tables: dict[str, Any]) -> None:
    assert_right(moments(tables, PlainSum()), tables)


@settings(max_examples=10)
@given(hospitals(), st.sampled_from(["honest-but-curious", "semi-malicious", "malicious"]))
def test_secure_and_plain_are_bit_for_bit_the_same(tables: dict[str, Any], threat_model: str) -> None:
    agreed = {"threat_model": threat_model, "corrupted": 0.0, "dropout": 0.0}
    secure, plain = moments(tables, SecureSum(agreed)), moments(tables, PlainSum())
    assert secure.count == plain.count
    assert secure.mean.tobytes() == plain.mean.tobytes()
    assert secure.deviation.tobytes() == plain.deviation.tobytes()
    assert_right(secure, tables)


@pytest.mark.parametrize("value", [0.0, 1.0, -1.0, 3.7, -1e-6, 1e15, 2.0**63])
def test_a_constant_column_has_no_deviation_and_becomes_zero(value: float) -> None:
    tables = {"a": np.full((5, 1), value), "b": np.full((7, 1), value)}
    found = moments(tables, PlainSum())
    assert found.deviation.tolist() == [0]
    assert found.mean[0] == pytest.approx(value, rel=2 * UNIT, abs=0)
    np.testing.assert_allclose(found.standardise(tables["a"]), 0.0, atol=2 * UNIT * max(abs(value), 1))


@pytest.mark.parametrize("scale", [1e-8, 1e-4, 1.0, 1e6, 1e18])
def test_scales_side_by_side_do_not_disturb_each_other(scale: float) -> None:
    rng = np.random.default_rng(0)
    tables = {n: rng.normal(size=(50, 3)) * [1.0, scale, 1e3] for n in "abc"}
    found, pooled = moments(tables, PlainSum()), np.vstack(list(tables.values()))
    assert_right(found, tables)
    np.testing.assert_allclose(found.deviation, pooled.std(axis=0), rtol=1e-6)


def test_one_hospital_may_be_far_larger_than_the_rest() -> None:
    rng = np.random.default_rng(0)
    tables = {"a": rng.normal(size=(50, 2)), "b": rng.normal(size=(50, 2)) * 1000 - 5000}
    assert_right(moments(tables, PlainSum()), tables)


def test_as_many_records_as_allowed() -> None:
    largest = np.full((20, 1), np.nextafter(1.0, 0.0))
    tables = {"a": largest, "b": -largest, "c": largest}
    agreed = {"corrupted": 0.0, "dropout": 0.0}
    assert_right(moments(tables, SecureSum(agreed), max_records=20), tables)


def test_standardise_and_restore() -> None:
    rng = np.random.default_rng(0)
    tables = {n: np.c_[rng.normal(5, 3, 200), rng.normal(-1, 0.1, 200), np.full(200, 4.0)] for n in "ab"}
    found, pooled = moments(tables, PlainSum()), np.vstack(list(tables.values()))
    standard = found.standardise(pooled)
    np.testing.assert_allclose(standard.mean(axis=0), 0.0, atol=1e-5)
    np.testing.assert_allclose(standard.std(axis=0), [1, 1, 0], atol=1e-6)
    np.testing.assert_allclose(found.restore(standard), pooled, rtol=1e-12)


class Watched:
    """A plain sum that keeps what each hospital sent."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []
        self.rounds: list[int] = []

    def __call__(self, vectors: Any, bound: int, round: int, model_hash: bytes = bytes(32)) -> Any:
        for vector in vectors.values():
            assert vector.dtype.kind == "i"
            assert vector.min() >= 0
            assert vector.max() < bound
        self.sent.append(dict(vectors))
        self.rounds.append(round)
        return PlainSum()(vectors, bound, round, model_hash)


@given(hospitals())
def test_four_sums_of_integers_below_the_bound(tables: dict[str, Any]) -> None:
    watched = Watched()
    found = moments(tables, watched, max_records=30)
    assert watched.rounds == [0, 1, 2, 3]
    ranges, sums, far, squares = watched.sent
    width = tables["h0"].shape[1]
    pooled = np.vstack(list(tables.values()))
    for name, table in tables.items():
        for marks in (ranges, far):
            assert marks[name].sum() == width, "one mark a column tells the range and nothing else"
            assert set(marks[name].tolist()) == {0, 1}
        for total, values in ((sums, table), (squares, (table - found.mean) ** 2)):
            counting = total is sums  # the number of records is asked for once
            assert total[name].shape == (width + counting,)
            assert not counting or total[name][-1] == len(table)
            # Fixed point in the range of all hospitals together; none of the values travels by itself.
            over = pooled if total is sums else (pooled - found.mean) ** 2
            scale = np.array([cover(column) for column in over.T])
            sent = (total[name][:width] / 2**24 - 30) * scale
            np.testing.assert_allclose(sent, values.sum(axis=0), rtol=1e-12, atol=0.51 * UNIT * scale.max())
            assert (np.abs(sent - values.sum(axis=0)) <= 0.51 * UNIT * scale).all()


@pytest.mark.parametrize("which", [0, 1, 2, 3])
def test_a_sum_that_fails_is_raised(which: int) -> None:
    def aggregate(vectors: Any, bound: int, round: int, model_hash: bytes = bytes(32)) -> Aggregate | Aborted:
        return Aborted("masked", "too few") if round == which else PlainSum()(vectors, bound, round)

    with pytest.raises(Aborted, match="aborted at masked: too few"):
        moments({"a": np.ones((2, 1)), "b": np.ones((2, 1))}, aggregate)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (np.ones((11, 2)), "table of bad: expected 1 to 10 records, got 11"),
        (np.ones((0, 2)), "table of bad: expected 1 to 10 records, got 0"),
        (np.array([[1.0, np.nan]]), "table of bad: expected finite numbers"),
        (np.array([[1.0, -np.inf]]), "table of bad: expected finite numbers"),
        (np.array([[1.0, 2.0**64]]), r"table of bad: expected finite numbers below 2\^64"),
        (np.ones(2), r"table of bad: expected float64 of two dimensions, got float64, \(2,\)"),
        (np.ones((2, 2), np.float32), "table of bad: expected float64 of two dimensions, got float32"),
        (np.ones((2, 2), np.int64), "table of bad: expected float64 of two dimensions, got int64"),
        (np.ones((2, 3)), r"tables: expected the same number of columns everywhere, got \[2, 3\]"),
    ],
)
def test_a_bad_table_is_refused_before_anything_is_summed(table: Any, message: str) -> None:
    def never(*_: Any) -> Any:
        raise AssertionError("summed")

    with pytest.raises(ValueError, match=message):
        moments({"good": np.ones((2, 2)), "bad": table}, never, max_records=10)


def test_no_tables_are_refused() -> None:
    with pytest.raises(ValueError, match="tables: expected the same number of columns"):
        moments({}, PlainSum())


def test_zeros_in_one_hospital_do_not_coarsen_the_range_of_the_others() -> None:
    rng = np.random.default_rng(0)
    tables = {"a": rng.normal(0, 1e-5, (50, 1)), "b": rng.normal(0, 1e-5, (50, 1)), "c": np.zeros((5, 1))}
    assert_right(moments(tables, PlainSum()), tables)


def test_years_keep_their_deviation() -> None:
    # Mean square less squared mean would lose it: the range is two thousand times the deviation.
    years = np.random.default_rng(0).integers(2018, 2022, (300, 1)).astype(np.float64)
    for tables in (
        {"a": years[:100], "b": years[100:]},
        {"a": np.array([[2018.0], [2019.0]]), "b": np.array([[2020.0]]), "c": np.array([[2021.0]])},
    ):
        found, pooled = moments(tables, PlainSum()), np.vstack(list(tables.values()))
        assert_right(found, tables)
        assert found.mean[0] == pytest.approx(pooled.mean(), abs=UNIT * 2048, rel=0)
        assert found.deviation[0] == pytest.approx(pooled.std(), rel=1e-6)
        standard = found.standardise(pooled)
        np.testing.assert_allclose(standard, (pooled - pooled.mean()) / pooled.std(), atol=2e-4)
        assert standard.std() == pytest.approx(1.0, rel=1e-6)


@pytest.mark.parametrize(
    ("power", "kept"), [(-10, True), (-15, True), (-18, True), (-22, False), (-30, False)]
)
def test_below_a_millionth_of_the_range_a_column_counts_as_constant(power: int, kept: bool) -> None:
    # Half the records at 3/4 and half just above, so that the deviation is 2^power of the range of 1.
    low, high = np.full((8, 1), 0.75), np.full((8, 1), 0.75 + 2.0 ** (power + 1))
    tables = {"a": low, "b": high}
    found = moments(tables, PlainSum())
    assert_right(found, tables)
    if kept:
        assert found.deviation[0] == pytest.approx(2.0**power, rel=1e-3)
    else:
        assert found.deviation[0] == 0
        assert np.abs(found.standardise(low)).max() <= 2.0 ** (power + 1) + UNIT


def test_the_largest_values_of_all() -> None:
    largest = np.nextafter(2.0**64, 0.0)
    tables = {"a": np.full((3, 1), largest), "b": np.full((3, 1), -largest), "c": np.array([[largest]])}
    assert_right(moments(tables, PlainSum()), tables)


@pytest.mark.parametrize("gone", [0, 1, 2, 3])
def test_sums_over_different_hospitals_are_no_result(gone: int) -> None:
    """Two counts over different hospitals would tell one hospital's records, and the mean would be wrong."""
    tables = {"a": np.full((3, 1), 5.0), "b": np.full((3, 1), 1.0), "c": np.full((3, 1), 1.5)}
    with pytest.raises(Aborted, match="the sums are over different hospitals"):
        moments(tables, PlainSum({gone: {"a": "masked"}}))


def test_a_hospital_that_is_in_no_sum_changes_nothing() -> None:
    tables = {"a": np.full((3, 1), 5.0), "b": np.full((3, 1), 1.0), "c": np.full((3, 1), 1.5)}
    found = moments(tables, PlainSum({number: {"a": "masked"} for number in range(4)}))
    assert found == moments({name: tables[name] for name in "bc"}, PlainSum())
