"""`secagg.ring` against arithmetic on one big integer: entry i is worth 2^(i * bits)."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secagg.invalid import Invalid
from secagg.randomness import seeded
from secagg.ring import MAX_BITS, MIN_BITS, Ring, Vector

WIDTHS = range(MIN_BITS, MAX_BITS + 1)
NATIVE = (8, 16, 32, 64)


def pack_slowly(values: list[int], bits: int) -> bytes:
    """The definition: every entry in binary, the first one last, read as one little-endian integer."""
    digits = "".join(f"{v:0{bits}b}" for v in reversed(values))
    return int(digits or "0", 2).to_bytes((len(values) * bits + 7) // 8, "little")


def uniform(ring: Ring, dim: int, seed: bytes = b"") -> list[int]:
    """`dim` pseudo-random entries."""
    words = np.frombuffer(seeded(b"ring", seed)(8 * dim), "<u8")
    return [int(w) >> (64 - ring.bits) for w in words]


@st.composite
def cases(draw: st.DrawFn) -> tuple[Ring, list[int]]:
    """A ring and a reduced vector, its extremes included."""
    ring = Ring(draw(st.sampled_from(WIDTHS)))
    entry = st.integers(0, 2**ring.bits - 1) | st.sampled_from((0, 1, 2 ** (ring.bits - 1), 2**ring.bits - 1))
    return ring, draw(st.lists(entry, max_size=40))


@given(cases())
def test_packed_form_is_one_big_integer(case: tuple[Ring, list[int]]) -> None:
    ring, values = case
    packed = bytes(ring.pack(np.array(values, ring.dtype)))
    assert packed == pack_slowly(values, ring.bits)
    assert len(packed) == ring.packed_size(len(values))
    unpacked = ring.unpack(packed, len(values))
    assert unpacked.tolist() == values
    assert unpacked.dtype == ring.dtype


@pytest.mark.parametrize("bits", WIDTHS)
def test_every_width_at_every_length_of_a_group(bits: int) -> None:
    ring = Ring(bits)
    full = [*uniform(ring, 110), *([2**bits - 1] * 20)]  # a group has at most 64 entries
    for dim in range(len(full) + 1):
        packed = bytes(ring.pack(np.array(full[:dim], ring.dtype)))
        assert packed == pack_slowly(full[:dim], bits)
        assert ring.unpack(packed, dim).tolist() == full[:dim]


@pytest.mark.parametrize("bits", [9, 12, 20, 25, 26, 40, 57, 58, 63])
@pytest.mark.parametrize("beyond", [-1, 0, 1, 7])
def test_parts_are_joined_without_a_seam(bits: int, beyond: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secagg.ring._GROUPS", 50)  # groups of eight entries are converted at a time
    ring = Ring(bits)
    dim = 3 * 50 * 8 + beyond
    values = uniform(ring, dim)
    packed = bytes(ring.pack(np.array(values, ring.dtype)))
    assert packed == pack_slowly(values, bits)
    assert ring.unpack(packed, dim).tolist() == values


@given(cases(), st.integers(0, 2**64 - 1))
def test_adding_to_an_unreduced_sum_reduces_to_the_sum(case: tuple[Ring, list[int]], start: int) -> None:
    ring, values = case
    width = 8 * ring.dtype.itemsize
    before = [(start + i * i) % 2**width for i in range(len(values))]  # unreduced, as a running sum is
    total = np.array(before, ring.dtype)
    ring.add_packed(total, ring.pack(np.array(values, ring.dtype)))
    ring.reduce(total)
    assert total.tolist() == [(a + b) % 2**ring.bits for a, b in zip(before, values, strict=True)]


@given(st.sampled_from(WIDTHS), st.integers(1, 9), st.integers(1, 70), st.binary(max_size=8))
def test_the_sum_of_many_is_exact(bits: int, parties: int, dim: int, seed: bytes) -> None:
    ring, total = Ring(bits), Ring(bits).zeros(dim)
    vectors = [uniform(ring, dim, seed + bytes([p])) for p in range(parties)]
    for values in vectors:
        ring.add_packed(total, ring.pack(np.array(values, ring.dtype)))
    ring.reduce(total)
    assert total.tolist() == [sum(column) % 2**bits for column in zip(*vectors, strict=True)]


@pytest.mark.parametrize("bits", WIDTHS)
def test_a_view_at_an_odd_address_is_read_as_it_stands(bits: int) -> None:
    # A frame is a view into an envelope, at whatever offset the names left it.
    ring = Ring(bits)
    values = uniform(ring, 130)
    letter = b"name!" + pack_slowly(values, bits)
    assert ring.unpack(memoryview(letter)[5:], 130).tolist() == values


def untouched(ring: Ring, data: bytes, dim: int, why: str) -> None:
    """`data` is refused, and a total it was to be added to is as before."""
    before = uniform(ring, dim, b"before")
    total = np.array(before, ring.dtype)
    with pytest.raises(Invalid, match=why):
        ring.add_packed(total, data)
    assert total.tolist() == before
    with pytest.raises(Invalid, match=why):
        ring.unpack(data, dim)


@pytest.mark.parametrize("bits", WIDTHS)
def test_wrong_length_is_refused_with_the_total_untouched(bits: int) -> None:
    ring = Ring(bits)
    for dim in (1, 5, 64, 131):
        size = ring.packed_size(dim)
        for length in {0, 1, size - 1, size + 1, size + 8, 2 * size} - {size}:
            untouched(ring, bytes(length), dim, f"expected {size} bytes, got {length}")


@pytest.mark.parametrize("bits", [b for b in WIDTHS if b % 8])
def test_every_padding_bit_is_refused_with_the_total_untouched(bits: int) -> None:
    ring = Ring(bits)
    refused = 0
    for dim in range(1, 18):
        packed = bytearray(pack_slowly(uniform(ring, dim), bits))
        for bit in range(dim * bits, 8 * len(packed)):
            packed[-1] ^= 1 << bit % 8
            untouched(ring, bytes(packed), dim, "padding")
            packed[-1] ^= 1 << bit % 8
            refused += 1
        assert ring.unpack(bytes(packed), dim).tolist() == uniform(ring, dim)
    assert refused


@given(st.sampled_from(WIDTHS), st.integers(0, 20), st.data())
def test_a_vector_has_one_encoding(bits: int, dim: int, data: st.DataObject) -> None:
    ring = Ring(bits)
    size = ring.packed_size(dim)
    raw = data.draw(st.binary(min_size=size, max_size=size))
    if int.from_bytes(raw, "little") >> dim * bits:
        untouched(ring, raw, dim, "padding")
    else:
        assert bytes(ring.pack(ring.unpack(raw, dim))) == raw


@pytest.mark.parametrize("bits", WIDTHS)
def test_the_dtype_is_the_smallest_that_holds_the_ring(bits: int) -> None:
    ring = Ring(bits)
    assert ring.dtype.kind == "u"
    assert bits <= 8 * ring.dtype.itemsize < max(2 * bits, 9)
    assert ring.native == (bits in NATIVE)
    assert ring.zeros(3).tolist() == [0, 0, 0]
    assert ring.zeros(3).dtype == ring.dtype


@pytest.mark.parametrize("bits", [3, 65, 0, -8, True, 8.0, "8", None])
def test_a_width_out_of_range_is_refused(bits: object) -> None:
    with pytest.raises(ValueError, match="4 to 64"):
        Ring(bits)  # type: ignore[arg-type]


@pytest.mark.parametrize("bits", NATIVE)
def test_native_widths_are_packed_without_a_copy(bits: int) -> None:
    ring = Ring(bits)
    vector = ring.zeros(10)
    packed = ring.pack(vector)
    vector[3] = 7
    assert packed[3 * bits // 8] == 7


def peak_bytes(ring: Ring, total: Vector, data: bytes) -> int:
    tracemalloc.start()
    try:
        ring.add_packed(total, data)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("bits", [12, 20, 32])
def test_adding_makes_nothing_of_full_length(bits: int) -> None:
    ring = Ring(bits)
    total = ring.zeros(1_000_003)
    data = bytes(ring.pack(total))
    assert peak_bytes(ring, total, data) < total.nbytes / 2


@settings(max_examples=30)
@given(cases())
def test_reduce_changes_the_vector_in_place(case: tuple[Ring, list[int]]) -> None:
    ring, values = case
    vector = np.array([2 ** (8 * ring.dtype.itemsize) - 1 - v for v in values], ring.dtype)
    before = vector.tolist()
    ring.reduce(vector)
    assert vector.tolist() == [v % 2**ring.bits for v in before]


@pytest.mark.parametrize("dim", [3, 8, 9])
def test_integers_of_another_dtype_are_packed_exactly(dim: int) -> None:
    values = [2**60 + 1, 2, 3, 4, 5, 6, 7, 8, 9][:dim]
    assert bytes(Ring(61).pack(np.array(values, np.int64))) == pack_slowly(values, 61)
