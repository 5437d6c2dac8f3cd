"""Nodes of Flower with identities of their own: who they say they are, and the least that they accept."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict

from fedavg.adapters.flower.records import RECORD, claim
from protocols.errors import LocalError
from protocols.roster import generate_party, read_party, write_roster

Sites = Callable[[], Path]


def test_five_sites_against_a_malicious_server(flower: Any, sites: Sites) -> None:
    play = flower.Play(folder=sites())
    play.check(play.train(), play.nodes)
    play.check(play.train(flower.model(1)), play.nodes, flower.model(1))
    assert play.evaluate()[101].content["metrics"]["accuracy"] > 0
    assert play.secure.rounds[0].included == ("site-0", "site-1", "site-2", "site-3", "site-4")
    # Six messages in the first round; afterwards the server knows who they are.
    assert set(play.grid.counts.values()) == {6 + 5 + 5}


def test_the_roster_may_be_a_setting(flower: Any, sites: Sites) -> None:
    play = flower.Play(folder=sites())
    play.config["secagg-roster"], play.roster = str(play.roster), None
    for context in play.grid.contexts.values():  # as Flower does: one configuration for the whole run
        context.run_config["secagg-roster"] = play.config["secagg-roster"]
    play.secure = play.server()
    play.check(play.train(), play.nodes)


def who(play: Any, change: Callable[[Message], None], node: int = 104) -> dict[int, Message]:
    """A round in which one node says something else about who it is."""

    def up(n: int, count: int, reply: Message) -> Message:
        if n == node and reply.has_content() and "name" in reply.content.config_records.get(RECORD, {}):
            change(reply)
        return reply

    play.grid.up = up
    return play.train()  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"name": "site-0"}, "secagg: "),
        ({"name": "nobody"}, "secagg: it is not in the server's roster"),
        ({"name": 4}, "secagg: it is not in the server's roster"),
        ({"name": b"site-3"}, "secagg: it is not in the server's roster"),
        ({"name": "104"}, "secagg: it is not in the server's roster"),
        ({"signature": bytes(64)}, "secagg: "),
        ({"signature": b""}, "secagg: "),
        ({"signature": "text"}, "secagg: signature: expected bytes"),
        ({"signature": 7}, "secagg: signature: expected bytes"),
    ],
)
def test_a_claim_that_is_not_proved(flower: Any, sites: Sites, record: dict[str, Any], said: str) -> None:
    play = flower.Play(folder=sites())
    replies = who(play, lambda reply: reply.content[RECORD].update(record))
    play.check(replies, [101, 102, 103, 105])
    assert replies[104].error.reason.startswith(said)
    assert play.grid.counts[104] == 1  # nothing else is sent to it


@pytest.mark.parametrize("what", ["no record", "no name", "no signature", "an error", "an empty reply"])
def test_a_claim_that_is_none(flower: Any, sites: Sites, what: str) -> None:
    def change(reply: Message) -> None:
        match what:
            case "no record":
                reply.content = RecordDict({"other": ConfigRecord({"name": "site-3"})})
            case "no name":
                del reply.content[RECORD]["name"]
            case "no signature":
                del reply.content[RECORD]["signature"]
            case _:
                reply.content = RecordDict()

    play = flower.Play(folder=sites())
    play.check(who(play, change), [101, 102, 103, 105])


@pytest.mark.parametrize("stolen", ["of another run", "of another node", "of another name"])
def test_a_claim_of_somewhere_else(flower: Any, sites: Sites, stolen: str) -> None:
    """A signature says who a node is for one node number in one run."""
    play = flower.Play(folder=sites())
    own, other = (read_party(play.roster.with_name(f"site-{i}.key")) for i in (3, 1))

    def change(reply: Message) -> None:
        match stolen:
            case "of another run":
                record = {"signature": own.identity.sign(claim(8, 104))}
            case "of another node":
                record = {"signature": own.identity.sign(claim(7, 105))}
            case _:
                record = {"signature": other.identity.sign(claim(7, 104))}
        reply.content[RECORD].update(record)

    play.check(who(play, change), [101, 102, 103, 105])


def test_a_replayed_claim_of_a_peer(flower: Any, sites: Sites) -> None:
    """What site-0 said to be known by is public, and of no use to another node."""
    play = flower.Play(folder=sites())
    play.train()
    said = next(m for n, m in play.grid.said if n == 101).content[RECORD]
    play.secure = play.server(play.secure._context)
    replies = who(play, lambda reply: reply.content[RECORD].update(dict(said)))
    play.check(replies, [101, 102, 103, 105])


def test_a_node_without_an_identity(flower: Any, sites: Sites) -> None:
    play = flower.Play(folder=sites())
    play.grid.contexts[104].node_config.clear()
    replies = play.train()
    play.check(replies, [101, 102, 103, 105])
    assert replies[104].error.reason == "secagg: it is not in the server's roster"


def unusable(replies: dict[int, Message], caplog: pytest.LogCaptureFixture, said: str) -> None:
    """Node 104 cannot use its own configuration: why is in its log, and is not told to the server."""
    assert replies[104].error.reason == "secagg: its own configuration cannot be used; its log says why"
    assert any(said in r.getMessage() for r in caplog.records if r.levelname == "ERROR"), caplog.messages


def test_a_node_with_half_an_identity(flower: Any, sites: Sites, caplog: pytest.LogCaptureFixture) -> None:
    play = flower.Play(folder=sites())
    del play.grid.contexts[104].node_config["secagg-roster"]
    replies = play.train()
    play.check(replies, [101, 102, 103, 105])
    unusable(replies, caplog, "expected both secagg-identity and secagg-roster")


def another_roster(play: Any, node: int, names: list[str], folder: Path | None = None) -> None:
    """A roster of its own for one node: these names, with the keys of `folder`."""
    home = play.roster.parent
    publics = [Path(folder or home, f"{n}.pub") if n in ("site-0", "stranger") else home / f"{n}.pub"
               for n in names]  # fmt: skip
    path = home / f"roster-of-{node}.json"
    write_roster(path, publics)
    play.grid.contexts[node].node_config["secagg-roster"] = str(path)


def test_a_node_that_is_in_no_roster(flower: Any, sites: Sites, caplog: pytest.LogCaptureFixture) -> None:
    """Neither in its own, nor, with a roster that it made for itself, in the server's."""
    play, other = flower.Play(folder=sites()), sites()
    key, _ = generate_party("stranger", other)
    play.grid.contexts[104].node_config["secagg-identity"] = str(key)
    replies = play.train()
    play.check(replies, [101, 102, 103, 105])
    unusable(replies, caplog, "roster: 'stranger' is not in it")
    another_roster(play, 104, ["site-1", "site-2", "stranger"], other)
    replies = play.train()
    play.check(replies, [101, 102, 103, 105])
    assert replies[104].error.reason == "secagg: it is not in the server's roster"


