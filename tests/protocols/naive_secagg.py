"""Secure aggregation as the papers write it: slow, plain Python integers and dictionaries, no numpy.

Bonawitz et al. 2017, Figure 4, with the neighbours of Bell et al. 2020 in place of "everyone". It shares
no code with the library and differs wherever the papers leave the choice: another group, another field,
another keystream, the ring Z_R with R just above the greatest sum. For tests only. Boxes are left out (a
share is simply handed to its holder) and signatures are counted, not made: in a run without forgers they
decide nothing but who was there.
"""

from hashlib import shake_256
from random import Random

P = 2**521 - 1  # a Mersenne prime: the field of the shares and the group of the keys
G = 3
NAMES_OF_ROUNDS = ("keys", "shares", "masked", "signatures", "reveals")


class Abort(Exception):
    """Too few are left."""


def share(secret: int, t: int, holders: list[str], coins: Random) -> dict[str, tuple[int, int]]:
    """Shamir: holder -> (x, f(x)) with f(0) = secret and degree t - 1."""
    coefficients = [secret] + [coins.randrange(P) for _ in range(t - 1)]
    shares = {}
    for x, holder in enumerate(holders, start=1):
        shares[holder] = (x, sum(c * x**j for j, c in enumerate(coefficients)) % P)
    return shares


def reconstruct(shares: list[tuple[int, int]]) -> int:
    """Lagrange at zero."""
    total = 0
    for x, y in shares:
        numerator = denominator = 1
        for other, _ in shares:
            if other != x:
                numerator = numerator * -other % P
                denominator = denominator * (x - other) % P
        total += y * numerator * pow(denominator, -1, P)
    return total % P


def expand(seed: int, dim: int, modulus: int) -> list[int]:
    """PRG: `dim` numbers below `modulus`, with 128 bits to spare so that they are as good as uniform."""
    width = (modulus.bit_length() + 7) // 8 + 16
    stream = shake_256(seed.to_bytes(66, "big")).digest(dim * width)
    return [int.from_bytes(stream[i * width : (i + 1) * width], "big") % modulus for i in range(dim)]


def aggregate(
    vectors: dict[str, list[int]],
    bound: int,
    neighbours: dict[str, list[str]],
    holders: dict[str, list[str]],
    t: int,
    least: int,
    quorum: int,
    gone: dict[str, str],
    coins: Random,
) -> tuple[list[str], list[int]]:
    """(included, sum), or `Abort`.

    `neighbours` with whom a client masks, `holders` of its shares (with itself in Figure 4, without in
    Bell et al.), `t` shares open a secret, `least` clients make a sum, `quorum` must sign the survivors
    (0: Round 3 is left out), `gone` maps a client to the round in which it falls silent.
    """
    rounds = [r for r in NAMES_OF_ROUNDS if quorum or r != "signatures"]
    users = sorted(vectors)
    dim, modulus = len(vectors[users[0]]), len(users) * (bound - 1) + 1

    def there(u: str, now: str) -> bool:
        return gone.get(u) not in rounds[: rounds.index(now) + 1]

    # Round 0, AdvertiseKeys.
    mask_secret = {u: coins.randrange(1, P - 1) for u in users}
    mask_public = {u: pow(G, mask_secret[u], P) for u in users}
    u1 = [u for u in users if there(u, "keys")]
    if len(u1) < least:
        raise Abort
    # Round 1, ShareKeys: a share of b and of s^SK for each holder that advertised.
    seed = {u: coins.randrange(P) for u in users}
    seed_shares, key_shares, u2 = {}, {}, []
    for u in u1:
        if not there(u, "shares") or len(set(holders[u]) & set(u1)) < t:
            continue
        present = holders[u]  # evaluation points are places among all holders; the absent get nothing
        seed_shares[u] = share(seed[u], t, present, coins)
        key_shares[u] = share(mask_secret[u], t, present, coins)
        u2.append(u)
    if len(u2) < least:
        raise Abort

    def pad(u: str, v: str) -> list[int]:
        return expand(pow(mask_public[v], mask_secret[u], P), dim, modulus)

    # Round 2, MaskedInputCollection: y_u = x_u + PRG(b_u) + sum of +-PRG(s_uv) over neighbours in U2.
    masked = {}
    for u in u2:
        if not there(u, "masked") or len(set(holders[u]) & set(u2)) < t:
            continue
        y = [a + b for a, b in zip(vectors[u], expand(seed[u], dim, modulus), strict=True)]
        for v in neighbours[u]:
            if v in u2:
                sign = 1 if u < v else -1
                y = [a + sign * b for a, b in zip(y, pad(u, v), strict=True)]
        masked[u] = [a % modulus for a in y]
    u3 = sorted(masked)
    if len(u3) < least:
        raise Abort
    dropped = [v for v in u2 if v not in u3 and set(neighbours[v]) & set(u3)]
    for u in u3 + dropped:
        if len(set(holders[u]) & set(u3)) < t:
            raise Abort
    # Round 3, ConsistencyCheck.
    u4 = u3
    if quorum:
        u4 = [u for u in u3 if there(u, "signatures")]
        if len(u4) < quorum:
            raise Abort
    # Round 4, Unmasking: shares of b for those in U3, of s^SK for those in U2 but not in U3.
    u5 = [u for u in u4 if there(u, "reveals")]
    total = [sum(column) for column in zip(*masked.values(), strict=True)]
    for u in u3:
        given = [seed_shares[u][h] for h in holders[u] if h in u5]
        if len(given) < t:
            raise Abort
        recovered = reconstruct(given[:t])
        total = [a - b for a, b in zip(total, expand(recovered, dim, modulus), strict=True)]
    for v in dropped:
        given = [key_shares[v][h] for h in holders[v] if h in u5]
        if len(given) < t:
            raise Abort
        recovered = reconstruct(given[-t:])
        for u in neighbours[v]:
            if u in u3:
                sign = 1 if u < v else -1
                stream = expand(pow(mask_public[u], recovered, P), dim, modulus)
                total = [a - sign * b for a, b in zip(total, stream, strict=True)]
    return u3, [a % modulus for a in total]
