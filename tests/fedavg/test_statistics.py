"""Statistics by secure sums: numpy's on the pooled data within the stated error, and small groups hidden."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import FrozenInstanceError, replace
from fractions import Fraction
from math import ceil, nextafter, sqrt
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedavg.budget import Budget, BudgetSpent
from fedavg.round import PlainSum, SecureSum
from fedavg.statistics import (
    MAX_CELLS,
    MAX_QUERY_BYTES,
    MAX_RECORDS,
    MIN_CELL,
    NUMBERS,
    Average,
    Bars,
    Contingency,
    Count,
    Counted,
    CrossTable,
    Cuts,
    Histogram,
    Holding,
    Mean,
    Quantile,
    Query,
    Spread,
    Variance,
    answer,
    ask,
    bound,
    describe,
    finish,
    from_bytes_checked,
    length,
    question_hash,
    shown,
    tabulate,
    to_bytes,
)
from fedavg.table import Table
from protocols.errors import Aborted
from protocols.machine import Aggregate
from protocols.session import Session
from secagg.keys import Identity
from secagg.randomness import seeded

QUERIES: list[Query] = [
    Count(),
    Mean("x", -10, 20),
    Variance("x", -10, 20),
    Histogram("x", (-10, 0, 2.5, 20)),
    Quantile("x", -10, 20, (0, 0.1, 0.5, 1), 16),
    Contingency("sex", "stage", ("f", "m"), ("1", "2", "3")),
]
EVERY = pytest.mark.parametrize("query", QUERIES, ids=lambda q: type(q).__name__)


def table(**columns: Any) -> Table:
    """A table of these columns, from its second line on; None is missing."""
    texts = {n: tuple("" if v is None else str(v) for v in values) for n, values in columns.items()}
    count = len(next(iter(texts.values())))
    return Table("here.csv", texts, tuple(range(2, count + 2)))


def site(min_cell: int = 1, **columns: Any) -> Holding:
    return Holding(table(**columns), min_cell, Budget(1000))


def sites_of(*values: list[Any], min_cell: int = 1) -> dict[str, Holding]:
    """Sites that have one column, x."""
    return {f"site-{i}": site(min_cell, x=column) for i, column in enumerate(values)}


def asked(query: Query, sites: Mapping[str, Holding], aggregate: Any = None, max_records: int = 1000) -> Any:
    """One query's result."""
    (result,) = ask([query], sites, aggregate or PlainSum(), max_records)
    assert result.query == query
    return result


def pooled(sites: Mapping[str, Holding], query: Query, *columns: str) -> list[tuple[str, ...]]:
    """The texts of these columns, of all records that the query is about, missing ones left out."""
    found = []
    for one in sites.values():
        kept = one.table.texts(query.where[0]) if query.where else [""] * len(one.table)
        records = zip(kept, *(one.table.texts(column) for column in columns), strict=True)
        found += [r[1:] for r in records if query.where is None or r[0] == query.where[1]]
    return [texts for texts in found if all(texts)]


numbers = st.one_of(
    st.none(),
    st.integers(-12, 25),
    st.floats(-30, 40),
    st.sampled_from([-10.0, 0.0, 2.5, 20.0, 1e300, -1e300, 5e-324]),
)


@st.composite
def hospitals(draw: st.DrawFn, min_cell: int = 1) -> dict[str, Holding]:
    """Three to six sites; some values are missing, some beyond every range."""
    found = {}
    for i in range(draw(st.integers(3, 6))):
        count = draw(st.integers(1, 25))

        def column(values: Any, count: int = count) -> Any:
            return draw(st.lists(values, min_size=count, max_size=count))

        found[f"h{i}"] = site(
            min_cell,
            x=column(numbers),
            sex=column(st.sampled_from(["f", "m", "x", None])),
            stage=column(st.sampled_from(["1", "2", "3", "4", None])),
        )
    return found


wheres = st.sampled_from([None, ("sex", "f"), ("stage", "3"), ("sex", "nobody")])
records = st.integers(25, 60) | st.sampled_from([1000, 2**20, MAX_RECORDS])


# ------------------------------------------------------------------------------------ right answers


@given(hospitals(), wheres)
def test_a_count_is_the_number_of_records(sites: dict[str, Holding], where: Any) -> None:
    found = asked(Count(where=where), sites)
    assert isinstance(found, Counted)
    assert found.count == len(pooled(sites, found.query))
    assert found.sites == len(sites)


