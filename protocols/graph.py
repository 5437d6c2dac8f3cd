"""Who masks with whom, and how many shares open a secret: graphs, thresholds and their finder.

Two graphs. `Complete` is Bonawitz et al. 2017: everybody masks with everybody, and all n parties hold
shares of each party's secrets, *the owner included*. `Harary` is Bell et al. 2020 ("Secure
Single-Server Aggregation with (Poly)Logarithmic Overhead", CCS 2020): a random ring in which each
client masks with the k/2 next on either side, and those k neighbours hold the shares, *the owner not
included*. Degree counts neighbours, never the client itself.

`reference_parameters` follows the rule of the public C++ implementation in
google-parfait/federated-compute, `fcp/secagg/server/graph_parameter_finder`, which follows the paper's
analysis of random Harary graphs. `parameters`, which sessions use, puts a floor on top.

What the parameters do not protect against: more corrupted or dropped clients than stated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, exp, floor, inf, lgamma, log, sqrt
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from protocols.errors import Infeasible, LocalError
from secagg.labels import Label
from secagg.randomness import seeded

HONEST_BUT_CURIOUS = "honest-but-curious"
SEMI_MALICIOUS = "semi-malicious"
MALICIOUS = "malicious"
THREAT_MODELS = (HONEST_BUT_CURIOUS, SEMI_MALICIOUS, MALICIOUS)

SECAGG = "secagg"
SECAGG_PLUS = "secagg+"
THRESHOLD_PAILLIER = "threshold-paillier"
PROTOCOLS = (SECAGG, SECAGG_PLUS, THRESHOLD_PAILLIER)

MIN_COHORT = 3
MIN_THRESHOLD = 3
MIN_DEGREE = 16
COMPLETE_BELOW = 50
"""Below this many clients SecAgg+ uses the complete graph: a sparse one would save little."""

MAX_COMPLETE = 1 << 16
"""Shares have 65536 evaluation points: the largest complete graph."""

SIGMA = 40
"""Bits of statistical security: the chance that a random graph gives a client away is below 2^-40."""

ETA = 20
"""Bits of correctness: the chance that too few holders survive is below 2^-20."""


class Graph(Protocol):
    """An undirected graph over the cohort's positions 0 to n - 1."""

    def neighbours(self, i: int) -> tuple[int, ...]:
        """Whom i masks with, ascending."""
        ...

    def holders(self, i: int) -> tuple[int, ...]:
        """Who holds shares of i's secrets, ascending. Symmetric: j holds i's shares iff i holds j's.

        The holder at place p of this tuple has evaluation point p + 1.
        """
        ...


class Complete:
    """Everybody with everybody; a client holds a share of its own secrets."""

    def __init__(self, n: int) -> None:
        self._all = tuple(range(n))

    def neighbours(self, i: int) -> tuple[int, ...]:
        """All but i."""
        return self._all[:i] + self._all[i + 1 :]

    def holders(self, i: int) -> tuple[int, ...]:
        """All, i included."""
        return self._all


class Harary:
    """A random k-regular Harary graph: a ring in secret-free random order, k/2 neighbours either side.

    The order is a function of a public seed, so that everyone can check who its neighbours are.
    """

    def __init__(self, n: int, degree: int, seed: bytes) -> None:
        self._order, self._place = _ring(n, seed)
        half = degree // 2
        self._steps = np.r_[-half:0, 1 : half + 1]
        self._all = list(range(n))
        self._known: dict[int, tuple[int, ...]] = {}

    def neighbours(self, i: int) -> tuple[int, ...]:
        """The `degree` clients nearest to i on the ring."""
        if (found := self._known.get(i)) is None:
            near = self._order[(self._place[i] + self._steps) % self._order.size]
            near.sort()
            # The same integers in every tuple: a server keeps n times `degree` of them.
            found = self._known[i] = tuple(self._all[j] for j in near.tolist())
        return found

    holders = neighbours


def _ring(n: int, seed: bytes) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    # Sorting 128-bit keys from a cryptographic stream shuffles uniformly up to ties, whose chance is
    # below n^2 / 2^129.
    keys = np.frombuffer(seeded(Label.GRAPH.value.encode(), seed)(16 * n), "<u8").reshape(2, n)
    order = np.lexsort(keys).astype(np.int64)
    place = np.empty(n, np.int64)
    place[order] = np.arange(n)
    return order, place


