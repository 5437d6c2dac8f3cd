"""The arithmetic of a round of SecAgg or SecAgg+: how often each party does what, and its bytes.

All of it follows from the sizes of the round; nothing here is measured. Values are expected ones where the
graph is sparse, because it is random, and so is who drops out; over the complete graph they are exact.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from protocols.errors import Infeasible
from protocols.graph import Parameters
from protocols.simulator import STAGES
from secagg import box, keys, shamir
from secagg.ring import Ring

Counts = dict[str, float]
"""Operation -> how often; an operation is the name of a field of `protocols.micro.Micro`."""

_COMMITMENT_BYTES, _SALT_BYTES = 32, 16  # of the protocol; the tests compare all sizes with real messages
_MOST_BYTES = 1 << 32  # of a byte string in MessagePack


@dataclass(frozen=True, slots=True)
class Round:
    """The sizes from which all follows; `present` says how many clients send their message of a stage."""

    n: int
    dim: int
    ring: Ring
    parameters: Parameters
    present: Mapping[str, int]

    @property
    def signed(self) -> bool:
        """As `Session.signed`."""
        return self.parameters.quorum > 0

    @property
    def own(self) -> int:
        """1 over the complete graph, where a client holds a share of its own secrets."""
        return int(self.parameters.degree == self.n - 1)

    @property
    def stages(self) -> list[str]:
        """In order; nobody signs in the honest-but-curious model."""
        return [stage for stage in STAGES if self.signed or stage != "signatures"]

    @property
    def lost(self) -> int:
        """Clients that dealt shares and sent no vector: their neighbours' pads stay in the sum."""
        return self.present["shares"] - self.present["masked"]

    @property
    def streams(self) -> float:
        """Keystreams that the server expands: each survivor's own, a lost one's with surviving neighbours."""
        there = self.present["masked"]
        return there + self.lost * self.parameters.degree * there / (self.n - 1)

    def peers(self, stage: str) -> float:
        """Of a client's neighbours, how many send their message of this stage, given that it does."""
        return self.parameters.degree * (self.present[stage] - 1) / (self.n - 1)

    def answered(self, stage: str) -> float:
        """Of how many neighbours the messages of a stage speak."""
        if stage == "signatures":
            return 0.0
        return self.peers("keys" if stage in ("keys", "shares") else "shares")


def _blob(length: float) -> float:
    """Bytes of a byte string in MessagePack."""
    if length >= _MOST_BYTES:
        raise Infeasible(f"a message would need a string of {length:,.0f} bytes: below 4 GiB are possible")
    return length + (2 if length < 1 << 8 else 3 if length < 1 << 16 else 5)


def _message(*blobs: float) -> float:
    """Bytes of a message: version, array and tag take one each."""
    return 3 + sum(map(_blob, blobs))


def _bitmap(positions: float) -> int:
    return (math.ceil(positions - 1e-6) + 7) // 8


@dataclass(frozen=True, slots=True)
class Layout:
    """Bytes of what a neighbour is sent or sends, and a client's bytes up and down in each stage."""

    advertised: float
    dealt: float
    share: float
    up: dict[str, float]
    down: dict[str, float]


def layout(r: Round) -> Layout:
    """The sizes of all messages; `Infeasible` where one could not be encoded."""
    share = shamir.SHARE_BYTES + _SALT_BYTES * r.signed
    sealed, pair = 2 * share + box.OVERHEAD_BYTES, 2 * _COMMITMENT_BYTES * r.signed
    keyed, dealt, everyone = r.peers("keys"), r.peers("shares"), _bitmap(r.n)
    advertise = _message(32, keys.KEY_BYTES, keys.KEY_BYTES, keys.SIGNATURE_BYTES * r.signed)
    listed = (1 if keyed < 16 else 3 if keyed < 1 << 16 else 5) + keyed * (advertise - 1)
    survivors = _message(everyone)
    up = {
        "keys": advertise,
        "shares": _message(32, _COMMITMENT_BYTES, keyed * sealed, (keyed + r.own) * pair),
        "masked": _message(32) + r.ring.packed_size(r.dim),
        "signatures": _message(keys.SIGNATURE_BYTES),
        "reveals": _message(_bitmap(dealt + r.own), (dealt + r.own) * share),
    }
    down = {
        "keys": 0.0,
        "shares": _message(32, 0 if r.own else 32, _bitmap(r.parameters.degree)) + listed,
        "masked": _message(_bitmap(keyed + r.own), dealt * sealed, dealt * pair),
        "signatures": survivors,
        "reveals": survivors,
    }
    if r.signed:
        down["reveals"] = _message(everyone, r.present["signatures"] * keys.SIGNATURE_BYTES)
    return Layout(advertise, sealed + pair, share, up, down)


