"""SecAgg and SecAgg+: pairwise masks that cancel in the sum, one protocol over two graphs.

SecAgg   Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning",
         CCS 2017, Figure 4; its round numbers stand in the comments below.
SecAgg+  Bell et al., "Secure Single-Server Aggregation with (Poly)Logarithmic Overhead", CCS 2020,
         Algorithm 2: the same rounds among the neighbours of a sparse random graph.

Three threat models. `honest-but-curious`: Figure 4 without the parts it marks for the active adversary.
`semi-malicious` (the server is honest while keys and graph are set) and `malicious` (never): keys are
signed under the roster's identities, and nobody reveals a share before a quorum of the cohort has signed
the hash of the whole survivor set (Round 3, ConsistencyCheck).

Where this deviates from the papers, each beside its line below:
- The parties' order is their place in the sorted roster; each knows the roster beforehand.
- A client commits to its seed, and in the signed models to each share. The server uses no recovered
  secret that does not match, so a leftover pad is never taken for a result.
- In the honest-but-curious model too, all keys are bound to the session hash, and messages up to Round 2
  echo the hash of the one they answer, so that nobody masks by a roster that was not sent.

What it does not protect against: an included client whose vector is a lie; what the sum itself tells;
more corrupted or dropped clients than the session's parameters allow; a server that refuses service.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from typing import Any

from protocols.errors import Fault, RemoteError
from protocols.graph import Graph
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
from secagg import box, keys, prg, shamir
from secagg.invalid import Invalid, exact_length
from secagg.keys import AgreementKey, Identity
from secagg.labels import Label, bind, digest
from secagg.randomness import Rng, seeded
from secagg.ring import Vector

# ------------------------------------------------------------------------------------------ messages
# Clients are named by their place in the sorted roster. Blobs are concatenations of pieces of fixed
# length in ascending order of place: short on the wire, and with one encoding.


class Advertise(Message, frozen=True, tag=1):
    """Round 0, up: two fresh X25519 keys, signed in the signed models (else an empty signature)."""

    session: bytes
    channel: bytes
    mask: bytes
    signature: bytes


class Roster(Message, frozen=True, tag=2):
    """Round 0, down: the keys of the recipient's neighbours that advertised; `echo` is of its own message."""

    echo: bytes
    graph_seed: bytes
    present: bytes
    advertised: list[Advertise]


class Dealt(Message, frozen=True, tag=3):
    """Round 1, up: a sealed box for each holder, commitments to the seeds and (signed) to each share."""

    echo: bytes
    seed_commitments: bytes
    boxes: bytes
    commitments: bytes


class Shares(Message, frozen=True, tag=4):
    """Round 1, down: the boxes and commitments made for the recipient, and who dealt."""

    dealers: bytes
    boxes: bytes
    commitments: bytes


class Masked(Message, frozen=True, tag=5):
    """Round 2, up; the masked vector is the frame beside it."""

    echo: bytes


class Survivors(Message, frozen=True, tag=6):
    """Round 2, down: the one question, who is in the sum."""

    included: bytes


class Signed(Message, frozen=True, tag=7):
    """Round 3, up: a signature of the survivor set."""

    signature: bytes


class Quorum(Message, frozen=True, tag=8):
    """Round 3, down: who signed, and the signatures."""

    signers: bytes
    signatures: bytes


class Revealed(Message, frozen=True, tag=9):
    """Round 4, up: for each dealer a share of its seed, or of its key, never both.

    With noise, beside the seed's share those of the components that are too much.

    `missing` marks the dealers whose box did not open for this holder.
    """

    missing: bytes
    shares: bytes


class Stop(Message, frozen=True, tag=10):
    """Either way: the sender has given up the session. Why stays with it: no text comes from a peer."""


_CODEC: Codec[Any] = Codec(
    Advertise | Roster | Dealt | Shares | Masked | Survivors | Signed | Quorum | Revealed | Stop
)

COMMITMENT_BYTES = 32
SALT_BYTES = 16
SECRET_BYTES = 32
_KINDS = (b"seed", b"key")  # the order of shares in a box; then follow the components of the noise
_SEED, _KEY, _NOISE = range(3)


def _opening_bytes(session: Session) -> int:
    """A share as it is revealed: with its salt where shares are committed to."""
    return shamir.SHARE_BYTES + (SALT_BYTES if session.signed else 0)


def _secrets(session: Session) -> int:
    """How many secrets a dealer shares: seed, key, and a seed of each component of its noise."""
    return _NOISE + (0 if session.levels is None else session.levels.count)


def _box_bytes(session: Session) -> int:
    return _secrets(session) * _opening_bytes(session) + box.OVERHEAD_BYTES


def _promise_bytes(session: Session) -> int:
    """Commitments to the shares in one box; none in the honest-but-curious model."""
    return _secrets(session) * COMMITMENT_BYTES if session.signed else 0


def _limit_up(session: Session) -> int:
    """No honest client's message is longer."""
    holders, secrets = session.parameters.degree + 1, _secrets(session)
    each = _box_bytes(session) + _promise_bytes(session)
    return 256 + len(session.names) + secrets * COMMITMENT_BYTES + holders * each


def _limit_down(session: Session) -> int:
    """No honest server's message is longer."""
    each = max(_box_bytes(session) + _promise_bytes(session), 4 * keys.KEY_BYTES + keys.SIGNATURE_BYTES)
    quorum = len(session.names) * keys.SIGNATURE_BYTES if session.signed else 0
    return 256 + len(session.names) + (session.parameters.degree + 1) * each + quorum


