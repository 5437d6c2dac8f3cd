"""`secagg.keys` against RFC 7748 and RFC 5869 written out over Python's integers and `hmac`."""

from __future__ import annotations

import base64
import hmac

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from secagg import keys
from secagg.invalid import Invalid
from secagg.keys import AgreementKey, Identity
from secagg.labels import Label, bind
from secagg.randomness import seeded

P = 2**255 - 19
KEY = st.binary(min_size=32, max_size=32)
LABEL = st.sampled_from(list(Label))
ORDER_8 = (  # the u-coordinates of the points of order 8; 0, 1 and -1 are those of order 2 and 4
    325606250916557431795983626356110631294008115727848805560023387167927233504,
    39382357235489614581723060781553021112529911719440698176882885853963445705823,
)
SMALL_ORDER = (0, 1, P - 1, *ORDER_8)


def x25519(scalar: bytes, point: bytes) -> bytes:
    """RFC 7748, section 5: the Montgomery ladder, with none of its haste or secrecy."""
    k = int.from_bytes(scalar, "little") & ~7 & ~(1 << 255) | 1 << 254
    u = int.from_bytes(point, "little") % 2**255
    x2, z2, x3, z3 = 1, 0, u, 1
    for t in reversed(range(255)):
        if k >> t & 1:
            x2, z2, x3, z3 = x3, z3, x2, z2
        a, b, c, d = x2 + z2, x2 - z2, x3 + z3, x3 - z3
        aa, bb, da, cb = a * a % P, b * b % P, d * a % P, c * b % P
        x3, z3 = (da + cb) ** 2 % P, u * (da - cb) ** 2 % P
        x2, z2 = aa * bb % P, (aa - bb) * (aa + 121665 * (aa - bb)) % P
        if k >> t & 1:
            x2, z2, x3, z3 = x3, z3, x2, z2
    return (x2 * pow(z2, P - 2, P) % P).to_bytes(32, "little")


