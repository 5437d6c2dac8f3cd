"""What each operation takes on this machine, timed by calling the library's own functions.

Every figure is CPU time, the least of several repeats: what disturbs a measurement only adds to it. Nothing
here knows a protocol; `protocols.counts` says how often a round does what.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from dataclasses import field as _field
from itertools import count
from typing import Any

import numpy as np

from protocols.counts import Counts
from protocols.graph import graph
from protocols.session import Session
from protocols.wire import bitmap, members
from secagg import box, field, keys, prg, shamir
from secagg.labels import Label, digest
from secagg.randomness import seeded, system
from secagg.ring import Ring

LONGEST = 1 << 20
"""Entries of a vector beyond which time is taken to grow in proportion."""

_MESSAGES = "messages, in Python"


def _op(what: str) -> Any:
    return _field(metadata={"what": what})


@dataclass(frozen=True, slots=True)
class Overhead:
    """Of one stage, seconds beyond the counted operations: for what is done once, and for each neighbour."""

    client: float = 0.0
    client_neighbour: float = 0.0
    server: float = 0.0
    server_message: float = 0.0
    server_neighbour: float = 0.0


@dataclass(frozen=True, slots=True)
class Micro:
    """CPU seconds of each operation, once, on the machine that measured it."""

    key: float = _op("key pairs")
    agree: float = _op("key agreements")
    point: float = _op("checks of advertised keys")
    sign: float = _op("signing")
    verify: float = _op("checks of signatures")
    seal: float = _op("sealing boxes")
    unseal: float = _op("opening boxes")
    commitment: float = _op("commitments to shares")
    share_check: float = _op("checks of shares")
    split_share: float = _op("making shares")  # for each holder
    split_term: float = _op("making shares")  # for each holder, times the threshold
    combine: float = _op("combining shares")  # for each set of holders
    combine_share: float = _op("combining shares")
    lagrange_term: float = _op("combining shares")  # for each set of holders, times the threshold squared
    stream: float = _op("expanding masks")  # for each keystream
    stream_byte: float = _op("expanding masks")
    add: float = _op("adding vectors")  # for each vector, however short
    add_entry: float = _op("adding vectors")
    sum_entry: float = _op("adding vectors")  # once, at the end
    pack: float = _op("checking and packing the vector")  # however short it is
    own_entry: float = _op("checking and packing the vector")
    neighbours: float = _op("the graph")  # looking up one client's, the first time
    ring_place: float = _op("the graph")  # for each of n clients, times the logarithm of n to the base 2
    bitmap_read: float = _op("who is in the sum")  # for each position that is set
    in_set: float = _op("who is in the sum")
    bitmap_write: float = _op("who is in the sum")
    member: float = _op("checking the roster")  # for each name and identity
    overhead: Mapping[str, Overhead] = _field(default_factory=dict)  # by stage

    def seconds(self, counts: Counts) -> float:
        """CPU seconds of so many operations."""
        return math.fsum(times * float(getattr(self, name)) for name, times in counts.items())

    def work(self, counts: Iterable[Counts], rest: float) -> dict[str, float]:
        """The same by what is done, most first; `rest` are the seconds of `overhead`."""
        what = {f.name: f.metadata["what"] for f in fields(self) if f.metadata}
        found = {_MESSAGES: rest}
        for name, times in ((name, times) for some in counts for name, times in some.items()):
            found[what[name]] = found.get(what[name], 0.0) + self.seconds({name: times})
        return dict(sorted(found.items(), key=lambda item: -item[1]))


def least(work: Callable[[int], Any], repeats: int = 5, enough: float = 1e-3) -> float:
    """CPU seconds of `work`, which is given a number it never had: the least mean of several repeats."""
    runs, best, number = 1, math.inf, count()
    while repeats:
        start = time.process_time()
        for _ in range(runs):
            work(next(number))
        spent = time.process_time() - start
        if spent < enough and runs < 1 << 16:
            runs *= 4
            continue
        repeats, best = repeats - 1, min(best, spent / runs)
    return best


def operations(bits: int, dim: int, holders: int, threshold: int, signed: bool) -> Micro:
    """Every operation, in less than a second; the `overhead` is left out.

    Vectors of `dim` entries of `bits` bits; secrets shared among `holders`, of whom `threshold` recover
    them, scaled down where that is large; boxes as they are where shares are `signed` for.
    """
    found = _keys(shamir.SHARE_BYTES + 16 * signed) | _shares(holders, threshold) | _cohort(holders)
    return Micro(**found, **_vectors(Ring(bits), min(dim, LONGEST)))  # type: ignore[arg-type]


def _keys(share_bytes: int) -> dict[str, float]:
    rng = seeded(b"keys")
    own, peer = keys.AgreementKey(rng(32)), keys.AgreementKey(rng(32)).public
    identity, key, text, plain = keys.Identity(rng(32)), rng(32), rng(100), rng(2 * share_bytes)
    signature, sealed = identity.sign(text), box.seal(key, plain, text, rng)
    parts = (key, key[:4], key[:4], b"seed", plain[:share_bytes])
    return {
        "key": least(lambda _: keys.AgreementKey(key)),
        "agree": least(lambda _: own.agree(peer, Label.MASK, key, prg.SEED_BYTES)),
        "point": least(lambda _: keys.check_agreement_public(peer)),
        "sign": least(lambda _: identity.sign(text)),
        "verify": least(lambda _: keys.verify(identity.public, text, signature)),
        "seal": least(lambda _: box.seal(key, plain, text, rng)),
        "unseal": least(lambda _: box.unseal(key, sealed, text)),
        "commitment": least(lambda _: digest(Label.SHARE_COMMITMENT, *parts)),
    }


_FRESH = count()


def _shares(holders: int, threshold: int) -> dict[str, float]:
    """The terms of Shamir's scheme at these sizes, or at such that they show and take milliseconds."""
    scale = min(1.0, math.sqrt((1 << 19) / (holders * threshold)))
    h, t = max(32, int(holders * scale)), max(16, int(threshold * scale))
    secrets, zero, rng = [bytes(32), bytes(32)], bytes(shamir.SHARE_BYTES), seeded(b"shares")

    def fresh(points: int) -> range:  # not seen for long: nothing about them is cached
        first = 1 + next(_FRESH) % (field.ORDER - points)
        return range(first, first + points)

    def split(among: int, degree: int) -> float:
        return least(lambda _: shamir.split(secrets, degree, fresh(among), rng), 3)

    def combine(rows: int, known: range | None = None) -> float:  # shares of zero are zero at all points
        return least(lambda _: shamir.combine([[zero] * t] * rows, known or fresh(t)))

    low = split(h, 4)
    term = max(0.0, split(h, t) - low) / (h * (t - 4))
    alone, batch = combine(1, range(1, t + 1)), combine(64, range(1, t + 1))
    each = max(0.0, batch - alone) / (63 * t)
    return {
        "share_check": least(lambda _: shamir.malformed([zero] * h)) / h,
        "split_share": max(0.0, (low - split(8, 4)) / (h - 8) - 4 * term),
        "split_term": term,
        "combine": max(0.0, alone - t * each),
        "combine_share": each,
        "lagrange_term": max(0.0, combine(1) - alone) / t**2,
    }


