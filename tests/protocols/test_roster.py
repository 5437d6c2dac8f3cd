"""`protocols.roster`: files that only their owner can use, and rosters that mean one thing."""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import secagg
from protocols import roster as files
from protocols.errors import LocalError
from protocols.journal import SqliteJournal
from protocols.roster import Party, fingerprint, generate_party, read_party, read_roster, write_roster
from protocols.session import Session
from secagg.keys import Identity, verify
from secagg.randomness import seeded

NAMES = ("oslo", "pisa", "graz", "york")
QUOTED = "words of the file"
SMALL_ORDER = bytes([1]) + bytes(31)
posix = pytest.mark.skipif(os.name != "posix", reason="no POSIX permissions")


@pytest.fixture
def publics(tmp_path: Path) -> list[Path]:
    return [generate_party(name, tmp_path, rng=seeded(name.encode()))[1] for name in NAMES]


def refused(call: Callable[[], Any], *secrets: str) -> str:
    """What a `LocalError` says, that it is one line, and that neither it nor its traceback has a secret."""
    with pytest.raises(LocalError) as caught:
        call()
    text = str(caught.value)
    whole = "".join(traceback.format_exception(caught.value))
    assert not [s for s in secrets if s in whole]
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    assert text.isprintable()
    return text


def change(path: Path, **fields: Any) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))
    return content


# -------------------------------------------------------------------------------------------- parties


def test_a_party_is_read_as_it_was_made(tmp_path: Path) -> None:
    secret, public = generate_party("oslo", tmp_path)
    assert (secret, public) == (tmp_path / "oslo.key", tmp_path / "oslo.pub")
    party = read_party(secret)
    assert party.name == "oslo"
    shown = json.loads(public.read_text())
    assert shown == {"format": "secagg public 1", "name": "oslo", "public": party.identity.public.hex()}
    verify(bytes.fromhex(shown["public"]), b"message", party.identity.sign(b"message"))
    kept = json.loads(secret.read_text())
    assert party.journal_key.hex() == kept["journal_key"] != kept["secret"]
    SqliteJournal(tmp_path / "journal", party.journal_key).close()


def test_every_party_has_its_own_keys(tmp_path: Path) -> None:
    parties = [read_party(generate_party(name, tmp_path)[0]) for name in NAMES]
    assert len({p.identity.public for p in parties} | {p.journal_key for p in parties}) == 2 * len(NAMES)


@posix
def test_only_the_owner_may_use_the_secret(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        secret, public = generate_party("oslo", tmp_path)
    finally:
        os.umask(before)
    assert secret.stat().st_mode & 0o777 == 0o600
    assert public.stat().st_mode & 0o777 == 0o644
    kept = json.loads(secret.read_text())
    for mode in (0o640, 0o604, 0o620, 0o602, 0o666):
        secret.chmod(mode)
        said = refused(lambda: read_party(secret), kept["secret"], kept["journal_key"])
        assert said.endswith(f"others may read or write this secret (mode {mode:o}): chmod 600 {secret}")
    for mode in (0o600, 0o400, 0o700):
        secret.chmod(mode)
        assert read_party(secret).name == "oslo"


@pytest.mark.parametrize("there", ["oslo.key", "oslo.pub"])
def test_nothing_is_overwritten(tmp_path: Path, there: str) -> None:
    (tmp_path / there).write_text("precious")
    assert refused(lambda: generate_party("oslo", tmp_path)).endswith(
        f"{there}: is there already, and is not overwritten"
    )
    assert [p.name for p in tmp_path.iterdir()] == [there]
    assert (tmp_path / there).read_text() == "precious"


@posix
def test_a_link_that_leads_nowhere_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "oslo.key").symlink_to(tmp_path / "elsewhere")
    refused(lambda: generate_party("oslo", tmp_path))
    assert not (tmp_path / "elsewhere").exists()
    assert not (tmp_path / "oslo.pub").exists()


@pytest.mark.parametrize("broken", [1, 2])
def test_a_file_is_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: int
) -> None:
    """The disk is full at the first file, or at the second."""
    calls, real = [], os.fsync

    def full(file: int) -> None:
        calls.append(file)
        if len(calls) == broken:
            raise OSError(28, "No space left on device")
        real(file)

    monkeypatch.setattr(files.os, "fsync", full)
    said = refused(lambda: generate_party("oslo", tmp_path))
    assert said.endswith("cannot be written: No space left on device")
    assert list(tmp_path.iterdir()) == []
    assert len(calls) == broken


@pytest.mark.parametrize("folder", ["none", "file", "nul\0"])
def test_a_folder_that_is_none_is_refused(tmp_path: Path, folder: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LocalError, match=r"cannot be written: (No such file|Not a directory|not a path)"):
        generate_party("oslo", tmp_path / folder)


