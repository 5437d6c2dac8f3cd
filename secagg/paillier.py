"""Paillier's cryptosystem for vectors: many values to a plaintext, and short randomisers.

Paillier, "Public-Key Cryptosystems Based on Composite Degree Residuosity Classes", EUROCRYPT 1999; with the
changes of Damgard, Jurik, Nielsen, "A generalization of Paillier's public-key system with applications to
electronic voting", IJIS 2010: the generator is 1 + n, and a randomiser is a power h^r of a fixed
n-th residue h with a short exponent, which tables make cheap. That such a power looks like any n-th residue
is an assumption of its own (short exponents); they have half as many bits as n by default, as in the paper.
The primes are 3 modulo 4 and h is minus a square, raised to n, as there.

Many values share a plaintext: see `secagg.lanes`.

What it does not protect against: anyone who has the private key reads every ciphertext, single ones too;
ciphertexts can be added and multiplied by anyone, so something else must say who made one; big-integer
arithmetic takes a time that depends on the numbers, and tables are read at secret places: keep it where
nobody measures. Decryption goes through `powmod_sec`, whose time does not depend on the private key's bits.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Any

from secagg import primes
from secagg.bigint import gmpy2, mpz
from secagg.invalid import Invalid
from secagg.powers import FixedBase
from secagg.randomness import Rng, below, system

LEAST_BITS, USUAL_BITS, MOST_BITS = 2048, 3072, 16384
SAFE_SHORT = 320
"""Bits of a randomiser that are enough where n is a product of safe primes, if one asks for so few."""

SMALL = 1 << 16
"""A modulus with a factor below is refused."""


# ----------------------------------------------------------------------------------------------- keys


@dataclass(frozen=True, slots=True)
class PublicKey:
    """Who encrypts needs this. `n` the modulus; `h` the base of randomisers, or 0 if they are full length.

    `short` the bits of a randomiser's exponent. Raises `Invalid` for what is no key, or too short a one: it
    may be somebody else's. That n is a product of two primes only its owner can know.
    """

    n: int
    h: int = 0
    short: int = 0

    def __post_init__(self) -> None:
        n, h = self.n, self.h
        if not all(isinstance(v, (int, mpz)) and not isinstance(v, bool) for v in (n, h, self.short)):
            raise Invalid("public key: expected integers")
        bits = int(n).bit_length() if n > 0 else 0
        if not LEAST_BITS <= bits <= MOST_BITS:
            raise Invalid(f"public key: expected a modulus of {LEAST_BITS} to {MOST_BITS} bits, got {bits}")
        if gmpy2.gcd(n, primes.primorial(SMALL)) != 1 or gmpy2.is_prime(n) or gmpy2.is_power(n):
            raise Invalid("public key: the modulus is a prime, a power, or has a small factor")
        if not h:
            if self.short:
                raise Invalid("public key: short randomisers need a base")
            return
        least = SAFE_SHORT if self.short <= SAFE_SHORT else bits // 2
        if not least <= self.short <= bits:
            raise Invalid(f"public key: expected randomisers of {SAFE_SHORT} or {bits // 2} to {bits} bits")
        if not 1 < h < n * n - 1 or gmpy2.gcd(h, n) != 1 or h % n in (1, n - 1):
            raise Invalid("public key: its base of randomisers is none")

    @property
    def bits(self) -> int:
        """Of the modulus."""
        return int(self.n).bit_length()

    @property
    def square(self) -> Any:
        """The modulus of ciphertexts."""
        return mpz(self.n) ** 2

    @property
    def ciphertext_bytes(self) -> int:
        """On the wire."""
        return 2 * ceil(self.bits / 8)

    def checked(self, ciphertexts: Iterable[int], count: int | None = None) -> list[Any]:
        """Somebody else's ciphertexts, all of them from 1 to n^2 - 1 and coprime with n; else `Invalid`.

        One greatest common divisor for all of them: of their product.
        """
        found = [mpz(c) for c in ciphertexts]
        if count is not None and len(found) != count:
            raise Invalid(f"ciphertexts: expected {count}, got {len(found)}")
        n, square, product = mpz(self.n), self.square, mpz(1)
        for c in found:
            if not 0 < c < square:
                raise Invalid("ciphertext: expected a number from 1 to n^2 - 1")
            product = product * c % n
        if gmpy2.gcd(product, n) != 1:
            raise Invalid("ciphertext: it has a factor in common with the modulus")
        return found

    def pack(self, ciphertexts: Iterable[int]) -> bytes:
        """Ciphertexts on the wire, each of the same length, little-endian."""
        size = self.ciphertext_bytes
        return b"".join(int(c).to_bytes(size, "little") for c in ciphertexts)

    def unpack(self, data: bytes, count: int) -> list[Any]:
        """What `pack` gave, checked as `checked` does."""
        size = self.ciphertext_bytes
        if len(data) != count * size:
            raise Invalid(f"ciphertexts: expected {count * size} bytes, got {len(data)}")
        parts = (data[i : i + size] for i in range(0, len(data), size))
        return self.checked(mpz.from_bytes(part, "little") for part in parts)


@dataclass(frozen=True, slots=True)
class PrivateKey:
    """The two primes of a key. Never shown; raises `ValueError` for what are none."""

    p: int = field(repr=False)
    q: int = field(repr=False)
    public: PublicKey

    def __post_init__(self) -> None:
        if self.p * self.q != self.public.n or self.p == self.q:
            raise ValueError("private key: its primes are not those of the public key")
        if not (gmpy2.is_prime(self.p, primes.ROUNDS) and gmpy2.is_prime(self.q, primes.ROUNDS)):
            raise ValueError("private key: expected primes")
        if gmpy2.gcd(self.public.n, (self.p - 1) * (self.q - 1)) != 1:
            raise ValueError("private key: the modulus and the order of its group have a common factor")

    def decrypt(self, ciphertexts: Iterable[int]) -> list[int]:
        """The plaintexts, from 0 to n - 1, by way of the two primes (Paillier 1999, section 7)."""
        p, q, n = mpz(self.p), mpz(self.q), mpz(self.public.n)
        # With generator 1 + n, L(g^(p - 1) mod p^2) is -q modulo p.
        halves = [(p, p * p, gmpy2.invert(-q, p)), (q, q * q, gmpy2.invert(-p, q))]
        inverse, found = gmpy2.invert(q, p), []
        for c in ciphertexts:
            mp, mq = (
                (gmpy2.powmod_sec(c % square, prime - 1, square) - 1) // prime * factor % prime
                for prime, square, factor in halves
            )
            found.append(int((mq + q * ((mp - mq) * inverse % p)) % n))
        return found

    def randomiser(self, ciphertext: int) -> int:
        """The R below n for which the ciphertext is (1 + n)^m R^n: whoever has m can check it with this."""
        p, q, n = mpz(self.p), mpz(self.q), mpz(self.public.n)
        c = mpz(ciphertext) % n
        rp = gmpy2.powmod_sec(c % p, gmpy2.invert(n, p - 1), p)
        rq = gmpy2.powmod_sec(c % q, gmpy2.invert(n, q - 1), q)
        return int((rq + q * ((rp - rq) * gmpy2.invert(q, p) % p)) % n)


def generate(
    bits: int = USUAL_BITS, rng: Rng = system, *, safe: bool = False, short: int | None = None
) -> PrivateKey:
    """A new key whose modulus has so many bits. Raises `ValueError` below 2048, or for an odd number.

    `safe`: of safe primes, which takes some seconds. Randomisers have `short` bits, half as many as the
    modulus unless it is said; `SAFE_SHORT` only with safe primes.
    """
    if isinstance(bits, bool) or not isinstance(bits, int) or not LEAST_BITS <= bits <= MOST_BITS or bits % 2:
        raise ValueError(f"bits: expected an even number from {LEAST_BITS} to {MOST_BITS}, got {bits!r}")
    short = bits // 2 if short is None else short
    if short != bits // 2 and not (safe and short == SAFE_SHORT):
        raise ValueError(f"short: expected {bits // 2}, or {SAFE_SHORT} with safe primes, got {short!r}")
    prime = primes.safe_prime if safe else primes.prime
    while True:
        p, q = prime(bits // 2, rng), prime(bits // 2, rng)
        # Apart from the 2 that both have, the orders of the two groups are coprime, as in the paper.
        if p != q and gmpy2.gcd(p - 1, q - 1) == 2 and gmpy2.gcd(p * q, (p - 1) * (q - 1)) == 1:
            break
    n = p * q
    x = unit(n, rng)
    return PrivateKey(int(p), int(q), PublicKey(int(n), residue(-x * x % n, n), short))


def residue(root: int, n: int) -> int:
    """The n-th residue modulo n^2 that has this root."""
    return int(gmpy2.powmod(root, n, n * n))


def unit(n: Any, rng: Rng) -> Any:
    """A number from 1 to n - 1 that is coprime with n, uniform to 2^-128."""
    while True:
        found = mpz(below(n, rng))
        if found and gmpy2.gcd(found, n) == 1:
            return found


# ----------------------------------------------------------------------------------------- encryption


class Encryptor:
    """Encrypts under one key: with tables of powers of its `h`, made once, which suit so many ciphertexts."""

    def __init__(self, public: PublicKey, count: int = 1000) -> None:
        self.public = public
        self._n, self._square = mpz(public.n), public.square
        self._powers = FixedBase(public.h, public.n, public.short, count) if public.h else None

    def encrypt(self, plaintexts: Sequence[int], rng: Rng = system) -> list[Any]:
        """A ciphertext for each plaintext from 0 to n - 1; `ValueError` for any other."""
        return self.encrypt_openly(plaintexts, rng)[0]

    def obfuscate(self, ciphertexts: Sequence[int], rng: Rng = system) -> list[Any]:
        """The same plaintexts in ciphertexts that nobody can tell came from these."""
        zeros = self.encrypt([0] * len(ciphertexts), rng)
        return [c * z % self._square for c, z in zip(ciphertexts, zeros, strict=True)]

    def encrypt_openly(
        self, plaintexts: Sequence[int], rng: Rng = system
    ) -> tuple[list[Any], list[tuple[int, int]]]:
        """The same, and for each its opening: the plaintext, and the exponent of h, or R if there is no h."""
        n, square, found, openings = self._n, self._square, [], []
        values = [operator.index(m) for m in plaintexts]
        if any(not 0 <= m < n for m in values):  # which one stays untold
            raise ValueError("plaintext: expected a number from 0 to n - 1")
        for m in values:
            if self._powers is None:
                r = unit(n, rng)
                mask = gmpy2.powmod(r, n, square)
            else:
                size = ceil(self.public.short / 8)
                r = mpz.from_bytes(rng(size), "little") >> 8 * size - self.public.short
                mask = self._powers.power(r)
            # (1 + n)^m is 1 + m n: a product with it is two with m.
            found.append((mask + mask % n * m % n * n) % square)
            openings.append((m, int(r)))
        return found, openings


def add(public: PublicKey, vectors: Iterable[Sequence[int]]) -> list[Any]:
    """The ciphertexts of the sums, place by place, of vectors that all have as many."""
    square, total = public.square, None
    for vector in vectors:
        if total is None:
            total = [mpz(c) for c in vector]
        elif len(vector) != len(total):
            raise ValueError(f"ciphertexts: expected {len(total)}, got {len(vector)}")
        else:
            total = [a * b % square for a, b in zip(total, vector, strict=True)]
    if total is None:
        raise ValueError("ciphertexts: expected at least one vector")
    return total
