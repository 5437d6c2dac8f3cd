"""Who can open a sum of ciphertexts, and how: owners of keys of their own, or of shares of one.

Both answer the same questions, so that a protocol need not know which they are: how values share plaintexts,
what is encrypted under which key, what an owner says to open ciphertexts, whether that is right, and what
so many openings come to. An owner is known by its place, ascending from 0.

What it does not protect against: see `secagg.dealing` and `secagg.consortium`; and whoever gives single
ciphertexts to open, where only sums were meant.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from secagg import consortium, proofs
from secagg.consortium import Consortium, KeyShare
from secagg.dealing import Sharing
from secagg.invalid import exact_length
from secagg.lanes import Lanes
from secagg.paillier import PrivateKey, PublicKey
from secagg.randomness import Rng


class Owners(ABC):
    """Of keys, or of shares of one."""

    publics: tuple[PublicKey, ...]
    """The keys under which is encrypted: a column of ciphertexts for each."""

    columns: int
    """How many there are."""

    ciphertext_bytes: int
    """Of one ciphertext under any of them."""

    randomiser_bits: int
    """Of the exponent of a randomiser."""

    @abstractmethod
    def lanes(self, bound: int) -> Lanes:
        """How values below `bound` share plaintexts; `ValueError` where they cannot."""

    @abstractmethod
    def column(self, place: int) -> int:
        """Which column the owner at that place opens."""

    @abstractmethod
    def divide(self, plaintexts: Sequence[int], rng: Rng) -> list[list[Any]]:
        """What is encrypted in each column."""

    @abstractmethod
    def open(self, secret: Any, ciphertexts: Sequence[int], context: bytes, rng: Rng) -> tuple[bytes, bytes]:
        """One owner's part in opening ciphertexts of its column, which are checked before, and the proof.

        `secret` is its `PrivateKey`, or its `KeyShare`; `context` says who opens what, and when.
        """

    @abstractmethod
    def check(
        self, place: int, ciphertexts: Sequence[int], part: bytes, proof: bytes, context: bytes
    ) -> None:
        """`Invalid` unless the part of the owner at that place is right."""

    @abstractmethod
    def combine(self, parts: Mapping[int, bytes]) -> list[int]:
        """The plaintexts, from checked parts by place.

        `Invalid` if they are fewer than the threshold, or of what was not encrypted as it should be.
        """


@dataclass(frozen=True)
class OwnKeys(Owners):
    """Each owner has a key, and a column of shares: see `secagg.dealing`.

    `owners` may all contribute to a sum that `threshold` open; their moduli have `bits` bits. Without
    `publics` it only knows sizes.
    """

    owners: int
    threshold: int
    bits: int
    publics: tuple[PublicKey, ...] = ()

    @property
    def sharing(self) -> Sharing:
        """How plaintexts are dealt."""
        return Sharing(self.owners, self.threshold, self.owners, self.bits)

    @property
    def columns(self) -> int:  # type: ignore[override]
        return self.owners

    @property
    def ciphertext_bytes(self) -> int:  # type: ignore[override]
        return 2 * self._size

    @property
    def randomiser_bits(self) -> int:  # type: ignore[override]
        return self.bits // 2

    @property
    def _size(self) -> int:
        return self.bits // 8

    def lanes(self, bound: int) -> Lanes:
        return self.sharing.lanes(bound)

    def column(self, place: int) -> int:
        return place

    def divide(self, plaintexts: Sequence[int], rng: Rng) -> list[list[Any]]:
        return self.sharing.deal(plaintexts, rng)

    def open(
        self, secret: PrivateKey, ciphertexts: Sequence[int], context: bytes, rng: Rng
    ) -> tuple[bytes, bytes]:
        plaintexts, roots = proofs.prove_openings(secret, ciphertexts)
        return joined(plaintexts, self._size), joined(roots, self._size)

    def check(
        self, place: int, ciphertexts: Sequence[int], part: bytes, proof: bytes, context: bytes
    ) -> None:
        exact_length("plaintexts", part, len(ciphertexts) * self._size)
        exact_length("roots", proof, len(ciphertexts) * self._size)
        plaintexts, roots = numbers(part, self._size), numbers(proof, self._size)
        proofs.check_openings(self.publics[place], ciphertexts, plaintexts, roots)

    def combine(self, parts: Mapping[int, bytes]) -> list[int]:
        return self.sharing.combine({place: numbers(part, self._size) for place, part in parts.items()})


@dataclass(frozen=True)
class OneKey(Owners):
    """A consortium's key: one column, in opening which every owner of a share has a part."""

    key: Consortium

    @property
    def publics(self) -> tuple[PublicKey, ...]:  # type: ignore[override]
        return (self.key.public,)

    columns = 1

    @property
    def ciphertext_bytes(self) -> int:  # type: ignore[override]
        return self.key.public.ciphertext_bytes

    @property
    def randomiser_bits(self) -> int:  # type: ignore[override]
        return self.key.public.short

    def lanes(self, bound: int) -> Lanes:
        return Lanes.fitting(self.key.public.bits - 1, bound, self.key.owners)

    def column(self, place: int) -> int:
        return 0

    def divide(self, plaintexts: Sequence[int], rng: Rng) -> list[list[Any]]:
        return [list(plaintexts)]

    def open(
        self, secret: KeyShare, ciphertexts: Sequence[int], context: bytes, rng: Rng
    ) -> tuple[bytes, bytes]:
        partials, proof = consortium.decrypt_partly(self.key, secret, ciphertexts, context, rng)
        return joined(partials, self.ciphertext_bytes), proof.pack(self.key)

    def check(
        self, place: int, ciphertexts: Sequence[int], part: bytes, proof: bytes, context: bytes
    ) -> None:
        partials = self.key.public.unpack(part, len(ciphertexts))
        known = consortium.Proof.unpack(self.key, proof)
        consortium.check_partials(self.key, place, ciphertexts, partials, known, context)

    def combine(self, parts: Mapping[int, bytes]) -> list[int]:
        found = {place: numbers(part, self.ciphertext_bytes) for place, part in parts.items()}
        return consortium.combine(self.key, found)


def joined(values: Sequence[int], size: int) -> bytes:
    """Numbers on the wire, each of so many bytes, little-endian."""
    return b"".join(int(v).to_bytes(size, "little") for v in values)


def numbers(data: bytes, size: int) -> list[int]:
    """What `joined` gave."""
    return [int.from_bytes(data[at : at + size], "little") for at in range(0, len(data), size)]