BAD_NAMES = (
    "", ".", "..", ".oslo", "-oslo", "a/b", "a\\b", "../oslo", "a b", "a\n", "a\0", "C:x", "ö", "\u202eoslo",
    "\x1b[2J", "a" * 252, "server", None, 7, b"oslo",
)  # fmt: skip


@pytest.mark.parametrize("name", BAD_NAMES, ids=repr)
def test_a_name_must_be_a_file_name(tmp_path: Path, name: Any) -> None:
    assert "ASCII letters, digits and . _ -" in refused(lambda: generate_party(name, tmp_path))
    assert list(tmp_path.iterdir()) == []
    identity = Identity.generate()
    refused(lambda: Party(name, identity, bytes(32)))


@pytest.mark.parametrize("name", ["a", "_", "9", "Oslo-2.north_wing", "a" * 251])
def test_a_good_name(tmp_path: Path, name: str) -> None:
    assert read_party(generate_party(name, tmp_path)[0]).name == name


def test_a_party_shows_no_secret(tmp_path: Path) -> None:
    secret, _ = generate_party("oslo", tmp_path)
    party, kept = read_party(secret), json.loads(secret.read_text())
    shown = repr(party) + str(party) + repr([files._read(secret, files._Secret, 4096)])
    for which in ("secret", "journal_key"):
        assert kept[which] not in shown
        assert kept[which][:16] not in shown
        assert repr(bytes.fromhex(kept[which]))[2:-1] not in shown
    assert "oslo" in shown
    assert files._read(secret, files._Secret, 4096).__rich_repr__() == []


@pytest.mark.parametrize("key", [bytes(31), bytes(33), "a" * 32, None])
def test_a_journal_key_of_another_kind_is_refused(key: Any) -> None:
    identity = Identity.generate()
    with pytest.raises(LocalError, match="expected 32 bytes"):
        Party("oslo", identity, key)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"format": "secagg identity 2"}, "expected a .key file of this library, got something else"),
        ({"format": None}, "got something else"),
        ({"secret": None}, "got something else"),
        ({"journal_key": None}, "got something else"),
        ({"name": 7}, "got something else"),
        ({"more": QUOTED}, "got something else"),
        ({"secret": "ab" * 31}, "secret: expected 64 hex digits (0-9, a-f), got 62 characters"),
        ({"secret": "AB" * 32}, "got 64 characters of other kinds"),
        ({"secret": "ab" * 31 + "a\n"}, "got 64 characters of other kinds"),
        ({"journal_key": "ab" * 33}, "journal_key: expected 64 hex digits (0-9, a-f), got 66 characters"),
        ({"journal_key": ""}, "got 0 characters"),
        ({"name": f"{QUOTED} {QUOTED}"}, "name: expected at most 251"),
        ({"name": "server"}, "and not 'server'"),
        ({"name": "a" * 5000}, "too large: at most 4096 bytes expected"),
    ],
)
def test_a_file_of_another_content_is_refused(tmp_path: Path, fields: dict[str, Any], said: str) -> None:
    path, _ = generate_party("oslo", tmp_path)
    kept = json.loads(path.read_text())
    change(path, **fields)
    text = refused(lambda: read_party(path), kept["secret"], kept["journal_key"], QUOTED, "ab" * 8)
    assert text.startswith(f"{path}: ")
    assert said in text


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"format": "\xff"}', b"[" * 4000, b"7" * 4000, bytes(99)],
)
def test_garbage_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "garbage"
    path.write_bytes(data)
    path.chmod(0o600)
    for read in (read_party, read_roster, lambda p: write_roster(tmp_path / "roster", [p])):
        assert refused(lambda read=read: read(path)).startswith(f"{path}: expected a")
    assert not (tmp_path / "roster").exists()


