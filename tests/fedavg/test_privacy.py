"""`fedavg.privacy`: calibration against the exact loss of the mechanism itself, by others' accountants."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dp_accounting.pld import privacy_loss_distribution as pld
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm, skellam

from fedavg.accounting import (
    composed,
    divergence,
    epsilon_of,
    epsilon_sampled,
    gaussian_factor,
    mu_of,
    mu_sampled,
    rounding_factor,
)
from fedavg.codec import EXTRA, PrivateCodec, joint_norm, to_integers
from fedavg.privacy import _Candidate, _tail, plan
from protocols.errors import Aborted, Infeasible
from protocols.simulator import simulate
from protocols.xnoise import levels
from secagg.noise import FAMILIES, Family, noise
from secagg.randomness import seeded


def probabilities(family: Family, variance: float) -> tuple[Any, Any]:
    """The integers that matter, and the probability of each."""
    steps = noise(family, variance).steps()
    f = np.array([low / (1 << steps.bits) for low in steps.low])
    p = np.diff(f)
    p[len(p) // 2 + 1 :] = p[: len(p) // 2][::-1]  # F near 1 has lost what F near 0 still tells
    return np.arange(steps.first + 1, -steps.first), p


def hockey_stick(p: Any, q: Any, epsilon: float) -> float:
    """The least delta for which p is within e^epsilon of q."""
    return float(np.maximum(p - np.exp(epsilon) * q, 0.0).sum())


def gaussian_delta(mu: float, epsilon: float) -> float:
    """The same of two normal distributions, mu apart (Balle and Wang 2018, Theorem 8)."""
    return float(norm.cdf(mu / 2 - epsilon / mu) - np.exp(epsilon) * norm.cdf(-mu / 2 - epsilon / mu))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("variance", [0.5, 1.0, 4.0, 33.3, 1000.0])
@pytest.mark.parametrize("shift", [1, 2, 5])
def test_a_shift_tells_no_more_than_the_gaussian_that_stands_for_it(
    family: Family, variance: float, shift: int
) -> None:
    _, p = probabilities(family, variance)
    mu = gaussian_factor(family, variance) * shift / sqrt(variance)
    here = np.concatenate([p, np.zeros(shift)])
    there = np.concatenate([np.zeros(shift), p])
    for epsilon in np.linspace(0, 3 * mu * mu + 3 * mu, 200):
        exact = max(hockey_stick(here, there, epsilon), hockey_stick(there, here, epsilon))
        assert exact <= gaussian_delta(mu, epsilon) + 1e-15


@pytest.mark.parametrize("family", FAMILIES)
def test_several_shifted_entries_tell_no_more_than_their_norm(family: Family) -> None:
    """The product over entries, enumerated: shifts 1, 2 and 3 at once, and their norm's Gaussian."""
    k, p = probabilities(family, 9.0)
    middle = np.abs(k) < 18
    p = p[middle]
    here = there = np.ones(1)
    for shift in (1, 2, 3):
        here = np.outer(here, np.concatenate([p, np.zeros(shift)])).ravel()
        there = np.outer(there, np.concatenate([np.zeros(shift), p])).ravel()
    mu = gaussian_factor(family, 9.0) * sqrt(1 + 4 + 9) / 3
    for epsilon in np.linspace(0, 6, 13):
        # What was cut off may add a little; at epsilon 6 delta is about 0.001.
        assert hockey_stick(here, there, epsilon) <= gaussian_delta(mu, epsilon) + 1e-6


def test_the_factor_is_near_one_and_falls() -> None:
    for family in FAMILIES:
        factors = [gaussian_factor(family, 2.0**e) for e in range(3, 21)]
        assert all(a >= b for a, b in itertools.pairwise(factors))
        assert factors[0] < 1.03
        assert factors[-1] < 1 + 1e-6
    assert gaussian_factor("skellam", 1e4) == pytest.approx(1 + 1 / 6e4, rel=1e-7)


