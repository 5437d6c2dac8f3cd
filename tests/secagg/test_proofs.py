"""Proofs about ciphertexts and keys: what is right is accepted, and nothing that an attacker would try."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import gmpy2
import pytest

from secagg import proofs
from secagg.invalid import Invalid
from secagg.labels import Label
from secagg.paillier import Encryptor, PrivateKey, PublicKey, generate
from secagg.powers import combined
from secagg.proofs import (
    PlaintextProof,
    check_key,
    check_openings,
    check_plaintexts,
    prove_key,
    prove_openings,
    prove_plaintexts,
)
from secagg.randomness import seeded

KEY = generate(2048, seeded(b"for proofs"))
PUBLIC, N = KEY.public, KEY.public.n
PLAINTEXTS = [0, 1, 12345, N - 1, N // 2, 7, 7]
found, OPENINGS = Encryptor(PUBLIC).encrypt_openly(PLAINTEXTS, seeded(b"r"))
CIPHERTEXTS = [int(c) for c in found]
HERE = b"session, round 3, oslo"


def proof(context: bytes = HERE) -> PlaintextProof:
    return prove_plaintexts(PUBLIC, CIPHERTEXTS, OPENINGS, context)


# ------------------------------------------------------------------------------------------ plaintexts


def test_who_knows_the_plaintexts_can_prove_it() -> None:
    check_plaintexts(PUBLIC, CIPHERTEXTS, proof(), HERE)
    one, other = proof(), proof()
    assert one != other  # masked anew
    check_plaintexts(PUBLIC, CIPHERTEXTS, prove_plaintexts(PUBLIC, CIPHERTEXTS, OPENINGS, HERE), HERE)


def test_a_proof_is_for_one_context_and_one_key() -> None:
    """Somebody else's, or that of another round, is none."""
    for other in (b"", b"session, round 4, oslo", b"session, round 3, pisa"):
        with pytest.raises(Invalid, match="does not hold"):
            check_plaintexts(PUBLIC, CIPHERTEXTS, proof(), other)
    same_modulus = PublicKey(N, pow(PUBLIC.h, 3, N * N), PUBLIC.short)
    with pytest.raises(Invalid, match="does not hold"):
        check_plaintexts(same_modulus, CIPHERTEXTS, proof(), HERE)


@pytest.mark.parametrize("how", ["copied", "inverted", "squared", "negated", "shifted", "one replaced"])
def test_ciphertexts_made_of_anothers_cannot_be_proved(how: str) -> None:
    """The attacker has a victim's ciphertexts and their proof, and knows neither plaintexts nor randomisers.

    It replays the proof, or answers as well as it can for what it does not know.
    """
    square = N * N
    made = {
        "copied": CIPHERTEXTS, "inverted": [int(gmpy2.invert(c, square)) for c in CIPHERTEXTS],
        "squared": [c * c % square for c in CIPHERTEXTS], "negated": [square - c for c in CIPHERTEXTS],
        "shifted": [c * (1 + N) % square for c in CIPHERTEXTS],
        "one replaced": [CIPHERTEXTS[1], *CIPHERTEXTS[1:]],
    }[how]  # fmt: skip
    mine = b"session, round 3, mallory"
    with pytest.raises(Invalid, match="does not hold"):
        check_plaintexts(PUBLIC, made, proof(), mine)
    guess = prove_plaintexts(PUBLIC, made, [(0, 0)] * len(made), mine)
    with pytest.raises(Invalid, match="does not hold"):
        check_plaintexts(PUBLIC, made, guess, mine)


def test_a_negated_ciphertext_has_the_same_plaintext() -> None:
    """Why nothing need be squared first: -1 is an n-th residue, and so an encryption of 0."""
    assert KEY.decrypt([N * N - c for c in CIPHERTEXTS]) == PLAINTEXTS


@pytest.mark.parametrize("part", ["masks", "plaintexts", "randomisers"])
@pytest.mark.parametrize("place", [0, 8])
def test_a_tampered_proof_is_refused(part: str, place: int) -> None:
    good = proof()
    values = list(getattr(good, part))
    values[place] = (values[place] + 1) % (N if part == "plaintexts" else 1 << 4000)
    with pytest.raises(Invalid):
        check_plaintexts(PUBLIC, CIPHERTEXTS, replace(good, **{part: tuple(values)}), HERE)


@pytest.mark.parametrize(
    "change",
    [
        {"masks": ()}, {"plaintexts": ()}, {"randomisers": (0,) * 10}, {"masks": (0,) * 9},
        {"masks": (KEY.p,) * 9}, {"plaintexts": (-1,) * 9}, {"plaintexts": (N,) * 9},
        {"randomisers": (-1,) * 9}, {"randomisers": (1 << 9000,) * 9}, {"masks": (1,) * 9},
        {"masks": (1,) * 9, "plaintexts": (0,) * 9, "randomisers": (0,) * 9},
    ],
    ids=map(str, itertools.count()),
)  # fmt: skip
def test_proofs_that_are_none(change: dict[str, Any]) -> None:
    with pytest.raises(Invalid):
        check_plaintexts(PUBLIC, CIPHERTEXTS, replace(proof(), **change), HERE)


