"""`secagg.prg` against AES-128-CTR in one piece and Python's own integers."""

from __future__ import annotations

import tracemalloc
from itertools import product
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given
from hypothesis import strategies as st

from secagg import prg
from secagg.randomness import seeded
from secagg.ring import Ring, Vector

SEED = st.binary(min_size=prg.SEED_BYTES, max_size=prg.SEED_BYTES)
SEEDS = st.lists(SEED, max_size=4)
RINGS = [Ring(bits) for bits in (8, 12, 16, 24, 32, 40, 64)]
LENGTHS = [(0, 0), (0, 1), (1, -1), (1, 0), (1, 1), (2, -1), (2, 0), (2, 3)]  # whole chunks, and entries more


def keystream(seed: bytes, ring: Ring, dim: int) -> list[int]:
    """The whole stream at once: little-endian words of the ring's dtype, counter from zero."""
    width = ring.dtype.itemsize
    stream = Cipher(algorithms.AES128(seed), modes.CTR(bytes(16))).encryptor().update(bytes(dim * width))
    return [int.from_bytes(stream[i : i + width], "little") for i in range(0, len(stream), width)]


def accumulate_slowly(
    ring: Ring, values: list[int], add: list[bytes], subtract: list[bytes]
) -> list[int]:  # fmt: skip
    """What `accumulate` must give, entry by entry."""
    for sign, seeds in ((1, add), (-1, subtract)):
        for seed in seeds:
            stream = keystream(seed, ring, len(values))
            values = [v + sign * s for v, s in zip(values, stream, strict=True)]
    return [v % 2 ** (8 * ring.dtype.itemsize) for v in values]


def start(ring: Ring, dim: int) -> list[int]:
    """An unreduced vector to begin with."""
    words = np.frombuffer(seeded(b"prg")(dim * ring.dtype.itemsize), ring.dtype)
    return [int(w) for w in words]


def seeds(count: int) -> list[bytes]:
    """Distinct seeds."""
    return [i.to_bytes(prg.SEED_BYTES, "big") for i in range(count)]


@given(st.sampled_from(RINGS), st.integers(0, 200), SEEDS, SEEDS)
def test_accumulate_adds_and_subtracts_keystreams(
    ring: Ring, dim: int, add: list[bytes], subtract: list[bytes]
) -> None:  # fmt: skip
    values = start(ring, dim)
    vector = np.array(values, ring.dtype)
    vector = prg.accumulate(ring, vector, add, subtract)
    assert vector.tolist() == accumulate_slowly(ring, values, add, subtract)


@pytest.mark.parametrize("ring", RINGS, ids=lambda r: f"b{r.bits}")
@pytest.mark.parametrize(("chunks", "more"), LENGTHS)
def test_chunks_are_joined_without_a_seam(ring: Ring, chunks: int, more: int) -> None:
    dim = chunks * prg.CHUNK_BYTES // ring.dtype.itemsize + more
    values = start(ring, dim)
    vector = np.array(values, ring.dtype)
    add, subtract = seeds(3)[:2], seeds(3)[2:]
    vector = prg.accumulate(ring, vector, add, subtract)
    assert vector.tolist() == accumulate_slowly(ring, values, add, subtract)


@given(st.sampled_from(RINGS), st.integers(0, 100), SEEDS)
def test_adding_then_subtracting_changes_nothing(ring: Ring, dim: int, some: list[bytes]) -> None:
    before = start(ring, dim)
    vector = np.array(before, ring.dtype)
    vector = prg.accumulate(ring, vector, add=some)
    assert not some or dim < 20 or vector.tolist() != before
    vector = prg.accumulate(ring, vector, subtract=some)
    assert vector.tolist() == before
    vector = prg.accumulate(ring, vector, add=some, subtract=some)
    assert vector.tolist() == before