@pytest.mark.parametrize(("variance", "shift", "rounds"), [(900.0, 30, 1), (900.0, 10, 10), (2500.0, 5, 20)])
def test_epsilon_is_within_a_hundredth_of_the_mechanisms_own_loss(
    variance: float, shift: int, rounds: int
) -> None:
    """Against the loss distribution of the Skellam mechanism itself, composed by dp-accounting."""
    k, p = probabilities("skellam", variance)
    log = dict(zip(k.tolist(), np.log(np.maximum(p, 1e-300)).tolist(), strict=True))
    shifted = {i + shift: value for i, value in log.items()}
    both = set(log) & set(shifted)
    exact = pld.from_two_probability_mass_functions(
        {i: log[i] for i in both},
        {i: shifted[i] for i in both},
        value_discretization_interval=1e-4,
        log_mass_truncation_bound=-60.0,
    ).self_compose(rounds)
    mu = composed([gaussian_factor("skellam", variance) * shift / sqrt(variance)] * rounds)
    for delta in (1e-3, 1e-5, 1e-7):
        truth = exact.get_epsilon_for_delta(delta)
        assert truth * 0.995 <= epsilon_of(mu, delta) <= truth * 1.01


@given(st.floats(0.01, 50), st.floats(1e-12, 0.1))
def test_mu_and_epsilon_are_inverse(epsilon: float, delta: float) -> None:
    mu = mu_of(epsilon, delta)
    assert epsilon_of(mu, delta) == pytest.approx(epsilon, rel=1e-4)
    assert gaussian_delta(mu, epsilon) == pytest.approx(delta, rel=1e-3)


@pytest.mark.parametrize("lost", [0.0, 1.0])
def test_a_release_that_tells_nothing_costs_nothing(lost: float) -> None:
    assert epsilon_of(0.0, 1e-5) == 0.0
    assert epsilon_of(1e-6 * lost, 1e-5) == 0.0


@pytest.mark.parametrize(
    ("analysis", "bits", "at_most"), [("published", 16, 1.01), ("tight", 9, 1.001), ("tight", 7, 1.01)]
)
def test_hardly_worse_than_a_trusted_server(analysis: Any, bits: int, at_most: float) -> None:
    """At 2^20 entries, a hundred clients and noise multiplier 1: in mean squared error."""
    found = plan(1 << 20, 1.0, 100, epsilon_of(1.0, 1e-5), 1e-5, bits=bits, analysis=analysis)
    assert found.noise_multiplier == pytest.approx(1.0, rel=1e-5)
    assert 1.0 < (found.error / found.central) ** 2 <= at_most
    assert found.central == pytest.approx(1.0, rel=1e-5)
    assert found.wraps[0] <= found.wraps[1] < 100
    # Sensitivity, noise and guarantee fit together.
    mu = sqrt(found.norm_squared / found.variance) / (1 << found.grid_bits)
    assert found.mu / 1.001 < mu < found.mu * (1 + 1e-9)
    assert (found.rounding > 0) == (analysis == "tight")


def test_the_best_analysis_is_that_with_the_fewest_bits() -> None:
    target = (1 << 20, 1.0, 100, epsilon_of(1.0, 1e-5), 1e-5)
    found = [plan(*target, analysis=analysis).bits for analysis in ("published", "tight", "best")]
    assert found == [16, 7, 7]


def rounded(rounding: int, x: float) -> tuple[int, Any]:
    """Rounding of x by a discrete Gaussian: the first integer, and the probability of each."""
    reach = int(16 * sqrt(rounding)) + 2
    weights = np.exp(-((np.arange(-reach, reach + 1) - x % 1) ** 2) / (2 * rounding))
    return int(np.floor(x)) - reach, weights / weights.sum()


