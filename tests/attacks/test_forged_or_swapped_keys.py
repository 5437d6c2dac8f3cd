"""Attack: the server hands out keys that are not the peer's, to learn the pads and read the shares.

Stopped by: signatures under the roster's identities, and the checks of Figure 4 on what was signed.
"""

from collections.abc import Callable

import pytest
from msgspec.structs import replace

from protocols.errors import Aborted
from protocols.pairwise import Advertise, _echo, _signed_keys
from secagg.keys import AgreementKey

TARGET = "cyd"  # is lied to
PEER = "eve"  # about these keys
SMALL_ORDER = [bytes(32), b"\1" + bytes(31)]


def advertise(cohort, name: str, channel: bytes, mask: bytes) -> Advertise:
    """Keys signed by `name`, as a corrupted client would."""
    unsigned = Advertise(cohort.session.hash, channel, mask, b"")
    signature = cohort.identities[name].sign(_signed_keys(cohort.session, unsigned))
    return Advertise(cohort.session.hash, channel, mask, signature)


def lie(cohort, kit, change: Callable[[dict[str, Advertise]], None]) -> list:
    """Run to the roster, change what the target is shown, and see what it answers."""
    cohort.until_sent = cohort.until("shares")
    (shown,) = [e for e in cohort.until_sent if e.to == TARGET]
    roster = kit.read(shown)
    others = [n for n in kit.names if n != TARGET]
    theirs = dict(zip(others, roster.advertised, strict=True))
    change(theirs)
    return cohort.down([kit.changed(shown, replace(roster, advertised=list(theirs.values())))])


def assert_refused(cohort, kit, sent: list, because: str) -> None:
    kit.assert_blames_server(cohort.clients[TARGET], because)
    assert [type(kit.read(e)).__name__ for e in sent] == ["Stop"]
    cohort.assert_nothing_masked(sent)


EVIL = [AgreementKey(bytes([i]) * 32).public for i in (1, 2)]


@pytest.mark.parametrize("signer", ["nobody", "corrupted"])
def test_server_substitutes_a_peers_keys(play, kit, signed_model, signer):
    cohort = play(threat_model=signed_model)

    def change(theirs):
        forged = advertise(cohort, "hal", *EVIL)  # signed, but not by the peer
        signature = theirs[PEER].signature if signer == "nobody" else forged.signature
        theirs[PEER] = Advertise(cohort.session.hash, *EVIL, signature)

    assert_refused(cohort, kit, lie(cohort, kit, change), "signature does not verify")


@pytest.mark.parametrize("which", ["channel", "mask"])
def test_server_substitutes_one_of_a_peers_keys(play, kit, signed_model, which):
    cohort = play(threat_model=signed_model)

    def change(theirs):
        old = theirs[PEER]
        pair = (EVIL[0], old.mask) if which == "channel" else (old.channel, EVIL[0])
        theirs[PEER] = Advertise(cohort.session.hash, *pair, old.signature)

    assert_refused(cohort, kit, lie(cohort, kit, change), "signature does not verify")


def test_server_exchanges_a_peers_channel_and_mask_key(play, kit, signed_model):
    cohort = play(threat_model=signed_model)

    def change(theirs):
        old = theirs[PEER]
        theirs[PEER] = Advertise(cohort.session.hash, old.mask, old.channel, old.signature)

    assert_refused(cohort, kit, lie(cohort, kit, change), "signature does not verify")


def test_server_swaps_two_clients_keys(play, kit, signed_model):
    cohort = play(threat_model=signed_model)

    def change(theirs):
        theirs[PEER], theirs["bob"] = theirs["bob"], theirs[PEER]

    assert_refused(cohort, kit, lie(cohort, kit, change), "signature does not verify")


@pytest.mark.parametrize("which", ["channel", "mask", "both", "crossed"])
def test_own_key_comes_back_as_a_peers(play, kit, signed_model, which):
    """A corrupted peer signs the target's own key as its own: its pad would then be known to it."""
    cohort = play(threat_model=signed_model)

    def change(theirs):
        state = cohort.clients[TARGET]._state
        own = [AgreementKey(state.channel).public, AgreementKey(state.mask).public]
        pair = {"channel": (own[0], EVIL[0]), "mask": (EVIL[0], own[1]), "both": own, "crossed": own[::-1]}
        theirs[PEER] = advertise(cohort, PEER, *pair[which])

    assert_refused(cohort, kit, lie(cohort, kit, change), "own key")


