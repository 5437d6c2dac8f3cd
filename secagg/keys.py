"""Keys: X25519 agreement (RFC 7748), Ed25519 identity (RFC 8032), derivation by HKDF-SHA256 (RFC 5869).

A secret key never appears in a repr or an error. Python cannot wipe memory: erasing a key means dropping
the last reference to it.
"""

from __future__ import annotations

from functools import lru_cache

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from nacl.bindings import crypto_core_ed25519_is_valid_point

from secagg.invalid import Invalid, exact_length
from secagg.labels import Label, bind
from secagg.randomness import Rng, system

KEY_BYTES = 32
SIGNATURE_BYTES = 64
_FIELD_PRIME = 2**255 - 19


class Identity:
    """A party's long-term Ed25519 signing key. `public` (32 bytes) goes into the roster."""

    __slots__ = ("_key", "public")

    def __init__(self, secret: bytes) -> None:
        exact_length("identity secret", secret, KEY_BYTES)
        self._key = Ed25519PrivateKey.from_private_bytes(secret)
        self.public: bytes = self._key.public_key().public_bytes_raw()

    @classmethod
    def generate(cls, rng: Rng = system) -> Identity:
        """A new identity from 32 bytes of `rng`."""
        return cls(rng(KEY_BYTES))

    def sign(self, message: bytes) -> bytes:
        """The 64-byte Ed25519 signature of `message`."""
        return self._key.sign(message)

    def __repr__(self) -> str:
        return f"Identity({self.public.hex()[:16]}…)"


def verify(public: bytes, message: bytes, signature: bytes) -> None:
    """Raise `Invalid` unless `signature` is `public`'s Ed25519 signature of `message`."""
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except (InvalidSignature, ValueError):
        raise Invalid("signature does not verify") from None


@lru_cache(1 << 12)  # the same roster is checked in every round
def check_identity(public: bytes) -> None:
    """Refuse what is not a canonical Ed25519 public key of full order.

    For a point of small order anyone can make signatures that verify, of any message.
    """
    exact_length("identity", public, KEY_BYTES)
    if not crypto_core_ed25519_is_valid_point(public):
        raise Invalid("identity: not an Ed25519 public key of full order")


class AgreementKey:
    """An X25519 key pair, fresh for one session. `public` and `secret` are 32 bytes each."""

    __slots__ = ("_key", "public", "secret")

    def __init__(self, secret: bytes) -> None:
        exact_length("agreement key", secret, KEY_BYTES)
        self.secret = secret
        self._key = X25519PrivateKey.from_private_bytes(secret)
        self.public: bytes = self._key.public_key().public_bytes_raw()

    def agree(self, peer: bytes, label: Label, context: bytes, length: int = KEY_BYTES) -> bytes:
        """A key of `length` bytes shared with the owner of `peer`, bound to `label`, `context` and both keys.

        The same on both sides. `Invalid` if the agreement is all zeros (a point of small order), which
        would be a key that anyone can compute (RFC 7748, section 6.1).
        """
        try:
            shared = self._key.exchange(X25519PublicKey.from_public_bytes(peer))
        except ValueError:
            raise Invalid("agreement key: a point of small order, or not 32 bytes") from None
        return derive(shared, label, context, *sorted((self.public, peer)), length=length)

    def __repr__(self) -> str:
        return f"AgreementKey({self.public.hex()[:16]}…)"


# The canonical u-coordinates of small order, on the curve and its twist: 0, 1, the two of order 8, and -1
# (D. J. Bernstein, https://cr.yp.to/ecdh.html#validate, less the encodings that are not canonical).
_SMALL_ORDER = frozenset(
    u.to_bytes(KEY_BYTES, "little")
    for u in (
        0,
        1,
        325606250916557431795983626356110631294008115727848805560023387167927233504,
        39382357235489614581723060781553021112529911719440698176882885853963445705823,
        _FIELD_PRIME - 1,
    )
)


def check_canonical(public: bytes) -> None:
    """Refuse an X25519 public key that is not the one encoding of its point."""
    exact_length("agreement key", public, KEY_BYTES)
    if int.from_bytes(public, "little") >= _FIELD_PRIME:
        raise Invalid("agreement key: not the canonical encoding of its point")


def check_agreement_public(public: bytes) -> None:
    """Refuse what is not canonical, or gives all-zero agreements."""
    check_canonical(public)
    if public in _SMALL_ORDER:
        raise Invalid("agreement key: a point of small order")


def derive(secret: bytes, label: Label, *context: bytes, length: int = KEY_BYTES) -> bytes:
    """HKDF-SHA256 of `secret` with `bind(label, *context)` as info and no salt: `length` bytes."""
    return HKDF(SHA256(), length, None, bind(label, *context)).derive(secret)
