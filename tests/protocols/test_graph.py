"""`protocols.graph`: the graphs, the public table of the C++ finder, and the finder against exact fractions.

The finder sums floating-point tails; here the same probabilities are ratios of whole numbers of subsets.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from fractions import Fraction
from functools import cache
from itertools import combinations, permutations
from math import comb
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from protocols import graph as graphs
from protocols.errors import Infeasible, LocalError
from protocols.graph import (
    HONEST_BUT_CURIOUS,
    MALICIOUS,
    PROTOCOLS,
    SECAGG,
    SECAGG_PLUS,
    SEMI_MALICIOUS,
    THREAT_MODELS,
    Complete,
    Graph,
    Harary,
    Parameters,
    graph,
    parameters,
    reference_parameters,
)
from secagg.labels import Label
from secagg.randomness import seeded

# ---------------------------------------------------------------------------------------- graphs


@st.composite
def harary(draw: st.DrawFn, least_degree: int = 2) -> tuple[int, int, bytes]:
    """Cohort, degree and seed of a Harary graph."""
    n = draw(st.integers(least_degree + 2, 60))
    return n, 2 * draw(st.integers(least_degree // 2, (n - 2) // 2)), draw(st.binary(max_size=32))


def ring(n: int, seed: bytes) -> list[int]:
    """The ring, walked in the graph of degree 2."""
    lines = Harary(n, 2, seed)
    walked = [0, lines.neighbours(0)[0]]
    while len(walked) < n:
        here, before = walked[-1], walked[-2]
        walked.append(next(j for j in lines.neighbours(here) if j != before))
    return walked


def connected(g: Graph, left: set[int]) -> bool:
    """Whether those who are left form one component."""
    reached, todo = set(), [min(left)]
    while todo:
        i = todo.pop()
        if i not in reached:
            reached.add(i)
            todo += [j for j in g.neighbours(i) if j in left]
    return reached == left


def runs(removed: list[bool]) -> list[int]:
    """Lengths of the runs of removed places on a ring."""
    if all(removed):
        return [len(removed)]
    first = removed.index(False)
    marks = "".join("x" if r else "." for r in removed[first:] + removed[:first])
    return [len(run) for run in marks.split(".") if run]


@given(harary())
def test_harary_is_regular_symmetric_and_sorted(case: tuple[int, int, bytes]) -> None:
    n, degree, seed = case
    g = Harary(n, degree, seed)
    near = [g.neighbours(i) for i in range(n)]
    for i, them in enumerate(near):
        assert len(them) == len(set(them)) == degree
        assert i not in them
        assert list(them) == sorted(them)
        assert set(them) <= set(range(n))
        assert all(i in near[j] for j in them)
        assert g.holders(i) == them


@given(harary())
def test_harary_joins_those_within_half_the_degree_on_the_ring(case: tuple[int, int, bytes]) -> None:
    n, degree, seed = case
    order, g = ring(n, seed), Harary(n, degree, seed)
    for place, i in enumerate(order):
        within = {order[(place + s) % n] for s in range(-(degree // 2), degree // 2 + 1)} - {i}
        assert set(g.neighbours(i)) == within


@given(st.integers(3, 60), st.binary(max_size=32))
def test_the_ring_is_sorted_by_the_seeds_stream(n: int, seed: bytes) -> None:
    stream = seeded(Label.GRAPH.value.encode(), seed)(16 * n)
    word = [int.from_bytes(stream[8 * i : 8 * i + 8], "little") for i in range(2 * n)]
    order = sorted(range(n), key=lambda i: (word[n + i], word[i]))
    walked = ring(n, seed)
    edges = {frozenset((a, b)) for a, b in zip(order, order[1:] + order[:1], strict=True)}
    assert {frozenset((a, b)) for a, b in zip(walked, walked[1:] + walked[:1], strict=True)} == edges


@given(harary(), st.data())
def test_harary_stays_connected_without_fewer_than_degree(
    case: tuple[int, int, bytes], data: st.DataObject
) -> None:
    n, degree, seed = case
    gone = data.draw(st.sets(st.integers(0, n - 1), max_size=degree - 1))
    assert connected(Harary(n, degree, seed), set(range(n)) - gone)


@given(harary(least_degree=4), st.data())
def test_harary_stays_connected_while_no_run_is_half_the_degree(
    case: tuple[int, int, bytes], data: st.DataObject
) -> None:
    n, degree, seed = case
    removed = data.draw(st.lists(st.integers(0, 9), min_size=n, max_size=n).map(lambda r: [v > 0 for v in r]))
    while max(runs(removed), default=0) >= degree // 2:  # break the longest runs
        for place in range(n):
            if all(removed[(place + s) % n] for s in range(degree // 2)):
                removed[(place + degree // 4) % n] = False
    order = ring(n, seed)
    left = {order[place] for place in range(n) if not removed[place]}
    assert connected(Harary(n, degree, seed), left)


@given(harary(), st.data())
def test_two_runs_of_half_the_degree_cut_harary_and_one_does_not(
    case: tuple[int, int, bytes], data: st.DataObject
) -> None:
    n, degree, seed = case
    half, order, g = degree // 2, ring(n, seed), Harary(n, degree, seed)
    between = data.draw(st.integers(1, n - degree - 1))
    one = {order[p] for p in range(half)}
    two = {order[p] for p in range(half + between, degree + between)}
    assert connected(g, set(range(n)) - one)
    assert not connected(g, set(range(n)) - one - two)


@given(harary(), st.binary(max_size=32))
def test_harary_is_a_function_of_its_seed(case: tuple[int, int, bytes], other: bytes) -> None:
    n, degree, seed = case
    assume(other != seed)

    def edges(s: bytes) -> list[tuple[int, ...]]:
        g = Harary(n, degree, s)
        return [g.neighbours(i) for i in range(n)]

    first = edges(seed)
    assert edges(seed) == first
    if n > 30 and degree < n // 2:
        assert edges(other) != first


def test_the_seeds_of_different_cohorts_are_not_confused() -> None:
    assert Harary(30, 4, b"seed").neighbours(0) != Harary(31, 4, b"seed").neighbours(0)
    assert max(max(Harary(31, 4, b"seed").neighbours(i)) for i in range(31)) == 30


def chi_square(found: Counter[Any], classes: int, draws: int) -> float:
    """Pearson's statistic against the uniform distribution."""
    assert len(found) <= classes
    expected = draws / classes
    return (
        sum((count - expected) ** 2 for count in found.values()) / expected
        + (classes - len(found)) * expected
    )


