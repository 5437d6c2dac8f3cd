"""Big integers: gmpy2 (extra `paillier`), asked for in one place, so that its absence is explained once.

What it does not protect against: GMP's arithmetic takes a time that depends on the numbers, but for
`powmod_sec`, whose time does not depend on the exponent's bits.
"""

from __future__ import annotations

try:
    import gmpy2
    from gmpy2 import mpz
except ModuleNotFoundError as error:
    text = "Paillier needs gmpy2, of the extra paillier: in a clone, pip install -e '.[paillier]'"
    raise ModuleNotFoundError(text, name=error.name) from None

__all__ = ["gmpy2", "mpz"]
