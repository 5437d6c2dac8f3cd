"""What all parties of one round agree on, and its hash.

A `Session` is public. Each party builds its own from what it already knows (the roster it was given out
of band, the model it will train on, the round it expects), never from what the server says; the hash
goes into every key derivation, signature and sealed box, so parties that disagree about anything here
cannot complete a step together.

A `Policy` is what one client insists on, whatever a session says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from protocols.errors import Infeasible, LocalError
from protocols.graph import (
    HONEST_BUT_CURIOUS,
    SECAGG,
    THREAT_MODELS,
    THRESHOLD_PAILLIER,
    Graph,
    Parameters,
    graph,
    parameters,
)
from protocols.wire import HEADER_BYTES, MAX_NAME_BYTES, SESSION_BYTES, check_name, check_text
from protocols.xnoise import Levels, Noisy, levels
from secagg import keys
from secagg.invalid import Invalid
from secagg.labels import VERSION, Label, digest
from secagg.prg import Expand, accumulate
from secagg.randomness import Rng, system
from secagg.ring import MAX_BITS, MIN_BITS, Ring, Vector

if TYPE_CHECKING:
    from protocols.journal import Journal
    from protocols.machine import ClientMachine, ServerMachine
    from secagg.consortium import Consortium, KeyShare

# Which file holds a protocol: loaded when a session is run, so that this file knows no protocol.
_HOMES = {
    "secagg": "protocols.pairwise",
    "secagg+": "protocols.pairwise",
    "threshold-paillier": "protocols.threshold_paillier",
}

_STAGES = {
    "secagg": ("keys", "shares", "masked", "signatures", "reveals"),
    "secagg+": ("keys", "shares", "masked", "signatures", "reveals"),
    "threshold-paillier": ("keys", "masked", "signatures", "reveals"),
}

MAX_DIM = 1 << 40
MODEL_HASH_BYTES = 32


def stages(protocol: str, threat_model: str, dealt: bool = False) -> tuple[str, ...]:
    """What clients send in a session, in order: `dealt` if a consortium has its key beforehand.

    One vocabulary for all: `masked` is the vector, whatever hides it, and `reveals` what opens the sum.
    """
    absent = {"signatures"} if threat_model == HONEST_BUT_CURIOUS else set()
    absent |= {"keys"} if dealt else set()
    return tuple(stage for stage in _STAGES[protocol] if stage not in absent)


@dataclass(frozen=True, slots=True)
class Policy:
    """A client's own floor: a session below it is refused before a key is made.

    `min_cohort` clients in the roster, `min_corrupted` the least fraction of corrupted clients that the
    session must withstand, `threat_models` those accepted; and `min_included` clients in the sum, below
    which this client does not answer the survivors question.
    """

    min_cohort: int = 3
    min_included: int = 3
    min_corrupted: float = 0.0
    threat_models: tuple[str, ...] = THREAT_MODELS

    def check(self, session: Session) -> None:
        """Raise `LocalError` if the session is below this floor."""
        found: Sequence[tuple[str, float, float]] = (
            ("cohort", len(session.names), self.min_cohort),
            ("corrupted fraction withstood", session.corrupted, self.min_corrupted),
        )
        for what, value, floor in found:
            if value < floor:
                raise LocalError(f"policy: {what} must be at least {floor}, the session has {value}")
        if self.min_included > len(session.names):
            raise LocalError(
                f"policy: at least {self.min_included} must be included, the cohort has {len(session.names)}"
            )
        if session.threat_model not in self.threat_models:
            raise LocalError(
                f"policy: threat model must be one of {', '.join(self.threat_models)}; "
                f"the session has {session.threat_model}"
            )


class Session:
    """One round's public agreement.

    roster        client name -> Ed25519 public identity (32 bytes); order does not matter
    dim           entries of a vector
    bound         every entry is an integer from 0 to bound - 1; with noise, from 1 - bound to bound - 1
    protocol      "secagg", "secagg+" or "threshold-paillier"
    threat_model  "honest-but-curious", "semi-malicious" or "malicious"
    corrupted     fraction gamma of the cohort that may collude with the server
    dropout       fraction delta of the cohort that may vanish
    task, round, attempt
                  which training run, which round of it, which try of that round
    model_hash    32 bytes: what this party computed over the model it will train on (`hash_model`)
    noise         what noise the sum must have, if any. Without: the exact mode, in which no sum of the
                  clients can wrap. With: the noisy mode. Clients add the noise, integers are centred about
                  zero, and the sum is known modulo 2^bits: whoever sets `bits` chooses how likely it wraps
    bits          width of the ring; by default the least that holds the sum of all clients; with noise, given
                  (threshold Paillier takes more if it must: there no sum wraps)
    min_included  fewest clients in a sum; by default, and at least, what the parameter finder demands, and
                  with noise, the cohort without those that may drop out: it must suffice for the noise
    degree, threshold
                  an expert's choice instead of the finder's, checked by the same rules
    consortium    for threshold Paillier, a key that was dealt to this roster, by ascending name (see
                  `secagg.consortium.deal`); its threshold is the session's. Without, each party makes a key

    Raises `LocalError` for impossible input and `Infeasible` where no parameters meet the demands.
    """

    def __init__(
        self, roster: Mapping[str, bytes], dim: int, bound: int, *, protocol: str = SECAGG,
        threat_model: str = HONEST_BUT_CURIOUS, corrupted: float = 0.1, dropout: float = 0.1,
        task: str = "", round: int = 0, attempt: int = 0, model_hash: bytes = bytes(MODEL_HASH_BYTES),
        noise: Noisy | None = None, bits: int | None = None, min_included: int | None = None,
        degree: int | None = None, threshold: int | None = None, consortium: Consortium | None = None,
    ) -> None:  # fmt: skip
        for name in roster:
            check_name(name)
        self.names: tuple[str, ...] = tuple(sorted(roster))
        self.identities: tuple[bytes, ...] = tuple(roster[name] for name in self.names)
        for name, identity in zip(self.names, self.identities, strict=True):
            if not isinstance(identity, bytes):
                raise LocalError(f"roster: {name!r}: expected the identity's 32 public bytes")
            try:
                keys.check_identity(identity)
            except Invalid as error:
                raise LocalError(f"roster: {name!r}: {error}") from None
        if len(set(self.identities)) != len(self.identities):
            raise LocalError("roster: two clients have the same identity")
        n = len(self.names)
        self.dim = checked_integer("dim", dim, 1, MAX_DIM)
        self.bound = checked_integer("bound", bound, 2, 1 << 64)
        self.round = checked_integer("round", round, 0, (1 << 63) - 1)
        self.attempt = checked_integer("attempt", attempt, 0, (1 << 63) - 1)
        check_text("task", task, 0)
        if not isinstance(model_hash, bytes) or len(model_hash) != MODEL_HASH_BYTES:
            raise LocalError(f"model_hash: expected {MODEL_HASH_BYTES} bytes")
        self.task, self.model_hash = task, model_hash
        self.protocol, self.threat_model = protocol, threat_model
        self.corrupted, self.dropout = corrupted, dropout
        self.consortium = consortium
        if consortium is not None:
            threshold = self._dealt_threshold(consortium, threshold)
        try:
            self.parameters: Parameters = parameters(
                n, corrupted, dropout, protocol, threat_model, degree=degree, threshold=threshold
            )
        except Infeasible as error:
            if consortium is None:
                raise
            dealt = f"the consortium's key was dealt with threshold {consortium.threshold}"
            raise Infeasible(f"{error}; {dealt}") from None
        if noise is not None and not isinstance(noise, Noisy):
            raise LocalError(f"noise: expected a Noisy, got {type(noise).__name__}")
        self.noise = noise
        least = self.parameters.min_included
        if noise is not None:
            least = max(least, n - self.parameters.dropped)
        # More than there are is infeasible, not a slip of the caller: another cohort may be larger.
        wanted = (
            least if min_included is None else checked_integer("min_included", min_included, least, MAX_DIM)
        )
        if wanted > n:
            raise Infeasible(f"min_included: expected {least} to {n}, got {wanted}")
        self.min_included = wanted
        self.levels: Levels | None = None if noise is None else levels(noise, n, wanted)
        self.ring = Ring(
            self._exact_bits(bits) if self.levels is None else self._noisy_bits(bits, self.levels)
        )
        self._graph: tuple[bytes, Graph] | None = None  # the last one: a server asks again and again

    def _exact_bits(self, bits: int | None) -> int:
        n = len(self.names)
        needed = (n * (self.bound - 1)).bit_length()
        bits = max(8, needed) if bits is None else checked_integer("bits", bits, 8, MAX_BITS)
        if needed > MAX_BITS or bits < needed:
            raise Infeasible(
                f"bound {self.bound} for {n} clients needs {needed} bits, so that no sum can wrap; "
                f"{min(bits, MAX_BITS)} are available: lower the bound or split the cohort"
            )
        return bits

    def _dealt_threshold(self, consortium: Consortium, threshold: int | None) -> int:
        from secagg.consortium import Consortium  # what it needs is an extra, and here if the key is

        if not isinstance(consortium, Consortium):
            raise LocalError(f"consortium: expected a Consortium, got {type(consortium).__name__}")
        if self.protocol != THRESHOLD_PAILLIER:
            raise LocalError(f"consortium: it is for {THRESHOLD_PAILLIER}, the protocol is {self.protocol}")
        if consortium.owners != len(self.names):
            raise LocalError(
                f"consortium: its key was dealt to {consortium.owners}, the roster has {len(self.names)}"
            )
        if threshold not in (None, consortium.threshold):
            raise LocalError(f"threshold: the consortium's key has {consortium.threshold}, got {threshold!r}")
        return consortium.threshold

    def _noisy_bits(self, bits: int | None, levels: Levels) -> int:
        if bits is None:
            raise LocalError("bits: with noise, expected the ring's width: it is chosen with the noise")
        if self.bound > 1 << 62:
            raise Infeasible(f"bound {self.bound}: with noise, at most 2^62")
        bits = checked_integer("bits", bits, MIN_BITS, MAX_BITS)
        if self.protocol != THRESHOLD_PAILLIER:
            return bits
        needed = levels.bits(self.bound, len(self.names))
        if needed > MAX_BITS:
            raise Infeasible(
                f"bound {self.bound} with this noise needs {needed} bits, {MAX_BITS} are available"
            )
        return max(bits, needed)

    @property
    def stages(self) -> tuple[str, ...]:
        """What clients send, in order."""
        return stages(self.protocol, self.threat_model, self.consortium is not None)

    @property
    def signed(self) -> bool:
        """Whether keys and survivor sets are signed: in all models but honest-but-curious."""
        return self.parameters.quorum > 0

    @property
    def complete(self) -> bool:
        """Whether everybody masks with everybody."""
        return self.parameters.degree == len(self.names) - 1

    @cached_property
    def hash(self) -> bytes:
        """SHA-256 over the version and every field: 32 bytes."""
        return self._digest(self.attempt)

    @cached_property
    def cohort_hash(self) -> bytes:
        """The same over every field but `attempt`: alike in all tries of one round with one cohort."""
        return self._digest(-1)

    def _digest(self, attempt: int) -> bytes:
        p = self.parameters
        fields = (
            VERSION, self.protocol, self.threat_model, self.task, self.round, attempt, self.model_hash,
            self.names, self.identities, self.dim, self.bound, self.ring.bits, self._mode(),
            p.degree, p.threshold, p.corrupted, p.dropped, p.quorum, self.min_included,
        )  # fmt: skip
        hashed = digest(Label.SESSION, msgspec.msgpack.encode(fields))
        assert len(hashed) == SESSION_BYTES
        return hashed

    def _mode(self) -> Any:
        return self._noise_mode() if self.consortium is None else (
            self.consortium.fingerprint, self._noise_mode()
        )  # fmt: skip

    def _noise_mode(self) -> Any:
        if self.noise is None:
            return "exact"
        noise = self.noise
        return (
            "noisy",
            noise.family,
            float(noise.variance).hex(),
            noise.colluding,
            float(noise.carried).hex(),
        )

    @cached_property
    def positions(self) -> dict[str, int]:
        """Name -> place in the sorted roster."""
        return {name: i for i, name in enumerate(self.names)}

    def graph(self, seed: bytes) -> Graph:
        """The cohort's graph; `seed` (public, 32 bytes) matters only where it is sparse."""
        if self._graph is None or self._graph[0] != seed:
            self._graph = (seed, graph(len(self.names), self.parameters.degree, seed))
        return self._graph[1]

    @property
    def max_envelope_bytes(self) -> int:
        """No envelope of this session is longer: the limit for `from_bytes_checked`, and for a transport."""
        body = int(self._home().longest_message(self))
        return HEADER_BYTES + 2 * MAX_NAME_BYTES + body + self.ring.packed_size(self.dim)

    def vector(self, values: Any) -> Vector:
        """A client's input as a vector in the ring's dtype: the same array where it is that already.

        Raises `LocalError` unless `values` are `dim` integers from 0, or with noise from 1 - bound, to
        bound - 1.
        """
        try:
            array = np.asarray(values)
        except ValueError:
            raise LocalError(f"input: expected {self.dim} integers, got rows of different lengths") from None
        if array.shape != (self.dim,):
            raise LocalError(f"input: expected {self.dim} entries in one dimension, got shape {array.shape}")
        if array.dtype.kind not in "iu":
            raise LocalError(f"input: expected integers, got {array.dtype}; quantise floats first")
        low, high = int(array.min()), int(array.max())
        least = 0 if self.noise is None else 1 - self.bound
        if low < least or high >= self.bound:
            # What came stays out of the text: the vector is what must remain private.
            raise LocalError(
                f"input: expected entries from {least} to {self.bound - 1}, at least one is outside"
            )
        return array.astype(self.ring.dtype, copy=False)

    def read(self, total: Vector) -> NDArray[np.integer[Any]]:
        """A reduced sum as a result: with noise, centred about zero."""
        return total if self.noise is None else self.ring.centred(total)

    def server(
        self, *, rng: Rng = system, journal: Journal | None = None, expand: Expand = accumulate
    ) -> ServerMachine:
        """A new server for this session.

        `expand` takes the masks out of the sum: on this thread, or on several: `secagg.threaded(2)`.
        """
        _check_expand(expand)
        machine: ServerMachine = self._home().server(self, rng, journal, expand)
        return machine

    def client(
        self, name: str, identity: keys.Identity, *, policy: Policy | None = None, rng: Rng = system,
        journal: Journal | None = None, expand: Expand = accumulate, share: KeyShare | None = None,
    ) -> ClientMachine:  # fmt: skip
        """A new client for this session; `expand` masks its vector, as in `server`.

        `share` is this client's of the consortium's key, if the session has one. Pass the same `journal` in
        every session of an identity: it is what makes "one update, one answer" hold across sessions and
        restarts. Raises `LocalError` if the identity is not the roster's, the session is below `policy`, or
        the journal says the round was answered.
        """
        return self._made(name, identity, policy, rng, journal, expand, share, None)

    def restore_server(
        self, journal: Journal, *, snapshot: bytes | None = None, key: bytes | None = None,
        expand: Expand = accumulate,
    ) -> ServerMachine:  # fmt: skip
        """The server as it was: from `snapshot` and its key, or from the state that the journal keeps."""
        _check_expand(expand)
        machine: ServerMachine = self._home().server(self, system, journal, expand, (snapshot, key))
        return machine

    def restore_client(
        self, name: str, identity: keys.Identity, journal: Journal, *, snapshot: bytes | None = None,
        key: bytes | None = None, policy: Policy | None = None, expand: Expand = accumulate,
        share: KeyShare | None = None,
    ) -> ClientMachine:  # fmt: skip
        """The client as it was: from `snapshot` and its key, or from the state that the journal keeps.

        A `SqliteJournal` keeps the state of the last step. An input that was given but not yet masked is
        in a snapshot but not in the journal: give it again. Raises `LocalError` if there is no such
        state, if it is of another session or client, does not open under `key`, or is older than its
        journal (an old state would use a mask twice).
        """
        return self._made(name, identity, policy, system, journal, expand, share, (snapshot, key))

    def _made(
        self, name: str, identity: keys.Identity, policy: Policy | None, rng: Rng, journal: Journal | None,
        expand: Expand, share: KeyShare | None, snapshot: tuple[bytes | None, bytes | None] | None,
    ) -> ClientMachine:  # fmt: skip
        """A client of any protocol: what they all check of it stands here."""
        _check_expand(expand)
        if not isinstance(identity, keys.Identity):
            raise LocalError(f"client: expected an Identity, got {type(identity).__name__}")
        index = self.positions.get(name)
        if index is None:
            raise LocalError(f"client: {name!r} is not in the roster")
        if self.identities[index] != identity.public:
            raise LocalError(f"client: the roster has another identity for {name!r}")
        policy = policy or Policy()
        policy.check(self)
        self._check_share(index, share)
        made: Callable[..., ClientMachine] = self._home().client
        return made(self, index, identity, policy, rng, journal, expand, share, snapshot)

    def _check_share(self, index: int, share: KeyShare | None) -> None:
        if self.consortium is None:
            if share is not None:
                raise LocalError("share: expected none, the session has no consortium's key")
            return
        if share is None:
            raise LocalError("share: expected one, the session has a consortium's key")
        from secagg.consortium import KeyShare

        if not isinstance(share, KeyShare):
            raise LocalError(f"share: expected a KeyShare, got {type(share).__name__}")
        if share.place != index:
            raise LocalError(
                f"share: {self.names[index]!r} has place {index} in the roster, sorted by name; this is the "
                f"share of place {share.place}"
            )
        try:
            share.check(self.consortium)
        except Invalid as error:
            raise LocalError(str(error)) from None

    def _home(self) -> Any:
        return import_module(_HOMES[self.protocol])

    def __repr__(self) -> str:
        p = self.parameters
        return (
            f"Session({self.protocol}, {self.threat_model}, n={len(self.names)}, k={p.degree}, "
            f"t={p.threshold}, dim={self.dim}, bits={self.ring.bits}, round={self.round}, "
            f"{self.hash.hex()[:16]}…)"
        )


def _check_expand(expand: object) -> None:
    """At once, not in the last stage, when every client has spent its update."""
    if not callable(expand):
        raise LocalError(f"expand: expected a function such as threaded(2), got {expand!r}")


def hash_model(*arrays: Any) -> bytes:
    """SHA-256 over a model: dtype, shape and bytes of each array, in order. 32 bytes."""
    parts: list[bytes] = []
    for array in arrays:
        array = np.asarray(array)
        if array.dtype.hasobject:
            raise LocalError("hash_model: expected arrays of numbers, got objects")
        parts += [array.dtype.str.encode(), str(array.shape).encode(), np.ascontiguousarray(array).tobytes()]
    return digest(Label.MODEL, *parts)


def checked_integer(name: str, value: object, low: int, high: int) -> int:
    """`value` as an int; `LocalError`, which names it, unless it is an integer from `low` to `high`."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise LocalError(f"{name}: expected an integer, got {value!r}")
    if not low <= value <= high:
        raise LocalError(f"{name}: expected {low} to {high}, got {value}")
    return int(value)