def total(rounding: int, values: Sequence[float], skellam_variance: float) -> tuple[int, Any]:
    """The sum of all values rounded, and of Skellam noise: the first integer, and probabilities."""
    start, p = 0, np.ones(1)
    for x in values:
        first, q = rounded(rounding, x)
        start, p = start + first, np.convolve(p, q)
    if skellam_variance:
        k, q = probabilities("skellam", skellam_variance)
        start, p = start + int(k[0]), np.convolve(p, q)
    return start, p


@given(
    st.sampled_from([(4, 0.0), (4, 20.0), (2, 0.0), (2, 3.0)]),
    st.lists(st.floats(-9, 9), min_size=1, max_size=4), st.integers(-3000, 3000), st.integers(1, 4000),
)  # fmt: skip
@settings(max_examples=60)
def test_rounding_tells_no_more_than_the_gaussian_that_stands_for_it(
    kind: tuple[int, float], others: list[float], place: int, steps: int
) -> None:
    """Whatever the others' values: the exact sum of all, with one value here and there, both ways."""
    rounding, more = kind
    here, there = place / 512, (place + steps) / 512
    variance = rounding * (1 + len(others)) + more
    mu = rounding_factor(rounding, 1 + len(others), variance) * (there - here) / sqrt(variance)
    (a, p), (b, q) = (total(rounding, [x, *others], more) for x in (here, there))
    size = max(a + len(p), b + len(q)) - min(a, b)
    first, second = np.zeros(size), np.zeros(size)
    first[a - min(a, b) :][: len(p)] = p
    second[b - min(a, b) :][: len(q)] = q
    for epsilon in np.linspace(0, min(20, mu * mu + 3 * mu), 40):
        exact = max(hockey_stick(first, second, epsilon), hockey_stick(second, first, epsilon))
        assert exact <= gaussian_delta(mu, epsilon) * (1 + 1e-9) + 1e-13


def test_the_factor_with_rounding_is_near_one_and_falls() -> None:
    for rounding, honest in ((4, 10), (2, 100), (4, 100)):
        together = rounding * honest
        factors = [rounding_factor(rounding, honest, together * 2.0**e) for e in range(6)]
        assert all(1 <= f < 1.004 for f in factors)
        if rounding == 4:  # of 2, sums are not as nearly discrete Gaussians, which wide noise makes matter
            assert factors[-1] <= factors[0]


@pytest.mark.parametrize(("v", "w"), [(100.0, 0.0), (100.0, 50.0), (3000.0, 300.0), (2.0, 1.0)])
def test_the_tail_is_right_far_out(v: float, w: float) -> None:
    """Against the sum over every value of the Skellam variable."""
    for deviations in (2, 3, 4, 5, 6):
        x = np.ceil(deviations * sqrt(v + w)) - 0.5
        if w == 0.0:
            truth = skellam.sf(x, v / 2, v / 2)
            assert _tail(v, w, x) == pytest.approx(truth, rel=0.5)  # a lattice has no exact counterpart
            continue
        k = np.arange(-int(40 * sqrt(v)) - 60, int(40 * sqrt(v)) + 60)
        truth = (skellam.pmf(k, v / 2, v / 2) * norm.sf((x - k) / sqrt(w))).sum()
        assert _tail(v, w, x) == pytest.approx(truth, rel=0.1)


def encoded_sum(codec: PrivateCodec, updates: Any, weights: Any = None, metrics: Any = None) -> Any:
    """What clients encode, summed by a real session with the plan's noise."""
    n = len(updates)
    vectors = {
        f"c{i:03}": codec.encode(
            updates[i], 1 if weights is None else weights[i], seeded(b"r", bytes([i])),
            () if metrics is None else metrics[i],
        )
        for i in range(n)
    }  # fmt: skip
    run = simulate(
        vectors, bound=codec.bound, bits=codec.plan.bits, noise=codec.plan.noisy, dropout=0.0, corrupted=0.0
    )
    return run.sum


