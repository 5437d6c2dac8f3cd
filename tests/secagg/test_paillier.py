"""Paillier: packing, exact sums, keys and ciphertexts of others, and phe as a witness."""

from __future__ import annotations

import itertools
from typing import Any

import gmpy2
import numpy as np
import phe
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secagg import paillier
from secagg.invalid import Invalid
from secagg.lanes import Lanes
from secagg.paillier import Encryptor, PrivateKey, PublicKey, add, generate
from secagg.powers import FixedBase
from secagg.randomness import seeded

KEY = generate(2048, seeded(b"a key"))
PUBLIC, N = KEY.public, KEY.public.n
BITS = 2047
ENCRYPTOR = Encryptor(PUBLIC)


def phe_keys() -> tuple[Any, Any]:
    public = phe.PaillierPublicKey(N)
    return public, phe.PaillierPrivateKey(public, KEY.p, KEY.q)


# ---------------------------------------------------------------------------------------- lanes

vectors = st.tuples(st.integers(2, 1 << 40), st.integers(1, 12), st.integers(1, 50), st.integers(0, 400))


@given(vectors, st.integers(0, 2**32))
def test_sums_in_lanes_are_exact_up_to_the_bound(case: tuple[int, int, int, int], seed: int) -> None:
    """The largest values, with the largest weights, of as many clients as declared: nothing reaches over."""
    bound, clients, weight, dim = case
    lanes, rng = Lanes.fitting(BITS, bound, clients, weight), np.random.default_rng(seed)
    values = rng.integers(0, bound, (clients, dim), endpoint=False)
    values[:, : dim // 2] = bound - 1
    packed = [lanes.pack(v) for v in values]
    assert all(m < 1 << BITS for row in packed for m in row)
    total = [weight * sum(column) for column in zip(*packed, strict=True)]
    np.testing.assert_array_equal(lanes.unpack(total, dim), (weight * values.sum(0)).astype(np.uint64))
    assert lanes.count == BITS // lanes.width
    assert clients * weight * (bound - 1) < 1 << lanes.width


def test_what_is_beyond_the_lanes_can_be_left_out() -> None:
    lanes = Lanes.fitting(BITS, 1 << 8, 3)
    (full,) = lanes.pack(np.arange(5))
    found = lanes.unpack([full | 1 << 2040 | 1 << 7 * lanes.width], 5, strict=False)
    assert found.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("values", [[-1, 2], [0, 1 << 10]])
def test_values_are_not_written_over_their_neighbours(values: list[int]) -> None:
    with pytest.raises(ValueError, match="from 0 to 2\\^10 - 1"):
        Lanes.fitting(BITS, 1 << 8, 3).pack(np.array(values))


@pytest.mark.parametrize(
    ("bound", "clients", "weight", "said"),
    [(1, 5, 1, "bound"), (2, 0, 1, "clients"), (2, 5, 0, "weight"), (1 << 60, 17, 1, "need 65 bits"),
     (1 << 32, 100, 1 << 30, "need 69 bits")],
)  # fmt: skip
def test_lanes_that_cannot_be(bound: int, clients: int, weight: int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Lanes.fitting(BITS, bound, clients, weight)


def test_the_widest_lanes() -> None:
    lanes = Lanes.fitting(BITS, 1 << 60, 16)
    assert lanes.width == 64
    values = np.full(70, (1 << 60) - 1, np.uint64)
    total = [16 * m for m in lanes.pack(values)]
    np.testing.assert_array_equal(lanes.unpack(total, 70), np.full(70, 16 * ((1 << 60) - 1), np.uint64))


def test_plaintexts_that_hold_something_else() -> None:
    lanes = Lanes(20, 100)
    good = lanes.pack(np.arange(150))
    assert len(good) == 2
    for bad, said in (
        (good[:1], "expected 2, got 1"), ([good[0], good[1] | 1 << 20 * 50], "beyond the last value"),
        ([good[0] | 1 << 2000, good[1]], "above its lanes"), ([-1, good[1]], "above its lanes"),
    ):  # fmt: skip
        with pytest.raises(Invalid, match=said):
            lanes.unpack(bad, 150)


# ------------------------------------------------------------------------------------ encryption


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, N - 1), min_size=1, max_size=3), st.integers(1, 2**32))
def test_what_is_encrypted_is_decrypted_added_and_scaled(plaintexts: list[int], factor: int) -> None:
    found = ENCRYPTOR.encrypt(plaintexts)
    assert KEY.decrypt(found) == plaintexts
    assert KEY.decrypt(add(PUBLIC, [found, found, found])) == [3 * m % N for m in plaintexts]
    scaled = [gmpy2.powmod(c, factor, PUBLIC.square) for c in found]
    assert KEY.decrypt(scaled) == [factor * m % N for m in plaintexts]
    assert PUBLIC.unpack(PUBLIC.pack(found), len(found)) == found


