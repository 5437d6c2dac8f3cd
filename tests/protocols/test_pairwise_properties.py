"""The first property, over random cohorts and fault schedules: the exact sum of the included, or Aborted.

A bit flipped in a masked vector on its way is what that client "sent", as far as the server can know:
there the sum may differ by just that bit. Everything else must not change a single entry.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
from hypothesis import currently_in_test_context, event, given, note, settings
from hypothesis import strategies as st

from protocols.errors import Aborted, Fault, Infeasible
from protocols.graph import SECAGG, SECAGG_PLUS, THREAT_MODELS
from protocols.machine import Aggregate, Answered
from protocols.pairwise import _CODEC, Masked
from protocols.simulator import (
    STAGES,
    Corrupt,
    Delay,
    Drop,
    Duplicate,
    NetworkFault,
    Reorder,
    Replay,
    Simulation,
    simulate,
)

FEWER = settings().max_examples // 2
BODY_BITS = 8 * len(_CODEC.encode(Masked(bytes(32))))  # before its frame

stages = st.sampled_from(STAGES)
links = st.sampled_from(["up", "down"])
fractions = st.sampled_from([0.0, 0.05, 0.1, 0.2, 0.25, 0.3, 0.4, 0.5])
bounds = st.one_of(
    st.integers(2, 300),
    st.sampled_from([2**8, 2**16, 2**16 + 1, 2**31, 2**33 - 1, 2**60]),
    st.integers(2, 2**60),
)


@st.composite
def cohorts(draw: st.DrawFn) -> dict[str, Any]:
    """The arguments of `simulate`, faults aside."""
    if draw(st.integers(0, 24)) == 24:
        n, protocol = draw(st.integers(50, 60)), SECAGG_PLUS
        threat_model, corrupted, dropout = draw(st.sampled_from(THREAT_MODELS[:2])), 0.05, 0.05
    else:
        n, protocol = draw(st.integers(3, 12)), draw(st.sampled_from([SECAGG, SECAGG_PLUS]))
        threat_model = draw(st.sampled_from(THREAT_MODELS[:2] if protocol == SECAGG_PLUS else THREAT_MODELS))
        corrupted, dropout = draw(fractions), draw(fractions)
    bound, dim = draw(bounds), draw(st.integers(1, 9))
    ends = st.sampled_from([0, 1, bound - 1])
    rows = st.lists(st.one_of(ends, st.integers(0, bound - 1)), min_size=dim, max_size=dim)
    width = len(str(n))
    return {
        "vectors": {f"c{i:0{width}}": draw(rows) for i in range(n)},
        "bound": bound, "dim": dim, "protocol": protocol, "threat_model": threat_model,
        "corrupted": corrupted, "dropout": dropout, "seed": draw(st.integers(0, 2**32)),
        "round": draw(st.integers(0, 3)), "attempt": draw(st.integers(0, 3)),
    }  # fmt: skip


@st.composite
def network_faults(draw: st.DrawFn) -> NetworkFault:
    """One fault of any kind."""
    kind = draw(st.sampled_from([Drop, Delay, Duplicate, Reorder, Corrupt, Replay]))
    stage, link = draw(stages), draw(links)
    if kind is Drop:
        return Drop(before=stage) if draw(st.booleans()) else Drop(after=stage)
    if kind is Reorder:
        return Reorder(stage)
    if kind is Replay:
        return Replay(stage, draw(stages))
    if kind is not Corrupt:
        return kind(stage, link)
    return Corrupt(stage, draw(st.integers(0, 4000)), link)


@st.composite
def faulty_runs(draw: st.DrawFn) -> dict[str, Any]:
    run = draw(cohorts())
    names = sorted(run["vectors"])
    count = draw(st.integers(0, min(5, len(names))))
    stricken = draw(st.lists(st.sampled_from(names), min_size=count, max_size=count, unique=True))
    some = st.lists(network_faults(), min_size=1, max_size=2)
    return run | {"faults": {name: draw(some) for name in stricken}}


def say(text: str) -> None:
    """Show what to paste when a test fails, in and outside of hypothesis."""
    (note if currently_in_test_context() else print)(text)


def tally(what: str) -> None:
    """For hypothesis' statistics."""
    if currently_in_test_context():
        event(what)


def play(run: dict[str, Any]) -> Simulation | None:
    """Simulate, or None where no parameters meet the demands. More work than faults can make is a hang."""
    arguments = ", ".join(f"{k}={v!r}" for k, v in run.items() if k != "vectors")
    say(f"simulate({run['vectors']!r}, {arguments})")
    steps = 0

    def step(stage: str, done: int, total: int) -> None:
        nonlocal steps
        steps += 1
        assert steps <= 5 * len(STAGES) * len(run["vectors"]), f"no end in sight at {stage}"

    try:
        return simulate(**run, on_event=step)
    except Infeasible:
        tally("infeasible")
        return None


