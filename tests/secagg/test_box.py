"""`secagg.box` against XChaCha20-Poly1305 put together from its draft, and everything that must not open."""

from __future__ import annotations

import struct

import pytest
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from hypothesis import assume, given
from hypothesis import strategies as st

from secagg import box
from secagg.invalid import Invalid
from secagg.labels import Label, bind
from secagg.randomness import seeded

KEY = st.binary(min_size=32, max_size=32)
TEXT = st.binary(max_size=100)


def hchacha20(key: bytes, nonce: bytes) -> bytes:
    """draft-irtf-cfrg-xchacha-03, section 2.2."""
    state = [
        *struct.unpack("<4I", b"expand 32-byte k"),
        *struct.unpack("<8I", key),
        *struct.unpack("<4I", nonce),
    ]
    columns = [(i, i + 4, i + 8, i + 12) for i in range(4)]
    diagonals = [(i, (i + 1) % 4 + 4, (i + 2) % 4 + 8, (i + 3) % 4 + 12) for i in range(4)]
    for a, b, c, d in (columns + diagonals) * 10:
        for x, y, z, turn in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
            state[x] = (state[x] + state[y]) % 2**32
            mixed = state[z] ^ state[x]
            state[z] = (mixed << turn | mixed >> (32 - turn)) % 2**32
    return struct.pack("<8I", *state[:4], *state[12:])


def test_the_reference_passes_the_vector_of_the_draft() -> None:
    key, nonce = bytes(range(32)), bytes.fromhex("000000090000004a0000000031415927")
    expected = "82413b4227b27bfed30e42508a877d73a0f9e4d58a74a853c12ec41326d3ecdc"
    assert hchacha20(key, nonce).hex() == expected


@given(KEY, TEXT, TEXT, st.binary(max_size=4))
def test_a_box_is_xchacha20_poly1305_behind_its_nonce(
    key: bytes, plaintext: bytes, associated: bytes, seed: bytes
) -> None:  # fmt: skip
    nonce = seeded(seed)(24)
    inner = ChaCha20Poly1305(hchacha20(key, nonce[:16])).encrypt(bytes(4) + nonce[16:], plaintext, associated)
    sealed = box.seal(key, plaintext, associated, seeded(seed))
    assert sealed == nonce + inner
    assert len(sealed) == len(plaintext) + box.OVERHEAD_BYTES
    assert box.unseal(key, sealed, associated) == plaintext


@given(KEY, KEY, TEXT, TEXT, TEXT)
def test_another_key_or_associated_data_does_not_open(
    key: bytes, other: bytes, plaintext: bytes, associated: bytes, moved: bytes
) -> None:  # fmt: skip
    assume(key != other and associated != moved)
    sealed = box.seal(key, plaintext, associated, seeded(b""))
    for k, a in ((other, associated), (key, moved), (other, moved)):
        with pytest.raises(Invalid, match="does not open"):
            box.unseal(k, sealed, a)


def test_a_box_moved_to_another_session_sender_recipient_or_kind_does_not_open() -> None:
    key, here = bytes(32), (b"session", b"\0\1", b"\0\2")
    sealed = box.seal(key, b"shares", bind(Label.SHARES, *here), seeded(b""))
    assert box.unseal(key, sealed, bind(Label.SHARES, *here)) == b"shares"
    for moved in (
        bind(Label.SHARES, b"sessiom", b"\0\1", b"\0\2"),
        bind(Label.SHARES, b"session", b"\0\3", b"\0\2"),
        bind(Label.SHARES, b"session", b"\0\1", b"\0\3"),
        bind(Label.SHARES, b"session", b"\0\2", b"\0\1"),
        bind(Label.SHARES, b"session", b"\0\1\0", b"\2"),
        bind(Label.SNAPSHOT, *here),
    ):
        with pytest.raises(Invalid, match="does not open"):
            box.unseal(key, sealed, moved)


@given(TEXT, st.data())
def test_a_flipped_bit_does_not_open(plaintext: bytes, data: st.DataObject) -> None:
    sealed = bytearray(box.seal(bytes(32), plaintext, b"here", seeded(b"")))
    bit = data.draw(st.integers(0, 8 * len(sealed) - 1))
    sealed[bit // 8] ^= 1 << bit % 8
    with pytest.raises(Invalid, match="does not open"):
        box.unseal(bytes(32), bytes(sealed), b"here")


def test_every_truncation_and_extension_does_not_open() -> None:
    sealed = box.seal(bytes(32), b"message", b"here", seeded(b""))
    for data in [sealed[:i] for i in range(len(sealed))] + [sealed + b"\0", b"\0" + sealed, sealed * 2]:
        with pytest.raises(Invalid, match="does not open"):
            box.unseal(bytes(32), data, b"here")


def test_each_box_takes_a_fresh_nonce_from_the_generator() -> None:
    rng = seeded(b"nonces")
    boxes = [box.seal(bytes(32), b"same", b"here", rng) for _ in range(20)]
    expected = seeded(b"nonces")(24 * 20)
    assert [b[:24] for b in boxes] == [expected[i : i + 24] for i in range(0, len(expected), 24)]
    assert len({b[24:] for b in boxes}) == 20


def test_a_refusal_shows_neither_key_nor_box() -> None:
    key, sealed = b"K" * 32, b"B" * 60
    with pytest.raises(Invalid) as raised:
        box.unseal(key, sealed, b"A")
    assert str(raised.value) == "sealed box does not open"
    assert raised.value.__suppress_context__


@pytest.mark.parametrize("length", [0, 16, 31, 33])
def test_a_key_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        box.seal(bytes(length), b"message", b"", seeded(b""))
    with pytest.raises(ValueError):  # noqa: PT011 - a box under no key does not open either
        box.unseal(bytes(length), bytes(60), b"")
