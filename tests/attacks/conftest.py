"""The stage on which attacks are played: real machines, and a driver that a test can bend.

`Play` is a cohort of real clients and a real server. An attack either changes what passes between them
(`down` and `up` take any envelopes) or plays the server itself, with `say`. Nothing here is a mock: what
a deviating party sends is made from the library's own messages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from msgspec import structs

from protocols import pairwise
from protocols.errors import Aborted
from protocols.journal import MemoryJournal
from protocols.machine import Aggregate, Input, Received, StageClosed, Started
from protocols.pairwise import Dealt, Message, Quorum, Shares, Signed, Survivors
from protocols.session import Session
from protocols.wire import SERVER, Envelope, bitmap
from secagg import box
from secagg.keys import Identity
from secagg.randomness import seeded

NAMES = ("ada", "bob", "cyd", "dan", "eve", "fay", "gus", "hal")
DIM, BOUND = 5, 1000


class Play:
    """Real clients and a real server of one session, and the messages between them.

    `told` gives single clients another session than the rest, `serving` the server another than the
    clients. `journals` outlive a play: pass those of an earlier one for a second session.
    """

    def __init__(
        self, *, names: tuple[str, ...] = NAMES, told: Mapping[str, Mapping[str, Any]] | None = None,
        serving: Mapping[str, Any] | None = None, journals: dict[str, Any] | None = None, seed: str = "",
        policy: Any = None, **agreed: Any,
    ) -> None:  # fmt: skip
        self.identities = {n: Identity.generate(seeded(b"identity", n.encode())) for n in names}
        agreed = {"dim": DIM, "bound": BOUND, "dropout": 0.25} | agreed
        roster = {n: i.public for n, i in self.identities.items()}
        self.session = Session(roster, **agreed)
        self.told = {n: Session(roster, **agreed | dict((told or {}).get(n, {}))) for n in names}
        self.vectors = {
            n: np.frombuffer(seeded(b"vector", n.encode())(8 * DIM), "<u8") % BOUND for n in names
        }
        self.journals = {n: MemoryJournal() for n in names} if journals is None else journals
        ours = Session(roster, **agreed | dict(serving or {}))
        self.server = ours.server(rng=seeded(b"server", seed.encode()))
        self.clients = {n: self._client(n, seed, policy) for n in names}

    def _client(self, name: str, seed: str, policy: Any) -> Any:
        rng, journal = seeded(name.encode(), seed.encode()), self.journals[name]
        return self.told[name].client(name, self.identities[name], rng=rng, journal=journal, policy=policy)

    # ------------------------------------------------------------------------------ honest delivery

    def start(self, names: Iterable[str] | None = None) -> list[Envelope]:
        """Every client begins and is given its vector."""
        out = []
        for name in self.clients if names is None else names:
            out += self.clients[name].handle(Started()) + self.clients[name].handle(Input(self.vectors[name]))
        return out

    def up(self, envelopes: Iterable[Envelope]) -> list[Envelope]:
        """Deliver to the server; what it sends."""
        return [out for e in envelopes for out in self.server.handle(Received(e))]

    def close(self) -> list[Envelope]:
        """The server waits no longer."""
        return self.server.handle(StageClosed(self.server.stage))

    def down(self, envelopes: Iterable[Envelope]) -> list[Envelope]:
        """Deliver to the clients; what they send."""
        return [out for e in envelopes for out in self.clients[e.to].handle(Received(e))]

    def until(self, stage: str, silent: Mapping[str, str] | None = None) -> list[Envelope]:
        """Run honestly until the server is at `stage`; what it has sent and nobody has yet received.

        `silent` maps a client to the stage in which, and after which, nothing comes from it.
        """
        return self.go_on(self.close_after(self.start(), silent), stage, silent)

    def go_on(
        self, down: list[Envelope], stage: str | None = None, silent: Mapping[str, str] | None = None
    ) -> list[Envelope]:  # fmt: skip
        """Run honestly from `down` until the server is at `stage`, or to the end."""
        while self.server.result is None and self.server.stage != stage:
            down = self.close_after(self.down(down), silent)
        return down

    def close_after(self, up: list[Envelope], silent: Mapping[str, str] | None = None) -> list[Envelope]:
        """Deliver what is not silenced, then close the stage if it has not closed itself."""
        now = self.server.stage
        gone = set()
        for name, since in (silent or {}).items():
            if STAGES.index(since) <= STAGES.index(now):
                gone.add(name)
        return self.up(e for e in up if e.sender not in gone) + self.server.handle(StageClosed(now))

    # ---------------------------------------------------------------------------------- deviations

    def say(self, to: str, message: Message, *, sender: str = SERVER, frame: Any = b"") -> Envelope:
        """An envelope that says `message`, under the session the recipient believes in."""
        name = to if to in self.told else sender
        return Envelope(self.told[name].hash, sender, to, pairwise._CODEC.encode(message), frame)

    def tell(self, to: str, message: Message) -> list[Message]:
        """Say `message` to a client as the server; what it answers."""
        return [read(e) for e in self.clients[to].handle(Received(self.say(to, message)))]

    def question(self, names: Iterable[str]) -> Survivors:
        """Who is in the sum?"""
        return Survivors(self.bits(names))

    def bits(self, names: Iterable[str]) -> bytes:
        """Names as a bitmap over the cohort."""
        return bitmap((self.place(n) for n in names), len(self.clients))

    def place(self, name: str) -> int:
        """A client's place in the roster."""
        return self.session.positions[name]

    def signed_by(self, names: Iterable[str], included: Iterable[str], setup: bytes) -> dict[str, bytes]:
        """Signatures over a survivor set, made with the identities of corrupted clients."""
        statement = pairwise._signed_survivors(setup, self.bits(included))
        return {name: self.identities[name].sign(statement) for name in names}

    def quorum(self, signatures: Mapping[str, bytes]) -> Quorum:
        """The signatures, as the server would show them."""
        return Quorum(self.bits(signatures), b"".join(signatures[n] for n in sorted(signatures)))

    def ask(self, names: Iterable[str], included: Iterable[str]) -> dict[str, bytes]:
        """Ask each of `names` the question; the signatures of those who sign."""
        included = tuple(included)
        found = {}
        for name in names:
            for answer in self.tell(name, self.question(included)):
                if isinstance(answer, Signed):
                    found[name] = answer.signature
        return found

    def redeal(
        self, dealt: Envelope, change: Callable[[str, bytes], bytes], *, recommit: bool = True,
        seed_commitments: bytes | None = None,
    ) -> Envelope:  # fmt: skip
        """A dealer's message again, with `change(holder, both openings)` in each box.

        The dealer has sent `dealt` and waits for shares, so its channel keys are at hand.
        """
        message, dealer = read(dealt), self.place(dealt.sender)
        session, names = self.session, self.session.names
        state = self.clients[dealt.sender]._state
        size = pairwise._box_bytes(session)
        boxes, pairs = [], []
        holders = sorted([*state.channels, dealer])
        for i, holder in enumerate(holders):
            pair = message.commitments[i * 64 : (i + 1) * 64] if session.signed else b""
            if holder != dealer:
                at = len(boxes) * size
                key, associated = state.channels[holder], pairwise._associated(session, dealer, holder)
                before = box.unseal(key, message.boxes[at : at + size], associated)
                after = change(names[holder], before)
                boxes.append(box.seal(key, after, associated, seeded(b"nonce", at.to_bytes(4, "big"))))
                if session.signed and recommit and after != before:
                    half = len(after) // 2
                    pair = b"".join(
                        pairwise._share_commitment(session, dealer, holder, kind, opening)
                        for kind, opening in enumerate((after[:half], after[half:]))
                    )
            pairs.append(pair)
        commitment = message.seed_commitments if seed_commitments is None else seed_commitments
        return changed(
            dealt,
            structs.replace(
                message, seed_commitments=commitment, boxes=b"".join(boxes), commitments=b"".join(pairs)
            ),
        )

    # ------------------------------------------------------------------------------------ judgement

    def assert_exact(self) -> Aggregate:
        """The server's result is the exact sum of those it says it included."""
        result = self.server.result
        assert isinstance(result, Aggregate), result
        expected = sum(self.vectors[n].astype(object) for n in result.included)
        assert [int(v) for v in result.sum] == list(expected)
        return result

    def assert_nothing_masked(self, sent: Iterable[Envelope]) -> None:
        """No masked vector is among the messages, and no client has come to mask one."""
        assert not [e for e in sent if len(e.frame)]
        assert {c.stage for c in self.clients.values()} <= {"start", "roster", "shares", "input", "stopped"}


