"""Attack: hold back a client's masked vector, have its mask key revealed as dropped, then open it.

Stopped twice: an honest server discards the vector unread, and for a curious one the self mask remains,
whose seed nobody reveals for a dropped client (the reason for double masking in Bonawitz et al.).
"""

import numpy as np
import pytest

from protocols import pairwise
from protocols.machine import Received
from secagg import prg, shamir
from secagg.keys import AgreementKey

LATE = "eve"


def held_back(play, model):
    """A run in which the late client's vector has not come when its stage is closed."""
    cohort = play(threat_model=model)
    masked = cohort.down(cohort.until("masked"))
    (late,) = [e for e in masked if e.sender == LATE]
    return cohort, late, cohort.close_after([e for e in masked if e.sender != LATE])


@pytest.mark.parametrize("when", ["at once", "after answers"])
def test_late_vector_is_discarded_unread(play, any_model, when):
    cohort, late, down = held_back(play, any_model)
    while cohort.server.result is None:
        up = cohort.down(down)
        if when == "after answers":
            cohort.up(up[:3])
            up = up[3:]
        before = cohort.server._dump()
        assert cohort.up([late]) == []
        assert cohort.server._dump() == before
        down = cohort.close_after(up)
    result = cohort.assert_exact()
    assert LATE not in result.included
    assert result.dropped[LATE].cause == "silent"
    assert len(result.faults) == 1


def test_vector_of_a_client_that_gave_up_is_discarded(play, any_model):
    """It said stop before its vector came, while its stage is still open."""
    cohort = play(threat_model=any_model)
    masked = cohort.down(cohort.until("masked"))
    (late,) = [e for e in masked if e.sender == LATE]
    cohort.up([cohort.say("server", pairwise.Stop(), sender=LATE), late])
    assert cohort.server._total is None
    cohort.go_on(cohort.close_after([e for e in masked if e.sender != LATE]))
    result = cohort.assert_exact()
    assert LATE not in result.included


def test_second_vector_is_not_added(play, any_model):
    cohort = play(threat_model=any_model)
    masked = cohort.down(cohort.until("masked"))
    cohort.go_on(cohort.close_after([masked[0], *masked]))
    assert len(cohort.assert_exact().included) == len(cohort.clients)


def test_late_vector_stays_masked_when_the_mask_key_is_known(play, kit, any_model):
    cohort, late, down = held_back(play, any_model)
    mask_keys = cohort.server._state.mask_keys
    while cohort.server.stage != "reveals":
        down = cohort.close_after(cohort.down(down))
    answers = [kit.read(e) for e in cohort.down(down)]
    # The attacker's part: t shares of the dropped client's key, its pads, and the vector.
    session, index, t = cohort.session, cohort.place(LATE), cohort.session.parameters.threshold
    size = pairwise._opening_bytes(session)
    holders = [n for n in kit.names if n != LATE]
    shares = [a.shares[index * size : index * size + shamir.SHARE_BYTES] for a in answers][:t]
    (secret,) = shamir.combine([shares], [cohort.place(n) + 1 for n in holders[:t]])
    key = AgreementKey(secret)
    assert key.public == mask_keys[index]
    pads = {p: pairwise._pair_seed(session, key, public) for p, public in mask_keys.items() if p != index}
    opened = session.ring.unpack(bytes(late.frame), session.dim)
    add, subtract = ([s for p, s in pads.items() if p < index], [s for p, s in pads.items() if p > index])
    opened = prg.accumulate(session.ring, opened, add, subtract)
    session.ring.reduce(opened)
    assert np.count_nonzero(opened != cohort.vectors[LATE]) >= session.dim - 1
    # The control: these were all the pairwise pads. With the seed, which nobody reveals, it would open.
    seed = self_seed(play, any_model)
    opened = prg.accumulate(session.ring, opened, (), [pairwise._stream_seed(session, seed)])
    session.ring.reduce(opened)
    assert opened.tolist() == cohort.vectors[LATE].tolist()


def self_seed(play, model) -> bytes:
    """The late client's seed, from a run of the same client that was stopped in time to see it."""
    again = play(threat_model=model)
    again.start()
    return again.clients[LATE]._state.seed


def test_no_share_of_a_dropped_clients_seed_is_revealed(play, kit, signed_model):
    cohort, _, down = held_back(play, signed_model)
    while cohort.server.stage != "reveals":
        down = cohort.close_after(cohort.down(down))
    dealt, index = cohort.server._state.dealt[cohort.place(LATE)], cohort.place(LATE)
    for envelope in down:
        (sent,) = cohort.clients[envelope.to].handle(Received(envelope))
        size, holder = pairwise._opening_bytes(cohort.session), cohort.place(envelope.to)
        opening = kit.read(sent).shares[index * size : (index + 1) * size]
        promised = dealt.commitments[64 * holder : 64 * holder + 64]
        hashes = [pairwise._share_commitment(cohort.session, index, holder, k, opening) for k in range(2)]
        assert hashes[0] != promised[:32]
        assert hashes[1] == promised[32:]
