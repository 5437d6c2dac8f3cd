"""The estimate of a round: bytes and operations are those of real sessions; what cannot be is refused.

No figure in seconds is judged here: `benchmarks/model.py` compares those.
"""

import random
import subprocess
import sys
import tracemalloc
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from protocols import machine, pairwise
from protocols.errors import Aborted, Infeasible, LocalError
from protocols.estimate import Estimate, Link, _fit, estimate, measure
from protocols.graph import parameters
from protocols.micro import Micro, Overhead
from protocols.simulator import STAGES, Simulation, simulate
from secagg import box, keys, prg, shamir
from secagg.labels import Label
from secagg.ring import Ring

OPERATIONS = [name for name in Micro.__slots__ if name != "overhead"]
MICRO = Micro(**dict.fromkeys(OPERATIONS, 1e-6), overhead={s: Overhead(*[1e-6] * 5) for s in STAGES})

HBC, SEMI, MAL = "honest-but-curious", "semi-malicious", "malicious"


def predict(n: int, dim: int = 10, *, bound: int = 1 << 16, **agreed: Any) -> Estimate:
    return estimate(n, dim, bound=bound, **{"protocol": "secagg", "micro": MICRO, **agreed})


def run(n: int, dim: int = 10, *, dropping: float = 0.0, at: str = "masked", **agreed: Any) -> Simulation:
    gone = random.Random(n).sample(range(n), round(dropping * n))
    drop = {f"client-{i:0{len(str(n - 1))}}": at for i in gone}
    found = simulate(n, dim=dim, bound=1 << 16, drop=drop, **agreed)
    assert not isinstance(found.result, Aborted), found.result
    return found


# ---------------------------------------------------------------------------------------------- bytes

COMPLETE = [
    *[(n, {"threat_model": model}) for n in (3, 10, 17, 40) for model in (HBC, MAL)],
    (3, {"threat_model": HBC, "dropout": 0.0, "corrupted": 0.0}),
    (10, {"threat_model": SEMI}),
    (60, {"threat_model": MAL}),
    (30, {"protocol": "secagg+", "threat_model": SEMI, "corrupted": 0.05}),
    *[
        (20, {"threat_model": model, "dropout": 0.3, "corrupted": 0.05, "dropping": dropping, "at": at})
        for model in (HBC, MAL)
        for dropping in (0.1, 0.3)
        for at in STAGES
        if at != "signatures" or model == MAL
    ],
]
SPARSE = [(120, {"threat_model": HBC}), (70, {"threat_model": SEMI, "corrupted": 0.05})]


@pytest.mark.parametrize(("n", "agreed"), COMPLETE)
def test_bytes_are_those_of_a_real_session(n: int, agreed: dict[str, Any]) -> None:
    found, real = predict(n, 999, **agreed), run(n, 999, **agreed)
    assert [(row[0], *row[3:5]) for row in found.rows()] == [(row[0], *row[3:5]) for row in real.rows()]
    assert found.bits == real.session.ring.bits
    assert found.parameters == real.session.parameters
    assert found.included == len(real.result.included)  # type: ignore[union-attr]


@pytest.mark.parametrize(("n", "agreed"), SPARSE)
@pytest.mark.parametrize(
    ("dropping", "at"), [(0.0, "keys"), (0.1, "keys"), (0.1, "masked"), (0.1, "reveals")]
)
def test_bytes_of_a_sparse_graph_are_those_of_a_real_session(
    n: int, agreed: dict[str, Any], dropping: float, at: str
) -> None:
    agreed = {**agreed, "protocol": "secagg+", "dropping": dropping, "at": at}
    for row, real in zip(predict(n, **agreed).rows(), run(n, **agreed).rows(), strict=True):
        assert row[0] == real[0]
        for expected, seen in zip(row[3:5], real[3:5], strict=True):
            # Whose neighbours drop out is chance, which so small a cohort does not average out.
            assert abs(expected - seen) <= (0.02 * seen + 2 if dropping else 0), row[0]


def test_the_roster_and_the_bitmap_are_counted() -> None:
    small, large = predict(10**4, protocol="secagg+"), predict(10**8, protocol="secagg+")
    assert small.roster[4] == 10**4 * (32 + 16)
    assert predict(10**4, protocol="secagg+", name_bytes=7).roster[4] == 10**4 * (32 + 7)
    assert large.roster[4] == 4_800_000_000
    assert large.rows()[-1][4] == 10**8 // 8 + 8
    assert large.heaviest()["bytes down"] == ("roster", pytest.approx(1.0, abs=0.01))
    for who in ("client", "server"):
        assert large.work[who]["checking the roster"] == pytest.approx(10**8 * MICRO.member)
        assert large.work[who]["who is in the sum"] > 10**8 * MICRO.bitmap_read


