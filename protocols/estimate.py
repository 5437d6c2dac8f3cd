"""What a round costs, without running it: its operations counted, each one timed on this machine.

How often a party does what follows from the sizes of the round (`protocols.counts`), and so do the bytes.
What an operation takes is measured (`protocols.micro`). What remains, the interpreter's work on messages, is
what tiny real sessions of three sizes took beyond their counted operations: three equations for each stage,
for what is done once, for each message, and for each neighbour in it.

Not in it: clients slower than this machine, the kernel's work on sending, a journal on disk, training, and
how long a driver waits for those that are gone. A client draws the graph by itself here, while a simulation,
being one process, draws it once for all.

Several aggregators are together the one server of the protocol and learn what it would: they see the same
messages, and adding masked vectors is public arithmetic. Each leaf serves its part of the clients, adds their
vectors, recovers their secrets and takes their pads out of its own sum; that sum goes up a tree whose inner
nodes add.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from protocols import counts as counting
from protocols.counts import Counts, Layout, Round
from protocols.errors import Infeasible, LocalError
from protocols.graph import (
    HONEST_BUT_CURIOUS,
    SECAGG,
    SECAGG_PLUS,
    Parameters,
    hypergeometric_quantile,
    parameters,
    whole,
)
from protocols.micro import Micro, Overhead, operations
from protocols.session import MAX_DIM, checked_integer
from protocols.simulator import STAGES, Row, Simulation, simulate
from secagg import keys, prg
from secagg.ring import Ring

MAX_CLIENTS = 10**8
CORE_EFFICIENCY = 0.9
"""Assumed, not measured: what each core beyond the first adds where masks are expanded on several."""


@dataclass(frozen=True, slots=True)
class Link:
    """Bits per second from and to a client, seconds of a round trip, and bits per second of the server.

    `server` is each way, and of each aggregator. The defaults are a household's line and a data centre's.
    Raises `LocalError` for what is no speed or time.
    """

    up: float = 10e6
    down: float = 50e6
    latency: float = 0.05
    server: float = 1e9

    def __post_init__(self) -> None:
        for name in ("up", "down", "latency", "server"):
            value, least = getattr(self, name), 0 if name == "latency" else sys.float_info.min
            if type(value) not in (int, float) or not least <= value < math.inf:
                raise LocalError(f"link: {name}: expected a positive number, got {value!r}")


# -------------------------------------------------------------------------------------------- measuring

_TINY = (4, 16, 48)  # clients in the sessions that are run for what the counted operations leave
_SECONDS = 0.8


def measure(
    bits: int = 32, dim: int = 1 << 18, holders: int = 64, threshold: int = 33, signed: bool = False
) -> Micro:
    """Time every operation on this machine, on one thread, in about two seconds.

    Vectors have `dim` entries of `bits` bits; a secret is shared among `holders`, of whom `threshold` recover
    it; the tiny sessions are `signed`, as in all threat models but honest-but-curious, or not.
    """
    found = operations(bits, dim, holders, threshold, signed)
    return replace(found, overhead=_overhead(found, _tiny_sessions(bits, signed)))


def _tiny_sessions(bits: int, signed: bool) -> dict[int, list[Simulation]]:
    model, start = "malicious" if signed else HONEST_BUT_CURIOUS, time.process_time()
    runs: dict[int, list[Simulation]] = {n: [] for n in _TINY}
    while len(runs[_TINY[0]]) < 3 or time.process_time() - start < _SECONDS:
        for n, done in runs.items():  # in turn, so that what disturbs the machine for a while disturbs all
            done.append(simulate(n, dim=16, bound=2, bits=bits, threat_model=model))
    return runs


def _overhead(micro: Micro, runs: Mapping[int, Sequence[Simulation]]) -> dict[str, Overhead]:
    """What remains of real sessions."""
    overhead, rounds = {}, {}
    for n, done in runs.items():
        session = done[0].session
        rounds[n] = Round(n, 16, session.ring, session.parameters, dict.fromkeys(STAGES, n))
    for i, stage in enumerate(rounds[_TINY[0]].stages):
        rows = {n: [run.rows()[i] for run in done] for n, done in runs.items()}
        peers = {n: r.answered(stage) for n, r in rounds.items()}
        client = _fit(
            {n: (1.0, peers[n], 0.0) for n in runs},
            {n: min(row.client_cpu_mean for row in rows[n]) for n in runs},
            {n: micro.seconds(counting.client(r)[stage]) for n, r in rounds.items()},
        )
        server = _fit(
            {n: (1.0, n, n * peers[n]) for n in runs},
            {n: min(row.server_cpu for row in rows[n]) for n in runs},
            {n: micro.seconds(counting.server(r)[stage]) for n, r in rounds.items()},
        )
        overhead[stage] = Overhead(*client[:2], *server)
    return overhead


def _fit(
    terms: Mapping[int, tuple[float, float, float]], spent: Mapping[int, float], counted: Mapping[int, float]
) -> tuple[float, float, float]:
    """What each term takes of what was spent beyond what was counted, by size of session; nothing below zero.

    Least squares of the errors relative to what was spent, over every choice of terms that take anything.
    """
    matrix = np.array([terms[n] for n in spent]) / np.array([[spent[n]] for n in spent])
    left = np.array([1 - counted[n] / spent[n] for n in spent])
    best, least = np.zeros(3), float(left @ left)
    used = [i for i in range(3) if matrix[:, i].any()]
    for chosen in (c for size in range(len(used)) for c in combinations(used, size + 1)):
        found = np.zeros(3)
        found[list(chosen)] = np.linalg.lstsq(matrix[:, chosen], left, rcond=None)[0]
        wrong = matrix @ found - left
        if found.min() >= 0.0 and float(wrong @ wrong) < least:
            best, least = found, float(wrong @ wrong)
    return float(best[0]), float(best[1]), float(best[2])


# ------------------------------------------------------------------------------------------- the result


@dataclass(frozen=True, slots=True)
class Tree:
    """Aggregators: `leaves` of `clients` each, and `nodes` above them in `depth` levels, root included.

    CPU seconds of a leaf in all stages and of an inner node; bytes that a leaf gets from other leaves, and
    an inner node from below; seconds from the leaves' sums to the root's.
    """

    leaves: int
    clients: int
    nodes: int
    depth: int
    leaf_seconds: float
    node_seconds: float
    leaf_bytes: int
    node_bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a round is expected to cost; see `estimate`. `print` it for a table.

    included  clients in the sum
    streams   keystreams that the server expands
    stages    `rows()`
    roster    what each party does before: get all names and identities, check and hash them; a row as well
    counts    stage -> operations of a client and of the server
    wall      stage, or "roster" -> what is waited for -> seconds
    memory    bytes the server holds: "sum", "roster", "graph", and what a stage has of the clients besides
    work      "client" or "server" -> what is done -> CPU seconds, the roster included, most first
    tree      where there are several aggregators: "the server" above is then one leaf
    micro     what the operations took
    """

    n: int
    dim: int
    bits: int
    protocol: str
    threat_model: str
    parameters: Parameters
    included: int
    streams: float
    stages: tuple[Row, ...]
    roster: Row
    counts: dict[str, tuple[Counts, Counts]]
    wall: dict[str, dict[str, float]]
    memory: dict[str, int]
    work: dict[str, dict[str, float]]
    tree: Tree | None
    micro: Micro

    def rows(self) -> list[Row]:
        """By stage, as `Simulation.rows`; all clients being alike, the greatest is the mean."""
        return list(self.stages)

    @property
    def seconds(self) -> float:
        """Wall time of the round; the roster is had before."""
        return sum(sum(parts.values()) for stage, parts in self.wall.items() if stage != "roster")

    @property
    def memory_bytes(self) -> int:
        """The most that the server holds at a time."""
        stages = [size for what, size in self.memory.items() if what in STAGES]
        return sum(self.memory.values()) - sum(stages) + max(stages)

    def heaviest(self) -> dict[str, tuple[str, float]]:
        """What takes most of each resource, the roster included: what it is, and its fraction."""
        down = {row.stage: float(row.client_bytes_down) for row in (self.roster, *self.stages)}
        wall = {f"{stage}, {what}": t for stage, parts in self.wall.items() for what, t in parts.items()}
        memory = {what: size / self.memory_bytes for what, size in self.memory.items()}
        found = {"memory": max(memory.items(), key=lambda part: part[1])}
        for of, parts in {**self.work, "bytes down": down, "wall": wall}.items():
            most = max(parts, key=lambda what: parts[what])
            found[of] = (most, parts[most] / sum(parts.values()))
        return found

    def __str__(self) -> str:
        p = self.parameters
        lines = [
            f"Estimate({self.protocol}, {self.threat_model}, n={self.n}, k={p.degree}, t={p.threshold}, "
            f"dim={self.dim}, bits={self.bits})",
            f"{'stage':<9}{'client ms':>15}{'bytes up':>14}{'bytes down':>14}{'server ms':>18}{'wall s':>12}",
        ]
        for stage, mean, _, up, down, server in (self.roster, *self.stages):
            wall = sum(self.wall[stage].values())
            lines.append(
                f"{stage:<9}{mean * 1e3:>15,.2f}{up:>14,}{down:>14,}{server * 1e3:>18,.2f}{wall:>12,.2f}"
            )
        lines.append(
            f"a sum of {self.included} in {self.seconds:,.2f} s; {self.memory_bytes:,} bytes of memory"
        )
        lines += [f"  most of {of}: {what} ({part:.0%})" for of, (what, part) in self.heaviest().items()]
        return "\n".join(lines)


