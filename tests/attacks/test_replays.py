"""Attack: deliver messages of another round, session, attempt or model.

Worst case: every client's random generator repeats itself, so that keys and seeds of both sessions are
the same and only the session hash tells them apart. Stopped by: the hash in the envelope, in every
signature, in every derived key and in the associated data of every box.
"""

import numpy as np
import pytest
from msgspec.structs import replace

from protocols.errors import Aborted
from protocols.machine import Received
from protocols.pairwise import Advertise, Roster, Shares, Signed
from protocols.wire import SERVER

OTHERS = {
    "round": {"round": 1},
    "task": {"task": "another"},
    "attempt": {"attempt": 1},
    "model": {"model_hash": bytes(31) + b"\1"},
    "bound": {"bound": 999},
}
STAGES = ("keys", "shares", "masked", "signatures", "reveals")


def recorded(play, model, **other):
    """All messages of a whole run in another session: stage -> down, stage -> up."""
    cohort = play(threat_model=model, **other)
    up, downs, ups = cohort.start(), {}, {}
    while cohort.server.result is None:
        stage = cohort.server.stage
        ups[stage] = {e.sender: e for e in up}
        sent = cohort.close_after(up)
        downs[stage] = {e.to: e for e in sent}
        up = cohort.down(sent)
    cohort.assert_exact()
    return ups, downs


@pytest.mark.parametrize("other", OTHERS)
def test_replayed_at_every_stage_as_they_are(play, any_model, other):
    """Before each honest message comes its double from the other session: without effect but a fault."""
    ups, downs = recorded(play, any_model, **OTHERS[other])
    cohort = play(threat_model=any_model)
    up = cohort.start()
    while cohort.server.result is None:
        stage = cohort.server.stage
        assert cohort.up(ups[stage].values()) == []
        down = cohort.close_after(up)
        assert cohort.down(downs[stage].values()) == []
        up = cohort.down(down)
    result = cohort.assert_exact()
    assert len(result.included) == len(cohort.clients)
    named = [f for f in result.faults if "another session" in f.cause]
    assert len(named) == len(ups) * len(cohort.clients)
    for client in cohort.clients.values():
        assert {(f.culprits, f.cause) for f in client.faults} == {
            ((SERVER,), "a message of another session was ignored")
        }


@pytest.mark.parametrize("other", ["round", "attempt", "model"])
@pytest.mark.parametrize("stage", ["keys", "shares", "signatures"])
def test_server_replays_under_a_rewritten_header(play, kit, signed_model, other, stage):
    """The server puts this session's hash on its message of the other: the client stops.

    Not after "masked": the question alone is the same in every session.
    """
    _, downs = recorded(play, signed_model, **OTHERS[other])
    cohort = play(threat_model=signed_model)
    following = STAGES[STAGES.index(stage) + 1]
    cohort.until(following)
    old = [kit.changed(e, session=cohort.session.hash) for e in downs[stage].values()]
    if stage == "keys":  # even the hash inside the advertised keys
        old = [kit.changed(e, renamed(cohort, e.to, kit.read(e))) for e in old]
    sent = cohort.down(old)
    for client in cohort.clients.values():
        assert isinstance(client.result, Aborted)
    assert {type(kit.read(e)).__name__ for e in sent} == {"Stop"}
    assert not any(len(e.frame) for e in sent)


def renamed(cohort, to: str, roster: Roster) -> Roster:
    keys = [replace(a, session=cohort.session.hash) for a in roster.advertised]
    return replace(roster, advertised=keys, echo=cohort.clients[to]._state.sent)


def test_boxes_of_another_session_do_not_open(play, kit, any_model):
    """Same keys, same places, same dealers: only the session hash differs."""
    _, downs = recorded(play, any_model, round=1)
    cohort = play(threat_model=any_model)
    cohort.until("masked")
    for name, client in cohort.clients.items():
        old = kit.read(downs["shares"][name])
        assert isinstance(old, Shares)
        sent = client.handle(Received(cohort.say(name, old)))
        assert isinstance(client.result, Aborted)
        assert "1 of 8 boxes of shares opened" in client.result.cause
        cohort.assert_nothing_masked(sent)


def test_client_replays_its_keys_under_a_rewritten_header(play, kit, signed_model):
    ups, _ = recorded(play, signed_model, round=1)
    cohort = play(threat_model=signed_model)
    keys = kit.read(ups["keys"]["bob"])
    old = [keys, Advertise(cohort.session.hash, keys.channel, keys.mask, keys.signature)]
    for message, because in zip(old, ("another session", "does not verify"), strict=True):
        again = play(threat_model=signed_model)
        again.up([again.say(SERVER, message, sender="bob")])
        assert because in again.server.faults[-1].cause
        assert again.server.faults[-1].culprits == ("bob",)
        again.close_after([e for e in again.start() if e.sender != "bob"])
        assert "bob" not in again.server.waiting_for


def test_signature_of_another_session_does_not_count(play, kit, signed_model):
    ups, _ = recorded(play, signed_model, round=1)
    cohort = play(threat_model=signed_model)
    down = cohort.until("signatures")
    old = kit.read(ups["signatures"]["bob"])
    assert isinstance(old, Signed)
    cohort.up([cohort.say(SERVER, old, sender="bob")])
    up = [e for e in cohort.down(down) if e.sender != "bob"]
    cohort.go_on(cohort.close_after(up))
    result = cohort.assert_exact()
    assert ("bob",) in {f.culprits for f in result.faults}
    assert "bob" in result.included  # its vector was already in the sum: named, not dropped


def test_pads_of_two_sessions_differ_though_keys_repeat(play, kit):
    """One vector under the same keys in two sessions: the difference of the two does not vanish."""
    first, second = (recorded(play, "honest-but-curious", round=r)[0]["masked"]["bob"] for r in (1, 2))
    assert bytes(first.frame) != bytes(second.frame)
    ring = play().session.ring
    difference = ring.unpack(first.frame, 5) - ring.unpack(second.frame, 5)
    assert np.count_nonzero(difference) >= 4


@pytest.mark.parametrize("at", STAGES)
def test_messages_of_earlier_stages_have_no_effect(play, any_model, at):
    cohort = play(threat_model=any_model)
    up, seen = cohort.start(), []
    while cohort.server.result is None:
        if cohort.server.stage == at:
            before = cohort.server._dump()
            assert cohort.up(seen) == []
            assert cohort.server._dump() == before
        seen += up
        up = cohort.down(cohort.close_after(up))
    result = cohort.assert_exact()
    assert result.faults == ()
    assert len(result.included) == len(cohort.clients)
