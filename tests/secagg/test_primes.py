"""Primes and safe primes: that they are, and that the sieve strikes out what it should and nothing else."""

from __future__ import annotations

import gmpy2
import numpy as np
import pytest

from secagg import primes
from secagg.randomness import seeded


@pytest.mark.parametrize("bits", [64, 129, 512])
def test_primes_are_of_the_size_that_was_asked_for(bits: int) -> None:
    for seed in range(5):
        p = primes.prime(bits, seeded(b"p", bytes([seed])))
        assert gmpy2.is_prime(p, 40)
        assert p >> bits - 2 == 3
        assert p % 4 == 3


@pytest.mark.parametrize("bits", [128, 256, 511])
def test_safe_primes_are_safe(bits: int) -> None:
    found = {primes.safe_prime(bits, seeded(b"s", bytes([seed]))) for seed in range(5)}
    assert len(found) == 5
    for p in found:
        assert gmpy2.is_prime(p, 40)
        assert gmpy2.is_prime((p - 1) // 2, 40)
        assert p.bit_length() == bits
        assert p >> bits - 2 == 3


def test_the_same_stream_makes_the_same_prime() -> None:
    assert primes.safe_prime(128, seeded(b"x")) == primes.safe_prime(128, seeded(b"x"))


def test_the_sieve_strikes_out_every_small_factor_and_nothing_else() -> None:
    """Against division: of q, and of 2 q + 1."""
    first = primes._candidate(700, seeded(b"sieve"))
    first += (5 - first) % 6
    left = primes._unstruck(first)
    assert left.size == primes._WINDOW
    small = primes.primorial(primes._REACH)
    for place in [*range(2000), *range(left.size - 2000, left.size)]:
        q = first + 6 * place
        assert left[place] == (gmpy2.gcd(q * (2 * q + 1), small) == 1)


def test_the_primes_that_the_sieve_knows() -> None:
    factors, sixths = primes._factors()
    assert factors[:3].tolist() == [5, 7, 11]
    assert len(factors) == 295_947 - 2  # primes below 2^22, less 2 and 3
    assert all(gmpy2.is_prime(int(r)) for r in factors[::997])
    np.testing.assert_array_equal(sixths * 6 % factors, 1)