def estimate(
    n: int, dim: int, *, bound: int, protocol: str = SECAGG_PLUS, threat_model: str = HONEST_BUT_CURIOUS,
    corrupted: float = 0.1, dropout: float = 0.1, dropping: float = 0.0, at: str = "masked",
    link: Link | None = None, cores: int = 1, aggregators: int = 1, fanout: int = 16, name_bytes: int = 16,
    micro: Micro | None = None,
) -> Estimate:  # fmt: skip
    """Predict a session of n clients, at most 10^8, without running it and without a roster.

    dim, bound, protocol, threat_model, corrupted, dropout
                  as for `Session`
    dropping, at  the fraction that really drops out, before sending its message of a stage
    link          of a client and of the server
    cores         of the server, where it expands masks
    aggregators, fanout
                  leaves that share the clients, and how many sums a node above them adds
    name_bytes    of a client's name
    micro         from `measure`, for such a ring, such holders and such a model; None measures now

    Raises `LocalError` for impossible input, `Infeasible` where `Session` would and where there would be no
    sum because too many drop out.
    """
    if protocol not in (SECAGG, SECAGG_PLUS):
        raise LocalError(f"protocol: expected one of {SECAGG}, {SECAGG_PLUS} to predict, got {protocol!r}")
    r = _sizes(n, dim, bound, protocol, threat_model, corrupted, dropout, dropping, at)
    leaves, fanout = (
        checked_integer("aggregators", aggregators, 1, r.n),
        checked_integer("fanout", fanout, 2, MAX_CLIENTS),
    )
    cores, name_bytes = (
        checked_integer("cores", cores, 1, MAX_CLIENTS),
        checked_integer("name_bytes", name_bytes, 1, 255),
    )
    sizes, link = counting.layout(r), link or Link()
    if not isinstance(link, Link):
        raise LocalError(f"link: expected a Link, got {type(link).__name__}")
    if micro is not None and not isinstance(micro, Micro):
        raise LocalError(f"micro: expected what measure() gives, got {type(micro).__name__}")
    if micro is None:
        holders = round(r.peers("keys")) + r.own
        micro = measure(r.ring.bits, r.dim, holders, r.parameters.threshold, r.signed)
    of_client, of_server = counting.client(r), counting.server(r, leaves)
    beyond = {stage: _beyond(r, micro, stage, leaves) for stage in r.stages}
    rows: list[Row] = []
    for stage in r.stages:
        mean = max(0.0, micro.seconds(of_client[stage]) + beyond[stage][0])
        its = max(0.0, micro.seconds(of_server[stage]) + beyond[stage][1])
        rows.append(Row(stage, mean, mean, round(sizes.up[stage]), round(sizes.down[stage]), its))
    checked = r.n * micro.member
    roster = Row("roster", checked, checked, 0, r.n * (keys.KEY_BYTES + name_bytes), checked)
    tree = None
    if leaves > 1:
        tree = _tree(r, sizes, link, micro, leaves, fanout, sum(row.server_cpu for row in rows))
    work = {
        who: micro.work(
            [{"member": r.n}, *(counts[stage] for stage in r.stages)], sum(b[i] for b in beyond.values())
        )
        for i, (who, counts) in enumerate((("client", of_client), ("server", of_server)))
    }
    return Estimate(
        r.n, r.dim, r.ring.bits, protocol, threat_model, r.parameters, r.present["masked"], r.streams,
        tuple(rows), roster, {stage: (of_client[stage], of_server[stage]) for stage in r.stages},
        _wall(r, rows, roster, link, micro, of_server, cores, leaves, tree),
        _memory(r, sizes, leaves, name_bytes), work, tree, micro,
    )  # fmt: skip


