"""`secagg.labels`: no two purposes and no two inputs meet in one hash."""

from __future__ import annotations

from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secagg import labels
from secagg.labels import Label, bind, digest

LABEL = st.sampled_from(list(Label))
PARTS = st.lists(st.binary(max_size=20), max_size=4)


def unbind(bound: bytes) -> list[bytes]:
    """Read the parts back; that this is possible is why no two inputs meet."""
    parts = []
    while bound:
        length = int.from_bytes(bound[:8], "big")
        parts.append(bound[8 : 8 + length])
        assert len(parts[-1]) == length
        bound = bound[8 + length :]
    return parts


def test_no_two_labels_are_alike() -> None:
    assert len(Label.__members__) == len(list(Label))  # an Enum makes an alias of a value used twice
    assert len({label.value.casefold() for label in Label}) == len(Label)


@given(LABEL, PARTS)
def test_bind_can_be_read_back(label: Label, parts: list[bytes]) -> None:
    head = f"secagg/{labels.VERSION}/{label.value}".encode()
    assert unbind(bind(label, *parts)) == [head, *parts]


@given(LABEL, PARTS, LABEL, PARTS)
def test_bind_is_injective(one: Label, parts: list[bytes], two: Label, others: list[bytes]) -> None:
    assert (bind(one, *parts) == bind(two, *others)) == ((one, parts) == (two, others))


@given(LABEL, st.binary(max_size=30), st.data())
def test_a_moved_boundary_gives_other_bytes(label: Label, whole: bytes, data: st.DataObject) -> None:
    cut, other = data.draw(st.integers(0, len(whole))), data.draw(st.integers(0, len(whole)))
    one, two = bind(label, whole[:cut], whole[cut:]), bind(label, whole[:other], whole[other:])
    assert (one == two) == (cut == other)
    assert one != bind(label, whole)


@given(LABEL, PARTS)
def test_digest_is_sha256_of_bind(label: Label, parts: list[bytes]) -> None:
    assert digest(label, *parts) == sha256(bind(label, *parts)).digest()


def test_every_value_changes_with_the_version(monkeypatch: pytest.MonkeyPatch) -> None:
    before = {label: digest(label, b"part") for label in Label}
    monkeypatch.setattr(labels, "VERSION", labels.VERSION + 1)
    monkeypatch.setattr(labels, "_HEADS", {label: labels._head(label) for label in Label})
    assert all(digest(label, b"part") != before[label] for label in Label)
