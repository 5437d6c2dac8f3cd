"""One Paillier key for a consortium: a dealer splits its private half, and any t owners decrypt together.

Damgard, Jurik, "A Generalisation, a Simplification and Some Applications of Paillier's Probabilistic
Public-Key System", PKC 2001, section 4.1, with s = 1: the modulus is a product of safe primes, the secret
exponent d is 0 modulo the order of the residues and 1 modulo n, and it is shared by a polynomial. Whoever
has a share raises a ciphertext to it; t such powers are put together in the exponent, and d is nowhere.

That a power is right is proved as there, by equality of two logarithms (Chaum, Pedersen, CRYPTO 1992), but
for all ciphertexts at once, through a random combination of them (Aditya, Peng, Boyd, Dawson, Lee, "Batch
Verification for Equality of Discrete Logarithms and Threshold Decryptions", ACNS 2004). Combining is sound
here with 128-bit coefficients: squares modulo n^2 have an order without small factors, the primes being
safe, and powers are squared before they are looked at.

What it does not protect against: the dealer, who knows everything, and must forget it; t owners together. No
owner can be given a new share, and no share taken back, without a new key.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import factorial
from typing import Any

import msgspec

from secagg.bigint import gmpy2, mpz
from secagg.invalid import Invalid
from secagg.labels import Label, bind, digest
from secagg.paillier import LEAST_BITS, MOST_BITS, USUAL_BITS, PublicKey, generate, unit
from secagg.powers import combined
from secagg.randomness import Rng, below, seeded, system

MOST_OWNERS = 256
"""More would make exponents of combination, n! among them, longer than those of decryption."""

_WIDTH = 16  # bytes of a coefficient, and of a challenge: 2^-128
_HIDING = 128  # bits that a mask is longer than what it hides


@dataclass(frozen=True, repr=False)
class Consortium:
    """A consortium's key, which everybody may know.

    `threshold` of the owners decrypt; `base` is a square modulo n^2, and `checks` what each owner's share
    makes of it: what partial decryptions are compared with. Raises `Invalid` for what is no key.
    """

    public: PublicKey
    threshold: int
    base: int
    checks: tuple[int, ...]

    def __post_init__(self) -> None:
        numbers = (self.threshold, self.base, *self.checks)
        if not all(isinstance(v, int) and not isinstance(v, bool) for v in numbers):
            raise Invalid("consortium: expected integers")
        if not 2 <= self.threshold <= self.owners <= MOST_OWNERS:
            raise Invalid(
                f"consortium: expected a threshold from 2 to {self.owners} (owners, at most {MOST_OWNERS})"
            )
        if not self.public.h:
            raise Invalid("consortium: expected a key with a base of randomisers")
        self.public.checked([self.base, *self.checks])
        # With a base of small order a share could be anything. That the base is a square, and generates all
        # of them, only the dealer knows.
        n = self.public.n
        if gmpy2.gcd(self.base - 1, n) != 1 or gmpy2.jacobi(self.base, n) != 1:
            raise Invalid("consortium: its base is none")
        if len({self.base, *self.checks}) <= self.owners:
            raise Invalid("consortium: two of its owners have the same share")

    def __repr__(self) -> str:
        head = f"Consortium({self.threshold} of {self.owners}, {self.public.bits} bits"
        return f"{head}, {self.fingerprint.hex()[:16]}…)"

    @property
    def owners(self) -> int:
        """How many have a share."""
        return len(self.checks)

    @cached_property
    def fingerprint(self) -> bytes:
        """SHA-256 over all of it: 32 bytes."""
        return digest(Label.CONSORTIUM, self.pack())

    def pack(self) -> bytes:
        """As bytes, for a file."""
        numbers = (self.public.n, self.public.h, self.public.short, self.threshold, self.base, *self.checks)
        return msgspec.msgpack.encode([_bytes(v) for v in numbers])

    @classmethod
    def unpack(cls, data: bytes) -> Consortium:
        """What `pack` gave; `Invalid` for anything else."""
        n, h, short, threshold, base, *checks = _numbers(data, 6, "consortium")
        return cls(PublicKey(n, h, short), threshold, base, tuple(checks))

    @cached_property
    def _delta(self) -> Any:
        """The factorial that makes whole numbers of Lagrange's coefficients."""
        return mpz(factorial(self.owners))