# -------------------------------------------------------------------------------------------- counting


def client(r: Round) -> dict[str, Counts]:
    """What a client does that sends its message of a stage."""
    keyed, dealt = r.peers("keys"), r.peers("shares")
    there, signers = r.present["masked"], r.present["signatures"]
    holders, signed, sparse = keyed + r.own, int(r.signed), 1 - r.own
    asked: Counts = {"bitmap_read": there, "in_set": there}
    answer = asked
    if r.signed:  # the set was read before, and is read again to be compared with who signed it
        answer = {"bitmap_read": there + signers, "in_set": there + signers, "verify": signers}
    return {
        "keys": {"key": 2, "sign": signed},
        "shares": {
            "key": 2, "verify": signed * keyed, "agree": keyed, "split_share": holders,
            "split_term": holders * r.parameters.threshold, "commitment": 2 * signed * holders,
            "seal": keyed, "neighbours": sparse, "ring_place": sparse * r.n * math.log2(r.n),
        },
        "masked": {
            "unseal": dealt, "share_check": 2 * (dealt + r.own), "commitment": 2 * signed * dealt,
            "key": 1, "agree": dealt, "stream": 1 + dealt,
            "stream_byte": (1 + dealt) * r.dim * r.ring.dtype.itemsize, "pack": 1, "own_entry": r.dim,
        },
        "signatures": {**asked, "sign": 1},
        "reveals": answer,
    }  # fmt: skip


def server(r: Round, leaves: int = 1) -> dict[str, Counts]:
    """What the server does, or each of several leaves."""
    keyed, _, there, signers, left = (r.present[stage] / leaves for stage in STAGES)
    lost, streams = r.lost / leaves, r.streams / leaves
    signed, sparse, t = int(r.signed), 1 - r.own, r.parameters.threshold
    included, revealed = r.present["masked"], left * (r.peers("shares") + r.own)
    sets = 1.0 if r.own else _holder_sets(there + lost, t, r.parameters.degree, r.present["reveals"] / r.n)
    return {
        "keys": {
            "point": 2 * keyed, "verify": signed * keyed, "neighbours": sparse * keyed,
            "ring_place": sparse * r.n * math.log2(r.n),
        },
        "shares": {},
        "masked": {
            "add": there, "add_entry": there * r.dim, "bitmap_write": included, "in_set": included,
        },
        "signatures": {"verify": signers, "bitmap_write": r.present["signatures"]},
        "reveals": {
            "share_check": revealed, "commitment": signed * revealed, "combine": sets,
            "combine_share": (there + lost) * t, "lagrange_term": sets * t * t, "key": lost,
            "agree": streams - there, "stream": streams,
            "stream_byte": streams * r.dim * r.ring.dtype.itemsize,
            "bitmap_read": 2 * included, "in_set": included, "sum_entry": r.dim,
        },
    }  # fmt: skip


def _holder_sets(dealers: float, t: int, degree: int, there: float) -> float:
    """How often the places of a dealer's first t answering holders differ: once for each set of them.

    All sets in which j holders are missing before the t-th are equally likely; `there` is the chance that
    one answers. That dealers have holders in common is neglected, so these are rather too many.
    """
    if there == 1.0:
        return 1.0
    found = 0.0
    for j in range(degree - t + 1):
        log_sets = math.lgamma(t + j) - math.lgamma(t) - math.lgamma(j + 1)
        log_chance = j * math.log1p(-there) + t * math.log(there)  # that a dealer has a certain one of them
        log_met = math.log(dealers) + log_chance  # that any dealer has it, as long as that is small
        if log_chance > -30:
            log_met = math.log(-math.expm1(dealers * math.log1p(-math.exp(log_chance))))
        found += math.exp(log_sets + log_met)
    return max(1.0, found)
