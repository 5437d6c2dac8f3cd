"""`secagg.shamir` against polynomials over Python's integers, share by share and bit by bit."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secagg import shamir
from secagg.invalid import Invalid
from secagg.randomness import seeded

P = 65537
SECRET = st.binary(min_size=32, max_size=32) | st.sampled_from((bytes(32), b"\xff" * 32))
POINT = st.integers(1, P - 1) | st.sampled_from((1, P - 2, P - 1))


@st.composite
def dealings(draw: st.DrawFn, least: int = 1) -> tuple[int, list[int]]:
    """A threshold of at least `least`, and distinct points for at least as many holders."""
    points = draw(st.lists(POINT, min_size=least, max_size=9, unique=True))
    return draw(st.integers(least, len(points))), points


def limbs(secret: bytes) -> list[int]:
    """A secret as sixteen 16-bit numbers."""
    return [int.from_bytes(secret[i : i + 2], "little") for i in range(0, 32, 2)]


def encode(values: list[int]) -> bytes:
    """Sixteen numbers of 17 bits as one little-endian integer."""
    return sum(v << 17 * i for i, v in enumerate(values)).to_bytes(34, "little")


def decode(share: bytes) -> list[int]:
    """The other way."""
    number = int.from_bytes(share, "little")
    return [number >> 17 * i & 0x1FFFF for i in range(16)]


def evaluate(polynomial: list[int], x: int) -> int:
    """sum c_j x^j mod p."""
    return sum(c * pow(x, j, P) for j, c in enumerate(polynomial)) % P


def interpolate(known: dict[int, int]) -> list[int]:
    """The coefficients of the one polynomial of degree below len(known) through these points."""
    result = [0] * len(known)
    for x, y in known.items():
        basis, scale = [1], y
        for other in known:
            if other != x:  # basis *= (X - other)
                basis = [
                    (a - other * b) % P for a, b in zip([0, *basis], [*basis, 0], strict=True)
                ]  # fmt: skip
                scale = scale * pow(x - other, -1, P) % P
        result = [(r + scale * b) % P for r, b in zip(result, basis, strict=True)]
    return result


def words(rows: list[list[int]]) -> Callable[[int], bytes]:
    """A generator that hands out these numbers as 32-bit words, and no more."""
    left = bytearray(b"".join(v.to_bytes(4, "little") for row in rows for v in row))

    def rng(n: int) -> bytes:
        assert n <= len(left)
        taken = bytes(left[:n])
        del left[:n]
        return taken

    return rng


def test_the_references_agree_with_themselves() -> None:
    assert interpolate({1: 6, 2: 11, 3: 18}) == [3, 2, 1]
    assert [evaluate([3, 2, 1], x) for x in (1, 2, 3)] == [6, 11, 18]
    assert decode(encode(list(range(P - 16, P)))) == list(range(P - 16, P))


@given(st.lists(SECRET, max_size=3), dealings(), st.binary(max_size=4))
def test_shares_are_values_of_random_polynomials(
    secrets: list[bytes], dealing: tuple[int, list[int]], seed: bytes
) -> None:  # fmt: skip
    threshold, points = dealing
    columns = [limb for secret in secrets for limb in limbs(secret)]
    numbers = seeded(seed)(4 * (threshold - 1) * len(columns))
    rows = [
        [int.from_bytes(numbers[4 * (r * len(columns) + c) :][:4], "little") % P for c in range(len(columns))]
        for r in range(threshold - 1)
    ]
    polynomials = list(zip(columns, *rows, strict=True))
    expected = [
        [encode([evaluate(list(p), x) for p in polynomials[16 * s : 16 * s + 16]]) for x in points]
        for s in range(len(secrets))
    ]
    assert shamir.split(secrets, threshold, points, seeded(seed)) == expected


@given(st.lists(SECRET, min_size=1, max_size=4), dealings(), st.data())
def test_any_threshold_of_shares_recover_the_secrets(
    secrets: list[bytes], dealing: tuple[int, list[int]], data: st.DataObject
) -> None:  # fmt: skip
    threshold, points = dealing
    shares = shamir.split(secrets, threshold, points, seeded(b"any"))
    places = data.draw(st.permutations(range(len(points))))[:threshold]
    chosen = [[row[i] for i in places] for row in shares]
    assert shamir.combine(chosen, [points[i] for i in places]) == secrets


@given(SECRET, SECRET, dealings(least=2), st.data())
def test_one_share_too_few_is_consistent_with_every_secret(
    secret: bytes, candidate: bytes, dealing: tuple[int, list[int]], data: st.DataObject
) -> None:  # fmt: skip
    """Perfect secrecy: for each candidate there is exactly one choice of randomness that deals the same.

    It is found by interpolation, and given to `split` as its randomness.
    """
    threshold, points = dealing
    places = data.draw(st.permutations(range(len(points))))[: threshold - 1]
    [dealt] = shamir.split([secret], threshold, points, seeded(b"few"))
    seen = {points[i]: decode(dealt[i]) for i in places}
    polynomials = [
        interpolate({0: limb, **{x: values[i] for x, values in seen.items()}})
        for i, limb in enumerate(limbs(candidate))
    ]
    assert all(len(p) == threshold for p in polynomials)
    coefficients = [[p[j] for p in polynomials] for j in range(1, threshold)]
    [redealt] = shamir.split([candidate], threshold, points, words(coefficients))
    assert all(redealt[i] == dealt[i] for i in places)
    other = next(i for i in range(len(points)) if i not in places)
    assert shamir.combine(
        [[*(dealt[i] for i in places), redealt[other]]], [*(points[i] for i in places), points[other]]
    ) == [candidate]


@pytest.mark.parametrize("threshold", [2, 3, 8])
def test_one_share_too_few_does_not_recover(threshold: int) -> None:
    points = range(1, threshold + 1)
    [shares] = shamir.split([bytes(range(32))], threshold, points, seeded(b"short"))
    try:
        found = shamir.combine([shares[:-1]], points[:-1])
    except Invalid:
        return
    assert found != [bytes(range(32))]


def test_a_large_dealing_with_the_last_points() -> None:
    points = list(range(P - 300, P))
    secrets = [seeded(b"large", bytes([i]))(32) for i in range(5)]
    shares = shamir.split(secrets, 151, points, seeded(b"large"))
    assert shamir.combine([row[:151] for row in shares], points[:151]) == secrets
    assert shamir.combine([row[-151:] for row in shares], points[-151:]) == secrets


def test_nothing_to_share_and_nothing_to_combine() -> None:
    assert shamir.split([], 2, [1, 2, 3], seeded(b"")) == []
    assert shamir.combine([], [1, 2]) == []


@pytest.mark.parametrize("length", [0, 1, 33, 35, 68])
def test_a_share_of_another_length_is_refused(length: int) -> None:
    good = bytes(34)
    with pytest.raises(Invalid, match="expected 34 bytes"):
        shamir.malformed([bytes(length)])
    for row in ([bytes(length), good], [good, bytes(length)]):
        with pytest.raises(Invalid, match="expected 34 bytes"):
            shamir.combine([[good, good], row], [1, 2])


@given(st.integers(0, 15), st.integers(P, 2**17 - 1), st.binary(max_size=4))
def test_a_limb_that_is_no_field_element_is_refused(limb: int, value: int, seed: bytes) -> None:
    values = [int(v) for v in seeded(seed)(16)]
    assert shamir.malformed([encode(values)]) == []
    values[limb] = P - 1
    assert shamir.malformed([encode(values)]) == []
    values[limb] = value
    assert shamir.malformed([encode(values)]) == [0]
    with pytest.raises(Invalid, match="field element"):
        shamir.combine([[encode(values), bytes(34)]], [1, 2])


@given(st.binary(min_size=34, max_size=34))
def test_a_share_has_one_encoding(raw: bytes) -> None:
    canonical = all(v < P for v in decode(raw))
    assert shamir.malformed([raw]) == ([] if canonical else [0])
    assert not canonical or encode(decode(raw)) == raw


@pytest.mark.parametrize("limb", range(16))
def test_a_result_that_is_no_secret_is_refused(limb: int) -> None:
    # 65536 is a field element but not 16 bits: no honest dealer shares it.
    polynomials = [[P - 1 if i == limb else 7, 9] for i in range(16)]
    rows = [encode([evaluate(p, x) for p in polynomials]) for x in (1, 2)]
    with pytest.raises(Invalid, match="do not combine"):
        shamir.combine([rows], [1, 2])
    polynomials[limb][0] -= 1
    rows = [encode([evaluate(p, x) for p in polynomials]) for x in (1, 2)]
    assert limbs(shamir.combine([rows], [1, 2])[0])[limb] == P - 2


@pytest.mark.parametrize(("threshold", "points"), [(0, [1, 2]), (-1, [1, 2]), (3, [1, 2]), (1, [])])
def test_a_threshold_that_no_holders_can_meet_is_refused(threshold: int, points: list[int]) -> None:
    with pytest.raises(ValueError, match="threshold"):
        shamir.split([bytes(32)], threshold, points, seeded(b""))


@pytest.mark.parametrize("points", [[0, 1], [-1, 1], [1, P], [1, 1], [1, 2, 1], [P - 1, 2 * P - 1]])
def test_points_that_would_give_the_secret_away_are_refused(points: list[int]) -> None:
    with pytest.raises(ValueError, match="points"):
        shamir.split([bytes(32)], 2, points, seeded(b""))


@pytest.mark.parametrize("length", [0, 31, 33, 64])
def test_a_secret_of_another_length_is_refused_without_being_shown(length: int) -> None:
    secret = b"Z" * length
    with pytest.raises(Invalid, match="expected 32 bytes") as raised:
        shamir.split([bytes(32), secret], 1, [1], seeded(b""))
    assert "Z" not in str(raised.value)


LIMB = st.sampled_from((0, P - 1, P, 2**17 - 1)) | st.integers(0, P - 1)


@given(st.lists(st.lists(LIMB, min_size=16, max_size=16).map(encode) | st.just(bytes(34)), max_size=8))
def test_malformed_shares_are_named_by_their_places(shares: list[bytes]) -> None:
    expected = [i for i, share in enumerate(shares) if any(v >= P for v in decode(share))]
    assert shamir.malformed(shares) == expected
    with pytest.raises(Invalid, match="expected 34 bytes"):
        shamir.malformed([*shares, bytes(33)])