@given(hospitals(), wheres, records)
def test_mean_and_variance_are_right_within_their_error(
    sites: dict[str, Holding], where: Any, max_records: int
) -> None:
    query = Variance("x", -10, 20, where=where)
    values = [min(max(Fraction(float(x)), -10), 20) for (x,) in pooled(sites, query, "x")]
    spread = asked(query, sites, max_records=max_records)
    average = asked(Mean("x", -10, 20, where=where), sites, max_records=max_records)
    assert isinstance(spread, Spread)
    assert isinstance(average, Average)
    assert average.error < 30 * 2.0**-21
    assert spread.error < 30 * 2.0**-10
    assert spread.count == average.count == len(values)
    if not values:
        assert spread.mean is spread.variance is spread.deviation is average.mean is None
        return
    mean = sum(values) / len(values)
    variance = sum((v - mean) ** 2 for v in values) / len(values)
    for found in (spread, average):
        assert abs(Fraction(found.mean) - mean) <= Fraction(found.error)
    assert abs(spread.deviation - sqrt(variance)) <= spread.error * (1 + 1e-9)
    assert abs(Fraction(spread.variance) - variance) <= Fraction(spread.variance_error)
    assert spread.variance_error == spread.error * (2 * spread.deviation + spread.error)


@pytest.mark.parametrize(
    ("low", "high"),
    [(0, 1e-99), (-1e100, 1e100), (1e15, 1e15 + 1), (-1e-3, 1e12), (0.1, 0.3), (-7e99, -6e99)],
)
def test_the_error_holds_for_every_range(low: float, high: float) -> None:
    rng = np.random.default_rng(0)
    drawn = [low + (high - low) * rng.random(n) for n in (30, 7, 60)]
    sites = sites_of(*([repr(float(v)) for v in values] for values in drawn))
    values = [min(max(Fraction(float(v)), Fraction(low)), Fraction(high)) for v in np.concatenate(drawn)]
    mean = sum(values) / len(values)
    variance = sum((v - mean) ** 2 for v in values) / len(values)
    for found in (asked(Mean("x", low, high), sites), asked(Variance("x", low, high), sites)):
        assert abs(Fraction(found.mean) - mean) <= Fraction(found.error)
        assert found.error <= (high - low) * 2.0**-20 + abs(nextafter(max(-low, high), np.inf)) * 2.0**-51
    assert abs(Fraction(found.variance) - variance) <= Fraction(found.variance_error)
    cuts = asked(Quantile("x", low, high, (0.5,), 2), sites)
    assert abs(Fraction(cuts.values[0]) - sorted(values)[ceil(97 / 2) - 1]) <= Fraction(cuts.error)


@pytest.mark.parametrize(("kind", "bits"), [(Mean, 32), (Variance, 21)])
def test_the_worst_error_is_half_a_step_of_the_grid(kind: type[Mean | Variance], bits: int) -> None:
    half = 2.0 ** -(bits + 1)
    found = asked(kind("x", 0, 1), sites_of([half], [half], [half]))
    assert found.mean == 0
    assert half <= found.error <= half * 1.001


@pytest.mark.parametrize("value", [-3.7, 0.0, 20.0, 1e9])
def test_a_constant_has_no_deviation(value: float) -> None:
    found = asked(Variance("x", -10, 20), sites_of([value] * 3, [value] * 4, [value]))
    assert (found.variance, found.deviation) == (0, 0)
    assert found.mean == pytest.approx(min(value, 20), abs=found.error, rel=0)


@given(hospitals(), wheres)
def test_a_histogram_is_numpys(sites: dict[str, Holding], where: Any) -> None:
    query = Histogram("x", (-10, 0, 2.5, 20), where=where)
    values = np.array([float(x) for (x,) in pooled(sites, query, "x")])
    found = asked(query, sites)
    assert isinstance(found, Bars)
    assert list(found.counts) == np.histogram(values, query.edges)[0].tolist()
    assert (found.below, found.above) == ((values < -10).sum(), (values > 20).sum())


@given(hospitals(), wheres, st.integers(1, 70), st.lists(st.integers(0, 1000), min_size=1, max_size=4))
def test_a_quantile_is_within_a_bin_of_the_value_of_its_rank(
    sites: dict[str, Holding], where: Any, bins: int, thousandths: list[int]
) -> None:
    query = Quantile("x", -10, 20, tuple(q / 1000 for q in thousandths), bins, where=where)
    values = sorted(min(max(float(x), -10), 20) for (x,) in pooled(sites, query, "x"))
    found = asked(query, sites)
    assert isinstance(found, Cuts)
    assert found.count == len(values)
    assert found.error == pytest.approx(30 / bins)
    for q, cut in zip(thousandths, found.values, strict=True):
        if not values:
            assert cut is None
            continue
        assert cut is not None
        assert abs(cut - values[max(1, ceil(Fraction(q, 1000) * len(values))) - 1]) <= found.error
        assert -10 <= cut <= 20


