"""`fedavg.adapters.opening`: settings, floors and openings as a framework carries them, what they make."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedavg.adapters.opening import Opening, Settings, placeholder, read_ranges
from fedavg.adapters.site import Site, read_policy
from protocols.errors import Infeasible, LocalError, RemoteError
from protocols.graph import HONEST_BUT_CURIOUS, MALICIOUS, SEMI_MALICIOUS, THREAT_MODELS
from protocols.journal import MemoryJournal, SqliteJournal
from protocols.roster import generate_party, write_roster
from protocols.session import Policy, Session

NAMES = ("graz", "oslo", "pisa", "york")


# ---------------------------------------------------------------------------------------------- settings


def test_nothing_set() -> None:
    settings = Settings.of({})
    assert settings == Settings()
    assert (settings.protocol, settings.threat_model) == ("secagg", "honest-but-curious")
    assert (settings.clipping_norm, settings.norm, settings.max_weight) == (10.0, "l2", 10_000)
    assert (settings.bits, settings.ring_bits, settings.degree, settings.threshold) == (0, 0, 0, 0)
    assert (settings.train_metrics, settings.evaluate_metrics) == ("", "")
    assert (settings.weight_key, settings.timeout) == ("num-examples", 60.0)
    assert (settings.corrupted, settings.dropout, settings.min_included) == (0.1, 0.1, 0)


OTHERS: dict[str, Any] = {
    "protocol": "secagg+", "threat_model": MALICIOUS, "corrupted": 0.25, "dropout": 0.0, "min_included": 7,
    "degree": 16, "threshold": 9, "clipping_norm": 1.5, "norm": "max", "max_weight": 3, "bits": 8,
    "ring_bits": 40, "train_metrics": "loss:0:10", "evaluate_metrics": "a:0:1,b:-1:1",
    "weight_key": "n", "max_records": 9, "timeout": 5.0, "delta": 1e-6, "rounds": 30,
}  # fmt: skip


def test_every_key() -> None:
    assert set(OTHERS) | {"epsilon"} == set(Settings.__struct_fields__)
    config = {f"secagg-{name.replace('_', '-')}": value for name, value in OTHERS.items()}
    foreign = {"learning-rate": 0.1, "secagg": 7, "num-server-rounds": 3, "secagg-roster": "/a/roster"}
    found = Settings.of(config | foreign)
    assert msgspec.to_builtins(found) == OTHERS | {"epsilon": 0.0}
    for name, value in OTHERS.items():
        one = Settings.of({f"secagg-{name.replace('_', '-')}": value})
        assert getattr(one, name) == value
        assert msgspec.structs.replace(one, **{name: getattr(Settings(), name)}) == Settings()


def test_noise_makes_weights_alike() -> None:
    """Unless a largest one is named: else a usual hospital's update would be lost in the noise."""
    noisy = {"secagg-epsilon": 3.0, "secagg-rounds": 10}
    assert Settings.of(noisy).max_weight == 1
    assert Settings.of(noisy | {"secagg-max-weight": 500}).max_weight == 500
    assert (Settings.of(noisy).epsilon, Settings.of(noisy).delta) == (3.0, 1e-5)


def test_defaults_are_for_what_is_not_configured() -> None:
    found = Settings.of({"secagg-bits": 9}, bits=8, norm="max")
    assert (found.bits, found.norm) == (9, "max")
    assert Settings.of({}, clipping_norm=3).clipping_norm == 3.0


@pytest.mark.parametrize(
    "key", ["secagg-clipping-nrom", "secagg-clipping_norm", "secagg-", "secagg-identity", "secagg-Bits"]
)
def test_no_such_setting(key: str) -> None:
    with pytest.raises(
        LocalError, match=f"^{key}: there is no such setting; expected one of secagg-clipping-norm, "
    ):
        Settings.of({key: 1})