def _beyond(r: Round, micro: Micro, stage: str, leaves: int) -> tuple[float, float]:
    """Seconds beyond the counted operations, of a client and of the server."""
    spent, peers = micro.overhead.get(stage, Overhead()), r.answered(stage)
    message = spent.server_message + spent.server_neighbour * peers
    return spent.client + spent.client_neighbour * peers, spent.server + message * r.present[stage] / leaves


def _sizes(
    n: int, dim: int, bound: int, protocol: str, threat_model: str, corrupted: float, dropout: float,
    dropping: float, at: str,
) -> Round:  # fmt: skip
    """The sizes of the round, after the same checks as in `Session`, and that there will be a sum."""
    n, dim = checked_integer("clients", n, 1, MAX_CLIENTS), checked_integer("dim", dim, 1, MAX_DIM)
    bound = checked_integer("bound", bound, 2, 1 << 64)
    if type(dropping) not in (int, float) or not 0 <= dropping < 1:
        raise LocalError(f"dropping: expected a fraction from 0 to below 1, got {dropping!r}")
    bits = (n * (bound - 1)).bit_length()
    if bits > 64:
        raise Infeasible(
            f"bound {bound} for {n} clients needs {bits} bits, so that no sum can wrap; 64 are available: "
            "lower the bound or split the cohort"
        )
    found = parameters(n, corrupted, dropout, protocol, threat_model)
    stages = [stage for stage in STAGES if found.quorum or stage != "signatures"]
    if at not in stages:
        raise LocalError(f"at: expected one of {', '.join(stages)} in the {threat_model} model; got {at!r}")
    gone = whole(dropping, n)
    present = {stage: n - gone * (STAGES.index(stage) >= STAGES.index(at)) for stage in STAGES}
    r = Round(n, dim, Ring(max(8, bits)), found, present)
    # A client that drops out is missed by its neighbours as by all, on average.
    few = (
        (present["masked"], found.min_included, "clients are in the sum"),
        (present["signatures"], found.quorum, "clients sign for the sum"),
        (_fewest_holders(r), found.threshold, "holders of a secret are left"),
    )
    for left, least, what in few:
        if left < least:
            raise Infeasible(
                f"{gone} of {n} clients drop out at {at}: {left} {what}, at least {least} are needed; "
                f"the session withstands {found.dropped}: raise dropout"
            )
    return r