def test_quantiles_of_an_even_spread_are_interpolated() -> None:
    sites = sites_of(*(list(np.arange(i, 1000, 4) + 0.5) for i in range(4)))
    found = asked(Quantile("x", 0, 1000, (0, 0.07, 0.25, 0.5, 0.999, 1), 10), sites)
    np.testing.assert_allclose(found.values, [0, 70, 250, 500, 999, 1000], atol=1e-9)


def test_a_last_bit_does_not_move_a_quantile_to_the_next_bin() -> None:
    assert 0.07 * 100 > 7
    sites = sites_of([0.5] * 3, [0.5] * 4, [9.5] * 93)
    (cut,) = asked(Quantile("x", 0, 10, (0.07,), 10), sites).values
    assert cut == 1.0


@given(hospitals(), wheres)
def test_a_contingency_counts_pairs(sites: dict[str, Holding], where: Any) -> None:
    query = Contingency("sex", "stage", ("m", "f"), ("3", "1"), where=where)
    pairs = Counter(pooled(sites, query, "sex", "stage"))
    found = asked(query, sites)
    assert isinstance(found, CrossTable)
    for i, sex in enumerate(["m", "f", "x"]):
        for j, stages in enumerate([["3"], ["1"], ["2", "4"]]):
            assert found.counts[i][j] == sum(pairs[sex, stage] for stage in stages)


def test_a_column_by_itself_is_on_the_diagonal() -> None:
    found = asked(Contingency("x", "x", ("a", "b"), ("a", "b")), sites_of(["a", "b", "c"], ["b"], ["d"]))
    assert found.counts == ((1, 0, 0), (0, 2, 0), (0, 0, 2))


# ---------------------------------------------------------------------------------- secure and plain


@settings(max_examples=8)
@given(
    hospitals(MIN_CELL),
    st.sampled_from(["honest-but-curious", "semi-malicious", "malicious"]),
    st.sampled_from([MAX_RECORDS, 25]),
)
def test_secure_and_plain_are_the_same(
    sites: dict[str, Holding], threat_model: str, max_records: int
) -> None:
    agreed = {"threat_model": threat_model, "corrupted": 0.0, "dropout": 0.0}
    assert ask(QUERIES, sites, SecureSum(agreed), max_records) == ask(QUERIES, sites, PlainSum(), max_records)


@pytest.mark.parametrize("threat_model", ["honest-but-curious", "malicious"])
def test_with_dropouts_the_result_is_of_those_who_are_left(threat_model: str) -> None:
    rng = np.random.default_rng(0)
    sites = {
        f"h{i}": site(
            3, x=rng.normal(5, 4, 40), sex=rng.choice(["f", "m"], 40), stage=rng.choice(list("1234"), 40)
        )
        for i in range(7)
    }
    drop = {
        0: {"h1": "keys"}, 1: {"h2": "shares", "h5": "masked"}, 2: {"h0": "reveals"}, 3: {"h6": "masked"},
        5: {"h3": "masked", "h4": "reveals"},
    }  # fmt: skip
    agreed = {"threat_model": threat_model, "corrupted": 0.0, "dropout": 0.3}
    secure = ask(QUERIES, sites, SecureSum(agreed, drop), 100)
    assert secure == ask(QUERIES, sites, PlainSum(drop), 100)
    assert [result.sites for result in secure] == [6, 5, 7, 6, 7, 6]
    left = {name: s for name, s in sites.items() if name not in ("h2", "h5")}
    assert secure[1] == asked(QUERIES[1], left, max_records=100)
    assert secure[1] != asked(QUERIES[1], sites, max_records=100)


def test_a_sum_that_fails_is_raised() -> None:
    sites = sites_of([1], [2], [3])
    with pytest.raises(Aborted, match="aborted at masked: too few are left"):
        ask([Count(), Count()], sites, PlainSum(aborted={1}), 10)
    assert sites["site-0"].budget.spent == 2, "an answer that was given is not taken back"


def test_each_query_is_a_round_bound_to_its_question() -> None:
    told = []

    def aggregate(vectors: Any, bound: int, round: int, model_hash: bytes = bytes(32)) -> Aggregate | Aborted:
        told.append((round, bound, model_hash))
        return PlainSum()(vectors, bound, round, model_hash)

    sites = {"a": site(x=[1.0], sex=["f"], stage=["1"])}
    ask(QUERIES, sites, aggregate, 10)
    assert told == [(i, bound(q, 10), question_hash(q, 10)) for i, q in enumerate(QUERIES)]
    hashes = {question_hash(q, most) for q in [*QUERIES, Count(where=("x", "1"))] for most in (10, 11)}
    assert len(hashes) == 14
    assert {len(h) for h in hashes} == {32}