def test_no_such_default() -> None:
    with pytest.raises(LocalError, match=r"^settings: .*clipping_nrom"):
        Settings.of({}, clipping_nrom=1.0)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("protocol", 1), ("threat-model", b"malicious"), ("corrupted", "0.1"), ("corrupted", True),
        ("min-included", 2.5), ("min-included", True), ("max-weight", "7"), ("max-weight", None),
        ("bits", 16.5), ("norm", "l1"), ("norm", 2), ("timeout", "60"), ("timeout", 0.0), ("timeout", -1.0),
        ("timeout", float("nan")), ("weight-key", 3), ("train-metrics", ["loss"]), ("train-metrics", "loss"),
        ("evaluate-metrics", "a:1:0"), ("clipping-norm", "10"), ("clipping-norm", [10.0]),
    ],
)  # fmt: skip
def test_wrong_types_and_values(key: str, value: Any) -> None:
    with pytest.raises(LocalError):
        Settings.of({f"secagg-{key}": value})


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", {}), (" , ,", {}), ("loss:0:10", {"loss": (0.0, 10.0)}),
        ("loss:0:10, accuracy:0:1", {"loss": (0.0, 10.0), "accuracy": (0.0, 1.0)}),
        ("b:-1:1,a:-1e3:1e-3", {"b": (-1.0, 1.0), "a": (-1e3, 1e-3)}),
        ("val:auc:0:1", {"val:auc": (0.0, 1.0)}), (" a b :0:1", {"a b ": (0.0, 1.0)}),
    ],
)  # fmt: skip
def test_ranges(text: str, found: dict[str, tuple[float, float]]) -> None:
    assert read_ranges(text) == found
    assert list(read_ranges(text)) == list(found)


@pytest.mark.parametrize(
    "text",
    [
        "loss", "loss:1", "loss:0", ":0:1", "loss:1:1", "loss:2:1", "loss:a:b", "loss:nan:1", "loss:0:nan",
        "loss:0:inf", "loss:-1e200:0", "loss:0:1, loss:0:2", "loss:0:",
    ],
)  # fmt: skip
def test_no_ranges(text: str) -> None:
    with pytest.raises(LocalError, match=r"^metrics: expected"):
        read_ranges(text)


@pytest.mark.parametrize("cohort", [3, 5, 10, 99, 1000, 1 << 16])
def test_the_grid_fills_words(cohort: int) -> None:
    """As many bits as fit 32 with the sum of all; a setting goes before."""
    codec = Settings().codec(7, {"loss": (0.0, 1.0)}, cohort)
    assert (codec.dim, codec.length, codec.metrics) == (7, 9, ((0.0, 1.0),))
    assert (codec.bound - 1) * cohort < 1 << 32
    # Within one bit of the most that fits, unless a whole number of words holds exactly that.
    assert (codec.bound - 1) * 4 * cohort >= 1 << 32 or codec.bound == Settings().max_weight + 1
    assert Settings(bits=8).codec(7, {}, cohort).bits == 8


# ------------------------------------------------------------------------------------------------- floors


def test_floors() -> None:
    assert read_policy("", pinned=False) == Policy(3, 3, 0.0, THREAT_MODELS)
    assert read_policy("", pinned=True) == Policy(3, 3, 0.1, (MALICIOUS,))
    text = "malicious+semi-malicious, cohort:5, included:4, corrupted:0.2"
    for parts in (text, ", ".join(reversed(text.split(","))), text.replace(" ", ""), text + ","):
        assert read_policy(parts, pinned=True) == Policy(5, 4, 0.2, (MALICIOUS, SEMI_MALICIOUS))
    assert read_policy("honest-but-curious", pinned=True) == Policy(3, 3, 0.1, (HONEST_BUT_CURIOUS,))
    assert read_policy("cohort:9", pinned=False) == Policy(9, 3, 0.0, THREAT_MODELS)


