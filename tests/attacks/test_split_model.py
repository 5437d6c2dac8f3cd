"""Attack: give half of the cohort one model and half another, to tell the halves apart in the sum.

Each client hashes the model it was given into its session. Stopped before anything is masked, by an
honest server and by one that rewrites every session hash on its way.
"""

from dataclasses import replace

import pytest
from msgspec import structs

from protocols.errors import Aborted
from protocols.pairwise import Advertise, Dealt, Roster, _echo
from protocols.session import hash_model

ONE, OTHER = hash_model([1, 2, 3]), hash_model([1, 2, 4])
HALF = ("eve", "fay", "gus", "hal")


def split(play, model, half=HALF):
    return play(threat_model=model, model_hash=ONE, told={n: {"model_hash": OTHER} for n in half})


def test_honest_server_sees_two_hashes_and_stops(play, any_model):
    cohort = split(play, any_model)
    sent = cohort.start()
    down = cohort.close_after(sent)
    assert isinstance(cohort.server.result, Aborted)
    assert set(cohort.server.result.dropped) == set(HALF)
    assert cohort.server.result.retry
    sent += cohort.down(down)
    cohort.assert_nothing_masked(sent)


def test_the_few_with_another_model_are_left_out(play, kit, any_model):
    cohort = split(play, any_model, half=("hal",))
    sent = cohort.start()
    cohort.go_on(cohort.close_after(sent))
    result = cohort.assert_exact()
    assert result.included == kit.names[:7]
    assert "another session (other model, round or parameters)" in result.dropped["hal"].cause


def rewriting(cohort, kit, *, inside: bool):
    """Run to the end, every message under the hash its reader believes in; also inside, if asked."""
    up, sent, echoes = cohort.start(), [], {}
    sent += up
    while cohort.server.result is None:
        changed = []
        for envelope in up:
            message = kit.read(envelope)
            if inside and isinstance(message, Advertise):
                message = structs.replace(message, session=cohort.session.hash)
            if inside and isinstance(message, Dealt):
                message = structs.replace(message, echo=echoes[envelope.sender])
            changed.append(replace(kit.changed(envelope, message), session=cohort.session.hash))
        down = []
        for envelope in cohort.close_after(changed):
            message, session = kit.read(envelope), cohort.told[envelope.to].hash
            if inside and isinstance(message, Roster):
                echoes[envelope.to] = _echo(message)
                keys = [structs.replace(a, session=session) for a in message.advertised]
                own = cohort.clients[envelope.to]._state.sent
                message = structs.replace(message, advertised=keys, echo=own)
            down.append(replace(kit.changed(envelope, message), session=session))
        up = cohort.down(down)
        sent += up
    return sent


@pytest.mark.parametrize("inside", [False, True], ids=["headers", "headers and keys"])
def test_rewriting_server_gets_no_masked_vector(play, kit, any_model, inside):
    cohort = split(play, any_model)
    sent = rewriting(cohort, kit, inside=inside)
    assert isinstance(cohort.server.result, Aborted)
    assert not cohort.server.result.revealed
    cohort.assert_nothing_masked(sent)


def checking_nothing(cohort, kit, *, inside: bool):
    """The server passes on everybody's keys itself, whatever they are signed for, and every box."""
    sent = cohort.start()
    keys = {e.sender: kit.read(e) for e in sent}
    for name in kit.names:
        session = cohort.told[name].hash
        others = [keys[n] for n in kit.names if n != name]
        if inside:
            others = [structs.replace(a, session=session) for a in others]
        roster = Roster(cohort.clients[name]._state.sent, b"", b"\x7f", others)
        sent += cohort.clients[name].handle(kit.received(cohort.say(name, roster)))
    boxes = {e.sender: kit.read(e).boxes for e in sent if kit.is_dealt(e)}
    size = len(boxes.get("ada", b"")) // 7
    for i, name in enumerate(kit.names if boxes else ()):
        theirs = b"".join(
            boxes[dealer][(i - (j < i)) * size :][:size] for j, dealer in enumerate(kit.names) if j != i
        )
        sent += cohort.clients[name].handle(kit.received(cohort.say(name, kit.Shares(b"\xff", theirs, b""))))
    return sent


@pytest.mark.parametrize("inside", [False, True], ids=["headers", "headers and keys"])
def test_server_that_checks_nothing_gets_no_masked_vector(play, kit, any_model, inside):
    cohort = split(play, any_model)
    sent = checking_nothing(cohort, kit, inside=inside)
    cohort.assert_nothing_masked(sent)
    stage = "shares" if inside and not cohort.session.signed else "roster"
    for client in cohort.clients.values():
        assert isinstance(client.result, Aborted)
        assert client.result.stage == stage  # unsigned keys can be rewritten; then the boxes tell


@pytest.mark.parametrize("agreed", [{"dropout": 0.6, "corrupted": 0.0}, {"threshold": 4}])
def test_low_threshold_does_not_let_halves_go_on(play, kit, agreed):
    told = {n: {"model_hash": OTHER} for n in HALF}
    cohort = play(threat_model="honest-but-curious", model_hash=ONE, told=told, **agreed)
    assert cohort.session.parameters.threshold <= 4
    cohort.assert_nothing_masked(checking_nothing(cohort, kit, inside=True))


def test_rewriting_is_not_what_stops_it(play, kit, any_model):
    """The control: with one model for all, the same rewriting server does reach the sum."""
    cohort = play(threat_model=any_model, model_hash=ONE)
    rewriting(cohort, kit, inside=True)
    assert cohort.assert_exact().included == kit.names
