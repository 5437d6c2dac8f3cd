"""phe: keys and numbers in both directions, and vectors that add and scale like its numbers."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import phe
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedavg.adapters.phe import (
    EncryptedVector,
    Scheme,
    decrypt_numbers,
    encrypt_numbers,
    from_phe,
    to_phe,
)
from secagg.invalid import Invalid
from secagg.paillier import Encryptor, PublicKey, generate
from secagg.randomness import seeded

KEY = generate(2048, seeded(b"for phe"))
OTHER = generate(2048, seeded(b"another"))
ENCRYPTOR = Encryptor(KEY.public)
SCHEME = Scheme(100.0, -6, 50)
STEP = 16.0**-6


def test_keys_in_both_directions() -> None:
    public, private = to_phe(KEY.public), to_phe(KEY)
    assert public.n == KEY.public.n
    assert private.decrypt(public.encrypt(-2.5)) == -2.5
    back = from_phe(private)
    assert (back.p * back.q, back.public) == (KEY.p * KEY.q, PublicKey(KEY.public.n))
    theirs, secret = phe.generate_paillier_keypair(n_length=2048)
    assert from_phe(secret).decrypt(Encryptor(from_phe(theirs)).encrypt([7])) == [7]


def test_keys_of_phe_that_are_too_short_or_none() -> None:
    small, secret = phe.generate_paillier_keypair(n_length=512)
    for key in (small, secret):
        with pytest.raises(Invalid, match="2048"):
            from_phe(key)
    with pytest.raises(TypeError, match="expected one of phe's, got int"):
        from_phe(7)


PUBLISHED = [3.141592653, 300, -4.6e-12]
"""The numbers of the first example in phe's documentation."""


def test_numbers_that_we_encrypt_are_phes() -> None:
    private = to_phe(KEY)
    numbers = encrypt_numbers(ENCRYPTOR, PUBLISHED, -14)
    assert [private.decrypt(x) for x in numbers] == pytest.approx(PUBLISHED, abs=16.0**-14)
    assert {x.exponent for x in numbers} == {-14}
    a, b, c = numbers
    assert private.decrypt(a + 5) == pytest.approx(8.141592653)
    assert private.decrypt(a + b - c * 3) == pytest.approx(303.141592653 + 1.38e-11, abs=1e-15)
    before = a.ciphertext(be_secure=False)
    assert a.ciphertext() == before  # it was obfuscated: not once more


