"""Attack: hand a sealed share to somebody, or in somebody's name, for whom it was not made.

Stopped by: the associated data of the box (session, dealer, holder), as two clients have one key between
them in both directions; and by the echo of the shares, where what was delivered is not what was sent.
"""

from itertools import permutations

import pytest
from msgspec.structs import replace

from protocols import pairwise
from protocols.errors import Aborted
from secagg import box
from secagg.invalid import Invalid
from secagg.keys import AgreementKey
from secagg.randomness import seeded


def test_every_pair_session_and_direction_has_its_own_associated_data(play):
    sessions = [play(attempt=attempt).session for attempt in (0, 1)]
    places = [(s, d, h) for s in sessions for d, h in permutations(range(8), 2)]
    data = [pairwise._associated(*place) for place in places]
    assert len(set(data)) == len(places)
    sealed = box.seal(bytes(32), b"share", data[0], seeded(b"nonce"))
    assert box.unseal(bytes(32), sealed, data[0]) == b"share"
    for other in data[1:]:
        with pytest.raises(Invalid):
            box.unseal(bytes(32), sealed, other)


def dealt_by(cohort, kit, sender):
    """What a client deals, with its channel keys."""
    dealt = cohort.down(cohort.until("shares"))
    (own,) = [kit.read(e) for e in dealt if e.sender == sender]
    return dealt, own, cohort.clients[sender]._state.channels


@pytest.mark.parametrize("wrong", ["session", "dealer", "holder", "both turned"])
def test_box_moved_elsewhere_does_not_open(play, kit, any_model, wrong):
    """Under the right key: everything else about it is what its reader would expect."""
    cohort = play(threat_model=any_model)
    _, dealt, channels = dealt_by(cohort, kit, "ada")
    session, size, pair_size = cohort.session, pairwise._box_bytes(cohort.session), 64
    sealed = dealt.boxes[:size]  # for bob
    pair = dealt.commitments[pair_size : 2 * pair_size] if session.signed else b""
    assert len(pairwise._open(session, channels[1], 0, 1, sealed, pair)) == size - 40
    another = play(threat_model=any_model, attempt=1).session
    where = {
        "session": (another, 0, 1), "dealer": (session, 2, 1), "holder": (session, 0, 2),
        "both turned": (session, 1, 0),
    }[wrong]  # fmt: skip
    session, dealer, holder = where
    plain = box.unseal(channels[1], sealed, pairwise._associated(cohort.session, 0, 1))
    if session.signed:  # commitments that fit, as a corrupted dealer could make them
        half = len(plain) // 2
        pair = b"".join(
            pairwise._share_commitment(session, dealer, holder, kind, opening)
            for kind, opening in enumerate((plain[:half], plain[half:]))
        )
    assert pairwise._open(session, channels[1], dealer, holder, sealed, pair) == b""


def test_own_box_reflected_as_its_recipients_does_not_open(play, kit):
    """Without signatures nothing but the associated data tells that ada's box for bob is not bob's."""
    cohort = play()
    dealt, own, _ = dealt_by(cohort, kit, "ada")
    size = pairwise._box_bytes(cohort.session)
    for envelope in cohort.close_after(dealt):
        if envelope.to == "ada":
            message = kit.read(envelope)
            reflected = replace(message, boxes=own.boxes[:size] + message.boxes[size:])
            sent = cohort.down([kit.changed(envelope, reflected)])
            assert not [e for e in sent if len(e.frame)]
    result = cohort.clients["ada"].result
    assert isinstance(result, Aborted)
    assert result.cause == "7 of 8 boxes of shares opened, the threshold is 5"


def test_vector_that_answers_other_shares_is_not_added(play, kit, any_model):
    """A dealer is lost on the way to one client: it masks with one pad less, and its echo shows it."""
    cohort = play(threat_model=any_model)
    down = cohort.until("masked")
    size, pairs = pairwise._box_bytes(cohort.session), pairwise._promise_bytes(cohort.session)
    changed = []
    for envelope in down:
        if envelope.to == "ada":
            message = kit.read(envelope)
            fewer = replace(
                message,
                dealers=bytes([message.dealers[0] & 0x7F]),
                boxes=message.boxes[:-size],
                commitments=message.commitments[: len(message.commitments) - pairs],
            )
            envelope = kit.changed(envelope, fewer)
        changed.append(envelope)
    up = cohort.down(changed)
    assert len([e for e in up if len(e.frame)]) == len(cohort.clients)
    cohort.go_on(cohort.close_after(up))
    result = cohort.assert_exact()
    assert result.included == kit.names[1:]
    assert result.dropped["ada"].cause == "it answers other shares than it was sent"


def test_pads_of_two_sessions_differ_under_the_same_keys(play):
    """A client whose generator repeats itself has the same keys twice: no pad covers two vectors."""
    sessions = [play(attempt=attempt).session for attempt in (0, 1)]
    one, two = (AgreementKey(seeded(name)(32)) for name in (b"one", b"two"))
    for seed_of in (
        lambda s: pairwise._pair_seed(s, one, two.public),
        lambda s: pairwise._stream_seed(s, bytes(32)),
        lambda s: pairwise._seed_commitment(s, 0, 0, bytes(32)),
        lambda s: pairwise._share_commitment(s, 0, 1, 0, bytes(50)),
    ):
        assert seed_of(sessions[0]) != seed_of(sessions[1])
    for session in sessions:
        there = pairwise._pair_seed(session, two, one.public)
        assert pairwise._pair_seed(session, one, two.public) == there
        assert len(there) == 16
