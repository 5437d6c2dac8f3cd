"""Attack: copy a client's state, or bring back an old one, so that one mask covers two vectors.

Stopped by: the journal, where each step is taken once, and snapshots bound to party, session and key.
"""

import pytest
from msgspec.structs import replace

from protocols.errors import LocalError
from protocols.journal import MemoryJournal, SqliteJournal
from protocols.machine import Input, Received, StageClosed, Started

KEY = bytes(range(32))
NAME = "bob"
ZEROS, ONES = [0] * 5, [1] * 5


@pytest.fixture(params=["memory", "sqlite"])
def journal(request, tmp_path):
    """One client's journal of either kind."""
    if request.param == "memory":
        yield MemoryJournal()
        return
    store = SqliteJournal(tmp_path / "journal", KEY)
    yield store
    store.close()


@pytest.fixture
def ready(play, any_model, journal):
    """A cohort whose bob has his shares and awaits his input."""
    journals = {n: journal if n == NAME else MemoryJournal() for n in play().clients}
    cohort = play(threat_model=any_model, journals=journals)
    out = []
    for name, client in cohort.clients.items():
        out += client.handle(Started())
        if name != NAME:
            client.handle(Input(cohort.vectors[name]))
    cohort.down(cohort.close_after(cohort.down(cohort.close_after(out))))
    assert cohort.clients[NAME].stage == "input"
    return cohort


def clone(cohort, snapshot, key=KEY, name=NAME, journal=None):
    client = cohort.identities[name]
    journal = journal or cohort.journals[NAME]
    return cohort.session.restore_client(name, client, journal, snapshot=snapshot, key=key)


def test_two_clones_mask_one_vector_between_them(ready):
    snapshot = ready.clients[NAME].snapshot(KEY)
    clones = [clone(ready, snapshot) for _ in range(3)]
    (sent,) = clones[0].handle(Input(ZEROS))
    assert len(sent.frame)
    for other, vector in zip([*clones[1:], ready.clients[NAME]], (ONES, ZEROS, ONES), strict=True):
        with pytest.raises(LocalError, match="a copy or out of date"):
            other.handle(Input(vector))
        assert not any(len(e.frame) for e in other.resend())
        assert other.stage == "input"


def test_clone_that_lost_the_race_cannot_be_pushed_on(ready):
    """Nothing that is delivered to it makes it send a vector either."""
    snapshot = ready.clients[NAME].snapshot(KEY)
    first, second = clone(ready, snapshot), clone(ready, snapshot)
    first.handle(Input(ZEROS))
    with pytest.raises(LocalError, match="a copy or out of date"):
        second.handle(Input(ONES))
    sent = second.handle(Received(ready.say(NAME, ready.question(ready.clients))))
    assert not any(len(e.frame) for e in sent)
    assert second.stage == "stopped"
    assert not any(len(e.frame) for e in second.resend())


def test_clones_with_kept_input_mask_once(play, any_model, journal):
    """The input is kept, and masked by the message that both clones are shown."""
    cohort = play(
        threat_model=any_model, journals={n: MemoryJournal() for n in play().clients} | {NAME: journal}
    )
    out = [e for c in cohort.clients.values() for e in c.handle(Started())]
    for name, client in cohort.clients.items():
        if name != NAME:
            client.handle(Input(cohort.vectors[name]))
    down = cohort.close_after(cohort.down(cohort.close_after(out)))
    (shares,) = [e for e in down if e.to == NAME]
    snapshot = cohort.clients[NAME].snapshot(KEY)
    one, two = clone(cohort, snapshot), clone(cohort, snapshot)
    one.handle(Input(ZEROS))
    two.handle(Input(ONES))
    (sent,) = one.handle(Received(shares))
    assert len(sent.frame)
    with pytest.raises(LocalError, match="a copy or out of date"):
        two.handle(Received(shares))
    assert not any(len(e.frame) for e in two.resend())