def test_a_roster_that_lacks_a_peer(flower: Any, sites: Sites) -> None:
    play = flower.Play(folder=sites())
    another_roster(play, 104, ["site-1", "site-2", "site-3", "site-4"])
    replies = play.train()
    play.check(replies, [101, 102, 103, 105])
    assert replies[104].error.reason == "secagg: cohort: site-0: not in this party's roster"


def test_a_roster_with_another_key_for_a_peer(flower: Any, sites: Sites) -> None:
    """Both are what they say in the server's roster; the two are in different sessions all the same."""
    play, other = flower.Play(folder=sites()), sites()
    generate_party("site-0", other)
    another_roster(play, 104, ["site-0", "site-1", "site-2", "site-3", "site-4"], other)
    replies = play.train()
    play.check(replies, [101, 102, 103, 105])
    assert "another session" in replies[104].error.reason


def test_a_larger_roster_at_a_node(flower: Any, sites: Sites) -> None:
    """A site that has been told of others counts how many of them all may be corrupted."""
    play, other = flower.Play(folder=sites()), sites()
    publics = [generate_party(f"more-{i}", other)[1] for i in range(20)]
    path = play.roster.with_name("larger.json")
    write_roster(path, [*sorted(play.roster.parent.glob("site-*.pub")), *publics])
    play.grid.contexts[104].node_config["secagg-roster"] = str(path)
    replies = play.train()
    play.check(replies, [101, 102, 103, 105])
    assert replies[104].has_error()


