"""Dealing plaintexts among key owners: exact sums, thresholds, and why shares are padded."""

from __future__ import annotations

from itertools import combinations
from time import perf_counter

import gmpy2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from secagg.dealing import Sharing, _prime_above, _value
from secagg.invalid import Invalid
from secagg.paillier import Encryptor, add, generate
from secagg.randomness import seeded

cases = st.integers(2, 7).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n), st.integers(1, 9)))


@settings(deadline=None, max_examples=40)
@given(cases, st.integers(0, 2**32))
def test_any_threshold_of_owners_has_the_exact_sum(case: tuple[int, int, int], seed: int) -> None:
    owners, threshold, contributors = case
    sharing = Sharing(owners, threshold, contributors, 512)
    rng = np.random.default_rng(seed)
    lanes = sharing.lanes(3 * ((1 << 16) - 1) + 1)
    values = rng.integers(0, 1 << 16, (contributors, 50))
    values[:, :5] = (1 << 16) - 1
    factor = int(rng.integers(1, 4))
    plaintexts = [[factor * m for m in lanes.pack(v)] for v in values]
    dealt = [sharing.deal(m, seeded(b"deal", bytes([i]))) for i, m in enumerate(plaintexts)]
    opened = {j: [sum(column) for column in zip(*(d[j] for d in dealt), strict=True)] for j in range(owners)}
    # No integer reaches the modulus.
    assert max(max(sums) for sums in opened.values()) * 2 < 1 << 511
    wanted = factor * values.sum(0)
    for some in list(combinations(range(owners), threshold))[:10]:
        found = sharing.combine({j: opened[j] for j in some})
        np.testing.assert_array_equal(lanes.unpack(found, 50), wanted)
    np.testing.assert_array_equal(lanes.unpack(sharing.combine(opened), 50), wanted)


def test_through_real_ciphertexts() -> None:
    """Three owners, each with a key of its own; two contributors; two owners open."""
    keys = [generate(2048, seeded(b"owner", bytes([j]))) for j in range(3)]
    sharing = Sharing(3, 2, 2, 2048)
    lanes = sharing.lanes(1 << 16)
    values = np.random.default_rng(1).integers(0, 1 << 16, (2, 300))
    columns = [
        [Encryptor(key.public, 5).encrypt(integers) for key, integers in
         zip(keys, sharing.deal(lanes.pack(v)), strict=True)]
        for v in values
    ]  # fmt: skip
    opened = {j: keys[j].decrypt(add(keys[j].public, [columns[0][j], columns[1][j]])) for j in (0, 2)}
    np.testing.assert_array_equal(lanes.unpack(sharing.combine(opened), 300), values.sum(0))


def test_fewer_than_the_threshold_have_nothing() -> None:
    sharing = Sharing(5, 3, 2, 512)
    opened = dict(enumerate(sharing.deal([5, 6])))
    with pytest.raises(Invalid, match="expected those of 3 of 5"):
        sharing.combine({0: opened[0], 4: opened[4]})