def _vectors(ring: Ring, size: int) -> dict[str, float]:
    """What is done once a vector, and with each entry."""
    rng, few = seeded(b"vectors"), 8
    seeds = [rng(prg.SEED_BYTES) for _ in range(few)]
    total, one, short = ring.zeros(size), ring.zeros(1), ring.pack(ring.zeros(1))
    frame = ring.pack(ring.zeros(size))
    session = Session({n: keys.Identity(rng(32)).public for n in "abc"}, size, 2, bits=ring.bits)

    def own() -> float:  # all that a client does with its own vector, which was just made
        values = np.frombuffer(rng(8 * size), "<u8") % np.uint64(2)
        start = time.process_time()
        vector = session.vector(values)
        ring.reduce(vector)
        ring.pack(vector)
        return time.process_time() - start

    opened = least(lambda _: prg.accumulate(ring, one, seeds)) / few
    expanded = least(lambda _: prg.accumulate(ring, total, seeds), 3) / few
    add, pack = least(lambda _: ring.add_packed(one, short)), least(lambda _: ring.pack(one))
    return {
        "stream": opened,
        "stream_byte": max(0.0, expanded - opened) / (size * ring.dtype.itemsize),
        "add": add,
        "add_entry": max(0.0, least(lambda _: ring.add_packed(total, frame)) - add) / size,
        "sum_entry": least(lambda _: ring.reduce(total), 3) / size,
        "pack": pack,
        "own_entry": max(0.0, min(own() for _ in range(8)) - pack) / size,
    }


def _cohort(degree: int) -> dict[str, float]:
    """What is done for each client of the whole cohort."""
    many, names = 1 << 16, [f"client-{i:08}" for i in range(256)]
    degree = min(max(degree, 2), many // 2) // 2 * 2
    everyone = bitmap(range(many), many)
    places, drawn = members(everyone, many), graph(many, degree, system(32))
    # Identities not seen before: nothing is cached.
    rosters = [{name: keys.Identity.generate().public for name in names} for _ in range(4)]
    return {
        "neighbours": least(lambda i: drawn.neighbours(i % many)),
        "ring_place": least(lambda _: graph(many, degree, system(32)), 3) / many / math.log2(many),
        "bitmap_read": least(lambda _: members(everyone, many), 3) / many,
        "bitmap_write": least(lambda _: bitmap(places, many), 3) / many,
        "in_set": least(lambda _: set(places), 3) / many,
        "member": least(lambda i: Session(rosters[i], 1, 2).hash, len(rosters), 0.0) / len(names),
    }
