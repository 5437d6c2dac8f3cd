"""Attack: run an answered round again without one client; the two sums differ by its vector.

Stopped by: the journal, which knows for each identity and task the last round it answered, and the last
for which it sent a vector and to which cohort. A round that ended before any reveal may be tried again by
the same cohort, under a higher attempt number.
"""

import pytest

from protocols.errors import Aborted, AlreadyAnswered, LocalError
from protocols.journal import MemoryJournal, SqliteJournal
from protocols.machine import Aggregate, Answered, Input, Started
from protocols.pairwise import Stop
from protocols.session import Session

NAMES = ("ada", "bob", "cyd", "dan", "eve", "fay", "gus", "hal")


def stores(folder):
    return {n: SqliteJournal(folder / n, bytes(32)) for n in NAMES}


@pytest.fixture(params=["memory", "sqlite"])
def journals(request, tmp_path):
    """One journal a client."""
    if request.param == "memory":
        yield {n: MemoryJournal() for n in NAMES}
        return
    made = stores(tmp_path)
    yield made
    for journal in made.values():
        journal.close()


def answered(play, model):
    cohort = play(threat_model=model)
    cohort.go_on(cohort.until("shares"))
    assert isinstance(cohort.server.result, Aggregate)
    return cohort


@pytest.mark.parametrize("attempt", [0, 1, 7])
def test_answered_round_is_refused_with_another_cohort(play, kit, any_model, attempt):
    first = answered(play, any_model)
    roster = {n: i.public for n, i in first.identities.items() if n != "ada"}
    again = Session(
        roster, 5, 1000, threat_model=any_model, dropout=0.25, attempt=attempt
    )  # fmt: skip
    for name in roster:
        with pytest.raises(AlreadyAnswered, match="already answered"):
            again.client(name, first.identities[name], journal=first.journals[name])


def test_earlier_round_is_refused_and_the_next_is_not(play, any_model):
    first = play(threat_model=any_model, round=5)
    first.go_on(first.until("shares"))
    for earlier in (0, 4, 5):
        with pytest.raises(AlreadyAnswered):
            play(threat_model=any_model, round=earlier, attempt=1, journals=first.journals)
    following = play(threat_model=any_model, round=6, journals=first.journals)
    following.go_on(following.until("shares"))
    following.assert_exact()
    other_task = play(threat_model=any_model, task="another", journals=first.journals)
    other_task.go_on(other_task.until("shares"))
    other_task.assert_exact()


def test_two_cohorts_side_by_side_get_one_vector(play, any_model, journals):
    """Both sessions are begun before either is masked: the journal decides at the vector."""
    first = play(threat_model=any_model, journals=journals)
    fewer = play(names=tuple(first.clients)[1:], threat_model=any_model, attempt=1, journals=journals)
    one = first.until("reveals")
    two = fewer.until("masked")
    sent = fewer.down(two)
    assert_refused_unmasked(fewer, sent, fewer.clients)
    fewer.close_after(sent)
    assert isinstance(fewer.server.result, Aborted)
    first.close_after(first.down(one))
    assert first.assert_exact().included == tuple(first.clients)


def test_two_attempts_side_by_side_get_one_answer(play, any_model, journals):
    """The same cohort may mask twice, but the journal decides at the reveal."""
    first = play(threat_model=any_model, journals=journals)
    again = play(threat_model=any_model, attempt=1, journals=journals)
    last = "reveals"
    one, two = first.until(last), again.until(last)
    assert again.server.stage == last
    first.close_after(first.down(one))
    first.assert_exact()
    sent = again.down(two)
    assert {type(c.result) for c in again.clients.values()} == {Aborted}
    assert all("already answered" in c.result.cause for c in again.clients.values())
    again.close_after(sent)
    assert isinstance(again.server.result, Aborted)


def assert_refused_unmasked(cohort, sent, names):
    """These have sent no vector, and stopped because their journals know of one."""
    assert not [e for e in sent if len(e.frame) and e.sender in names]
    for name in names:
        result = cohort.clients[name].result
        assert isinstance(result, Aborted), result
        assert "a vector was already sent for round 0" in result.cause
        assert result.culprits == ()
        assert not result.retry
        assert cohort.clients[name].resend() == []