def test_shares_are_another_each_time_and_at_each_place() -> None:
    """So that fewer than the threshold tell nothing: they are as uniform as the polynomial's coefficients."""
    sharing, plaintext = Sharing(4, 3, 2, 256), 5
    prime = int(sharing.prime)
    dealt = [[int(s[0]) % prime for s in sharing.deal([plaintext])] for _ in range(200)]
    for place in range(4):
        assert len({shares[place] for shares in dealt}) == 200
        # Uniform: a quarter of them in each quarter, to five standard deviations.
        quarters = np.bincount([4 * shares[place] // prime for shares in dealt], minlength=4)
        assert abs(quarters - 50).max() < 5 * np.sqrt(200 * 3 / 16)
    # Nor does one follow from another, and the plaintext: two of three are as free as one.
    assert len({(shares[1] - shares[0]) % prime for shares in dealt}) == 200
    assert len({(shares[2] - 2 * shares[1] + shares[0]) % prime for shares in dealt}) == 200


def test_openings_that_do_not_agree_are_not_chosen_among() -> None:
    sharing = Sharing(5, 3, 2, 512)
    opened = dict(enumerate(sharing.deal([5, 6, 7])))
    assert sharing.combine(opened) == [5, 6, 7]
    for liar in range(5):
        bad = opened | {liar: [*opened[liar][:2], opened[liar][2] + 1]}
        with pytest.raises(Invalid, match="not of one sum"):
            sharing.combine(bad)


@pytest.mark.parametrize(
    "change",
    [
        lambda o: {}, lambda o: {0: o[0], 1: o[1], 7: o[2]}, lambda o: {-1: o[0], 1: o[1], 2: o[2]},
        lambda o: o | {1: o[1][:-1]}, lambda o: o | {1: [-1, o[1][1]]},
        lambda o: o | {1: [1 << 600, o[1][1]]},
    ],
)  # fmt: skip
def test_openings_that_cannot_be(change: object) -> None:
    sharing = Sharing(5, 3, 2, 512)
    with pytest.raises(Invalid, match="openings"):
        sharing.combine(change(dict(enumerate(sharing.deal([5, 6])))))  # type: ignore[operator]


@pytest.mark.parametrize(
    "case", [(5, 0, 3, 512), (5, 6, 3, 512), (5, 3, 0, 512), (5, 3, 3, 100), (0, 0, 1, 512)]
)
def test_sharings_that_cannot_be(case: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match=r"expected|no room"):
        Sharing(*case)


def test_plaintexts_beyond_the_prime_are_refused() -> None:
    sharing = Sharing(3, 2, 2, 512)
    for m in (-1, int(sharing.prime)):
        with pytest.raises(ValueError, match="below the prime"):
            sharing.deal([m])


def test_room_and_primes() -> None:
    """The numbers of a real federation: hardly any of a plaintext is lost, and the prime is found quickly."""
    sharing = Sharing(10, 6, 10, 3072)
    assert sharing.plaintext_bits == 2996
    assert sharing.lanes(1 << 16).count == 149
    for contributors in (1, 2, 3, 10, 1000):
        s = Sharing(10, 6, contributors, 3072)
        assert contributors * s.prime << s._pad + 1 < 1 << 3071
    _prime_above.cache_clear()
    begun = perf_counter()
    assert gmpy2.is_prime(sharing.prime)
    assert perf_counter() - begun < 60


def guess(sharing: Sharing, opened: int, known: int, first: int, total: int, prime: int) -> bool:
    """Whether the first contributor's plaintext can be `first`: what owner 2 opened must be possible.

    The attacker is owner 1 with the server: it knows the first contributor's share at 1, and of the sum all.
    With threshold 2 a guess of the plaintext fixes the first contributor's share at 2, and so the other's.
    """
    share = (2 * known - first) % prime
    other = (total - share) % prime
    return (opened - share - other) % prime == 0 and (opened // prime) == (share + other) // prime


def attacked(padded: bool, trials: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """How often the attacker tells which of two plaintexts the first contributor has."""
    if not padded:
        monkeypatch.setattr(Sharing, "_pad", property(lambda _: 0))
    sharing, prime = Sharing(3, 2, 2, 256), int(Sharing(3, 2, 2, 256).prime)
    rng, right = np.random.default_rng(7), 0
    for number in range(trials):
        candidates = [int.from_bytes(rng.bytes(40), "little") % prime for _ in range(2)]
        mine = int(rng.integers(2))
        plain = (candidates[mine], int(rng.integers(0, 2**62)))
        one, two = (
            sharing.deal([m], seeded(bytes([k]), number.to_bytes(4, "big"))) for k, m in enumerate(plain)
        )
        opened = int(one[1][0] + two[1][0])  # what owner 2 opens
        total = opened % prime
        fits = [guess(sharing, opened, int(one[0][0]) % prime, c, total, prime) for c in candidates]
        tie = fits[0] == fits[1]
        right += (int(rng.integers(2)) if tie else fits.index(True)) == mine
    return right


def test_unpadded_shares_tell_and_padded_ones_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """How often a sum wrapped around rules plaintexts out: with the padding, the guess is a coin's."""
    assert binom.sf(attacked(False, 400, monkeypatch) - 1, 400, 0.5) < 1e-6
    monkeypatch.undo()
    right = attacked(True, 400, monkeypatch)
    assert 2 * min(binom.cdf(right, 400, 0.5), binom.sf(right - 1, 400, 0.5)) > 1e-3


def test_polynomials() -> None:
    assert _value([7, 3, 2], 5, gmpy2.mpz(1009)) == 7 + 15 + 50
