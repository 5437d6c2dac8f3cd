"""Sealing bytes under a shared key: XChaCha20-Poly1305 through libsodium (PyNaCl's `nacl.secret.Aead`).

A sealed box is nonce (24 bytes), ciphertext and tag (16 bytes). The associated data is not sent: both
sides derive it (session hash, sender, recipient, kind), so a box moved to another place does not open.
"""

from __future__ import annotations

from nacl.exceptions import CryptoError
from nacl.secret import Aead

from secagg.invalid import Invalid
from secagg.randomness import Rng

OVERHEAD_BYTES = 24 + 16
KEY_BYTES = 32


def seal(key: bytes, plaintext: bytes, associated: bytes, rng: Rng) -> bytes:
    """Encrypt and authenticate: len(plaintext) + 40 bytes."""
    return bytes(Aead(key).encrypt(plaintext, associated, rng(Aead.NONCE_SIZE)))


def unseal(key: bytes, box: bytes, associated: bytes) -> bytes:
    """Decrypt what `seal` made with the same key and associated data; else `Invalid`."""
    try:
        return Aead(key).decrypt(box, associated)
    except (CryptoError, ValueError):
        raise Invalid("sealed box does not open") from None