def test_those_who_were_told_to_stop_go_to_no_second_cohort(play, kit, any_model, journals):
    """A threshold answers for all, the rest is told to stop and asked again in a cohort of its own.

    The first sum opens without the rest, the second would be theirs alone: the difference is the others'.
    """
    agreed = {"threat_model": any_model, "corrupted": 0.125}
    cohort = play(journals=journals, **agreed)
    assert cohort.session.parameters.threshold == 5
    asking, rest = ("ada", "bob", "cyd", "dan", "hal"), ("eve", "fay", "gus")  # hal is corrupted
    down = cohort.until("reveals")
    answers = cohort.down(e for e in down if e.to in asking)
    for name in rest:
        cohort.tell(name, Stop())
        assert cohort.clients[name].result.retry  # it has revealed nothing
    cohort.close_after(answers)
    assert cohort.assert_exact().included == kit.names  # the server has the sum over all eight
    alone = (*rest, "hal")
    for attempt, names in ((1, alone), (2, (*rest, "dan", "hal"))):
        renewed = journals | {name: MemoryJournal() for name in names if name not in rest}
        second = play(names=names, attempt=attempt, journals=renewed, **agreed)
        sent = second.start()
        while second.server.result is None:
            down = second.close_after(sent)
            sent = second.down(down)
            assert not [e for e in sent if len(e.frame) and e.sender in rest]
        assert isinstance(second.server.result, Aborted)
        assert_refused_unmasked(second, sent, rest)
    control = play(names=alone, journals={n: MemoryJournal() for n in alone}, **agreed)
    control.go_on(control.until("shares"))
    control.assert_exact()  # without what their journals know it would have worked


def test_vector_that_was_sent_is_known_to_the_next_process(play, any_model, tmp_path):
    """The client ends after its vector, never asked: its file tells the next one."""
    first = play(threat_model=any_model, journals=stores(tmp_path))
    first.down(first.until("masked"))
    for journal in first.journals.values():
        journal.close()
    again = stores(tmp_path)
    fewer = play(names=tuple(again)[1:], threat_model=any_model, attempt=1, journals=again)
    sent = fewer.down(fewer.until("masked"))
    assert_refused_unmasked(fewer, sent, fewer.clients)
    same = play(threat_model=any_model, attempt=2, journals=again)
    same.go_on(same.until("shares"))
    assert same.assert_exact().included == tuple(again)
    for journal in again.values():
        journal.close()


def test_earlier_round_gets_no_vector_after_a_later_one_did(play, any_model, journals):
    """Begun before the later round was masked, so that only the journal can tell."""
    late = play(threat_model=any_model, round=4, journals=journals)
    down = late.until("masked")
    following = play(threat_model=any_model, round=5, journals=journals)
    masked = following.down(following.until("masked"))
    assert len([e for e in masked if len(e.frame)]) == len(following.clients)
    sent = late.down(down)
    assert not [e for e in sent if len(e.frame)]
    assert all("already sent for round 5" in c.result.cause for c in late.clients.values())
    following.go_on(following.close_after(masked))
    following.assert_exact()


def test_input_is_refused_once_the_round_is_answered_elsewhere(play, any_model):
    first = play(threat_model=any_model)
    fewer = play(names=tuple(first.clients)[1:], threat_model=any_model, attempt=1, journals=first.journals)
    for client in fewer.clients.values():
        client.handle(Started())
    first.go_on(first.until("shares"))
    for name, client in fewer.clients.items():
        with pytest.raises(AlreadyAnswered):
            client.handle(Input(fewer.vectors[name]))


@pytest.mark.parametrize("until", ["shares", "masked", "signatures"])
def test_round_aborted_before_a_reveal_is_tried_again(play, kit, signed_model, until, journals):
    first = play(threat_model=signed_model, journals=journals)
    down = first.until(until)
    first.down(down)
    first.close()  # nobody is heard
    assert isinstance(first.server.result, Aborted)
    assert first.server.result.retry
    again = play(threat_model=signed_model, attempt=1, journals=journals)
    again.go_on(again.until("shares"))
    assert again.assert_exact().included == kit.names


def test_same_attempt_is_refused(play, any_model):
    first = play(threat_model=any_model)
    first.until("shares")
    with pytest.raises(LocalError, match="higher attempt"):
        play(threat_model=any_model, journals=first.journals)


def test_round_aborted_after_a_reveal_counts_as_answered(play, any_model):
    first = play(threat_model=any_model)
    down = first.until("reveals")
    for envelope in first.down(down)[:2]:
        first.up([envelope])
    first.close()
    assert isinstance(first.server.result, Aborted)
    assert first.server.result.revealed
    assert not first.server.result.retry
    assert {type(c.result) for c in first.clients.values()} == {Answered}
    with pytest.raises(AlreadyAnswered):
        play(threat_model=any_model, attempt=1, journals=first.journals)
