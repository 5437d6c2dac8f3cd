"""Threshold Paillier: ciphertexts that anyone adds, and of which t of the parties together open one sum.

In one of two settings. Without a dealer, the default, every party has a Paillier key of its own, and a
contributor shares its vector among them, a share encrypted under each (`secagg.dealing`; Cramer, Franklin,
Schoenmakers, Yung, "Multi-Authority Secret-Ballot Elections with Linear Work", EUROCRYPT 1996, with Paillier
for the authorities' keys, and packed vectors for votes). With a consortium's key, which a dealer has split
(`secagg.consortium`; Damgard, Jurik, PKC 2001), it encrypts its vector once.

Four stages: keys (with a proof that each is sound; none with a consortium's), contributions (with a proof
that each sender knows what is in its ciphertexts), signatures of the one list of contributions, and openings
(with a proof of each).

Against a server that colludes with as many clients as the session says may be corrupted, c < t:
- It cannot make up contributions: each is signed by its client's pinned identity, over the session, all keys
  and every column.
- It cannot submit a copy, inverse or power of a victim's ciphertexts in its own clients' names, of this round
  or, where the key stays the same, of an earlier one: they would not know the plaintexts (`secagg.proofs`).
- It cannot have two lists opened: an owner opens one sum a session, of a list that a quorum signed, with
  2q > n + c; two lists with so many signers share an honest one, who signs once. In another attempt of the
  round it may sign again, if it has not opened; but it opens once a round, which the journal keeps, and as
  2t > n + c too, two lists are never both opened.
- What t - 1 owners see of an honest contributor are fewer shares than tell anything; what the others open is
  a function of the sum alone, to 2^-40.
Assumed: decisional composite residuosity, and that powers of h with short exponents look like any n-th
residue (Damgard, Jurik, Nielsen 2010); the random oracle for proofs.

With noise, every client adds as much as is needed if as many drop out as may, and encrypts beside its vector
the seeds of what may be too much (`protocols.xnoise`). Once the list is signed it is known which those are,
and they are opened with the sum. Values are moved up so far that none is negative: a sum of remainders would
tell how many were.

What it does not protect against: an included client whose shares are on no polynomial, or whose plaintexts
are more than lanes hold, which makes a round without a sum and is not named (with exactly t openings, shares
on no polynomial make a wrong one); vectors, or seeds, that are lies; t colluding owners; the dealer of a
consortium's key; a server that refuses service.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from protocols.errors import Fault, RemoteError
from protocols.machine import (
    Abort,
    ClientMachine,
    Input,
    Outbox,
    Rules,
    ServerMachine,
    ServerRules,
    Started,
    State,
)
from protocols.quorum import check_quorum
from protocols.session import Policy, Session
from protocols.wire import Codec, Message, bitmap, members, pieces, place_bytes
from protocols.xnoise import noise_seed
from secagg import keys, paillier, proofs
from secagg.consortium import KeyShare
from secagg.invalid import Invalid, exact_length
from secagg.keys import Identity
from secagg.labels import Label, bind, digest
from secagg.lanes import Lanes
from secagg.owners import OneKey, Owners, OwnKeys, numbers
from secagg.paillier import Encryptor, PrivateKey, PublicKey
from secagg.randomness import Rng, seeded
from secagg.ring import Ring, Vector

KEY_BITS = paillier.USUAL_BITS
"""Of every party's modulus, where there is no consortium's."""

_DIGEST_BYTES = 32
_SECRET_BYTES = 32  # of the noise

# ------------------------------------------------------------------------------------------- messages


class Advertise(Message, frozen=True, tag=1):
    """Keys, up: a modulus, the n-th root of its randomisers' base, a proof that it is sound; signed.

    A root, so that nobody has a base that is no n-th residue: sums would then open to something else.
    """

    session: bytes
    modulus: bytes
    base: bytes
    proof: bytes
    signature: bytes


class Keys(Message, frozen=True, tag=2):
    """Keys, down: all that were advertised, the recipient's own among them."""

    present: bytes
    advertised: list[Advertise]