def hkdf(secret: bytes, info: bytes, length: int) -> bytes:
    """RFC 5869 with SHA-256 and no salt."""
    extracted, block, out = hmac.digest(bytes(32), secret, "sha256"), b"", b""
    for i in range(1, -(-length // 32) + 1):
        block = hmac.digest(extracted, block + info + bytes([i]), "sha256")
        out += block
    return out[:length]


def public(u: int) -> bytes:
    """A u-coordinate as 32 bytes."""
    return u.to_bytes(32, "little")


# ------------------------------------------------------------------------------------- agreement


@settings(max_examples=40)
@given(KEY, KEY, LABEL, st.binary(max_size=40), st.integers(1, 100))
def test_agreement_is_x25519_then_hkdf_over_both_keys(
    one: bytes, two: bytes, label: Label, context: bytes, length: int
) -> None:
    a, b = AgreementKey(one), AgreementKey(two)
    assert a.public == x25519(one, public(9))
    shared = x25519(one, b.public)
    expected = hkdf(shared, bind(label, context, *sorted((a.public, b.public))), length)
    assert a.agree(b.public, label, context, length) == expected
    assert b.agree(a.public, label, context, length) == expected


@given(KEY, KEY, KEY)
def test_another_peer_label_or_context_gives_another_key(one: bytes, two: bytes, three: bytes) -> None:
    a, b, c = AgreementKey(one), AgreementKey(two), AgreementKey(three)
    assume(len({a.public, b.public, c.public}) == 3)
    found = [
        a.agree(b.public, Label.MASK, b"context"),
        a.agree(c.public, Label.MASK, b"context"),
        b.agree(c.public, Label.MASK, b"context"),
        a.agree(b.public, Label.CHANNEL, b"context"),
        a.agree(b.public, Label.MASK, b"contexu"),
        a.agree(b.public, Label.MASK, b""),
    ]
    assert len(set(found)) == len(found)


def test_every_label_gives_another_key() -> None:
    a, b = AgreementKey(bytes([1] * 32)), AgreementKey(bytes([2] * 32))
    assert len({a.agree(b.public, label, b"") for label in Label}) == len(Label)


@pytest.mark.parametrize("u", SMALL_ORDER)
def test_points_of_small_order_are_refused(u: int) -> None:
    assert x25519(seeded(b"any scalar")(32), public(u)) == bytes(32)
    with pytest.raises(Invalid, match="small order"):
        keys.check_agreement_public(public(u))
    # The same points in their other encodings must not agree either.
    for encoding in {v for v in (u, u + P, u + 2**255, u + P + 2**255) if v % 2**255 % P == u and v < 2**256}:
        with pytest.raises(Invalid):
            keys.check_agreement_public(public(encoding))
        with pytest.raises(Invalid, match="small order"):
            AgreementKey(seeded(b"any scalar")(32)).agree(public(encoding), Label.MASK, b"")


@pytest.mark.parametrize("u", range(P, 2**255))
def test_all_encodings_beyond_the_prime_are_refused(u: int) -> None:
    with pytest.raises(Invalid, match="canonical"):
        keys.check_agreement_public(public(u))


@given(st.integers(0, 2**256 - 1))
def test_a_public_key_has_one_encoding(number: int) -> None:
    if number >= P:
        with pytest.raises(Invalid, match="canonical"):
            keys.check_agreement_public(public(number))
    elif number in SMALL_ORDER:
        with pytest.raises(Invalid, match="small order"):
            keys.check_agreement_public(public(number))
    else:
        keys.check_agreement_public(public(number))


@given(KEY)
def test_the_top_bit_is_no_second_encoding(secret: bytes) -> None:
    own = AgreementKey(secret).public
    keys.check_agreement_public(own)
    with pytest.raises(Invalid, match="canonical"):
        keys.check_agreement_public(own[:31] + bytes([own[31] | 0x80]))


@pytest.mark.parametrize("length", [0, 31, 33, 64])
def test_keys_of_another_length_are_refused(length: int) -> None:
    wrong = b"Z" * length
    for refuse in (keys.check_agreement_public, keys.check_identity, AgreementKey, Identity):
        with pytest.raises(Invalid, match=f"expected 32 bytes, got {length}") as raised:
            refuse(wrong)
        assert "Z" not in str(raised.value)
    with pytest.raises(Invalid, match="not 32 bytes"):
        AgreementKey(bytes(32)).agree(wrong, Label.MASK, b"")


# ------------------------------------------------------------------------------------ derivation


@given(
    st.binary(min_size=1, max_size=64),
    LABEL,
    st.lists(st.binary(max_size=20), max_size=3),
    st.integers(1, 200),
)
def test_derive_is_hkdf(secret: bytes, label: Label, context: list[bytes], length: int) -> None:
    assert keys.derive(secret, label, *context, length=length) == hkdf(secret, bind(label, *context), length)


def test_derive_separates_labels_contexts_and_their_boundaries() -> None:
    contexts = [(), (b"",), (b"ab",), (b"a", b"b"), (b"", b"ab"), (b"ab", b""), (b"ba",)]
    found = {keys.derive(bytes(32), label, *context) for label in Label for context in contexts}
    assert len(found) == len(Label) * len(contexts)


# -------------------------------------------------------------------------------------- identity


@given(KEY, st.binary(max_size=100))
def test_a_signature_verifies_and_no_other_does(secret: bytes, message: bytes) -> None:
    identity = Identity(secret)
    signature = identity.sign(message)
    assert len(signature) == keys.SIGNATURE_BYTES
    keys.check_identity(identity.public)
    keys.verify(identity.public, message, signature)
    other = Identity(bytes(b ^ 1 for b in secret))
    for public_key, signed, claim in (
        (other.public, message, signature),
        (identity.public, message + b"\0", signature),
        (identity.public, message, other.sign(message)),
        (identity.public, message, signature[:-1]),
        (identity.public, message, signature + b"\0"),
        (identity.public, message, b""),
        (identity.public[:-1], message, signature),
        (b"", message, signature),
    ):
        with pytest.raises(Invalid, match="does not verify"):
            keys.verify(public_key, signed, claim)


@given(st.integers(0, 8 * keys.SIGNATURE_BYTES - 1))
def test_a_flipped_bit_is_no_second_signature(bit: int) -> None:
    identity = Identity(bytes(32))
    signature = bytearray(identity.sign(b"message"))
    signature[bit // 8] ^= 1 << bit % 8
    with pytest.raises(Invalid, match="does not verify"):
        keys.verify(identity.public, b"message", bytes(signature))


def test_a_signature_plus_the_group_order_is_refused() -> None:
    # RFC 8032, section 5.1.7: S is below L, or anyone could make a second signature out of a first.
    order = 2**252 + 27742317777372353535851937790883648493
    identity = Identity(bytes(32))
    signature = identity.sign(b"message")
    s = int.from_bytes(signature[32:], "little") + order
    with pytest.raises(Invalid, match="does not verify"):
        keys.verify(identity.public, b"message", signature[:32] + s.to_bytes(32, "little"))


def test_generate_takes_its_32_bytes_from_the_generator() -> None:
    assert Identity.generate(seeded(b"me")).public == Identity(seeded(b"me")(32)).public
    assert Identity.generate().public != Identity.generate().public


# --------------------------------------------------------------------------------------- silence


@given(st.binary(max_size=8), st.sampled_from([Identity, AgreementKey]))
def test_no_text_of_a_key_contains_its_secret(seed: bytes, kind: type) -> None:
    secret = seeded(seed)(32)  # no four bytes of it stand in a text by chance
    key = kind(secret)
    seen = " ".join((repr(key), str(key), f"{key}", repr([key]), "%s" % key)).lower()  # noqa: UP031
    for part in (secret[i : i + 4] for i in range(29)):
        shown = (part.hex(), repr(part)[2:-1].lower(), base64.b64encode(part).decode().rstrip("=").lower())
        assert not any(text in seen for text in shown)
    assert str(int.from_bytes(secret, "little")) not in seen
    assert key.public.hex()[:16] in seen
    assert not hasattr(key, "__dict__")
