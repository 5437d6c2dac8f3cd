"""Identities and rosters as files: what each party keeps, what it gives away, and whom a session names.

Each party makes its own two files, `<name>.key`, which stays where it was made, and `<name>.pub`. Whoever
makes the roster collects the .pub files; everybody gets the roster and compares its fingerprint with the
others by another way than the one it came by, such as the telephone. (Two rosters of one fingerprint are
2^64 work for whoever makes them; parties that hold different ones still complete no step together, for
the session hash covers every key.)

What it does not protect against: a key file read by someone who is root, or from a backup; it is not
encrypted. Where there are no POSIX permissions, the folder must keep others out.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from protocols.errors import LocalError
from protocols.journal import check_key
from protocols.session import Session
from protocols.wire import SERVER
from secagg import box, keys
from secagg.invalid import Invalid
from secagg.keys import Identity
from secagg.labels import Label, digest
from secagg.randomness import Rng, system

AnyPath = str | os.PathLike[str]

# Nothing that a file system, a shell or a screen takes for something else, and room for ".key".
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,250}")
_HEX = re.compile(r"[0-9a-f]{64}")
_KEY_LIMIT = 4096
_ROSTER_LIMIT = 1 << 23
FINGERPRINT_DIGITS = 32


@dataclass(frozen=True, slots=True)
class Party:
    """A client as its key file has it: name, identity, and the key under which its journal is sealed.

    `journal_key` is 32 bytes for `SqliteJournal`, which must be kept apart from the journal's file.
    """

    name: str
    identity: Identity
    journal_key: bytes = field(repr=False)

    def __post_init__(self) -> None:
        _check_name("name", self.name)
        check_key(self.journal_key)


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="format"):
    """A file's content; its first field says which of the formats below it is."""


class _Secret(_File, frozen=True, tag="secagg identity 1"):
    name: str
    secret: str
    journal_key: str

    def __repr__(self) -> str:
        return "_Secret(…)"

    def __rich_repr__(self) -> list[Any]:
        return []


class _Public(_File, frozen=True, tag="secagg public 1"):
    name: str
    public: str


class _Roster(_File, frozen=True, tag="secagg roster 1"):
    clients: dict[str, str]


_KINDS: dict[Any, str] = {_Secret: "a .key file", _Public: "a .pub file", _Roster: "a roster"}

F = TypeVar("F", bound=_File)


# -------------------------------------------------------------------------------------------- parties


def generate_party(name: str, folder: AnyPath = ".", *, rng: Rng = system) -> tuple[Path, Path]:
    """A new identity and journal key in `<name>.key` (mode 0600), its public half in `<name>.pub`.

    Returns both paths. Raises `LocalError`, leaving nothing behind, where either file is there already or
    cannot be written, or the name is not of ASCII letters, digits and . _ - (and begins with none of . -).
    """
    _check_name(f"name {name!r}", name)
    secret_path, public_path = Path(folder, f"{name}.key"), Path(folder, f"{name}.pub")
    secret, journal_key = rng(keys.KEY_BYTES), rng(box.KEY_BYTES)
    public = Identity(secret).public
    # The public half first: a secret is on disk only once nothing can go wrong any more.
    _create(public_path, _encode(_Public(name, public.hex())), 0o644)
    try:
        content = _Secret(name, secret.hex(), journal_key.hex())
        _create(secret_path, _encode(content), 0o600)
    except BaseException:
        public_path.unlink(missing_ok=True)
        raise
    return secret_path, public_path


def read_party(path: AnyPath) -> Party:
    """The party in a .key file.

    Raises `LocalError` for a file that others may read or write (POSIX only), that is missing, not a file,
    too large or not of this format; what the file holds is in no error.
    """
    found = _read(path, _Secret, _KEY_LIMIT)
    secret, journal_key = (_key(path, which, getattr(found, which)) for which in ("secret", "journal_key"))
    _check_name(f"{path}: name", found.name)
    return Party(found.name, Identity(secret), journal_key)


# ------------------------------------------------------------------------------------------- rosters


def write_roster(path: AnyPath, publics: Sequence[AnyPath], *, overwrite: bool = False) -> dict[str, bytes]:
    """Make a roster file of .pub files; returns name -> public identity (32 bytes).

    Raises `LocalError` for a name or key that comes twice, a key that is none or of small order, fewer
    than three clients, a file that cannot be used, and, unless `overwrite`, a roster that is there.
    """
    roster: dict[str, bytes] = {}
    origin: dict[str | bytes, AnyPath] = {}
    for file in publics:
        found = _read(file, _Public, _KEY_LIMIT)
        _check_name(f"{file}: name", found.name)
        name, public = found.name, _key(file, "public", found.public)
        for what, value in (("name", name), ("key", public)):
            if value in origin:
                raise LocalError(f"{file}: the same {what} as in {origin[value]}")
            origin[value] = file
        try:
            keys.check_identity(public)
        except Invalid as error:
            raise LocalError(f"{file}: {error}") from None
        roster[name] = public
    roster = dict(sorted(roster.items()))
    _check_roster(path, roster)
    content = _Roster({name: public.hex() for name, public in roster.items()})
    _create(Path(path), _encode(content), 0o644, overwrite)
    return roster