@dataclass(frozen=True)
class KeyShare:
    """What one owner, by place from 0, has of a consortium's private key. Never shown."""

    place: int
    secret: int = field(repr=False)

    def __post_init__(self) -> None:
        if not all(isinstance(v, int) and not isinstance(v, bool) for v in (self.place, self.secret)):
            raise Invalid("share: expected integers")
        if not 0 <= self.place < MOST_OWNERS or not 0 < self.secret < 1 << 2 * MOST_BITS:
            raise Invalid(f"share: expected a place from 0 to {MOST_OWNERS - 1} and a positive number")

    def check(self, key: Consortium) -> None:
        """`Invalid` unless it is a share of this key."""
        if self.place >= key.owners:
            raise Invalid(f"share: expected a place from 0 to {key.owners - 1}, got {self.place}")
        if self.secret >= key.public.n**2:
            raise Invalid("share: it is longer than one of this consortium's key")
        made = gmpy2.powmod_sec(key.base, key._delta * self.secret, key.public.square)
        if made != key.checks[self.place]:
            raise Invalid("share: it is not one of this consortium's key")

    def pack(self) -> bytes:
        """As bytes, for a file that nobody else reads."""
        return msgspec.msgpack.encode([_bytes(self.place), _bytes(self.secret)])

    @classmethod
    def unpack(cls, data: bytes) -> KeyShare:
        """What `pack` gave; `Invalid` for anything else."""
        place, secret = _numbers(data, 2, "share", 2)
        return cls(place, secret)