# ----------------------------------------------------------------------------------- small groups


def hide(counts: Any, least: int) -> Any:
    return np.where(np.asarray(counts) < least, 0, counts)


@given(hospitals(), wheres, st.integers(1, 8))
def test_every_small_cell_of_every_site_is_sent_as_zero(
    sites: dict[str, Holding], where: Any, least: int
) -> None:
    for query in (msgspec.structs.replace(q, where=where) for q in QUERIES):
        for open_site in sites.values():
            whole = answer(query, open_site, 100)
            sent = answer(query, replace(open_site, min_cell=least), 100)
            if isinstance(query, Mean | Variance):
                expected = whole if whole[0] >= least else np.zeros_like(whole)
            else:
                expected = hide(whole, least)
            np.testing.assert_array_equal(sent, expected)


@EVERY
def test_a_hidden_group_cannot_be_told_from_none(query: Query) -> None:
    few = site(MIN_CELL, x=[3.5] * 4, sex=["f"] * 4, stage=["2"] * 4)
    none = site(MIN_CELL, x=[None] * 4, sex=[None] * 4, stage=[None] * 4)
    enough = site(MIN_CELL, x=[3.5] * 5, sex=["f"] * 5, stage=["2"] * 5)
    np.testing.assert_array_equal(answer(query, few, 100), answer(query, none, 100))
    assert not answer(query, few, 100).any()
    assert answer(query, enough, 100).any()


def test_missing_values_and_other_records_do_not_make_a_group_larger() -> None:
    one = site(MIN_CELL, x=[1.0] * 4 + [None] * 20, ward=["3"] * 24)
    assert answer(Count(), one, 100).tolist() == [24]
    assert not answer(Mean("x", 0, 2), one, 100).any()
    other = site(MIN_CELL, x=[1.0] * 24, ward=["3"] * 4 + ["2"] * 20)
    assert not answer(Variance("x", 0, 2, where=("ward", "3")), other, 100).any()
    assert answer(Variance("x", 0, 2, where=("ward", "2")), other, 100)[0] == 20


@given(hospitals(MIN_CELL))
def test_no_margin_gives_a_hidden_cell_away(sites: dict[str, Holding]) -> None:
    query = QUERIES[5]
    assert isinstance(query, Contingency)
    found = asked(query, sites)
    expected = sum(
        hide(asked(query, {"alone": replace(s, min_cell=1)}).counts, MIN_CELL) for s in sites.values()
    )
    assert found.counts == tuple(map(tuple, expected.tolist()))
    heading, *rows = found.rows()
    assert heading == ("sex \\ stage", "1", "2", "3", "(other)", "all")
    assert [row[0] for row in rows] == ["f", "m", "(other)", "all"]
    shown_cells = np.array([row[1:] for row in rows])
    np.testing.assert_array_equal(shown_cells[:-1, :-1], expected)
    np.testing.assert_array_equal(shown_cells[-1, :-1], expected.sum(axis=0))
    np.testing.assert_array_equal(shown_cells[:-1, -1], expected.sum(axis=1))
    assert shown_cells[-1, -1] == expected.sum()


def test_a_site_may_raise_the_least_cell_but_not_do_without() -> None:
    assert Holding(table(x=[1])).min_cell == 5
    assert answer(Count(), site(30, x=[1] * 29), 100).tolist() == [0]
    assert answer(Count(), site(30, x=[1] * 30), 100).tolist() == [30]
    for least in (0, -1, 2.5, True):
        with pytest.raises(ValueError, match="min_cell: expected an integer from 1 to 4294967295, got"):
            Holding(table(x=[1]), least)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------ budget


def test_a_query_is_charged_before_its_answer_whatever_comes_of_it() -> None:
    one = Holding(table(x=["1", "two"]), 1, Budget(3))
    answer(Count(), one, 10)
    with pytest.raises(ValueError, match="expected a finite number"):
        answer(Mean("x", 0, 1), one, 10)
    with pytest.raises(ValueError, match="no column 'ward'"):
        answer(Count(where=("ward", "3")), one, 10)
    assert one.budget.left == 0
    with pytest.raises(BudgetSpent, match="3 queries may be answered, and 3 were: none is left"):
        answer(Count(), one, 10)