def graph(n: int, degree: int, seed: bytes) -> Graph:
    """The graph of a cohort of n: complete if the degree is n - 1, else Harary from `seed`."""
    return Complete(n) if degree == n - 1 else Harary(n, degree, seed)


@dataclass(frozen=True, slots=True)
class Parameters:
    """What the finder found.

    `degree` neighbours a client (self excluded), `threshold` shares that open a secret, `corrupted` and
    `dropped` the numbers of clients that the guarantee allows, `min_included` the fewest clients a sum
    may be of, and `quorum` how many of the cohort must sign the survivor set before anyone reveals
    (0: nobody signs).
    """

    degree: int
    threshold: int
    corrupted: int
    dropped: int
    min_included: int
    quorum: int


_TINY = 1e-14  # keeps a product such as 0.29 * 100 from falling just below its integer


def whole(fraction: float, n: int) -> int:
    """A fraction of n clients, rounded down; what floats lose of a whole number is no loss."""
    return floor((fraction + _TINY) * n)


def _check_demands(n: int, corrupted: float, dropout: float, threat_model: str) -> None:
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise LocalError(f"cohort: expected a positive number of clients, got {n!r}")
    for name, value in (("corrupted", corrupted), ("dropout", dropout)):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
            raise LocalError(f"{name}: expected a fraction from 0 to below 1, got {value!r}")
    if threat_model not in THREAT_MODELS:
        raise LocalError(f"threat model: expected one of {', '.join(THREAT_MODELS)}; got {threat_model!r}")


def _log_hypergeometric(total: int, marked: int, sampled: int, x: int) -> float:
    """log P[X = x], X hypergeometric: `sampled` drawn of `total`, `marked` of them marked."""
    if x < max(0, sampled + marked - total) or x > min(sampled, marked):
        return -inf
    return (
        lgamma(sampled + 1) + lgamma(marked + 1) + lgamma(total - marked + 1) + lgamma(total - sampled + 1)
        - lgamma(x + 1) - lgamma(sampled - x + 1) - lgamma(marked - x + 1) - lgamma(total + 1)
        - lgamma(total - sampled - marked + x + 1)
    )  # fmt: skip


def hypergeometric_quantile(total: int, marked: int, sampled: int, probability: float) -> int:
    """The smallest x with P[X <= x] >= probability."""
    rest = total - marked - sampled
    least = max(0, -rest)
    # Hoeffding's inequality: below this x the tail is certainly too light, so the sum may start here.
    certain = sampled * (marked / total - sqrt(-log(probability) / (2 * sampled)))
    x = min(max(least, floor(certain)), sampled, marked)
    mass = exp(_log_hypergeometric(total, marked, sampled, x))
    cumulative, term, y = mass, mass, x
    while y > least and term > cumulative * 1e-17:
        term *= y * (rest + y) / ((marked - y + 1) * (sampled - y + 1))
        cumulative += term
        y -= 1
    while cumulative < probability and x < min(sampled, marked):
        mass *= (marked - x) * (sampled - x) / ((x + 1) * (rest + x + 1))
        cumulative += mass
        x += 1
    return x


def _above(total: int, marked: int, sampled: int, probability: float) -> int:
    """The smallest x with P[X > x] < probability, through the unmarked ones: no cancellation."""
    return sampled - hypergeometric_quantile(total, total - marked, sampled, probability)


def _log_disconnected(n: int, degree: int, bad: int) -> float:
    """log of a bound on the chance that removing `bad` random clients cuts the ring.

    A cut takes degree/2 consecutive bad clients at two places; a union bound over the places.
    """
    if degree > bad:
        return -inf
    places = log(n) + log(n - degree - 1) - log(2)
    return places + lgamma(bad + 1) + lgamma(n - degree + 1) - lgamma(n + 1) - lgamma(bad - degree + 1)