@pytest.mark.parametrize("ring", RINGS, ids=lambda r: f"b{r.bits}")
def test_add_then_subtract_over_chunks_changes_nothing(ring: Ring) -> None:
    before = start(ring, 2 * prg.CHUNK_BYTES // ring.dtype.itemsize + 5)
    vector = np.array(before, ring.dtype)
    vector = prg.accumulate(ring, vector, add=seeds(3))
    vector = prg.accumulate(ring, vector, subtract=seeds(3))
    assert vector.tolist() == before


@pytest.mark.parametrize("added", [0, 1023, 1024, 1025, 2049])
def test_more_streams_than_are_open_at_a_time(added: int) -> None:
    ring, values = Ring(32), start(Ring(32), 5)
    vector = np.array(values, ring.dtype)
    every = seeds(2060)
    vector = prg.accumulate(ring, vector, every[:added], every[added:])
    assert vector.tolist() == accumulate_slowly(ring, values, every[:added], every[added:])


def test_batches_and_chunks_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prg, "_BATCH", 3)
    ring = Ring(24)
    values = start(ring, prg.CHUNK_BYTES // 4 + 2)
    vector = np.array(values, ring.dtype)
    vector = prg.accumulate(ring, vector, seeds(7)[:4], seeds(7)[4:])
    assert vector.tolist() == accumulate_slowly(ring, values, seeds(7)[:4], seeds(7)[4:])


@given(st.sampled_from(RINGS), st.integers(2, 6), st.integers(0, 50))
def test_pairwise_masks_cancel_in_the_sum(ring: Ring, parties: int, dim: int) -> None:
    pair = {(i, j): bytes([i, j]) * 8 for j in range(parties) for i in range(j)}
    total = ring.zeros(dim)
    for p in range(parties):
        masked = np.full(dim, p + 1, ring.dtype)
        masked = prg.accumulate(
            ring,
            masked,
            [s for (i, _), s in pair.items() if i == p],
            [s for (_, j), s in pair.items() if j == p],
        )
        total += masked
    assert total.tolist() == [parties * (parties + 1) // 2] * dim


@pytest.mark.parametrize("length", [0, 15, 17, 24, 32])
def test_a_seed_of_another_length_is_refused(length: int) -> None:
    ring = Ring(16)
    vector = ring.zeros(4)
    with pytest.raises(ValueError, match="seed: expected an AES key of 16 bytes"):
        prg.accumulate(ring, vector, [seeds(1)[0], bytes(length)])


@given(st.sampled_from(RINGS), st.integers(0, 60), st.integers(0, 60), SEEDS, SEEDS)
def test_a_range_of_coordinates_can_be_done_alone(
    ring: Ring, blocks: int, dim: int, add: list[bytes], subtract: list[bytes]
) -> None:  # fmt: skip
    offset = blocks * 16 // ring.dtype.itemsize
    values = start(ring, offset + dim)
    vector = np.array(values, ring.dtype)
    first = prg.accumulate(ring, vector[:offset], add, subtract)
    rest = prg.accumulate(ring, vector[offset:], add, subtract, offset=offset)
    assert first.tolist() + rest.tolist() == accumulate_slowly(ring, values, add, subtract)
    assert vector.tolist() == values


def test_the_counter_goes_beyond_32_bits() -> None:
    # 2^33 blocks into the stream, which no machine would expand from its start.
    ring, offset, seed = Ring(32), 1 << 35, seeds(1)[0]
    vector = prg.accumulate(ring, ring.zeros(8), [seed], offset=offset)
    counter = [(offset // 4 + i).to_bytes(16, "big") for i in range(2)]
    cipher = Cipher(algorithms.AES128(seed), modes.ECB()).encryptor()
    assert vector.tobytes() == cipher.update(b"".join(counter))


@pytest.mark.parametrize("offset", [-4, 1, 2, 3, 5])
def test_an_offset_within_a_block_is_refused(offset: int) -> None:
    vector = Ring(32).zeros(4)
    with pytest.raises(ValueError, match="offset: expected a multiple of 4"):
        prg.accumulate(Ring(32), vector, seeds(1), offset=offset)


@pytest.mark.parametrize("ring", RINGS, ids=lambda r: f"b{r.bits}")
@pytest.mark.parametrize("threads", [1, 2, 3, 7])
@pytest.mark.parametrize(("chunks", "more"), [(0, 0), (0, 3), (1, 1), (2, 0), (4, 5)])
def test_threads_give_the_same(
    ring: Ring, threads: int, chunks: int, more: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prg, "_WORTH_A_THREAD", 1)
    ranges: list[int] = []
    one_range = prg._accumulate_into

    def watched(out: Vector, *rest: Any) -> None:
        ranges.append(out.size)
        one_range(out, *rest)

    monkeypatch.setattr(prg, "_accumulate_into", watched)
    step = prg.CHUNK_BYTES // ring.dtype.itemsize
    vector = np.array(start(ring, chunks * step + more), ring.dtype)
    found = prg.threaded(threads)(ring, vector, seeds(3)[:1], seeds(3)[1:])
    assert len(ranges) == min(threads, max(1, chunks + (more > 0)))
    assert sum(ranges) == vector.size
    assert np.array_equal(found, prg.accumulate(ring, vector, seeds(3)[:1], seeds(3)[1:]))


def test_little_work_stays_on_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prg, "ThreadPoolExecutor", None)
    assert prg.threaded(8)(Ring(32), Ring(32).zeros(prg.CHUNK_BYTES), seeds(2), []).any()


@pytest.mark.parametrize("threads", [0, -1, True, 2.0, "2"])
def test_an_impossible_number_of_threads_is_refused(threads: Any) -> None:
    with pytest.raises(ValueError, match="threads: expected a positive integer"):
        prg.threaded(threads)


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_refuse_a_bad_seed(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prg, "_WORTH_A_THREAD", 1)
    vector = Ring(32).zeros(prg.CHUNK_BYTES)
    with pytest.raises(ValueError, match="seed"):
        prg.threaded(threads)(Ring(32), vector, [*seeds(2000), bytes(15)], [])


@pytest.mark.parametrize("shift", range(0, 64, 4))
def test_any_alignment_of_the_vector_gives_the_same(shift: int) -> None:
    ring = Ring(32)
    values = start(ring, 40_000)
    room = np.zeros(4 * len(values) + 64, np.uint8)
    vector = room[shift : shift + 4 * len(values)].view("<u4")
    vector[:] = values
    vector = prg.accumulate(ring, vector, seeds(2), seeds(3)[2:])
    assert vector.tolist() == accumulate_slowly(ring, values, seeds(2), seeds(3)[2:])


@pytest.mark.parametrize("ring", RINGS, ids=lambda r: f"b{r.bits}")
def test_coordinates_are_cut_evenly_into_whole_chunks(ring: Ring) -> None:
    step = prg.CHUNK_BYTES // ring.dtype.itemsize
    for chunks, more in product(range(12), (0, 1, step - 1)):
        dim, whole = chunks * step + more, chunks + (more > 0)
        for wanted in range(9):
            found = prg.ranges(ring, dim, wanted)
            assert len(found) == max(1, min(wanted, whole))
            assert [0, *(end for _, end in found)] == [*(start for start, _ in found), dim]
            assert all(start % step == 0 for start, _ in found)
            lengths = [-(-(end - start) // step) for start, end in found]
            assert max(lengths) - min(lengths) <= 1


def test_no_stream_is_held_at_full_length() -> None:
    ring = Ring(64)
    vector = ring.zeros(16 * prg.CHUNK_BYTES // 8)
    tracemalloc.start()
    try:
        prg.accumulate(ring, vector, seeds(10), seeds(10))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < vector.nbytes * 5 / 4  # the result, and little more
