"""Prime numbers for keys: of a given size, uniform, and from a cryptographic stream.

A safe prime is p = 2 q + 1 with q a prime too. Both have to be prime at once, which one number in a million
is at 1536 bits, so what most of the time goes into is exponentiations that only say "no". A sieve spares
them: it strikes out every q of a window that has a small factor, or whose 2 q + 1 has one (the sieve of
Eratosthenes, on an arithmetic progression: Wiener, "Safe Prime Generation with a Combined Sieve", Cryptology
ePrint Archive 2003/186).

What it does not protect against: whoever measures how long it takes learns how many candidates were tried.
"""

from __future__ import annotations

from functools import lru_cache
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secagg.bigint import gmpy2, mpz
from secagg.randomness import Rng

ROUNDS = 30
"""As GMP counts: the test of Baillie and PSW, and six rounds of Miller and Rabin. For random numbers of a
thousand bits an error below 2^-100 (Damgard, Landrock, Pomerance, Mathematics of Computation 1993)."""

_REACH = 1 << 22  # the sieve knows the primes below
_WINDOW = 1 << 17  # candidates at a time: at 1536 bits about one of them is what is looked for
_LIMB = 40  # bits of a number that are taken in at once: with a factor below 2^22, 62 in all


def prime(bits: int, rng: Rng) -> Any:
    """A prime that is 3 modulo 4, with its two highest bits set; each such is as likely as any other."""
    small = primorial(2000)
    while True:
        found = _candidate(bits, rng) | 3
        if gmpy2.gcd(found, small) == 1 and gmpy2.is_prime(found, ROUNDS):
            return found


def safe_prime(bits: int, rng: Rng) -> Any:
    """A prime p of so many bits, the two highest set, for which (p - 1) / 2 is a prime too.

    The first in a window at a random place: one after a long gap is somewhat likelier than others, which
    costs about one bit of the entropy (Brandt, Damgard, "On Generation of Probable Primes by Incremental
    Search", CRYPTO 1992).
    """
    while True:
        first = _candidate(bits - 1, rng)
        first += (5 - first) % 6  # or 2 or 3 would divide it, or twice it and one
        for place in np.flatnonzero(_unstruck(first)).tolist():
            q = first + 6 * place
            # Nearly always the first power says no; what is left is tested for good.
            if gmpy2.powmod(2, q - 1, q) != 1:
                continue
            p = 2 * q + 1
            if gmpy2.is_prime(p, ROUNDS) and gmpy2.is_prime(q, ROUNDS) and p.bit_length() == bits:
                return p


def _candidate(bits: int, rng: Rng) -> Any:
    """A number of so many bits, the two highest set, the others uniform."""
    size = ceil(bits / 8)
    return (mpz.from_bytes(rng(size), "little") >> 8 * size - bits) | mpz(3) << bits - 2


def _unstruck(first: Any) -> NDArray[np.bool_]:
    """Which q of the progression first + 6 k have no small factor, nor has 2 q + 1."""
    factors, sixths = _factors()
    left = np.zeros_like(factors)
    for shift in range((first.bit_length() - 1) // _LIMB * _LIMB, -1, -_LIMB):
        left = ((left << np.uint64(_LIMB)) | np.uint64(first >> shift & (1 << _LIMB) - 1)) % factors
    found = np.ones(_WINDOW, np.bool_)
    near = int(np.searchsorted(factors, _WINDOW))
    # r divides q where q is 0 modulo r, and 2 q + 1 where q is (r - 1) / 2.
    for wanted in (np.zeros_like(factors), factors >> np.uint64(1)):
        places = (wanted + factors - left) % factors * sixths % factors
        for place, factor in zip(places[:near].tolist(), factors[:near].tolist(), strict=True):
            found[place::factor] = False
        found[places[near:][places[near:] < _WINDOW]] = False
    return found


@lru_cache(maxsize=1)
def _factors() -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """The primes from 5 to `_REACH`, and 1/6 modulo each."""
    sieve = np.ones(_REACH, np.bool_)
    sieve[:2] = False
    for i in range(2, 1 << 11):
        if sieve[i]:
            sieve[i * i :: i] = False
    factors = np.flatnonzero(sieve)[2:].astype(np.uint64)
    one = np.uint64(1)
    sixths = np.where(factors % 6 == 1, (5 * factors + one) // 6, (factors + one) // 6)
    return factors, sixths


@lru_cache(maxsize=4)
def primorial(limit: int) -> Any:
    """The product of all primes up to `limit`."""
    return gmpy2.primorial(limit)
