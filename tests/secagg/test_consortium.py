"""A consortium's key: any t open what was encrypted, fewer do not, and a lie of one owner is found."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import gmpy2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secagg import consortium
from secagg.consortium import (
    Consortium,
    KeyShare,
    Proof,
    check_partials,
    combine,
    deal,
    decrypt_partly,
    proof_bytes,
)
from secagg.invalid import Invalid
from secagg.paillier import SAFE_SHORT, Encryptor, PublicKey, add, generate
from secagg.randomness import seeded

KEY, SHARES = deal(5, 3, 2048, seeded(b"a consortium"))
N = KEY.public.n
PLAINTEXTS = [0, 1, N - 1, 12345, 1 << 2000]
CIPHERTEXTS = [int(c) for c in Encryptor(KEY.public, 5).encrypt(PLAINTEXTS, seeded(b"encrypt"))]
OPENED = [decrypt_partly(KEY, share, CIPHERTEXTS, b"round 1", seeded(b"proof")) for share in SHARES]


def test_any_three_of_five_decrypt() -> None:
    for places in itertools.combinations(range(5), 3):
        assert combine(KEY, {place: OPENED[place][0] for place in places}) == PLAINTEXTS
    assert combine(KEY, {place: OPENED[place][0] for place in range(5)}) == PLAINTEXTS


def test_fewer_do_not() -> None:
    with pytest.raises(Invalid, match="expected those of 3 owners"):
        combine(KEY, {0: OPENED[0][0], 4: OPENED[4][0]})
    # Nor when they do what three would: their powers are of nothing.
    with pytest.raises(Invalid, match="not of one ciphertext"):
        combine(replace(KEY, threshold=2), {0: OPENED[0][0], 4: OPENED[4][0]})


@settings(max_examples=5, deadline=None)
@given(st.lists(st.integers(0, N // 8), min_size=2, max_size=6), st.integers(0, 2**32))
def test_sums_are_exact(plaintexts: list[int], seed: int) -> None:
    encryptor = Encryptor(KEY.public, len(plaintexts))
    total = add(KEY.public, [[c] for c in encryptor.encrypt(plaintexts, seeded(repr(seed).encode()))])
    opened = {s.place: decrypt_partly(KEY, s, total, b"")[0] for s in SHARES[1:4]}
    assert combine(KEY, opened) == [sum(plaintexts)]


@pytest.mark.parametrize("owners", [2, 9])
def test_as_many_owners_as_must_decrypt(owners: int) -> None:
    key, shares = deal(owners, owners, 2048, seeded(b"all", bytes([owners])), short=SAFE_SHORT)
    assert key.public.short == SAFE_SHORT
    ciphertexts = Encryptor(key.public, 1).encrypt([77])
    opened = {s.place: decrypt_partly(key, s, ciphertexts, b"")[0] for s in shares}
    assert combine(key, opened) == [77]


# ----------------------------------------------------------------------------------------- proofs


def test_right_partial_decryptions_are_accepted() -> None:
    for place, (partials, proof) in enumerate(OPENED):
        check_partials(KEY, place, CIPHERTEXTS, partials, proof, b"round 1")
        assert Proof.unpack(KEY, proof.pack(KEY)) == proof
        assert len(proof.pack(KEY)) == proof_bytes(KEY)


@pytest.mark.parametrize("at", range(5))
@pytest.mark.parametrize("how", ["plus n", "power", "another's", "one"])
def test_a_wrong_partial_decryption_is_found(at: int, how: str) -> None:
    partials, proof = list(OPENED[1][0]), OPENED[1][1]
    partials[at] = {
        "plus n": partials[at] * (1 + N) % (N * N), "power": pow(partials[at], 3, N * N),
        "another's": OPENED[2][0][at], "one": 1,
    }[how]  # fmt: skip
    with pytest.raises(Invalid, match="does not hold"):
        check_partials(KEY, 1, CIPHERTEXTS, partials, proof, b"round 1")


def proved(partials: list[int]) -> Proof:
    """What an owner comes to who runs the prover on partial decryptions of its own making."""
    secret, square = KEY._delta * SHARES[1].secret, N * N
    together, powers, statement = consortium._batched(KEY, 1, CIPHERTEXTS, partials, b"round 1")
    mask = gmpy2.mpz(3) ** 2000
    commitments = iter([gmpy2.powmod(base, mask, square) for base in (KEY.base, together)])
    challenge = consortium._challenge(KEY, statement, powers, commitments)
    return Proof(challenge, int(mask + challenge * secret))


def test_who_proves_wrong_partial_decryptions_fails() -> None:
    partials = list(OPENED[1][0])
    check_partials(KEY, 1, CIPHERTEXTS, partials, proved(partials), b"round 1")
    partials[0] = partials[0] * (1 + N) % (N * N)
    with pytest.raises(Invalid, match="does not hold"):
        check_partials(KEY, 1, CIPHERTEXTS, partials, proved(partials), b"round 1")
    # Two that cancel, which a product without coefficients would not show.
    partials[1] = partials[1] * (1 - N) % (N * N)
    with pytest.raises(Invalid, match="does not hold"):
        check_partials(KEY, 1, CIPHERTEXTS, partials, proved(partials), b"round 1")


def test_the_other_sign_changes_nothing() -> None:
    """A power with the other sign passes or not, but what is decrypted is the same: powers are squared."""
    opened = {place: list(OPENED[place][0]) for place in range(3)}
    opened[1] = [N * N - p for p in opened[1]]
    assert combine(KEY, opened) == PLAINTEXTS


@pytest.mark.parametrize(
    ("place", "context", "ciphertexts"),
    [(2, b"round 1", CIPHERTEXTS), (1, b"round 2", CIPHERTEXTS), (1, b"round 1", CIPHERTEXTS[::-1])],
)
def test_proofs_are_of_one_owner_context_and_list(place: int, context: bytes, ciphertexts: list[int]) -> None:
    with pytest.raises(Invalid, match="does not hold"):
        check_partials(KEY, place, ciphertexts, OPENED[1][0], OPENED[1][1], context)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda p, f: (p[:-1], f), "expected 5, got 4"),
        (lambda p, f: ([0, *p[1:]], f), "from 1 to n"),
        (lambda p, f: ([N, *p[1:]], f), "in common"),
        (lambda p, f: (p, Proof(1 << 128, f.answer)), "too large"),
        (lambda p, f: (p, Proof(f.challenge, 1 << 9000)), "too large"),
        (lambda p, f: (p, Proof(f.challenge, -1)), "too large"),
        (lambda p, f: (p, Proof(f.challenge ^ 1, f.answer)), "does not hold"),
        (lambda p, f: (p, Proof(f.challenge, f.answer + 1)), "does not hold"),
    ],
)
def test_partial_decryptions_that_are_none(change: Any, said: str) -> None:
    partials, proof = change(*OPENED[1])
    with pytest.raises(Invalid, match=said):
        check_partials(KEY, 1, CIPHERTEXTS, partials, proof, b"round 1")


def test_proofs_of_another_length() -> None:
    with pytest.raises(Invalid, match="expected"):
        Proof.unpack(KEY, OPENED[1][1].pack(KEY)[:-1])


# ------------------------------------------------------------------------------------------- keys


def test_keys_and_shares_travel_as_bytes() -> None:
    assert Consortium.unpack(KEY.pack()) == KEY
    assert Consortium.unpack(KEY.pack()).fingerprint == KEY.fingerprint
    for share in SHARES:
        assert KeyShare.unpack(share.pack()) == share
        share.check(KEY)


def test_a_share_of_another_key_or_place_is_refused() -> None:
    with pytest.raises(Invalid, match="not one of this consortium's"):
        replace(SHARES[0], place=1).check(KEY)
    with pytest.raises(Invalid, match="place from 0 to 4"):
        replace(SHARES[0], place=5).check(KEY)
    _, others = deal(5, 3, 2048, seeded(b"another consortium"))
    with pytest.raises(Invalid, match="not one of this consortium's"):
        others[0].check(KEY)


@pytest.mark.parametrize(
    ("place", "secret"), [(-1, 5), (256, 5), (0, 0), (0, -5), (0.0, 5), (0, None), (True, 5)]
)
def test_shares_that_are_none(place: Any, secret: Any) -> None:
    with pytest.raises(Invalid, match="share: expected"):
        KeyShare(place, secret)


def test_a_share_that_is_longer_than_any_of_the_key_is_refused() -> None:
    """By a multiple of the order it does the same, and would not fit its proof."""
    with pytest.raises(Invalid, match="longer than one of this"):
        KeyShare(0, SHARES[0].secret + N * N).check(KEY)


def test_a_proof_does_not_tell_the_share() -> None:
    """Its answer is a mask plus the challenge times the share, and the mask longer by 128 bits."""
    share = KEY._delta * SHARES[0].secret
    for _ in range(5):
        _, proof = decrypt_partly(KEY, SHARES[0], CIPHERTEXTS[:1], b"")
        mask = proof.answer - proof.challenge * share
        assert 0 <= mask < 1 << consortium._mask_bits(KEY)
        assert mask.bit_length() > (proof.challenge * share).bit_length() + 100


def test_a_share_is_not_shown() -> None:
    assert str(SHARES[0].secret) not in repr(SHARES[0])


@pytest.mark.parametrize("data", [b"", b"\x93", b"\x90", KEY.pack()[:-1], SHARES[0].pack(), b"\xff" * 40])
def test_bytes_that_are_no_key(data: bytes) -> None:
    with pytest.raises(Invalid):
        Consortium.unpack(data)


@pytest.mark.parametrize("data", [None, "text", 5])
def test_what_is_no_bytes_at_all(data: Any) -> None:
    for kind in (Consortium, KeyShare):
        with pytest.raises(Invalid, match="expected what was packed"):
            kind.unpack(data)


@pytest.mark.parametrize("data", [b"", KEY.pack(), b"\x92\xc4\x00\xc4\x00", b"\x92\x01\x02"])
def test_bytes_that_are_no_share(data: bytes) -> None:
    with pytest.raises(Invalid):
        KeyShare.unpack(data)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"threshold": 0}, "threshold from 2 to 5"), ({"threshold": 2.0}, "expected integers"),
        ({"checks": (None,) * 5}, "expected integers"), ({"threshold": 6}, "threshold from 2 to 5"),
        ({"threshold": 1 << 20_000}, "threshold from 2 to 5"), ({"threshold": 1}, "threshold from 2 to 5"),
        ({"base": 1}, "base is none"), ({"base": 1 + N}, "base is none"),
        ({"checks": (KEY.checks[1], *KEY.checks[1:])}, "same share"),
        ({"checks": (KEY.base, *KEY.checks[1:])}, "same share"),
        ({"checks": ()}, "threshold from 2 to 0"), ({"base": 0}, "from 1 to n"),
        ({"base": N}, "in common"), ({"checks": (0, *KEY.checks[1:])}, "from 1 to n"),
        ({"public": PublicKey(N)}, "base of randomisers"),
    ],
)  # fmt: skip
def test_keys_that_are_none(change: dict[str, Any], said: str) -> None:
    with pytest.raises(Invalid, match=said):
        replace(KEY, **change)


@pytest.mark.parametrize(
    ("owners", "threshold", "more", "said"),
    [
        (1, 1, {}, "owners"), (257, 2, {}, "owners"), (5, 6, {}, "threshold"), (5, 1, {}, "threshold"),
        (5, 2.0, {}, "threshold"), (5, 2, {"bits": 1024}, "bits"), (5, 2, {"short": 256}, "short"),
    ],
)  # fmt: skip
def test_deals_that_cannot_be(owners: Any, threshold: Any, more: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        deal(owners, threshold, **more)


def test_fewer_bits_of_randomisers_only_with_safe_primes() -> None:
    with pytest.raises(ValueError, match="320 with safe primes"):
        generate(2048, short=SAFE_SHORT)
    key = generate(2048, seeded(b"safe"), safe=True, short=SAFE_SHORT)
    assert gmpy2.is_prime((key.p - 1) // 2)
    assert gmpy2.is_prime((key.q - 1) // 2)
    assert key.decrypt(Encryptor(key.public).encrypt([5])) == [5]