def test_the_error_of_a_mean_is_what_the_plan_said() -> None:
    """Measured on sessions: noise, rounding and wrapping together, updates all alike."""
    n, dim, rounds = 12, 5000, 6
    found = plan(dim, 1.0, n, 20.0, 1e-3)
    update = np.zeros(dim)
    update[17] = 1.0
    squares = 0.0
    for i in range(rounds):
        codec = PrivateCodec(found, bytes([i]), dim, 1.0)
        mean, weights = codec.decode(encoded_sum(codec, [update] * n), n)
        assert weights == n
        squares += ((n * (mean - update)) ** 2).mean() / rounds
    assert squares == pytest.approx(found.error**2, rel=5 * sqrt(2 / (rounds * dim)))
    assert codec.error(n, n) == pytest.approx(found.error / n)


def test_few_bits_wrap_as_often_as_was_said() -> None:
    n, dim = 12, 20_000
    found = plan(dim, 1.0, n, 5.0, 1e-3, bits=10, analysis="published")
    _, wraps = _Candidate(dim, n, 1, 0, found.mu, "skellam", 0, n, 1, (1,)).error(
        found.scale, found.norm_squared, 9
    )
    assert 50 < wraps[0] < wraps[1] < 2000
    codec, generator = PrivateCodec(found, b"s", dim, 1.0), np.random.default_rng(1)
    drawn = noise("skellam", found.variance).sample(bytes(16), dim)
    for together, expected in zip((False, True), wraps, strict=True):
        updates = generator.normal(size=(1 if together else n, dim)) / sqrt(dim)
        total = drawn + sum(codec.encode(updates[i % len(updates)]) for i in range(n))
        assert (np.abs(total) >= 256).sum() == pytest.approx(expected, rel=0.2)


def test_weights_and_metrics_come_back() -> None:
    n, dim = 10, 500
    norm_of_all = joint_norm(2.0, 2)
    assert norm_of_all == pytest.approx(2.0 * sqrt(1 + 2 * EXTRA**2))
    found = plan(dim + 2, norm_of_all, n, 1000.0, 1e-2)
    codec = PrivateCodec(found, b"s", dim, 2.0, 100, ((0.0, 5.0),))
    generator = np.random.default_rng(1)
    updates = generator.normal(size=(n, dim)) * 0.05
    weights = generator.integers(20, 100, n)
    metrics = generator.uniform(0, 5, (n, 1))
    total = encoded_sum(codec, updates, weights, metrics)
    mean, found_weights = codec.decode(total, n)
    noise_of_mean = codec.error(n, weights.sum())
    assert found_weights == pytest.approx(weights.sum(), abs=100 * 6 * found.error / (EXTRA * 2.0))
    np.testing.assert_allclose(mean, np.average(updates, axis=0, weights=weights), atol=7 * noise_of_mean)
    assert codec.decode_metrics(total, n)[0] == pytest.approx(
        np.average(metrics[:, 0], weights=weights), abs=20 * noise_of_mean / EXTRA
    )


def test_a_total_weight_that_is_not_positive_is_aborted() -> None:
    found = plan(4, joint_norm(1.0, 1), 3, 1.0, 1e-2, analysis="published")
    codec = PrivateCodec(found, b"s", 3, 1.0, 100)
    with pytest.raises(Aborted, match="sum of weights is not positive"):
        codec.decode(-codec.encode(np.zeros(3), 100), 1)


@given(st.integers(1, 300), st.floats(1e-3, 1e3), st.integers(0, 100))
@settings(max_examples=25)
def test_no_vector_exceeds_the_norm_of_the_plan(dim: int, size: float, data: int) -> None:
    update = np.random.default_rng(data).normal(size=dim)
    update *= size / np.linalg.norm(update)
    for analysis in ("published", "tight"):
        found = plan(dim, 1.0, 3, 3.0, 1e-2, bits=16, analysis=analysis)
        codec = PrivateCodec(found, bytes([data]), dim, 1.0)
        exact = codec.on_grid([update])
        assert sum(int(v) ** 2 for v in exact) <= found.norm_squared
        assert np.abs(codec.encode(update)).max() < codec.bound
        assert codec.clips(update) == (size > 1)