# ----------------------------------------------------------------------------------------- operations


class Calls:
    """Counts what the machines call, by side, stage and operation."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.client: dict[str, Counter[str]] = {stage: Counter() for stage in STAGES}
        self.server: dict[str, Counter[str]] = {stage: Counter() for stage in STAGES}
        self.now: Counter[str] | None = None
        self.signed = True
        self.sets: set[tuple[int, ...]] = set()
        for kind, side in ((machine.ClientMachine, self.client), (machine.ServerMachine, self.server)):
            self.follow(patch, kind, side)
        for owner, name, tell in (
            (keys.AgreementKey, "__init__", lambda *_: {"key": 1}),
            (keys.AgreementKey, "agree", lambda *_: {"agree": 1}),
            (keys.Identity, "sign", lambda *_: {"sign": 1}),
            (keys, "check_agreement_public", lambda *_: {"point": 1}),
            (keys, "verify", lambda *_: {"verify": 1}),
            (box, "seal", lambda *_: {"seal": 1}),
            (box, "unseal", lambda *_: {"unseal": 1}),
            (pairwise, "digest", lambda label, *_: {"commitment": int(label is Label.SHARE_COMMITMENT)}),
            (shamir, "malformed", lambda shares: {"share_check": len(shares)}),
            (shamir, "split", self.split),
            (shamir, "combine", self.combine),
            (Ring, "add_packed", lambda _, total, __: {"add": 1, "add_entry": total.size}),
            (Ring, "pack", lambda _, vector: {"pack": 1, "own_entry": vector.size}),
        ):  # fmt: skip
            self.wrap(patch, owner, name, tell)
        patch.setattr(prg, "Cipher", self.cipher(prg.Cipher))

    def count(self, told: dict[str, int]) -> None:
        if self.now is not None:
            self.now.update(told)

    def wrap(self, patch: pytest.MonkeyPatch, owner: Any, name: str, tell: Callable[..., Any]) -> None:
        real = getattr(owner, name)

        def counted(*args: Any, **named: Any) -> Any:
            self.count(tell(*args))
            return real(*args, **named)

        patch.setattr(owner, name, counted)

    def follow(self, patch: pytest.MonkeyPatch, kind: Any, side: dict[str, Counter[str]]) -> None:
        real = kind.handle
        homes = {"start": "keys", "roster": "shares", "shares": "masked", "input": "masked"}

        def handle(party: Any, event: Any) -> Any:
            last = {"survivors": "signatures" if self.signed else "reveals", "quorum": "reveals"}
            stage = party.stage if side is self.server else (homes | last).get(party.stage)
            self.now = side.get(stage)
            try:
                return real(party, event)
            finally:
                self.now = None

        patch.setattr(kind, "handle", handle)

    def split(self, _: Any, threshold: int, points: Any, __: Any) -> dict[str, int]:
        return {"split_share": len(points), "split_term": len(points) * threshold}

    def combine(self, rows: Any, points: Any) -> dict[str, int]:
        known, t = tuple(points) in self.sets, len(points)
        self.sets.add(tuple(points))
        return {"combine": not known, "combine_share": len(rows) * t, "lagrange_term": (not known) * t * t}

    def cipher(self, real: Any) -> Any:
        def encryptor(*args: Any) -> Any:
            self.count({"stream": 1})
            stream = real(*args).encryptor()

            def update_into(data: bytes, into: Any) -> int:
                self.count({"stream_byte": len(data)})
                return int(stream.update_into(data, into))

            return SimpleNamespace(update_into=update_into)

        return lambda *args: SimpleNamespace(encryptor=lambda: encryptor(*args))


# Not functions of ours, or shared by all parties of a process.
UNCOUNTED = {"bitmap_read", "bitmap_write", "in_set", "sum_entry", "ring_place", "neighbours"}


def compared(
    patch: pytest.MonkeyPatch, n: int, agreed: dict[str, Any]
) -> list[tuple[str, str, float, float]]:
    """(where, operation, expected, seen) for all clients together and for the server."""
    found = predict(n, 30, **agreed)
    calls = Calls(patch)
    calls.signed = agreed["threat_model"] != HBC
    real = run(n, 30, **agreed)
    taking_part = Counter(stage for name, costs in real.costs.items() if name != "server" for stage in costs)
    rows = []
    for stage, (client, server) in found.counts.items():
        for side, expected, seen, times in (
            ("client", client, calls.client[stage], taking_part[stage]),
            ("server", server, calls.server[stage], 1),
        ):
            for name in {*expected, *seen} - UNCOUNTED:
                rows.append((f"{side} at {stage}", name, times * expected.get(name, 0.0), seen[name]))
    assert {name for _, name, _, seen in rows if seen} <= set(OPERATIONS)
    return rows


@pytest.mark.parametrize(("n", "agreed"), [case for case in COMPLETE if case[0] != 3])
def test_operations_are_those_of_a_real_session(
    n: int, agreed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = compared(monkeypatch, n, agreed)
    assert len({name for _, name, _, seen in rows if seen}) >= 16
    for where, name, expected, seen in rows:
        assert expected == pytest.approx(seen), (where, name)


@pytest.mark.parametrize("model", [HBC, SEMI])
@pytest.mark.parametrize(
    ("dropping", "at"), [(0.0, "masked"), (0.1, "masked"), (0.1, "shares"), (0.1, "reveals")]
)
def test_operations_over_a_sparse_graph_are_those_of_a_real_session(
    model: str, dropping: float, at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    agreed = {"protocol": "secagg+", "threat_model": model, "corrupted": 0.05, "dropping": dropping, "at": at}
    rows = compared(monkeypatch, 100, agreed)
    assert {"verify" if model == SEMI else "stream", "lagrange_term"} <= {
        name for _, name, _, seen in rows if seen
    }
    for where, name, expected, seen in rows:
        if dropping and name in ("combine", "lagrange_term"):  # at most; dealers have holders in common
            assert seen <= expected <= 3 * seen, (where, name)
        else:  # whose neighbours are missing is chance
            assert expected == pytest.approx(seen, rel=0.08 if dropping else 1e-9), (where, name)


def test_streams_are_the_survivors_own_and_the_lost_ones_pairs() -> None:
    assert predict(10, dropping=0.1).streams == 9 + 9
    assert predict(10, dropping=0.1, at="shares").streams == 9
    assert predict(10, dropping=0.1, at="reveals").streams == 10
    sparse = predict(1000, protocol="secagg+", dropping=0.1)
    assert sparse.streams == pytest.approx(900 + 100 * sparse.parameters.degree * 900 / 999)


# --------------------------------------------------------------------------------------------- results


def total(found: Estimate) -> tuple[float, float]:
    return sum(row[1] for row in found.rows()), sum(row[5] for row in found.rows())


def test_more_of_anything_costs_no_less() -> None:
    for smaller, larger in (
        (predict(10), predict(11)),
        (predict(100), predict(400)),
        (predict(100, 10), predict(100, 10**6)),
        (predict(100), predict(100, threat_model=MAL)),
        (predict(10**5, protocol="secagg+"), predict(10**6, protocol="secagg+")),
        (predict(100, protocol="secagg+"), predict(100, protocol="secagg")),
    ):
        for a, b in zip(total(smaller), total(larger), strict=True):
            assert a < b
        assert smaller.memory_bytes <= larger.memory_bytes
        assert smaller.seconds < larger.seconds
    # A client has less to do where neighbours are gone; the server, which expands their masks, more.
    assert total(predict(100, 10**4))[1] < total(predict(100, 10**4, dropping=0.1))[1]


def test_a_hundred_million_clients_need_no_memory() -> None:
    tracemalloc.start()
    try:
        found = predict(10**8, 10**6, protocol="secagg+", dropping=0.05, aggregators=4096)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    assert (found.n, found.included, found.bits) == (10**8, 95 * 10**6, 43)
    assert found.parameters == parameters(10**8, 0.1, 0.1, "secagg+")
    assert found.memory["roster"] > 10**8 * 48


def test_leaves_share_the_work_and_all_hold_the_roster() -> None:
    one, many = (predict(10**5, 1000, protocol="secagg+", aggregators=a) for a in (1, 100))
    assert one.tree is None
    assert many.tree is not None
    assert (many.tree.leaves, many.tree.clients) == (100, 1000)
    assert (many.tree.depth, many.tree.nodes) == (2, 7 + 1)
    assert many.tree.leaf_seconds == pytest.approx(total(many)[1])
    assert many.tree.node_bytes == 16 * -(-1000 * many.bits // 8)
    assert many.memory["roster"] == one.memory["roster"]
    assert 50 < one.memory["shares"] / many.memory["shares"] < 101
    for stage in ("shares", "masked"):
        mine, its = ({row[0]: row[5] for row in found.rows()}[stage] for found in (many, one))
        assert mine < its / 20
    assert [row[:5] for row in many.rows()] == [row[:5] for row in one.rows()], "a client sees no difference"
    assert many.wall["reveals"]["aggregators"] > 0
    deep = predict(10**5, 1000, protocol="secagg+", aggregators=100, fanout=2)
    assert deep.tree is not None
    assert (deep.tree.depth, deep.tree.nodes) == (7, 50 + 25 + 13 + 7 + 4 + 2 + 1)
    assert deep.tree.node_bytes == many.tree.node_bytes // 8


def test_cores_shorten_the_wall_and_nothing_else() -> None:
    one, four = (predict(100, 10**6, cores=c) for c in (1, 4))
    assert four.rows() == one.rows()
    assert four.wall["reveals"]["server"] < one.wall["reveals"]["server"]
    assert {**four.wall, "reveals": 0} == {**one.wall, "reveals": 0}
    short = predict(100, 10, cores=4)
    assert short.wall == predict(100, 10).wall, "a single chunk is for one core"


def test_links_count_at_both_ends() -> None:
    slow = predict(10, 1000, link=Link(up=1e3, down=2e3, latency=7.0, server=1e12))
    rows = {row[0]: row for row in slow.rows()}
    assert slow.wall["masked"]["link up"] == pytest.approx(8 * rows["masked"][3] / 1e3)
    assert slow.wall["masked"]["link down"] == pytest.approx(8 * rows["masked"][4] / 2e3)
    assert all(parts["latency"] == 7.0 for stage, parts in slow.wall.items() if stage != "roster")
    narrow = predict(10, 1000, link=Link(up=1e12, down=1e12, server=1e3))
    assert narrow.wall["masked"]["server's link, up"] == pytest.approx(8 * 10 * rows["masked"][3] / 1e3)
    assert slow.seconds == pytest.approx(sum(sum(slow.wall[row[0]].values()) for row in slow.rows()))


def test_print_shows_every_stage_and_what_takes_most() -> None:
    text = str(predict(100, threat_model=MAL))
    first = [line.split()[0] for line in text.splitlines()]
    assert [word for word in first if word in ("roster", *STAGES)] == ["roster", *STAGES]
    assert "n=100, k=99, t=56, dim=10, bits=23" in text
    assert "a sum of 100" in text
    assert "most of client: " in text


def test_the_work_adds_up_to_the_rows() -> None:
    found = predict(60, 100, threat_model=MAL, dropping=0.1)
    for who, spent in zip(("client", "server"), total(found), strict=True):
        assert sum(found.work[who].values()) == pytest.approx(spent + found.roster[1])
        assert list(found.work[who].values()) == sorted(found.work[who].values(), reverse=True)


# --------------------------------------------------------------------------------------------- measure


@pytest.mark.parametrize("signed", [False, True])
def test_every_operation_is_measured(signed: bool) -> None:
    found = measure(bits=23, dim=1000, holders=20, threshold=11, signed=signed)
    assert all(getattr(found, name) >= 0.0 for name in OPERATIONS)
    for name in (
        "key",
        "agree",
        "point",
        "sign",
        "verify",
        "seal",
        "unseal",
        "commitment",
        "stream",
        "member",
    ):
        assert getattr(found, name) > 0.0
    assert set(found.overhead) == {stage for stage in STAGES if signed or stage != "signatures"}


def test_measuring_goes_by_itself_and_at_any_size() -> None:
    found = estimate(10**8, 1 << 30, bound=2, corrupted=0.3, dropout=0.3)
    assert found.parameters.degree > 300
    assert all(cost >= 0.0 for row in found.rows() for cost in (row[1], row[5]))


def test_nothing_of_the_command_is_imported() -> None:
    code = (
        "import sys, protocols.estimate; print([m for m in ('rich', 'click', 'fedavg') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


# ---------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        ({"n": 0}, LocalError, "clients: expected 1 to 100000000, got 0"),
        ({"n": 10**8 + 1}, LocalError, "clients: expected 1 to 100000000, got 100000001"),
        ({"n": 2}, Infeasible, "at least 3 are needed"),
        ({"n": 2.0}, LocalError, "clients: expected an integer, got 2.0"),
        ({"dim": 0}, LocalError, "dim: expected 1 to"),
        ({"bound": 1}, LocalError, "bound: expected 2 to"),
        ({"bound": 1 << 62}, Infeasible, "needs 67 bits, so that no sum can wrap; 64 are available"),
        ({"n": 10**5}, Infeasible, "the complete graph takes at most 65536 clients, got 100000: use secagg+"),
        ({"protocol": "paillier"}, LocalError, "protocol: expected one of secagg, secagg+"),
        ({"threat_model": "kind"}, LocalError, "threat model: expected one of"),
        ({"protocol": "secagg+", "threat_model": MAL}, Infeasible, "not offered against a malicious server"),
        ({"dropout": 1.0}, LocalError, "dropout: expected a fraction"),
        ({"corrupted": 0.6, "dropout": 0.5}, Infeasible, "fewer than 2 honest contributors"),
        ({"dropping": 1.0}, LocalError, "dropping: expected a fraction from 0 to below 1, got 1.0"),
        ({"dropping": float("nan")}, LocalError, "dropping: expected a fraction"),
        ({"dropping": True}, LocalError, "dropping: expected a fraction"),
        ({"at": "signatures"}, LocalError, "at: expected one of keys, shares, masked, reveals in the honest"),
        ({"at": "lunch"}, LocalError, "at: expected one of"),
        ({"dropping": 0.8}, Infeasible, "16 of 20 clients drop out at masked: 4 clients are in the sum, at"),
        ({"dropping": 0.8, "at": "reveals"}, Infeasible, "4 holders of a secret are left, at least 11 are"),
        (
            {"dropping": 0.5, "at": "signatures", "threat_model": MAL},
            Infeasible, "10 clients sign for the sum, at least 12 are needed; the session withstands 2",
        ),
        (
            {"n": 10**8, "protocol": "secagg+", "threat_model": SEMI},
            Infeasible, "a message would need a string of 6,400,000,000 bytes: below 4 GiB are possible",
        ),
        ({"cores": 0}, LocalError, "cores: expected 1 to"),
        ({"aggregators": 21}, LocalError, "aggregators: expected 1 to 20, got 21"),
        ({"fanout": 1}, LocalError, "fanout: expected 2 to"),
        ({"name_bytes": 0}, LocalError, "name_bytes: expected 1 to 255, got 0"),
    ],
)  # fmt: skip
def test_impossible_input_is_refused(given: dict[str, Any], kind: type, message: str) -> None:
    with pytest.raises(LocalError) as caught:
        predict(**{"n": 20, **given})
    assert type(caught.value) is kind
    assert message in str(caught.value)


@pytest.mark.parametrize("name", ["up", "down", "server", "latency"])
@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf"), True, "fast", None])
def test_a_link_is_positive_numbers(name: str, value: Any) -> None:
    with pytest.raises(LocalError, match=f"link: {name}: expected a positive number, got"):
        Link(**{name: value})


def test_a_link_may_be_without_latency_but_not_without_speed() -> None:
    assert Link(latency=0).latency == 0
    with pytest.raises(LocalError):
        Link(up=0.0)


@pytest.mark.parametrize("dropping", [0.1, 0.2, 0.3, 0.4])
@pytest.mark.parametrize("at", STAGES)
def test_what_would_abort_is_refused_and_nothing_else(dropping: float, at: str) -> None:
    agreed = {"threat_model": MAL, "dropout": 0.2, "corrupted": 0.05}
    names = {f"client-{i:02}": at for i in range(round(20 * dropping))}
    real = simulate(20, dim=2, bound=2, drop=names, **agreed)
    try:
        predict(20, bound=2, dropping=dropping, at=at, **agreed)
    except Infeasible:
        assert isinstance(real.result, Aborted)
    else:
        assert not isinstance(real.result, Aborted)


# ------------------------------------------------------------------------------------ what remains


def test_what_remains_of_sessions_is_solved_for_and_never_negative() -> None:
    sizes, beyond = (4, 14, 40), (5.0, 3.0, 0.25)
    terms = {n: (1.0, float(n), n * (n - 1.0)) for n in sizes}
    counted = {n: 10.0 * n for n in sizes}
    spent = {n: counted[n] + sum(a * b for a, b in zip(terms[n], beyond, strict=True)) for n in sizes}
    assert _fit(terms, spent, counted) == pytest.approx(beyond)
    assert _fit(terms, counted, counted) == (0.0, 0.0, 0.0)
    assert _fit(terms, {n: 0.9 * counted[n] for n in sizes}, counted) == (0.0, 0.0, 0.0)
    steps = {n: counted[n] + 100.0 - n for n in sizes}  # the less, the larger: by none of the terms alone
    assert min(_fit(terms, steps, counted)) >= 0.0
    # A term that nothing was measured of takes nothing.
    flat = {n: (1.0, float(n), 0.0) for n in sizes}
    assert _fit(flat, {n: counted[n] + 7.0 for n in sizes}, counted) == pytest.approx((7.0, 0.0, 0.0))
