"""Every record in exactly one hospital, nobody below the least, and the seed reproduces."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedavg import partition
from fedavg.partition import Partition

WAYS: dict[str, Callable[..., Partition]] = {
    "iid": lambda labels, names, rng, alpha, least: partition.iid(len(labels), names, rng, least),
    "quantity": lambda labels, names, rng, alpha, least: partition.quantity(
        len(labels), names, rng, alpha, least
    ),
    "dirichlet": lambda labels, names, rng, alpha, least: partition.dirichlet(
        labels, names, rng, alpha, least
    ),
}
every_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())


def assert_covers(parts: Partition, records: int) -> None:
    assert sorted(int(i) for part in parts.values() for i in part) == list(range(records))


@st.composite
def demands(draw: st.DrawFn) -> tuple[Any, list[str], float, int, int]:
    count, least = draw(st.integers(1, 8)), draw(st.integers(0, 5))
    records = draw(st.integers(max(1, count * least), count * least + 60))
    labels = np.random.default_rng(draw(st.integers(0, 99))).integers(0, draw(st.integers(1, 4)), records)
    alpha = draw(st.sampled_from([1e-3, 0.05, 0.5, 1.0, 100.0]))
    return labels, [f"h{i}" for i in range(count)], alpha, least, draw(st.integers(0, 2**32))


@every_way
@given(demands())
def test_each_record_once_and_the_least_respected(way: Any, demand: Any) -> None:
    labels, names, alpha, least, seed = demand
    parts = way(labels, names, np.random.default_rng(seed), alpha, least)
    assert list(parts) == names
    assert_covers(parts, len(labels))
    assert min(len(p) for p in parts.values()) >= least
    again = way(labels, names, np.random.default_rng(seed), alpha, least)
    assert all((parts[n] == again[n]).all() for n in names)


@every_way
def test_another_seed_is_another_split(way: Any) -> None:
    labels, names = np.arange(100) % 2, ["a", "b", "c"]
    one, other = (way(labels, names, np.random.default_rng(s), 1.0, 2) for s in (1, 2))
    assert any(one[n].tolist() != other[n].tolist() for n in names)


@given(st.integers(1, 8), st.integers(0, 60), st.integers(0, 99))
def test_iid_parts_differ_by_at_most_one(count: int, spare: int, seed: int) -> None:
    names = [str(i) for i in range(count)]
    sizes = [len(p) for p in partition.iid(2 * count + spare, names, np.random.default_rng(seed)).values()]
    assert max(sizes) - min(sizes) <= 1


def test_small_alpha_skews_labels_and_large_alpha_does_not() -> None:
    labels, names = np.arange(4000) % 2, [f"h{i}" for i in range(5)]

    def spread(alpha: float) -> float:
        parts = partition.dirichlet(labels, names, np.random.default_rng(0), alpha)
        return max(abs(labels[p].mean() - 0.5) for p in parts.values())

    assert spread(0.1) > 0.4
    assert spread(1000.0) < 0.1


def test_small_alpha_skews_sizes_and_large_alpha_does_not() -> None:
    names = [f"h{i}" for i in range(5)]

    def sizes(alpha: float) -> list[int]:
        return sorted(
            len(p) for p in partition.quantity(1000, names, np.random.default_rng(0), alpha).values()
        )

    assert sizes(0.1)[-1] > 500
    assert sizes(1000.0)[-1] < 260


@given(st.lists(st.sampled_from(["a", "b", 3]), min_size=1, max_size=40))
def test_by_column_keeps_a_hospital_together(values: list[Any]) -> None:
    parts = partition.by_column(values, least=1)
    assert_covers(parts, len(values))
    assert set(parts) == {str(v) for v in values}
    for name, part in parts.items():
        assert {str(values[i]) for i in part} == {name}


def test_by_column_names_a_hospital_that_is_too_small() -> None:
    assert set(partition.by_column(["a", "a", "b", "b"])) == {"a", "b"}
    with pytest.raises(ValueError, match="'b' has fewer than 2 records"):
        partition.by_column(["a", "a", "b"])


@every_way
@pytest.mark.parametrize(
    ("names", "least", "message"),
    [
        ([], 2, "at least one hospital and no name twice"),
        (["a", "b", "a"], 2, "at least one hospital and no name twice"),
        (["a", "b", "c"], 4, "10 records are too few for 3 hospitals of at least 4"),
    ],
)
def test_what_cannot_be_split_is_refused(way: Any, names: list[str], least: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        way(np.arange(10) % 2, names, np.random.default_rng(0), 1.0, least)


@pytest.mark.parametrize("way", [WAYS["quantity"], WAYS["dirichlet"]], ids=["quantity", "dirichlet"])
@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan")])
def test_alpha_must_be_positive(way: Any, alpha: float) -> None:
    with pytest.raises(ValueError, match="alpha must be positive"):
        way(np.arange(10) % 2, ["a", "b"], np.random.default_rng(0), alpha, 2)


@pytest.mark.parametrize("way", [WAYS["quantity"], WAYS["dirichlet"]], ids=["quantity", "dirichlet"])
def test_alpha_must_be_finite(way: Any) -> None:
    with pytest.raises(ValueError, match="alpha"):
        way(np.arange(10) % 2, ["a", "b"], np.random.default_rng(0), float("inf"), 2)
