"""How numbers are dealt among owners of Paillier keys, so that they can open a sum and nothing smaller.

A plaintext is one element of GF(P): it is shared by a polynomial of degree t - 1 (Shamir 1979), and owner j
is sent an encryption under its own key of its share. Ciphertexts of shares are added without opening them,
and t owners who open the *sums* of their shares have the sum of the plaintexts (Cramer, Franklin,
Schoenmakers, Yung, "Multi-Authority Secret-Ballot Elections with Linear Work", EUROCRYPT 1996; Schoenmakers,
CRYPTO 1999).

A Paillier plaintext is an integer and not an element of GF(P): a sum of shares below P tells, beyond its
value modulo P, how often it wrapped around, and from that whose shares are possible. So a share f is sent as
f + P u with u uniform below 2^`_pad`: what owners open, up to 2^24 numbers in all, is then within 2^-40 of a
function of the sum alone. No integer reaches the modulus that it is encrypted under: see `Sharing`.

What it does not protect against: t owners who open single shares; shares that are not on one polynomial,
which more than t openings show.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import ceil
from typing import Any

from secagg.bigint import gmpy2, mpz
from secagg.invalid import Invalid
from secagg.lanes import Lanes
from secagg.randomness import Rng, below, system

_STATISTICAL = 64  # bits: each number that is opened is so close to a function of the sum, and all to 2^-40


@dataclass(frozen=True, slots=True)
class Sharing:
    """Sums of at most `contributors` vectors, dealt among `owners`, of whom `threshold` open one.

    `modulus_bits` is what the smallest of the owners' moduli has. Raises `ValueError` where it is too small
    or the numbers cannot be.
    """

    owners: int
    threshold: int
    contributors: int
    modulus_bits: int

    def __post_init__(self) -> None:
        if not 1 <= self.threshold <= self.owners or self.contributors < 1:
            raise ValueError(
                f"threshold: expected 1 to {self.owners} (the owners), got {self.threshold}; and at least "
                "one contributor"
            )
        if self.plaintext_bits < max(64, self.owners.bit_length() + 1):
            raise ValueError(f"modulus_bits: {self.modulus_bits} leave no room for sums of shares")

    @property
    def _pad(self) -> int:
        """Bits of u: of each of so many, that their sum hides how often shares wrapped around."""
        return _STATISTICAL + (self.contributors - 1).bit_length() + 1

    @property
    def plaintext_bits(self) -> int:
        """A plaintext is below 2^this, and P is the next prime above: contributors * P * 2^(pad + 1) < N."""
        return self.modulus_bits - 1 - self.contributors.bit_length() - (self._pad + 1) - 1

    @property
    def prime(self) -> Any:
        """P."""
        return _prime_above(self.plaintext_bits)

    def lanes(self, bound: int) -> Lanes:
        """How values below `bound` share plaintexts; raises what `Lanes.fitting` raises."""
        return Lanes.fitting(self.plaintext_bits, bound, self.contributors)

    def deal(self, plaintexts: Sequence[int], rng: Rng = system) -> list[list[Any]]:
        """For each owner, ascending, the integers to encrypt for it: one a plaintext."""
        prime, plaintexts = self.prime, [operator.index(m) for m in plaintexts]
        if any(not 0 <= m < prime for m in plaintexts):
            raise ValueError("plaintext: expected a number below the prime")
        pad_bytes = ceil(self._pad / 8)
        dealt: list[list[Any]] = [[] for _ in range(self.owners)]
        for m in plaintexts:
            upper = [mpz(below(prime, rng)) for _ in range(self.threshold - 1)]
            for place, integers in enumerate(dealt):
                u = mpz.from_bytes(rng(pad_bytes), "little") >> 8 * pad_bytes - self._pad
                integers.append(_value([mpz(m), *upper], place + 1, prime) + prime * u)
        return dealt

    def combine(self, opened: Mapping[int, Sequence[int]]) -> list[int]:
        """The sums of plaintexts, from what so many owners (by place, from 0) opened.

        Raises `Invalid` for fewer than `threshold`, for what no honest owner can have opened, and where more
        than that many do not agree: then nobody can say who lies, and no choice among them is made.
        """
        prime, places = self.prime, sorted(opened)
        counts = {len(opened[place]) for place in places}
        if len(places) < self.threshold or len(counts) != 1 or places[-1] >= self.owners or places[0] < 0:
            raise Invalid(f"openings: expected those of {self.threshold} of {self.owners}, of equal length")
        most = self.contributors * prime << self._pad
        if any(not 0 <= s < most for place in places for s in opened[place]):
            raise Invalid("openings: a number is too large for a sum of shares")
        some, rest = places[: self.threshold], places[self.threshold :]
        to_zero = _weights([place + 1 for place in some], 0, prime)
        found = []
        (count,) = counts
        for i in range(count):
            values = [opened[place][i] % prime for place in some]
            found.append(int(sum(w * v for w, v in zip(to_zero, values, strict=True)) % prime))
        for place in rest:
            weights = _weights([p + 1 for p in some], place + 1, prime)
            for i in range(count):
                value = sum(w * (opened[p][i] % prime) for w, p in zip(weights, some, strict=True)) % prime
                if value != opened[place][i] % prime:
                    raise Invalid("openings: they are not of one sum")
        return found


def _value(coefficients: Sequence[Any], x: int, prime: Any) -> Any:
    """A polynomial at x, by Horner's rule."""
    found = mpz(0)
    for c in reversed(coefficients):
        found = (found * x + c) % prime
    return found


def _weights(points: Sequence[int], at: int, prime: Any) -> list[Any]:
    """What values at `points` are multiplied by to give that at another (Lagrange)."""
    found = []
    for x in points:
        upper, lower = mpz(1), mpz(1)
        for other in points:
            if other != x:
                upper, lower = upper * (at - other) % prime, lower * (x - other) % prime
        found.append(upper * gmpy2.invert(lower, prime) % prime)
    return found


@lru_cache(maxsize=8)
def _prime_above(bits: int) -> Any:
    return gmpy2.next_prime(mpz(1) << bits)