class Contributed(Message, frozen=True, tag=3):
    """Contributions, up: for each key, ascending by owner, a column of ciphertexts and its proof; signed."""

    columns: list[bytes]
    proofs: list[bytes]
    signature: bytes


class Contributions(Message, frozen=True, tag=4):
    """Contributions, down: who is in the list, and of each the column for the recipient with its proof.

    `digests` are of all columns of each, so that everybody signs the same list.
    """

    included: bytes
    columns: list[bytes]
    proofs: list[bytes]
    digests: bytes
    signatures: bytes


class Signed(Message, frozen=True, tag=5):
    """Signatures, up: of the list."""

    signature: bytes


class Quorum(Message, frozen=True, tag=6):
    """Signatures, down: who signed, and the signatures."""

    signers: bytes
    signatures: bytes


class Opened(Message, frozen=True, tag=7):
    """Openings, up: the sender's part in opening the ciphertexts that it signed for, and the proof."""

    part: bytes
    proof: bytes


class Stop(Message, frozen=True, tag=8):
    """Either way: the sender has given up the session. Why stays with it: no text comes from a peer."""


_CODEC: Codec[Any] = Codec(Advertise | Keys | Contributed | Contributions | Signed | Quorum | Opened | Stop)


def _modulus_bytes() -> int:
    return KEY_BITS // 8


def longest_message(session: Session) -> int:
    """The longest body of any message of a session."""
    n = len(session.names)
    setting = _setting(session, _all(session), [])  # with all owners a plaintext holds least
    size, bits = setting.owners.ciphertext_bytes, setting.owners.randomiser_bits
    # A modulus, a base, the numbers of a proof, and more than enough for what stands between fields.
    advertised = (2 + proofs.TIMES) * _modulus_bytes() + keys.SIGNATURE_BYTES + 512
    column = setting.count * size + proofs.proof_bytes(size, bits, setting.count)
    # The proof of a part in opening under a consortium's key is shorter than two ciphertexts.
    return 8192 + 2 * size + n * (advertised + column + n * _DIGEST_BYTES + keys.SIGNATURE_BYTES + 64)


def _all(session: Session) -> bytes:
    return bitmap(range(len(session.names)), len(session.names))


# -------------------------------------------------------------------------------- what all compute


def _signed_key(message: Advertise) -> bytes:
    return bind(Label.KEYS, message.session, message.modulus, message.base, message.proof)


def _owner(session: Session, i: int) -> bytes:
    """What a key's proof is bound to: this party in this session."""
    return bind(Label.KEYS, session.hash, session.identities[i])


def _check_advertised(session: Session, i: int, message: Advertise) -> None:
    if message.session != session.hash:
        raise RemoteError("another session: a different model, round or parameters")
    keys.verify(session.identities[i], _signed_key(message), message.signature)
    _sound_key(message.modulus, message.base, message.proof, _owner(session, i))


@lru_cache(maxsize=256)
def _sound_key(modulus: bytes, base: bytes, proof: bytes, owner: bytes) -> PublicKey:
    """The key, or `Invalid`. Of the same bytes always the same: in one process, looked at once."""
    size = _modulus_bytes()
    exact_length("modulus", modulus, size)
    exact_length("base", base, size)
    exact_length("proof of a key", proof, proofs.TIMES * size)
    if not 0 < int.from_bytes(base, "little") < int.from_bytes(modulus, "little"):
        raise Invalid("base: expected a root below the modulus")  # or it had two encodings
    public = _public(modulus, base)
    if public.bits != KEY_BITS:
        raise Invalid(f"modulus: expected {KEY_BITS} bits, got {public.bits}")
    proofs.check_key(public, numbers(proof, size), owner)
    return public