def test_two_nodes_with_one_identity(flower: Any, sites: Sites) -> None:
    """One of them takes part, and the other is told."""
    play = flower.Play(folder=sites())
    play.grid.contexts[105].node_config = dict(play.grid.contexts[104].node_config)
    replies = play.train()
    errors = [n for n, m in replies.items() if m.has_error()]
    assert errors == [104]
    assert play.secure.rounds[-1].included == ("site-0", "site-1", "site-2", "site-3")
    assert "another node" in replies[104].error.reason


def test_a_node_that_came_back(flower: Any, sites: Sites) -> None:
    """Under a new number, with the same files: it is who it was, and its rounds are counted on."""
    play = flower.Play(folder=sites())
    play.train()
    old = play.grid.contexts.pop(104)
    play.grid.contexts[199] = Context(7, 199, old.node_config, RecordDict(), old.run_config)
    play.grid.nodes[play.grid.nodes.index(104)] = 199
    replies = play.train()
    assert all(m.has_content() for m in replies.values())
    assert play.secure.rounds[-1].included == tuple(f"site-{i}" for i in range(5))
    play.secure = play.server()
    for m in play.train().values():
        assert "was already begun" in m.error.reason


@pytest.mark.skipif(os.name != "posix", reason="no POSIX permissions")
def test_an_identity_that_others_can_read(
    flower: Any, sites: Sites, caplog: pytest.LogCaptureFixture
) -> None:
    play = flower.Play(folder=sites())
    Path(play.grid.contexts[104].node_config["secagg-identity"]).chmod(0o640)
    replies = play.train()
    play.check(replies, [101, 102, 103, 105])
    unusable(replies, caplog, "others may read or write this secret")


def test_a_journal_that_is_lost_or_damaged(
    flower: Any, sites: Sites, caplog: pytest.LogCaptureFixture
) -> None:
    play = flower.Play(folder=sites())
    play.train()
    play.roster.with_name("site-3.journal").write_bytes(b"no database" * 100)
    replies = play.train()
    play.check(replies, [101, 102, 103, 105])
    unusable(replies, caplog, "journal: cannot use")


def test_a_state_that_was_put_back(flower: Any, sites: Sites) -> None:
    """An older state than the journal's would mask a second vector as the first was masked."""
    play = flower.Play(folder=sites())
    old: list[Any] = []

    def down(node: int, count: int, message: Message) -> None:
        if node == 104 and count == 3:
            old.append(flower.copy_state(play.grid.contexts[104].state))
        if node == 104 and count == 4:
            play.grid.contexts[104].state = old[0]
            message.content = play.grid.sent_to(104, 3).content

    play.grid.down = down
    replies = play.train()
    last = [m for n, m in play.grid.said if n == 104][-1]
    assert "only the newest state may continue" in last.error.reason
    play.check(replies, play.nodes)  # its vector was there


# ------------------------------------------------------------------------------------------------ floors


@pytest.mark.parametrize(
    ("policy", "model", "said"),
    [
        (None, "honest-but-curious", "policy: threat model must be one of malicious; the session has honest"),
        (None, "semi-malicious", "policy: threat model must be one of malicious; the session has semi"),
        ("semi-malicious+malicious", "honest-but-curious", "must be one of semi-malicious, malicious"),
        ("cohort:6", "malicious", "policy: cohort must be at least 6, the session has 5"),
        ("included:6", "malicious", "policy: at least 6 must be included, the cohort has 5"),
        ("corrupted:0.3", "malicious", "policy: corrupted must be at least 0.3, the settings have 0.1"),
    ],
)
def test_floors(flower: Any, sites: Sites, policy: str | None, model: str, said: str) -> None:
    play = flower.Play(folder=sites(), policy=policy, config={"secagg-threat-model": model})
    replies = play.train()
    play.refused(replies)
    assert all(said in m.error.reason for m in replies.values())
    assert not any("secagg.envelopes" in m.content for _, m in play.grid.said if m.has_content())