def test_a_proof_tells_neither_plaintexts_nor_randomisers() -> None:
    """What it says of them is behind a mask that is longer by 128 bits, and another each time."""
    one, two = proof(), proof()
    for which, place, hidden in (("plaintexts", 0, N.bit_length() - 20), ("randomisers", 1, 128)):
        statement = [int(c) for c in CIPHERTEXTS]
        rows = list(proofs._coefficients(PUBLIC, Label.PLAINTEXT_PROOF, HERE, statement, one.masks))
        sums = [sum(e * o[place] for e, o in zip(row, OPENINGS, strict=True)) for row in rows]
        masks = [(v - s) % N if not place else v - s for v, s in zip(getattr(one, which), sums, strict=True)]
        least = hidden if not place else max(s.bit_length() for s in sums) + 100
        assert all(mask.bit_length() > least for mask in masks)
        assert not set(getattr(one, which)) & set(getattr(two, which))


# -------------------------------------------------------------------------------------------- openings


def test_the_owner_opens_and_everybody_can_check() -> None:
    plaintexts, roots = prove_openings(KEY, CIPHERTEXTS)
    assert plaintexts == PLAINTEXTS
    check_openings(PUBLIC, CIPHERTEXTS, plaintexts, roots)


@pytest.mark.parametrize("place", range(3))
def test_a_false_opening_is_found(place: int) -> None:
    """A plaintext, a root, a ciphertext: any one of them changed; also by multiples of a factor of n."""
    plaintexts, roots = prove_openings(KEY, CIPHERTEXTS)
    for by in (1, KEY.p, N // 2):
        parts = [list(CIPHERTEXTS), list(plaintexts), list(roots)]
        parts[place][2] = (parts[place][2] + by) % (N * N if place == 0 else N)
        with pytest.raises(Invalid, match="openings"):
            check_openings(PUBLIC, *parts)


def test_two_false_openings_do_not_cancel() -> None:
    """Whoever adds to one what it takes from another is found: coefficients are not known beforehand."""
    plaintexts, roots = prove_openings(KEY, CIPHERTEXTS)
    plaintexts[0], plaintexts[1] = (plaintexts[0] + 5) % N, (plaintexts[1] - 5) % N
    with pytest.raises(Invalid, match="does not hold"):
        check_openings(PUBLIC, CIPHERTEXTS, plaintexts, roots)


@pytest.mark.parametrize(
    "change", [lambda m, r: (m[:-1], r), lambda m, r: (m, r[1:]), lambda m, r: ([-1, *m[1:]], r),
               lambda m, r: ([N, *m[1:]], r), lambda m, r: (m, [0, *r[1:]]),
               lambda m, r: (m, [N + 1, *r[1:]])]
)  # fmt: skip
def test_openings_that_are_none(change: Any) -> None:
    with pytest.raises(Invalid, match="openings: expected"):
        check_openings(PUBLIC, CIPHERTEXTS, *change(*prove_openings(KEY, CIPHERTEXTS)))


# ------------------------------------------------------------------------------------------------ keys


def test_a_sound_key_is_proved() -> None:
    check_key(PUBLIC, prove_key(KEY, b"oslo"), b"oslo")


def test_a_key_proof_is_for_one_owner() -> None:
    with pytest.raises(Invalid, match="does not hold"):
        check_key(PUBLIC, prove_key(KEY, b"oslo"), b"pisa")
    stolen = PublicKey(N, pow(PUBLIC.h, 3, N * N), PUBLIC.short)
    with pytest.raises(Invalid, match="does not hold"):
        check_key(stolen, prove_key(KEY, b"oslo"), b"oslo")


def test_a_modulus_that_shares_a_factor_with_its_order_is_refused() -> None:
    """q is 1 modulo p: some ciphertexts have many plaintexts, and most numbers have no n-th root."""
    p = gmpy2.next_prime(1 << 800)
    q = next(q for k in itertools.count(1 << 447) if gmpy2.is_prime(q := 2 * k * p + 1))
    public = PublicKey(int(p * q))
    with pytest.raises(ValueError, match="common factor"):
        PrivateKey(int(p), int(q), public)
    # What its owner can do: roots where there are any, by way of the factors.
    order_q = (q - 1) // p
    lies = []
    for x in proofs._unchosen(public, b"mallory"):
        rq = gmpy2.powmod(x % q, gmpy2.invert(p * q, order_q), q)
        rp = gmpy2.powmod(x % p, gmpy2.invert(p * q, p - 1), p)
        lies.append(int((rq + q * ((rp - rq) * gmpy2.invert(q, p) % p)) % (p * q)))
    with pytest.raises(Invalid, match="does not hold"):
        check_key(public, lies, b"mallory")


@pytest.mark.parametrize(
    "change", [lambda p: p[:-1], lambda p: [*p, 1], lambda p: [p[0] + 1, *p[1:]], lambda p: [0, *p[1:]],
               lambda p: [N + p[0], *p[1:]], lambda p: [1.0, *p[1:]]]
)  # fmt: skip
def test_key_proofs_that_are_none(change: Any) -> None:
    with pytest.raises(Invalid, match="key"):
        check_key(PUBLIC, change(prove_key(KEY, b"oslo")), b"oslo")


@pytest.mark.parametrize("width", [1, 2, 16])
def test_products_of_powers(width: int) -> None:
    exponents = [e % (1 << 8 * width) for e in (0, 1, 255, 256, 65535, 40000, 1 << 127)]
    wanted = 1
    for value, exponent in zip(CIPHERTEXTS, exponents, strict=True):
        wanted = wanted * pow(value, exponent, N * N) % (N * N)
    assert combined(CIPHERTEXTS, exponents, width, gmpy2.mpz(N * N)) == wanted
