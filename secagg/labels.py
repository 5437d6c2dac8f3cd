"""Every domain-separation label, the wire version, and the one way to hash several things together.

A label says what a hash, key or signature is for, so that a value made for one purpose is useless for
another. All of them stand here, so that a reader can check that no two are alike.
"""

from __future__ import annotations

from enum import Enum
from hashlib import sha256

VERSION = 1
"""The version on the wire and in every hash; a change to any message or label raises it."""


class Label(Enum):
    """What a derived value is for."""

    SESSION = "session"
    KEYS = "advertised keys"
    CHANNEL = "channel key"
    MASK = "pairwise mask"
    SELF_MASK = "self mask"
    SEED_COMMITMENT = "seed commitment"
    SHARE_COMMITMENT = "share commitment"
    SHARES = "sealed shares"
    NOISE = "noise"
    ECHO = "message answered"
    SETUP = "keys and graph"
    SURVIVORS = "survivor set"
    GRAPH = "graph"
    STEP = "randomness of a step"
    SEEDED = "seeded generator"
    HANDLED = "message handled"
    MACHINE = "machine in a journal"
    SNAPSHOT = "snapshot"
    MODEL = "model"
    PLACEHOLDER = "placeholder identity"
    CLAIM = "claim to a name"
    INSTRUCTION = "instruction"
    OPENING = "opening of a round"
    ROUNDING = "rounding"
    ROTATION = "rotation"
    ROSTER = "roster"
    KEY_PROOF = "proof of a Paillier key"
    PLAINTEXT_PROOF = "proof of plaintexts"
    OPENING_PROOF = "proof of openings"
    CONTRIBUTION = "contribution"
    COLUMN = "column of a contribution"
    CONSORTIUM = "consortium's key"
    PARTIAL_PROOF = "proof of partial decryptions"


def bind(label: Label, *parts: bytes) -> bytes:
    """Join a label and byte strings so that no two different inputs give the same bytes.

    Each part is preceded by its length (8 bytes), so boundaries cannot be moved.
    """
    joined = [_HEADS[label]]
    for part in parts:
        joined += (len(part).to_bytes(8, "big"), part)
    return b"".join(joined)


def _head(label: Label) -> bytes:
    text = f"secagg/{VERSION}/{label.value}".encode()
    return len(text).to_bytes(8, "big") + text


_HEADS = {label: _head(label) for label in Label}


def digest(label: Label, *parts: bytes) -> bytes:
    """SHA-256 of `bind(label, *parts)`: 32 bytes."""
    return sha256(bind(label, *parts)).digest()
