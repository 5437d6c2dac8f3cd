"""python-paillier (`phe`, extra `phe`, GPLv3): its keys and numbers from ours and back, and whole vectors.

    public, private = to_phe(key.public), to_phe(key)
    numbers = encrypt_numbers(key.public, [3.5, -2.0], exponent=-8)       # phe's, made here
    vector = EncryptedVector.encrypt(Encryptor(key.public), values, scheme)      # hundreds to a ciphertext

phe gives each number an exponent that follows from its size and travels in the clear, and so tells how
large it is. Here all have the one exponent that was agreed on: fixed point, in steps of a power of 16.
Nothing wraps around silently: what is too large is refused when it is encrypted, added or scaled.

What it does not protect against: a number of phe's own may have an exponent that tells its size, or have been
computed with and not obfuscated since; phe sees to the latter when it hands out `ciphertext()`.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import phe
from numpy.typing import ArrayLike, NDArray

from secagg.invalid import Invalid
from secagg.lanes import Lanes
from secagg.paillier import Encryptor, PrivateKey, PublicKey, add
from secagg.randomness import Rng, system

BASE = phe.EncodedNumber.BASE
_REACH = 200  # exponents beyond this are those of no float


@overload
def to_phe(key: PublicKey) -> phe.PaillierPublicKey: ...
@overload
def to_phe(key: PrivateKey) -> phe.PaillierPrivateKey: ...
def to_phe(key: PublicKey | PrivateKey) -> Any:
    """Our key as phe's. Its public keys know nothing of short randomisers, and are slow without."""
    if isinstance(key, PrivateKey):
        return phe.PaillierPrivateKey(to_phe(key.public), int(key.p), int(key.q))
    return phe.PaillierPublicKey(int(key.n))


def from_phe(key: Any) -> Any:
    """phe's public or private key as ours.

    With full-length randomisers: nothing is known of its primes that would allow short ones.

    Raises `Invalid` for one of fewer than 2048 bits, or otherwise unfit, `TypeError` for what is no key.
    """
    if isinstance(key, phe.PaillierPrivateKey):
        return PrivateKey(int(key.p), int(key.q), from_phe(key.public_key))
    if isinstance(key, phe.PaillierPublicKey):
        return PublicKey(int(key.n))
    raise TypeError(f"key: expected one of phe's, got {type(key).__name__}")


def _fixed(values: ArrayLike, exponent: int, limit: int) -> list[int]:
    """Each value in steps of 16^exponent, rounded to the nearest; none beyond `limit` steps."""
    if isinstance(exponent, bool) or not isinstance(exponent, int) or abs(exponent) > _REACH:
        raise ValueError(f"exponent: expected an integer from {-_REACH} to {_REACH}, got {exponent!r}")
    given = np.asarray(values)
    if given.ndim != 1 or given.dtype.kind not in "iuf" or not np.isfinite(given).all():
        raise ValueError(
            "values: expected finite integers of 64 bits or floats in one dimension, got "
            f"{given.dtype} of shape {given.shape}"
        )
    found = []
    for value in given.tolist():  # Python's own integers stay what they are
        numerator, denominator = value.as_integer_ratio()
        if exponent < 0:
            numerator *= BASE**-exponent
        else:
            denominator *= BASE**exponent
        steps = (2 * numerator + denominator) // (2 * denominator)
        if abs(steps) > limit:
            raise ValueError("values: at least one is too large for this key or scheme")
        found.append(steps)
    return found


def _float(steps: int, exponent: int) -> float:
    try:
        return float(steps * BASE**exponent) if exponent >= 0 else steps / BASE**-exponent
    except OverflowError:
        raise Invalid("number: it is beyond what a float holds") from None


