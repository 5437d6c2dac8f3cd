"""Powers in the groups of Paillier's cryptosystem: many of one base, and products of many bases' powers.

What it does not protect against: whoever measures time, or sees which entries of a table are read, learns of
the exponents. Where a secret is the exponent of a single power, `gmpy2.powmod_sec` is used instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from math import ceil
from typing import Any

from secagg.bigint import gmpy2, mpz


class FixedBase:
    """Powers of one base modulo n^2, for exponents of so many bits: a table for every window of them.

    Elements are split as x0 + x1 n: a product is then of halves, and is reduced modulo n.
    """

    def __init__(self, base: int, n: int, bits: int, count: int) -> None:
        self._n = mpz(n)
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


def combined(values: Sequence[int], exponents: Sequence[int], width: int, modulus: Any) -> Any:
    """The product of values to exponents of `width` bytes: those with digits in common are multiplied first.

    Pippenger, "On the evaluation of powers and related problems", FOCS 1976.
    """
    # A digit of b bits takes a product a value, and two for each digit that there is.
    bits = min((1, 2, 4, 8), key=lambda b: (len(values) + (2 << b)) // b)
    total = mpz(1)
    for shift in range(8 * width - bits, -1, -bits):
        buckets: list[Any] = [None] * (1 << bits)
        for value, exponent in zip(values, exponents, strict=True):
            digit = exponent >> shift & (1 << bits) - 1
            buckets[digit] = mpz(value) if buckets[digit] is None else buckets[digit] * value % modulus
        # The bucket of d is needed d times: as often as running products from the top pass by it.
        running, part = mpz(1), mpz(1)
        for bucket in reversed(buckets[1:]):
            if bucket is not None:
                running = running * bucket % modulus
            part = part * running % modulus
        total = reduce(lambda x, _: x * x % modulus, range(bits), total) * part % modulus
    return total
