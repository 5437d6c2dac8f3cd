"""From a short seed to a mask as long as the model: AES-128-CTR, added straight into a vector.

The seed is 16 bytes derived by HKDF-SHA256 (`keys.derive`) from a secret that is used for nothing else,
so the counter may start at zero. No stream is ever held at full length: chunks of coordinates run
outermost and streams inside, so that the chunk of the accumulator stays in cache while every stream is
added to it, and the work is bounded by the cipher itself.

CTR mode gives a stream indistinguishable from random while the blocks used stay far below 2^64; it
authenticates nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from secagg.ring import Ring, Vector

SEED_BYTES = 16
CHUNK_BYTES = 1 << 17  # accumulator, keystream and zeros together fit a 1 MiB second-level cache
_ZEROS = bytes(CHUNK_BYTES)
_BATCH = 1024  # streams open at a time: bounds the memory of their cipher contexts


def accumulate(ring: Ring, vector: Vector, add: Sequence[bytes] = (), subtract: Sequence[bytes] = ()) -> None:
    """Add the keystreams of the seeds in `add` to `vector` and subtract those in `subtract`, in place.

    `vector` has dtype `ring.dtype` and any length. A keystream is read as little-endian words of that
    dtype, one an entry. Entries wrap modulo the dtype and are left unreduced: call `ring.reduce` when
    all is added.
    """
    signed = [(seed, np.add) for seed in add] + [(seed, np.subtract) for seed in subtract]
    step = CHUNK_BYTES // ring.dtype.itemsize
    keystream = np.empty(step, ring.dtype)
    for first in range(0, len(signed), _BATCH):
        streams = [
            (Cipher(algorithms.AES128(seed), modes.CTR(bytes(16))).encryptor(), operation)
            for seed, operation in signed[first : first + _BATCH]
        ]
        for start in range(0, vector.size, step):
            part = vector[start : start + step]
            pad = keystream[: part.size]
            zeros = _ZEROS[: pad.nbytes]  # bytes slices of full length are not copied
            target = pad.data.cast("B")
            for stream, operation in streams:
                stream.update_into(zeros, target)
                operation(part, pad, out=part)