def _bytes(value: int) -> bytes:
    return int(value).to_bytes(int(value).bit_length() // 8 + 1, "little")


def _numbers(data: bytes, least: int, what: str, most: int = MOST_OWNERS + 5) -> list[int]:
    try:
        found = msgspec.msgpack.decode(data, type=list[bytes])
    except (msgspec.ValidationError, msgspec.DecodeError, TypeError):
        raise Invalid(f"{what}: expected what was packed, the data are something else") from None
    if not least <= len(found) <= most or any(len(v) > MOST_BITS // 4 + 1 for v in found):
        wanted = f"{least}" if least == most else f"{least} to {most}"
        raise Invalid(f"{what}: expected {wanted} numbers, none longer than a key's, got {len(found)}")
    return [int.from_bytes(v, "little") for v in found]


def deal(
    owners: int, threshold: int, bits: int = USUAL_BITS, rng: Rng = system, *, short: int | None = None
) -> tuple[Consortium, tuple[KeyShare, ...]]:
    """A new key, and a share of it for each owner. Whoever calls this could read everything.

    `threshold` what the parameter finder says for the session that it is for (`secagg.parameters`). `short`
    the bits of randomisers, as in `paillier.generate`. Takes some seconds. Raises `ValueError` for numbers
    that cannot be.
    """
    for name, value, high in (("owners", owners, MOST_OWNERS), ("threshold", threshold, owners)):
        if isinstance(value, bool) or not isinstance(value, int) or not 2 <= value <= high:
            raise ValueError(f"{name}: expected 2 to {high}, got {value!r}")
    key = generate(bits, rng, safe=True, short=short)
    n, order = mpz(key.public.n), mpz((key.p - 1) // 2 * ((key.q - 1) // 2))
    # d is 0 modulo the order and 1 modulo n.
    coefficients = [order * gmpy2.invert(order, n)]
    coefficients += [mpz(below(n * order, rng)) for _ in range(threshold - 1)]
    values = []
    for x in range(1, owners + 1):
        value = mpz(0)
        for coefficient in reversed(coefficients):
            value = (value * x + coefficient) % (n * order)
        values.append(value)
    root = unit(n * n, rng)
    base, delta = root * root % (n * n), mpz(factorial(owners))
    checks = tuple(int(gmpy2.powmod_sec(base, delta * value, n * n)) for value in values)
    shares = tuple(KeyShare(place, int(value)) for place, value in enumerate(values))
    return Consortium(key.public, threshold, int(base), checks), shares


# ------------------------------------------------------------------------------------------ decryption


@dataclass(frozen=True, slots=True)
class Proof:
    """That partial decryptions are what one owner's share makes of ciphertexts: challenge and answer."""

    challenge: int
    answer: int

    def pack(self, key: Consortium) -> bytes:
        """On the wire."""
        return self.challenge.to_bytes(_WIDTH, "little") + self.answer.to_bytes(_answer_bytes(key), "little")

    @classmethod
    def unpack(cls, key: Consortium, data: bytes) -> Proof:
        """What `pack` gave; `Invalid` if it is of another length."""
        if len(data) != proof_bytes(key):
            raise Invalid(f"proof of partial decryptions: expected {proof_bytes(key)} bytes, got {len(data)}")
        return cls(int.from_bytes(data[:_WIDTH], "little"), int.from_bytes(data[_WIDTH:], "little"))


def proof_bytes(key: Consortium) -> int:
    """The length of a packed proof."""
    return _WIDTH + _answer_bytes(key)


def _mask_bits(key: Consortium) -> int:
    """Of the mask of a challenge times a share times the factorial."""
    bits = 2 * key.public.bits + int(key._delta).bit_length() + 8 * _WIDTH + _HIDING
    return -(-bits // 8) * 8


def _answer_bytes(key: Consortium) -> int:
    return _mask_bits(key) // 8 + 1


def decrypt_partly(
    key: Consortium, share: KeyShare, ciphertexts: Sequence[int], context: bytes, rng: Rng = system
) -> tuple[list[int], Proof]:
    """What a share makes of each ciphertext, and the proof of all: bound to `context`, as in `secagg.proofs`.

    The ciphertexts are checked (`PublicKey.checked`) before.
    """
    square, secret = key.public.square, key._delta * share.secret
    partials = [int(gmpy2.powmod_sec(c, 2 * secret, square)) for c in ciphertexts]
    together, powers, statement = _batched(key, share.place, ciphertexts, partials, context)
    mask = mpz.from_bytes(rng(_mask_bits(key) // 8), "little")
    commitments = (gmpy2.powmod_sec(base, mask, square) for base in (mpz(key.base), together))
    challenge = _challenge(key, statement, powers, commitments)
    return partials, Proof(challenge, int(mask + challenge * secret))


def check_partials(
    key: Consortium, place: int, ciphertexts: Sequence[int], partials: Sequence[int], proof: Proof,
    context: bytes,
) -> None:  # fmt: skip
    """`Invalid` unless these are what the share of the owner at that place makes of the ciphertexts."""
    square = key.public.square
    key.public.checked(partials, len(ciphertexts))
    if not 0 <= proof.challenge < 1 << 8 * _WIDTH or not 0 <= proof.answer < 1 << 8 * _answer_bytes(key):
        raise Invalid("partial decryptions: the proof has numbers that are too large")
    together, powers, statement = _batched(key, place, ciphertexts, partials, context)
    commitments = (
        gmpy2.powmod(base, proof.answer, square)
        * gmpy2.powmod(gmpy2.invert(power, square), proof.challenge, square)
        % square
        for base, power in ((mpz(key.base), mpz(key.checks[place])), (together, powers))
    )
    if _challenge(key, statement, powers, commitments) != proof.challenge:
        raise Invalid("partial decryptions: the proof does not hold")


def _batched(
    key: Consortium, place: int, ciphertexts: Sequence[int], partials: Sequence[int], context: bytes
) -> tuple[Any, Any, bytes]:
    """A random combination of ciphertexts to the 4th, the same of partials squared, and a hash of it all."""
    square, size = key.public.square, key.public.ciphertext_bytes
    numbers = b"".join(int(v).to_bytes(size, "little") for v in (*ciphertexts, *partials))
    where = (context, key.fingerprint, place.to_bytes(4, "big"))
    statement = digest(Label.PARTIAL_PROOF, *where, numbers)
    rng = seeded(bind(Label.PARTIAL_PROOF, statement))
    row = [int.from_bytes(rng(_WIDTH), "little") for _ in ciphertexts]
    together = gmpy2.powmod(combined(ciphertexts, row, _WIDTH, square), 4, square)
    return together, gmpy2.powmod(combined(partials, row, _WIDTH, square), 2, square), statement


def _challenge(key: Consortium, statement: bytes, powers: Any, commitments: Iterator[Any]) -> int:
    size = key.public.ciphertext_bytes
    parts = (int(v).to_bytes(size, "little") for v in (powers, *commitments))
    return int.from_bytes(digest(Label.PARTIAL_PROOF, statement, *parts)[:_WIDTH], "little")


def combine(key: Consortium, partials: Mapping[int, Sequence[int]]) -> list[int]:
    """The plaintexts, from what so many owners, by place, made of each ciphertext, all of it proved before.

    Raises `Invalid` for fewer than the key's threshold, and where the powers are of no ciphertext.
    """
    places = sorted(partials)[: key.threshold]
    if len(places) < key.threshold or len({len(partials[place]) for place in places}) != 1:
        raise Invalid(f"partial decryptions: expected those of {key.threshold} owners, of equal length")
    n, square, delta = mpz(key.public.n), key.public.square, key._delta
    exponents = []
    for place in places:
        above, below = delta, mpz(1)
        for other in places:
            if other != place:
                above, below = above * (other + 1), below * (other - place)
        exponents.append(2 * gmpy2.divexact(above, below))
    # Together the powers make the ciphertext to 4 delta^2 d: (1 + n) to 4 delta^2 times the plaintext.
    factor, found = gmpy2.invert(4 * delta * delta, n), []
    for i in range(len(partials[places[0]])):
        product = mpz(1)
        for place, exponent in zip(places, exponents, strict=True):
            product = product * gmpy2.powmod(partials[place][i], exponent, square) % square
        if product % n != 1:
            raise Invalid("partial decryptions: they are not of one ciphertext")
        found.append(int((product - 1) // n * factor % n))
    return found


assert LEAST_BITS // 2 > 8 * _WIDTH + 1  # no factor of the order of squares is as small as a coefficient
