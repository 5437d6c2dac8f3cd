"""Paillier's cryptosystem for vectors: many values to a plaintext, and short randomisers.

Paillier, "Public-Key Cryptosystems Based on Composite Degree Residuosity Classes", EUROCRYPT 1999; with the
changes of Damgard, Jurik, Nielsen, "A generalization of Paillier's public-key system with applications to
electronic voting", IJIS 2010: the generator is 1 + n, and a randomiser is a power h^r of a fixed
n-th residue h with a short exponent, which tables make cheap. That such a power looks like any n-th residue
is an assumption of its own (short exponents); they have half as many bits as n by default, as in the paper.
The primes are 3 modulo 4 and h is minus a square, raised to n, as there.

Values travel in lanes: each is given so many bits of the plaintext that no sum of as many clients, with as
large weights, as were declared can reach the next. See `Lanes`.

What it does not protect against: anyone who has the private key reads every ciphertext, single ones too;
ciphertexts can be added and multiplied by anyone, so something else must say who made one; big-integer
arithmetic takes a time that depends on the numbers, and tables are read at secret places: keep it where
nobody measures. Decryption goes through `powmod_sec`, whose time does not depend on the private key's bits.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Any

import gmpy2
import numpy as np
from gmpy2 import mpz
from numpy.typing import NDArray

from secagg import primes
from secagg.invalid import Invalid
from secagg.randomness import Rng, system
from secagg.ring import MAX_BITS, MIN_BITS, Ring

LEAST_BITS, USUAL_BITS, MOST_BITS = 2048, 3072, 16384
SAFE_SHORT = 320
"""Bits of a randomiser that are enough where n is a product of safe primes, if one asks for so few."""

_SMALL = 1 << 16  # a modulus with a factor below is refused


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
        if gmpy2.gcd(n, primes.primorial(_SMALL)) != 1 or gmpy2.is_prime(n) or gmpy2.is_power(n):
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
    x = _below(n, rng)
    return PrivateKey(int(p), int(q), PublicKey(int(n), residue(-x * x % n, n), short))


def residue(root: int, n: int) -> int:
    """The n-th residue modulo n^2 that has this root."""
    return int(gmpy2.powmod(root, n, n * n))


def _below(n: Any, rng: Rng) -> Any:
    """A number from 1 to n - 1 that is coprime with n, uniform to 2^-128."""
    while True:
        found = mpz.from_bytes(rng(ceil(n.bit_length() / 8) + 16), "little") % n
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
        return [c for c, _ in self.encrypt_openly(plaintexts, rng)]

    def obfuscate(self, ciphertexts: Sequence[int], rng: Rng = system) -> list[Any]:
        """The same plaintexts in ciphertexts that nobody can tell came from these."""
        zeros = self.encrypt([0] * len(ciphertexts), rng)
        return [c * z % self._square for c, z in zip(ciphertexts, zeros, strict=True)]

    def encrypt_openly(self, plaintexts: Sequence[int], rng: Rng = system) -> Iterator[tuple[Any, Any]]:
        """The same, each with its randomiser: the exponent of h, or R itself if the key has no h."""
        n, square = self._n, self._square
        for m in plaintexts:
            if not 0 <= m < n:  # which one stays untold
                raise ValueError("plaintext: expected a number from 0 to n - 1")
        for m in plaintexts:
            if self._powers is None:
                r = _below(n, rng)
                mask = gmpy2.powmod(r, n, square)
            else:
                size = ceil(self.public.short / 8)
                r = mpz.from_bytes(rng(size), "little") >> 8 * size - self.public.short
                mask = self._powers.power(r)
            # (1 + n)^m is 1 + m n: a product with it is two with m.
            yield (mask + mask % n * m % n * n) % square, r


class FixedBase:
    """Powers of one base modulo n^2, for exponents of so many bits: a table for every window of them.

    Elements are split as x0 + x1 n: a product is then of halves, and is reduced modulo n.
    """

    def __init__(self, base: int, n: int, bits: int, count: int) -> None:
        self._n, self._bits = mpz(n), bits
        # A window of w bits takes 2^w products to make, and saves as many in each power.
        self.window = min(range(1, 9), key=lambda w: ceil(bits / w) * (count + (1 << w)))
        first, self._tables = (mpz(base) % self._n, mpz(base) // self._n), []
        for _ in range(ceil(bits / self.window)):
            table, found = [], first
            for _ in range((1 << self.window) - 1):
                table.append(found)
                found = self._product(found, first)
            self._tables.append(table)
            first = found

    def _product(self, x: tuple[Any, Any], y: tuple[Any, Any]) -> tuple[Any, Any]:
        """Of two elements modulo n^2, all of them split."""
        carry, low = gmpy2.f_divmod(x[0] * y[0], self._n)
        return low, (x[0] * y[1] + x[1] * y[0] + carry) % self._n

    def power(self, exponent: Any) -> Any:
        """base^exponent modulo n^2; the exponent from 0 to 2^bits - 1."""
        n, window, mask = self._n, self.window, (1 << self.window) - 1
        x0, x1 = mpz(1), mpz(0)
        for i, table in enumerate(self._tables):
            digit = int(exponent >> i * window & mask)
            if digit:  # as in `_product`, a tenth faster without the call
                y0, y1 = table[digit - 1]
                carry, low = gmpy2.f_divmod(x0 * y0, n)
                x1 = (x0 * y1 + x1 * y0 + carry) % n
                x0 = low
        return x0 + x1 * n


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


# ---------------------------------------------------------------------------------------------- lanes


@dataclass(frozen=True, slots=True)
class Lanes:
    """How vectors of integers share plaintexts: `width` bits a value, `count` values a plaintext.

    Value i is in plaintext i // count, from bit (i % count) * width on. No sum can reach the next lane if
    it is below 2^width: see `fitting`.
    """

    width: int
    count: int

    @classmethod
    def fitting(cls, plaintext_bits: int, bound: int, clients: int, weight: int = 1) -> Lanes:
        """Lanes for sums of at most so many vectors of values below `bound`, each times at most `weight`.

        In plaintexts of so many bits at most (one less than a modulus has). Raises `ValueError` where no lane
        is wide enough: 64 bits is the widest.
        """
        for name, value in (("bound", bound - 1), ("clients", clients), ("weight", weight)):
            if value < 1:
                raise ValueError(f"{name}: expected more, got {value}")
        width = max(MIN_BITS, (clients * weight * (bound - 1)).bit_length())
        if width > min(MAX_BITS, plaintext_bits):
            raise ValueError(
                f"lanes: {clients} clients of values below {bound} and weights to {weight} need {width} bits "
                f"a value; {min(MAX_BITS, plaintext_bits)} are available"
            )
        return cls(width, plaintext_bits // width)

    def plaintexts(self, dim: int) -> int:
        """How many plaintexts hold so many values."""
        return -(-dim // self.count)

    def pack(self, values: NDArray[Any]) -> list[int]:
        """Plaintexts of values that are all from 0 to 2^width - 1."""
        rows, ring = self.plaintexts(values.size), Ring(self.width)
        padded = np.zeros((rows, self._padded), ring.dtype)
        flat = np.zeros(rows * self.count, ring.dtype)
        flat[: values.size] = values
        padded[:, : self.count] = flat.reshape(rows, self.count)
        data, size = bytes(ring.pack(padded.reshape(-1))), self._padded * self.width // 8
        return [int.from_bytes(data[i : i + size], "little") for i in range(0, rows * size, size)]

    def unpack(self, plaintexts: Sequence[int], dim: int) -> NDArray[Any]:
        """The `dim` values in plaintexts; `Invalid` if there is more in them than values."""
        if len(plaintexts) != self.plaintexts(dim):
            raise Invalid(f"plaintexts: expected {self.plaintexts(dim)}, got {len(plaintexts)}")
        if any(not 0 <= m < 1 << self.count * self.width for m in plaintexts):
            raise Invalid("plaintext: expected nothing above its lanes")
        size, ring = self._padded * self.width // 8, Ring(self.width)
        data = b"".join(int(m).to_bytes(size, "little") for m in plaintexts)
        lanes = ring.unpack(data, len(plaintexts) * self._padded).reshape(-1, self._padded)[:, : self.count]
        found = lanes.reshape(-1)
        if found[dim:].any():
            raise Invalid("plaintext: expected nothing beyond the last value")
        return found[:dim]

    @property
    def _padded(self) -> int:
        """Lanes of which a plaintext is a whole number of bytes."""
        return -(-self.count // 8) * 8