def _fewest_holders(r: Round) -> int:
    """How many holders of a secret are left, of the dealer whom chance leaves fewest."""
    left = r.present["reveals"]
    if r.own or left < 2:
        return left
    # With even odds or better, all n dealers have more than this (a union bound).
    return hypergeometric_quantile(r.n - 1, left - 1, r.parameters.degree, 0.5 / r.n)


def _wall(
    r: Round, rows: list[Row], roster: Row, link: Link, micro: Micro, of_server: dict[str, Counts],
    cores: int, leaves: int, tree: Tree | None,
) -> dict[str, dict[str, float]]:  # fmt: skip
    """Seconds by stage: down, the client's work, up, a round trip, the server's work, one after the other."""

    def crossing(way: str, size: float, speed: float, clients: float) -> tuple[str, float]:
        """What is waited for: the client's line, or the server's, which all share."""
        own, shared = 8 * size / speed, 8 * size * clients / link.server
        return (f"link {way}", own) if own >= shared else (f"server's link, {way}", shared)

    roster_down = crossing("down", roster.client_bytes_down, link.down, r.n / leaves)
    wall = {"roster": {**dict([roster_down]), "client": roster.client_cpu_mean}}
    spread = min(cores, -(-r.dim * r.ring.dtype.itemsize // prg.CHUNK_BYTES))  # a core takes whole chunks
    for stage, mean, _, up, down, server in rows:
        there = r.present[stage] / leaves
        masks = micro.stream_byte * of_server[stage].get("stream_byte", 0.0)
        wall[stage] = {
            **dict([crossing("down", down, link.down, there)]),
            "client": mean,
            **dict([crossing("up", up, link.up, there)]),
            "latency": link.latency,
            "server": server - masks * (1 - 1 / (1 + CORE_EFFICIENCY * (spread - 1))),
        }
    if tree is not None:
        wall["reveals"]["aggregators"] = 8 * tree.leaf_bytes / link.server + tree.seconds
    return wall


def _tree(
    r: Round, sizes: Layout, link: Link, micro: Micro, leaves: int, fanout: int, leaf_seconds: float
) -> Tree:
    """What a leaf passes to others: all that concerns neighbours elsewhere, and its part of the two sets."""
    depth, nodes, level = 0, 0, leaves
    while level > 1:
        level = -(-level // fanout)
        depth, nodes = depth + 1, nodes + level
    dealt = r.present["shares"] * r.peers("shares") * (sizes.dealt + sizes.share)
    apart = (r.present["keys"] * r.peers("keys") * sizes.advertised + dealt) / leaves * (1 - 1 / leaves)
    told = sizes.down["reveals"] + sizes.down["signatures"] * r.signed
    adds, packed = min(fanout, leaves), r.ring.packed_size(r.dim)
    node = adds * (micro.add + r.dim * micro.add_entry)
    up = node + 8 * adds * packed / link.server + link.latency
    return Tree(
        leaves, -(-r.n // leaves), nodes, depth, leaf_seconds, node, round(apart + told), adds * packed,
        depth * up,
    )  # fmt: skip


# Bytes of Python's own: an integer, and a byte string with its place in a dictionary.
_INTEGER = sys.getsizeof(1 << 16)
_ENTRY = sys.getsizeof(dict.fromkeys(range(1 << 10))) / (1 << 10) + _INTEGER + sys.getsizeof(b"")


def _memory(r: Round, sizes: Layout, leaves: int, name_bytes: int) -> dict[str, int]:
    """Bytes at the server, or a leaf, about: what came in a stage, what goes out, and what last went out.

    The machine keeps what it last sent, to send it again.
    """
    keyed, dealt, there, signers, left = (r.present[stage] / leaves for stage in STAGES)
    speaks, down, sparse = r.peers("shares") + r.own, sizes.down, 1 - r.own
    kept = dealt * (3 * _ENTRY + 2 * keys.KEY_BYTES + sizes.up["shares"] * r.signed)  # for the commitments
    held = {
        "sum": 2.0 * r.dim * r.ring.dtype.itemsize,  # the last stage makes a new one
        "roster": r.n * (3 * _ENTRY + name_bytes + keys.KEY_BYTES),
        # Each place as an integer, in a ring and back, and each neighbourhood as references to those.
        "graph": r.n * (8 + _INTEGER + 16 * sparse) + sparse * keyed * (_ENTRY + 8 * r.parameters.degree),
        "keys": keyed * (6 * _ENTRY + sizes.advertised + down["shares"]),
        "shares": dealt * (4 * _ENTRY + sizes.up["shares"] + 2 * down["masked"]) + keyed * down["shares"],
        "masked": kept + there * 3 * _ENTRY + dealt * down["masked"],
        "signatures": kept + signers * 5 * _ENTRY + down["reveals"],
        "reveals": kept
        + left * (3 * _ENTRY + sizes.up["reveals"] + speaks * (_ENTRY + sizes.share))
        + down["reveals"],
    }
    return {what: round(size) for what, size in held.items() if what != "signatures" or r.signed}