def longest_message(session: Session) -> int:
    """The longest body of any message of a session."""
    return max(_limit_up(session), _limit_down(session))


# --------------------------------------------------------------------------- what both sides compute


def _echo(message: Message) -> bytes:
    """What the answer to a message repeats of it: its hash.

    Two parties whose keys or dealers were altered between them would mask with different pads, and the
    sum would be wrong without anyone cheating. Signatures stop that; without them, echoes do.
    """
    return digest(Label.ECHO, _CODEC.encode(message))


def _signed_keys(session: Session, advertised: Advertise) -> bytes:
    return bind(Label.KEYS, session.hash, advertised.channel, advertised.mask)


def _setup(session: Session, graph_seed: bytes) -> bytes:
    return digest(Label.SETUP, session.hash, graph_seed)


def _signed_survivors(setup: bytes, included: bytes) -> bytes:
    """What is signed names the whole set, so a quorum means one set for everybody, and the graph."""
    return digest(Label.SURVIVORS, setup, included)


def _seed_commitment(session: Session, dealer: int, kind: int, seed: bytes) -> bytes:
    # No salt: the seed is 32 uniform bytes used for nothing else, so its hash hides it.
    which = () if kind == _SEED else (place_bytes(kind),)
    return digest(Label.SEED_COMMITMENT, session.hash, place_bytes(dealer), *which, seed)


def _share_commitment(session: Session, dealer: int, holder: int, kind: int, opening: bytes) -> bytes:
    name = _KINDS[kind] if kind < _NOISE else place_bytes(kind)
    return digest(
        Label.SHARE_COMMITMENT, session.hash, place_bytes(dealer), place_bytes(holder), name, opening
    )


def _associated(session: Session, dealer: int, holder: int) -> bytes:
    return bind(Label.SHARES, session.hash, place_bytes(dealer), place_bytes(holder))


def _stream_seed(session: Session, secret: bytes) -> bytes:
    """The 16-byte AES key of a self mask, from the 32-byte seed that is shared."""
    return keys.derive(secret, Label.SELF_MASK, session.hash, length=prg.SEED_BYTES)


def _pair_seed(session: Session, own: AgreementKey, peer: bytes) -> bytes:
    """The 16-byte AES key of a pairwise mask: KA.agree of the paper, then HKDF."""
    return own.agree(peer, Label.MASK, session.hash, prg.SEED_BYTES)


def _check_advertised(session: Session, i: int, message: Advertise) -> None:
    """A client's keys are of this session and, in the signed models, signed by its pinned identity."""
    exact_length("signature", message.signature, keys.SIGNATURE_BYTES if session.signed else 0)
    if message.session != session.hash:
        raise RemoteError("another session: a different model, round or parameters")
    keys.check_canonical(message.channel)
    keys.check_canonical(message.mask)
    if session.signed:
        keys.verify(session.identities[i], _signed_keys(session, message), message.signature)
    if message.channel == message.mask:
        raise RemoteError("the same key for channel and mask")


# ------------------------------------------------------------------------------------ client: states


class AwaitStart(State, frozen=True):
    """Nothing done yet."""


class AwaitRoster(State, frozen=True):
    """Round 0 sent. `entropy` is expanded into all later randomness of this client."""

    sent: bytes
    channel: bytes
    mask: bytes
    seed: bytes
    entropy: bytes


class AwaitShares(State, frozen=True):
    """Round 1 sent. `channels` are the AEAD keys by holder, `peers` the mask keys by neighbour.

    `noise` are the secrets of each component of the noise, ascending, and of its base, which is not shared.
    """

    mask: bytes
    seed: bytes
    setup: bytes
    channels: dict[int, bytes]
    peers: dict[int, bytes]
    own: bytes
    neighbours: tuple[int, ...]
    noise: tuple[bytes, ...]


class AwaitInput(State, frozen=True):
    """Shares received, to be answered with `echo`.

    `held` maps a dealer to its openings, empty where its box did not open.
    `strangers` are the neighbours in the graph that dealt nothing, with whom no mask is shared.
    """

    echo: bytes
    mask: bytes
    seed: bytes
    setup: bytes
    peers: dict[int, bytes]
    held: dict[int, bytes]
    strangers: tuple[int, ...]
    noise: tuple[bytes, ...]


class AwaitSurvivors(State, frozen=True):
    """Round 2 sent; mask key, seed, channel keys and the seeds of noise are gone."""

    setup: bytes
    held: dict[int, bytes]
    strangers: tuple[int, ...]


class AwaitQuorum(State, frozen=True):
    """Round 3 sent: signed for `included` and for no other set, ever."""

    setup: bytes
    held: dict[int, bytes]
    included: bytes


class Finished(State, frozen=True):
    """Answered, or given up: no secret is left."""

    included: bytes


# ------------------------------------------------------------------------------------- client: steps


@dataclass(frozen=True)
class ClientContext:
    """What a client knows and never changes."""

    session: Session
    index: int
    identity: Identity
    policy: Policy
    rng: Rng
    expand: prg.Expand


