"""Attack: the server runs a weaker session than the one agreed on, or agrees a weak one with the roster.

Stopped by: the session hash, which each client computes itself from what it was told out of band, and
each client's own Policy.
"""

from dataclasses import replace

import pytest
from msgspec import structs

from protocols.errors import Aborted, LocalError
from protocols.machine import Received
from protocols.pairwise import Advertise, Roster
from protocols.session import Policy, Session

AGREED = {"threat_model": "malicious", "corrupted": 0.13, "dropout": 0.0, "threshold": 6, "min_included": 7}
WEAKER = {
    "threat model": {"threat_model": "semi-malicious"},
    "no signatures": {"threat_model": "honest-but-curious"},
    "threshold": {"threshold": 5},
    "min_included": {"min_included": 6},
    "corrupted": {"corrupted": 0.3, "dropout": 0.0},
    "dropout": {"dropout": 0.25, "min_included": 7},
    "bound": {"bound": 999},
    "bits": {"bits": 32},
    "dim": {"dim": 6},
    "protocol": {"protocol": "secagg+", "threat_model": "semi-malicious"},
}


@pytest.mark.parametrize("weaker", WEAKER)
def test_server_with_a_weaker_session_gets_nothing(play, weaker):
    cohort = play(serving=WEAKER[weaker], **AGREED)
    sent = cohort.start()
    down = cohort.close_after(sent)
    assert isinstance(cohort.server.result, Aborted)
    assert {f.culprits for f in cohort.server.result.dropped.values()} == {(n,) for n in cohort.clients}
    assert all("another session" in f.cause for f in cohort.server.result.dropped.values())
    cohort.assert_nothing_masked(sent + cohort.down(down))


@pytest.mark.parametrize("weaker", WEAKER)
def test_server_that_rewrites_every_hash_gets_nothing(play, kit, weaker):
    """Both ways the header says what each side believes; the keys inside say what was signed."""
    cohort = play(serving=WEAKER[weaker], **AGREED)
    sent = cohort.start()
    up = [rewritten(e, kit, cohort.server.session) for e in sent]
    down = [down_again(e, kit, cohort) for e in cohort.close_after(up)]
    sent += cohort.down(down)
    cohort.assert_nothing_masked(sent)
    if cohort.server.session.signed:
        assert isinstance(cohort.server.result, Aborted)  # the signatures are over the agreed hash
    else:  # an unsigned roster does get out, and names the wrong session to its readers
        assert len(down) == len(cohort.clients)
        for client in cohort.clients.values():
            kit.assert_blames_server(client, "signature: expected 64 bytes")


def test_sparse_graph_where_the_complete_one_was_agreed(play):
    names = tuple(f"{i:02}" for i in range(52))
    cohort = play(
        names=names, threat_model="honest-but-curious", dropout=0.1, serving={"protocol": "secagg+"}
    )
    assert not cohort.server.session.complete
    sent = cohort.start()
    sent += cohort.down(cohort.close_after(sent))
    assert isinstance(cohort.server.result, Aborted)
    cohort.assert_nothing_masked(sent)


def test_graph_seed_where_none_belongs(play, kit, any_model):
    """A complete graph has no seed: the server cannot choose neighbours by sending one."""
    cohort = play(threat_model=any_model)
    for envelope in cohort.until("shares"):
        roster = kit.read(envelope)
        seeded = structs.replace(roster, graph_seed=bytes(32))
        cohort.down([kit.changed(envelope, seeded)])
        kit.assert_blames_server(cohort.clients[envelope.to], "graph seed: expected 0 bytes")