def test_a_site_without_budget_answers_nothing() -> None:
    sites = {**sites_of([1], [2]), "york": Holding(table(x=[3]), 1, Budget(0))}
    with pytest.raises(BudgetSpent, match="site york: budget: 0 queries may be answered"):
        ask([Count()], sites, PlainSum(), 10)


def test_a_budget_in_a_file_outlives_its_site(tmp_path: Path) -> None:
    for _ in range(2):
        answer(Count(), Holding(table(x=[1]), 1, Budget(2, tmp_path / "budget")), 10)
    with pytest.raises(BudgetSpent):
        answer(Count(), Holding(table(x=[1]), 1, Budget(2, tmp_path / "budget")), 10)


def test_sites_have_budgets_of_their_own() -> None:
    first, second = Holding(table(x=[1])), Holding(table(x=[1]))
    answer(Count(), first, 10)
    assert (first.budget.left, second.budget.left) == (19, 20)


# ------------------------------------------------------------------------------------------ bounds


@EVERY
@pytest.mark.parametrize("max_records", [1, 2, 5, 1000, 2**20, MAX_RECORDS])
def test_a_thousand_sites_fit(query: Query, max_records: int) -> None:
    assert bound(query, max_records) >= 2
    assert 1000 * (bound(query, max_records) - 1) < 1 << 63


def test_a_session_of_a_thousand_takes_it() -> None:
    rng = seeded(b"test")
    roster = {f"h{i}": Identity.generate(rng).public for i in range(1000)}
    for query in QUERIES:
        session = Session(roster, length(query), bound(query, MAX_RECORDS))
        assert session.ring.bits <= 63


@EVERY
def test_answers_are_integers_below_the_bound_which_is_reached(query: Query) -> None:
    for most in (1, 7, 25):
        one = site(x=[1e300] * most, sex=["f"] * most, stage=["1"] * most)
        found = answer(query, one, most)
        assert found.dtype == np.int64
        assert found.shape == (length(query),)
        assert found.max() == bound(query, most) - 1


@given(hospitals(), records)
def test_no_answer_leaves_its_bounds(sites: dict[str, Holding], max_records: int) -> None:
    for query in QUERIES:
        for one in sites.values():
            found = answer(query, one, max_records)
            assert found.shape == (length(query),)
            assert found.min() >= 0
            assert found.max() < bound(query, max_records)


@pytest.mark.parametrize("max_records", [0, -1, MAX_RECORDS + 1, 2.0, True])
def test_a_number_of_records_that_is_none(max_records: Any) -> None:
    for query in QUERIES:
        calls: list[Callable[[], object]] = [
            lambda q=query: bound(q, max_records),  # type: ignore[misc]
            lambda q=query: answer(q, site(x=[1]), max_records),  # type: ignore[misc]
            lambda q=query: question_hash(q, max_records),  # type: ignore[misc]
        ]
        for call in calls:
            with pytest.raises(ValueError, match="max_records: expected an integer from 1 to 4294967295"):
                call()


# ------------------------------------------------------------------------------------- clear errors


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (Mean("age", 0, 1), "here.csv: no column 'age'; the columns are x, sex"),
        (Histogram("age", (0, 1)), "here.csv: no column 'age'"),
        (Count(where=("ward", "3")), "here.csv: no column 'ward'"),
        (Contingency("sex", "stage", ("f",), ("1",)), "here.csv: no column 'stage'"),
        (Variance("sex", 0, 1), "here.csv, line 2, column 'sex': expected a finite number"),
        (Quantile("x", 0, 1), "here.csv, line 4, column 'x': expected a finite number"),
    ],
)
def test_what_a_site_cannot_answer_it_says_without_the_value(query: Query, message: str) -> None:
    one = site(x=["1", None, "hush!"], sex=["hush!", "m", "f"])
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is compared below
        ask([query], {"oslo": one}, PlainSum(), 10)
    assert str(caught.value).startswith(f"site oslo: {message}")
    assert "hush" not in str(caught.value)


