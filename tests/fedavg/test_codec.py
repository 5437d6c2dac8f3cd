"""Out and back: within the stated error, below the stated bound, and nothing doubtful let through."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedavg.clip import clip_l2
from fedavg.codec import Codec
from secagg.randomness import seeded


@dataclass
class Case:
    codec: Codec
    updates: list[Any]
    weights: list[int]
    seed: bytes


@st.composite
def cases(draw: st.DrawFn) -> Case:
    codec = Codec(
        draw(st.integers(1, 8)), draw(st.floats(1e-6, 1e6)),
        draw(st.sampled_from([1, 2, 1000, 100_000, 2**32 - 1])), draw(st.integers(2, 32)),
    )  # fmt: skip
    count = draw(st.integers(1, 6))
    # Some are shorter than the clipping norm and some longer; some lie on one axis, where C itself is met.
    shapes = st.lists(st.floats(-1.5, 1.5), min_size=codec.dim, max_size=codec.dim)
    updates = [np.array(draw(shapes)) * codec.clipping_norm for _ in range(count)]
    weights = [draw(st.integers(1, codec.max_weight)) for _ in range(count)]
    return Case(codec, updates, weights, draw(st.binary(max_size=4)))


def encoded(case: Case) -> list[Any]:
    rng = seeded(case.seed)
    return [case.codec.encode(u, w, rng) for u, w in zip(case.updates, case.weights, strict=True)]


@given(cases())
def test_the_mean_is_within_the_documented_error(case: Case) -> None:
    codec, count = case.codec, len(case.updates)
    total = sum(v.astype(np.uint64) for v in encoded(case))
    mean, weight = codec.decode(total, count)
    assert weight == sum(case.weights)
    clipped = [clip_l2(u, codec.clipping_norm) for u in case.updates]
    exact = sum(w * u for w, u in zip(case.weights, clipped, strict=True)) / weight
    bound = count * codec.step * codec.max_weight / weight
    assert (np.abs(mean - exact) <= bound * (1 + 1e-9) + 1e-9 * codec.clipping_norm).all()


@given(cases())
def test_every_entry_is_below_the_bound(case: Case) -> None:
    for vector, weight in zip(encoded(case), case.weights, strict=True):
        assert vector.shape == (case.codec.length,) == (case.codec.dim + 1,)
        assert vector.dtype.kind == "i"
        assert vector.min() >= 0
        assert vector.max() < case.codec.bound
        assert vector[-1] == weight


@given(st.integers(2, 32), st.sampled_from([1, 7, 2**32 - 1]), st.sampled_from([1e-3, 1.0, 1e5]))
def test_the_bound_is_reached_and_not_above_need(bits: int, max_weight: int, norm: float) -> None:
    codec = Codec(1, norm, max_weight, bits)
    assert codec.bound == max(2**bits - 1, max_weight + 1)
    assert codec.encode(np.array([10 * norm]), max_weight).tolist() == [2 * codec.middle, max_weight]
    assert codec.encode(np.array([-10 * norm]), max_weight).tolist() == [0, max_weight]


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("long", [1.0, 1.5, 1e9])
def test_an_update_on_the_edge_stays_in_bounds_whatever_the_coins(sign: int, long: float) -> None:
    # Norm / step may come out a last bit beyond the middle; these coins would then round it outwards.
    def outwards(count: int) -> bytes:
        return (b"\0" if sign > 0 else b"\xff") * count

    for norm in np.random.default_rng(0).uniform(0.1, 10.0, 300):
        codec = Codec(2, float(norm), 7)
        entries = codec.encode(np.array([sign * long * norm, 0.0]), 7, outwards)
        assert entries[0] == (2 * codec.middle if sign > 0 else 0)


@given(st.integers(2, 32), st.lists(st.integers(1, 500), min_size=1, max_size=5))
def test_zero_maps_to_zero_exactly(bits: int, weights: list[int]) -> None:
    codec = Codec(3, 2.5, 500, bits)
    vectors = [codec.encode(np.zeros(3), w) for w in weights]
    assert all(v[:-1].tolist() == [codec.middle] * 3 for v in vectors)
    mean, weight = codec.decode(np.sum(vectors, axis=0), len(vectors))
    assert mean.tolist() == [0, 0, 0]
    assert weight == sum(weights)


def test_encoding_is_unbiased() -> None:
    codec, rng = Codec(1, 1.0, 10, 4), seeded(b"unbiased codec")
    update, tries = np.array([0.337]), 20_000
    mean = np.mean([codec.encode(update, 3, rng)[0] - codec.middle for _ in range(tries)])
    assert abs(mean * codec.step * 10 / 3 - 0.337) < 5 * codec.step * 10 / 3 * 0.5 / np.sqrt(tries)


def test_a_heavy_client_counts_more() -> None:
    codec = Codec(2, 10.0, 100, 24)
    total = codec.encode(np.array([1.0, 0.0]), 90) + codec.encode(np.array([0.0, 1.0]), 10)
    np.testing.assert_allclose(codec.decode(total, 2)[0], [0.9, 0.1], atol=2 * codec.step)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, ">f8"])
def test_other_floats_are_accepted(dtype: Any) -> None:
    codec = Codec(3, 4.0, bits=20)
    update = np.array([0.5, -1.25, 2.0], dtype)
    np.testing.assert_array_equal(
        codec.encode(update, rng=seeded(b"x")), codec.encode(update.astype(np.float64), rng=seeded(b"x"))
    )
    np.testing.assert_allclose(codec.decode(codec.encode(update), 1)[0], [0.5, -1.25, 2], atol=codec.step)


def test_the_update_is_left_as_it_was() -> None:
    update = np.array([30.0, 40.0])
    Codec(2, 1.0, 10).encode(update, 3)
    assert update.tolist() == [30, 40]


@pytest.mark.parametrize(
    ("update", "message"),
    [
        (np.array([0.0, np.nan, 0.0]), "update: expected finite numbers, entry 1 is nan"),
        (np.array([0.0, 0.0, np.inf]), "update: expected finite numbers, entry 2 is inf"),
        (np.array([-np.inf, 0.0, np.nan], np.float32), "update: expected finite numbers, entry 0 is -inf"),
        (np.zeros(2), r"update: expected 3 floats, got float64 of shape \(2,\)"),
        (np.zeros((3, 1)), r"update: expected 3 floats, got float64 of shape \(3, 1\)"),
        (np.array(1.0), r"update: expected 3 floats, got float64 of shape \(\)"),
        (np.zeros(3, np.int64), r"update: expected 3 floats, got int64 of shape \(3,\)"),
        (np.zeros(3, bool), "update: expected 3 floats, got bool"),
        (np.zeros(3, complex), "update: expected 3 floats, got complex128"),
        (["a", "b", "c"], "update: expected 3 floats, got <U1"),
    ],
)
def test_a_bad_update_is_refused(update: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Codec(3, 1.0).encode(update)


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (0, r"weight: expected 1 to 50 \(max_weight\), got 0"),
        (-1, "got -1"),
        (51, "got 51"),
        (np.int64(51), "got 51"),
        (2**70, f"got {2**70}"),
        (True, "weight: expected an integer, got True"),
        (np.True_, "weight: expected an integer, got"),
        (1.0, r"weight: expected an integer, got 1\.0"),
        (np.float64(2), "weight: expected an integer, got"),
        ("3", "weight: expected an integer, got '3'"),
        (None, "weight: expected an integer, got None"),
    ],
)
def test_a_bad_weight_is_refused(weight: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Codec(1, 1.0, 50).encode(np.zeros(1), weight)


@pytest.mark.parametrize("weight", [1, 50, np.int64(50), np.uint8(7)])
def test_a_good_weight_is_sent_exactly(weight: Any) -> None:
    assert Codec(1, 1.0, 50).encode(np.zeros(1), weight)[-1] == int(weight)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dim": -1}, f"dim: expected an integer from 0 to {2**40}, got -1"),
        ({"dim": 2**40 + 1}, f"dim: expected an integer from 0 to {2**40}, got {2**40 + 1}"),
        ({"dim": 2.0}, rf"dim: expected an integer from 0 to {2**40}, got 2\.0"),
        ({"dim": True}, f"dim: expected an integer from 0 to {2**40}, got True"),
        ({"clipping_norm": 0.0}, r"clipping_norm: expected a positive number to 1e100, got 0\.0"),
        ({"clipping_norm": -1.0}, r"clipping_norm: expected a positive number to 1e100, got -1\.0"),
        ({"clipping_norm": np.nan}, "clipping_norm: expected a positive number to 1e100, got nan"),
        ({"clipping_norm": np.inf}, "clipping_norm: expected a positive number to 1e100, got inf"),
        ({"clipping_norm": 1.1e100}, r"clipping_norm: expected a positive number to 1e100, got 1\.1e\+100"),
        ({"max_weight": 0}, f"max_weight: expected an integer from 1 to {2**32 - 1}, got 0"),
        ({"max_weight": 2**32}, f"max_weight: expected an integer from 1 to {2**32 - 1}, got {2**32}"),
        ({"max_weight": 10.0}, r"max_weight: expected an integer from 1 to \d+, got 10\.0"),
        ({"bits": 1}, "bits: expected an integer from 2 to 32, got 1"),
        ({"bits": 33}, "bits: expected an integer from 2 to 32, got 33"),
        ({"bits": "16"}, "bits: expected an integer from 2 to 32, got '16'"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Codec(**({"dim": 2, "clipping_norm": 1.0} | settings))


@pytest.mark.parametrize(
    ("total", "included", "message"),
    [
        (np.zeros(2, np.uint64), 1, r"sum: expected 3 entries, got shape \(2,\)"),
        (np.zeros((3, 1), np.uint64), 1, "sum: expected 3 entries"),
        (np.array([0, 0, 0], np.uint64), 1, "weights of 1 clients cannot add up to 0"),
        (np.array([0, 0, 1], np.uint64), 2, "weights of 2 clients cannot add up to 1"),
        (np.array([0, 0, 21], np.uint64), 2, "weights of 2 clients cannot add up to 21"),
        (np.array([0, 0, 0], np.uint64), 0, "weights of 0 clients cannot add up to 0"),
    ],
)
def test_a_sum_that_cannot_be_is_refused(total: Any, included: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Codec(2, 1.0, 10).decode(total, included)


def test_a_clipping_norm_too_small_for_its_grid_is_refused() -> None:
    with pytest.raises(ValueError, match="clipping_norm: expected a positive number to 1e100, got 1e-320"):
        Codec(2, 1e-320)


@pytest.mark.parametrize("norm", [1e-100, 1e100])
@pytest.mark.parametrize("bits", [2, 32])
def test_the_smallest_and_the_largest_clipping_norm_work(norm: float, bits: int) -> None:
    codec = Codec(2, norm, 2**32 - 1, bits)
    update = np.array([0.6, -0.8]) * norm
    mean, weight = codec.decode(codec.encode(update, 2**32 - 1), 1)
    assert weight == 2**32 - 1
    assert (np.abs(mean - update) <= codec.step * (1 + 1e-9)).all()


def test_numpys_integers_are_settings_too() -> None:
    assert Codec(np.int64(3), 1.0, np.uint32(7), np.int8(16)) == Codec(3, 1.0, 7, 16)


def test_metrics_travel_with_the_update_each_in_its_own_range() -> None:
    codec = Codec(2, 1.0, 100, 24, ((0.0, 10.0), (-1.0, 1.0)))
    given_metrics, weights = [[2.5, -0.5], [7.0, 0.25], [99.0, -3.0]], [10, 100, 1]
    reports = [codec.encode(np.zeros(2), w, metrics=m) for m, w in zip(given_metrics, weights, strict=True)]
    assert all(len(r) == codec.length == 5 for r in reports)
    total = np.sum(reports, axis=0)
    clipped = np.clip(given_metrics, [0.0, -1.0], [10.0, 1.0])
    expected = np.average(clipped, axis=0, weights=weights)
    found = codec.decode_metrics(total, 3)
    share = codec.error(3, 111) / codec.clipping_norm  # of half a range
    for i, (low, high) in enumerate(codec.metrics):
        assert abs(found[i] - expected[i]) <= share * (high - low) / 2
    mean, weight = codec.decode(total, 3)
    assert weight == 111
    assert np.abs(mean).max() <= codec.error(3, 111)


def test_metrics_alone_can_travel() -> None:
    codec = Codec(0, 1.0, 10, 16, ((0.0, 1.0),))
    total = codec.encode(np.zeros(0), 10, metrics=[0.5]) + codec.encode(np.zeros(0), 5, metrics=[1.0])
    assert codec.decode(total, 2)[0].size == 0
    assert codec.decode_metrics(total, 2)[0] == pytest.approx(2 / 3, abs=1e-4)


@pytest.mark.parametrize("metrics", [[], [1.0, 2.0]])
def test_a_wrong_number_of_metrics_is_refused(metrics: list[float]) -> None:
    with pytest.raises(ValueError, match=f"metrics: expected 1, got {len(metrics)}"):
        Codec(1, 1.0, metrics=((0.0, 1.0),)).encode(np.zeros(1), metrics=metrics)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_metric_that_is_no_number_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="metrics: expected finite numbers"):
        Codec(1, 1.0, metrics=((0.0, 1.0),)).encode(np.zeros(1), metrics=[value])


@pytest.mark.parametrize("bounds", [(1.0, 1.0), (2.0, 1.0), (0.0, np.inf), (np.nan, 1.0)])
def test_a_range_that_is_none_is_refused(bounds: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="metrics: expected a lowest below a highest value"):
        Codec(1, 1.0, metrics=(bounds,))


def test_an_update_may_be_cut_entry_by_entry() -> None:
    codec = Codec(3, 0.5, norm="max", bits=24)
    mean, _ = codec.decode(codec.encode(np.array([4.0, 0.25, -0.75])), 1)
    np.testing.assert_allclose(mean, [0.5, 0.25, -0.5], atol=codec.error(1, 1))
    with pytest.raises(ValueError, match="norm: expected 'l2' or 'max', got 'l1'"):
        Codec(3, 0.5, norm="l1")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected finite numbers"):
        codec.encode(np.array([np.nan, 0.0, 0.0]))