def test_a_whole_vector_of_ten_clients() -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(0, 1 << 16, (10, 500))
    lanes = Lanes.fitting(BITS, 1 << 16, 10)
    total = add(PUBLIC, [ENCRYPTOR.encrypt(lanes.pack(v)) for v in values])
    np.testing.assert_array_equal(lanes.unpack(KEY.decrypt(total), 500), values.sum(0))


def test_the_same_plaintext_never_looks_the_same() -> None:
    """No randomiser is 0 or 1, in which a ciphertext would show its plaintext (a trap of phe's)."""
    found = ENCRYPTOR.encrypt([7] * 50)
    assert len(set(found)) == 50
    assert all(c % N not in (0, 1) for c in found)


@pytest.mark.parametrize("plaintext", [-1, N, N + 5], ids=map(str, itertools.count()))
def test_plaintexts_beyond_are_refused(plaintext: int) -> None:
    with pytest.raises(ValueError, match="plaintext: expected a number from 0 to n - 1") as caught:
        ENCRYPTOR.encrypt([1, plaintext])
    assert str(plaintext) not in str(caught.value)


def test_a_key_without_a_base_takes_full_randomisers() -> None:
    public = PublicKey(N)
    found = Encryptor(public).encrypt([0, 5, N - 1])
    assert PrivateKey(KEY.p, KEY.q, public).decrypt(found) == [0, 5, N - 1]


def test_randomisers_open_ciphertexts() -> None:
    """The R of a ciphertext proves what it holds, to who has no key."""
    (c,) = ENCRYPTOR.encrypt([12345])
    r, n = KEY.randomiser(int(c)), gmpy2.mpz(N)
    assert (1 + 12345 * n) * gmpy2.powmod(r, n, n * n) % (n * n) == c
    (c,), ((plaintext, exponent),) = ENCRYPTOR.encrypt_openly([9])
    assert plaintext == 9
    assert gmpy2.powmod(PUBLIC.h, exponent, n * n) * (1 + 9 * n) % (n * n) == c
    assert exponent < 1 << PUBLIC.short


@given(st.integers(0, (1 << 200) - 1), st.integers(1, 100_000))
@settings(deadline=None, max_examples=20)
def test_tables_of_powers(exponent: int, count: int) -> None:
    table = FixedBase(PUBLIC.h, N, 200, count)
    assert table.power(gmpy2.mpz(exponent)) == gmpy2.powmod(PUBLIC.h, exponent, N * N)


# ------------------------------------------------------------------------------------------ keys


def test_keys_are_what_the_paper_asks_for() -> None:
    p, q = KEY.p, KEY.q
    assert p % 4 == q % 4 == 3
    assert gmpy2.gcd(p - 1, q - 1) == 2
    assert p * q == N
    assert N.bit_length() == 2048
    order = (p - 1) * (q - 1)
    assert gmpy2.powmod(PUBLIC.h, order, N * N) == 1  # an n-th residue
    assert gmpy2.jacobi(PUBLIC.h % N, N) == 1
    assert PUBLIC.short == 1024
    assert generate(2048, seeded(b"a key")) == KEY
    assert generate(2048, seeded(b"another")).public.n != N


def test_a_private_key_shows_nothing() -> None:
    assert str(KEY.p) not in repr(KEY)
    assert str(KEY.q) not in repr(KEY)


@pytest.mark.parametrize("bits", [1024, 2047, 2049, 0, -2, True, 2048.0, 1 << 20])
def test_sizes_that_are_refused(bits: Any) -> None:
    with pytest.raises(ValueError, match="bits: expected an even number from 2048"):
        generate(bits, seeded(b""))


PRIME = int(gmpy2.next_prime(1 << 2047))


