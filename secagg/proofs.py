"""Proofs about Paillier ciphertexts and keys, for parties that do not trust each other.

- `prove_key`: the modulus and the order of its group are coprime, so that every ciphertext has one plaintext
  (Goldberg, Reyzin, Sagga, Baldimtsi, "Efficient Noninteractive Certification of RSA Moduli and Beyond",
  ASIACRYPT 2019, section 3: n-th roots of random numbers).
- `prove_plaintexts`: whoever sends ciphertexts knows what is in them, so that they are no copy, inverse or
  power of somebody else's (Cramer, Damgard, Schoenmakers 1994; of all ciphertexts at once, by random linear
  combinations).
- `prove_openings`: the owner of a key says what is in ciphertexts, and shows the n-th roots that prove it:
  group elements, from which nothing follows for other ciphertexts.

The first two are made non-interactive by hashing `context`, which must say who proves, to whom and when, and
all of the statement (Fiat, Shamir 1986); openings are right or wrong whoever shows them. Errors are `Invalid`
and name nobody: the caller knows who sent the proof.

Where this deviates: combinations have coefficients of 16 bits only, and there are as many combinations as it
takes (`TIMES`). Two challenges then differ by less than 2^16, and a modulus has no factor below (`PublicKey`
checks that): so the difference can be divided by, whatever the modulus is. One combination with 128 bits
would be sound only for moduli without factors below 2^128, which the owner of a key would have to prove
besides (CVE-2023-33241 is what comes of forgetting it).

What it does not protect against: plaintexts that are known, but not what they should be.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from secagg.bigint import gmpy2, mpz
from secagg.invalid import Invalid, exact_length
from secagg.labels import Label, bind
from secagg.paillier import SMALL, PrivateKey, PublicKey
from secagg.powers import FixedBase, combined
from secagg.randomness import Rng, below, seeded, system

_BITS = 16  # of a coefficient
assert SMALL >= 1 << _BITS  # no modulus has a factor as small as a difference of two
TIMES = 9  # 2^-144 in all: 16 bits are lost to whoever tries as many statements
_HIDING = 128  # bits that a mask is longer than what it hides


# ------------------------------------------------------------------------------------------------ keys


def prove_key(key: PrivateKey, context: bytes) -> list[int]:
    """`TIMES` numbers below n: the n-th roots of numbers that nobody chose."""
    n, order = mpz(key.public.n), mpz((key.p - 1) * (key.q - 1))
    exponent = gmpy2.invert(n, order)
    return [int(gmpy2.powmod_sec(x, exponent, n)) for x in _unchosen(key.public, context)]


def check_key(public: PublicKey, proof: Sequence[int], context: bytes) -> None:
    """`Invalid` unless the proof shows that n and the order of its group are coprime."""
    n = mpz(public.n)
    if len(proof) != TIMES or not all(isinstance(r, int) and 0 < r < n for r in proof):
        raise Invalid(f"key: expected a proof of {TIMES} numbers below the modulus")
    wanted = _unchosen(public, context)
    if any(gmpy2.powmod(r, n, n) != x for r, x in zip(proof, wanted, strict=True)):
        raise Invalid("key: the proof that its modulus is sound does not hold")


def _unchosen(public: PublicKey, context: bytes) -> list[Any]:
    """Numbers below n and coprime with it, from a hash of all that is known before."""
    n = mpz(public.n)
    rng = seeded(bind(Label.KEY_PROOF, context, _key_bytes(public)))
    found: list[Any] = []
    while len(found) < TIMES:
        x = mpz(below(public.n, rng))
        if gmpy2.gcd(x, n) == 1:
            found.append(x)
    return found


def _key_bytes(public: PublicKey) -> bytes:
    size = public.ciphertext_bytes
    return b"".join(int(v).to_bytes(size, "little") for v in (public.n, public.h, public.short))


# ----------------------------------------------------------------------------------------- plaintexts


@dataclass(frozen=True, slots=True)
class PlaintextProof:
    """`TIMES` of each: a ciphertext of a mask, masked sums of plaintexts, and masked sums of randomisers."""

    masks: tuple[int, ...]
    plaintexts: tuple[int, ...]
    randomisers: tuple[int, ...]

    def pack(self, public: PublicKey, count: int) -> bytes:
        """On the wire, for so many ciphertexts."""
        parts = zip((self.masks, self.plaintexts, self.randomisers), _sizes(public, count), strict=True)
        return b"".join(v.to_bytes(size, "little") for part, size in parts for v in part)

    @classmethod
    def unpack(cls, public: PublicKey, count: int, data: bytes) -> PlaintextProof:
        """What `pack` gave; `Invalid` if it is of another length."""
        sizes = _sizes(public, count)
        exact_length("proof of plaintexts", data, TIMES * sum(sizes))
        found, start = [], 0
        for size in sizes:
            found.append(tuple(int.from_bytes(data[start + i * size : start + (i + 1) * size], "little")
                               for i in range(TIMES)))  # fmt: skip
            start += TIMES * size
        return cls(*found)


def proof_bytes(public_bytes: int, short: int, count: int) -> int:
    """The length of a packed proof about so many ciphertexts of so many bytes, at most."""
    return TIMES * (
        public_bytes + public_bytes // 2 + (short + _BITS + count.bit_length() + _HIDING) // 8 + 2
    )


def _sizes(public: PublicKey, count: int) -> tuple[int, int, int]:
    return public.ciphertext_bytes, public.ciphertext_bytes // 2, _mask_bits(public, count) // 8 + 1


def prove_plaintexts(
    public: PublicKey, ciphertexts: Sequence[int], openings: Sequence[tuple[int, int]], context: bytes,
    rng: Rng = system,
) -> PlaintextProof:  # fmt: skip
    """That whoever made the ciphertexts knows the plaintext and the randomiser, which is `openings`, of each.

    Up to a factor of small order, such as -1, which changes no plaintext. The key must have a base of
    randomisers.
    """
    n, square, size = mpz(public.n), public.square, _mask_bits(public, len(ciphertexts))
    base = _powers(public, size + 1)
    masks, chosen = [], []
    for _ in range(TIMES):
        a = below(public.n, rng)
        b = mpz.from_bytes(rng(size // 8), "little")
        masks.append(int((1 + a * n) * base.power(b) % square))
        chosen.append((a, b))
    sums = []
    coefficients = _coefficients(public, Label.PLAINTEXT_PROOF, context, ciphertexts, masks)
    for (a, b), row in zip(chosen, coefficients, strict=True):
        for e, (m, r) in zip(row, openings, strict=True):
            a, b = a + e * m, b + e * r
        sums.append((int(a % n), int(b)))
    return PlaintextProof(tuple(masks), tuple(a for a, _ in sums), tuple(b for _, b in sums))


def check_plaintexts(
    public: PublicKey, ciphertexts: Sequence[int], proof: PlaintextProof, context: bytes
) -> None:
    """`Invalid` unless the proof holds; the ciphertexts are checked (`PublicKey.checked`) before."""
    n, square, size = mpz(public.n), public.square, _mask_bits(public, len(ciphertexts))
    parts = (proof.masks, proof.plaintexts, proof.randomisers)
    if any(len(part) != TIMES for part in parts):
        raise Invalid(f"plaintexts: expected a proof of {TIMES} of each")
    masks = public.checked(proof.masks)
    small = all(0 <= b < 1 << size + 1 for b in proof.randomisers)
    if not small or not all(0 <= a < n for a in proof.plaintexts):
        raise Invalid("plaintexts: the proof has numbers that are too large")
    base = _powers(public, size + 1)
    rows = _coefficients(public, Label.PLAINTEXT_PROOF, context, ciphertexts, proof.masks)
    for mask, a, b, row in zip(masks, proof.plaintexts, proof.randomisers, rows, strict=True):
        if mask * combined(ciphertexts, row, 2, square) % square != (1 + a * n) * base.power(mpz(b)) % square:
            raise Invalid("plaintexts: the proof that they are known does not hold")


@lru_cache(maxsize=64)
def _powers(public: PublicKey, bits: int) -> FixedBase:
    """Of a key's base: proofs about several contributors' ciphertexts under one key share the table.

    Ten megabytes at 3072 bits. With more than 64 owners, a server makes them anew for each contributor.
    """
    return FixedBase(public.h, public.n, bits, 8 * TIMES)


def _mask_bits(public: PublicKey, count: int) -> int:
    """Of the mask of a sum of so many randomisers times coefficients: whole bytes."""
    bits = public.short + _BITS + count.bit_length() + _HIDING
    return -(-bits // 8) * 8


# ------------------------------------------------------------------------------------------- openings


def prove_openings(key: PrivateKey, ciphertexts: Sequence[int]) -> tuple[list[int], list[int]]:
    """The plaintexts, and for each the n-th root of what is left of its ciphertext: that is the proof."""
    return key.decrypt(ciphertexts), [key.randomiser(c) for c in ciphertexts]


def check_openings(
    public: PublicKey, ciphertexts: Sequence[int], plaintexts: Sequence[int], roots: Sequence[int]
) -> None:
    """`Invalid` unless these are the plaintexts of these ciphertexts, which are `checked` before.

    Whoever shows them and when does not matter: they are right or wrong by themselves.
    """
    n, square = mpz(public.n), public.square
    if len(plaintexts) != len(ciphertexts) or len(roots) != len(ciphertexts):
        raise Invalid(f"openings: expected {len(ciphertexts)} plaintexts and as many roots")
    if not all(0 <= m < n for m in plaintexts) or not all(0 < r < n for r in roots):
        raise Invalid("openings: expected numbers below the modulus")
    statement = [*ciphertexts, *plaintexts, *roots]
    for row in _coefficients(public, Label.OPENING_PROOF, b"", statement, (), len(ciphertexts)):
        a = sum(e * m for e, m in zip(row, plaintexts, strict=True)) % n
        root = gmpy2.powmod(combined(roots, row, 2, n), n, square)
        if combined(ciphertexts, row, 2, square) != (1 + a * n) * root % square:
            raise Invalid("openings: the proof does not hold")


# --------------------------------------------------------------------------------- combining at random


def _coefficients(
    public: PublicKey, label: Label, context: bytes, statement: Sequence[int], masks: Sequence[int],
    count: int | None = None,
) -> Iterator[list[int]]:  # fmt: skip
    """`TIMES` rows of numbers below 2^16, one a ciphertext, from a hash of all of it."""
    size = public.ciphertext_bytes
    data = (b"".join(int(v).to_bytes(size, "little") for v in values) for values in (statement, masks))
    rng, count = seeded(bind(label, context, _key_bytes(public), *data)), count or len(statement)
    for _ in range(TIMES):
        yield np.frombuffer(rng(2 * count), "<u2").tolist()
