"""Messages as bytes: MessagePack (msgspec), one version byte in front, one encoding for every value.

A message is a small `Struct`; a vector travels beside it as a frame of its own and is never copied by
the serialiser. Everything is checked for length before it is decoded. A message that decodes but does
not encode to the same bytes again is refused, so that hashes and signatures mean one thing.

The driver carries envelopes and vouches for who sent them (TLS, say): `sender` is trusted here.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import msgspec
import numpy as np

from protocols.errors import LocalError, RemoteError
from secagg.labels import VERSION

SERVER = "server"
"""The server's name in envelopes; no client may have it."""

SESSION_BYTES = 32
MAX_NAME_BYTES = 255


class Message(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Base of all messages: frozen, encoded as an array that begins with the message's tag."""


@dataclass(frozen=True, slots=True)
class Envelope:
    """One message on its way: public header, `body` (an encoded message), `frame` (a packed vector)."""

    session: bytes
    sender: str
    to: str
    body: bytes = field(repr=False)
    frame: bytes | memoryview = field(default=b"", repr=False)

    @property
    def size(self) -> int:
        """Bytes of body and frame; the header's few bytes depend on the transport."""
        return len(self.body) + len(self.frame)


M = TypeVar("M")


class Codec(Generic[M]):
    """Encodes and decodes one protocol's messages."""

    def __init__(self, union: Any) -> None:
        self.union = union
        self._decoder: msgspec.msgpack.Decoder[M] = msgspec.msgpack.Decoder(union, strict=True)
        self._encoder = msgspec.msgpack.Encoder()

    def encode(self, message: M) -> bytes:
        """Version byte and MessagePack."""
        return bytes([VERSION]) + self._encoder.encode(message)

    def decode(self, body: bytes, limit: int) -> M:
        """The message in `body`, or `RemoteError`; nothing beyond `limit` bytes is looked at."""
        if len(body) > limit:
            raise RemoteError(f"message too long: at most {limit} bytes expected, got {len(body)}")
        if not body:
            raise RemoteError("empty message")
        if body[0] != VERSION:
            raise RemoteError(f"unknown wire version {body[0]}: this is version {VERSION}")
        try:
            message = self._decoder.decode(memoryview(body)[1:])
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            raise RemoteError("message cannot be decoded") from None
        if self.encode(message) != body:
            raise RemoteError("message is not in its one encoding")
        return message


_HEADER = struct.Struct("<4sB32sBBIQ")
_MAGIC = b"sagg"
HEADER_BYTES = _HEADER.size


def to_bytes(envelope: Envelope) -> bytes:
    """An envelope as one byte string, for transports that carry bytes."""
    check_text("sender", envelope.sender, 0)
    check_text("to", envelope.to, 0)
    if len(envelope.session) != SESSION_BYTES:
        raise LocalError(f"session: expected {SESSION_BYTES} bytes, got {len(envelope.session)}")
    sender, to = envelope.sender.encode(), envelope.to.encode()
    head = _HEADER.pack(
        _MAGIC, VERSION, envelope.session, len(sender), len(to), len(envelope.body), len(envelope.frame)
    )
    return b"".join((head, sender, to, envelope.body, envelope.frame))


def from_bytes_checked(data: bytes | memoryview, limit: int) -> Envelope:
    """The envelope in `data` (all of it), at most `limit` bytes long; else `RemoteError`.

    The frame is a view on `data`, not a copy.
    """
    view = memoryview(data)
    if len(view) > limit:
        raise RemoteError(f"envelope too long: at most {limit} bytes expected, got {len(view)}")
    if len(view) < HEADER_BYTES:
        raise RemoteError(f"envelope too short: at least {HEADER_BYTES} bytes expected, got {len(view)}")
    magic, version, session, sender, to, body, frame = _HEADER.unpack(view[:HEADER_BYTES])
    if magic != _MAGIC:
        raise RemoteError("not an envelope of this library")
    if version != VERSION:
        raise RemoteError(f"unknown wire version {version}: this is version {VERSION}")
    expected = HEADER_BYTES + sender + to + body + frame
    if len(view) != expected:
        raise RemoteError(f"envelope: its header says {expected} bytes, got {len(view)}")
    rest, parts = view[HEADER_BYTES:], []
    for length in (sender, to, body, frame):
        parts.append(rest[:length])
        rest = rest[length:]
    try:
        names = [bytes(part).decode() for part in parts[:2]]
    except UnicodeDecodeError:
        raise RemoteError("envelope: a name is not UTF-8") from None
    return Envelope(session, names[0], names[1], bytes(parts[2]), parts[3])


def check_name(name: object) -> None:
    """Refuse what cannot be a party's name."""
    check_text("name", name, 1)
    if name == SERVER:
        raise LocalError(f"name: {SERVER!r} is the server's own")


def check_text(what: str, text: object, least: int) -> None:
    """Refuse what is not a string of `least` to 255 bytes of UTF-8."""
    try:
        if isinstance(text, str) and least <= len(text.encode()) <= MAX_NAME_BYTES:
            return
    except UnicodeEncodeError:
        pass
    raise LocalError(f"{what}: expected a string of {least} to {MAX_NAME_BYTES} bytes, got {text!r}")


def bitmap(positions: Iterable[int], n: int) -> bytes:
    """A set of positions below n as ceil(n / 8) bytes; bit i of byte j is position 8j + i."""
    bits = bytearray((n + 7) // 8)
    for i in positions:
        bits[i // 8] |= 1 << i % 8
    return bytes(bits)


def members(bits: bytes, n: int) -> tuple[int, ...]:
    """The positions in a bitmap, ascending; `RemoteError` if it is not one for n positions."""
    if len(bits) != (n + 7) // 8:
        raise RemoteError(f"bitmap: expected {(n + 7) // 8} bytes, got {len(bits)}")
    if n % 8 and bits[-1] >> n % 8:
        raise RemoteError("bitmap: a position beyond the cohort")
    each = np.unpackbits(np.frombuffer(bits, np.uint8), bitorder="little")
    return tuple(np.flatnonzero(each).tolist())


def place_bytes(i: int) -> bytes:
    """A position in what is hashed or signed."""
    return i.to_bytes(4, "big")


def pieces(what: str, blob: bytes, count: int, size: int) -> list[bytes]:
    """Cut a blob into `count` pieces of `size` bytes, or `RemoteError`."""
    if len(blob) != count * size:
        raise RemoteError(f"{what}: expected {count} x {size} bytes, got {len(blob)}")
    return [blob[i * size : (i + 1) * size] for i in range(count)]