@pytest.mark.parametrize("point", SMALL_ORDER, ids=["zero", "one"])
@pytest.mark.parametrize("which", ["channel", "mask"])
def test_point_of_small_order(play, kit, signed_model, point, which):
    """A corrupted peer signs a key whose agreements are all zeros, so that anyone knows the pad."""
    cohort = play(threat_model=signed_model)
    pair = (point, EVIL[0]) if which == "channel" else (EVIL[0], point)

    def change(theirs):
        theirs[PEER] = advertise(cohort, PEER, *pair)

    sent = lie(cohort, kit, change)
    if which == "mask":  # the agreement is made, and fails, when the vector would be masked
        others = cohort.down(e for e in cohort.until_sent if e.to != TARGET)
        honest = next(kit.read(e) for e in cohort.until_sent if e.to == TARGET)
        sent = [kit.changed(e, replace(kit.read(e), echo=_echo(honest))) for e in sent]
        sent = cohort.down(e for e in cohort.close_after([*sent, *others]) if e.to == TARGET)
    assert_refused(cohort, kit, sent, "small order")


def test_same_key_for_two_peers(play, kit, signed_model):
    cohort = play(threat_model=signed_model)

    def change(theirs):
        theirs[PEER] = advertise(cohort, PEER, theirs["bob"].channel, EVIL[0])

    assert_refused(cohort, kit, lie(cohort, kit, change), "a key occurs twice")


def test_same_key_for_channel_and_mask(play, kit, signed_model):
    cohort = play(threat_model=signed_model)

    def change(theirs):
        theirs[PEER] = advertise(cohort, PEER, EVIL[0], EVIL[0])

    assert_refused(cohort, kit, lie(cohort, kit, change), "same key for channel and mask")


BAD_ADVERTISED = {
    "small order": lambda cohort: advertise(cohort, PEER, SMALL_ORDER[0], EVIL[0]),
    "canonical": lambda cohort: advertise(cohort, PEER, EVIL[1][:31] + bytes([EVIL[1][31] | 0x80]), EVIL[0]),
    "same key for channel and mask": lambda cohort: advertise(cohort, PEER, EVIL[0], EVIL[0]),
    "signature does not verify": lambda cohort: advertise(cohort, "hal", *EVIL),
}


@pytest.mark.parametrize("cause", BAD_ADVERTISED)
def test_honest_server_drops_a_client_with_bad_keys(play, signed_model, cause):
    """The same checks at the server, so that an honest one never passes on what clients would refuse."""
    cohort = play(threat_model=signed_model)
    up = [e for e in cohort.start() if e.sender != PEER]
    cohort.go_on(cohort.close_after([*up, cohort.say("server", BAD_ADVERTISED[cause](cohort), sender=PEER)]))
    result = cohort.assert_exact()
    assert PEER not in result.included
    assert cause in result.dropped[PEER].cause


def test_honest_server_drops_both_who_advertise_one_key(play, any_model):
    cohort = play(threat_model=any_model)
    up = cohort.start()
    stolen = next(e for e in up if e.sender == "bob")
    state = cohort.clients["bob"]._state
    copy = advertise(cohort, PEER, AgreementKey(state.channel).public, EVIL[0])
    if not cohort.session.signed:
        copy = Advertise(copy.session, copy.channel, copy.mask, b"")
    others = [e for e in up if e.sender not in (PEER, "bob")]
    cohort.go_on(cohort.close_after([*others, stolen, cohort.say("server", copy, sender=PEER)]))
    result = cohort.assert_exact()
    assert set(result.dropped) == {"bob", PEER}
    assert {f.culprits for f in result.faults} == {("bob", PEER)}


def test_roster_with_more_keys_than_places(play, kit, any_model):
    cohort = play(threat_model=any_model)
    (shown,) = [e for e in cohort.until("shares") if e.to == TARGET]
    roster = kit.read(shown)
    extra = [*roster.advertised, roster.advertised[0]]
    sent = cohort.down([kit.changed(shown, replace(roster, advertised=extra))])
    assert isinstance(cohort.clients[TARGET].result, Aborted)
    assert_refused(cohort, kit, sent, "roster: 7 present, 8 keys")