@pytest.mark.parametrize(
    ("n", "h", "short", "said"),
    [
        (N // 2**1100, 0, 0, "got 948"), (1 << 20_000, 0, 0, "to 16384 bits"), (-N, 0, 0, "got 0"),
        (N + 1, 0, 0, "small factor"), (3 * PRIME, 0, 0, "small factor"), (PRIME, 0, 0, "a prime"),
        (KEY.p**2, 0, 0, "power"), (N, 0, 1024, "need a base"), (N, PUBLIC.h, 0, "randomisers of 320 or"),
        (N, PUBLIC.h, 100, "randomisers of 320 or"), (N, PUBLIC.h, 1000, "randomisers of 320 or"),
        (N, PUBLIC.h, 4096, "randomisers of 320 or"), (N, 1, 1024, "its base"),
        (N, N**2 - 1, 1024, "its base"), (N, N**2 + 5, 1024, "its base"), (N, KEY.p, 1024, "its base"),
        (N, 1 + N, 1024, "its base"),
        (N, -7, 1024, "its base"), (float(1 << 1000), 0, 0, "expected integers"), (True, 0, 0, "integers"),
    ],
    ids=map(str, itertools.count()),
)  # fmt: skip
def test_keys_of_others_that_are_none(n: Any, h: int, short: int, said: str) -> None:
    with pytest.raises(Invalid, match=said):
        PublicKey(n, h, short)


def test_short_randomisers_only_when_asked() -> None:
    assert PublicKey(N, PUBLIC.h, 320).short == 320


def test_private_keys_that_are_none() -> None:
    for p, q, said in ((KEY.p, KEY.q + 2, "not those"), (1, N, "primes"), (N, 1, "primes")):
        with pytest.raises(ValueError, match=said):
            PrivateKey(p, q, PUBLIC)


# --------------------------------------------------------------------------- ciphertexts of others


@pytest.mark.parametrize(
    "bad", [0, -1, N, N * N, N * N + 1, KEY.p, KEY.q * 7, 3 * N], ids=map(str, itertools.count())
)
def test_ciphertexts_that_are_none(bad: int) -> None:
    good = ENCRYPTOR.encrypt([1, 2])
    assert PUBLIC.checked(good, 2) == good
    with pytest.raises(Invalid, match="ciphertext"):
        PUBLIC.checked([good[0], bad, good[1]])


def test_bytes_that_are_no_ciphertexts() -> None:
    data = PUBLIC.pack(ENCRYPTOR.encrypt([1, 2]))
    assert len(data) == 2 * PUBLIC.ciphertext_bytes == 2 * 512
    for bad, count in ((data[:-1], 2), (data + b"\0", 2), (data, 1), (b"", 1), (bytes(len(data)), 2),
                       (b"\xff" * len(data), 2)):  # fmt: skip
        with pytest.raises(Invalid, match="ciphertext"):
            PUBLIC.unpack(bad, count)
    with pytest.raises(Invalid, match="expected 3, got 2"):
        PUBLIC.checked([1, 2], 3)


def test_vectors_of_different_lengths_are_not_added() -> None:
    with pytest.raises(ValueError, match="expected 2, got 1"):
        add(PUBLIC, [[1, 2], [1]])
    with pytest.raises(ValueError, match="at least one"):
        add(PUBLIC, [])


# --------------------------------------------------------------------------------- phe as a witness


def test_phe_reads_our_ciphertexts_and_we_its() -> None:
    public, private = phe_keys()
    for m in (0, 1, 12345, N // 4):
        (ours,) = ENCRYPTOR.encrypt([m])
        assert private.raw_decrypt(int(ours)) == m
        theirs = public.raw_encrypt(m)
        assert KEY.decrypt([theirs]) == [m]
        assert KEY.decrypt(add(PUBLIC, [[ours], [theirs]])) == [2 * m]


def test_small_keys_agree_with_phe(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole scheme on numbers that a person can follow."""
    monkeypatch.setattr(paillier, "LEAST_BITS", 4)
    monkeypatch.setattr(paillier, "SMALL", 2)
    key = PrivateKey(293, 433, PublicKey(126869))
    public = phe.PaillierPublicKey(126869)
    private = phe.PaillierPrivateKey(public, 293, 433)
    for m in (0, 1, 10100, 126868):
        for r in (6, 11, 126867):
            c = public.raw_encrypt(m, r_value=r)
            assert key.decrypt([c]) == [private.raw_decrypt(c)] == [m]
            assert key.randomiser(c) == r % 126869
