"""Attack: have two survivor sets signed, so that each opens a different sum.

Stopped by: a client signs once, and a quorum is more than half of the cohort and its corrupted together.
"""

import pytest

from protocols.pairwise import Revealed, Signed

NINE = tuple("abcdefghi")


def test_a_client_signs_only_one_set(play, kit, signed_model):
    cohort = play(threat_model=signed_model)
    cohort.until("signatures")
    assert isinstance(cohort.tell("bob", cohort.question(kit.names))[0], Signed)
    answer = cohort.tell("bob", cohort.question(kit.names[1:]))
    assert not any(isinstance(m, Signed) for m in answer)
    kit.assert_blames_server(cohort.clients["bob"], "not expected")


def test_the_same_question_again_gives_the_same_signature(play, kit, signed_model):
    cohort = play(threat_model=signed_model)
    cohort.until("signatures")
    assert cohort.tell("bob", cohort.question(kit.names)) == cohort.tell("bob", cohort.question(kit.names))


@pytest.mark.parametrize("corrupted", [0.12, 0.25, 0.34])
@pytest.mark.parametrize("split", range(9))
def test_no_two_quorums_whatever_the_corrupted_sign(play, signed_model, corrupted, split):
    cohort = play(names=NINE, threat_model=signed_model, corrupted=corrupted, dropout=0.0)
    bad = NINE[9 - cohort.session.parameters.corrupted :]
    honest = NINE[: len(NINE) - len(bad)]
    cohort.until("signatures")
    setup = cohort.clients["a"]._state.setup
    answers = []
    for asked, included in ((honest[:split], NINE), (honest[split:], (*honest[split:], *bad))):
        signatures = cohort.ask(asked, included) | cohort.signed_by(bad, included, setup)
        shown = cohort.quorum(signatures)
        answers.append([n for n in asked if any(isinstance(m, Revealed) for m in cohort.tell(n, shown))])
    assert [] in answers
