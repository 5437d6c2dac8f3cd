"""`protocols.wire`: one encoding for every message and envelope, limits first, and only `RemoteError` out."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from protocols import pairwise, wire
from protocols.errors import LocalError, RemoteError
from protocols.wire import (
    HEADER_BYTES,
    Codec,
    Envelope,
    Message,
    bitmap,
    check_name,
    from_bytes_checked,
    members,
)
from protocols.wire import to_bytes as envelope_bytes
from secagg.labels import VERSION

LIMIT = 1 << 20


class Plain(Message, frozen=True, tag=1):
    """One of each kind."""

    number: int
    blob: bytes
    text: str


class Nested(Message, frozen=True, tag=2):
    """A list of messages."""

    blob: bytes
    items: list[Plain]


class Empty(Message, frozen=True, tag=3):
    """Nothing beside its tag."""


CODEC: Codec[Any] = Codec(Plain | Nested | Empty)
NUMBER = st.integers(-(2**63), 2**64 - 1) | st.sampled_from((0, 1, 127, 128, 255, 256, 2**16, 2**32, -1, -33))
PLAIN = st.builds(Plain, NUMBER, st.binary(max_size=300), st.text(max_size=40))
MESSAGE = PLAIN | st.builds(Nested, st.binary(max_size=40), st.lists(PLAIN, max_size=18)) | st.just(Empty())
NAME = st.text(max_size=60).filter(lambda name: len(name.encode()) <= 255)
ENVELOPE = st.builds(
    Envelope,
    st.binary(min_size=32, max_size=32),
    NAME,
    NAME,
    st.binary(max_size=60),
    st.binary(max_size=60),
)


def refused(body: bytes, why: str, codec: Codec[Any] = CODEC, limit: int = LIMIT) -> None:
    with pytest.raises(RemoteError, match=why):
        codec.decode(body, limit)


# --------------------------------------------------------------------------------------- messages


@given(MESSAGE)
def test_a_message_comes_back_as_it_was(message: Message) -> None:
    body = CODEC.encode(message)
    assert body[0] == VERSION
    assert body[1:] == msgspec.msgpack.encode(message)
    assert CODEC.decode(body, len(body)) == message
    assert type(CODEC.decode(body, len(body))) is type(message)


@given(MESSAGE, st.binary(min_size=1, max_size=5))
def test_every_truncation_and_extension_of_a_message_is_refused(message: Message, more: bytes) -> None:
    body = CODEC.encode(message)
    for length in range(len(body)):
        refused(body[:length], "empty message" if not length else "cannot be decoded")
    refused(body + more, "cannot be decoded")
    refused(body + body, "cannot be decoded")


def test_every_unknown_version_is_refused_by_name() -> None:
    envelope = bytearray(envelope_bytes(Envelope(bytes(32), "a", "b", b"body")))
    for version in set(range(256)) - {VERSION}:
        why = f"unknown wire version {version}: this is version {VERSION}"
        refused(bytes([version]) + CODEC.encode(Empty())[1:], why)
        envelope[4] = version
        with pytest.raises(RemoteError, match=why):
            from_bytes_checked(bytes(envelope), LIMIT)


class Forbidden:
    """Stands where the decoder stands, and must not be called."""

    def decode(self, data: object) -> object:
        raise AssertionError("decoded before its length was checked")


@given(MESSAGE)
def test_the_limit_is_checked_before_anything_is_decoded(message: Message) -> None:
    body = CODEC.encode(message)
    codec: Codec[Any] = Codec(Plain | Nested | Empty)
    assert codec.decode(body, len(body)) == message
    codec._decoder = Forbidden()  # type: ignore[assignment]
    with pytest.raises(AssertionError, match="before its length"):
        codec.decode(body, len(body))
    refused(body, f"too long: at most {len(body) - 1} bytes expected, got {len(body)}", codec, len(body) - 1)
    refused(b"", "empty", codec)


def encodings(value: Any) -> list[bytes]:
    """MessagePack's ways to write a non-negative int, bytes or str, the shortest among them."""
    found = []
    if isinstance(value, int):
        if value < 128:
            found.append(bytes([value]))
        for head, width in ((0xCC, 1), (0xCD, 2), (0xCE, 4), (0xCF, 8)):
            if value < 256**width:
                found.append(bytes([head]) + value.to_bytes(width, "big"))
        for head, width in ((0xD0, 1), (0xD1, 2), (0xD2, 4), (0xD3, 8)):
            if value < 256**width // 2:
                found.append(bytes([head]) + value.to_bytes(width, "big"))
        return found
    data = value if isinstance(value, bytes) else value.encode()
    if isinstance(value, str) and len(data) < 32:
        found.append(bytes([0xA0 | len(data)]) + data)
    for head, width in ((0xC4, 1), (0xC5, 2), (0xC6, 4)):
        if len(data) < 256**width:
            head = head if isinstance(value, bytes) else head + 0xD9 - 0xC4
            found.append(bytes([head]) + len(data).to_bytes(width, "big") + data)
    return found