def test_more_records_than_agreed_are_refused() -> None:
    one = site(x=[1] * 11)
    with pytest.raises(ValueError, match=r"here\.csv: expected at most 10 records, got 11"):
        answer(Count(), one, 10)
    assert one.budget.spent == 1, "that there are more was told, and is charged"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Mean("x", 1, 1), "range: expected ascending numbers, got 1 before 1"),
        (lambda: Mean("x", 2, 1), "range: expected ascending numbers, got 2 before 1"),
        (lambda: Mean("x", 0, float("nan")), "range: expected numbers from -1e100 to 1e100, got nan"),
        (lambda: Mean("x", float("-inf"), 0), "range: expected numbers from -1e100 to 1e100, got -inf"),
        (lambda: Variance("x", 0, 10**400), "range: expected numbers from -1e100 to 1e100, got 1000"),
        (lambda: Variance("x", 0, "9"), "range: expected numbers, got '9'"),
        (lambda: Variance("x", False, 9), "range: expected numbers, got False"),
        (lambda: Variance("x", 0, 1e-101), "range: expected ascending numbers, got 0 before 1e-101"),
        (lambda: Mean("", 0, 1), "column: expected a string of 1 to 255 bytes, got ''"),
        (lambda: Mean(7, 0, 1), "column: expected a string of 1 to 255 bytes, got 7"),  # type: ignore[arg-type]
        (lambda: Histogram("x", (1,)), "edges: expected 2 to 65536 numbers, got 1"),
        (lambda: Histogram("x", range(9)), "edges: expected a tuple or list, got range"),  # type: ignore[arg-type]
        (lambda: Histogram("x", [0, 2, 1]), "edges: expected ascending numbers, got 2 before 1"),  # type: ignore[arg-type]
        (
            lambda: Histogram("x", tuple(range(MAX_CELLS + 1))),
            "edges: expected 2 to 65536 numbers, got 65537",
        ),
        (lambda: Quantile("x", 0, 1, ()), "at: expected one or more fractions from 0 to 1"),
        (lambda: Quantile("x", 0, 1, (1.5,)), "at: expected one or more fractions from 0 to 1"),
        (lambda: Quantile("x", 0, 1, bins=0), "bins: expected an integer from 1 to 65535, got 0"),
        (lambda: Quantile("x", 0, 1, bins=1 << 16), "bins: expected an integer from 1 to 65535, got 65536"),
        (lambda: Quantile("x", 1e15, 1e15 + 1), "range in so many bins: expected ascending numbers"),
        (lambda: Contingency("a", "b", (), ("1",)), "row_values: expected one or more different texts"),
        (lambda: Contingency("a", "b", ("1",), ("1", "1")), "column_values: expected one or more different"),
        (lambda: Contingency("a", "b", "fm", ("1",)), "row_values: expected a tuple or list, got 'fm'"),  # type: ignore[arg-type]
        (lambda: Contingency("a", "b", ("f", ""), ("1",)), "row_values: expected a string of 1 to 255 bytes"),
        (lambda: Contingency("a", "b", (" f",), ("1",)), "row_values: expected a text without spaces at its"),
        (lambda: Contingency("a", "b", ("1",), (2,)), "column_values: expected a string of 1 to 255 bytes"),  # type: ignore[arg-type]
        (
            lambda: Contingency("a", "b", tuple(map(str, range(300))), tuple(map(str, range(300)))),
            "contingency: expected at most 65536 cells, got 90601",
        ),
        (lambda: Count(where=("a", "")), "where: value: expected a string of 1 to 255 bytes, got ''"),
        (lambda: Count(where=("", "a")), "where: column: expected a string of 1 to 255 bytes, got ''"),
        (lambda: Count(where="a=b"), "where: expected a tuple or list, got 'a=b'"),  # type: ignore[arg-type]
        (lambda: Count(where=("a", "b", "c")), "where: expected a column and a value, got 3 texts"),  # type: ignore[arg-type]
    ],
)
def test_a_query_that_makes_no_sense(make: Callable[[], Query], message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is compared below
        make()
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("query", "total", "message"),
    [
        (Count(), [1, 2], r"sum: expected 1 integers, got int64 of shape \(2,\)"),
        (Count(), [1.0], r"sum: expected 1 integers, got float64 of shape \(1,\)"),
        (Count(), [21], "sum: 2 sites' answers to this query cannot add up to it"),
        (Count(), [-1], "cannot add up"),
        (Histogram("x", (0, 1)), [7, 7, 7], "cannot add up"),
        (Mean("x", 0, 1), [21, 5], "cannot add up"),
        (Mean("x", 0, 1), [0, 5], "cannot add up"),
        (Mean("x", 0, 1), [1, (1 << 32) + 1], "cannot add up"),
        (Variance("x", 0, 1), [2, 8, 31], "cannot add up"),  # the variance would be negative
        (Variance("x", 0, 1), [2, 8, 7], "cannot add up"),
        (Variance("x", 0, 1), [2, 1, 1 << 60], "cannot add up"),
        (Variance("x", 0, 1), [0, 0, 1], "cannot add up"),
    ],
)
def test_a_sum_that_no_sites_can_have_sent(query: Query, total: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        finish(query, np.array(total), 2, 10)


def test_a_sum_of_nobody_is_refused() -> None:
    with pytest.raises(ValueError, match="included: expected an integer from 1"):
        finish(Count(), np.array([0]), 0, 10)


# ---------------------------------------------------------------------------------- queries as bytes

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20).filter(
    lambda t: t == t.strip()
)
floats = st.floats(-1e100, 1e100).map(float)
common = {"where": st.none() | st.tuples(texts, texts)}
ranges = st.tuples(floats, floats).map(sorted).filter(lambda r: r[1] - r[0] > 1e-90 * max(1, abs(r[1]), 1))
lists = st.lists(texts, min_size=1, max_size=5, unique=True).map(tuple)


