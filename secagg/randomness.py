"""Where random bytes come from: the operating system, or a seed when a run must be repeatable.

Both are cryptographic. Nothing in `secagg/` or `protocols/` draws from anywhere else.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from secagg.labels import Label, digest

Rng = Callable[[int], bytes]
"""`rng(n)` returns n fresh bytes."""

system: Rng = os.urandom
"""The operating system's generator: the only one for real sessions."""


def below(limit: int, rng: Rng) -> int:
    """From 0 to limit - 1, uniform to 2^-128."""
    return int.from_bytes(rng((int(limit).bit_length() + 7) // 8 + 16), "little") % int(limit)


def seeded(*parts: bytes) -> Rng:
    """A generator whose bytes are a function of `parts`: AES-256-CTR under their SHA-256.

    As unpredictable as its input: used for simulations and vectors (a public seed), and by a client to
    expand secret entropy that it drew from `system`. Not safe to share between threads.
    """
    keystream = Cipher(algorithms.AES256(digest(Label.SEEDED, *parts)), modes.CTR(bytes(16))).encryptor()
    return lambda n: keystream.update(bytes(n))
