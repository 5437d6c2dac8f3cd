"""Attack: collect t shares of a peer's seed and t of its mask key, which together open its vector.

The server shows the cohort different survivor sets: the victim is in one and not in the other.
Stopped by: one signature and one answer a client, a quorum over the whole set, one share a dealer.
"""

from collections import defaultdict

from protocols import pairwise
from protocols.pairwise import Quorum, Revealed

VICTIM, CORRUPTED = "ada", ("hal",)


def test_two_halves_are_shown_two_sets(play, kit, signed_model):
    cohort = play(threat_model=signed_model)
    cohort.until("signatures")
    setup = cohort.clients["bob"]._state.setup
    first = ("ada", "bob", "cyd", "dan")  # is told that the victim is in
    second = ("eve", "fay", "gus")
    everybody, without = kit.names, tuple(n for n in kit.names if n != VICTIM)
    signatures = {
        everybody: cohort.ask(first, everybody) | cohort.signed_by(CORRUPTED, everybody, setup),
        without: cohort.ask(second, without) | cohort.signed_by(CORRUPTED, without, setup),
    }
    assert [len(s) for s in signatures.values()] == [5, 4]  # the corrupted one signs both
    answered = {
        included: [
            n for n in asked if cohort.tell(n, cohort.quorum(signatures[included]))[0].__class__ is Revealed
        ]
        for included, asked in ((everybody, first), (without, second))
    }
    assert answered[everybody] == list(first)
    assert answered[without] == []
    for name in second:
        kit.assert_blames_server(cohort.clients[name], "quorum")


def test_nobody_answers_below_the_quorum(play, kit, signed_model):
    cohort = play(threat_model=signed_model)
    cohort.until("signatures")
    setup = cohort.clients["bob"]._state.setup
    signatures = cohort.ask(kit.names[:3], kit.names) | cohort.signed_by(CORRUPTED, kit.names, setup)
    assert len(signatures) == cohort.session.parameters.quorum - 1
    for name in kit.names[:3]:
        assert not any(isinstance(m, Revealed) for m in cohort.tell(name, cohort.quorum(signatures)))
        kit.assert_blames_server(cohort.clients[name], "4 signatures, 5 are needed")


def test_signatures_over_the_other_set_do_not_fill_a_quorum(play, kit, signed_model):
    cohort = play(threat_model=signed_model)
    cohort.until("signatures")
    without = kit.names[1:]
    mixed = cohort.ask(kit.names[:4], kit.names) | cohort.ask(kit.names[4:], without)
    for name in kit.names[4:]:
        shown = {n: s for n, s in mixed.items() if n in without}
        assert not any(isinstance(m, Revealed) for m in cohort.tell(name, cohort.quorum(shown)))
        kit.assert_blames_server(cohort.clients[name], "does not verify")


def test_one_client_is_asked_again_after_its_answer(play, kit, any_model):
    cohort = play(threat_model=any_model)
    down = cohort.until("reveals", {VICTIM: "reveals"})
    answers = [e for e in cohort.down(down) if e.sender != VICTIM]
    without = kit.names[1:]
    again = []
    for name in without:
        again += cohort.tell(name, cohort.question(without))
        again += cohort.tell(name, Quorum(cohort.bits(without), bytes(64 * len(without))))
    assert answers
    assert again == []
    assert kinds_revealed(cohort, answers, kit)[VICTIM] <= {"seed"}


def test_an_answer_holds_one_share_a_dealer(play, kit, signed_model):
    """Every opening in every answer is of the one kind that the survivor set asks for."""
    cohort = play(threat_model=signed_model)
    down = cohort.start()
    dealt, answers = {}, []
    while cohort.server.result is None:
        up = [e for e in down if not (e.sender == VICTIM and cohort.server.stage == "masked")]
        for envelope in up:
            if cohort.server.stage == "shares":
                dealt[envelope.sender] = kit.read(envelope)
            if isinstance(kit.read(envelope), Revealed):
                answers.append(envelope)
        down = cohort.down(cohort.close_after(up))
    kinds = kinds_revealed(cohort, answers, kit, dealt)
    assert len(answers) == 7
    assert kinds == {n: {"key"} if n == VICTIM else {"seed"} for n in kit.names}
    assert VICTIM in cohort.assert_exact().dropped


def kinds_revealed(cohort, answers, kit, dealt=None):
    """Dealer -> which of its secrets the answers hold shares of, as its own commitments tell."""
    session, size = cohort.session, pairwise._opening_bytes(cohort.session)
    kinds = defaultdict(set)
    for answer in answers:
        shares, holder = kit.read(answer).shares, cohort.place(answer.sender)
        assert len(shares) == size * len(kit.names)  # one opening for each dealer
        for i, dealer in enumerate(session.names):
            opening = shares[i * size : (i + 1) * size]
            if dealt is None:
                kinds[dealer].add("seed")
                continue
            at = 64 * holder
            promised = dealt[dealer].commitments[at : at + 64]
            for j, kind in enumerate(pairwise._KINDS):
                if (
                    pairwise._share_commitment(session, i, holder, j, opening)
                    == promised[32 * j : 32 * j + 32]
                ):
                    kinds[dealer].add(kind.decode())
    return kinds