def test_every_ring_is_equally_likely() -> None:
    # Five places: 4! / 2 = 12 rings. Above 49 with probability 10^-6 at 11 degrees of freedom.
    draws = 6000
    found = Counter(
        frozenset(frozenset((i, j)) for i in range(5) for j in g.neighbours(i))
        for g in (Harary(5, 2, d.to_bytes(2, "big")) for d in range(draws))
    )
    assert chi_square(found, 12, draws) < 49


def test_every_ordering_is_equally_likely() -> None:
    # Above 71 with probability 10^-6 at 23 degrees of freedom.
    draws = 6000
    found = Counter(tuple(graphs._ring(4, d.to_bytes(2, "big"))[0].tolist()) for d in range(draws))
    assert set(found) <= set(permutations(range(4)))
    assert chi_square(found, 24, draws) < 71


def test_chi_square_sees_a_loaded_die() -> None:
    fair = Counter(dict.fromkeys(range(6), 1000))
    assert chi_square(fair, 6, 6000) == 0
    assert chi_square(fair - Counter({0: 200}) + Counter({1: 200}), 6, 6000) > 49
    assert chi_square(fair - Counter({0: 1000}), 6, 5000) > 49


@given(st.integers(1, 60))
def test_complete_holders_include_the_owner(n: int) -> None:
    g = Complete(n)
    for i in range(n):
        assert g.neighbours(i) == tuple(j for j in range(n) if j != i)
        assert g.holders(i) == tuple(range(n))


