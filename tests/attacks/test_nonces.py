"""Attack: show two clones of one client different rosters, so that one nonce covers two plaintexts.

Stopped by: a client's randomness, which is bound to the message that it answers. (The journal stops the
second clone; here each has a journal of its own, as after both were rolled back.)
"""

import pytest
from msgspec.structs import replace

from protocols import pairwise
from protocols.errors import Aborted
from protocols.journal import MemoryJournal
from protocols.machine import Received, machine_id
from protocols.pairwise import Roster
from protocols.wire import bitmap
from secagg import box
from secagg.randomness import seeded

KEY = bytes(range(32))
NAME = "20"
NAMES = tuple(f"{i:02}" for i in range(52))


def lone_clone(cohort, name, snapshot):
    """A copy whose journal has never heard of any other."""
    journal = MemoryJournal()
    journal.commit(machine_id(cohort.session, name), 1, lambda: b"")
    identity = cohort.identities[name]
    return cohort.session.restore_client(name, identity, journal, snapshot=snapshot, key=KEY)


def boxes_of(cohort, clone, message, roster, kit):
    """(AEAD key, nonce, the rest, plaintext) of each box that the clone sends for this roster."""
    session, name = cohort.session, clone.name
    (sent,) = clone.handle(Received(cohort.say(name, roster)))
    assert not isinstance(clone.result, Aborted), clone.result
    dealt, size = kit.read(sent), pairwise._box_bytes(session)
    channels = clone._state.channels
    found = []
    for i, holder in enumerate(sorted(channels)):
        sealed = dealt.boxes[i * size : (i + 1) * size]
        associated = pairwise._associated(session, cohort.place(name), holder)
        plain = box.unseal(channels[holder], sealed, associated)
        found.append((channels[holder], sealed[:24], sealed[24:], plain))
    assert len(found) * size == len(dealt.boxes)
    return found


def assert_no_nonce_twice(answers):
    used, plains = {}, set()
    for found in answers:
        for key, nonce, sealed, plain in found:
            assert used.setdefault((key, nonce), sealed) == sealed
            plains.add((key, plain))
    return used, plains


def rosters(cohort, advertised, graph_seed):
    """What the server may tell of one graph: everybody is there, or one neighbour is not."""
    session = cohort.session
    near = session.graph(graph_seed).neighbours(cohort.place(NAME))
    echo = cohort.clients[NAME]._state.sent
    for absent in (None, *near[::3]):
        places = [p for p, j in enumerate(near) if j != absent]
        there = [advertised[session.names[near[p]]] for p in places]
        yield Roster(echo, graph_seed, bitmap(places, len(near)), there)


@pytest.mark.parametrize("model", ["honest-but-curious", "semi-malicious"])
def test_clones_shown_two_graphs_use_no_nonce_for_two_plaintexts(play, kit, model):
    """In another graph the same neighbour has another place, and with that another share."""
    cohort = play(names=NAMES, threat_model=model, protocol="secagg+", dropout=0.1)
    advertised = {e.sender: kit.read(e) for e in cohort.start()}
    snapshot = cohort.clients[NAME].snapshot(KEY)
    answers = []
    for number in range(4):
        for roster in rosters(cohort, advertised, seeded(b"graph", bytes([number]))(32)):
            clone = lone_clone(cohort, NAME, snapshot)
            answers.append(boxes_of(cohort, clone, NAME, roster, kit))
    used, plains = assert_no_nonce_twice(answers)
    assert len(answers) > 20
    # The control: the same holder was really sent several plaintexts under its one key.
    assert len(plains) > 2 * len({key for key, _ in plains})
    assert len(used) == sum(map(len, answers))


def test_clones_shown_two_rosters_of_a_complete_graph(play, kit, any_model):
    cohort = play(threat_model=any_model)
    (envelope,) = [e for e in cohort.until("shares") if e.to == "cyd"]
    roster = kit.read(envelope)
    snapshot = cohort.clients["cyd"].snapshot(KEY)
    answers = []
    for absent in range(8):  # 7: nobody
        places = [p for p in range(7) if p != absent]
        there = [roster.advertised[p] for p in places]
        shown = replace(roster, present=bitmap(places, 7), advertised=there)
        answers.append(boxes_of(cohort, lone_clone(cohort, "cyd", snapshot), "cyd", shown, kit))
    used, _ = assert_no_nonce_twice(answers)
    assert len(used) == sum(map(len, answers))


def test_clones_shown_one_roster_say_the_same(play, any_model):
    """So that a restored client, too, continues as the lost one would have."""
    cohort = play(threat_model=any_model)
    (roster,) = [e for e in cohort.until("shares") if e.to == "cyd"]
    snapshot = cohort.clients["cyd"].snapshot(KEY)
    one, two = lone_clone(cohort, "cyd", snapshot), lone_clone(cohort, "cyd", snapshot)
    assert one.handle(Received(roster)) == two.handle(Received(roster)) != []
