"""Threshold Paillier without a dealer: every party keeps a key of its own, and t of them open one sum.

A contributor shares its vector among all owners of keys and encrypts each share under its owner's key
(`secagg.dealing`); anyone can add such ciphertexts; t owners open the sums of their shares, and nothing
else. As in Cramer, Franklin, Schoenmakers, Yung, "Multi-Authority Secret-Ballot Elections with Linear
Work", EUROCRYPT 1996, with Paillier for the authorities' keys, and packed vectors for votes.

Four stages: keys (with a proof that each is sound), contributions (with a proof that each sender knows what
is in its ciphertexts), signatures of the one list of contributions, and openings (with a proof of each).

Against a server that colludes with as many clients as the session says may be corrupted, c < t:
- It cannot make up contributions: each is signed by its client's pinned identity, over the session, all keys
  and every column.
- It cannot submit a copy, inverse or power of a victim's ciphertexts in its own clients' names: they would
  not know the plaintexts (`secagg.proofs`).
- It cannot have two lists opened: an owner opens one sum a session, of a list that a quorum signed, with
  2q > n + c; two lists with so many signers share an honest one, who signs once. In another attempt of the
  round it may sign again, if it has not opened; but it opens once a round, which the journal keeps, and as
  2t > n + c too, two lists are never both opened.
- What t - 1 owners see of an honest contributor are fewer shares than tell anything; what the others open is
  a function of the sum alone, to 2^-40.
Assumed: decisional composite residuosity, and that powers of h with short exponents look like any n-th
residue (Damgard, Jurik, Nielsen 2010); the random oracle for proofs.

What it does not protect against: an included client whose shares are on no polynomial, which with more than
t openings makes a round without a sum, and is not named; vectors that are lies; t colluding owners; a server
that refuses service.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from protocols.errors import Fault, LocalError, RemoteError
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
from protocols.session import Policy, Session
from protocols.wire import Codec, Message, bitmap, members
from secagg import keys, paillier, proofs
from secagg.dealing import Sharing
from secagg.invalid import Invalid, exact_length
from secagg.keys import Identity
from secagg.labels import Label, bind, digest
from secagg.paillier import Encryptor, Lanes, PrivateKey, PublicKey
from secagg.randomness import Rng, seeded

KEY_BITS = paillier.USUAL_BITS
"""Of every party's modulus."""

_DIGEST_BYTES = 32

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
    """Contributions, up: for each owner, ascending, a column of ciphertexts and its proof; signed."""

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
    """Openings, up: the sums of the sender's shares, and the roots that prove it."""

    plaintexts: bytes
    roots: bytes


class Stop(Message, frozen=True, tag=8):
    """Either way: the sender has given up the session. Why stays with it: no text comes from a peer."""


_CODEC: Codec[Any] = Codec(Advertise | Keys | Contributed | Contributions | Signed | Quorum | Opened | Stop)


def _modulus_bytes() -> int:
    return KEY_BITS // 8


