"""`secagg keygen`, `roster` and `fingerprint`: what they write and print, and one line for what is wrong."""

import os
import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from fedavg.cli import cli
from protocols.roster import fingerprint, read_party, read_roster

NAMES = ("oslo", "pisa", "graz")
GROUPS = re.compile(r"Clients: 3\. Fingerprint: ([0-9a-f]{4}(?: [0-9a-f]{4}){7})\n")


def secagg(*words: object) -> Result:
    return CliRunner().invoke(cli, [str(w) for w in words], prog_name="secagg")


def works(*words: object) -> str:
    result = secagg(*words)
    assert result.exit_code == 0, (result.output, result.exception)
    return str(result.output)


def fails(*words: object) -> str:
    result = secagg(*words)
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    (line,) = result.output.splitlines()
    assert line.startswith("Error: ")
    return str(line)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    works("keygen", *NAMES)
    return tmp_path


def test_keygen_says_what_stays_and_what_goes(tmp_path: Path) -> None:
    lines = works("keygen", "oslo", "pisa", "--out", tmp_path).splitlines()
    assert lines[:2] == [
        f"{tmp_path / 'oslo.key'}: secret, stays where oslo runs",
        f"{tmp_path / 'oslo.pub'}: public, goes to whoever makes the roster",
    ]
    assert len(lines) == 4
    for name in ("oslo", "pisa"):
        assert read_party(tmp_path / f"{name}.key").name == name
    if os.name == "posix":
        assert (tmp_path / "oslo.key").stat().st_mode & 0o777 == 0o600


def test_keygen_never_overwrites(folder: Path) -> None:
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    assert "is there already" in fails("keygen", "oslo")
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_what_keygen_refuses(folder: Path) -> None:
    assert "name '../oslo': expected" in fails("keygen", "../oslo")
    assert "No such file" in fails("keygen", "york", "--out", folder / "none")
    assert secagg("keygen").exit_code == 2
    assert not list(folder.glob("york*"))


def test_from_keys_to_a_roster_and_its_fingerprint(folder: Path) -> None:
    output = works("roster", *(f"{name}.pub" for name in NAMES), "--out", "all.json")
    assert output.splitlines()[:3] == sorted(NAMES)
    assert "Roster: all.json." in output
    found = read_roster("all.json")
    assert found == {name: read_party(f"{name}.key").identity.public for name in NAMES}
    first, second = (GROUPS.search(text) for text in (output, works("fingerprint", "all.json")))
    assert first is not None
    assert second is not None
    assert first[1] == second[1] == fingerprint(found)


def test_no_secret_is_printed(folder: Path) -> None:
    printed = works("keygen", "york") + works("roster", *(f"{n}.pub" for n in (*NAMES, "york")))
    printed += works("fingerprint", "roster.json") + fails("fingerprint", "york.key")
    printed += fails("roster", "york.key") + fails("keygen", "york")
    kept = re.findall("[0-9a-f]{64}", "".join((folder / f"{n}.key").read_text() for n in (*NAMES, "york")))
    assert len(kept) == 8
    assert not [secret for secret in kept if secret[:16] in printed]


def test_roster_overwrites_only_with_force(folder: Path) -> None:
    publics = [f"{name}.pub" for name in NAMES]
    works("roster", *publics)
    works("keygen", "york")
    assert "roster.json: is there already" in fails("roster", *publics, "york.pub")
    assert len(read_roster("roster.json")) == 3
    works("roster", *publics, "york.pub", "--force")
    assert len(read_roster("roster.json")) == 4


def test_what_roster_refuses(folder: Path) -> None:
    assert "at least 3 are needed" in fails("roster", "oslo.pub", "pisa.pub")
    assert "the same name as in oslo.pub" in fails("roster", "oslo.pub", "pisa.pub", "oslo.pub")
    assert "got a .key file" in fails("roster", "oslo.key", "pisa.pub", "graz.pub")
    assert "none.pub: cannot be read" in fails("roster", "none.pub")
    assert "got a .pub file" in fails("fingerprint", "oslo.pub")
    assert not list(folder.glob("*.json"))


def test_help_names_the_commands() -> None:
    output = works("--help")
    for name in ("keygen", "roster", "fingerprint"):
        assert f"\n  {name} " in output
        assert f"Usage: secagg {name}" in works(name, "--help")