def test_a_contribution_that_rounding_would_make_too_long_is_rounded_again() -> None:
    """The plan's norm leaves little room: without the check, about every second would be beyond it."""
    found = plan(4096, 1.0, 3, 3.0, 1e-2, bits=12, analysis="published")
    codec = PrivateCodec(found, b"s", 4096, 1.0)
    update = np.random.default_rng(0).normal(size=4096)
    for number in range(30):
        exact = codec.on_grid([update], seeded(bytes([number])))
        assert int((exact**2).sum()) <= found.norm_squared


def test_each_record_is_within_the_norm_and_their_sum_comes_back() -> None:
    n, records, dim = 4, 50, 20
    found = plan(dim, 1.0, n, 100.0, 1e-3, records=records)
    codec = PrivateCodec(found, b"s", dim, 1.0)
    updates = np.random.default_rng(3).normal(size=(records, dim)) * 0.1
    vectors = {f"c{i}": to_integers(found, codec.on_grid(updates, seeded(bytes([i])))) for i in range(n)}
    run = simulate(vectors, bound=codec.bound, bits=found.bits, noise=found.noisy, dropout=0.0, corrupted=0.0)
    mean, _ = codec.decode(run.sum, n * records)
    np.testing.assert_allclose(mean, updates.mean(axis=0), atol=6 * codec.error(n, n * records))
    with pytest.raises(ValueError, match="at most 50, one a record"):
        codec.on_grid(np.zeros((51, dim)))


def test_rounding_is_without_bias() -> None:
    found = plan(3, 1.0, 3, 1.0, 1e-2, bits=8)
    codec = PrivateCodec(found, b"s", 3, 1.0)
    update, rng = np.array([0.31, -0.2, 0.05]), seeded(b"without bias")
    found_ones = np.array([codec.decode(codec.encode(update, rng=rng), 1)[0] for _ in range(4000)])
    deviation = found_ones.std(axis=0) / sqrt(4000)
    assert (np.abs(found_ones.mean(axis=0) - update) < 5 * deviation).all()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"epsilon": 0.0}, "epsilon: expected a positive"), ({"epsilon": float("inf")}, "epsilon: expected"),
        ({"epsilon": float("nan")}, "epsilon: expected"), ({"delta": 0.0}, "delta: expected"),
        ({"delta": 1.0}, "delta: expected"), ({"delta": 0.2}, "one over the contributions"),
        ({"dim": 0}, "dim: expected an integer"), ({"cohort": 0}, "cohort: expected"),
        ({"rounds": 0}, "rounds: expected"), ({"records": 0}, "records: expected"),
        ({"clipping_norm": 0.0}, "clipping_norm: expected"), ({"colluding": 10}, "fewer than are in a sum"),
        ({"delta": 0.05, "records": 5}, "at most 1 / 50"), ({"delta": 1e-30}, "delta: expected"),
        ({"epsilon": 1e9}, "epsilon: expected"), ({"epsilon": "1"}, "epsilon: expected"),
        ({"clipping_norm": 1e300}, "clipping_norm: expected"), ({"bits": 7.5}, "bits: expected"),
        ({"bits": 1000}, "bits: expected"), ({"family": "x"}, "family: expected"),
        ({"colluding": 1.5}, "colluding: expected"), ({"least": 0}, "least: expected"),
        ({"least": 11}, "expected fewer than are in a sum"), ({"analysis": "x"}, "analysis: expected"),
    ],
)  # fmt: skip
def test_impossible_plans_are_refused(changes: dict[str, Any], says: str) -> None:
    agreed = {"dim": 100, "clipping_norm": 1.0, "cohort": 10, "epsilon": 1.0, "delta": 1e-5} | changes
    with pytest.raises(ValueError, match=says):
        plan(**agreed)