def assert_sound(run: dict[str, Any], simulation: Simulation) -> None:
    """What holds of every run, whatever went wrong on the way."""
    say(simulation.call)
    session, result, names = simulation.session, simulation.result, set(run["vectors"])
    for client in simulation.clients.values():
        assert client is None or isinstance(client, (Answered, Aborted))
    for fault in result.faults:
        assert isinstance(fault, Fault)
        assert set(fault.culprits) <= names
    if isinstance(result, Aborted):
        tally(f"aborted at {result.stage}")
        assert set(result.dropped) <= names
        assert result.retry is not result.revealed
        if any(isinstance(c, Answered) for c in simulation.clients.values()):
            assert result.revealed
        return
    assert isinstance(result, Aggregate)
    tally(f"included {len(result.included) * 4 // len(names)} of 4 quarters")
    included = set(result.included)
    assert list(result.included) == sorted(included)
    assert not included & set(result.dropped)
    assert included | set(result.dropped) == names
    p = session.parameters
    assert len(included) >= max(
        session.min_included, p.min_included, p.threshold if session.complete else 0, 3
    )
    assert len(included) >= p.corrupted + 2
    if session.signed:
        for client in simulation.clients.values():
            assert not isinstance(client, Answered) or client.included == result.included
    assert_exact(run, simulation)


def assert_exact(run: dict[str, Any], simulation: Simulation) -> None:
    session, result = simulation.session, simulation.result
    modulus = 1 << session.ring.bits
    flips: dict[int, list[int]] = {}
    for name in result.included:
        for fault in run.get("faults", {}).get(name, ()):
            if isinstance(fault, Corrupt) and (fault.stage, fault.link) == ("masked", "up"):
                bit = fault.bit % (BODY_BITS + 8 * session.ring.packed_size(session.dim)) - BODY_BITS
                entry, power = divmod(bit, session.ring.bits)
                if bit >= 0 and entry < session.dim:
                    flips.setdefault(entry, []).append(1 << power)
    assert result.sum.shape == (session.dim,)
    assert result.sum.dtype == session.ring.dtype
    for entry, found in enumerate(result.sum.tolist()):
        exact = sum(run["vectors"][name][entry] for name in result.included)
        assert exact < modulus
        powers = flips.get(entry, [])
        allowed = {
            (exact + sum(s * power for s, power in zip(signs, powers, strict=True))) % modulus
            for signs in product((-1, 0, 1), repeat=len(powers))
        }
        assert found in allowed


@given(faulty_runs())
def test_exact_sum_or_aborted(run: dict[str, Any]) -> None:
    simulation = play(run)
    if simulation is not None:
        assert_sound(run, simulation)


@settings(max_examples=FEWER)
@given(cohorts())
def test_faultless_run_includes_everybody(run: dict[str, Any]) -> None:
    simulation = play(run)
    if simulation is None:
        return
    assert_sound(run, simulation)
    assert isinstance(simulation.result, Aggregate)
    assert simulation.result.included == tuple(sorted(run["vectors"]))
    assert simulation.result.faults == ()
    assert {type(c) for c in simulation.clients.values()} == {Answered}


@settings(max_examples=FEWER)
@given(cohorts(), st.data())
def test_run_with_no_more_dropouts_than_allowed_completes(run: dict[str, Any], data: st.DataObject) -> None:
    names = sorted(run["vectors"])
    allowed = int(run["dropout"] * len(names))
    gone = data.draw(st.lists(st.sampled_from(names), max_size=allowed, unique=True))
    places = [(side, stage) for side in ("before", "after") for stage in STAGES]
    faults = {name: [Drop(**dict([data.draw(st.sampled_from(places))]))] for name in gone}
    run = run | {"faults": faults}
    simulation = play(run)
    if simulation is None:
        return
    assert allowed <= simulation.session.parameters.dropped
    assert_sound(run, simulation)
    assert isinstance(simulation.result, Aggregate), simulation.result
    early = {
        name for name, (drop,) in faults.items()
        if drop.before in STAGES[:3] or drop.after in STAGES[:2]
    }  # fmt: skip
    assert set(simulation.result.dropped) == early


@settings(max_examples=FEWER)
@given(faulty_runs())
def test_call_reproduces_the_run(run: dict[str, Any]) -> None:
    first = play(run)
    if first is None:
        return
    names = {kind.__name__: kind for kind in (Drop, Delay, Duplicate, Reorder, Corrupt, Replay)}
    again = eval(first.call, {"simulate": simulate, **names})
    assert again.session.hash == first.session.hash
    assert type(again.result) is type(first.result)
    assert again.result.faults == first.result.faults
    if isinstance(first.result, Aggregate):
        assert again.sum.tolist() == first.sum.tolist()
    else:
        assert str(again.result) == str(first.result)


@pytest.mark.parametrize("model", THREAT_MODELS)
@pytest.mark.parametrize("link", ["up", "down"])
@pytest.mark.parametrize("bit", [40, 300, 700, 760, 1000, 1100])
def test_damaged_mask_key_never_gives_a_wrong_sum(model: str, link: str, bit: int) -> None:
    run = {
        "vectors": {name: [i, 10 * i] for i, name in enumerate("abcdef")}, "bound": 100, "dim": 2,
        "protocol": SECAGG, "threat_model": model, "faults": {"b": [Corrupt("keys", bit, link)]},
    }  # fmt: skip
    simulation = play(run)
    assert simulation is not None
    assert_sound(run, simulation)