def read_roster(path: AnyPath) -> dict[str, bytes]:
    """A roster file as name -> public identity (32 bytes), sorted: what `Session` takes.

    Raises `LocalError` for a file that is missing, not a file, too large or not of this format, and for
    whatever `Session` refuses in a roster.
    """
    found = _read(path, _Roster, _ROSTER_LIMIT)
    for name in found.clients:
        _check_name(f"{path}: name", name)
    roster = {name: _key(path, name, text) for name, text in sorted(found.clients.items())}
    _check_roster(path, roster)
    return roster


def fingerprint(roster: Mapping[str, bytes]) -> str:
    """32 hex digits in groups of four, to be compared by telephone: the first half of a SHA-256.

    It covers every name and key; their order in the mapping does not matter.
    """
    parts = [part for name in sorted(roster) for part in (name.encode(), roster[name])]
    digits = digest(Label.ROSTER, *parts).hex()[:FINGERPRINT_DIGITS]
    return " ".join(digits[i : i + 4] for i in range(0, len(digits), 4))


def _check_roster(where: AnyPath, roster: Mapping[str, bytes]) -> None:
    try:
        Session(roster, 1, 2, corrupted=0.0, dropout=0.0)  # the least that any session demands of it
    except LocalError as error:
        raise LocalError(f"{where}: {error}") from None


# --------------------------------------------------------------------------------------------- files


def _check_name(where: str, name: object) -> None:
    """Refuse what cannot be a file's and a client's name, without quoting what a file holds."""
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name == SERVER:
        raise LocalError(
            f"{where}: expected at most 251 ASCII letters, digits and . _ -, beginning with none of . -, "
            f"and not {SERVER!r}"
        )


def _key(path: AnyPath, what: str, text: str) -> bytes:
    if not _HEX.fullmatch(text):
        raise LocalError(
            f"{path}: {what}: expected 64 hex digits (0-9, a-f), got {len(text)} characters"
            + (" of other kinds" if len(text) == 64 else "")
        )
    return bytes.fromhex(text)


def _encode(content: _File) -> bytes:
    return msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n"


def _create(path: Path, content: bytes, mode: int, overwrite: bool = False) -> None:
    """A new file, whole or not at all; `overwrite` replaces one that is there in one step."""
    target = path.with_name(f"{path.name}.new") if overwrite else path
    try:
        if overwrite:
            target.unlink(missing_ok=True)
        file = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), mode)
        try:
            with os.fdopen(file, "wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            if overwrite:
                os.replace(target, path)
        except BaseException:
            target.unlink(missing_ok=True)
            raise
    except FileExistsError:
        raise LocalError(f"{path}: is there already, and is not overwritten") from None
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        raise LocalError(f"{path}: cannot be written: {_why(error)}") from None


def _read(path: AnyPath, kind: type[F], limit: int) -> F:
    """The content of a file, in its one encoding but for white space."""
    try:
        # Not blocking, so that a pipe in place of the file is refused and not waited for.
        file = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        try:
            mode = os.fstat(file).st_mode
            if not stat.S_ISREG(mode):
                raise OSError(None, "not a file")
            if kind is _Secret and os.name == "posix" and mode & 0o066:
                raise OSError(
                    None,
                    f"others may read or write this secret (mode {stat.S_IMODE(mode):o}): chmod 600 {path}",
                )
            with os.fdopen(file, "rb", closefd=False) as stream:
                data = stream.read(limit + 1)
        finally:
            os.close(file)
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        raise LocalError(f"{path}: cannot be read: {_why(error)}") from None
    if len(data) > limit:
        raise LocalError(f"{path}: too large: at most {limit} bytes expected")
    try:
        found = msgspec.json.decode(data, type=_Secret | _Public | _Roster)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        # Its own text is left out: it may quote the file.
        raise LocalError(f"{path}: expected {_KINDS[kind]} of this library, got something else") from None
    if not isinstance(found, kind):
        raise LocalError(f"{path}: expected {_KINDS[kind]}, got {_KINDS[type(found)]}")
    # A name that comes twice would be decoded as its last; a reader might look at its first.
    if b"".join(msgspec.json.encode(found).split()) != b"".join(data.split()):
        raise LocalError(f"{path}: expected every entry once, and in the order in which it is written")
    return found


def _why(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or "not a path"