def test_too_few_bits_are_refused_with_how_many_would_do() -> None:
    target = (1 << 20, 1.0, 100, epsilon_of(1.0, 1e-5), 1e-5)
    with pytest.raises(Infeasible, match=r"bits: 9 make the mean squared error 15\d times .* 16 do"):
        plan(*target, bits=9, analysis="published")
    with pytest.raises(Infeasible, match=r"bits: 4 make the mean squared error (inf|\d+) times .* 7 do"):
        plan(*target, bits=4)


def test_a_plan_for_other_updates_is_refused() -> None:
    found = plan(10, 1.0, 3, 1.0, 1e-2)
    for dim, clipping_norm in ((9, 1.0), (10, 2.0)):
        with pytest.raises(ValueError, match="plan: expected one for"):
            PrivateCodec(found, b"", dim, clipping_norm)


def test_a_sum_that_is_none_is_refused() -> None:
    codec = PrivateCodec(plan(3, 1.0, 3, 1.0, 1e-2), b"", 3, 1.0)
    for total, included in (
        (np.zeros(4, np.int64), 1),
        (np.zeros(3, np.uint64), 1),
        (np.zeros(3, np.int64), 0),
    ):
        with pytest.raises(ValueError, match="sum: expected"):
            codec.decode(total, included)