STAGES = ("keys", "shares", "masked", "signatures", "reveals", "finished", "stopped")


def read(envelope: Envelope) -> Any:
    """The message in an envelope."""
    return pairwise._CODEC.decode(envelope.body, 1 << 30)


def changed(envelope: Envelope, message: Any = None, **parts: Any) -> Envelope:
    """An envelope with another message or other header fields."""
    body = envelope.body if message is None else pairwise._CODEC.encode(message)
    return replace(envelope, body=body, **parts)


def assert_blames_server(client: Any, because: str) -> None:
    """The client has stopped for good, names the server alone, and says why."""
    assert isinstance(client.result, Aborted), client.result
    assert client.result.culprits == (SERVER,)
    assert because in client.result.cause
    assert not client.result.revealed


class Kit:
    """The functions above, for tests that are imported one by one."""

    read = staticmethod(read)
    changed = staticmethod(changed)
    assert_blames_server = staticmethod(assert_blames_server)
    names = NAMES
    Play = Play
    Shares = Shares
    received = staticmethod(Received)

    @staticmethod
    def is_dealt(envelope: Envelope) -> bool:
        """Whether it is a dealing."""
        return isinstance(read(envelope), Dealt)


@pytest.fixture
def kit() -> type[Kit]:
    """Read, change and judge messages."""
    return Kit


@pytest.fixture(params=["semi-malicious", "malicious"])
def signed_model(request: pytest.FixtureRequest) -> str:
    """The models in which the server may deviate."""
    return str(request.param)


@pytest.fixture(params=["honest-but-curious", "semi-malicious", "malicious"])
def any_model(request: pytest.FixtureRequest) -> str:
    """All three models."""
    return str(request.param)


@pytest.fixture
def play() -> type[Play]:
    """Makes a cohort: `play(threat_model=...)`."""
    return Play