@pytest.mark.parametrize(
    "text",
    [
        "malicous", "malicious+", "+", "cohort", "cohort:", "cohort:many", "cohort:2.5", "included:x",
        "corrupted:", "corrupted:a lot", "dropout:0.1", "malicious;cohort:5", "cohort:5:6", ":5",
        "malicious semi-malicious", "corrupted:nan", "corrupted:-0.1", "cohort:-1",
        "malicious, honest-but-curious", "cohort:5, cohort:3",
    ],
)  # fmt: skip
def test_no_floors(text: str) -> None:
    """Least of all may a floor be taken for none, or for its weaker part."""
    with pytest.raises(LocalError, match=r"^secagg-policy: expected threat models \(honest-but-curious\+"):
        read_policy(text, pinned=True)


# ----------------------------------------------------------------------------------------------- openings


def opening(**fields: Any) -> Opening:
    given = {"settings": Settings(), "round": 1, "cohort": list(NAMES), "length": 5, "bound": 100,
             "instruction": bytes(32)}  # fmt: skip
    return Opening(**(given | fields))


numbers = st.floats(0.0, 0.9)
openings = st.builds(
    Opening,
    st.builds(Settings, corrupted=numbers, bits=st.integers(0, 32), weight_key=st.text(max_size=9)),
    st.integers(0, 1 << 63), st.lists(st.text(max_size=9), max_size=5), st.integers(0, 1 << 40),
    st.integers(0, 1 << 63), st.binary(max_size=40),
)  # fmt: skip


@given(openings)
def test_there_and_back(made: Opening) -> None:
    assert Opening.from_bytes_checked(made.to_bytes()) == made


@given(st.binary(max_size=400))
def test_hostile_bytes(data: bytes) -> None:
    with pytest.raises(RemoteError, match="opening of the round"):
        Opening.from_bytes_checked(data)


@given(openings, st.data())
def test_a_byte_changed(made: Opening, data: st.DataObject) -> None:
    """Another opening, encoded as it should be, or refused: never the same by other bytes."""
    plain = made.to_bytes()
    at = data.draw(st.integers(0, len(plain) - 1))
    changed = plain[:at] + bytes([plain[at] ^ data.draw(st.integers(1, 255))]) + plain[at + 1 :]
    try:
        found = Opening.from_bytes_checked(changed)
    except RemoteError:
        return
    assert found.to_bytes() == changed
    assert found != made or changed == plain


def test_bytes_that_are_no_opening() -> None:
    good = opening().to_bytes()
    fields = msgspec.msgpack.decode(good)
    bad = [b"", good[:-1], good + b"\x00", b"\xc0", b"\x91" * 5000,
           msgspec.msgpack.encode(fields | {"more": 1}),
           msgspec.msgpack.encode(dict(reversed(fields.items()))),
           msgspec.msgpack.encode(fields | {"round": "1"}), msgspec.msgpack.encode(fields | {"cohort": [1]}),
           msgspec.msgpack.encode({k: v for k, v in fields.items() if k != "bound"}),
           msgspec.msgpack.encode(fields | {"settings": fields["settings"] | {"norm": "l3"}}),
           good.replace(b"york", b"yor\xff")]  # fmt: skip
    for data in bad:
        with pytest.raises(RemoteError):
            Opening.from_bytes_checked(data)


# ----------------------------------------------------------------------------------------------- sessions

ROSTER = {name: placeholder(f"key of {name}").public for name in (*NAMES, "rome", "kiel", "bonn", "lyon")}


def test_a_session_without_identities() -> None:
    session = opening(settings=Settings(dropout=0.0, min_included=4, ring_bits=33)).session("t", None)
    assert session.names == NAMES
    assert session.identities == tuple(placeholder(name).public for name in NAMES)
    assert (session.dim, session.bound, session.task, session.round) == (5, 100, "t", 1)
    assert (session.min_included, session.ring.bits, session.threat_model) == (4, 33, HONEST_BUT_CURIOUS)
    assert not session.signed


