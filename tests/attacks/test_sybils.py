"""Attack: parties beyond the agreed cohort, to outnumber the honest or to make one appear as many.

Stopped by: the roster, which everyone knows beforehand; nobody else has a place in it.
"""

import pytest
from msgspec.structs import replace

from protocols.errors import Fault, LocalError
from protocols.machine import Received
from protocols.pairwise import Advertise, Quorum, Survivors, _signed_keys
from protocols.session import Session
from secagg.keys import AgreementKey, Identity
from secagg.randomness import seeded


def stranger_keys(cohort, identity: Identity) -> Advertise:
    """Fresh keys, signed by an identity of the server's own making."""
    pair = [AgreementKey(seeded(b"sybil", bytes([i]))(32)).public for i in range(2)]
    unsigned = Advertise(cohort.session.hash, *pair, b"")
    signature = identity.sign(_signed_keys(cohort.session, unsigned)) if cohort.session.signed else b""
    return Advertise(cohort.session.hash, *pair, signature)


@pytest.mark.parametrize("stage", ["keys", "shares", "masked", "reveals"])
def test_envelopes_from_strangers_are_ignored_and_named(play, kit, any_model, stage):
    cohort = play(threat_model=any_model)
    up = cohort.start()
    while cohort.server.stage != stage:
        up = cohort.down(cohort.close_after(up))
    forged = [kit.changed(e, sender="mallory") for e in up]
    assert cohort.up(forged) == []
    assert cohort.server.faults == (Fault(("mallory",), stage, "not in the cohort: ignored"),)  # once
    down = cohort.close_after(up)
    cohort.go_on(down)
    assert cohort.assert_exact().included == kit.names


def test_server_puts_its_own_identity_in_an_absent_ones_place(play, kit, signed_model):
    """The absent client's place is filled by keys that another identity signed."""
    cohort = play(threat_model=signed_model)
    sybil = stranger_keys(cohort, Identity.generate(seeded(b"sybil")))
    down = cohort.until("shares", {"hal": "keys"})
    for envelope in down:
        roster = kit.read(envelope)
        full = replace(roster, present=bytes([0x7F]), advertised=[*roster.advertised, sybil])
        cohort.down([kit.changed(envelope, full)])
        kit.assert_blames_server(cohort.clients[envelope.to], "signature does not verify")


def test_roster_with_a_place_beyond_the_cohort(play, kit, any_model):
    cohort = play(threat_model=any_model)
    sybil = stranger_keys(cohort, Identity.generate(seeded(b"sybil")))
    for envelope in cohort.until("shares"):
        roster = kit.read(envelope)
        wider = replace(
            roster, present=bytes([roster.present[0] | 0x80]), advertised=[*roster.advertised, sybil]
        )
        cohort.down([kit.changed(envelope, wider)])
        kit.assert_blames_server(cohort.clients[envelope.to], "beyond the cohort")


def test_survivors_beyond_the_cohort_do_not_count(play, kit, any_model):
    names = kit.names[:7]
    cohort = play(names=names, threat_model=any_model)
    cohort.until("signatures" if cohort.session.signed else "reveals")
    for name, bits in zip(
        names, (b"\xff", b"\x7f\xff", b"\x7f\1", b"", b"\xe7", b"\x87", b"\x80"), strict=True
    ):
        cohort.tell(name, Survivors(bits))
        kit.assert_blames_server(cohort.clients[name], "bitmap")


def test_signers_beyond_the_cohort_do_not_count(play, kit, signed_model):
    names = kit.names[:7]
    cohort = play(names=names, threat_model=signed_model)
    cohort.until("signatures")
    signatures = cohort.ask(names, names)
    shown = cohort.quorum(signatures)
    cohort.tell("ada", Quorum(bytes([shown.signers[0] | 0x80]), shown.signatures + bytes(64)))
    kit.assert_blames_server(cohort.clients["ada"], "beyond the cohort")


def test_one_signature_does_not_count_for_many(play, kit, signed_model):
    cohort = play(threat_model=signed_model)
    cohort.until("signatures")
    (signature,) = cohort.ask(["ada"], kit.names).values()
    cohort.tell("ada", Quorum(cohort.bits(kit.names), signature * len(kit.names)))
    kit.assert_blames_server(cohort.clients["ada"], "does not verify")


def test_signers_who_are_not_survivors_do_not_count(play, kit, signed_model):
    cohort = play(threat_model=signed_model)
    cohort.until("signatures")
    included = kit.names[:6]
    signatures = cohort.ask(included[:4], included)
    setup = cohort.clients["ada"]._state.setup
    signatures |= cohort.signed_by(("gus", "hal"), included, setup)
    cohort.tell("ada", cohort.quorum(signatures))
    kit.assert_blames_server(cohort.clients["ada"], "not among those included")


def test_one_identity_under_two_names_is_refused(play):
    one = Identity.generate(seeded(b"one")).public
    with pytest.raises(LocalError, match="same identity"):
        Session({"a": one, "b": one, "c": Identity.generate(seeded(b"c")).public}, dim=1, bound=2)


def test_stranger_cannot_make_a_client(play):
    cohort = play()
    with pytest.raises(LocalError, match="not in the roster"):
        cohort.session.client("mallory", cohort.identities["ada"])
    with pytest.raises(LocalError, match="another identity"):
        cohort.session.client("ada", cohort.identities["bob"])


def test_client_takes_messages_only_from_the_server(play, kit):
    cohort = play()
    client = cohort.clients["ada"]
    down = cohort.until("shares")
    (roster,) = [e for e in down if e.to == "ada"]
    for _ in range(2):
        assert client.handle(Received(kit.changed(roster, sender="bob"))) == []
        assert client.handle(Received(kit.changed(roster, to="bob"))) == []
    assert client.stage == "roster"
    because = "not for this client, or not from the server"
    assert client.faults == (Fault(("bob",), "roster", because), Fault(("server",), "roster", because))
    assert client.result is None
    cohort.go_on(down)
    assert cohort.assert_exact().included == kit.names
