"""Attack: run an answered round again without one client; the two sums differ by its vector.

Stopped by: the journal, which knows for each identity and task the last round it answered. A round that
ended before any reveal may be tried again, under a higher attempt number.
"""

import pytest

from protocols.errors import Aborted, AlreadyAnswered, LocalError
from protocols.machine import Aggregate, Answered, Input, Started
from protocols.session import Session


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


def test_two_cohorts_side_by_side_get_one_answer(play, any_model):
    """Both sessions are begun before either is answered: the journal decides at the reveal."""
    first = play(threat_model=any_model)
    fewer = play(names=tuple(first.clients)[1:], threat_model=any_model, attempt=1, journals=first.journals)
    last = "reveals"
    one, two = first.until(last), fewer.until(last)
    first.close_after(first.down(one))
    first.assert_exact()
    sent = fewer.down(two)
    assert {type(c.result) for c in fewer.clients.values()} == {Aborted}
    assert all("already answered" in c.result.cause for c in fewer.clients.values())
    fewer.close_after(sent)
    assert isinstance(fewer.server.result, Aborted)


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
def test_round_aborted_before_a_reveal_is_tried_again(play, kit, signed_model, until):
    first = play(threat_model=signed_model)
    down = first.until(until)
    first.down(down)
    first.close()  # nobody is heard
    assert isinstance(first.server.result, Aborted)
    assert first.server.result.retry
    again = play(threat_model=signed_model, attempt=1, journals=first.journals)
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