@st.composite
def any_query(draw: st.DrawFn) -> Query:
    where = draw(common["where"])
    low, high = draw(ranges)
    column = draw(texts)
    made: list[Callable[[], Query]] = [
        lambda: Count(where=where),
        lambda: Mean(column, low, high, where=where),
        lambda: Variance(column, low, high, where=where),
        lambda: Histogram(column, (low, high), where=where),
        lambda: Quantile(
            column, low, high, tuple(draw(st.lists(st.floats(0, 1), min_size=1))), 1, where=where
        ),
        lambda: Contingency(column, draw(texts), draw(lists), draw(lists), where=where),
    ]
    return draw(st.sampled_from(made))()


@given(any_query())
def test_bytes_there_and_back(query: Query) -> None:
    data = to_bytes(query)
    assert from_bytes_checked(data) == query
    assert type(from_bytes_checked(data)) is type(query)
    assert to_bytes(from_bytes_checked(data)) == data
    assert question_hash(from_bytes_checked(data), 10) == question_hash(query, 10)


def test_equal_queries_are_equal_bytes_however_they_were_written() -> None:
    same: list[tuple[Query, Query]] = [
        (Mean("x", -0.0, 2), Mean("x", 0, 2.0)),
        (Histogram("x", [0, np.int64(1), np.float32(2)]), Histogram("x", (0.0, 1.0, 2.0))),  # type: ignore[arg-type]
        (Count(where=["a", "b"]), Count(where=("a", "b"))),  # type: ignore[arg-type]
        (Contingency("a", "b", ["1"], ["2"]), Contingency("a", "b", ("1",), ("2",))),  # type: ignore[arg-type]
    ]
    for one, other in same:
        assert one == other
        assert hash(one) == hash(other)
        assert to_bytes(one) == to_bytes(other)
        assert from_bytes_checked(to_bytes(one)) == other


def packed(fields: Any) -> bytes:
    return to_bytes(Count())[:1] + msgspec.msgpack.encode(fields)


MEAN = {"kind": "mean", "column": "x", "low": 0.0, "high": 1.0, "where": None}
QUANTILE = {k: v for k, v in MEAN.items() if k != "where"} | {"at": [0.5], "bins": 64, "where": None}
QUANTILE["kind"] = "quantile"


def test_the_fields_as_packed_here_are_a_query() -> None:
    assert from_bytes_checked(packed(QUANTILE)) == Quantile("x", 0, 1, (0.5,))
    assert from_bytes_checked(packed(MEAN)) == Mean("x", 0, 1)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00",
        b"\xff" * 100,
        packed(MEAN) + b"\x00",
        packed(MEAN)[:-1],
        b"\x7f" + packed(MEAN)[1:],
        packed([]),
        packed({}),
        packed(list(MEAN.values())),
        packed({**MEAN, "kind": "median"}),
        packed({**MEAN, "kind": "_ranged"}),
        packed({**MEAN, "low": 0}),
        packed({**MEAN, "low": -0.0}),
        packed({**MEAN, "low": float("nan")}),
        packed({**MEAN, "high": float("inf")}),
        packed({**MEAN, "high": -1.0}),
        packed({**MEAN, "high": "1"}),
        packed({**MEAN, "column": ""}),
        packed({**MEAN, "column": 5}),
        packed({**MEAN, "column": "x" * 256}),
        packed({**MEAN, "more": 1}),
        packed({k: v for k, v in MEAN.items() if k != "where"}),
        packed({k: v for k, v in MEAN.items() if k != "high"}),
        packed(dict(reversed(MEAN.items()))),
        packed({**MEAN, "where": ["a"]}),
        packed({**MEAN, "where": ["a", " b"]}),
        packed({**MEAN, "kind": "quantile", "at": [0.5], "bins": 64}),  # in another order
        packed({**QUANTILE, "bins": 1 << 40}),
        packed({**QUANTILE, "bins": 64.0}),
        packed({**QUANTILE, "at": [2.0]}),
        packed({"kind": "histogram", "column": "x", "edges": [1.0, 0.0], "where": None}),
        packed({"kind": "histogram", "column": "x", "edges": [0.0] * (MAX_CELLS + 1), "where": None}),
        b"\x00" * (MAX_QUERY_BYTES + 1),
        to_bytes(Count())[:1] + b"\x91" * 100_000,
        to_bytes(Count())[:1] + b"\xdf\xff\xff\xff\xff",
    ],
)  # fmt: skip
def test_hostile_bytes_are_no_query(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"^query: "):
        from_bytes_checked(data)