def advertise_keys(context: ClientContext, _: AwaitStart, __: Started) -> tuple[State, Outbox]:
    """Round 0, AdvertiseKeys: two key pairs, and a signature in the signed models.

    All secrets of the session are drawn here, once: later steps expand `entropy`, so that a restored
    machine continues exactly as the lost one would have.
    """
    session = context.session
    channel, mask = AgreementKey(context.rng(keys.KEY_BYTES)), AgreementKey(context.rng(keys.KEY_BYTES))
    seed, entropy = context.rng(32), context.rng(32)
    message = Advertise(session.hash, channel.public, mask.public, b"")
    if session.signed:
        signature = context.identity.sign(_signed_keys(session, message))
        message = Advertise(session.hash, channel.public, mask.public, signature)
    state = AwaitRoster(_echo(message), channel.secret, mask.secret, seed, entropy)
    return state, [(0, message, b"")]


def share_keys(context: ClientContext, state: AwaitRoster, message: Roster) -> tuple[State, Outbox]:
    """Round 1, ShareKeys: check the neighbours' keys, share mask key and seed among the holders."""
    session, index, t = context.session, context.index, context.session.parameters.threshold
    if message.echo != state.sent:
        raise RemoteError("roster: the server has other keys of this client than it advertised")
    exact_length("graph seed", message.graph_seed, 0 if session.complete else 32)
    graph = session.graph(message.graph_seed)
    advertised = _read_roster(session, graph.neighbours(index), message)
    holders = graph.holders(index)
    points = {holder: place + 1 for place, holder in enumerate(holders)}
    present = [h for h in holders if h in advertised or h == index]
    if len(present) < t:
        raise Abort(f"{len(present)} of {len(holders)} holders are left, the threshold is {t}")
    own = AgreementKey(state.channel)
    mine = (own.public, AgreementKey(state.mask).public)
    for peer in advertised.values():
        if peer.channel in mine or peer.mask in mine:
            raise RemoteError("the server gave this client's own key to another")
    channels = {
        peer: own.agree(their.channel, Label.CHANNEL, session.hash) for peer, their in advertised.items()
    }
    # Randomness is bound to the message it answers: two clones of one state that were shown different
    # rosters would otherwise encrypt two different plaintexts under one nonce.
    rng = seeded(state.entropy, Label.STEP.value.encode(), _CODEC.encode(message))
    excess = tuple(rng(SECRET_BYTES) for _ in range(_NOISE, _secrets(session)))
    shares = shamir.split((state.seed, state.mask, *excess), t, [points[h] for h in present], rng)
    salt_bytes = SALT_BYTES if session.signed else 0
    boxes, commitments, kept = [], [], b""
    for holder, theirs in zip(present, zip(*shares, strict=True), strict=True):
        openings = [share + rng(salt_bytes) for share in theirs]
        if session.signed:
            commitments += [
                _share_commitment(session, index, holder, kind, opening)
                for kind, opening in enumerate(openings)
            ]
        plain = b"".join(openings)
        if holder == index:  # the complete graph: a client holds a share of its own, which is not sent
            kept = plain
        else:
            boxes.append(box.seal(channels[holder], plain, _associated(session, index, holder), rng))
    peers = {peer: their.mask for peer, their in advertised.items()}
    setup = _setup(session, message.graph_seed)
    promised = _promised(session, index, state.seed, excess)
    dealt = Dealt(_echo(message), promised, b"".join(boxes), b"".join(commitments))
    # The base of the noise is nobody else's to know: its secret is drawn last, and shared with no one.
    parts = () if session.levels is None else session.levels.parts
    noise = (*excess, *(rng(SECRET_BYTES) for _ in parts[len(excess) :]))
    neighbours = graph.neighbours(index)
    after = AwaitShares(state.mask, state.seed, setup, channels, peers, kept, neighbours, noise)
    return after, [(0, dealt, b"")]


def _promised(session: Session, dealer: int, seed: bytes, excess: tuple[bytes, ...]) -> bytes:
    """What a dealer commits to: the seeds that others may recover. Its key has a public half for that."""
    committed = [_seed_commitment(session, dealer, _SEED, seed)]
    committed += [_seed_commitment(session, dealer, _NOISE + i, secret) for i, secret in enumerate(excess)]
    return b"".join(committed)


def _read_roster(session: Session, neighbours: tuple[int, ...], message: Roster) -> dict[int, Advertise]:
    """Check everything a roster says. Only the server can have made a bad one: it checked these first."""
    places = members(message.present, len(neighbours))
    if len(places) != len(message.advertised):
        raise RemoteError(f"roster: {len(places)} present, {len(message.advertised)} keys")
    advertised = {neighbours[p]: keys for p, keys in zip(places, message.advertised, strict=True)}
    seen: set[bytes] = set()
    for peer, their in advertised.items():
        _check_advertised(session, peer, their)
        seen |= {their.channel, their.mask}
    if len(seen) != 2 * len(advertised):  # Figure 4 asserts "that all the public key pairs are different"
        raise RemoteError("roster: a key occurs twice")
    return advertised


def open_shares(context: ClientContext, state: AwaitShares, message: Shares) -> tuple[State, Outbox]:
    """End of Round 1: open what the dealers sealed for this client.

    Figure 4 opens the boxes in Round 4; opening them now lets a client stop before it has masked
    anything when too few open, as when the server told the halves of the cohort different sessions.
    """
    session, index, t = context.session, context.index, context.session.parameters.threshold
    holders = sorted({*state.channels, *([index] if session.complete else [])})
    dealers = [holders[p] for p in members(message.dealers, len(holders))]
    if session.complete and index not in dealers:
        raise RemoteError("shares: this client's own are not among them")
    others = [d for d in dealers if d != index]
    boxes = pieces("shares", message.boxes, len(others), _box_bytes(session))
    promises = pieces("commitments", message.commitments, len(others), _promise_bytes(session))
    held = {index: state.own} if session.complete else {}
    for dealer, sealed, promised in zip(others, boxes, promises, strict=True):
        held[dealer] = _open(session, state.channels[dealer], dealer, index, sealed, promised)
    for dealer in _malformed(session, held):
        held[dealer] = b""
    opened = sum(map(bool, held.values()))
    # Without signatures, a box that does not open may be all that shows two halves being told different
    # sessions; in a model where everybody follows the protocol it never happens, so one is enough.
    if opened < t or (not session.signed and opened < len(held)):
        raise Abort(f"{opened} of {len(held)} boxes of shares opened, the threshold is {t}")
    peers = {dealer: state.peers[dealer] for dealer in others}
    strangers = tuple(j for j in state.neighbours if j not in peers)
    after = AwaitInput(
        _echo(message), state.mask, state.seed, state.setup, peers, held, strangers, state.noise
    )
    return after, []