@pytest.mark.parametrize("count", range(1, 8))
def test_question_about_too_few_is_not_answered(play, kit, any_model, count):
    """A server that "lost" most of the cohort: each client counts for itself."""
    cohort = play(threat_model=any_model)
    stage = "signatures" if cohort.session.signed else "reveals"
    cohort.until(stage)
    least = cohort.session.min_included
    asked = kit.names[:count]
    for name in asked:
        answers = [type(m).__name__ for m in cohort.tell(name, cohort.question(asked))]
        assert answers == (
            ["Stop"] if count < least else ["Signed"] if cohort.session.signed else ["Revealed"]
        )
        if count < least:
            because = f"survivors: {count}, at least {least} must be included"
            kit.assert_blames_server(cohort.clients[name], because)


def test_question_below_a_clients_own_minimum_is_not_answered(play, kit, any_model):
    cohort = play(threat_model=any_model, policy=Policy(min_included=7))
    cohort.until("signatures" if cohort.session.signed else "reveals")
    assert cohort.session.min_included < 6
    assert [type(m).__name__ for m in cohort.tell("ada", cohort.question(kit.names[:6]))] == ["Stop"]
    result = cohort.clients["ada"].result
    assert isinstance(result, Aborted)
    assert result.culprits == ()  # the session allows it: nobody has done wrong
    assert result.cause == "6 are included, this client's policy wants 7"
    assert not result.revealed


def test_question_without_the_asked_client_is_not_answered(play, kit, any_model):
    """It would reveal the key of its own mask beside what others say of its seed."""
    cohort = play(threat_model=any_model)
    cohort.until("signatures" if cohort.session.signed else "reveals")
    assert [type(m).__name__ for m in cohort.tell("ada", cohort.question(kit.names[1:]))] == ["Stop"]
    kit.assert_blames_server(cohort.clients["ada"], "not among them")


def test_survivors_who_never_dealt_are_refused(play, kit, any_model):
    """A pad was never shared with them, so one would stay in the sum."""
    cohort = play(threat_model=any_model)
    stage = "signatures" if cohort.session.signed else "reveals"
    cohort.until(stage, {"hal": "shares"})
    assert [type(m).__name__ for m in cohort.tell("ada", cohort.question(kit.names))] == ["Stop"]
    kit.assert_blames_server(cohort.clients["ada"], "never dealt")


FLOORS = {
    "cohort": Policy(min_cohort=9),
    "corrupted fraction withstood": Policy(min_corrupted=0.2),
    "threat model": Policy(threat_models=("malicious",)),
}


@pytest.mark.parametrize("floor", FLOORS)
def test_policy_refuses_a_weak_session_before_a_key_is_made(play, floor):
    with pytest.raises(LocalError, match=f"policy: {floor}"):
        play(threat_model="semi-malicious", policy=FLOORS[floor])


def test_hash_tells_every_weaker_session_apart(play):
    agreed = play(**AGREED).session
    hashes = {play(**AGREED | weaker).session.hash for weaker in WEAKER.values()} | {agreed.hash}
    assert len(hashes) == len(WEAKER) + 1


def down_again(envelope, kit, cohort):
    """Under the reader's own hash, echoing what the reader really sent."""
    message = kit.read(envelope)
    if isinstance(message, Roster):
        message = structs.replace(message, echo=cohort.clients[envelope.to]._state.sent)
    return kit.changed(envelope, message, session=cohort.session.hash)


def rewritten(envelope, kit, session: Session):
    message = kit.read(envelope)
    if isinstance(message, Advertise):
        signature = message.signature if session.signed else b""
        message = Advertise(session.hash, message.channel, message.mask, signature)
    return replace(kit.changed(envelope, message), session=session.hash)


def test_rewriting_is_what_the_server_would_have_to_do(play, kit):
    """The control: a server of the same session, rewritten in the same way, does reach the end."""
    cohort = play(**AGREED)
    up = [rewritten(e, kit, cohort.session) for e in cohort.start()]
    down = cohort.close_after(up)
    while cohort.server.result is None:
        down = cohort.close_after([e for d in down for e in cohort.clients[d.to].handle(Received(d))])
    assert cohort.assert_exact().included == kit.names