def test_a_floor_that_is_none(flower: Any, sites: Sites, caplog: pytest.LogCaptureFixture) -> None:
    play = flower.Play(folder=sites(), policy="corruption:0.3")
    replies = play.train()
    play.refused(replies, "its own configuration cannot be used")
    unusable(replies, caplog, "secagg-policy: expected threat models")


@pytest.mark.parametrize(
    ("policy", "model"),
    [
        ("honest-but-curious", "honest-but-curious"),
        ("semi-malicious+honest-but-curious", "semi-malicious"),
        ("malicious, cohort:5, included:4, corrupted:0.1", "malicious"),
    ],
)
def test_floors_that_are_met(flower: Any, sites: Sites, policy: str, model: str) -> None:
    play = flower.Play(folder=sites(), policy=policy, config={"secagg-threat-model": model})
    play.check(play.train(), play.nodes)


def test_a_floor_without_an_identity(flower: Any) -> None:
    play = flower.Play()
    play.grid.contexts[104].node_config["secagg-policy"] = "malicious"
    replies = play.train()
    play.check(replies, [101, 102, 103, 105])
    assert "threat model must be one of malicious" in replies[104].error.reason
    play.grid.contexts[104].node_config["secagg-policy"] = "cohort:6"
    assert "cohort must be at least 6" in play.train()[104].error.reason


def test_fewest_in_a_sum_is_for_the_node_to_say(flower: Any) -> None:
    """Its vector is in, and with so few it gives nothing that would open the sum."""
    play = flower.Play(fault=lambda n, count, message: "silent" if n == 101 and count >= 2 else None)
    for context in play.grid.contexts.values():
        context.node_config["secagg-policy"] = "included:5"
    play.refused(play.train())
    play.grid.fault = lambda n, count, message: None
    play.check(play.train(), play.nodes)


def test_corrupted_is_a_part_of_the_whole_roster(flower: Any, sites: Sites) -> None:
    """A server may sample just those that are corrupted: of ten, three may be, all in one sample."""
    config = {"secagg-corrupted": 0.3, "secagg-dropout": 0.0}
    play = flower.Play(nodes=10, folder=sites(), config=config)
    play.check(play.train(), play.nodes)
    replies = play.train(nodes=play.nodes[:4])
    play.refused(replies)
    done = play.secure.rounds[-1]
    assert done.aborted.stage == "opening"
    assert re.search(r"must sign the survivor set|honest contributors|threshold", done.aborted.cause)
    assert len(play.secure.rounds) == 2
    assert {n: play.grid.counts[n] for n in play.nodes} == dict.fromkeys(play.nodes, 6)  # of the first


def test_nodes_without_a_roster_at_the_server(flower: Any, sites: Sites) -> None:
    """Their names are Flower's numbers there, and their own files say otherwise: nobody takes part."""
    play = flower.Play(
        folder=sites(), policy="honest-but-curious", config={"secagg-threat-model": "honest-but-curious"}
    )
    play.roster = None
    play.secure = play.server()
    replies = play.train()
    play.refused(replies)
    assert all("not in this party's roster" in m.error.reason for m in replies.values())


def test_a_server_roster_that_is_short(flower: Any, sites: Sites) -> None:
    play = flower.Play(nodes=6, folder=sites())
    short = play.roster.with_name("short.json")
    write_roster(short, [p for p in sorted(play.roster.parent.glob("*.pub")) if p.stem != "site-3"])
    play.roster = short
    play.secure = play.server()
    replies = play.train()
    assert replies[104].error.reason == "secagg: it is not in the server's roster"
    play.check(replies, [n for n in play.nodes if n != 104])


def test_keys_and_rosters_that_are_swapped(
    flower: Any, sites: Sites, caplog: pytest.LogCaptureFixture
) -> None:
    play = flower.Play(folder=sites())
    play.roster.chmod(0o600)
    play.grid.contexts[104].node_config["secagg-identity"] = str(play.roster)
    replies = play.train()
    unusable(replies, caplog, "expected a .key file, got a roster")
    play.roster = play.roster.with_name("site-0.key")
    with pytest.raises(LocalError, match=r"expected a roster, got a \.key file"):
        play.server()
