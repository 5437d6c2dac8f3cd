"""Attack: read secrets where they do not belong: logs, tracebacks, reprs, stored snapshots, messages.

Every secret that any client holds in a whole session is collected from its states; none occurs, raw, in
hex or as Python writes bytes, in any text that the library makes, nor in a sealed snapshot.
"""

import traceback

import msgspec
import pytest

from protocols.errors import LocalError
from protocols.journal import SqliteJournal
from protocols.machine import Input, Received, StageClosed, Started
from protocols.pairwise import ClientContext, Revealed, Stop
from secagg.keys import AgreementKey, Identity

KEY = bytes(range(100, 132))
PUBLIC = {"setup", "peers", "included", "strangers", "neighbours"}


def secrets_of(cohort) -> set[bytes]:
    """Byte strings that only their owner may know, of all clients, as they are now."""
    found = {KEY}
    for client in cohort.clients.values():
        state = client._state
        for field in state.__struct_fields__:
            if field in PUBLIC:
                continue
            value = getattr(state, field)
            values = value.values() if isinstance(value, dict) else [value]
            found |= {v for v in values if v}
        if client._pending is not None:
            found.add(client._pending.tobytes())
    return found


def openings(secrets: set[bytes]) -> set[bytes]:
    """The two halves of what a holder keeps for a dealer."""
    return {half for s in secrets if len(s) > 64 for half in (s[: len(s) // 2], s[len(s) // 2 :])}


def assert_absent(secrets: set[bytes], text: str | bytes) -> None:
    if isinstance(text, bytes):
        assert not [s for s in secrets if s in text]
        return
    lowered = text.lower()
    for secret in secrets:
        assert secret.hex() not in lowered
        assert secret.hex()[:32] not in lowered
        assert repr(secret)[2:-1] not in text
        assert str(list(secret))[1:-1] not in text


class Watched:
    """A run, with every text there is at each step, and every secret there was."""

    def __init__(self, cohort) -> None:
        self.cohort, self.secrets = cohort, set()
        self.texts: list[str] = []
        self.sealed: list[bytes] = []

    def look(self, *things) -> None:
        cohort = self.cohort
        self.secrets |= secrets_of(cohort)
        machines = [*cohort.clients.values(), cohort.server]
        for thing in (
            *things,
            *machines,
            *cohort.journals.values(),
            *cohort.identities.values(),
            cohort.session,
        ):
            self.texts += [repr(thing), str(thing)]
        for machine in machines:
            self.texts += [
                repr(machine._state),
                repr(machine._context),
                repr(machine.result),
                repr(machine.faults),
            ]
            self.texts += [f"{machine._state}", repr(machine.resend())]
            self.sealed.append(machine.snapshot(KEY))

    def judge(self) -> None:
        assert len(self.secrets) > 100
        assert_absent(self.secrets | openings(self.secrets), "\n".join(self.texts))
        for blob in self.sealed:
            assert_absent({s for s in self.secrets if len(s) >= 16}, blob)


def watched_run(play, model, silent=None):
    cohort = play(threat_model=model)
    watched = Watched(cohort)
    watched.look()
    up = []
    for name, client in cohort.clients.items():
        up += client.handle(Started())
        event = Input(cohort.vectors[name])
        up += client.handle(event)
        watched.look(event, Started())
    sent = list(up)
    while cohort.server.result is None:
        down = cohort.close_after(up, silent)
        watched.look(*up, *down, *[Received(e) for e in down], StageClosed("keys"))
        up = cohort.down(down)
        sent += up
        watched.look()
    watched.look(*up)
    return cohort, watched, sent


@pytest.mark.parametrize("silent", [None, {"eve": "masked"}], ids=["all", "one dropped"])
def test_no_text_and_no_snapshot_holds_a_secret(play, any_model, silent):
    cohort, watched, _ = watched_run(play, any_model, silent)
    cohort.assert_exact()
    watched.judge()


def test_messages_hold_no_secret_but_the_one_opening_asked_for(play, kit, any_model):
    """In what a client sends, and in all the server keeps, at most one secret of a dealer can be found."""
    cohort, watched, sent = watched_run(play, any_model)
    halves = openings(watched.secrets)
    alone = {s for s in watched.secrets if len(s) == 32}
    assert halves
    for envelope in sent:
        assert_absent(alone | {KEY}, envelope.body)
        assert_absent(alone, bytes(envelope.frame))
        if not isinstance(kit.read(envelope), Revealed):
            assert_absent(halves, envelope.body)
    revealed = b"".join(e.body for e in sent if isinstance(kit.read(e), Revealed))
    for secret in (s for s in watched.secrets if len(s) > 64):
        half = len(secret) // 2
        assert secret[half:] not in revealed  # everybody was included: no share of a key is shown
    assert_absent(alone, msgspec.msgpack.encode(cohort.server._state))


def test_finished_and_stopped_clients_keep_no_secret(play, any_model):
    cohort, watched, _ = watched_run(play, any_model)
    stopped = play(threat_model=any_model)
    stopped.start()
    stopped.until_secrets = secrets_of(stopped)
    for name, client in stopped.clients.items():
        client.handle(Received(stopped.say(name, stopped.question(stopped.clients))))
        assert_absent(stopped.until_secrets, client._dump())
    held = {s for s in watched.secrets if len(s) == 32}
    for client in cohort.clients.values():
        assert_absent(held, client._dump())
        assert client._pending is None


def test_masked_clients_keep_neither_key_nor_seed(play, any_model):
    """Once the vector is masked a stolen state opens nothing of its own."""
    cohort = play(threat_model=any_model)
    cohort.start()
    own = {
        n: {c._state.mask, c._state.seed, c._state.channel, c._state.entropy}
        for n, c in cohort.clients.items()
    }
    second = play(threat_model=any_model)
    second.until("signatures" if second.session.signed else "reveals")
    for name, client in second.clients.items():
        assert client.stage == "survivors"
        assert_absent(own[name], client._dump())


def test_errors_hold_no_secret(play, any_model, tmp_path):
    """Every refusal that can be provoked at every stage, with its traceback."""
    cohort = play(threat_model=any_model)
    watched = Watched(cohort)
    texts = []

    def provoke(call):
        try:
            call()
        except LocalError as error:
            texts.append("".join(traceback.format_exception(error)) + repr(error))
        else:
            raise AssertionError("not refused")

    up = cohort.start()
    while cohort.server.result is None:
        watched.look()
        for name, client in cohort.clients.items():
            snapshot = client.snapshot(KEY)
            provoke(lambda c=client: c.handle(Started()))
            provoke(lambda c=client, n=name: c.handle(Input(cohort.vectors[n])))
            provoke(lambda c=client, n=name: c.handle(cohort.vectors[n]))
            provoke(lambda c=client, n=name: c.handle(Received(cohort.vectors[n])))
            provoke(lambda n=name: cohort.server.handle(Input(cohort.vectors[n])))
            assert client.handle(Received(cohort.say("server", Stop(), sender=name))) == []  # misrouted
            provoke(
                lambda n=name, s=snapshot: cohort.session.restore_client(
                    n, cohort.identities[n], cohort.journals[n], snapshot=s, key=bytes(32)
                )
            )
        up = cohort.down(cohort.close_after(up))
    for name in cohort.clients:
        provoke(lambda n=name: cohort.session.client(n, cohort.identities[n], journal=cohort.journals[n]))
    path = tmp_path / "garbage"
    path.write_bytes(b"not a database at all" * 100)
    provoke(lambda: SqliteJournal(path, KEY))
    watched.texts += texts
    watched.judge()


@pytest.mark.parametrize("wrap", [lambda v: v, Received, lambda v: (Input, v)])
def test_event_of_a_wrong_type_names_only_its_type(play, wrap):
    """A vector given as it is, and not as an `Input`, is not quoted."""
    cohort = play()
    event = wrap([424242] * 5)
    for machine in (cohort.clients["ada"], cohort.server):
        with pytest.raises(LocalError, match=f"got {type(event).__name__}$") as refused:
            machine.handle(event)
        assert "424242" not in str(refused.value)
        assert "424242" not in "".join(traceback.format_exception(refused.value))


def test_keys_contexts_and_states_show_none(play):
    secret = bytes(range(50, 82))
    cohort = play()
    cohort.start()
    client = cohort.clients["ada"]
    context = client._context
    assert isinstance(context, ClientContext)
    state = client._state
    for thing in (AgreementKey(secret), Identity(secret)):
        assert_absent({secret}, repr(thing) + str(thing))
    assert repr(state) == str(state) == "AwaitRoster(…)"
    assert state.__rich_repr__() == []  # what rich's pretty-printer asks for
    assert_absent(secrets_of(cohort), repr({"in": [state, (context,)]}))