def _thresholds(
    n: int, degree: int, corrupted: int, surviving: int, semi_malicious: bool, sigma: int, eta: int,
    places: int,
) -> tuple[int, int]:  # fmt: skip
    """The smallest and largest threshold that are safe and live at this degree; empty if low > high."""
    secure = 2.0 ** -(sigma + 1)  # half of the security budget for each of the two bad events
    if _log_disconnected(n, degree, corrupted + n - surviving) >= log(secure):
        return 1, 0
    # (a) corrupted neighbours stay below the threshold, at each of so many places on the ring,
    # (b) surviving ones reach it, for all clients.
    most_corrupted = _above(n, corrupted, degree, secure / places)
    fewest_surviving = hypergeometric_quantile(n, surviving, degree, 2.0**-eta / n)
    if semi_malicious:
        # Each honest neighbour answers once, so both secrets of one client cost 2t shares of which the
        # corrupted ones give two each and the others one: 2t must exceed degree + corrupted.
        most_corrupted = ceil((most_corrupted + degree - 1.25) / 2)
    return most_corrupted + 1, fewest_surviving


def reference_parameters(
    n: int, corrupted: float, dropout: float, threat_model: str = HONEST_BUT_CURIOUS,
    sigma: int = SIGMA, eta: int = ETA,
) -> tuple[int, int]:  # fmt: skip
    """The least degree of a random Harary graph that serves, and its least threshold: the public finder's.

    For comparison; sessions use `parameters`.

    `corrupted` and `dropout` are the fractions gamma and delta of the n clients. Raises `Infeasible`
    where the C++ finder fails, `LocalError` for demands that make no sense.
    """
    _check_demands(n, corrupted, dropout, threat_model)
    if threat_model == MALICIOUS:
        raise Infeasible(_NO_SPARSE_MALICIOUS)
    twice = 2 if threat_model == SEMI_MALICIOUS else 1
    if corrupted + twice * dropout > 0.9:
        raise Infeasible(
            f"{threat_model}: corrupted + {'2 * ' if twice == 2 else ''}dropout must be at most 0.9, "
            f"got {corrupted} and {dropout}"
        )
    bad, surviving = whole(corrupted, n), ceil((1 - dropout - _TINY) * n)
    for degree in range(2, n - 1, 2):
        low, high = _thresholds(n, degree, bad, surviving, twice == 2, sigma, eta, n)
        if low <= high:
            # The reference lifts the threshold to 2 without asking whether 2 survive: for tiny n that is
            # not live, which is why `parameters` has its own floor.
            return degree, max(low, 2)
    raise Infeasible(
        f"no Harary graph on {n} clients gives {sigma} bits of security and {eta} of correctness with "
        f"{corrupted} corrupted and {dropout} dropping out; the complete graph (protocol secagg) may"
    )


_NO_SPARSE_MALICIOUS = (
    "SecAgg+ is not offered against a malicious server, who could choose the neighbours: "
    "use protocol 'secagg', or threat model 'semi-malicious'"
)