def _open(session: Session, key: bytes, dealer: int, holder: int, sealed: bytes, promised: bytes) -> bytes:
    """All openings in a box, or nothing if it does not open or breaks its dealer's commitments.

    In the signed models a bad box does not stop the round: this holder reports it as missing, and the
    others' shares serve.
    """
    size = _opening_bytes(session)
    try:
        plain = box.unseal(key, sealed, _associated(session, dealer, holder))
    except Invalid:
        return b""
    if session.signed:
        for kind in range(_secrets(session)):
            opening = plain[kind * size : (kind + 1) * size]
            commitment = promised[kind * COMMITMENT_BYTES : (kind + 1) * COMMITMENT_BYTES]
            if _share_commitment(session, dealer, holder, kind, opening) != commitment:
                return b""
    return plain


def _malformed(session: Session, held: Mapping[int, bytes]) -> list[int]:
    """The dealers whose shares are not the one encoding of any: looked at all at once."""
    size, secrets = _opening_bytes(session), _secrets(session)
    opened = [dealer for dealer, plain in held.items() if plain]
    starts = range(0, secrets * size, size)
    shares = [held[d][start : start + shamir.SHARE_BYTES] for d in opened for start in starts]
    return [opened[place // secrets] for place in shamir.malformed(shares)]


def mask_input(context: ClientContext, state: AwaitInput, event: Input) -> tuple[State, Outbox]:
    """Round 2, MaskedInputCollection: y = x + PRG(b) + sum over v of sign(u, v) PRG(s_uv).

    The sign is that of the paper's section 4: plus if this client's place is below the peer's, else minus.
    (Figure 4 has it the other way round; either cancels.)
    """
    session, index = context.session, context.index
    own = AgreementKey(state.mask)
    add: list[bytes] = [_stream_seed(session, state.seed)]
    subtract: list[bytes] = []
    for peer, public in state.peers.items():
        (add if index < peer else subtract).append(_pair_seed(session, own, public))
    masked = context.expand(session.ring, event.vector, add, subtract)
    if session.levels is not None:
        for part, secret in zip(session.levels.parts, state.noise, strict=True):
            part.add(session.ring, masked, noise_seed(session.hash, secret))
    session.ring.reduce(masked)
    after = AwaitSurvivors(state.setup, state.held, state.strangers)
    return after, [(0, Masked(state.echo), session.ring.pack(masked))]


def _check_survivors(context: ClientContext, state: AwaitSurvivors, message: Survivors) -> frozenset[int]:
    """The minimums that a client enforces itself, whatever the server says."""
    session, index = context.session, context.index
    included = frozenset(members(message.included, len(session.names)))
    if index not in included:
        raise RemoteError("survivors: this client is not among them, and must not be asked")
    if len(included) < session.min_included:
        raise RemoteError(f"survivors: {len(included)}, at least {session.min_included} must be included")
    if len(included) < context.policy.min_included:  # nobody's fault: the session allows it
        raise Abort(f"{len(included)} are included, this client's policy wants {context.policy.min_included}")
    # An included neighbour that this client never masked with would leave a pad in the sum.
    if not included.isdisjoint(state.strangers):
        raise RemoteError("survivors: a neighbour among them never dealt shares to this client")
    alive = sum(dealer in included for dealer in state.held)
    if alive < session.parameters.threshold:
        raise RemoteError(f"survivors: {alive} neighbours are below the threshold")
    return included


def reveal_unsigned(
    context: ClientContext, state: AwaitSurvivors, message: Survivors
) -> tuple[State, Outbox]:
    """Round 4, Unmasking, in the honest-but-curious model: no Round 3."""
    included = _check_survivors(context, state, message)
    return Finished(message.included), [(0, _reveal(context, state.held, included), b"")]


def sign_survivors(context: ClientContext, state: AwaitSurvivors, message: Survivors) -> tuple[State, Outbox]:
    """Round 3, ConsistencyCheck: sign the one survivor set this client will ever answer for."""
    _check_survivors(context, state, message)
    signature = context.identity.sign(_signed_survivors(state.setup, message.included))
    return AwaitQuorum(state.setup, state.held, message.included), [(0, Signed(signature), b"")]


def reveal(context: ClientContext, state: AwaitQuorum, message: Quorum) -> tuple[State, Outbox]:
    """Round 4, Unmasking: only on more than (n + corrupted) / 2 signatures over that same set.

    Figure 4 asks for t signatures of survivors: see `protocols.quorum`.
    """
    session, statement = context.session, _signed_survivors(state.setup, state.included)
    check_quorum(session, statement, state.included, message.signers, message.signatures)
    included = frozenset(members(state.included, len(session.names)))
    return Finished(state.included), [(0, _reveal(context, state.held, included), b"")]


def _reveal(context: ClientContext, held: Mapping[int, bytes], included: frozenset[int]) -> Revealed:
    """The seed's share of an included dealer, the key's share of a dropped one: never both.

    Which dealers are dropped is derived here from the one set, and so is which noise of the included is too
    much; the server cannot say it. Noise of a dropped client is not in the sum: nothing of it is revealed.
    """
    size = _opening_bytes(context.session)
    kinds = _kinds(context.session, len(included))
    shares, missing = [], []
    dealers = sorted(held)
    for place, dealer in enumerate(dealers):
        if not held[dealer]:
            missing.append(place)
            continue
        for kind in kinds[dealer in included]:
            shares.append(held[dealer][kind * size : (kind + 1) * size])
    return Revealed(bitmap(missing, len(dealers)), b"".join(shares))


def _kinds(session: Session, included: int) -> dict[bool, tuple[int, ...]]:
    """Whether a dealer is included -> the secrets whose shares are revealed."""
    excess = () if session.levels is None else session.levels.excess(included)
    return {True: (_SEED, *(_NOISE + i for i in excess)), False: (_KEY,)}


# ------------------------------------------------------------------------------------ server: states


class AwaitKeys(State, frozen=True):
    """Round 0: gathering `Advertise`."""

    graph_seed: bytes


class AwaitDealings(State, frozen=True):
    """Round 1: gathering `Dealt`. `sent` are the echoes of the rosters."""

    sent: dict[int, bytes]
    graph_seed: bytes
    keys: dict[int, Advertise]


class AwaitMasked(State, frozen=True):
    """Round 2: gathering `Masked`, adding each vector to the running sum as it comes.

    `sent` are the echoes of the shares.
    """

    sent: dict[int, bytes]
    graph_seed: bytes
    mask_keys: dict[int, bytes]
    dealt: dict[int, Dealt]


class AwaitSignatures(State, frozen=True):
    """Round 3: gathering `Signed` of `statement`. From here on `included` is frozen."""

    statement: bytes
    graph_seed: bytes
    mask_keys: dict[int, bytes]
    dealt: dict[int, Dealt]
    included: bytes


class AwaitReveals(State, frozen=True):
    """Round 4: gathering `Revealed`."""

    graph_seed: bytes
    mask_keys: dict[int, bytes]
    dealt: dict[int, Dealt]
    included: bytes


# ------------------------------------------------------------------------------------- server: steps

Closed = tuple[State, Outbox, list[Fault], Any]
"""How a stage ends: the next state, what is sent, who did wrong, and the running sum."""


@dataclass(frozen=True)
class ServerContext:
    """What a server knows and never changes."""

    session: Session
    expand: prg.Expand

    def name(self, i: int) -> str:
        return self.session.names[i]


def accept_keys(context: ServerContext, _: AwaitKeys, sender: int, message: Advertise) -> None:
    """Round 0: a bad key or signature drops its sender before anyone shares with it.

    Clients do not look for points of small order again: an agreement with one fails, and they stop.
    """
    _check_advertised(context.session, sender, message)
    keys.check_agreement_public(message.channel)
    keys.check_agreement_public(message.mask)


def publish_roster(
    context: ServerContext, state: AwaitKeys, gathered: dict[int, Advertise], total: Any
) -> Closed:
    """Round 0 closes: send every client its neighbours' keys."""
    session, faults = context.session, []
    owner: dict[bytes, int] = {}
    for i in sorted(gathered):
        for key in (gathered[i].channel, gathered[i].mask):
            if owner.setdefault(key, i) != i:
                pair = (context.name(owner[key]), context.name(i))
                faults.append(Fault(pair, "keys", "both advertised the same key"))
    bad = {session.positions[name] for fault in faults for name in fault.culprits}
    present = {i: message for i, message in gathered.items() if i not in bad}
    _check_enough(context, present, "advertised keys", faults)
    graph, outbox = session.graph(state.graph_seed), []
    for i in sorted(present):
        neighbours = graph.neighbours(i)
        there = [p for p, j in enumerate(neighbours) if j in present]
        theirs = [present[neighbours[p]] for p in there]
        roster = Roster(_echo(present[i]), state.graph_seed, bitmap(there, len(neighbours)), theirs)
        outbox.append((i, roster, b""))
    return AwaitDealings(_echoes(outbox), state.graph_seed, present), outbox, faults, total


def _echoes(outbox: Outbox) -> dict[int, bytes]:
    return {to: _echo(message) for to, message, _ in outbox}


def accept_dealing(context: ServerContext, state: AwaitDealings, sender: int, message: Dealt) -> None:
    """Round 1: the right number of boxes and commitments; what is inside only the holders see."""
    session = context.session
    if message.echo != state.sent[sender]:
        raise RemoteError("it answers another roster than it was sent")
    holders = _places(session.graph(state.graph_seed), sender, state.keys)
    others = len(holders) - (sender in holders)
    # One for the seed, and for each component of the noise; none for the key, of which a half is public.
    exact_length("seed commitments", message.seed_commitments, (_secrets(session) - 1) * COMMITMENT_BYTES)
    exact_length("boxes", message.boxes, others * _box_bytes(session))
    exact_length("commitments", message.commitments, len(holders) * _promise_bytes(session))


def _places(graph: Graph, dealer: int, present: Container[int]) -> dict[int, int]:
    """Holder -> its place in a dealer's blobs: among those that had advertised keys when it dealt."""
    return {h: place for place, h in enumerate(h for h in graph.holders(dealer) if h in present)}


def forward_shares(
    context: ServerContext, state: AwaitDealings, gathered: dict[int, Dealt], total: Any
) -> Closed:
    """Round 1 closes: hand every client the boxes that were made for it."""
    session = context.session
    _check_enough(context, gathered, "dealt shares", [])
    graph, box_size, each = session.graph(state.graph_seed), _box_bytes(session), _promise_bytes(session)
    places = {i: _places(graph, i, state.keys) for i in gathered}
    outbox: Outbox = []
    for i in sorted(gathered):
        dealers = [d for d in places[i] if d in gathered]  # holding is symmetric
        boxes, promises = [], []
        for d in dealers:
            if d == i:
                continue
            place = places[d][i]
            before = place - (d in places[d] and d < i)  # a dealer seals no box for itself
            boxes.append(gathered[d].boxes[before * box_size : (before + 1) * box_size])
            promises.append(gathered[d].commitments[place * each : (place + 1) * each])
        there = bitmap([places[i][d] for d in dealers], len(places[i]))
        outbox.append((i, Shares(there, b"".join(boxes), b"".join(promises)), b""))
    mask_keys = {i: message.mask for i, message in state.keys.items()}
    # The boxes are on their way and not needed again; commitments are, and of whom they are.
    dealt = {i: Dealt(b"", m.seed_commitments, b"", m.commitments) for i, m in gathered.items()}
    following = AwaitMasked(_echoes(outbox), state.graph_seed, mask_keys, dealt)
    return following, outbox, [], total


def accept_masked(_: ServerContext, state: AwaitMasked, sender: int, message: Masked) -> None:
    """Round 2: the machine adds the vector to the running sum, if it is whole and well-formed."""
    if message.echo != state.sent[sender]:
        raise RemoteError("it answers other shares than it was sent")


def ask_survivors(
    context: ServerContext, state: AwaitMasked, gathered: dict[int, Masked], total: Any
) -> Closed:
    """Round 2 closes: the included set is frozen, and everyone in it is asked the one question."""
    session = context.session
    _check_enough(context, gathered, "sent masked vectors", [])
    graph, alive = session.graph(state.graph_seed), set(gathered)
    for dealer in state.dealt:  # before any share is revealed, see that all that will be needed can be
        if not _needed(graph, dealer, alive):
            continue
        left = len(alive & set(graph.holders(dealer)))
        if left < session.parameters.threshold:
            raise Abort(
                f"{left} holders of {context.name(dealer)}'s shares are left, the threshold is "
                f"{session.parameters.threshold}"
            )
    question = Survivors(bitmap(gathered, len(session.names)))
    outbox: Outbox = [(i, question, b"") for i in sorted(gathered)]
    known = (state.graph_seed, state.mask_keys, state.dealt, question.included)
    if not session.signed:
        return AwaitReveals(*known), outbox, [], total
    statement = _signed_survivors(_setup(session, state.graph_seed), question.included)
    return AwaitSignatures(statement, *known), outbox, [], total


def _needed(graph: Graph, dealer: int, alive: set[int]) -> bool:
    """A survivor's seed is needed; a dropped client's key only if a survivor masked with it."""
    return dealer in alive or not alive.isdisjoint(graph.neighbours(dealer))


def accept_signature(context: ServerContext, state: AwaitSignatures, sender: int, message: Signed) -> None:
    """Round 3: a survivor's signature over the set."""
    keys.verify(context.session.identities[sender], state.statement, message.signature)


def pass_quorum(
    context: ServerContext, state: AwaitSignatures, gathered: dict[int, Signed], total: Any
) -> Closed:
    """Round 3 closes: show every signer all signatures."""
    quorum, n = context.session.parameters.quorum, len(context.session.names)
    if len(gathered) < quorum:
        raise Abort(f"{len(gathered)} signed the survivor set, {quorum} are needed")
    signers = sorted(gathered)
    shown = Quorum(bitmap(signers, n), b"".join(gathered[i].signature for i in signers))
    following = AwaitReveals(state.graph_seed, state.mask_keys, state.dealt, state.included)
    return following, [(i, shown, b"") for i in signers], [], total


def accept_reveal(context: ServerContext, state: AwaitReveals, sender: int, message: Revealed) -> None:
    """Round 4: the right number of shares; `unmask` checks each against its commitment."""
    session, graph = context.session, context.session.graph(state.graph_seed)
    dealers = [d for d in graph.holders(sender) if d in state.dealt]
    included = set(members(state.included, len(session.names)))
    kinds = _kinds(session, len(included))
    lengths = [len(kinds[d in included]) for d in dealers]
    given = sum(lengths) - sum(lengths[p] for p in members(message.missing, len(dealers)))
    exact_length("revealed", message.shares, given * _opening_bytes(session))


Secret = tuple[int, int]
"""A dealer, and which of its secrets."""


def _read_reveal(
    context: ServerContext, state: AwaitReveals, graph: Graph, included: set[int], holder: int,
    message: Revealed,
) -> tuple[dict[Secret, bytes], list[int]]:  # fmt: skip
    """The opening of each secret, and the dealers whose box this holder says did not open."""
    session, kinds = context.session, _kinds(context.session, len(included))
    dealers = [d for d in graph.holders(holder) if d in state.dealt]
    places = set(members(message.missing, len(dealers)))
    missing = [d for p, d in enumerate(dealers) if p in places]
    given = [(d, kind) for p, d in enumerate(dealers) if p not in places for kind in kinds[d in included]]
    openings = pieces("revealed", message.shares, len(given), _opening_bytes(session))
    return dict(zip(given, openings, strict=True)), missing


def unmask(
    context: ServerContext, state: AwaitReveals, gathered: dict[int, Revealed], total: Vector
) -> Closed:
    """Round 4 closes: recover seeds and keys, check each, take pads and excess noise out of the sum."""
    session, graph = context.session, context.session.graph(state.graph_seed)
    included = set(members(state.included, len(session.names)))
    openings, faults = _sort_reveals(context, state, graph, included, gathered)
    kinds = _kinds(session, len(included))
    dealers = [d for d in sorted(state.dealt) if _needed(graph, d, included)]
    wanted = [(d, kind) for d in dealers for kind in kinds[d in included]]
    secrets = _recover(context, graph, wanted, openings, faults)
    add: list[bytes] = []
    subtract: list[bytes] = []
    excess: list[tuple[int, bytes]] = []
    for dealer in dealers:
        if dealer in included:
            for kind in kinds[True]:
                seed = secrets.get((dealer, kind))
                if seed is not None and not _committed(session, state.dealt[dealer], dealer, kind, seed):
                    if kind == _SEED:
                        raise _blamed(context, dealer, "seed", faults)
                    seed = None
                if kind == _SEED:
                    assert seed is not None  # recovered, or the session was aborted
                    subtract.append(_stream_seed(session, seed))
                elif seed is not None:
                    excess.append((kind - _NOISE, noise_seed(session.hash, seed)))
                else:  # more noise than is needed, which costs accuracy and no privacy
                    cause = f"excess noise of {context.name(dealer)} stays in the sum: its seed does not open"
                    faults.append(Fault((), "reveals", cause))
            continue
        recovered = AgreementKey(secrets[dealer, _KEY])
        if recovered.public != state.mask_keys[dealer]:
            raise _blamed(context, dealer, "mask key", faults)
        for peer in graph.neighbours(dealer):
            if peer in included:
                seed = _pair_seed(session, recovered, state.mask_keys[peer])
                # The survivor's own sign, undone: it added where its place is the lower one.
                (subtract if peer < dealer else add).append(seed)
    total = context.expand(session.ring, total, add, subtract)
    parts = () if session.levels is None else session.levels.parts
    for component, seed in excess:
        parts[component].subtract(session.ring, total, seed)
    session.ring.reduce(total)
    return Finished(state.included), [], faults, total


def _sort_reveals(
    context: ServerContext,
    state: AwaitReveals,
    graph: Graph,
    included: set[int],
    gathered: dict[int, Revealed],
) -> tuple[dict[Secret, dict[int, bytes]], list[Fault]]:
    """Secret -> holder -> share, each checked: blame for a bad one falls on holder or dealer alone."""
    session = context.session
    openings: dict[Secret, dict[int, bytes]] = {}
    places = {d: _places(graph, d, state.mask_keys) for d in state.dealt} if session.signed else {}
    faults: list[Fault] = []
    for holder in sorted(gathered):
        given, missing = _read_reveal(context, state, graph, included, holder, gathered[holder])
        for dealer in missing:
            pair = (context.name(dealer), context.name(holder))
            faults.append(Fault(pair, "reveals", "disputed share: one sealed it badly or the other lies"))
        shares = {secret: opening[: shamir.SHARE_BYTES] for secret, opening in given.items()}
        bad = {list(shares)[place] for place in shamir.malformed(list(shares.values()))}
        for (dealer, kind), opening in given.items():
            if session.signed and not _kept_promise(
                session, state.dealt[dealer], dealer, holder, places[dealer][holder], kind, opening
            ):
                cause = f"its share of {context.name(dealer)}'s secret breaks the commitment: ignored"
                faults.append(Fault((context.name(holder),), "reveals", cause))
                continue
            if (dealer, kind) in bad:  # the dealer committed to it, if there are commitments
                culprit = dealer if session.signed else holder
                faults.append(Fault((context.name(culprit),), "reveals", "a malformed share: ignored"))
                continue
            openings.setdefault((dealer, kind), {})[holder] = shares[dealer, kind]
    return openings, faults


def _kept_promise(
    session: Session, dealt: Dealt, dealer: int, holder: int, place: int, kind: int, opening: bytes
) -> bool:
    """Whether an opening is what its dealer committed to when the shares were dealt."""
    start = (_secrets(session) * place + kind) * COMMITMENT_BYTES
    promised = dealt.commitments[start : start + COMMITMENT_BYTES]
    return _share_commitment(session, dealer, holder, kind, opening) == promised


def _committed(session: Session, dealt: Dealt, dealer: int, kind: int, seed: bytes) -> bool:
    """Whether a recovered seed, of a mask or of noise, is what its dealer committed to."""
    start = (kind if kind == _SEED else kind - 1) * COMMITMENT_BYTES  # there is none of the key
    promised = dealt.seed_commitments[start : start + COMMITMENT_BYTES]
    return _seed_commitment(session, dealer, kind, seed) == promised


_BATCH = 64  # secrets combined at a time, which bounds the memory of their shares as floats


def _recover(
    context: ServerContext, graph: Graph, wanted: list[Secret], openings: dict[Secret, dict[int, bytes]],
    faults: list[Fault],
) -> dict[Secret, bytes]:  # fmt: skip
    """Each wanted secret from the first t good shares; one set of coefficients a holder set.

    Seeds of noise that cannot be recovered are left out; without any other secret, the session is aborted.
    """
    t = context.session.parameters.threshold
    groups: dict[tuple[int, ...], list[tuple[Secret, list[bytes]]]] = {}
    for dealer, kind in wanted:
        good = openings.get((dealer, kind), {})
        if len(good) < t:
            if kind >= _NOISE:
                continue
            cause = f"{len(good)} good shares of {context.name(dealer)}'s secret came, {t} are needed"
            raise Abort(cause, (), tuple(faults))
        places = {h: p for p, h in enumerate(graph.holders(dealer))}
        chosen = sorted(good)[:t]
        points = tuple(places[h] + 1 for h in chosen)
        groups.setdefault(points, []).append(((dealer, kind), [good[h] for h in chosen]))
    secrets: dict[Secret, bytes] = {}
    for points, rows in groups.items():
        for first in range(0, len(rows), _BATCH):
            batch = rows[first : first + _BATCH]
            try:
                combined = shamir.combine([row for _, row in batch], points)
                secrets |= {wanted: found for (wanted, _), found in zip(batch, combined, strict=True)}
            except Invalid:
                for (dealer, kind), row in batch:
                    try:
                        secrets[dealer, kind] = shamir.combine([row], points)[0]
                    except Invalid:
                        if kind < _NOISE:
                            raise _blamed(context, dealer, "secret", faults) from None
    return secrets


def _blamed(context: ServerContext, dealer: int, what: str, faults: list[Fault]) -> Abort:
    """Shares that were all committed to and do not fit are their dealer's doing."""
    if context.session.signed:
        cause = f"the committed shares of {context.name(dealer)} do not give the {what} it announced"
        return Abort(cause, (context.name(dealer),), tuple(faults))
    cause = f"the shares of {context.name(dealer)}'s {what} do not fit: somebody's are wrong"
    return Abort(cause, (), tuple(faults))


def _check_enough(context: ServerContext, present: Mapping[int, Any], did: str, faults: list[Fault]) -> None:
    least = context.session.min_included
    if len(present) < least:
        raise Abort(f"{len(present)} clients {did}, at least {least} must be included", (), tuple(faults))


# --------------------------------------------------------------------------------------- legal moves

_CLIENT_MOVES: dict[tuple[type, type], Callable[..., Any]] = {
    (AwaitStart, Started): advertise_keys,
    (AwaitRoster, Roster): share_keys,
    (AwaitShares, Shares): open_shares,
    (AwaitInput, Input): mask_input,
}
CLIENT_MOVES = {
    False: _CLIENT_MOVES | {(AwaitSurvivors, Survivors): reveal_unsigned},
    True: _CLIENT_MOVES | {(AwaitSurvivors, Survivors): sign_survivors, (AwaitQuorum, Quorum): reveal},
}
"""Whether the model is signed -> what a client may do."""

SERVER_MOVES: dict[tuple[type, type], Callable[..., None]] = {
    (AwaitKeys, Advertise): accept_keys,
    (AwaitDealings, Dealt): accept_dealing,
    (AwaitMasked, Masked): accept_masked,
    (AwaitSignatures, Signed): accept_signature,
    (AwaitReveals, Revealed): accept_reveal,
}
SERVER_CLOSES: dict[type, Callable[..., Any]] = {
    AwaitKeys: publish_roster,
    AwaitDealings: forward_shares,
    AwaitMasked: ask_survivors,
    AwaitSignatures: pass_quorum,
    AwaitReveals: unmask,
}

_CLIENT_STAGES: dict[type, str] = {
    AwaitStart: "start", AwaitRoster: "roster", AwaitShares: "shares", AwaitInput: "input",
    AwaitSurvivors: "survivors", AwaitQuorum: "quorum", Finished: "finished",
}  # fmt: skip
_SERVER_STAGES: dict[type, str] = {
    AwaitKeys: "keys", AwaitDealings: "shares", AwaitMasked: "masked", AwaitSignatures: "signatures",
    AwaitReveals: "reveals", Finished: "finished",
}  # fmt: skip

_CLIENT_RULES = {
    signed: Rules(moves, _CLIENT_STAGES, _CODEC, Stop, _limit_down, Finished)
    for signed, moves in CLIENT_MOVES.items()
}


def _server_rules(signed: bool) -> ServerRules:
    return ServerRules(
        SERVER_MOVES, _SERVER_STAGES, _CODEC, Stop, _limit_up, Finished, SERVER_CLOSES, Masked,
        Quorum if signed else Survivors,
    )  # fmt: skip


def client(
    session: Session, index: int, identity: Identity, policy: Policy, rng: Rng, journal: Any,
    expand: prg.Expand, _: Any, snapshot: tuple[bytes | None, bytes | None] | None = None,
) -> ClientMachine:  # fmt: skip
    """A client machine; see `Session.client`."""
    context, rules = (
        ClientContext(session, index, identity, policy, rng, expand),
        _CLIENT_RULES[session.signed],
    )
    return ClientMachine(session, index, rules, context, AwaitStart(), identity.public, journal, snapshot)


def server(
    session: Session, rng: Rng, journal: Any, expand: prg.Expand,
    snapshot: tuple[bytes | None, bytes | None] | None = None,
) -> ServerMachine:  # fmt: skip
    """The server machine; see `Session.server`."""
    seed = b"" if session.complete else rng(32)
    context, rules = ServerContext(session, expand), _server_rules(session.signed)
    return ServerMachine(session, rules, context, AwaitKeys(seed), journal, snapshot)