def array(items: list[bytes]) -> list[bytes]:
    """MessagePack's ways to write an array of fewer than 16 items."""
    joined, n = b"".join(items), len(items)
    return [
        bytes([0x90 | n]) + joined,
        b"\xdc" + n.to_bytes(2, "big") + joined,
        b"\xdd" + n.to_bytes(4, "big") + joined,
    ]


def foreign_bodies(number: int, blob: bytes, text: str) -> Iterator[tuple[bytes, bytes]]:
    """Every encoding of a `Plain` that is not its own, with the MessagePack of its own."""
    head = bytes([VERSION])
    canonical = msgspec.msgpack.encode(Plain(number, blob, text))
    for tag in encodings(1):
        for n in encodings(number):
            for b in encodings(blob):
                for t in encodings(text):
                    for body in array([tag, n, b, t]):
                        if body != canonical:
                            yield head + body, canonical


@given(
    st.integers(0, 2**63 - 1) | st.sampled_from((0, 127, 128, 255, 256)),
    st.binary(max_size=300),
    st.text(max_size=40),
)
@example(5, b"blob", "text")
def test_another_encoding_of_the_same_message_is_refused(number: int, blob: bytes, text: str) -> None:
    bodies = list(foreign_bodies(number, blob, text))
    assert len(bodies) > 4
    for body, canonical in bodies[:: max(1, len(bodies) // 40)]:
        assert msgspec.msgpack.decode(body[1:]) == msgspec.msgpack.decode(canonical)  # the same value
        refused(body, "not in its one encoding")


@pytest.mark.parametrize(
    "written",
    [
        pytest.param(b"\x94\x01\xcc\x05\xc4\x01x\xa1y", id="int as uint8"),
        pytest.param(b"\x94\x01\xd0\x05\xc4\x01x\xa1y", id="int as int8"),
        pytest.param(b"\x94\x01\xcf\0\0\0\0\0\0\0\x05\xc4\x01x\xa1y", id="int as uint64"),
        pytest.param(b"\x94\x01\x05\xc5\0\x01x\xa1y", id="bin8 as bin16"),
        pytest.param(b"\x94\x01\x05\xc6\0\0\0\x01x\xa1y", id="bin8 as bin32"),
        pytest.param(b"\x94\x01\x05\xc4\x01x\xd9\x01y", id="fixstr as str8"),
        pytest.param(b"\xdc\0\x04\x01\x05\xc4\x01x\xa1y", id="array as array16"),
        pytest.param(b"\x94\xcc\x01\x05\xc4\x01x\xa1y", id="tag as uint8"),
    ],
)
def test_a_longer_encoding_is_refused(written: bytes) -> None:
    assert CODEC.decode(bytes([VERSION]) + b"\x94\x01\x05\xc4\x01x\xa1y", LIMIT) == Plain(5, b"x", "y")
    refused(bytes([VERSION]) + written, "not in its one encoding")


@pytest.mark.parametrize(
    "written",
    [
        pytest.param(b"\x94\x01\xcb\x40\x14\0\0\0\0\0\0\xc4\x01x\xa1y", id="int as float"),
        pytest.param(b"\x94\x01\xa1\x35\xc4\x01x\xa1y", id="int as str"),
        pytest.param(b"\x94\x01\x05\xa1x\xa1y", id="bytes as str"),
        pytest.param(b"\x94\x01\x05\xc4\x01x\xc4\x01y", id="str as bytes"),
        pytest.param(b"\x94\x01\xc0\xc4\x01x\xa1y", id="nil"),
        pytest.param(b"\x94\x01\xc3\xc4\x01x\xa1y", id="bool"),
        pytest.param(b"\x93\x01\x05\xc4\x01x", id="a field too few"),
        pytest.param(b"\x95\x01\x05\xc4\x01x\xa1y\x06", id="a field too many"),
        pytest.param(b"\x94\x04\x05\xc4\x01x\xa1y", id="unknown tag"),
        pytest.param(b"\x94\xa1\x31\x05\xc4\x01x\xa1y", id="tag as str"),
        pytest.param(b"\x84\xa4type\x01\xa6number\x05\xa4blob\xc4\x01x\xa4text\xa1y", id="a map"),
        pytest.param(b"\x94\x01\x05\xc4\x01x\xa1\xff", id="str that is not UTF-8"),
        pytest.param(b"\x94\x01\x05\xd4\x07x\xa1y", id="extension type"),
        pytest.param(b"\xc1", id="the reserved byte"),
        pytest.param(b"\x90", id="empty array"),
        pytest.param(b"\x91" * 100_000, id="deep nesting"),
    ],
)
def test_what_is_no_message_is_refused(written: bytes) -> None:
    refused(bytes([VERSION]) + written, "cannot be decoded")


class Loose(Message, frozen=True, tag=4):
    """Anything inside: no protocol has such a message, but a later one may."""

    anything: Any


def test_nesting_deeper_than_the_stack_is_refused() -> None:
    loose: Codec[Any] = Codec(Loose)
    head = bytes([VERSION]) + b"\x92\x04"
    assert loose.decode(head + b"\x91" * 50 + b"\x07", LIMIT) is not None
    refused(head + b"\x91" * 100_000 + b"\x07", "cannot be decoded", loose)


@pytest.mark.parametrize("count", [2**16, 2**27, 2**32 - 1])
@pytest.mark.parametrize("head", [b"\x93\x02\xc4\0\xdd", b"\x93\x02\xc6", b"\x94\x01\x05\xc4\0\xdb"])
def test_a_length_that_is_a_lie_allocates_nothing(head: bytes, count: int) -> None:
    body = bytes([VERSION]) + head + count.to_bytes(4, "big")
    tracemalloc.start()
    try:
        refused(body, "cannot be decoded")
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


def decodes_or_is_refused(codec: Codec[Any], body: bytes) -> bool:
    """Only `RemoteError` comes out, and what decodes is in its one encoding."""
    try:
        message = codec.decode(body, LIMIT)
    except RemoteError:
        return False
    assert codec.encode(message) == body
    return True


@given(st.binary(max_size=200), st.booleans())
@example(b"\x91\x03", True)
def test_any_bytes_decode_or_are_refused(raw: bytes, versioned: bool) -> None:
    body = bytes([VERSION]) * versioned + raw
    for codec in (CODEC, pairwise._CODEC):
        decodes_or_is_refused(codec, body)


@given(MESSAGE, st.data())
def test_any_changed_bytes_decode_or_are_refused(message: Message, data: st.DataObject) -> None:
    body = bytearray(CODEC.encode(message))
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    at = data.draw(st.integers(0, len(body)))
    decodes_or_is_refused(CODEC, bytes(body))
    decodes_or_is_refused(CODEC, bytes(body[:at] + body[at + 1 :]))
    decodes_or_is_refused(CODEC, bytes(body[:at] + b"\xc4" + body[at:]))


@given(
    st.recursive(
        st.none() | st.booleans() | NUMBER | st.floats() | st.binary() | st.text(), st.lists, max_leaves=9
    )
)
def test_any_value_decodes_or_is_refused(value: Any) -> None:
    for tag in range(12):
        fields = value if isinstance(value, list) else [value]
        body = bytes([VERSION]) + msgspec.msgpack.encode([tag, *fields])
        decodes_or_is_refused(CODEC, body)
        decodes_or_is_refused(pairwise._CODEC, body)


@given(MESSAGE)
def test_the_reference_of_the_fuzz_tests_sees_what_decodes(message: Message) -> None:
    assert decodes_or_is_refused(CODEC, CODEC.encode(message))


# -------------------------------------------------------------------------------------- envelopes


@given(ENVELOPE)
def test_an_envelope_comes_back_as_it_was(envelope: Envelope) -> None:
    data = envelope_bytes(envelope)
    assert from_bytes_checked(data, len(data)) == envelope
    assert from_bytes_checked(memoryview(data), len(data)) == envelope
    assert envelope.size == len(envelope.body) + len(envelope.frame)
    names = envelope.sender.encode() + envelope.to.encode()
    assert data[HEADER_BYTES:] == names + envelope.body + envelope.frame


@given(ENVELOPE, st.binary(min_size=1, max_size=4))
def test_every_truncation_and_extension_of_an_envelope_is_refused(envelope: Envelope, more: bytes) -> None:
    data = envelope_bytes(envelope)
    for length in range(len(data)):
        with pytest.raises(RemoteError, match="too short" if length < HEADER_BYTES else "its header says"):
            from_bytes_checked(data[:length], LIMIT)
    with pytest.raises(RemoteError, match=f"header says {len(data)} bytes, got {len(data) + len(more)}"):
        from_bytes_checked(data + more, LIMIT)


@given(ENVELOPE)
def test_an_envelope_beyond_the_limit_is_refused_before_it_is_read(envelope: Envelope) -> None:
    data = envelope_bytes(envelope)
    for raw in (data, b"\xff" * len(data)):  # its content would be refused for another reason
        with pytest.raises(
            RemoteError, match=f"too long: at most {len(data) - 1} bytes expected, got {len(data)}"
        ):
            from_bytes_checked(raw, len(data) - 1)


@given(ENVELOPE, st.data())
def test_a_changed_envelope_is_refused_or_another(envelope: Envelope, data: st.DataObject) -> None:
    raw = bytearray(envelope_bytes(envelope))
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    before = envelope_bytes(envelope)
    try:
        found = from_bytes_checked(bytes(raw), LIMIT)
    except RemoteError:
        return
    assert envelope_bytes(found) == bytes(raw)  # one encoding
    assert (found == envelope) == (bytes(raw) == before)


@given(ENVELOPE, st.integers(0, 8 * HEADER_BYTES - 1))
def test_every_bit_of_the_header_matters(envelope: Envelope, bit: int) -> None:
    raw = bytearray(envelope_bytes(envelope))
    raw[bit // 8] ^= 1 << bit % 8
    try:
        found = from_bytes_checked(bytes(raw), LIMIT)
    except RemoteError:
        return
    assert found != envelope
    assert 5 <= bit // 8 < 37  # only the session hash is free


@given(st.binary(max_size=120))
def test_any_bytes_are_an_envelope_or_refused(raw: bytes) -> None:
    for data in (raw, b"sagg" + bytes([VERSION]) + raw):
        try:
            found = from_bytes_checked(data, LIMIT)
        except RemoteError:
            continue
        assert envelope_bytes(found) == data


@pytest.mark.parametrize("magic", [b"SAGG", b"sagh", b"\0\0\0\0"])
def test_something_else_than_an_envelope_is_refused(magic: bytes) -> None:
    data = envelope_bytes(Envelope(bytes(32), "a", "b", b"body"))
    with pytest.raises(RemoteError, match="not an envelope"):
        from_bytes_checked(magic + data[4:], LIMIT)


@pytest.mark.parametrize(
    "name", [b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xc0\x80"], ids=["byte", "cut", "surrogate", "overlong"]
)
@pytest.mark.parametrize("place", [0, 1])
def test_a_name_that_is_not_utf8_is_refused(name: bytes, place: int) -> None:
    pair = ["x" * len(name)] * 2
    data = bytearray(envelope_bytes(Envelope(bytes(32), pair[0], pair[1], b"body")))
    at = HEADER_BYTES + place * len(name)
    data[at : at + len(name)] = name
    with pytest.raises(RemoteError, match="not UTF-8"):
        from_bytes_checked(bytes(data), LIMIT)


@pytest.mark.parametrize("lengths", [b"\xff" * 12, b"\xff" * 4 + bytes(8), bytes(4) + b"\x7f" + b"\xff" * 7])
def test_a_header_that_promises_much_allocates_nothing(lengths: bytes) -> None:
    data = bytearray(envelope_bytes(Envelope(bytes(32), "a", "b", b"body", b"frame")))
    data[HEADER_BYTES - 12 : HEADER_BYTES] = lengths
    tracemalloc.start()
    try:
        with pytest.raises(RemoteError, match="its header says"):
            from_bytes_checked(bytes(data), LIMIT)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


def test_the_frame_is_a_view_and_not_a_copy() -> None:
    data = bytearray(envelope_bytes(Envelope(bytes(32), "a", "b", b"body", b"frame")))
    found = from_bytes_checked(memoryview(data), LIMIT)
    data[-1:] = b"X"
    assert bytes(found.frame) == b"framX"
    assert found.body == b"body"


@given(st.binary(min_size=8, max_size=40), st.binary(min_size=8, max_size=40))
def test_neither_body_nor_frame_stands_in_a_repr(body: bytes, frame: bytes) -> None:
    shown = repr(Envelope(bytes(32), "ada", "server", body, frame))
    assert shown == repr(Envelope(bytes(32), "ada", "server", b""))
    assert "ada" in shown


# ------------------------------------------------------------------------------------------ names


@pytest.mark.parametrize("name", ["a", "é" * 127 + "x", "x" * 255, "Server", "server "])
def test_a_name_of_1_to_255_bytes_is_taken(name: str) -> None:
    check_name(name)


@pytest.mark.parametrize("name", ["", "x" * 256, "é" * 128, "\ud800", b"ada", 5, None])
def test_what_cannot_be_a_name_is_refused(name: object) -> None:
    with pytest.raises(LocalError, match="1 to 255 bytes"):
        check_name(name)


def test_no_client_has_the_servers_name() -> None:
    with pytest.raises(LocalError, match="server's own"):
        check_name(wire.SERVER)


# ---------------------------------------------------------------------------------------- bitmaps


@st.composite
def sets(draw: st.DrawFn) -> tuple[set[int], int]:
    """A cohort's size and some of its positions."""
    n = draw(st.integers(0, 100))
    return draw(st.sets(st.integers(0, n - 1)) if n else st.just(set())), n


@given(sets())
def test_a_bitmap_is_one_little_endian_number(case: tuple[set[int], int]) -> None:
    some, n = case
    bits = bitmap(some, n)
    assert bits == sum(1 << i for i in some).to_bytes((n + 7) // 8, "little")
    assert members(bits, n) == tuple(sorted(some))


@given(st.integers(0, 100), st.integers(0, 20))
def test_a_bitmap_of_another_length_is_refused(n: int, length: int) -> None:
    expected = (n + 7) // 8
    if length == expected:
        assert members(bytes(length), n) == ()
    else:
        with pytest.raises(RemoteError, match=f"expected {expected} bytes, got {length}"):
            members(bytes(length), n)


@given(sets(), st.integers(0, 7))
def test_a_position_beyond_the_cohort_is_refused(case: tuple[set[int], int], beyond: int) -> None:
    some, n = case
    bits = bytearray(bitmap(some, n))
    if n + beyond < 8 * len(bits):
        bits[-1] |= 1 << (n + beyond) % 8
        with pytest.raises(RemoteError, match="beyond the cohort"):
            members(bytes(bits), n)


@given(st.integers(1, 40), st.data())
def test_a_bitmap_has_one_encoding(n: int, data: st.DataObject) -> None:
    length = (n + 7) // 8
    raw = data.draw(st.binary(min_size=length, max_size=length))
    try:
        found = members(raw, n)
    except RemoteError:
        assert int.from_bytes(raw, "little") >> n
    else:
        assert bitmap(found, n) == raw