@pytest.mark.parametrize("model", [MALICIOUS, SEMI_MALICIOUS, "none of them"])
def test_other_models_need_identities(model: str) -> None:
    with pytest.raises(
        LocalError, match=r"needs identities that were agreed on.*secagg keygen.*secagg-identity"
    ):
        opening(settings=Settings(threat_model=model)).session("t", None)


def test_a_session_with_a_roster() -> None:
    made = opening(settings=Settings(threat_model=MALICIOUS, corrupted=0.0))
    session = made.session("t", ROSTER)
    assert dict(zip(session.names, session.identities, strict=True)) == {n: ROSTER[n] for n in NAMES}
    assert session.signed


def test_names_that_are_wrong() -> None:
    with pytest.raises(LocalError, match=r"^cohort: paris, rom: not in this party's roster$"):
        opening(cohort=["rom", *NAMES, "paris"]).session("t", ROSTER)
    for roster in (ROSTER, None):
        with pytest.raises(LocalError, match="a name stands there twice"):
            opening(cohort=[*NAMES, "oslo"]).session("t", roster)
        for few in ([], ["oslo"], ["oslo", "pisa"]):
            with pytest.raises(LocalError, match=f"a cohort of {len(few)}|expected a positive number"):
                opening(cohort=few).session("t", roster)
    for name in ("", "server", "x" * 256):
        with pytest.raises(LocalError, match="name"):
            opening(cohort=[*NAMES, name]).session("t", None)


def test_corrupted_counts_over_the_whole_roster() -> None:
    """The server picks the cohort: all that are corrupted may be in it."""
    made = Settings(threat_model=MALICIOUS, corrupted=0.25, dropout=0.0)
    sampled = opening(settings=made, cohort=["graz", "oslo", "pisa", "york", "rome", "kiel"])
    session = sampled.session("t", ROSTER)  # 2 of 8
    assert session.parameters.corrupted == 2
    assert session.corrupted == pytest.approx(2 / 6)
    with pytest.raises(Infeasible):  # half of four
        opening(settings=msgspec.structs.replace(made, corrupted=0.26, dropout=0.25)).session("t", ROSTER)
    # A fraction that floats put just below a whole number is that number.
    third = Settings(threat_model=MALICIOUS, corrupted=0.29, dropout=0.0)
    large = {f"s{i:03}": placeholder(f"k{i}").public for i in range(100)}
    part = opening(settings=third, cohort=sorted(large)[:80]).session("t", large)
    assert part.parameters.corrupted == 29


def test_sessions_differ_in_everything() -> None:
    made = opening(settings=Settings(corrupted=0.1))
    hashes = {made.session("t", None).hash, made.session("u", None).hash, made.session("t", ROSTER).hash}
    for name, value in OTHERS.items():
        if name in ("threat_model", "min_included", "degree", "threshold"):
            continue
        other = msgspec.structs.replace(
            made, settings=msgspec.structs.replace(made.settings, **{name: value})
        )
        hashes.add(other.session("t", None).hash)
    for fields in ({"round": 2}, {"length": 6}, {"bound": 101}, {"instruction": bytes(31) + b"\x01"},
                   {"cohort": [*NAMES, "rome"]}):  # fmt: skip
        hashes.add(opening(**fields).session("t", None).hash)
    assert len(hashes) == 3 + len(OTHERS) - 4 + 5


@given(
    st.floats(), st.floats(), st.integers(-(1 << 63), 1 << 63), st.integers(-5, 1 << 63),
    st.integers(-5, 100),
    st.sampled_from([*THREAT_MODELS, "", "x"]), st.sampled_from(["secagg", "secagg+", "", "os"]),
    st.booleans(), st.lists(st.sampled_from([*ROSTER]), max_size=6),
)  # fmt: skip
def test_an_opening_of_a_hostile_server(
    corrupted: float, dropout: float, number: int, length: int, small: int, model: str, protocol: str,
    pinned: bool, cohort: list[str],
) -> None:  # fmt: skip
    """Whatever stands in it: a session, or one of our errors."""
    made = Settings(corrupted=corrupted, dropout=dropout, threat_model=model, protocol=protocol,
                    degree=small, threshold=small, ring_bits=small, min_included=small)  # fmt: skip
    try:
        session = opening(settings=made, round=number, length=length, bound=length, cohort=cohort).session(
            "t", ROSTER if pinned else None
        )
    except LocalError:
        return
    assert isinstance(session, Session)
    assert len(set(cohort)) == len(cohort) >= 3


