"""What a primitive raises when something received does not check.

A primitive does not know the parties, so it cannot blame anyone: the protocol above catches `Invalid`
and names the sender. The text never contains the value itself, which may be secret.
"""

from __future__ import annotations


class Invalid(ValueError):
    """Bytes, a key, a share or a signature that is not what it must be."""


def exact_length(what: str, data: bytes | memoryview, length: int) -> None:
    """Refuse `data` unless it has exactly `length` bytes."""
    if len(data) != length:
        raise Invalid(f"{what}: expected {length} bytes, got {len(data)}")
