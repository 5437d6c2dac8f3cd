"""From a short seed to a mask as long as the model: AES-128-CTR, added to a vector as it is made.

The seed is 16 bytes derived by HKDF-SHA256 (`keys.derive`) from a secret that is used for nothing else,
so the counter may start at zero. No stream is ever held at full length: chunks of coordinates run
outermost and streams inside, so that the chunk of the accumulator stays in cache while every stream is
added to it, and the work is bounded by the cipher itself. A counter can start anywhere, so ranges of
coordinates are independent work: for threads (`threaded`), or for machines (`offset`).

CTR mode gives a stream indistinguishable from random while the blocks used stay far below 2^64; it
authenticates nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from secagg.ring import Ring, Vector

SEED_BYTES = 16
CHUNK_BYTES = 1 << 17  # accumulator, keystream and zeros together fit a 1 MiB second-level cache
_ZEROS = bytes(CHUNK_BYTES)
_BATCH = 1024  # streams open at a time: bounds the memory of their cipher contexts
_BLOCK_BYTES = 16
_CACHE_LINE = 64
_WORTH_A_THREAD = 1 << 23  # bytes of keystream: starting a thread and its ciphers costs a tenth of that


class Expand(Protocol):
    """What adds keystreams to a vector: `accumulate`, or the same work split among many."""

    def __call__(self, ring: Ring, vector: Vector, add: Sequence[bytes], subtract: Sequence[bytes]) -> Vector:
        """See `accumulate`."""
        ...


def accumulate(
    ring: Ring, vector: Vector, add: Sequence[bytes] = (), subtract: Sequence[bytes] = (), *, offset: int = 0
) -> Vector:
    """`vector` plus the keystreams of the seeds in `add`, minus those in `subtract`: a new vector.

    `vector` has dtype `ring.dtype` and any length. A keystream is read as little-endian words of that
    dtype, one an entry. Entries wrap modulo the dtype and are left unreduced: call `ring.reduce` when
    all is added. `offset` is the place in the keystreams of the vector's first entry, a whole number of
    16-byte blocks: `vector` is then that range of a longer one.

    Raises `ValueError` for a seed that is not 16 bytes or another offset.
    """
    per_block = _BLOCK_BYTES // ring.dtype.itemsize
    if offset < 0 or offset % per_block:
        raise ValueError(f"offset: expected a multiple of {per_block}, got {offset}")
    out = np.empty_like(vector)
    _accumulate_into(out, ring, vector, add, subtract, offset)
    return out


def _accumulate_into(
    out: Vector, ring: Ring, vector: Vector, add: Sequence[bytes], subtract: Sequence[bytes], offset: int
) -> None:
    if any(len(seed) != SEED_BYTES for seed in (*add, *subtract)):
        raise ValueError(f"seed: expected an AES key of {SEED_BYTES} bytes")
    signed = [(seed, np.add) for seed in add] + [(seed, np.subtract) for seed in subtract]
    counter = (offset * ring.dtype.itemsize // _BLOCK_BYTES).to_bytes(_BLOCK_BYTES, "big")
    size = CHUNK_BYTES // ring.dtype.itemsize
    keystream, sums = (_aligned(min(size, vector.size), ring.dtype) for _ in range(2))
    source = vector
    for first in range(0, max(len(signed), 1), _BATCH):
        streams = [
            (Cipher(algorithms.AES128(seed), modes.CTR(counter)).encryptor().update_into, operation)
            for seed, operation in signed[first : first + _BATCH]
        ]
        for start in range(0, vector.size, size):
            before = source[start : start + size]
            pad, running = keystream[: before.size], sums[: before.size]
            zeros = _ZEROS[: pad.nbytes]  # bytes slices of full length are not copied
            target = pad.data.cast("B")
            # Sums are kept aligned, wherever the vector lies: unaligned, every addition takes half as long
            # again. The first addition reads from the vector.
            for write, operation in streams:
                write(zeros, target)
                operation(before, pad, running)
                before = running
            out[start : start + size] = before
        source = out


def threaded(threads: int) -> Expand:
    """`accumulate` on so many threads, each with its range of the coordinates; the same result.

    OpenSSL and numpy release the interpreter's lock while they work on a chunk. Less than some
    milliseconds' work stays on one thread. Raises `ValueError` unless `threads` is a positive integer.
    """
    if type(threads) is not int or threads < 1:
        raise ValueError(f"threads: expected a positive integer, got {threads!r}")

    def expand(
        ring: Ring, vector: Vector, add: Sequence[bytes] = (), subtract: Sequence[bytes] = ()
    ) -> Vector:
        worth = vector.nbytes * (len(add) + len(subtract)) // _WORTH_A_THREAD
        parts = ranges(ring, vector.size, min(threads, worth))
        if len(parts) < 2:
            return accumulate(ring, vector, add, subtract)
        out = np.empty_like(vector)
        with ThreadPoolExecutor(len(parts)) as pool:
            work = [
                pool.submit(_accumulate_into, out[start:end], ring, vector[start:end], add, subtract, start)
                for start, end in parts
            ]
            for done in work:
                done.result()
        return out

    return expand


def ranges(ring: Ring, dim: int, parts: int) -> list[tuple[int, int]]:
    """Cut `dim` coordinates into at most `parts` ranges (start, end) that are worked on apart; at least one.

    Each is of whole chunks, but for the last one's end, and they differ by one chunk at most: `start` is an
    `offset` for `accumulate`.
    """
    step = CHUNK_BYTES // ring.dtype.itemsize
    chunks = -(-dim // step)
    parts = max(1, min(parts, chunks))
    return list(pairwise(min(chunks * i // parts * step, dim) for i in range(parts + 1)))


def _aligned(size: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    """An uninitialised array that begins a cache line, which numpy's own do not."""
    spare = np.empty(size * dtype.itemsize + _CACHE_LINE, np.uint8)
    start = -spare.ctypes.data % _CACHE_LINE
    return spare[start : start + size * dtype.itemsize].view(dtype)