def test_placeholders() -> None:
    assert placeholder("a").public == placeholder("a").public != placeholder("b").public


# -------------------------------------------------------------------------------------------------- sites


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    publics = [generate_party(name, tmp_path)[1] for name in NAMES]
    write_roster(tmp_path / "roster.json", publics)
    return tmp_path


def config(folder: Path, name: str = "oslo", **more: str) -> dict[str, Any]:
    files = {"secagg-identity": str(folder / f"{name}.key"), "secagg-roster": str(folder / "roster.json")}
    return files | {f"secagg-{k}": v for k, v in more.items()}


def test_a_site_without_an_identity() -> None:
    site = Site.of({"partition-id": 3, "secagg-policy": "cohort:4"}, "17", None)
    assert (site.name, site.roster, site.key) == ("17", None, None)
    assert site.identity.public == placeholder("17").public
    assert site.policy.min_cohort == 4
    assert isinstance(site.journal, MemoryJournal)
    site.journal.commit(bytes(32), 1, bytes, (b"i", "t", 3))
    again = Site.of({}, "17", site.journal.dump())
    assert again.journal.last_answered(b"i", "t") == 3
    with pytest.raises(LocalError, match="journal: what was kept of it cannot be read"):
        Site.of({}, "17", b"\xff")


def test_a_site_with_an_identity(folder: Path) -> None:
    site = Site.of(config(folder), "17", None)
    assert site.name == "oslo"
    assert site.roster is not None
    assert set(site.roster) == set(NAMES)
    assert site.identity.public == site.roster["oslo"]
    assert site.policy.threat_models == (MALICIOUS,)
    assert isinstance(site.journal, SqliteJournal)
    assert (folder / "oslo.journal").is_file()
    assert site.key is not None
    assert len(site.key) == 32
    site.journal.commit(bytes(32), 1, bytes, (b"i", "t", 3))
    assert Site.of(config(folder), "99", None).journal.last_answered(b"i", "t") == 3
    assert "oslo" not in repr(site.key)


@pytest.mark.parametrize("missing", ["secagg-identity", "secagg-roster"])
def test_half_an_identity(folder: Path, missing: str) -> None:
    own = config(folder)
    del own[missing]
    with pytest.raises(LocalError, match="expected both secagg-identity and secagg-roster"):
        Site.of(own, "17", None)


def test_files_that_do_not_fit(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other")
    generate_party("oslo", other)  # the name, and another key
    generate_party("rome", other)  # not in the roster
    for name in ("oslo", "rome"):
        own = config(folder) | {"secagg-identity": str(other / f"{name}.key")}
        with pytest.raises(LocalError, match=f"roster: '{name}' is not in it with the key of this site's"):
            Site.of(own, "17", None)
    for key, value in (("secagg-identity", str(folder / "none.key")), ("secagg-roster", str(folder)),
                       ("secagg-identity", str(folder / "oslo.pub")), ("secagg-identity", 7)):  # fmt: skip
        with pytest.raises(LocalError):
            Site.of(config(folder) | {key: value}, "17", None)
    with pytest.raises(LocalError, match="secagg-policy"):
        Site.of(config(folder, policy="lax"), "17", None)


@pytest.mark.skipif(os.name != "posix", reason="no POSIX permissions")
def test_an_identity_that_others_can_read(folder: Path) -> None:
    shutil.copy(folder / "oslo.key", folder / "copy.key")
    (folder / "copy.key").chmod(0o644)
    with pytest.raises(LocalError, match="others may read or write this secret"):
        Site.of(config(folder, "copy"), "17", None)