def test_sums_of_discrete_gaussians_are_nearly_one() -> None:
    """The divergence that is charged, against sums of four of the narrowest, exactly."""
    _, p = probabilities("discrete-gaussian", 4.0)
    total = p
    for _ in range(3):
        total = np.convolve(total, p)
    wide_k, wide = probabilities("discrete-gaussian", 16.0)
    middle = np.abs(np.arange(len(total)) - len(total) // 2) < 20
    found = np.abs(np.log(total[middle] / wide[np.abs(wide_k) < 20]))
    assert (found < divergence("discrete-gaussian", 4) + 1e-12).all()
    assert divergence("skellam", 1000) == 0.0


@pytest.mark.parametrize(
    ("cohort", "least", "colluding", "epsilon", "delta", "bits"),
    [(3, 2, 0, 0.1, 0.16, 5), (5, 3, 2, 0.1, 0.1, 5), (6, 4, 0, 0.1, 0.1, 5), (2, 2, 0, 0.1, 0.25, 5),
     (50, 35, 5, 1.0, 1e-5, None), (10, 7, 0, 3.0, 1e-5, None)],
)  # fmt: skip
def test_no_number_of_dropouts_makes_a_round_tell_more_than_planned(
    cohort: int, least: int, colluding: int, epsilon: float, delta: float, bits: int | None
) -> None:
    """Dropouts put Skellam noise where rounding was, which is a little less Gaussian."""
    for analysis in ("tight", "published"):
        try:
            found = plan(
                1, 1.0, cohort, epsilon, delta, least=least, colluding=colluding, bits=bits, analysis=analysis
            )
        except Infeasible:
            continue
        about = levels(found.noisy, cohort, least)
        for included in range(least, cohort + 1):
            mu = found.mu_with(about.remaining(included), included - colluding)
            assert mu <= found.mu * (1 + 1e-9), (analysis, included)


def test_what_rounding_leaves_over_is_charged_at_its_real_size() -> None:
    """In a cohort too large to be looked at as it is, steps are small beside what sums are off by."""
    small, large = (rounding_factor(2, honest, 4.0 * honest) - 1 for honest in (2048, 2_048_000))
    assert large > 10 * small


def test_large_cohorts_and_large_epsilons_are_planned_in_a_moment() -> None:
    assert plan(1000, 1.0, 1_000_000, 1.0, 1e-8).bits < 30
    assert plan(5, 1.0, 10, 1e5, 1e-5, records=1024).bits < 40


ANSWERS = json.loads((Path(__file__).parent / "prv_answers.json").read_text())


@pytest.mark.parametrize("answer", ANSWERS, ids=lambda a: f"{a['multiplier']}-{a['rate']}-{a['delta']}")
def test_sampled_rounds_agree_with_another_accountant(answer: dict[str, Any]) -> None:
    """prv-accountant's bounds (see prv_answers.py): not below the lower one, within 1 % of the upper."""
    releases = [(1 / answer["multiplier"], answer["rate"])] * answer["rounds"]
    mine = epsilon_sampled(releases, answer["delta"])
    assert answer["low"] <= mine <= answer["high"] * 1.01
    if answer["rate"] == 1.0:
        assert (
            answer["low"] <= epsilon_of(composed(mu for mu, _ in releases), answer["delta"]) <= answer["high"]
        )


@pytest.mark.parametrize(
    ("epsilon", "delta", "rounds", "rate"), [(2.0, 1e-5, 20, 0.2), (1.0, 1e-6, 1000, 0.01)]
)
def test_a_calibration_spends_what_it_may(epsilon: float, delta: float, rounds: int, rate: float) -> None:
    mu = mu_sampled(epsilon, delta, rounds, rate)
    assert epsilon * 0.999 < epsilon_sampled([(mu, rate)] * rounds, delta) <= epsilon


def test_sampling_takes_less_noise_and_only_the_published_analysis() -> None:
    everybody, some = (plan(100, 1.0, 10, 1.0, 1e-5, rounds=50, sampling=q) for q in (1.0, 0.1))
    assert some.noise_multiplier < everybody.noise_multiplier / 5
    assert some.rounding == 0
    with pytest.raises(ValueError, match="not credited under the tight analysis"):
        plan(100, 1.0, 10, 1.0, 1e-5, sampling=0.1, analysis="tight")
    for rate in (0.0, 1.5, float("nan"), "x"):
        with pytest.raises(ValueError, match="sampling: expected a chance"):
            plan(100, 1.0, 10, 1.0, 1e-5, sampling=rate)  # type: ignore[arg-type]


def test_hardly_any_noise_is_found_without_a_large_table() -> None:
    """Loss distributions grow with mu squared: beyond some mu, the number without sampling is good enough."""
    assert mu_sampled(1e4, 1e-5, 1, 0.01) == mu_of(1e4, 1e-5)


def test_discrete_gaussian_noise_from_plan_to_sum() -> None:
    """The other family, through a real session in which one vanishes."""
    found = plan(
        16, 1.0, 6, 8.0, 1e-3, family="discrete-gaussian", colluding=1, least=5, bits=16, analysis="published"
    )
    assert found.family == "discrete-gaussian"
    codec = PrivateCodec(found, b"s", 16, 1.0)
    updates = np.random.default_rng(4).normal(size=(6, 16)) * 0.2
    vectors = {f"c{i}": codec.encode(u) for i, u in enumerate(updates)}
    run = simulate(
        vectors, bound=codec.bound, bits=found.bits, noise=found.noisy, dropout=0.2, corrupted=0.2,
        drop={"c0": "masked"},
    )  # fmt: skip
    assert run.result.included == ("c1", "c2", "c3", "c4", "c5")
    assert found.variance <= run.result.noise <= 1.02 * found.variance
    mean, _ = codec.decode(run.sum, 5)
    wanted = np.array([u / max(1.0, float(np.linalg.norm(u))) for u in updates[1:]]).mean(axis=0)
    off = mean - wanted
    assert 0.3 < np.sqrt((off**2).mean()) / (found.error / 5) < 2
    # A hundred thousand entries of very little epsilon: what sums of parts are off by is too much.
    with pytest.raises(ValueError, match="alone cost epsilon"):
        plan(10**9, 1.0, 10**6, 1e-3, 1e-9, family="discrete-gaussian", rounds=10**4)