def test_clones_shown_two_rosters_deal_once(play, kit, signed_model):
    cohort = play(threat_model=signed_model)
    down = cohort.until("shares")
    (roster,) = [e for e in down if e.to == NAME]
    snapshot = cohort.clients[NAME].snapshot(KEY)
    one, two = clone(cohort, snapshot), clone(cohort, snapshot)
    message = kit.read(roster)
    fewer = replace(message, present=bytes([message.present[0] & 0x3F]), advertised=message.advertised[:-1])
    assert one.handle(Received(roster))
    with pytest.raises(LocalError, match="a copy or out of date"):
        two.handle(Received(kit.changed(roster, fewer)))


def test_clones_sign_one_set_between_them(play, kit, signed_model):
    cohort = play(threat_model=signed_model)
    cohort.until("signatures")
    snapshot = cohort.clients[NAME].snapshot(KEY)
    one, two = clone(cohort, snapshot), clone(cohort, snapshot)
    assert one.handle(Received(cohort.say(NAME, cohort.question(kit.names))))
    with pytest.raises(LocalError, match="a copy or out of date"):
        two.handle(Received(cohort.say(NAME, cohort.question(kit.names[1:]))))


def test_snapshot_older_than_its_journal_is_refused(ready):
    old = ready.clients[NAME].snapshot(KEY)
    ready.clients[NAME].handle(Input(ZEROS))
    with pytest.raises(LocalError, match="only the newest state may continue"):
        clone(ready, old)
    clone(ready, ready.clients[NAME].snapshot(KEY))


def test_snapshot_without_its_journal_is_refused(ready):
    """An empty journal is not behind the snapshot's back: something was rolled back."""
    with pytest.raises(LocalError, match="its journal is at step 0"):
        clone(ready, ready.clients[NAME].snapshot(KEY), journal=MemoryJournal())


def test_snapshot_under_another_key_party_or_session_is_refused(ready, play, any_model):
    snapshot = ready.clients[NAME].snapshot(KEY)
    damaged = bytes([snapshot[0] ^ 1]) + snapshot[1:]
    for bad, key in ((snapshot, bytes(32)), (damaged, KEY), (snapshot[:-1], KEY), (b"", KEY)):
        with pytest.raises(LocalError, match="does not open"):
            clone(ready, bad, key)
    with pytest.raises(LocalError, match="does not open"):
        clone(ready, snapshot, name="ada")
    with pytest.raises(LocalError, match="does not open"):
        clone(play(threat_model=any_model, attempt=1), snapshot)
    with pytest.raises(LocalError, match="does not open"):
        ready.session.restore_server(MemoryJournal(), snapshot=snapshot, key=KEY)
    for key in (b"", KEY[:-1], "x" * 32):
        with pytest.raises(LocalError, match="key: expected 32 bytes"):
            clone(ready, snapshot, key)


def test_second_input_is_refused(ready):
    client = ready.clients[NAME]
    (sent,) = client.handle(Input(ZEROS))
    for vector in (ONES, ZEROS):
        with pytest.raises(LocalError, match="already has its vector"):
            client.handle(Input(vector))
    assert client.resend() == [sent]
    restored = clone(ready, client.snapshot(KEY))
    with pytest.raises(LocalError, match="already has its vector"):
        restored.handle(Input(ONES))
    assert restored.resend() == [sent]


def test_second_input_is_refused_while_the_first_is_kept(play):
    client = play().clients[NAME]
    client.handle(Input(ZEROS))
    with pytest.raises(LocalError, match="already has its vector"):
        client.handle(Input(ONES))


def test_begun_session_is_not_begun_again(ready):
    with pytest.raises(LocalError, match="already begun"):
        ready.session.client(NAME, ready.identities[NAME], journal=ready.journals[NAME])


def test_clones_of_a_server_ask_one_question_between_them(play, any_model):
    """Two copies of the server cannot freeze two survivor sets."""
    store = MemoryJournal()
    cohort = play(threat_model=any_model)
    cohort.server = cohort.session.server(journal=store)
    masked = cohort.down(cohort.until("masked"))
    snapshot = cohort.server.snapshot(KEY)
    one, two = (cohort.session.restore_server(store, snapshot=snapshot, key=KEY) for _ in range(2))
    asked = [out for e in masked for out in one.handle(Received(e))]
    assert len(asked) == len(cohort.clients)
    for envelope in masked[1:]:
        two.handle(Received(envelope))
    with pytest.raises(LocalError, match="a copy or out of date"):
        two.handle(StageClosed("masked"))
