"""Attack: deal or reveal shares that do not fit, so that a pad stays in the sum or the round fails.

Never a wrong sum. A holder whose share breaks the dealer's commitment is named and ignored; a dealer
whose committed shares do not give what it announced is named and the round ends; where a box does not
open, the pair is named. Without commitments (honest-but-curious) the round ends and nobody is named.
"""

import pytest
from msgspec.structs import replace

from protocols.errors import Aborted
from protocols.machine import Aggregate, Answered
from protocols.pairwise import Revealed, _opening_bytes
from secagg import shamir

DEALER, HOLDER = "cyd", "ada"


def altered(opening: bytes) -> bytes:
    """Another well-formed share: one limb differs (not the first, whose lowest bits X25519 ignores)."""
    share = opening[:10] + bytes([opening[10] ^ 1]) + opening[11:]
    assert shamir.malformed([share[: shamir.SHARE_BYTES]]) == []
    return share


def malformed(opening: bytes) -> bytes:
    """A limb above the field's largest element."""
    return b"\xff" * shamir.SHARE_BYTES + opening[shamir.SHARE_BYTES :]


def both(change):
    return lambda plain: b"".join(
        change(half) for half in (plain[: len(plain) // 2], plain[len(plain) // 2 :])
    )


def dealt_badly(cohort, kit, change, silent=None, **how):
    """A run in which the dealer's message is changed; who drops does so at the masked vector."""
    dealt = cohort.down(cohort.until("shares"))
    bad = [
        cohort.redeal(e, lambda h, p: change(h, p), **how) if e.sender == DEALER else e for e in dealt
    ]  # fmt: skip
    cohort.go_on(cohort.close_after(bad), silent=silent)
    return cohort.server.result


@pytest.mark.parametrize(("silent", "what"), [(None, "seed"), ({DEALER: "masked"}, "mask key")])
def test_committed_shares_that_do_not_fit_name_the_dealer(play, kit, signed_model, silent, what):
    cohort = play(threat_model=signed_model)
    change = both(altered)
    result = dealt_badly(cohort, kit, lambda h, plain: change(plain) if h == HOLDER else plain, silent)
    assert isinstance(result, Aborted)
    assert result.culprits == (DEALER,)
    assert f"the committed shares of {DEALER} do not give the {what}" in result.cause
    assert result.stage == "reveals"
    assert result.revealed
    assert not result.retry


@pytest.mark.parametrize(("silent", "what"), [(None, "seed"), ({DEALER: "masked"}, "mask key")])
def test_shares_that_do_not_fit_name_nobody_without_commitments(play, kit, silent, what):
    cohort = play(threat_model="honest-but-curious")
    change = both(altered)
    result = dealt_badly(cohort, kit, lambda h, plain: change(plain) if h == HOLDER else plain, silent)
    assert isinstance(result, Aborted)
    assert result.culprits == ()
    assert f"the shares of {DEALER}'s {what} do not fit" in result.cause
    assert all(DEALER not in f.culprits for f in result.faults if f.stage == "reveals")


@pytest.mark.parametrize("wrong", ["box", "commitment", "malformed", "short"])
def test_a_box_that_fails_names_the_pair_and_the_sum_is_exact(play, kit, signed_model, wrong):
    cohort = play(threat_model=signed_model)

    def change(holder, plain):
        if holder != HOLDER:
            return plain
        return both({"commitment": altered, "malformed": malformed}[wrong])(plain)

    if wrong in ("box", "short"):
        dealt = cohort.down(cohort.until("shares"))
        up = [broken_box(e, kit, cohort) if e.sender == DEALER else e for e in dealt]
        cohort.go_on(cohort.close_after(up))
    else:
        dealt_badly(cohort, kit, change, recommit=wrong == "malformed")
    result = cohort.assert_exact()
    assert result.included == kit.names
    assert [f.culprits for f in result.faults] == [(DEALER, HOLDER)]
    assert "disputed" in result.faults[0].cause
    assert isinstance(cohort.clients[HOLDER].result, Answered)


def broken_box(envelope, kit, cohort):
    """The first box, which is HOLDER's, with one bit flipped."""
    message = kit.read(envelope)
    boxes = bytes([message.boxes[0] ^ 1]) + message.boxes[1:]
    return kit.changed(envelope, replace(message, boxes=boxes))


def test_a_box_that_fails_without_commitments(play, kit):
    """Where everybody follows the protocol it never happens: its holder stops, and the others go on."""
    cohort = play(threat_model="honest-but-curious")
    dealt = cohort.down(cohort.until("shares"))
    up = [broken_box(e, kit, cohort) if e.sender == DEALER else e for e in dealt]
    cohort.go_on(cohort.close_after(up))
    stopped = [n for n, c in cohort.clients.items() if isinstance(c.result, Aborted)]
    assert len(stopped) == 1
    assert cohort.assert_exact().included == tuple(n for n in kit.names if n not in stopped)


def test_malformed_share_that_was_committed_to_names_the_dealer(play, kit, signed_model):
    """An honest holder calls it missing; one that reveals it all the same has kept the promise."""
    cohort = play(threat_model=signed_model)
    dealt = cohort.down(cohort.until("shares"))
    plain = {}

    def change(holder, before):
        plain[holder] = both(malformed)(before) if holder == HOLDER else before
        return plain[holder]

    up = [cohort.redeal(e, change) if e.sender == DEALER else e for e in dealt]
    down = cohort.go_on(cohort.close_after(up), "reveals")
    answers = []
    for envelope in cohort.down(down):
        message = kit.read(envelope)
        if envelope.sender == HOLDER:
            size = _opening_bytes(cohort.session)
            at = cohort.place(DEALER) * size
            shares = message.shares[:at] + plain[HOLDER][:size] + message.shares[at:]
            envelope = kit.changed(envelope, Revealed(b"\0", shares))
        answers.append(envelope)
    cohort.close_after(answers)
    result = cohort.assert_exact()
    assert result.included == kit.names
    assert [f.culprits for f in result.faults] == [(DEALER,)]
    assert "malformed" in result.faults[0].cause


def test_wrong_seed_commitments_names_the_dealer_where_it_is_known(play, kit, any_model):
    cohort = play(threat_model=any_model)
    result = dealt_badly(cohort, kit, lambda h, plain: plain, seed_commitments=bytes(32))
    assert isinstance(result, Aborted)
    assert result.culprits == ((DEALER,) if cohort.session.signed else ())
    assert "seed" in result.cause


@pytest.mark.parametrize("size", ["boxes", "commitments", "seed_commitments", "echo"])
def test_dealing_of_the_wrong_length_drops_the_dealer(play, kit, any_model, size):
    cohort = play(threat_model=any_model)
    dealt = cohort.down(cohort.until("shares"))
    up = []
    for envelope in dealt:
        message = kit.read(envelope)
        if envelope.sender == DEALER:
            longer = {size: getattr(message, size) + b"\0"}
            envelope = kit.changed(envelope, replace(message, **longer))
        up.append(envelope)
    cohort.go_on(cohort.close_after(up))
    result = cohort.assert_exact()
    assert set(result.dropped) == {DEALER}


def revealed_badly(cohort, kit, changes):
    """A run in which some holders' answers are changed, with DEALER dropped before its vector."""
    down = cohort.until("reveals", {"hal": "masked"})
    up = []
    for envelope in cohort.down(down):
        if envelope.sender in changes:
            message = kit.read(envelope)
            envelope = kit.changed(envelope, changes[envelope.sender](message))
        up.append(envelope)
    cohort.close_after(up)
    return cohort.server.result


def share_changed(cohort, dealer, change):
    size, place = _opening_bytes(cohort.session), cohort.place(dealer)

    def changed(message: Revealed) -> Revealed:
        at = place * size
        opening = change(message.shares[at : at + size])
        return Revealed(message.missing, message.shares[:at] + opening + message.shares[at + size :])

    return changed


@pytest.mark.parametrize("change", [altered, malformed, lambda o: o[:-1] + bytes([o[-1] ^ 1])])
@pytest.mark.parametrize("of", [DEALER, "hal"], ids=["seed", "mask key"])
def test_share_that_breaks_its_commitment_names_the_holder(play, kit, signed_model, change, of):
    cohort = play(threat_model=signed_model)
    result = revealed_badly(cohort, kit, {HOLDER: share_changed(cohort, of, change)})
    assert result is not None
    result = cohort.assert_exact()
    assert result.included == kit.names[:7]
    assert [f.culprits for f in result.faults if f.stage == "reveals"] == [(HOLDER,)]
    assert "breaks the commitment" in result.faults[-1].cause


@pytest.mark.parametrize("of", [DEALER, "hal"], ids=["seed", "mask key"])
def test_altered_share_without_commitments_names_nobody(play, kit, of):
    cohort = play(threat_model="honest-but-curious")
    result = revealed_badly(cohort, kit, {HOLDER: share_changed(cohort, of, altered)})
    assert isinstance(result, Aborted)
    assert result.culprits == ()
    assert result.revealed


def test_malformed_share_without_commitments_is_ignored(play, kit):
    cohort = play(threat_model="honest-but-curious")
    revealed_badly(cohort, kit, {HOLDER: share_changed(cohort, DEALER, malformed)})
    result = cohort.assert_exact()
    assert [f.culprits for f in result.faults if f.stage == "reveals"] == [(HOLDER,)]


def says_missing(cohort, *dealers):
    size = _opening_bytes(cohort.session)

    def changed(message: Revealed) -> Revealed:
        places = {cohort.place(d) for d in dealers}
        kept = [message.shares[i * size : (i + 1) * size] for i in range(8) if i not in places]
        return Revealed(cohort.bits(dealers), b"".join(kept))

    return changed


def test_lying_missing_names_the_pair_and_the_sum_is_exact(play, kit, any_model):
    cohort = play(threat_model=any_model)
    revealed_badly(cohort, kit, {HOLDER: says_missing(cohort, DEALER)})
    result = cohort.assert_exact()
    assert result.included == kit.names[:7]
    assert [f.culprits for f in result.faults if f.stage == "reveals"] == [(DEALER, HOLDER)]


def test_too_many_who_say_missing_end_the_round_and_are_named_with_the_dealer(play, kit, any_model):
    cohort = play(threat_model=any_model)
    liars = kit.names[4:7]
    result = revealed_badly(cohort, kit, {n: says_missing(cohort, DEALER) for n in liars})
    assert isinstance(result, Aborted)
    assert result.culprits == ()
    assert f"4 good shares of {DEALER}'s secret came, 5 are needed" in result.cause
    assert [f.culprits for f in result.faults if len(f.culprits) == 2] == [(DEALER, n) for n in liars]


def test_holders_who_break_promises_leave_too_few(play, kit, signed_model):
    cohort = play(threat_model=signed_model)
    liars = kit.names[4:7]
    changes = {n: share_changed(cohort, DEALER, altered) for n in liars}
    result = revealed_badly(cohort, kit, changes)
    assert isinstance(result, Aborted)
    assert [f.culprits for f in result.faults if "breaks" in f.cause] == [(n,) for n in liars]


@pytest.mark.parametrize("how", ["short", "long", "all missing and shares", "bitmap"])
def test_answer_of_the_wrong_shape_names_the_holder(play, kit, any_model, how):
    cohort = play(threat_model=any_model)
    change = {
        "short": lambda m: Revealed(m.missing, m.shares[:-1]),
        "long": lambda m: Revealed(m.missing, m.shares + b"\0"),
        "all missing and shares": lambda m: Revealed(b"\xff", m.shares),
        "bitmap": lambda m: Revealed(m.missing + b"\0", m.shares),
    }[how]
    result = revealed_badly(cohort, kit, {HOLDER: change})
    assert isinstance(result, Aggregate)
    cohort.assert_exact()
    assert [f.culprits for f in result.faults if f.stage == "reveals"] == [(HOLDER,)]
    assert HOLDER in result.included


def test_holder_that_signs_badly_is_named_and_stays_in_the_sum(play, kit, signed_model):
    cohort = play(threat_model=signed_model)
    up = cohort.down(cohort.until("signatures"))
    bad = [kit.changed(e, type(kit.read(e))(bytes(64))) if e.sender == HOLDER else e for e in up]
    cohort.go_on(cohort.close_after(bad))
    result = cohort.assert_exact()
    assert result.included == kit.names
    assert [f.culprits for f in result.faults] == [(HOLDER,)]