@given(st.binary(max_size=300))
def test_no_bytes_do_more_than_a_local_error(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz"
    path.write_bytes(data)
    path.chmod(0o600)
    for read in (read_party, read_roster):
        with pytest.raises(LocalError):
            read(path)


def test_a_field_that_comes_twice_is_refused(tmp_path: Path) -> None:
    path, _ = generate_party("oslo", tmp_path)
    path.write_text(path.read_text().replace("{", '{"name": "pisa",', 1))
    assert "every entry once" in refused(lambda: read_party(path))


def test_the_wrong_file_is_named(tmp_path: Path, publics: list[Path]) -> None:
    write_roster(tmp_path / "roster.json", publics)
    (tmp_path / "oslo.pub").chmod(0o600)
    (tmp_path / "roster.json").chmod(0o600)
    assert refused(lambda: read_party(tmp_path / "oslo.pub")).endswith(
        "expected a .key file, got a .pub file"
    )
    assert refused(lambda: read_party(tmp_path / "roster.json")).endswith("got a roster")
    assert refused(lambda: read_roster(tmp_path / "oslo.key")).endswith("got a .key file")
    kept = json.loads((tmp_path / "oslo.key").read_text())
    said = refused(lambda: write_roster(tmp_path / "new", [tmp_path / "oslo.key"]), kept["secret"])
    assert said.endswith("expected a .pub file, got a .key file")


@pytest.mark.parametrize("read", [read_party, read_roster])
def test_what_is_not_a_file_is_refused(tmp_path: Path, read: Callable[[Any], Any]) -> None:
    assert refused(lambda: read(tmp_path)).endswith("cannot be read: not a file")
    assert refused(lambda: read(tmp_path / "none")).endswith("cannot be read: No such file or directory")
    assert refused(lambda: read("nul\0".replace("\0", "") + "/none")).startswith("nul/none: cannot be read")
    with pytest.raises(LocalError, match="not a path"):
        read("nul\0")
    with (tmp_path / "large").open("wb") as file:
        file.truncate(1 << 40)  # sparse: reading all of it would fill the memory
    (tmp_path / "large").chmod(0o600)
    assert "too large" in refused(lambda: read(tmp_path / "large"))


@posix
@pytest.mark.parametrize("read", [read_party, read_roster])
def test_a_pipe_is_not_waited_for(tmp_path: Path, read: Callable[[Any], Any]) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    assert refused(lambda: read(tmp_path / "pipe")).endswith("cannot be read: not a file")


# -------------------------------------------------------------------------------------------- rosters


def test_a_roster_is_what_a_session_takes(tmp_path: Path, publics: list[Path]) -> None:
    path = tmp_path / "roster.json"
    made = write_roster(path, publics)
    roster = read_roster(path)
    assert roster == made
    assert list(roster) == list(made) == sorted(NAMES)
    parties = {name: read_party(tmp_path / f"{name}.key") for name in NAMES}
    assert roster == {name: party.identity.public for name, party in parties.items()}
    session = Session(roster, dim=2, bound=10)
    for name, party in parties.items():
        session.client(name, party.identity)


def test_a_roster_can_be_read_by_people(tmp_path: Path, publics: list[Path]) -> None:
    made = write_roster(tmp_path / "roster.json", publics)
    lines = (tmp_path / "roster.json").read_text().splitlines()
    assert lines[1:3] == ['  "format": "secagg roster 1",', '  "clients": {']
    entries = [f'    "{name}": "{key.hex()}"' for name, key in made.items()]
    assert [line.rstrip(",") for line in lines[3:-2]] == entries


def test_white_space_and_order_are_free_and_nothing_else(tmp_path: Path, publics: list[Path]) -> None:
    path = tmp_path / "roster.json"
    made = write_roster(path, publics)
    text = path.read_text()
    path.write_bytes(text.replace("\n", "\r\n").encode())  # as some version control does
    assert read_roster(path) == made
    content = json.loads(text)
    content["clients"] = dict(reversed(content["clients"].items()))
    path.write_text(json.dumps(content))
    assert list(read_roster(path)) == sorted(NAMES)
    path.write_text(text.replace('"oslo"', '"os\\u006co"'))
    assert "every entry once" in refused(lambda: read_roster(path))


def test_a_name_that_comes_twice_in_the_file_is_refused(tmp_path: Path, publics: list[Path]) -> None:
    """What is decoded would be the last; who reads the file may look at the first."""
    path = tmp_path / "roster.json"
    write_roster(path, publics)
    evil = Identity.generate().public.hex()
    for more in (f',"oslo": "{evil}"}}', f',"york": "{evil}"}}'):
        text = path.read_text().replace("}", more, 1)
        (tmp_path / "evil.json").write_text(text)
        assert json.loads(text)["clients"]  # JSON as such has no objection
        assert "every entry once" in refused(lambda: read_roster(tmp_path / "evil.json"))


@pytest.mark.parametrize(
    ("clients", "said"),
    [
        ({"server": "ab" * 32}, "and not 'server'"),
        ({"\x1b[2J": "ab" * 32}, "ASCII letters"),
        ({"evil": SMALL_ORDER.hex()}, "'evil': identity: not an Ed25519 public key of full order"),
        ({"evil": "ab" * 31}, "evil: expected 64 hex digits"),
        ({"evil": 7}, "expected a roster"),
        ({"twin": None}, "two clients have the same identity"),
    ],
)
def test_what_a_session_refuses_is_refused_when_read(
    tmp_path: Path, publics: list[Path], clients: dict[str, Any], said: str
) -> None:
    path = tmp_path / "roster.json"
    made = write_roster(path, publics)
    content = json.loads(path.read_text())
    if "twin" in clients:
        clients = {"twin": made["oslo"].hex()}
    path.write_text(json.dumps(content | {"clients": content["clients"] | clients}))
    text = refused(lambda: read_roster(path))
    assert said in text
    assert text.startswith(f"{path}: ")


@pytest.mark.parametrize("count", [0, 1, 2])
def test_fewer_than_three_are_no_roster(tmp_path: Path, publics: list[Path], count: int) -> None:
    path = tmp_path / "roster.json"
    assert "cohort" in refused(lambda: write_roster(path, publics[:count]))
    assert not path.exists()
    write_roster(path, publics[:3])
    content = json.loads(path.read_text())
    content["clients"] = dict(list(content["clients"].items())[:count])
    path.write_text(json.dumps(content))
    assert "cohort" in refused(lambda: read_roster(path))


def test_bad_public_files_are_refused(tmp_path: Path, publics: list[Path]) -> None:
    out, other = tmp_path / "roster.json", tmp_path / "other.pub"
    oslo = json.loads(publics[0].read_text())

    def said(**fields: Any) -> str:
        other.write_text(json.dumps(oslo | fields))
        text = refused(lambda: write_roster(out, [*publics, other]))
        assert text.startswith(f"{other}: ")
        assert not out.exists()
        return text.removeprefix(f"{other}: ")

    fresh = Identity.generate().public.hex()
    assert said(public=fresh) == f"the same name as in {publics[0]}"
    assert said(name="twin") == f"the same key as in {publics[0]}"
    assert said(name="evil", public=SMALL_ORDER.hex()).startswith("identity: not an Ed25519 public key of")
    assert said(name="server", public=fresh).endswith("and not 'server'")
    assert said(name="\x1b[2J", public=fresh).startswith("name: expected")
    assert said(name="short", public=fresh[:-2]).startswith("public: expected 64 hex digits")
    assert said(name="more", public=fresh, more=1).endswith("got something else")
    assert refused(lambda: write_roster(out, [*publics, publics[1]])).startswith(
        f"{publics[1]}: the same name"
    )
    assert refused(lambda: write_roster(out, [*publics, tmp_path / "none"])).endswith(
        "No such file or directory"
    )


def test_a_roster_is_overwritten_only_on_demand_and_in_one_step(
    tmp_path: Path, publics: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "roster.json"
    write_roster(path, publics)
    before = path.read_bytes()
    assert refused(lambda: write_roster(path, publics[:3])).endswith(
        "is there already, and is not overwritten"
    )
    assert path.read_bytes() == before

    def full(file: int) -> None:
        raise OSError(28, "No space left on device")

    names = sorted(p.name for p in tmp_path.iterdir())
    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", full)
        refused(lambda: write_roster(path, publics[:3], overwrite=True))
    assert path.read_bytes() == before
    write_roster(path, publics[:3], overwrite=True)
    assert list(read_roster(path)) == sorted(NAMES[:3])
    assert sorted(p.name for p in tmp_path.iterdir()) == names
    assert "cannot be written" in refused(lambda: write_roster(tmp_path, publics, overwrite=True))


# ---------------------------------------------------------------------------------------- fingerprint

rosters = st.dictionaries(
    st.text("abc", min_size=1, max_size=3), st.binary(min_size=32, max_size=32), max_size=5
)


def test_a_fingerprint_can_be_read_aloud() -> None:
    assert fingerprint({"oslo": bytes(32), "pisa": bytes([1]) * 32}) == PINNED


# Computed apart from the code: `printf` of the bound parts (see `secagg.labels.bind`) into `sha256sum`.
PINNED = "bb15 0741 494b 21dd a6e6 81cc a5ab 0e38"


@given(rosters, rosters)
def test_rosters_differ_in_their_fingerprint(one: dict[str, bytes], two: dict[str, bytes]) -> None:
    assert (fingerprint(one) == fingerprint(two)) == (one == two)
    assert fingerprint(one) == fingerprint(dict(reversed(one.items())))


def test_a_fingerprint_covers_every_bit(publics: list[Path], tmp_path: Path) -> None:
    roster = write_roster(tmp_path / "roster.json", publics)
    seen = {fingerprint(roster)}
    for name in roster:
        for bit in range(256):
            key = bytearray(roster[name])
            key[bit // 8] ^= 1 << bit % 8
            seen.add(fingerprint(roster | {name: bytes(key)}))
    assert len(seen) == 1 + 4 * 256


def test_the_front_door_has_them() -> None:
    assert (secagg.Party, secagg.read_party, secagg.read_roster) == (Party, read_party, read_roster)
