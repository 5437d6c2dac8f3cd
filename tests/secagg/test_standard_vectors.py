"""The published vectors of each primitive, through our own wrappers wherever these can take them.

They are read from the package `cryptography_vectors`; nothing is copied here. Where a wrapper fixes
something that a vector varies (a salt, a counter), a plain reference is written down, checked against
every vector, and then compared with the wrapper. The vectors of AES-CTR are those of RFC 3686; of NIST's
AESAVS, the blocks of zeros under many keys are the first block of our keystreams.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterator
from itertools import pairwise

import cryptography_vectors
import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given
from hypothesis import strategies as st

from secagg import keys, prg
from secagg.invalid import Invalid
from secagg.keys import AgreementKey, Identity
from secagg.labels import Label, bind, digest
from secagg.randomness import seeded
from secagg.ring import Ring


def lines(path: str) -> Iterator[str]:
    with cryptography_vectors.open_vector_file(path, "r") as file:
        yield from (line.strip() for line in file)


def records(path: str) -> list[dict[str, str]]:
    """The `NAME = value` blocks of a vector file, up to the part on decryption if it has one."""
    found: list[dict[str, str]] = []
    for line in lines(path):
        if line == "[DECRYPT]":
            break
        name, equals, value = line.partition("=")
        if not equals or line.startswith("#"):
            continue
        if name.strip() == "COUNT":
            found.append({})
        found[-1][name.strip()] = value.strip()
    return found


def unhex(record: dict[str, str], *names: str) -> list[bytes]:
    return [bytes.fromhex(record[name]) for name in names]


# --------------------------------------------------------------------- X25519: RFC 7748, section 5.2


def test_x25519_vectors_through_agree() -> None:
    found = records("asymmetric/X25519/rfc7748.txt")
    assert len(found) >= 3
    for record in found:
        scalar, u, output = unhex(record, "INPUT_SCALAR", "INPUT_U", "OUTPUT_U")
        key = AgreementKey(scalar)
        expected = hkdf(output, b"", bind(Label.MASK, b"context", *sorted((key.public, u))), 48)[1]
        assert key.agree(u, Label.MASK, b"context", 48) == expected


def test_x25519_vectors_of_the_base_point_are_public_keys() -> None:
    found = [r for r in records("asymmetric/X25519/rfc7748.txt") if int(r["INPUT_U"][:2], 16) == 9]
    assert found
    for record in found:
        scalar, u, output = unhex(record, "INPUT_SCALAR", "INPUT_U", "OUTPUT_U")
        assert u == bytes([9]) + bytes(31)
        assert AgreementKey(scalar).public == output


# ------------------------------------------------------- Ed25519: RFC 8032 and its authors' sign.input


def ed25519_vectors() -> list[tuple[bytes, bytes, bytes, bytes]]:
    """Secret, public, message and signature."""
    found = []
    for line in lines("asymmetric/Ed25519/sign.input"):
        secret, public, message, signed = (bytes.fromhex(part) for part in line.split(":")[:4])
        found.append((secret[:32], public, message, signed[:64]))
    return found


def test_ed25519_vectors_through_sign_and_verify() -> None:
    found = ed25519_vectors()
    assert len(found) == 1024
    for secret, public, message, signature in found:
        identity = Identity(secret)
        assert identity.public == public
        assert identity.sign(message) == signature
        keys.verify(public, message, signature)


def test_ed25519_vectors_under_another_key_or_message_do_not_verify() -> None:
    found = ed25519_vectors()
    for (_, public, message, signature), (_, other, _, _) in pairwise(found):
        with pytest.raises(Invalid):
            keys.verify(other, message, signature)
        with pytest.raises(Invalid):
            keys.verify(public, message + b"!", signature)


# -------------------------------------------------------------------------- HKDF-SHA256: RFC 5869


def hkdf(secret: bytes, salt: bytes, info: bytes, length: int) -> tuple[bytes, bytes]:
    """The extracted key and the output of RFC 5869."""
    extracted, block, out = hmac.digest(salt or bytes(32), secret, "sha256"), b"", b""
    for i in range(1, -(-length // 32) + 1):
        block = hmac.digest(extracted, block + info + bytes([i]), "sha256")
        out += block
    return extracted, out[:length]


@pytest.mark.parametrize(("name", "least"), [("rfc-5869-HKDF-SHA256", 3), ("hkdf-generated", 1)])
def test_hkdf_vectors_through_the_reference(name: str, least: int) -> None:
    found = [r for r in records(f"KDF/{name}.txt") if r["Hash"] == "SHA-256"]
    assert len(found) >= least
    for record in found:
        secret, salt, info, output = unhex(record, "IKM", "salt", "info", "OKM")
        extracted, derived = hkdf(secret, salt, info, int(record["L"]))
        assert derived == output
        assert "PRK" not in record or extracted == bytes.fromhex(record["PRK"])


@pytest.mark.parametrize("name", ["rfc-5869-HKDF-SHA256", "hkdf-generated"])
def test_hkdf_vectors_without_salt_and_info_through_derive(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # `derive` gives every info a label; with `bind` silenced it is what these vectors are of.
    monkeypatch.setattr(keys, "bind", lambda label, *context: b"".join(context))
    found = [r for r in records(f"KDF/{name}.txt") if r["Hash"] == "SHA-256" and not r["salt"]]
    assert found
    for record in found:
        secret, info, output = unhex(record, "IKM", "info", "OKM")
        assert keys.derive(secret, Label.MASK, info, length=int(record["L"])) == output


@given(
    st.binary(min_size=1, max_size=80),
    st.sampled_from(list(Label)),
    st.binary(max_size=40),
    st.integers(1, 300),
)
def test_derive_is_the_checked_construction(secret: bytes, label: Label, context: bytes, length: int) -> None:
    expected = hkdf(secret, b"", bind(label, context), length)[1]
    assert keys.derive(secret, label, context, length=length) == expected


# -------------------------------------------------------------------------------- AES: keystreams


def ctr(key: bytes, first: bytes, length: int) -> bytes:
    """AES-CTR as SP 800-38A defines it: each counter block encrypted by itself."""
    start = int.from_bytes(first, "big")
    blocks = b"".join(((start + i) % 2**128).to_bytes(16, "big") for i in range(-(-length // 16)))
    return Cipher(algorithms.AES(key), modes.ECB()).encryptor().update(blocks)[:length]


def keystream(seed: bytes, length: int) -> bytes:
    """What `accumulate` adds to a vector of bytes that are zero."""
    vector = Ring(8).zeros(length)
    vector = prg.accumulate(Ring(8), vector, [seed])
    return vector.tobytes()


@pytest.mark.parametrize("bits", [128, 256])
def test_ctr_vectors_through_the_reference(bits: int) -> None:
    found = records(f"ciphers/AES/CTR/aes-{bits}-ctr.txt")
    assert len(found) >= 3
    for record in found:
        key, first, plaintext, ciphertext = unhex(record, "KEY", "IV", "PLAINTEXT", "CIPHERTEXT")
        pad = ctr(key, first, len(plaintext))
        assert bytes(p ^ k for p, k in zip(plaintext, pad, strict=True)) == ciphertext


@pytest.mark.parametrize(("name", "count"), [("KeySbox", 21), ("VarKey", 128)])
def test_nist_vectors_of_zero_blocks_through_accumulate(name: str, count: int) -> None:
    found = records(f"ciphers/AES/ECB/ECB{name}128.rsp")
    assert len(found) == count
    for record in found:
        key, plaintext, ciphertext = unhex(record, "KEY", "PLAINTEXT", "CIPHERTEXT")
        assert plaintext == bytes(16)  # which is our first counter block
        assert keystream(key, 16) == ciphertext


@given(st.binary(min_size=16, max_size=16), st.integers(0, 2000))
def test_accumulate_adds_the_checked_keystream(seed: bytes, length: int) -> None:
    assert keystream(seed, length) == ctr(seed, bytes(16), length)


def test_accumulate_adds_the_checked_keystream_across_chunks_and_dtypes() -> None:
    seed = bytes(range(16))
    stream = ctr(seed, bytes(16), 2 * prg.CHUNK_BYTES + 64)
    for bits in (8, 16, 32, 64):
        ring = Ring(bits)
        vector = ring.zeros(8 * len(stream) // bits)
        vector = prg.accumulate(ring, vector, [seed])
        assert np.array_equal(vector, np.frombuffer(stream, ring.dtype))


@given(st.binary(max_size=20), st.integers(0, 2000))
def test_the_seeded_generator_is_the_checked_keystream(seed: bytes, length: int) -> None:
    assert seeded(seed)(length) == ctr(digest(Label.SEEDED, seed), bytes(16), length)