def parameters(
    n: int, corrupted: float, dropout: float, protocol: str = SECAGG, threat_model: str = HONEST_BUT_CURIOUS,
    *, degree: int | None = None, threshold: int | None = None,
) -> Parameters:  # fmt: skip
    """Degree and thresholds for a session, or `Infeasible` with the reason.

    SecAgg, and SecAgg+ below 50 clients, use the complete graph; SecAgg+ from there on the sparsest
    Harary graph with at least 16 neighbours and a threshold above 2 and below the degree. `degree` and
    `threshold` are an expert's own choice: they are checked against the same rules, never taken blindly.

    Complete graph, c = floor(corrupted * n), a client's own share counting among the n:
    honest-but-curious needs c < t; the other two 2t > n + c, so that no two disjoint answers open both
    secrets of a client, and no two lists of threshold Paillier are opened in two attempts of one round; all
    need t <= n - floor(dropout * n).
    """
    _check_demands(n, corrupted, dropout, threat_model)
    if protocol not in PROTOCOLS:
        raise LocalError(f"protocol: expected one of {', '.join(PROTOCOLS)}; got {protocol!r}")
    if n < MIN_COHORT:
        raise Infeasible(f"a cohort of {n}: at least {MIN_COHORT} are needed, or a sum tells too much")
    if protocol == SECAGG_PLUS and threat_model == MALICIOUS:
        raise Infeasible(_NO_SPARSE_MALICIOUS)
    if protocol == THRESHOLD_PAILLIER and threat_model == HONEST_BUT_CURIOUS:
        raise Infeasible(
            f"{protocol}: lists of contributions are always signed: expected threat model {MALICIOUS!r} or "
            f"{SEMI_MALICIOUS!r}, got {threat_model!r}"
        )
    signed = threat_model != HONEST_BUT_CURIOUS
    # A model with an active server in which nobody is corrupted would claim nothing worth the price.
    bad, gone = max(whole(corrupted, n), int(signed)), whole(dropout, n)
    quorum = (n + bad) // 2 + 1 if signed else 0
    if quorum > n - gone:
        raise Infeasible(
            f"{threat_model}: {quorum} of {n} must sign the survivor set (more than (n + corrupted) / 2 with "
            f"{bad} corrupted), but only {n - gone} are sure to be there: lower corrupted or dropout"
        )
    if bad + 2 > n - gone:
        raise Infeasible(
            f"{n} clients less {gone} dropped and {bad} corrupted leave fewer than 2 honest contributors"
        )
    if protocol != SECAGG_PLUS or n < COMPLETE_BELOW:
        if degree is not None and (type(degree) is not int or degree != n - 1):
            raise Infeasible(f"degree: the complete graph on {n} clients has degree {n - 1}, not {degree!r}")
        found = _complete(n, bad, gone, signed, threshold)
        return Parameters(n - 1, found, bad, gone, max(MIN_COHORT, found, bad + 2), quorum)
    sparse = _sparse(n, bad, gone, signed, degree, threshold)
    # The connectivity argument of Bell et al. allows at most `gone` dropouts: clients insist on it.
    return Parameters(*sparse, bad, gone, max(MIN_COHORT, n - gone, bad + 2), quorum)


def _complete(n: int, bad: int, gone: int, signed: bool, threshold: int | None) -> int:
    if n > MAX_COMPLETE:
        raise Infeasible(f"the complete graph takes at most {MAX_COMPLETE} clients, got {n}: use secagg+")
    low = max(MIN_THRESHOLD, (n + bad) // 2 + 1 if signed else bad + 1)
    high = n - gone
    if low > high:
        rule = f"2t > n + {bad}" if signed else f"t > {bad}"
        raise Infeasible(
            f"complete graph on {n} clients: the threshold must be at least {low} ({rule}) and at most "
            f"{high} (n - {gone} dropped): lower corrupted or dropout, or add clients"
        )
    # Without an active server any threshold in between is sound; a majority balances the two dangers.
    best = low if signed else min(max(low, n // 2 + 1), high)
    return _chosen(threshold, best, low, high)


def _sparse(
    n: int, bad: int, gone: int, signed: bool, degree: int | None, threshold: int | None
) -> tuple[int, int]:
    even = degree is None or (type(degree) is int and degree % 2 == 0 and MIN_DEGREE <= degree < n - 1)
    if not even:
        raise Infeasible(f"degree: expected an even number from {MIN_DEGREE} to {n - 2}, got {degree!r}")
    candidates: Sequence[int] = range(MIN_DEGREE, n - 1, 2) if degree is None else (degree,)
    for k in candidates:
        # A server that deviates once the graph is known chooses who drops out, and could cut the ring at two
        # windows of k/2 places that hold 2t - k corrupted clients between them, where the public finder
        # takes dropouts as random: so those must be rare over all pairs of windows, not only over clients.
        places = n * (n - k - 1) // 2 if signed else n
        low, high = _thresholds(n, k, bad, n - gone, signed, SIGMA, ETA, places)
        low, high = max(low, MIN_THRESHOLD), min(high, k - 1)
        if low <= high:
            return k, _chosen(threshold, low, low, high)
    wanted = "no degree gives" if degree is None else f"degree {degree} does not give"
    raise Infeasible(
        f"sparse graph on {n} clients with {bad} corrupted and {gone} dropping out: {wanted} {SIGMA} bits "
        f"of security and {ETA} of correctness; lower corrupted or dropout, or use protocol 'secagg'"
    )


def _chosen(threshold: int | None, best: int, low: int, high: int) -> int:
    if threshold is None:
        return best
    if isinstance(threshold, bool) or not isinstance(threshold, int) or not low <= threshold <= high:
        raise Infeasible(f"threshold: expected {low} to {high} for these demands, got {threshold!r}")
    return threshold
