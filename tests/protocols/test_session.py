"""What a session, a policy and an input refuse, and that the session's hash depends on every field."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from protocols.errors import Infeasible, LocalError
from protocols.graph import THREAT_MODELS
from protocols.machine import Input, Received, StageClosed, Started
from protocols.session import Policy, Session, hash_model
from secagg.keys import Identity
from secagg.prg import accumulate, threaded
from secagg.randomness import seeded

NAMES = tuple("abcdefgh")
IDENTITIES = {n: Identity.generate(seeded(n.encode())) for n in (*NAMES, "z")}
ROSTER = {n: IDENTITIES[n].public for n in NAMES}


def session(roster: Any = ROSTER, dim: Any = 3, bound: Any = 100, **agreed: Any) -> Session:
    return Session(roster, dim, bound, **agreed)


# ------------------------------------------------------------------------------------------- numbers

NOT_INTEGERS = [1.0, 2.5, "3", None, True, b"3", [3], 3 + 0j, float("nan"), float("inf"), np.float64(3)]


@pytest.mark.parametrize("value", NOT_INTEGERS)
@pytest.mark.parametrize("field", ["dim", "bound", "round", "attempt", "min_included"])
def test_only_integers(field, value):
    if field == "min_included" and value is None:
        pytest.skip("the default")
    with pytest.raises(LocalError, match=f"{field}: expected an integer"):
        session(**{field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("dim", 0), ("dim", -1), ("dim", (1 << 40) + 1), ("bound", 1), ("bound", 0), ("bound", -5),
        ("bound", (1 << 64) + 1), ("round", -1), ("round", 1 << 63), ("attempt", -1), ("attempt", 1 << 63),
        ("min_included", 2), ("min_included", 4), ("min_included", 9),
    ],
)  # fmt: skip
def test_out_of_range(field, value):
    with pytest.raises(LocalError, match=f"{field}: expected .* to .*, got"):
        session(**{field: value})


@pytest.mark.parametrize("kind", [np.int8, np.uint16, np.int64, np.uint64])
def test_numpy_integers_are_integers(kind):
    made = session(dim=kind(3), bound=kind(100), round=kind(1))
    assert made.hash == session(round=1).hash
    assert {type(v) for v in (made.dim, made.bound, made.round)} == {int}


@pytest.mark.parametrize("field", ["corrupted", "dropout"])
@pytest.mark.parametrize("value", [-0.1, 1.0, 1, 2, float("nan"), float("inf"), "0.1", None, True, [0.1]])
def test_fractions(field, value):
    with pytest.raises(LocalError, match=f"{field}: expected a fraction"):
        session(**{field: value})


@pytest.mark.parametrize("protocol", ["SecAgg", "", "lightsecagg", None, 1, ["secagg"]])
def test_unknown_protocol(protocol):
    with pytest.raises(LocalError, match="protocol: expected one of secagg, secagg"):
        session(protocol=protocol)


@pytest.mark.parametrize("model", ["Malicious", "", "honest", None, 1])
def test_unknown_threat_model(model):
    with pytest.raises(LocalError, match="threat model: expected one of"):
        session(threat_model=model)


@pytest.mark.parametrize("task", [None, 1, b"task", "x" * 256, "ä" * 128])
def test_bad_task(task):
    with pytest.raises(LocalError, match="task: expected a string"):
        session(task=task)


@pytest.mark.parametrize("model_hash", [b"", bytes(31), bytes(33), "0" * 32, None, bytearray(32), 32])
def test_bad_model_hash(model_hash):
    with pytest.raises(LocalError, match="model_hash: expected 32 bytes"):
        session(model_hash=model_hash)


# -------------------------------------------------------------------------------------------- groups


@pytest.mark.parametrize("bits", [8, 9])
def test_bits_below_what_the_sum_needs(bits):
    with pytest.raises(Infeasible, match="so that no sum can wrap"):
        session(bits=bits)  # 8 * 99 takes ten


def test_least_bits_hold_the_greatest_sum():
    for n in (3, 4, 5, 8):
        for bound in (2, 3, 100, 2**8, 2**16, 2**20 + 1, 2**60):
            made = session({m: ROSTER[m] for m in NAMES[:n]}, bound=bound, corrupted=0, dropout=0)
            assert n * (bound - 1) < 1 << made.ring.bits
            assert made.ring.bits == 8 or n * (bound - 1) >= 1 << (made.ring.bits - 1)


@pytest.mark.parametrize("bound", [1 << 61, (1 << 61) + 2, 1 << 62, 1 << 64])
def test_bound_that_overflows_for_the_cohort(bound):
    if bound == 1 << 61:
        assert session(bound=bound).ring.bits == 64
        return
    with pytest.raises(Infeasible, match="lower the bound or split the cohort"):
        session(bound=bound)


@pytest.mark.parametrize("bits", [7, 0, -1, 65, 128, 16.0, "16", True])
def test_bits_that_no_ring_has(bits):
    with pytest.raises(LocalError, match="bits"):
        session(bits=bits)


# ------------------------------------------------------------------------------------------- rosters


@pytest.mark.parametrize("n", [0, 1, 2])
@pytest.mark.parametrize("model", THREAT_MODELS)
def test_too_few_clients(n, model):
    with pytest.raises(LocalError, match="cohort"):
        session({m: ROSTER[m] for m in NAMES[:n]}, threat_model=model)


@pytest.mark.parametrize("name", ["", "x" * 256, "ä" * 128, "server"])
def test_bad_names(name):
    with pytest.raises(LocalError, match="name: "):
        session({**ROSTER, name: IDENTITIES["z"].public})


@pytest.mark.parametrize("name", [1, None, b"a", ("a",), 1.5])
def test_names_that_are_no_strings(name):
    with pytest.raises(LocalError, match="name: expected a string"):
        session({**ROSTER, name: IDENTITIES["z"].public})


@pytest.mark.parametrize("where", ["name", "task"])
def test_text_that_is_no_unicode(where):
    changed = (
        {"roster": {**ROSTER, "\ud800": IDENTITIES["z"].public}} if where == "name" else {"task": "\ud800"}
    )
    with pytest.raises(LocalError, match=f"{where}: expected a string"):
        session(**changed)


def test_reserved_name_says_whose_it_is():
    with pytest.raises(LocalError, match="'server' is the server's own"):
        session({**ROSTER, "server": IDENTITIES["z"].public})
    session({**ROSTER, "Server": IDENTITIES["z"].public, "x" * 255: Identity.generate().public})


def test_duplicate_identities():
    with pytest.raises(LocalError, match="two clients have the same identity"):
        session({**ROSTER, "z": ROSTER["a"]})


@pytest.mark.parametrize("identity", [b"", bytes(31), bytes(33), bytes(64)])
def test_identity_of_the_wrong_length(identity):
    with pytest.raises(LocalError, match="roster: 'z': identity: expected 32 bytes"):
        session({**ROSTER, "z": identity})


@pytest.mark.parametrize(
    "identity", [32, None, "x" * 32, IDENTITIES["z"], bytearray(32), memoryview(bytes(32))]
)
def test_identity_of_another_type(identity):
    with pytest.raises(LocalError):
        session({**ROSTER, "z": identity})


def test_order_of_the_roster_does_not_matter():
    assert session(dict(reversed(ROSTER.items()))).hash == session().hash
    assert session(dict(reversed(ROSTER.items()))).names == NAMES


def test_wrong_identity():
    with pytest.raises(LocalError, match="another identity for 'a'"):
        session().client("a", IDENTITIES["b"])
    with pytest.raises(LocalError, match="'z' is not in the roster"):
        session().client("z", IDENTITIES["z"])


# ---------------------------------------------------------------------------------------------- hash

FIELDS = {
    "names": {"roster": {("y" if n == "a" else n): k for n, k in ROSTER.items()}},
    "identities": {"roster": {**ROSTER, "a": IDENTITIES["z"].public}},
    "swapped identities": {"roster": {**ROSTER, "a": ROSTER["b"], "b": ROSTER["a"]}},
    "one client fewer": {"roster": {n: ROSTER[n] for n in NAMES[:7]}},
    "one client more": {"roster": {**ROSTER, "z": IDENTITIES["z"].public}},
    "dim": {"dim": 4},
    "bound": {"bound": 101},
    "protocol": {"protocol": "secagg+"},
    "semi-malicious": {"threat_model": "semi-malicious"},
    "malicious": {"threat_model": "malicious"},
    "corrupted": {"corrupted": 0.25},
    "dropout": {"dropout": 0.25},
    "task": {"task": "another"},
    "round": {"round": 1},
    "attempt": {"attempt": 1},
    "model_hash": {"model_hash": bytes(31) + b"\1"},
    "bits": {"bits": 11},
    "min_included": {"min_included": 6},
    "threshold": {"threshold": 4},
}


def test_hash_changes_with_every_field():
    hashes = {"agreed": session().hash} | {what: session(**change).hash for what, change in FIELDS.items()}
    assert len(set(hashes.values())) == len(hashes)
    assert {len(h) for h in hashes.values()} == {32}


@pytest.mark.parametrize("what", FIELDS)
def test_hash_is_the_same_for_the_same_field(what):
    assert session(**FIELDS[what]).hash == session(**FIELDS[what]).hash


def test_hash_of_a_sparse_cohort_changes_with_its_degree():
    roster = {f"{i:02}": Identity.generate(seeded(bytes([i]))).public for i in range(60)}
    agreed = {"protocol": "secagg+", "corrupted": 0.0, "dropout": 0.0}
    one, two = (session(roster, degree=degree, threshold=9, **agreed) for degree in (20, 22))
    assert not one.complete
    assert one.hash != two.hash


def test_names_cannot_be_moved_into_their_neighbours():
    """Boundaries between fields are part of what is hashed."""
    keys = [IDENTITIES[n].public for n in "abc"]
    hashes = {
        session(dict(zip(names, keys, strict=True)), task=task, corrupted=0, dropout=0).hash
        for names, task in (
            (("a", "bc", "d"), ""),
            (("ab", "c", "d"), ""),
            (("a", "b", "cd"), ""),
            (("a", "b", "c"), "d"),
        )
    }
    assert len(hashes) == 4


def test_model_hash_tells_models_apart():
    models = [
        (), ([],), ([1, 2],), ([1], [2]), ([[1, 2]],), ([[1], [2]],), ([1.0, 2.0],),
        (np.array([1, 2], np.int32),), (np.array([1, 2], ">i8"),), ([2, 1],), ([1, 2], []), ([0.0],),
        ([-0.0],),
    ]  # fmt: skip
    assert len({hash_model(*m) for m in models}) == len(models)
    array = np.arange(12).reshape(3, 4)
    assert hash_model(array[:, ::2]) == hash_model(array[:, ::2].copy())
    assert hash_model(array.T) == hash_model(np.ascontiguousarray(array.T))


@pytest.mark.parametrize("array", [[object()], [None], {"a": 1}])
def test_model_of_objects_has_no_hash(array):
    with pytest.raises(LocalError, match="got objects"):
        hash_model(array)


# --------------------------------------------------------------------------------------------- input


@pytest.mark.parametrize(
    "values",
    [
        [1, 2], [1, 2, 3, 4], [[1, 2, 3]], [[1], [2], [3]], 1, None, [], np.zeros((3, 1), int), "abc",
        {1, 2, 3},
    ],
)  # fmt: skip
def test_input_of_the_wrong_shape(values):
    with pytest.raises(LocalError, match="input: expected 3 entries"):
        session().vector(values)


@pytest.mark.parametrize(
    "values",
    [
        [1.0, 2.0, 3.0], [1, 2, 3.0], [1, 2, float("nan")], [True, False, True], ["1", "2", "3"],
        [1, 2, None],
        [1j, 2, 3], np.array([1, 2, 3], np.float32), np.array([1, 2, 3], object), [b"a", b"b", b"c"],
        np.array([1, 2, 3], "m8[s]"), np.array([1, 2, 3], "M8[s]"), [1, 2, 1 << 64], [-1, 2, 1 << 63],
    ],
)  # fmt: skip
def test_input_that_is_no_integers(values):
    with pytest.raises(LocalError, match="input: expected integers, got"):
        session().vector(values)


@pytest.mark.parametrize(
    "values", [[-1, 0, 0], [0, 100, 0], np.array([1 << 63, 0, 0], np.uint64), [-(1 << 63), 0, 0], [9, 9, 101]]
)
def test_input_out_of_range(values):
    with pytest.raises(LocalError, match="input: expected entries from 0 to 99"):
        session().vector(values)


def test_ragged_input():
    with pytest.raises(LocalError, match="rows of different lengths"):
        session().vector([[1], [1, 2], 3])


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int64, np.uint64, ">i4", "<u2"])
def test_input_of_any_integer_dtype_is_brought_into_the_ring(kind):
    vector = session().vector(np.array([0, 99, 7], kind))
    assert vector.dtype == session().ring.dtype
    assert vector.tolist() == [0, 99, 7]


def test_an_array_of_the_rings_own_dtype_is_not_copied():
    given = np.array([0, 99, 7], session().ring.dtype)
    assert session().vector(given) is given


@pytest.mark.parametrize("early", [True, False])
def test_the_callers_array_is_its_own_again_once_input_returns(early):
    """A vector that waits to be masked is a copy; one that is masked at once is only read."""
    identities = {name: Identity.generate() for name in ("a", "b", "c")}
    made = Session({name: i.public for name, i in identities.items()}, 3, 100, corrupted=0.0)
    clients = {name: made.client(name, i) for name, i in identities.items()}
    arrays = {name: np.array([1, 2, 3], made.ring.dtype) for name in clients}
    server, up = made.server(), []

    def give(name):
        sent = clients[name].handle(Input(arrays[name]))
        assert arrays[name].tolist() == [1, 2, 3]
        arrays[name][:] = 99
        return sent

    for name, client in clients.items():
        up += client.handle(Started())
        if early:
            up += give(name)
    while server.result is None:
        stage = server.stage
        down = [e for m in up for e in server.handle(Received(m))] + server.handle(StageClosed(stage))
        up = [e for m in down for e in clients[m.to].handle(Received(m))]
        if not early and stage == "shares":
            up += [e for name in clients for e in give(name)]
    assert server.result.sum.tolist() == [3, 6, 9]


@pytest.mark.parametrize("bound", [2**8, 2**16, 2**32, 2**60])
def test_input_up_to_the_bound(bound):
    made = session(bound=bound)
    assert made.vector([0, 1, bound - 1]).tolist() == [0, 1, bound - 1]
    with pytest.raises(LocalError, match=f"from 0 to {bound - 1}"):
        made.vector([0, 1, bound])


# -------------------------------------------------------------------------------------------- policy


def test_policy_accepts_what_is_on_its_floor():
    floor = Policy(min_cohort=8, min_included=5, min_corrupted=0.1, threat_models=("malicious",))
    floor.check(session(threat_model="malicious"))


@pytest.mark.parametrize(
    ("policy", "what"),
    [
        (Policy(min_cohort=9), "policy: cohort must be at least 9, the session has 8"),
        (Policy(min_corrupted=0.11), "policy: corrupted fraction withstood must be at least 0.11"),
        (Policy(threat_models=("semi-malicious",)), "policy: threat model must be one of semi-malicious"),
        (Policy(threat_models=()), "policy: threat model must be one of"),
    ],
)
def test_policy_refuses_what_is_below(policy, what):
    with pytest.raises(LocalError, match=what):
        session(threat_model="malicious").client("a", IDENTITIES["a"], policy=policy)


def test_policy_is_asked_again_when_a_client_is_restored():
    made, key = session(), bytes(32)
    client = made.client("a", IDENTITIES["a"])
    with pytest.raises(LocalError, match="policy: cohort"):
        made.restore_client(
            "a",
            IDENTITIES["a"],
            client._journal,
            snapshot=client.snapshot(key),
            key=key,
            policy=Policy(min_cohort=9),
        )


# ------------------------------------------------------------------------------------- expert's choice


@pytest.mark.parametrize("threshold", [0, 1, 2, 8, 9, -1, 4.0, True, "5"])
def test_threshold_that_breaks_the_rules(threshold):
    with pytest.raises(Infeasible, match="threshold: expected"):
        session(threshold=threshold, dropout=0.2)


@pytest.mark.parametrize("degree", [0, 6, 8, 2.5, "7"])
def test_degree_that_a_complete_graph_has_not(degree):
    with pytest.raises(Infeasible, match="degree: the complete graph on 8 clients has degree 7"):
        session(degree=degree)


def test_infeasible_is_our_callers_error():
    assert issubclass(Infeasible, LocalError)
    assert issubclass(LocalError, ValueError)


@pytest.mark.parametrize("threat_model", THREAT_MODELS)
def test_threads_and_one_thread_come_to_the_same_sum(threat_model, monkeypatch):
    monkeypatch.setattr("secagg.prg._WORTH_A_THREAD", 1)
    identities = {name: Identity.generate() for name in "abcdef"}
    roster, dim = {name: i.public for name, i in identities.items()}, 100_000
    made = Session(roster, dim, 100, threat_model=threat_model, corrupted=0.0, dropout=0.2)
    clients = {
        name: made.client(name, i, expand=threaded(2) if name < "d" else accumulate)
        for name, i in identities.items()
    }
    server = made.server(expand=threaded(3))
    up = [e for c in clients.values() for e in c.handle(Started()) + c.handle(Input(np.arange(dim) % 100))]
    while server.result is None:
        stage = server.stage
        there = [m for m in up if stage != "masked" or m.sender != "c"]
        down = [e for m in there for e in server.handle(Received(m))] + server.handle(StageClosed(stage))
        up = [e for m in down for e in clients[m.to].handle(Received(m))]
    assert server.result.included == ("a", "b", "d", "e", "f")
    assert np.array_equal(server.result.sum, np.arange(dim) % 100 * 5)


@pytest.mark.parametrize("expand", [2, None, "threaded"])
def test_what_cannot_expand_masks_is_refused_at_once(expand):
    identity = Identity.generate()
    made = Session(
        {n: Identity.generate().public for n in "ab"} | {"c": identity.public}, 3, 100, corrupted=0.0
    )
    with pytest.raises(LocalError, match="expand: expected a function"):
        made.server(expand=expand)
    with pytest.raises(LocalError, match="expand: expected a function"):
        made.client("c", identity, expand=expand)
