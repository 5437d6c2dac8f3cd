"""`secagg.randomness`: the seeded generator is AES-256-CTR under the hash of its seed, and nothing else."""

from __future__ import annotations

import os

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given
from hypothesis import strategies as st

from secagg.labels import Label, digest
from secagg.randomness import seeded, system

PARTS = st.lists(st.binary(max_size=20), max_size=3)


def stream_slowly(key: bytes, length: int) -> bytes:
    """Counter blocks from zero, each encrypted by itself."""
    blocks = b"".join(i.to_bytes(16, "big") for i in range(-(-length // 16)))
    return Cipher(algorithms.AES256(key), modes.ECB()).encryptor().update(blocks)[:length]


@given(PARTS, st.integers(0, 5000))
def test_a_seeded_generator_is_a_keystream(parts: list[bytes], length: int) -> None:
    assert seeded(*parts)(length) == stream_slowly(digest(Label.SEEDED, *parts), length)


@given(PARTS, st.lists(st.integers(0, 100), max_size=10))
def test_pieces_join_to_one_stream(parts: list[bytes], lengths: list[int]) -> None:
    rng = seeded(*parts)
    pieces = [rng(n) for n in lengths]
    assert [len(p) for p in pieces] == lengths
    assert b"".join(pieces) == seeded(*parts)(sum(lengths))


@given(PARTS, PARTS)
def test_generators_are_alike_exactly_if_their_seeds_are(one: list[bytes], two: list[bytes]) -> None:
    assert (seeded(*one)(32) == seeded(*two)(32)) == (one == two)


@pytest.mark.parametrize("other", [(b"a", b"b"), (b"ab", b""), (b"", b"ab"), (b"ab\0",), ()])
def test_boundaries_between_parts_matter(other: tuple[bytes, ...]) -> None:
    assert seeded(b"ab")(32) != seeded(*other)(32)


def test_system_is_the_operating_system() -> None:
    assert system is os.urandom
    assert len(system(40)) == 40