@given(st.binary(max_size=60) | any_query().map(to_bytes), st.integers(0, 400), st.integers(0, 7))
def test_a_flipped_bit_is_another_query_or_none(data: bytes, place: int, bit: int) -> None:
    if data:
        changed = bytearray(data)
        changed[place % len(data)] ^= 1 << bit
        data = bytes(changed)
    try:
        query = from_bytes_checked(data)
    except ValueError:
        return
    assert to_bytes(query) == data


def test_the_largest_query_fits_its_limit() -> None:
    names = tuple(f"{i:0255}" for i in range(MAX_CELLS // 2 - 1))
    query = Contingency("a", "b", names, ("x",))
    assert length(query) == MAX_CELLS
    assert from_bytes_checked(to_bytes(query)) == query
    edges = Histogram("x", tuple(range(MAX_CELLS)))
    assert from_bytes_checked(to_bytes(edges)) == edges
    bins = Quantile("x", 0, 1, bins=MAX_CELLS - 1)
    assert from_bytes_checked(to_bytes(bins)) == bins


def test_queries_and_results_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        QUERIES[1].column = "y"  # type: ignore[union-attr, misc]
    with pytest.raises(FrozenInstanceError):
        Counted(Count(), 1, 2).count = 3  # type: ignore[misc]


# --------------------------------------------------------------------------------------- as shown


def test_rows_of_every_result() -> None:
    sites = {
        f"h{i}": site(x=[-11, 1, 2, 3, None], sex=["f", "f", "m", "m", "x"], stage=list("11234"))
        for i in range(3)
    }
    results = ask(QUERIES, sites, PlainSum(), 10)
    numbers, bars, cuts, cross = tabulate(results)
    assert numbers[0] == cuts[0] == ""
    assert numbers[1][0] == cuts[1][0] == NUMBERS
    assert numbers[1][1] == ("number of records", 15, 0, 15, 3)
    names = ["mean of x in -10 to 20", *(f"{w} of x in -10 to 20" for w in ("mean", "variance", "deviation"))]
    assert [row[0] for row in numbers[1][2:]] == names
    assert [row[1] for row in numbers[1][2:]] == pytest.approx([-1, -1, 27.5, sqrt(27.5)], abs=1e-5)
    assert [row[3:] for row in numbers[1][2:]] == [(12, 3)] * 4
    assert bars == (
        "histogram of x (3 sites)",
        [("x", "values"), ("below -10", 3), ("-10 to 0", 0), ("0 to 2.5", 6), ("2.5 to 20", 3)],
    )
    assert [row[0] for row in cuts[1][1:]] == [f"{q}-quantile of x in -10 to 20" for q in (0, 0.1, 0.5, 1)]
    assert cross[0] == "sex by stage (3 sites)"
    assert cross[1][1:] == [
        ("f", 6, 0, 0, 0, 6), ("m", 0, 3, 3, 0, 6), ("(other)", 0, 0, 0, 3, 3), ("all", 6, 3, 3, 3, 15),
    ]  # fmt: skip
    assert len(tabulate([results[1], results[2], results[4]])) == 1


def test_a_filter_is_part_of_the_description() -> None:
    assert describe(Count(where=("ward", "3"))) == "number of records, where ward is 3"
    found = asked(Count(where=("x", "3")), sites_of([3, 3], [2], [3]))
    assert found.rows()[1] == ("number of records, where x is 3", 3, 0, 3, 3)


def test_cells_as_text() -> None:
    assert [shown(v) for v in (None, 1234567, 0.1234567, 1e-9, "a,b")] == [
        "none", "1,234,567", "0.123457", "1e-09", "a,b",
    ]  # fmt: skip


def test_results_become_plain_json() -> None:
    sites = {f"h{i}": site(x=[1, 2], sex=["f", "m"], stage=["1", "2"]) for i in range(3)}
    plain = msgspec.to_builtins(ask(QUERIES, sites, PlainSum(), 10))
    assert plain[0] == {"query": {"kind": "count", "where": None}, "sites": 3, "count": 6}
    assert [p["query"]["kind"] for p in plain] == [type(q).__name__.lower() for q in QUERIES]