@given(st.integers(4, 60), st.data())
def test_the_graph_is_complete_exactly_at_full_degree(n: int, data: st.DataObject) -> None:
    degree = 2 * data.draw(st.integers(1, (n - 2) // 2))
    assert isinstance(graph(n, n - 1, b"seed"), Complete)
    sparse = graph(n, degree, b"seed")
    assert isinstance(sparse, Harary)
    assert sparse.neighbours(0) == Harary(n, degree, b"seed").neighbours(0)


# ------------------------------------------------------------------------------ the public table

TABLE = json.loads((Path(__file__).parent / "finder_table.json").read_text())


def row_id(row: list[Any]) -> str:
    """Demands, joined."""
    return "-".join(str(v) for v in row[:4])


def runnable() -> list[list[Any]]:
    """The rows, the threat model "none" read as honest-but-curious where nobody is corrupted."""
    found = []
    for n, corrupted, dropout, threat_model, degree, threshold in TABLE["rows"]:
        if threat_model == "none":
            if corrupted:
                continue
            threat_model = HONEST_BUT_CURIOUS
        found.append([n, corrupted, dropout, threat_model, degree, threshold])
    return found


def test_the_table_is_whole() -> None:
    assert "graph_parameter_finder_test.cc" in TABLE["source"]
    assert len(TABLE["rows"]) == 105
    assert len(runnable()) == 104
    assert sum(not row[4] for row in runnable()) == 6


@pytest.mark.parametrize("row", [r for r in runnable() if r[4]], ids=row_id)
def test_reference_parameters_are_those_of_the_table(row: list[Any]) -> None:
    *demands, degree, threshold = row
    assert reference_parameters(*demands) == (degree, threshold)


@pytest.mark.parametrize("row", [r for r in runnable() if not r[4]], ids=row_id)
def test_reference_parameters_refuse_what_the_table_refuses(row: list[Any]) -> None:
    with pytest.raises(LocalError):
        reference_parameters(*row[:4])


# ------------------------------------------------------------------------------- exact fractions


@cache
def tail(total: int, marked: int, drawn: int, least: int) -> Fraction:
    """The chance that at least `least` of `drawn` out of `total` are among the `marked`."""
    ways = sum(comb(marked, x) * comb(total - marked, drawn - x) for x in range(max(0, least), drawn + 1))
    return Fraction(ways, comb(total, drawn))


@cache
def cut(n: int, degree: int, bad: int) -> Fraction:
    """Two runs of degree/2 bad places with somebody on either side between them: a union bound."""
    if bad < degree:
        return Fraction(0)
    return Fraction(n * (n - degree - 1) * comb(n - degree, bad - degree), 2 * comb(n, bad))


@pytest.mark.parametrize(("n", "degree"), [(8, 2), (9, 4), (12, 4), (12, 6), (13, 4)])
def test_the_union_bound_covers_every_cut_of_a_small_ring(n: int, degree: int) -> None:
    g = Harary(n, degree, b"seed")
    order, sharp = ring(n, b"seed"), 0
    for bad in range(n - 1):
        sets = [set(range(n)) - {order[p] for p in gone} for gone in combinations(range(n), bad)]
        cuts = sum(not connected(g, left) for left in sets)
        assert Fraction(cuts, len(sets)) <= cut(n, degree, bad)
        sharp += cuts > 0 and Fraction(cuts, len(sets)) == cut(n, degree, bad)
    assert sharp  # at bad = degree no two cuts overlap


def needed(threat_model: str, degree: int, threshold: int) -> int:
    """How many corrupted neighbours open what they must not.

    `threshold`, or, where the server asks for both secrets of one client and each honest neighbour
    answers once: the least x with 2x + (degree - x) >= 2 * threshold.
    """
    return threshold if threat_model == HONEST_BUT_CURIOUS else 2 * threshold - degree


def serves(
    threat_model: str,
    n: int,
    degree: int,
    threshold: int,
    bad: int,
    gone: int,
    sigma: int = 40,
    eta: int = 20,
    places: int = 0,
) -> bool:
    """The rule of the finder: half of 2^-sigma for each danger, 2^-eta for too few survivors.

    The public finder adds up the corrupted neighbours' danger over the clients, sessions over `places`.
    """
    half = Fraction(1, 2 ** (sigma + 1))
    return (
        cut(n, degree, bad + gone) < half
        and (places or n) * tail(n, bad, degree, needed(threat_model, degree, threshold)) < half
        and n * tail(n, gone, degree, degree - threshold + 1) < Fraction(1, 2**eta)
    )


def pairs(threat_model: str, n: int, degree: int) -> int:
    """Over what a session adds up: a server that chooses who drops out tries every pair of windows."""
    return n if threat_model == HONEST_BUT_CURIOUS else n * (n - degree - 1) // 2


def least_exactly(
    threat_model: str,
    n: int,
    bad: int,
    gone: int,
    degrees: range,
    least_threshold: int,
    most_below_degree: int,
) -> tuple[int, int] | None:
    """The least degree that serves, and its least threshold, by trying them all."""
    for degree in degrees:
        for threshold in range(least_threshold, degree - most_below_degree + 1):
            places = pairs(threat_model, n, degree)
            if serves(threat_model, n, degree, threshold, bad, gone, places=places):
                return degree, threshold
    return None


def assert_meets_the_promise(threat_model: str, n: int, found: Parameters) -> None:
    """2^-40 for both dangers together, for honest clients and their n - 1 others; 2^-20 for the shares."""
    k, t, bad, gone = found.degree, found.threshold, found.corrupted, found.dropped
    given_away = (n - bad) * tail(n - 1, bad, k, needed(threat_model, k, t))
    assert given_away + cut(n, k, bad + gone) < Fraction(1, 2**40)
    if threat_model == SEMI_MALICIOUS:  # nor do two windows of k/2 places hold 2t - k, wherever they are
        windows = pairs(threat_model, n, k) * tail(n, bad, k, 2 * t - k)
        assert windows < Fraction(1, 2**41)
    survivor = tail(n - 1, gone, k, k - t + 1)
    dropped = tail(n - 1, gone - 1, k, k - t + 1) if gone else Fraction(0)
    assert (n - gone) * survivor + gone * dropped < Fraction(1, 2**20)


SPARSE_MODELS = st.sampled_from((HONEST_BUT_CURIOUS, SEMI_MALICIOUS))
PERCENT = st.integers(0, 45)


@settings(max_examples=50)
@given(st.integers(50, 300), PERCENT, PERCENT, SPARSE_MODELS)
def test_sparse_parameters_meet_their_promise_exactly(
    n: int, gamma: int, delta: int, threat_model: str
) -> None:
    try:
        found = parameters(n, gamma / 100, delta / 100, SECAGG_PLUS, threat_model)
    except Infeasible as refusal:
        if "sparse graph" in str(refusal):
            bad, gone = max(gamma * n // 100, int(threat_model != HONEST_BUT_CURIOUS)), delta * n // 100
            assert least_exactly(threat_model, n, bad, gone, range(16, n - 1, 2), 3, 1) is None
        return
    assert_meets_the_promise(threat_model, n, found)
    exact = least_exactly(threat_model, n, found.corrupted, found.dropped, range(16, n - 1, 2), 3, 1)
    assert exact == (found.degree, found.threshold)


@pytest.mark.parametrize("threat_model", [HONEST_BUT_CURIOUS, SEMI_MALICIOUS])
def test_sparse_parameters_of_a_grid_meet_their_promise_exactly(threat_model: str) -> None:
    found = 0
    for n in (50, 51, 77, 100, 150, 200, 299):
        for gamma in range(0, 40, 5):
            for delta in range(0, 40, 5):
                try:
                    made = parameters(n, gamma / 100, delta / 100, SECAGG_PLUS, threat_model)
                except Infeasible:
                    continue
                found += 1
                assert_meets_the_promise(threat_model, n, made)
    assert found > 150


@pytest.mark.parametrize("n", [10_000, 100_000])
def test_windows_that_would_cut_the_ring_are_rare_over_all_pairs(n: int) -> None:
    """The server drops two windows of k/2 places in which 2t - k are corrupted, and splits the sum.

    The threshold of the public finder, which takes dropouts as random, does not stop that.
    """
    found = parameters(n, 0.05, 0.05, SECAGG_PLUS, SEMI_MALICIOUS)
    k, t, bad = found.degree, found.threshold, found.corrupted
    windows = pairs(SEMI_MALICIOUS, n, k) * tail(n, bad, k, 2 * t - k)
    assert windows + cut(n, k, bad + found.dropped) < Fraction(1, 2**40)
    degree, threshold = reference_parameters(n, 0.05, 0.05, SEMI_MALICIOUS)
    least = 2 * threshold - degree
    assert pairs(SEMI_MALICIOUS, n, degree) * tail(n, bad, degree, least) > Fraction(1, 2**40)


@cache
def two_windows(n: int, degree: int, bad: int, gone: int, least: int) -> Fraction:
    """The chance that two given windows of degree/2 places each hold `least` corrupted clients.

    And that no more than `gone` honest ones are there, so that a server may drop them all.
    """
    half = degree // 2
    ways = Fraction(0)
    for x in range(least, half + 1):
        for y in range(least, half + 1):
            if degree - gone <= x + y <= bad:
                drawn = comb(bad, x + y) * comb(n - bad, degree - x - y)
                ways += Fraction(comb(half, x) * comb(half, y) * drawn, comb(degree, x + y))
    return ways / comb(n, degree)


@given(harary(least_degree=4))
def test_the_survivor_next_to_a_window_has_half_the_degree_holders_beside_it(
    case: tuple[int, int, bytes],
) -> None:
    """A dropped client has one more; but without that survivor's seed no arc is opened."""
    n, degree, seed = case
    order, g = ring(n, seed), Harary(n, degree, seed)
    window, beside = set(order[: degree // 2]), order[degree // 2]
    assert {len(set(g.holders(i)) - window) for i in window} == {degree // 2 + 1}
    assert len(set(g.holders(beside)) - window) == degree // 2


@pytest.mark.parametrize("n", [200, 500, 1000, 10_000, 100_000])
def test_a_server_that_drops_two_windows_cannot_open_them(n: int) -> None:
    """What the attack itself takes: in both windows, the threshold less the holders beside the window."""
    for gamma, delta in ((0.05, 0.05), (0.1, 0.1), (0.2, 0.1)):
        found = parameters(n, gamma, delta, SECAGG_PLUS, SEMI_MALICIOUS)
        k, t, bad, gone = found.degree, found.threshold, found.corrupted, found.dropped
        chance = two_windows(n, k, bad, gone, max(0, t - k // 2))
        assert pairs(SEMI_MALICIOUS, n, k) * chance < Fraction(1, 2**41)


def test_the_exact_check_refuses_one_step_less() -> None:
    found = parameters(200, 0.2, 0.1, SECAGG_PLUS)
    for wrong in (
        Parameters(found.degree, found.threshold - 2, found.corrupted, found.dropped, 0, 0),
        Parameters(found.degree, found.threshold + 12, found.corrupted, found.dropped, 0, 0),
        Parameters(found.degree - 12, found.threshold, found.corrupted, found.dropped, 0, 0),
    ):
        with pytest.raises(AssertionError):
            assert_meets_the_promise(HONEST_BUT_CURIOUS, 200, wrong)


@settings(max_examples=60)
@given(
    st.integers(4, 120),
    st.integers(0, 89),
    st.integers(0, 89),
    SPARSE_MODELS,
    st.integers(5, 40),
    st.integers(5, 20),
)
def test_reference_parameters_follow_their_rule_exactly(
    n: int, gamma: int, delta: int, threat_model: str, sigma: int, eta: int
) -> None:
    weighed = gamma + (1 if threat_model == HONEST_BUT_CURIOUS else 2) * delta
    assume(weighed != 90)  # where floats decide
    bad, gone = gamma * n // 100, delta * n // 100
    expected = None
    if weighed < 90:
        for degree in range(2, n - 1, 2):
            least = next(
                (
                    t
                    for t in range(1, degree + 1)
                    if serves(threat_model, n, degree, t, bad, gone, sigma, eta)
                ),
                None,
            )
            if least is not None:
                expected = degree, max(least, 2)
                break
    try:
        found = reference_parameters(n, gamma / 100, delta / 100, threat_model, sigma, eta)
    except Infeasible:
        assert expected is None
    else:
        assert found == expected


# ------------------------------------------------------------------------------------ the floors


def complete_range(n: int, bad: int, gone: int, signed: bool) -> tuple[int, int]:
    """The least and the largest threshold on a complete graph."""
    return max(3, (n + bad) // 2 + 1 if signed else bad + 1), n - gone


@settings(max_examples=400)
@given(
    st.integers(1, 60) | st.integers(1, 400),
    st.integers(0, 60),
    st.integers(0, 60),
    st.sampled_from([SECAGG, SECAGG_PLUS]),
    st.sampled_from(THREAT_MODELS),
)
def test_parameters_keep_every_floor(
    n: int, gamma: int, delta: int, protocol: str, threat_model: str
) -> None:
    signed = threat_model != HONEST_BUT_CURIOUS
    bad, gone = max(gamma * n // 100, int(signed)), delta * n // 100
    low, high = complete_range(n, bad, gone, signed)
    sparse = protocol == SECAGG_PLUS and n >= 50
    try:
        found = parameters(n, gamma / 100, delta / 100, protocol, threat_model)
    except Infeasible:
        refusable = n < 3 or (protocol == SECAGG_PLUS and threat_model == MALICIOUS) or n - gone - bad < 2
        # (n + bad) // 2 + 1 is the least threshold and the least quorum alike
        assert refusable or low > high or sparse
        return
    assert n >= 3
    assert (found.corrupted, found.dropped) == (bad, gone)
    assert found.threshold > 2
    assert found.threshold <= n - gone
    assert found.min_included >= max(3, bad + 2)
    assert found.min_included <= n - gone
    if signed:
        assert 2 * found.quorum > n + bad
        assert found.quorum <= n - gone
    else:
        assert found.quorum == 0
    if sparse:
        assert threat_model != MALICIOUS
        assert found.degree >= 16
        assert found.degree % 2 == 0
        assert found.degree < n - 1
        assert found.threshold <= found.degree - 1
        assert found.min_included == max(n - gone, bad + 2)
    else:
        assert found.degree == n - 1
        assert low <= found.threshold <= high  # which is above the corrupted
        assert found.min_included >= found.threshold
        if signed:
            assert 2 * found.threshold > n + bad


@pytest.mark.parametrize("n", [50, 200, 1000])
def test_the_defaults_of_the_house_are_feasible_in_every_model(n: int) -> None:
    for threat_model in THREAT_MODELS:
        assert parameters(n, 0.1, 0.1, SECAGG, threat_model).degree == n - 1
    for threat_model in (HONEST_BUT_CURIOUS, SEMI_MALICIOUS):
        found = parameters(n, 0.1, 0.1, SECAGG_PLUS, threat_model)
        assert 16 <= found.degree < n - 1


@given(st.integers(3, 49), st.sampled_from((HONEST_BUT_CURIOUS, SEMI_MALICIOUS)))
def test_small_cohorts_are_complete_in_both_protocols(n: int, threat_model: str) -> None:
    try:
        dense = parameters(n, 0.1, 0.1, SECAGG, threat_model)
    except Infeasible:
        with pytest.raises(Infeasible):
            parameters(n, 0.1, 0.1, SECAGG_PLUS, threat_model)
    else:
        assert parameters(n, 0.1, 0.1, SECAGG_PLUS, threat_model) == dense


@given(st.integers(1, 400), PERCENT, PERCENT)
def test_secagg_plus_is_refused_against_a_malicious_server(n: int, gamma: int, delta: int) -> None:
    why = "cohort" if n < 3 else "not offered against a malicious server"
    with pytest.raises(Infeasible, match=why):
        parameters(n, gamma / 100, delta / 100, SECAGG_PLUS, MALICIOUS)
    with pytest.raises(Infeasible, match="not offered against a malicious server"):
        reference_parameters(n, gamma / 100, delta / 100, MALICIOUS)


@pytest.mark.parametrize("threat_model", [SEMI_MALICIOUS, MALICIOUS])
def test_too_few_to_sign_is_refused_with_the_count(threat_model: str) -> None:
    with pytest.raises(Infeasible, match=r"6 of 10 must sign .* only 5 are sure"):
        parameters(10, 0.1, 0.5, SECAGG, threat_model)
    assert parameters(10, 0.1, 0.4, SECAGG, threat_model).quorum == 6


@pytest.mark.parametrize("n", [1, 2])
def test_a_cohort_below_three_is_refused(n: int) -> None:
    for protocol in PROTOCOLS:
        with pytest.raises(Infeasible, match="at least 3"):
            parameters(n, 0.0, 0.0, protocol)


def test_a_complete_graph_larger_than_the_field_is_refused() -> None:
    assert parameters(65536, 0.1, 0.1).degree == 65535
    with pytest.raises(Infeasible, match="65536"):
        parameters(65537, 0.1, 0.1)


@pytest.mark.parametrize(
    ("gamma", "delta", "n", "bad", "gone"),
    [(0.29, 0.57, 100, 29, 57), (0.07, 0.28, 100, 7, 28), (0.1, 0.7, 30, 3, 21)],
)
def test_counts_do_not_fall_below_their_product(
    gamma: float, delta: float, n: int, bad: int, gone: int
) -> None:
    # 0.29 * 100 is 28.999999999999996 in floating point.
    found = parameters(n, gamma, delta)
    assert (found.corrupted, found.dropped) == (bad, gone)


# ------------------------------------------------------------------------- an expert's own choice


def expect(refusal: str) -> tuple[int, int]:
    """The range that a refusal states."""
    [(low, high)] = re.findall(r"expected (?:an even number from )?(-?\d+) to (-?\d+)", refusal)
    return int(low), int(high)


@given(st.integers(3, 120), PERCENT, PERCENT, st.sampled_from(THREAT_MODELS), st.integers(-2, 130))
def test_an_experts_threshold_is_taken_exactly_in_range(
    n: int, gamma: int, delta: int, threat_model: str, threshold: int
) -> None:
    demands: Any = (n, gamma / 100, delta / 100, SECAGG, threat_model)
    try:
        found = parameters(*demands)
    except Infeasible:
        with pytest.raises(Infeasible):
            parameters(*demands, threshold=threshold)
        return
    low, high = complete_range(n, found.corrupted, found.dropped, threat_model != HONEST_BUT_CURIOUS)
    if low <= threshold <= high:
        chosen = parameters(*demands, threshold=threshold)
        assert chosen.threshold == threshold
        assert chosen.min_included >= threshold
    else:
        with pytest.raises(Infeasible, match="threshold") as refusal:
            parameters(*demands, threshold=threshold)
        assert expect(str(refusal.value)) == (low, high)


@settings(max_examples=60)
@given(
    st.integers(60, 250), st.integers(0, 25), st.integers(0, 25), SPARSE_MODELS, st.integers(8, 60), st.data()
)
def test_an_experts_degree_and_threshold_meet_the_same_rules(
    n: int, gamma: int, delta: int, threat_model: str, half: int, data: st.DataObject
) -> None:
    degree = 2 * half
    assume(degree < n - 1)
    demands: Any = (n, gamma / 100, delta / 100, SECAGG_PLUS, threat_model)
    bad, gone = max(gamma * n // 100, int(threat_model != HONEST_BUT_CURIOUS)), delta * n // 100
    places = pairs(threat_model, n, degree)
    good = [t for t in range(3, degree) if serves(threat_model, n, degree, t, bad, gone, places=places)]
    quorum = (n + bad) // 2 + 1 if threat_model != HONEST_BUT_CURIOUS else bad + 2
    if not good or quorum > n - gone:
        with pytest.raises(Infeasible):
            parameters(*demands, degree=degree)
        return
    found = parameters(*demands, degree=degree)
    assert found.degree == degree
    assert found.threshold == good[0]
    threshold = data.draw(st.integers(0, degree + 1) | st.sampled_from((good[0] - 1, good[-1], good[-1] + 1)))
    if threshold in good:
        chosen = parameters(*demands, degree=degree, threshold=threshold)
        assert (chosen.degree, chosen.threshold) == (degree, threshold)
        assert_meets_the_promise(threat_model, n, chosen)
    else:
        with pytest.raises(Infeasible, match="threshold") as refused:
            parameters(*demands, degree=degree, threshold=threshold)
        assert expect(str(refused.value)) == (good[0], good[-1])


@pytest.mark.parametrize("n", [200, 201])
@pytest.mark.parametrize("degree", [-2, 0, 2, 14, 15, 17, 99, 199, 200, 202, 1000])
def test_an_experts_degree_out_of_range_is_refused_with_the_range(n: int, degree: int) -> None:
    with pytest.raises(Infeasible, match="degree: expected an even number") as refusal:
        parameters(n, 0.05, 0.05, SECAGG_PLUS, degree=degree)
    assert expect(str(refusal.value)) == (16, n - 2)


def test_an_experts_degree_that_does_not_serve_is_refused() -> None:
    with pytest.raises(Infeasible, match="degree 16 does not give 40 bits"):
        parameters(200, 0.3, 0.3, SECAGG_PLUS, degree=16)


@pytest.mark.parametrize("degree", [0, 16, 98, 100])
def test_a_complete_graph_has_one_degree(degree: int) -> None:
    assert parameters(100, 0.1, 0.1, SECAGG, degree=99) == parameters(100, 0.1, 0.1, SECAGG)
    with pytest.raises(Infeasible, match=f"has degree 99, not {degree}"):
        parameters(100, 0.1, 0.1, SECAGG, degree=degree)


@pytest.mark.parametrize("threshold", [True, 51.0, "51"])
def test_a_threshold_that_is_no_integer_is_refused(threshold: Any) -> None:
    with pytest.raises(Infeasible, match="threshold: expected"):
        parameters(100, 0.1, 0.1, SECAGG, threshold=threshold)


@pytest.mark.parametrize(
    ("n", "corrupted", "dropout", "protocol", "threat_model", "why"),
    [
        (0, 0.1, 0.1, SECAGG, MALICIOUS, "cohort"),
        (-5, 0.1, 0.1, SECAGG, MALICIOUS, "cohort"),
        (True, 0.1, 0.1, SECAGG, MALICIOUS, "cohort"),
        (10.0, 0.1, 0.1, SECAGG, MALICIOUS, "cohort"),
        (10, -0.1, 0.1, SECAGG, MALICIOUS, "corrupted"),
        (10, 1.0, 0.1, SECAGG, MALICIOUS, "corrupted"),
        (10, 10, 0.1, SECAGG, MALICIOUS, "corrupted"),
        (10, float("nan"), 0.1, SECAGG, MALICIOUS, "corrupted"),
        (10, False, 0.1, SECAGG, MALICIOUS, "corrupted"),
        (10, "0.1", 0.1, SECAGG, MALICIOUS, "corrupted"),
        (10, 0.1, 1.0, SECAGG, MALICIOUS, "dropout"),
        (10, 0.1, -1.0, SECAGG, MALICIOUS, "dropout"),
        (10, 0.1, float("inf"), SECAGG, MALICIOUS, "dropout"),
        (10, 0.1, 0.1, "SecAgg", MALICIOUS, "protocol"),
        (10, 0.1, 0.1, SECAGG, "covert", "threat model"),
    ],
)
def test_demands_that_make_no_sense_are_refused_by_name(
    n: Any, corrupted: Any, dropout: Any, protocol: str, threat_model: str, why: str
) -> None:
    with pytest.raises(LocalError, match=f"^{why}: expected") as refusal:
        parameters(n, corrupted, dropout, protocol, threat_model)
    assert not isinstance(refusal.value, Infeasible)