@lru_cache(maxsize=256)
def _public(modulus: bytes, base: bytes) -> PublicKey:
    n = int.from_bytes(modulus, "little")
    return PublicKey(n, paillier.residue(int.from_bytes(base, "little"), n), KEY_BITS // 2)


def _setup(session: Session, present: bytes, advertised: Sequence[Advertise]) -> bytes:
    """All keys: whoever was shown others cannot complete a step with the rest."""
    return digest(Label.SETUP, session.hash, present, *(_signed_key(m) for m in advertised))


def _digest(column: bytes, proof: bytes) -> bytes:
    return digest(Label.COLUMN, column, proof)


def _contribution(setup: bytes, sender: int, digests: bytes) -> bytes:
    return bind(Label.CONTRIBUTION, setup, place_bytes(sender), digests)


def _statement(setup: bytes, included: bytes, digests: bytes, signatures: bytes) -> bytes:
    """What is signed: the whole list, every column of every contribution."""
    return bind(Label.SURVIVORS, setup, included, digests, signatures)


def _context(setup: bytes, sender: int, column: int) -> bytes:
    """What a proof about a column is bound to."""
    return bind(Label.PLAINTEXT_PROOF, setup, place_bytes(sender), place_bytes(column))


def _opening(statement: bytes, owner: int) -> bytes:
    """What a part in an opening is bound to."""
    return bind(Label.OPENING_PROOF, statement, place_bytes(owner))


# ------------------------------------------------------------------------------- what is contributed

Pair = tuple[bytes, bytes]
"""An owner's modulus and the root of its base."""


@dataclass(frozen=True)
class Setting:
    """Who owns keys in a session, by position in the roster, and what contributions look like then."""

    session: Session
    present: tuple[int, ...]
    owners: Owners

    @property
    def lanes(self) -> Lanes:
        """How values share plaintexts."""
        return self.owners.lanes(self.session.bound if self.session.levels is None else 2 * self.offset + 1)

    @property
    def offset(self) -> int:
        """Added to every value, so that none is negative whatever its noise."""
        levels = self.session.levels
        return 0 if levels is None else levels.offset(self.session.bound)

    @property
    def rows(self) -> int:
        """Plaintexts that hold a vector."""
        return self.lanes.plaintexts(self.session.dim)

    @property
    def count(self) -> int:
        """Ciphertexts of a column: of the vector, and of each seed of noise that may be too much."""
        return self.rows + (0 if self.session.levels is None else self.session.levels.count)

    def place(self, position: int) -> int:
        """Of an owner among those that are present."""
        return self.present.index(position)

    def column(self, position: int) -> int:
        """The one that an owner opens."""
        return self.owners.column(self.place(position))

    def check_column(self, sender: int, column: int, data: bytes, proof: bytes, setup: bytes) -> list[Any]:
        """The ciphertexts of a column whose sender knows what is in them; else `Invalid`."""
        public = self.owners.publics[column]
        ciphertexts = public.unpack(data, self.count)
        known = proofs.PlaintextProof.unpack(public, self.count, proof)
        proofs.check_plaintexts(public, ciphertexts, known, _context(setup, sender, column))
        return ciphertexts

    def to_open(self, column: int, contributions: Sequence[Sequence[Any]]) -> bytes:
        """What is opened of a column of all contributions: the sums, and each one's seeds of excess noise."""
        public, rows = self.owners.publics[column], self.rows
        found = paillier.add(public, [c[:rows] for c in contributions])
        found += [c[rows + i] for c in contributions for i in self.excess(len(contributions))]
        return public.pack(found)

    def excess(self, included: int) -> tuple[int, ...]:
        """Which components of everybody's noise are too much."""
        return () if self.session.levels is None else self.session.levels.excess(included)


def _setting(session: Session, present: bytes, pairs: Sequence[Pair]) -> Setting:
    """That of a session, among the owners that are present, with their keys if they have any."""
    there = members(present, len(session.names))
    if session.consortium is not None:
        return Setting(session, there, OneKey(session.consortium))
    publics = tuple(_public(*pair) for pair in pairs)
    return Setting(session, there, OwnKeys(len(there), session.parameters.threshold, KEY_BITS, publics))


# --------------------------------------------------------------------------------------- client: states


class AwaitStart(State, frozen=True):
    """Nothing done yet."""


class AwaitKeys(State, frozen=True):
    """Own key sent. `entropy` is expanded into all later randomness of this client."""

    primes: tuple[bytes, bytes]
    advertised: Advertise
    entropy: bytes


class AwaitInput(State, frozen=True):
    """Keys of all owners received, or the consortium's known; to be encrypted for."""

    primes: tuple[bytes, bytes]
    entropy: bytes
    setup: bytes
    present: bytes
    keys: list[Pair]


class AwaitList(State, frozen=True):
    """Contribution sent, of which `digests` are kept; the vector is gone."""

    primes: tuple[bytes, bytes]
    setup: bytes
    present: bytes
    keys: list[Pair]
    digests: bytes


class AwaitQuorum(State, frozen=True):
    """Signed `statement`, a list of `included`, and no other, ever. `to_open`: this owner's ciphertexts."""

    primes: tuple[bytes, bytes]
    present: bytes
    keys: list[Pair]
    to_open: bytes
    statement: bytes
    included: bytes


class Finished(State, frozen=True):
    """Opened, or given up: no secret is left."""

    included: bytes


# ---------------------------------------------------------------------------------------- client: steps


@dataclass(frozen=True)
class ClientContext:
    """What a client knows and never changes."""

    session: Session
    index: int
    identity: Identity
    policy: Policy
    rng: Rng
    share: KeyShare | None


def advertise_key(context: ClientContext, _: AwaitStart, __: Started) -> tuple[State, Outbox]:
    """A new key for this session, with a proof that it is sound, signed; none beside a consortium's."""
    session, size = context.session, _modulus_bytes()
    entropy = context.rng(32)
    if session.consortium is not None:
        present = _all(session)
        return AwaitInput((b"", b""), entropy, _setup(session, present, []), present, []), []
    key = paillier.generate(KEY_BITS, seeded(entropy, b"key"))
    roots = proofs.prove_key(key, _owner(session, context.index))
    root = key.randomiser(key.public.h)
    modulus, base = key.public.n.to_bytes(size, "little"), root.to_bytes(size, "little")
    proof = b"".join(r.to_bytes(size, "little") for r in roots)
    unsigned = Advertise(session.hash, modulus, base, proof, b"")
    signature = context.identity.sign(_signed_key(unsigned))
    message = Advertise(session.hash, modulus, base, proof, signature)
    return AwaitKeys(_packed_primes(key), message, entropy), [(0, message, b"")]


def _packed_primes(key: PrivateKey) -> tuple[bytes, bytes]:
    size = _modulus_bytes() // 2
    return key.p.to_bytes(size, "little"), key.q.to_bytes(size, "little")


def check_keys(context: ClientContext, state: AwaitKeys, message: Keys) -> tuple[State, Outbox]:
    """Every owner's key is signed by its pinned identity, and sound."""
    session = context.session
    present = members(message.present, len(session.names))
    if len(message.advertised) != len(present):
        raise RemoteError(f"keys: expected {len(present)}, got {len(message.advertised)}")
    known = dict(zip(present, message.advertised, strict=True))
    if known.get(context.index) != state.advertised:
        raise RemoteError("keys: the server has another key of this client than it advertised")
    if len(present) < session.min_included:
        raise RemoteError(f"keys: {len(present)}, at least {session.min_included} must be included")
    for i, theirs in known.items():
        if i != context.index:
            _check_advertised(session, i, theirs)
    if len({m.modulus for m in message.advertised}) < len(present):
        raise RemoteError("keys: two owners have the same modulus")
    setup = _setup(session, message.present, message.advertised)
    pairs = [(m.modulus, m.base) for m in message.advertised]
    return AwaitInput(state.primes, state.entropy, setup, message.present, pairs), []


def contribute(context: ClientContext, state: AwaitInput, event: Input) -> tuple[State, Outbox]:
    """Pack the vector, encrypt what each key is for, prove, sign."""
    index, setting = context.index, _setting(context.session, state.present, state.keys)
    rng = seeded(state.entropy, b"deal", state.setup)
    columns, known = [], []
    plaintexts = _plaintexts(setting, event.vector, rng)
    for column, integers in enumerate(setting.owners.divide(plaintexts, rng)):
        public = setting.owners.publics[column]
        ciphertexts, openings = Encryptor(public, len(integers)).encrypt_openly(integers, rng)
        where = _context(state.setup, index, column)
        proof = proofs.prove_plaintexts(public, ciphertexts, openings, where, rng)
        columns.append(public.pack(ciphertexts))
        known.append(proof.pack(public, len(integers)))
    digests = b"".join(_digest(c, p) for c, p in zip(columns, known, strict=True))
    signature = context.identity.sign(_contribution(state.setup, index, digests))
    after = AwaitList(state.primes, state.setup, state.present, state.keys, digests)
    return after, [(0, Contributed(columns, known, signature), b"")]


def _plaintexts(setting: Setting, vector: Vector, rng: Rng) -> list[int]:
    """A vector in lanes, with noise if the session has it, and then the seeds of what may be too much."""
    session, levels = setting.session, setting.session.levels
    if levels is None:
        return setting.lanes.pack(vector)
    whole = Ring(64)
    noise, secrets = whole.zeros(session.dim), [rng(_SECRET_BYTES) for _ in levels.parts]
    for part, secret in zip(levels.parts, secrets, strict=True):
        part.add(whole, noise, noise_seed(session.hash, secret))
    # Beyond its reach is no noise, but for a chance of 2^-100 an entry: the lanes must hold all there is.
    values = np.clip(noise.view(np.int64), -levels.reach, levels.reach)
    values += session.ring.centred(vector) + setting.offset
    packed = setting.lanes.pack(values.view(np.uint64))
    return packed + [int.from_bytes(secret, "little") for secret in secrets[: levels.count]]


def sign_list(context: ClientContext, state: AwaitList, message: Contributions) -> tuple[State, Outbox]:
    """Check the own column of every contribution, add it up, and sign the list it is of."""
    session, index = context.session, context.index
    setting = _setting(session, state.present, state.keys)
    included = members(message.included, len(session.names))
    mine, each = setting.column(index), setting.owners.columns * _DIGEST_BYTES
    digests = pieces("digests", message.digests, len(included), each)
    signatures = pieces("signatures", message.signatures, len(included), keys.SIGNATURE_BYTES)
    there = set(included) <= set(setting.present)
    if not len(message.columns) == len(message.proofs) == len(included) or not there:
        raise RemoteError("contributions: expected a column and a proof of every owner that is included")
    if len(included) < session.min_included:
        raise RemoteError(f"contributions: {len(included)}, at least {session.min_included} must be included")
    if len(included) < context.policy.min_included:  # nobody's fault: the session allows it
        raise Abort(f"{len(included)} are included, this client's policy wants {context.policy.min_included}")
    if dict(zip(included, digests, strict=True)).get(index) != state.digests:
        raise RemoteError("contributions: this client's own is not among them as it was sent")
    columns = []
    for sender, column, proof, theirs, signature in zip(
        included, message.columns, message.proofs, digests, signatures, strict=True
    ):
        if theirs[mine * _DIGEST_BYTES : (mine + 1) * _DIGEST_BYTES] != _digest(column, proof):
            raise RemoteError("contributions: a column is not the one that is in the list")
        keys.verify(session.identities[sender], _contribution(state.setup, sender, theirs), signature)
        columns.append(setting.check_column(sender, mine, column, proof, state.setup))
    statement = _statement(state.setup, message.included, message.digests, message.signatures)
    to_open = setting.to_open(mine, columns)
    after = AwaitQuorum(state.primes, state.present, state.keys, to_open, statement, message.included)
    return after, [(0, Signed(context.identity.sign(statement)), b"")]


def open_sums(context: ClientContext, state: AwaitQuorum, message: Quorum) -> tuple[State, Outbox]:
    """Only on more than (n + corrupted) / 2 signatures of that same list."""
    session = context.session
    check_quorum(session, state.statement, state.included, message.signers, message.signatures)
    setting, secret = _setting(session, state.present, state.keys), context.share
    ciphertexts = numbers(state.to_open, setting.owners.ciphertext_bytes)
    where = _opening(state.statement, context.index)
    part, proof = setting.owners.open(secret or _own_key(context, state), ciphertexts, where, context.rng)
    return Finished(state.included), [(0, Opened(part, proof), b"")]


def _own_key(context: ClientContext, state: AwaitQuorum) -> PrivateKey:
    setting = _setting(context.session, state.present, state.keys)
    p, q = (int.from_bytes(prime, "little") for prime in state.primes)
    return PrivateKey(p, q, setting.owners.publics[setting.column(context.index)])


# --------------------------------------------------------------------------------------- server: states


class GatherKeys(State, frozen=True):
    """Gathering `Advertise`."""


class GatherContributions(State, frozen=True):
    """Gathering `Contributed`."""

    setup: bytes
    present: bytes
    keys: list[Pair]


class GatherSignatures(State, frozen=True):
    """Gathering `Signed` of `statement`. From here on `included` is frozen. `to_open` by column."""

    statement: bytes
    present: bytes
    keys: list[Pair]
    to_open: dict[int, bytes]
    included: bytes


class GatherOpenings(State, frozen=True):
    """Gathering `Opened`."""

    statement: bytes
    present: bytes
    keys: list[Pair]
    to_open: dict[int, bytes]
    included: bytes


# ---------------------------------------------------------------------------------------- server: steps

Closed = tuple[State, Outbox, list[Fault], Any]


@dataclass(frozen=True)
class ServerContext:
    """What a server knows and never changes."""

    session: Session


def accept_key(context: ServerContext, _: GatherKeys, sender: int, message: Advertise) -> None:
    """A bad key, proof or signature drops its sender before anyone encrypts for it."""
    _check_advertised(context.session, sender, message)


def publish_keys(context: ServerContext, _: GatherKeys, gathered: dict[int, Advertise], total: Any) -> Closed:
    """Send everybody all keys."""
    session, faults = context.session, []
    first: dict[bytes, int] = {}
    for i in sorted(gathered):
        if first.setdefault(gathered[i].modulus, i) != i:
            pair = (session.names[first[gathered[i].modulus]], session.names[i])
            faults.append(Fault(pair, "keys", "both advertised the same key"))
    bad = {session.positions[name] for fault in faults for name in fault.culprits}
    owners = [i for i in sorted(gathered) if i not in bad]
    _check_enough(context, owners, "advertised keys", faults)
    advertised = [gathered[i] for i in owners]
    message = Keys(bitmap(owners, len(session.names)), advertised)
    setup = _setup(session, message.present, advertised)
    pairs = [(m.modulus, m.base) for m in advertised]
    outbox: Outbox = [(i, message, b"") for i in owners]
    return GatherContributions(setup, message.present, pairs), outbox, faults, total


def accept_contribution(
    context: ServerContext, state: GatherContributions, sender: int, message: Contributed
) -> None:
    """Every column is well-formed and proved, and all are signed: else nobody adds it up."""
    session, setting = context.session, _setting(context.session, state.present, state.keys)
    if not len(message.columns) == len(message.proofs) == setting.owners.columns:
        raise RemoteError(f"contribution: expected {setting.owners.columns} columns and as many proofs")
    digests = b"".join(_digest(c, p) for c, p in zip(message.columns, message.proofs, strict=True))
    keys.verify(session.identities[sender], _contribution(state.setup, sender, digests), message.signature)
    for i, (column, proof) in enumerate(zip(message.columns, message.proofs, strict=True)):
        setting.check_column(sender, i, column, proof, state.setup)


def publish_list(
    context: ServerContext, state: GatherContributions, gathered: dict[int, Contributed], total: Any
) -> Closed:
    """The list is frozen: everyone in it gets its own column of each contribution, to add up and sign."""
    session = context.session
    _check_enough(context, list(gathered), "contributed", [])
    setting, senders = _setting(session, state.present, state.keys), sorted(gathered)
    included = bitmap(senders, len(session.names))
    digests = b"".join(
        _digest(c, p) for i in senders for c, p in zip(gathered[i].columns, gathered[i].proofs, strict=True)
    )
    signatures = b"".join(gathered[i].signature for i in senders)
    to_open: dict[int, bytes] = {}
    messages: dict[int, Contributions] = {}
    for column in sorted({setting.column(owner) for owner in senders}):
        columns = [gathered[i].columns[column] for i in senders]
        known = [gathered[i].proofs[column] for i in senders]
        messages[column] = Contributions(included, columns, known, digests, signatures)
        size = setting.owners.ciphertext_bytes
        to_open[column] = setting.to_open(column, [numbers(c, size) for c in columns])
    outbox: Outbox = [(owner, messages[setting.column(owner)], b"") for owner in senders]
    statement = _statement(state.setup, included, digests, signatures)
    return GatherSignatures(statement, state.present, state.keys, to_open, included), outbox, [], total


def accept_signature(context: ServerContext, state: GatherSignatures, sender: int, message: Signed) -> None:
    """A signature of the list."""
    keys.verify(context.session.identities[sender], state.statement, message.signature)


def pass_quorum(
    context: ServerContext, state: GatherSignatures, gathered: dict[int, Signed], total: Any
) -> Closed:
    """Show every signer all signatures."""
    quorum, n = context.session.parameters.quorum, len(context.session.names)
    if len(gathered) < quorum:
        raise Abort(f"{len(gathered)} signed the list of contributions, {quorum} are needed")
    signers = sorted(gathered)
    message = Quorum(bitmap(signers, n), b"".join(gathered[i].signature for i in signers))
    after = GatherOpenings(state.statement, state.present, state.keys, state.to_open, state.included)
    return after, [(i, message, b"") for i in signers], [], total


def accept_opening(context: ServerContext, state: GatherOpenings, sender: int, message: Opened) -> None:
    """An opening that is proved: a false one is its sender's, and the round goes on with the others'."""
    setting = _setting(context.session, state.present, state.keys)
    ciphertexts = numbers(state.to_open[setting.column(sender)], setting.owners.ciphertext_bytes)
    where = _opening(state.statement, sender)
    setting.owners.check(setting.place(sender), ciphertexts, message.part, message.proof, where)


def combine(context: ServerContext, state: GatherOpenings, gathered: dict[int, Opened], _: Any) -> Closed:
    """t openings make the sum; shares, if there are more, must agree. Excess noise is taken out of it."""
    session, t = context.session, context.session.parameters.threshold
    if len(gathered) < t:
        raise Abort(f"{len(gathered)} opened their sums, {t} are needed")
    setting = _setting(session, state.present, state.keys)
    included, rows = members(state.included, len(session.names)), setting.rows
    try:
        opened = setting.owners.combine({setting.place(i): m.part for i, m in gathered.items()})
    except Invalid as error:
        # Each opening is proved: somebody's shares were on no polynomial.
        raise Abort(f"{error}: a contribution was not dealt as it should be, nobody can say whose") from None
    # What is beyond the lanes only a liar can have put there. To refuse it would tell the liar whether the
    # others' values brought it there.
    values = setting.lanes.unpack(opened[:rows], session.dim, strict=False)
    total = (values.astype(np.uint64) - np.uint64(len(included) * setting.offset)).astype(session.ring.dtype)
    faults = []
    wanted = [(i, component) for i in included for component in setting.excess(len(included))]
    for (i, component), seed in zip(wanted, opened[rows:], strict=True):
        if seed >> 8 * _SECRET_BYTES:  # more noise than is needed, which costs accuracy and no privacy
            name = session.names[i]
            faults.append(Fault((name,), "reveals", f"excess noise of {name} stays in the sum: no seed"))
            continue
        assert session.levels is not None
        part, secret = session.levels.parts[component], seed.to_bytes(_SECRET_BYTES, "little")
        part.subtract(session.ring, total, noise_seed(session.hash, secret))
    session.ring.reduce(total)
    return Finished(state.included), [], faults, total


def _check_enough(context: ServerContext, present: Sequence[int], did: str, faults: list[Fault]) -> None:
    least = context.session.min_included
    if len(present) < least:
        raise Abort(f"{len(present)} clients {did}, at least {least} must be included", (), tuple(faults))


# ------------------------------------------------------------------------------------------ legal moves

CLIENT_MOVES: Mapping[tuple[type, type], Callable[..., Any]] = {
    (AwaitStart, Started): advertise_key,
    (AwaitKeys, Keys): check_keys,
    (AwaitInput, Input): contribute,
    (AwaitList, Contributions): sign_list,
    (AwaitQuorum, Quorum): open_sums,
}
SERVER_MOVES: Mapping[tuple[type, type], Callable[..., None]] = {
    (GatherKeys, Advertise): accept_key,
    (GatherContributions, Contributed): accept_contribution,
    (GatherSignatures, Signed): accept_signature,
    (GatherOpenings, Opened): accept_opening,
}
SERVER_CLOSES: Mapping[type, Callable[..., Any]] = {
    GatherKeys: publish_keys,
    GatherContributions: publish_list,
    GatherSignatures: pass_quorum,
    GatherOpenings: combine,
}
_CLIENT_STAGES: dict[type, str] = {
    AwaitStart: "start", AwaitKeys: "roster", AwaitInput: "input", AwaitList: "survivors",
    AwaitQuorum: "quorum", Finished: "finished",
}  # fmt: skip
_SERVER_STAGES: dict[type, str] = {
    GatherKeys: "keys", GatherContributions: "masked", GatherSignatures: "signatures",
    GatherOpenings: "reveals", Finished: "finished",
}  # fmt: skip
_CLIENT_RULES = Rules(CLIENT_MOVES, _CLIENT_STAGES, _CODEC, Stop, longest_message, Finished)
_SERVER_RULES = ServerRules(
    SERVER_MOVES, _SERVER_STAGES, _CODEC, Stop, longest_message, Finished, SERVER_CLOSES, Contributed, Quorum,
    framed=False,
)  # fmt: skip


def client(
    session: Session, index: int, identity: Identity, policy: Policy, rng: Rng, journal: Any, _: Any,
    share: KeyShare | None, snapshot: tuple[bytes | None, bytes | None] | None = None,
) -> ClientMachine:  # fmt: skip
    """A client machine; see `Session.client`."""
    context = ClientContext(session, index, identity, policy, rng, share)
    start = AwaitStart()
    return ClientMachine(session, index, _CLIENT_RULES, context, start, identity.public, journal, snapshot)


def server(
    session: Session, _: Rng, journal: Any, __: Any,
    snapshot: tuple[bytes | None, bytes | None] | None = None,
) -> ServerMachine:  # fmt: skip
    """The server machine; see `Session.server`."""
    start: State = GatherKeys()
    if session.consortium is not None:
        start = GatherContributions(_setup(session, _all(session), []), _all(session), [])
    return ServerMachine(session, _SERVER_RULES, ServerContext(session), start, journal, snapshot)