def _proof_bytes(session: Session) -> int:
    count = _lanes(session, len(session.names)).plaintexts(session.dim)
    return proofs.proof_bytes(2 * _modulus_bytes(), KEY_BITS // 2, count)


def _column_bytes(session: Session) -> int:
    """At most: with as many owners as there are clients a plaintext holds least."""
    return _lanes(session, len(session.names)).plaintexts(session.dim) * 2 * _modulus_bytes()


def longest_message(session: Session) -> int:
    """The longest body of any message of a session."""
    n, size = len(session.names), _modulus_bytes()
    advertised = 13 * size + keys.SIGNATURE_BYTES + 256
    column = _column_bytes(session) + _proof_bytes(session) + n * _DIGEST_BYTES + keys.SIGNATURE_BYTES + 64
    return 1024 + n * (advertised + column)


# -------------------------------------------------------------------------------- what all compute


def _sharing(session: Session, owners: int) -> Sharing:
    """Among so many owners, who all may contribute. The modulus has `KEY_BITS` bits."""
    return Sharing(owners, session.parameters.threshold, owners, KEY_BITS)


def _lanes(session: Session, owners: int) -> Lanes:
    return _sharing(session, owners).lanes(session.bound)


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
    if len(proof) % size:
        raise Invalid("proof of a key: expected numbers of the modulus's length")
    public = _public(modulus, base)
    if public.bits != KEY_BITS:
        raise Invalid(f"modulus: expected {KEY_BITS} bits, got {public.bits}")
    roots = [int.from_bytes(proof[at : at + size], "little") for at in range(0, len(proof), size)]
    proofs.check_key(public, roots, owner)
    return public


def _setup(session: Session, present: bytes, advertised: Sequence[Advertise]) -> bytes:
    """All keys: whoever was shown others cannot complete a step with the rest."""
    return digest(Label.SETUP, session.hash, present, *(_signed_key(m) for m in advertised))


def _digest(column: bytes, proof: bytes) -> bytes:
    return digest(Label.COLUMN, column, proof)


def _contribution(setup: bytes, sender: int, digests: bytes) -> bytes:
    return bind(Label.CONTRIBUTION, setup, _place(sender), digests)


def _statement(setup: bytes, included: bytes, digests: bytes, signatures: bytes) -> bytes:
    """What is signed: the whole list, every column of every contribution."""
    return bind(Label.SURVIVORS, setup, included, digests, signatures)


def _context(setup: bytes, sender: int, owner: int) -> bytes:
    """What a proof about a column is bound to."""
    return bind(Label.PLAINTEXT_PROOF, setup, _place(sender), _place(owner))


def _opening(statement: bytes, owner: int) -> bytes:
    return bind(Label.OPENING_PROOF, statement, _place(owner))


def _place(i: int) -> bytes:
    return i.to_bytes(4, "big")


def _check_column(public: PublicKey, count: int, column: bytes, proof: bytes, context: bytes) -> list[Any]:
    """The ciphertexts of a column whose sender knows what is in them; else `Invalid`."""
    ciphertexts = public.unpack(column, count)
    known = proofs.PlaintextProof.unpack(public, count, proof)
    proofs.check_plaintexts(public, ciphertexts, known, context)
    return ciphertexts


def _numbers(data: bytes, size: int) -> list[int]:
    return [int.from_bytes(data[at : at + size], "little") for at in range(0, len(data), size)]


# --------------------------------------------------------------------------------------- client: states


class AwaitStart(State, frozen=True):
    """Nothing done yet."""


class AwaitKeys(State, frozen=True):
    """Key sent. `entropy` is expanded into all later randomness of this client."""

    primes: tuple[bytes, bytes]
    advertised: Advertise
    entropy: bytes


class AwaitInput(State, frozen=True):
    """Keys of all owners received; to be encrypted for."""

    primes: tuple[bytes, bytes]
    entropy: bytes
    setup: bytes
    present: bytes
    keys: list[tuple[bytes, bytes]]


class AwaitList(State, frozen=True):
    """Contribution sent, of which `digests` are kept; the vector is gone."""

    primes: tuple[bytes, bytes]
    setup: bytes
    present: bytes
    keys: list[tuple[bytes, bytes]]
    digests: bytes


class AwaitQuorum(State, frozen=True):
    """Signed `statement`, a list of `included`, and no other, ever. `sums` are this owner's ciphertexts."""

    primes: tuple[bytes, bytes]
    base: bytes
    sums: bytes
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


def advertise_key(context: ClientContext, _: AwaitStart, __: Started) -> tuple[State, Outbox]:
    """A new key for this session, with a proof that it is sound, signed."""
    session, size = context.session, _modulus_bytes()
    entropy = context.rng(32)
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
    """Share the vector among the owners, encrypt, prove, sign."""
    session = context.session
    owners = members(state.present, len(session.names))
    sharing = _sharing(session, len(owners))
    rng = seeded(state.entropy, b"deal", state.setup)
    dealt = sharing.deal(sharing.lanes(session.bound).pack(event.vector), rng)
    columns, known = [], []
    for owner, pair, integers in zip(owners, state.keys, dealt, strict=True):
        public = _public(*pair)
        made = list(Encryptor(public, len(integers)).encrypt_openly(integers, rng))
        ciphertexts = [c for c, _ in made]
        openings = [(int(m), int(r)) for m, (_, r) in zip(integers, made, strict=True)]
        proof = proofs.prove_plaintexts(
            public, ciphertexts, openings, _context(state.setup, context.index, owner), rng
        )
        columns.append(public.pack(ciphertexts))
        known.append(proof.pack(public, len(integers)))
    digests = b"".join(_digest(c, p) for c, p in zip(columns, known, strict=True))
    signature = context.identity.sign(_contribution(state.setup, context.index, digests))
    after = AwaitList(state.primes, state.setup, state.present, state.keys, digests)
    return after, [(0, Contributed(columns, known, signature), b"")]


@lru_cache(maxsize=256)
def _public(modulus: bytes, base: bytes) -> PublicKey:
    n = int.from_bytes(modulus, "little")
    if not n:
        raise Invalid("modulus: expected a positive number")
    return PublicKey(n, pow(int.from_bytes(base, "little"), n, n * n), KEY_BITS // 2)


def sign_list(context: ClientContext, state: AwaitList, message: Contributions) -> tuple[State, Outbox]:
    """Check the own column of every contribution, add it up, and sign the list it is of."""
    session, index = context.session, context.index
    owners = members(state.present, len(session.names))
    included = members(message.included, len(session.names))
    mine, count = owners.index(index), _lanes(session, len(owners)).plaintexts(session.dim)
    each = len(owners) * _DIGEST_BYTES
    digests = _pieces("digests", message.digests, len(included), each)
    signatures = _pieces("signatures", message.signatures, len(included), keys.SIGNATURE_BYTES)
    if not len(message.columns) == len(message.proofs) == len(included) or not set(included) <= set(owners):
        raise RemoteError("contributions: expected a column and a proof of every owner that is included")
    if len(included) < session.min_included:
        raise RemoteError(f"contributions: {len(included)}, at least {session.min_included} must be included")
    if len(included) < context.policy.min_included:  # nobody's fault: the session allows it
        raise Abort(f"{len(included)} are included, this client's policy wants {context.policy.min_included}")
    if dict(zip(included, digests, strict=True)).get(index) != state.digests:
        raise RemoteError("contributions: this client's own is not among them as it was sent")
    public, columns = _public(*state.keys[mine]), []
    for sender, column, proof, theirs, signature in zip(
        included, message.columns, message.proofs, digests, signatures, strict=True
    ):
        if theirs[mine * _DIGEST_BYTES : (mine + 1) * _DIGEST_BYTES] != _digest(column, proof):
            raise RemoteError("contributions: a column is not the one that is in the list")
        keys.verify(session.identities[sender], _contribution(state.setup, sender, theirs), signature)
        columns.append(_check_column(public, count, column, proof, _context(state.setup, sender, index)))
    statement = _statement(state.setup, message.included, message.digests, message.signatures)
    sums = public.pack(paillier.add(public, columns))
    after = AwaitQuorum(state.primes, state.keys[mine][1], sums, statement, message.included)
    return after, [(0, Signed(context.identity.sign(statement)), b"")]


def open_sums(context: ClientContext, state: AwaitQuorum, message: Quorum) -> tuple[State, Outbox]:
    """Only on more than (n + corrupted) / 2 signatures of that same list."""
    session = context.session
    signers = members(message.signers, len(session.names))
    signatures = _pieces("signatures", message.signatures, len(signers), keys.SIGNATURE_BYTES)
    if len(signers) < session.parameters.quorum:
        raise RemoteError(f"quorum: {len(signers)} signatures, {session.parameters.quorum} are needed")
    if not set(members(state.included, len(session.names))).issuperset(signers):
        raise RemoteError("quorum: a signer is not in the list")
    for signer, signature in zip(signers, signatures, strict=True):
        try:
            keys.verify(session.identities[signer], state.statement, signature)
        except Invalid:
            raise RemoteError("quorum: a signature of the list does not verify") from None
    p, q = (int.from_bytes(prime, "little") for prime in state.primes)
    size = _modulus_bytes()
    key = PrivateKey(p, q, _public((p * q).to_bytes(size, "little"), state.base))
    sums = _numbers(state.sums, key.public.ciphertext_bytes)
    plaintexts, roots = proofs.prove_openings(key, sums)
    opened = (b"".join(v.to_bytes(size, "little") for v in values) for values in (plaintexts, roots))
    return Finished(state.included), [(0, Opened(*opened), b"")]


def _pieces(what: str, blob: bytes, count: int, size: int) -> list[bytes]:
    """Cut a blob into `count` pieces of `size` bytes, or `RemoteError`."""
    if len(blob) != count * size:
        raise RemoteError(f"{what}: expected {count} x {size} bytes, got {len(blob)}")
    return [blob[i * size : (i + 1) * size] for i in range(count)]


# --------------------------------------------------------------------------------------- server: states


class GatherKeys(State, frozen=True):
    """Gathering `Advertise`."""


class GatherContributions(State, frozen=True):
    """Gathering `Contributed`."""

    setup: bytes
    present: bytes
    keys: list[tuple[bytes, bytes]]


class GatherSignatures(State, frozen=True):
    """Gathering `Signed` of `statement`. From here on `included` is frozen. `sums` by owner in it."""

    statement: bytes
    present: bytes
    keys: list[tuple[bytes, bytes]]
    sums: dict[int, bytes]
    included: bytes


class GatherOpenings(State, frozen=True):
    """Gathering `Opened`."""

    statement: bytes
    present: bytes
    keys: list[tuple[bytes, bytes]]
    sums: dict[int, bytes]
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
    session = context.session
    owners = members(state.present, len(session.names))
    if not len(message.columns) == len(message.proofs) == len(owners):
        raise RemoteError(f"contribution: expected {len(owners)} columns and as many proofs")
    digests = b"".join(_digest(c, p) for c, p in zip(message.columns, message.proofs, strict=True))
    keys.verify(session.identities[sender], _contribution(state.setup, sender, digests), message.signature)
    count = _lanes(session, len(owners)).plaintexts(session.dim)
    for owner, pair, column, proof in zip(owners, state.keys, message.columns, message.proofs, strict=True):
        _check_column(_public(*pair), count, column, proof, _context(state.setup, sender, owner))


def publish_list(
    context: ServerContext, state: GatherContributions, gathered: dict[int, Contributed], total: Any
) -> Closed:
    """The list is frozen: everyone in it gets its own column of each contribution, to add up and sign."""
    session = context.session
    _check_enough(context, list(gathered), "contributed", [])
    owners, senders = members(state.present, len(session.names)), sorted(gathered)
    included = bitmap(senders, len(session.names))
    digests = b"".join(
        _digest(c, p) for i in senders for c, p in zip(gathered[i].columns, gathered[i].proofs, strict=True)
    )
    signatures = b"".join(gathered[i].signature for i in senders)
    outbox: Outbox = []
    sums: dict[int, bytes] = {}
    for place, owner in enumerate(owners):
        if owner not in gathered:
            continue
        columns = [gathered[i].columns[place] for i in senders]
        known = [gathered[i].proofs[place] for i in senders]
        outbox.append((owner, Contributions(included, columns, known, digests, signatures), b""))
        public = _public(*state.keys[place])
        size = public.ciphertext_bytes
        sums[owner] = public.pack(paillier.add(public, [_numbers(c, size) for c in columns]))
    statement = _statement(state.setup, included, digests, signatures)
    return GatherSignatures(statement, state.present, state.keys, sums, included), outbox, [], total


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
    after = GatherOpenings(state.statement, state.present, state.keys, state.sums, state.included)
    return after, [(i, message, b"") for i in signers], [], total


def accept_opening(context: ServerContext, state: GatherOpenings, sender: int, message: Opened) -> None:
    """An opening that is proved: a false one is its sender's, and the round goes on with the others'."""
    owners = members(state.present, len(context.session.names))
    public = _public(*state.keys[owners.index(sender)])
    sums = _numbers(state.sums[sender], public.ciphertext_bytes)
    exact_length("plaintexts", message.plaintexts, len(sums) * _modulus_bytes())
    exact_length("roots", message.roots, len(sums) * _modulus_bytes())
    plaintexts, roots = (_numbers(data, _modulus_bytes()) for data in (message.plaintexts, message.roots))
    proofs.check_openings(public, sums, plaintexts, roots, _opening(state.statement, sender))


def combine(context: ServerContext, state: GatherOpenings, gathered: dict[int, Opened], _: Any) -> Closed:
    """t openings make the sum; if there are more, they must agree."""
    session, t = context.session, context.session.parameters.threshold
    if len(gathered) < t:
        raise Abort(f"{len(gathered)} opened their sums, {t} are needed")
    owners = members(state.present, len(session.names))
    sharing, lanes = _sharing(session, len(owners)), _lanes(session, len(owners))
    opened = {owners.index(i): _numbers(m.plaintexts, _modulus_bytes()) for i, m in gathered.items()}
    try:
        values = lanes.unpack(sharing.combine(opened), session.dim)
    except Invalid as error:
        # Each opening is proved: somebody's shares were on no polynomial, or its lanes too full.
        raise Abort(f"{error}: a contribution was not dealt as it should be, nobody can say whose") from None
    total = values.astype(np.uint64).astype(session.ring.dtype)
    return Finished(state.included), [], [], total


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
    session: Session, name: str, identity: Identity, policy: Policy, rng: Rng, journal: Any, _: Any,
    snapshot: tuple[bytes | None, bytes | None] | None = None,
) -> ClientMachine:  # fmt: skip
    """A client machine; see `Session.client`."""
    if not isinstance(identity, Identity):
        raise LocalError(f"client: expected an Identity, got {type(identity).__name__}")
    index = session.positions.get(name)
    if index is None:
        raise LocalError(f"client: {name!r} is not in the roster")
    if session.identities[index] != identity.public:
        raise LocalError(f"client: the roster has another identity for {name!r}")
    policy.check(session)
    context = ClientContext(session, index, identity, policy, rng)
    start = AwaitStart()
    return ClientMachine(session, name, _CLIENT_RULES, context, start, identity.public, journal, snapshot)


def server(
    session: Session, _: Rng, journal: Any, __: Any,
    snapshot: tuple[bytes | None, bytes | None] | None = None,
) -> ServerMachine:  # fmt: skip
    """The server machine; see `Session.server`."""
    return ServerMachine(session, _SERVER_RULES, ServerContext(session), GatherKeys(), journal, snapshot)
