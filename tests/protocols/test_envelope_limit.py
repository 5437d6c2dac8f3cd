"""What a transport may rely on: no envelope is longer than the session says; a retry is the same cohort."""

from __future__ import annotations

import pytest

from protocols.graph import SECAGG, SECAGG_PLUS, THREAT_MODELS
from protocols.machine import Aggregate, Input, Received, StageClosed, Started
from protocols.session import Session
from protocols.wire import from_bytes_checked, to_bytes
from secagg.keys import Identity
from secagg.randomness import seeded


def session(n: int, **agreed: object) -> tuple[Session, dict[str, Identity]]:
    names = [f"a hospital with a name of some length, number {i}" for i in range(n)]
    identities = {name: Identity.generate(seeded(name.encode())) for name in names}
    return Session({name: i.public for name, i in identities.items()}, 40, 1000, **agreed), identities


@pytest.mark.parametrize(
    ("protocol", "model", "n"),
    [*((SECAGG, model, n) for model in THREAT_MODELS for n in (3, 30)),
     *((SECAGG_PLUS, model, 60) for model in THREAT_MODELS[:2])],
)  # fmt: skip
def test_no_envelope_is_longer_than_the_session_says(protocol: str, model: str, n: int) -> None:
    made, identities = session(n, protocol=protocol, threat_model=model, corrupted=0.05, dropout=0.05)
    limit, longest = made.max_envelope_bytes, 0
    server, clients = made.server(), {name: made.client(name, i) for name, i in identities.items()}
    up = [e for c in clients.values() for v in (Started(), Input([1] * 40)) for e in c.handle(v)]
    while server.result is None:
        stage, down = server.stage, []
        for sent in up:
            data = to_bytes(sent)
            longest = max(longest, len(data))
            down += server.handle(Received(from_bytes_checked(data, limit)))
        down += server.handle(StageClosed(stage))
        up = []
        for sent in down:
            data = to_bytes(sent)
            longest = max(longest, len(data))
            up += clients[sent.to].handle(Received(from_bytes_checked(data, limit)))
    assert isinstance(server.result, Aggregate)
    assert limit / 4 < longest + 1024 <= limit + 1024, "a limit, and not far from what is really sent"


def test_a_retry_is_the_same_cohort_and_nothing_else_is() -> None:
    made, _ = session(5, round=3)
    again, _ = session(5, round=3, attempt=1)
    assert made.hash != again.hash
    assert made.cohort_hash == again.cohort_hash
    others = [session(4, round=3), session(5, round=4), session(5, round=3, model_hash=bytes(31) + b"m")]
    others += [session(5, round=3, threat_model="malicious"), session(5, round=3, task="other")]
    assert len({made.cohort_hash, *(other.cohort_hash for other, _ in others)}) == 6