def test_numbers_of_phe_are_read_here() -> None:
    public = to_phe(KEY.public)
    numbers = [public.encrypt(x, precision=1e-9) for x in (1.25, -7.5, 0.0)]
    least = min(x.exponent for x in numbers)
    assert decrypt_numbers(KEY, numbers, least).tolist() == [1.25, -7.5, 0.0]
    with pytest.raises(Invalid, match="expected an exponent from the -8"):
        decrypt_numbers(KEY, [public.encrypt(1e-30)], -8)
    with pytest.raises(Invalid, match="another key"):
        decrypt_numbers(OTHER, numbers, -20)
    for exponent in (10**12, 201, None, 1.5, float("inf"), True):  # computed with, it would fill the memory
        with pytest.raises(Invalid, match="expected an exponent"):
            decrypt_numbers(KEY, [phe.EncryptedNumber(public, 5, exponent)], -8)
    half = public.n // 2
    with pytest.raises(Invalid, match="overflowed"):
        decrypt_numbers(KEY, [phe.EncryptedNumber(public, public.raw_encrypt(half), 0)], 0)
    with pytest.raises(Invalid, match="beyond what a float holds"):
        decrypt_numbers(KEY, [phe.EncryptedNumber(public, public.raw_encrypt(half // 2), 0)], 0)


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.lists(st.floats(-100, 100), min_size=5, max_size=5), min_size=1, max_size=4),
    st.lists(st.integers(1, 12), min_size=4, max_size=4),
)
def test_vectors_add_and_scale_like_numbers(rows: list[list[float]], factors: list[int]) -> None:
    total = EncryptedVector.encrypt(ENCRYPTOR, rows[0], SCHEME) * factors[0]
    for row, factor in zip(rows[1:], factors[1:], strict=False):
        total = total + np.int64(factor) * EncryptedVector.encrypt(ENCRYPTOR, row, SCHEME)
    wanted = sum(f * np.array(row) for f, row in zip(factors, rows, strict=False))
    found = total.obfuscate(ENCRYPTOR).decrypt(KEY)
    np.testing.assert_allclose(found, wanted, atol=sum(factors) * STEP / 2 * (1 + 1e-9))


def test_a_long_vector_takes_few_ciphertexts() -> None:
    values = np.linspace(-100, 100, 1000)
    vector = EncryptedVector.encrypt(ENCRYPTOR, values, SCHEME)
    assert len(vector.ciphertexts) == -(-1000 // (2047 // SCHEME.lanes(KEY.public).width))
    np.testing.assert_allclose(vector.decrypt(KEY), values, atol=STEP)


def test_obfuscating_hides_what_it_was_computed_from() -> None:
    one = EncryptedVector.encrypt(ENCRYPTOR, [1.0], SCHEME)
    for vector in (one * 3, one):
        hidden = vector.obfuscate(ENCRYPTOR)
        assert set(hidden.ciphertexts).isdisjoint(vector.ciphertexts)
        np.testing.assert_array_equal(hidden.decrypt(KEY), vector.decrypt(KEY))


@pytest.mark.parametrize(
    ("values", "said"),
    [([100.1], "too large"), ([-101.0], "too large"), ([float("nan")], "finite"), ([float("inf")], "finite"),
     ([[1.0]], "one dimension"), (3.0, "one dimension")],
)  # fmt: skip
def test_values_that_do_not_fit(values: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        EncryptedVector.encrypt(ENCRYPTOR, values, SCHEME)


def test_integers_are_not_rounded() -> None:
    (number,) = encrypt_numbers(ENCRYPTOR, [2**53 + 1], 0)
    assert to_phe(KEY).decrypt(number) == 2**53 + 1
    with pytest.raises(ValueError, match="64 bits"):
        encrypt_numbers(ENCRYPTOR, [10**400], 0)


@pytest.mark.parametrize("weight", [0, -3, 51, 1.0, None])
def test_vectors_of_others_with_a_weight_that_cannot_be(weight: Any) -> None:
    vector = EncryptedVector.encrypt(ENCRYPTOR, [1.0], SCHEME)
    with pytest.raises(Invalid, match="the scheme has room for 1 to 50"):
        replace(vector, weight=weight)


def test_a_lane_that_is_fuller_than_its_weight_allows_is_refused() -> None:
    lanes = SCHEME.lanes(KEY.public)
    made = ENCRYPTOR.encrypt(lanes.pack(np.array([2 * SCHEME.steps + 1, 0], np.uint64)))
    with pytest.raises(Invalid, match="beyond what its weight allows"):
        EncryptedVector(KEY.public, SCHEME, made, 2, 1).decrypt(KEY)


def test_nothing_wraps_around() -> None:
    vector = EncryptedVector.encrypt(ENCRYPTOR, [100.0, -100.0], SCHEME)
    full = vector * 50
    np.testing.assert_allclose(full.decrypt(KEY), [5000, -5000])
    for beyond in (lambda: full + vector, lambda: vector * 51, lambda: vector * 10**400):
        with pytest.raises(ValueError, match="the scheme has room for 50"):
            beyond()
    for factor in (0, -1):
        with pytest.raises(ValueError, match="positive integer"):
            vector * factor
    with pytest.raises(TypeError):
        vector * 1.5  # type: ignore[operator]
    with pytest.raises(TypeError):
        vector + 1  # type: ignore[operator]


def test_vectors_of_other_kinds_do_not_mix() -> None:
    vector = EncryptedVector.encrypt(ENCRYPTOR, [1.0], SCHEME)
    others = Encryptor(OTHER.public)
    for other in (
        EncryptedVector.encrypt(others, [1.0], SCHEME),
        EncryptedVector.encrypt(ENCRYPTOR, [1.0, 2.0], SCHEME),
        EncryptedVector.encrypt(ENCRYPTOR, [1.0], Scheme(50.0, -6, 50)),
    ):
        with pytest.raises(ValueError, match="one key, one scheme and one length"):
            vector + other
    with pytest.raises(ValueError, match="expected the vector's"):
        vector.decrypt(OTHER)
    with pytest.raises(ValueError, match="for the vector's key"):
        vector.obfuscate(others)


@pytest.mark.parametrize(
    ("scheme", "said"),
    [((0.0, -4, 5), "positive limit"), ((1.0, -4, 0), "weight"), ((1.0, -4, 2.5), "weight"),
     ((1e30, -4, 5), "too large"),
     ((1.0, 1000, 5), "exponent"), ((1.0, True, 5), "exponent"), ((float("nan"), 0, 5), "positive limit")],
)  # fmt: skip
def test_schemes_that_cannot_be(scheme: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Scheme(*scheme)


def test_paillier_itself_never_imports_phe() -> None:
    code = "import sys, secagg.paillier, secagg; assert 'phe' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