def encrypt_numbers(
    key: PublicKey | Encryptor, values: ArrayLike, exponent: int, rng: Rng = system
) -> list[phe.EncryptedNumber]:
    """phe's `EncryptedNumber` of each value, in steps of 16^exponent, encrypted here and obfuscated."""
    encryptor = key if isinstance(key, Encryptor) else Encryptor(key, np.size(np.asarray(values)))
    public, n = to_phe(encryptor.public), int(encryptor.public.n)
    plaintexts = [steps % n for steps in _fixed(values, exponent, n // 3 - 1)]
    # Theirs remember whether they were obfuscated, and would do it again.
    numbers = [phe.EncryptedNumber(public, int(c), exponent) for c in encryptor.encrypt(plaintexts, rng)]
    for number in numbers:
        number._EncryptedNumber__is_obfuscated = True
    return numbers


def decrypt_numbers(
    key: PrivateKey, numbers: Iterable[phe.EncryptedNumber], exponent: int
) -> NDArray[np.float64]:
    """The values of phe's numbers, all of this exponent or a larger one; `Invalid` for any other."""
    found = list(numbers)
    if any(number.public_key.n != key.public.n for number in found):
        raise Invalid("number: encrypted under another key")
    # A peer's: one that is too large would be computed with until memory is gone.
    if any(type(number.exponent) is not int or not exponent <= number.exponent <= _REACH for number in found):
        raise Invalid(f"number: expected an exponent from the {exponent} that was agreed on to {_REACH}")
    ciphertexts = key.public.checked(number.ciphertext(be_secure=False) for number in found)
    n, values = int(key.public.n), []
    for number, m in zip(found, key.decrypt(ciphertexts), strict=True):
        steps = m if m <= n // 3 else m - n
        if abs(steps) > n // 3:
            raise Invalid("number: it overflowed")
        values.append(_float(steps, number.exponent))
    return np.array(values, np.float64)


# -------------------------------------------------------------------------------------------- vectors


@dataclass(frozen=True, slots=True)
class Scheme:
    """What all that share a sum agree on: values from -`limit` to `limit` in steps of 16^`exponent`.

    `weight` is the largest total weight of a sum: the number of vectors, if each counts 1.
    """

    limit: float
    exponent: int
    weight: int

    def __post_init__(self) -> None:
        if not 0 < self.limit < 1e300 or type(self.weight) is not int or self.weight < 1:
            raise ValueError("scheme: expected a positive limit and an integer weight of at least 1")
        _fixed([self.limit], self.exponent, 1 << 62)

    @property
    def steps(self) -> int:
        """The limit in steps; a value v is v + limit in its lane."""
        return _fixed([self.limit], self.exponent, 1 << 62)[0]

    def lanes(self, public: PublicKey) -> Lanes:
        """How values share plaintexts. Raises `ValueError` where they cannot."""
        return Lanes.fitting(public.bits - 1, 2 * self.steps + 1, self.weight)


@dataclass(frozen=True, slots=True)
class EncryptedVector:
    """A vector, many values to a ciphertext. Add others, and multiply by positive integers, as phe's numbers.

    `weight` is that of all that is in it; beyond the scheme's nothing can be added.
    """

    public: PublicKey
    scheme: Scheme
    ciphertexts: Sequence[Any]
    dim: int
    weight: int

    def __post_init__(self) -> None:
        if type(self.weight) is not int or not 1 <= self.weight <= self.scheme.weight:
            raise Invalid(f"weight: the scheme has room for 1 to {self.scheme.weight}, got {self.weight!r}")

    @classmethod
    def encrypt(
        cls, encryptor: Encryptor, values: ArrayLike, scheme: Scheme, rng: Rng = system
    ) -> EncryptedVector:
        """`ValueError` for values beyond the scheme's limit, NaN or infinity."""
        steps = _fixed(values, scheme.exponent, scheme.steps)
        shifted = np.array([s + scheme.steps for s in steps], np.uint64)
        lanes = scheme.lanes(encryptor.public)
        return cls(encryptor.public, scheme, encryptor.encrypt(lanes.pack(shifted), rng), len(steps), 1)

    def __add__(self, other: object) -> EncryptedVector:
        if not isinstance(other, EncryptedVector):
            return NotImplemented
        mine, theirs = (self.public, self.scheme, self.dim), (other.public, other.scheme, other.dim)
        if mine != theirs:
            raise ValueError("vectors: expected two of one key, one scheme and one length")
        summed = add(self.public, [self.ciphertexts, other.ciphertexts])
        return self._weighing(summed, self.weight + other.weight)

    def __radd__(self, zero: object) -> EncryptedVector:
        return self if zero == 0 and isinstance(zero, int) else NotImplemented  # `sum` begins with 0

    def __mul__(self, factor: object) -> EncryptedVector:
        try:
            times = operator.index(factor)  # type: ignore[arg-type]
        except TypeError:
            return NotImplemented
        if times < 1:
            raise ValueError(f"factor: expected a positive integer, got {times}")
        # Before the powers: a factor too large would take as long as it likes.
        weighing = self._weighing(self.ciphertexts, self.weight * times)
        square = self.public.square
        return weighing._weighing([pow(c, times, square) for c in self.ciphertexts], weighing.weight)

    __rmul__ = __mul__

    def _weighing(self, ciphertexts: Sequence[Any], weight: int) -> EncryptedVector:
        if weight > self.scheme.weight:
            raise ValueError(
                f"weight: the scheme has room for {self.scheme.weight}, this would make it {weight}"
            )
        return EncryptedVector(self.public, self.scheme, ciphertexts, self.dim, weight)

    def obfuscate(self, encryptor: Encryptor, rng: Rng = system) -> EncryptedVector:
        """The same vector, from which nobody learns what it was computed from: before it is handed on."""
        if encryptor.public != self.public:
            raise ValueError("encryptor: expected one for the vector's key")
        return self._weighing(encryptor.obfuscate(self.ciphertexts, rng), self.weight)

    def decrypt(self, key: PrivateKey) -> NDArray[np.float64]:
        """The values: `dim` float64. Raises `Invalid` for a vector that no honest party made."""
        if key.public.n != self.public.n:
            raise ValueError("key: expected the vector's")
        plaintexts = key.decrypt(key.public.checked(self.ciphertexts))
        lanes = self.scheme.lanes(self.public).unpack(plaintexts, self.dim)
        shift = self.weight * self.scheme.steps
        if lanes.size and int(lanes.max()) > 2 * shift:
            raise Invalid("vector: a value is beyond what its weight allows")
        return np.array([_float(int(v) - shift, self.scheme.exponent) for v in lanes], np.float64)
