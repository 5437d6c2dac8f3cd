"""Crashes: every party lost after every step and restored, from a snapshot or from its journal's file."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from protocols.errors import Aborted, AlreadyAnswered, LocalError
from protocols.graph import THREAT_MODELS
from protocols.journal import Answer, Contribution, Journal, MemoryJournal, SqliteJournal
from protocols.machine import Aggregate, Answered, Input, Received, StageClosed, Started, machine_id
from protocols.session import Session
from protocols.wire import SERVER, Envelope
from secagg.keys import Identity
from secagg.randomness import seeded

KEY = bytes(range(32))
NAMES = tuple("abcdef")
VECTORS = {name: [i, 10 * i, 99 - i] for i, name in enumerate(NAMES)}


class Failing:
    """A journal whose commits can be made to fail, before anything is recorded."""

    def __init__(
        self, journal: Journal, error: Callable[[], Exception] = lambda: LocalError("disk full")
    ) -> None:
        self.journal, self.error = journal, error
        self.commits, self.fail_at = 0, 0

    def commit(
        self, machine: bytes, step: int, state: Callable[[], bytes], answer: Answer | None = None,
        contribution: Contribution | None = None,
    ) -> None:  # fmt: skip
        self.commits += 1
        if self.commits == self.fail_at:
            raise self.error()
        self.journal.commit(machine, step, state, answer, contribution)

    def last_step(self, machine: bytes) -> int:
        return self.journal.last_step(machine)

    def last_answered(self, identity: bytes, task: str) -> int:
        return self.journal.last_answered(identity, task)

    def state(self, machine: bytes) -> bytes | None:
        return self.journal.state(machine)


class Cohort:
    """Real parties, each with its journal; `crash` loses one and brings it back."""

    def __init__(self, journals: dict[str, Any], **agreed: Any) -> None:
        self.identities = {n: Identity.generate(seeded(n.encode())) for n in NAMES}
        roster = {n: i.public for n, i in self.identities.items()}
        self.session = Session(roster, **{"dim": 3, "bound": 100, "dropout": 0.2} | agreed)
        self.journals = journals
        self.parties: dict[str, Any] = {SERVER: self.session.server(journal=journals[SERVER])}
        for n in NAMES:
            self.parties[n] = self.session.client(
                n, self.identities[n], journal=journals[n], rng=seeded(n.encode())
            )

    @property
    def server(self) -> Any:
        return self.parties[SERVER]

    def snapshot(self, name: str) -> bytes:
        return self.parties[name].snapshot(KEY)

    def restored(self, name: str, snapshot: bytes, key: bytes = KEY) -> Any:
        if name == SERVER:
            return self.session.restore_server(self.journals[name], snapshot=snapshot, key=key)
        identity = self.identities[name]
        return self.session.restore_client(name, identity, self.journals[name], snapshot=snapshot, key=key)

    def crash(self, name: str) -> None:
        """Lose the party; bring it back from a snapshot taken just before."""
        snapshot = self.snapshot(name)
        self.parties[name] = None
        self.parties[name] = self.restored(name, snapshot)

    def reopen(self, name: str) -> None:
        """Lose the party without a snapshot; bring it back from what its journal kept."""
        self.parties[name] = None
        if name == SERVER:
            self.parties[name] = self.session.restore_server(self.journals[name])
        else:
            self.parties[name] = self.session.restore_client(name, self.identities[name], self.journals[name])

    def down(self, envelopes: Iterable[Envelope]) -> list[Envelope]:
        return [out for e in envelopes for out in self.parties[e.to].handle(Received(e))]

    def up(self, envelopes: Iterable[Envelope]) -> list[Envelope]:
        return [out for e in envelopes for out in self.server.handle(Received(e))]

    def start(self) -> list[Envelope]:
        return [
            out for n in NAMES for v in (Started(), Input(VECTORS[n])) for out in self.parties[n].handle(v)
        ]

    def to_stage(self, stage: str) -> list[Envelope]:
        """Run until the server has opened `stage`; what the clients have sent for it."""
        up = self.start()
        while self.server.stage != stage:
            up = self.down(self.up(up))
        return up

    def finish(self, up: list[Envelope]) -> None:
        while self.server.result is None:
            stage = self.server.stage
            up = self.down(self.up(up) + self.server.handle(StageClosed(stage)))

    def assert_exact(self, included: Iterable[str] = NAMES) -> Aggregate:
        result = self.server.result
        assert isinstance(result, Aggregate), result
        assert result.included == tuple(included)
        assert result.sum.tolist() == [sum(VECTORS[n][i] for n in included) for i in range(3)]
        return result


@pytest.fixture(params=["memory", "sqlite"])
def journals(request, tmp_path):
    """One journal a party."""
    if request.param == "memory":
        yield {n: MemoryJournal() for n in (SERVER, *NAMES)}
        return
    made = {n: SqliteJournal(tmp_path / n, KEY) for n in (SERVER, *NAMES)}
    yield made
    for journal in made.values():
        journal.close()


@pytest.fixture
def files(tmp_path):
    """One SQLite file a party."""
    made = {n: SqliteJournal(tmp_path / n, KEY) for n in (SERVER, *NAMES)}
    yield made
    for journal in made.values():
        journal.close()


models = pytest.mark.parametrize("model", THREAT_MODELS)


# --------------------------------------------------------------------------------- crash and restore


@models
@pytest.mark.parametrize("silent", ["", "c"], ids=["all", "one dropped"])
def test_everybody_crashes_after_every_event(journals, model, silent):
    cohort = Cohort(journals, threat_model=model)
    up = []
    for name in NAMES:
        for event in (Started(), Input(VECTORS[name])):
            up += cohort.parties[name].handle(event)
            cohort.crash(name)
    while cohort.server.result is None:
        stage, down = cohort.server.stage, []
        for envelope in up:
            if not (envelope.sender == silent and stage not in ("keys", "shares")):
                down += cohort.up([envelope])
                cohort.crash(SERVER)
        down += cohort.server.handle(StageClosed(stage))
        cohort.crash(SERVER)
        up = []
        for envelope in down:
            up += cohort.down([envelope])
            cohort.crash(envelope.to)
    cohort.assert_exact([n for n in NAMES if n != silent])
    for name in NAMES:
        assert (cohort.parties[name].result is None) == (name == silent)


@models
def test_everybody_crashes_before_sending_anything(files, model):
    """The worst moment: the step is in the journal, the messages are not out."""
    cohort = Cohort(files, threat_model=model)
    for name in NAMES:
        cohort.parties[name].handle(Started())
        cohort.reopen(name)
        assert cohort.parties[name].handle(Input(VECTORS[name])) == []
    up = [e for n in NAMES for e in cohort.parties[n].resend()]
    while cohort.server.result is None:
        cohort.up(up)
        if cohort.server.result is not None:
            break
        cohort.reopen(SERVER)
        down, up = cohort.server.resend(), []
        assert len(down) == len(NAMES)
        for envelope in down:
            name = envelope.to
            cohort.down([envelope])
            before = cohort.parties[name].resend()
            cohort.reopen(name)
            assert cohort.parties[name].resend() == before
            if cohort.parties[name].stage == "survivors":
                assert [len(e.frame) for e in before] == [cohort.session.ring.packed_size(3)]
            up += before
    cohort.assert_exact()


@models
def test_input_that_was_not_yet_masked_is_given_again(files, model):
    """A kept input is no step: the journal's file does not have it, and it may be given again."""
    cohort = Cohort(files, threat_model=model)
    up = cohort.start()
    for name in NAMES:
        cohort.reopen(name)
        assert cohort.parties[name].handle(Input(VECTORS[name])) == []
    cohort.finish(up)
    cohort.assert_exact()


@models
@pytest.mark.parametrize("stage", ["keys", "shares", "masked", "signatures", "reveals"])
@pytest.mark.parametrize("heard", [1, 5])
def test_server_crashes_in_the_middle_of_a_stage(files, model, stage, heard):
    """Its file has the stage's beginning: the clients say again what was lost."""
    if stage == "signatures" and model == THREAT_MODELS[0]:
        pytest.skip("nothing is signed")
    cohort = Cohort(files, threat_model=model)
    if stage == "keys":
        up = cohort.start()
        cohort.up(up[:heard])
        assert files[SERVER].state(machine_id(cohort.session, SERVER)) is None
        cohort.parties[SERVER] = cohort.session.server(journal=files[SERVER])
    else:
        up = cohort.to_stage(stage)
        cohort.up(up[:heard])
        cohort.reopen(SERVER)
    again = [e for n in NAMES for e in cohort.parties[n].resend()]
    assert again == up
    assert len(cohort.server.waiting_for) == len(NAMES)
    cohort.finish(again)
    cohort.assert_exact()


@models
def test_server_snapshot_keeps_the_running_sum(journals, model):
    cohort = Cohort(journals, threat_model=model)
    up = cohort.to_stage("masked")
    cohort.up(up[:4])
    cohort.crash(SERVER)
    assert cohort.server.waiting_for == tuple(e.sender for e in up[4:])
    cohort.finish(up[4:])
    result = cohort.assert_exact()
    cohort.crash(SERVER)
    assert cohort.assert_exact().faults == result.faults


@models
def test_results_survive(journals, model):
    cohort = Cohort(journals, threat_model=model)
    cohort.finish(cohort.start())
    for name in NAMES:
        cohort.crash(name)
        assert cohort.parties[name].result == Answered(NAMES)
    aborted = Cohort({n: MemoryJournal() for n in (SERVER, *NAMES)}, threat_model=model)
    aborted.up(aborted.start()[:2])
    aborted.down(aborted.server.handle(StageClosed("keys")))
    for name in (SERVER, *NAMES[:2]):
        before = aborted.parties[name].result
        assert isinstance(before, Aborted)
        aborted.crash(name)
        after = aborted.parties[name].result
        for what in ("stage", "cause", "culprits", "revealed", "retry", "faults", "dropped"):
            assert getattr(after, what) == getattr(before, what)
        assert aborted.parties[name].stage == "stopped"


# ---------------------------------------------------------------------------------------- redelivery


@models
@pytest.mark.parametrize("crash", [False, True])
def test_redelivery_resends_the_same_bytes(journals, model, crash):
    cohort = Cohort(journals, threat_model=model)
    up = cohort.start()
    while cohort.server.result is None:
        stage = cohort.server.stage
        down = cohort.up(up) + cohort.server.handle(StageClosed(stage))
        assert cohort.server.resend() == down or cohort.server.result is not None
        up = []
        for envelope in down:
            sent = cohort.down([envelope])
            if crash:
                cohort.crash(envelope.to)
            for _ in range(2):
                assert cohort.down([envelope]) == sent
            assert cohort.parties[envelope.to].resend() == sent
            up += sent
    cohort.assert_exact()


@models
def test_redelivery_of_what_is_long_past_says_nothing(journals, model):
    cohort = Cohort(journals, threat_model=model)
    up, past = cohort.start(), []
    while cohort.server.result is None:
        down = cohort.up(up)
        up = cohort.down(down)
        if down:
            assert cohort.down(past) == []
        past += down
    cohort.assert_exact()


@models
def test_server_hears_everything_twice(journals, model):
    cohort = Cohort(journals, threat_model=model)
    up = cohort.start()
    while cohort.server.result is None:
        up = cohort.down(cohort.up(e for envelope in up for e in (envelope, envelope)))
    assert cohort.assert_exact().faults == ()


# ----------------------------------------------------------------------------------------- rollback


@models
def test_every_older_snapshot_of_everybody_is_refused(journals, model):
    cohort = Cohort(journals, threat_model=model)
    taken: list[tuple[str, int, bytes]] = []

    def keep(names: Iterable[str]) -> None:
        for name in names:
            taken.append((name, cohort.parties[name]._step, cohort.snapshot(name)))

    keep((SERVER, *NAMES))
    up = cohort.start()
    keep(NAMES)
    while cohort.server.result is None:
        down = cohort.up(up)
        keep([SERVER])
        up = cohort.down(down)
        keep(NAMES)
    refused = 0
    for name, step, snapshot in taken:
        if step == cohort.parties[name]._step:
            cohort.restored(name, snapshot)
            continue
        refused += 1
        with pytest.raises(LocalError, match="only the newest state may continue"):
            cohort.restored(name, snapshot)
    assert refused >= 4 * len(NAMES)


@models
def test_state_of_one_party_is_not_anothers(files, model):
    cohort = Cohort(files, threat_model=model)
    cohort.to_stage("masked")
    state = cohort.snapshot("a")
    for name in ("b", SERVER):
        with pytest.raises(LocalError, match="does not open"):
            cohort.restored(name, state)
    with pytest.raises(LocalError, match="does not open"):
        cohort.restored("a", state, bytes(32))
    assert files["a"].state(machine_id(cohort.session, "b")) is None
    cohort.journals["b"] = files["a"]
    with pytest.raises(LocalError, match="keeps no state of this party"):
        cohort.reopen("b")


@models
def test_rows_that_were_swapped_in_the_file_do_not_open(tmp_path, model):
    journal = SqliteJournal(tmp_path / "shared", KEY)
    cohort = Cohort(dict.fromkeys([*NAMES, SERVER], journal), threat_model=model)
    cohort.to_stage("masked")
    one, two = (machine_id(cohort.session, name) for name in ("a", "b"))
    with sqlite3.connect(tmp_path / "shared") as other:
        states = dict(other.execute("SELECT machine, state FROM steps"))
        other.execute("UPDATE steps SET state = ? WHERE machine = ?", (states[two], one))
    other.close()
    with pytest.raises(LocalError, match="does not open"):
        cohort.reopen("a")
    journal.close()


# ------------------------------------------------------------------------------------ failing commits

errors = pytest.mark.parametrize("error", [lambda: LocalError("disk full"), lambda: OSError("disk full")])


@models
@errors
@pytest.mark.parametrize("at", [1, 2, 3, 4, 5, 6])
def test_clients_failing_commit_changes_and_sends_nothing(model, error, at):
    """The input is given once the shares are there: each event takes one step."""
    last = 5 if model == THREAT_MODELS[0] else 6
    if at > last:
        pytest.skip("there are fewer steps without signatures")
    failing = Failing(MemoryJournal(), error)
    failing.fail_at = at
    cohort = Cohort({n: MemoryJournal() for n in (SERVER, *NAMES)} | {"b": failing}, threat_model=model)
    tried = 0

    def insist(event: Any) -> list[Envelope]:
        nonlocal tried
        client = cohort.parties["b"]
        while True:
            before = client._dump(), client.stage, client.result
            try:
                return client.handle(event)
            except type(error()):
                tried += 1
                assert (client._dump(), client.stage, client.result) == before

    up = []
    for name in NAMES:
        if name == "b":
            up += insist(Started())
        else:
            up += cohort.parties[name].handle(Started()) + cohort.parties[name].handle(Input(VECTORS[name]))
    while cohort.server.result is None:
        down, up = cohort.up(up), []
        for envelope in down:
            up += insist(Received(envelope)) if envelope.to == "b" else cohort.down([envelope])
            if envelope.to == "b" and cohort.parties["b"].stage == "input":
                up += insist(Input(VECTORS["b"]))
    assert tried == 1
    cohort.assert_exact()
    assert failing.last_answered(cohort.identities["b"].public, "") == 0


@models
def test_commit_that_fails_between_shares_and_a_kept_input_can_be_retried(model):
    failing = Failing(MemoryJournal())
    failing.fail_at = 4  # start, roster, shares, and then the mask
    cohort = Cohort({n: MemoryJournal() for n in (SERVER, *NAMES)} | {"b": failing}, threat_model=model)
    down = cohort.up(cohort.to_stage("shares"))
    (shares,) = [e for e in down if e.to == "b"]
    up = cohort.down(e for e in down if e.to != "b")
    with pytest.raises(LocalError, match="disk full"):
        cohort.parties["b"].handle(Received(shares))
    cohort.finish(up + cohort.parties["b"].handle(Received(shares)))
    cohort.assert_exact()


@models
def test_crash_between_shares_and_a_kept_input_can_be_restored(tmp_path, model):
    store = SqliteJournal(tmp_path / "b", KEY)
    failing = Failing(store)
    failing.fail_at = 4
    cohort = Cohort({n: MemoryJournal() for n in (SERVER, *NAMES)} | {"b": failing}, threat_model=model)
    down = cohort.up(cohort.to_stage("shares"))
    (shares,) = [e for e in down if e.to == "b"]
    up = cohort.down(e for e in down if e.to != "b")
    with pytest.raises(LocalError, match="disk full"):
        cohort.parties["b"].handle(Received(shares))
    cohort.journals["b"] = store
    cohort.reopen("b")
    store.close()
    cohort.journals["b"] = cohort.parties["b"]._journal = MemoryJournal()
    cohort.journals["b"]._steps[machine_id(cohort.session, "b")] = 3
    again = cohort.parties["b"].handle(Received(shares)) + cohort.parties["b"].resend()
    cohort.finish(up + again)
    cohort.assert_exact()


@models
@errors
@pytest.mark.parametrize("at", [1, 2, 3, 4])
def test_servers_failing_commit_changes_and_sends_nothing(model, error, at):
    if at == 4 and model == THREAT_MODELS[0]:
        pytest.skip("there are fewer steps without signatures")
    failing = Failing(MemoryJournal(), error)
    failing.fail_at = at
    cohort = Cohort({n: MemoryJournal() for n in NAMES} | {SERVER: failing}, threat_model=model)
    up, tried = cohort.start(), 0
    while cohort.server.result is None:
        stage, server = cohort.server.stage, cohort.server
        down = cohort.up(up[:-1])
        try:
            down += cohort.up(up[-1:])
        except type(error()):
            tried += 1
            assert server.stage == stage
            assert server.result is None
            assert server.waiting_for == ()  # it has the message: closing the stage is what failed
            failing.fail_at = failing.commits + 1
            before = server._dump()
            with pytest.raises(type(error())):
                server.handle(StageClosed(stage))
            assert server._dump() == before
            down += server.handle(StageClosed(stage))
        up = cohort.down(down)
    assert tried == 1
    assert cohort.assert_exact().faults == ()


@models
def test_servers_failing_commit_with_a_client_missing(model):
    """Dropping the silent is part of the step: undone with it, and done once."""
    failing = Failing(MemoryJournal())
    cohort = Cohort({n: MemoryJournal() for n in NAMES} | {SERVER: failing}, threat_model=model)
    up = cohort.to_stage("masked")
    cohort.up(up[:-1])
    failing.fail_at = failing.commits + 1
    before = cohort.server._dump()
    with pytest.raises(LocalError, match="disk full"):
        cohort.server.handle(StageClosed("masked"))
    assert cohort.server._dump() == before
    assert cohort.server.waiting_for == ("f",)
    cohort.finish(up[-1:])  # it comes after all
    assert cohort.assert_exact().faults == ()


@models
def test_servers_failing_abort_changes_and_sends_nothing(model):
    failing = Failing(MemoryJournal())
    failing.fail_at = 1
    cohort = Cohort({n: MemoryJournal() for n in NAMES} | {SERVER: failing}, threat_model=model)
    cohort.up(cohort.start()[:2])
    before = cohort.server._dump()
    with pytest.raises(LocalError, match="disk full"):
        cohort.server.handle(StageClosed("keys"))
    assert cohort.server._dump() == before
    assert {e.to for e in cohort.server.handle(StageClosed("keys"))} == {"a", "b"}


# ---------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize(
    "content", [b"not a database" * 200, b"\0" * 4096, b"SQLite format 3\0" + b"\xff" * 4096]
)
def test_garbage_is_not_a_journal(tmp_path, content):
    path = tmp_path / "journal"
    path.write_bytes(content)
    with pytest.raises(LocalError, match="journal: cannot use"):
        SqliteJournal(path, KEY)
    assert path.read_bytes() == content


def test_folder_is_not_a_journal(tmp_path):
    with pytest.raises(LocalError, match="journal: cannot use"):
        SqliteJournal(tmp_path, KEY)
    with pytest.raises(LocalError, match="journal: cannot use"):
        SqliteJournal(tmp_path / "missing" / "journal", KEY)


@pytest.mark.parametrize("key", [b"", bytes(31), bytes(33), "x" * 32, None])
def test_key_of_the_wrong_length_is_refused(tmp_path, key):
    with pytest.raises(LocalError, match="key: expected 32 bytes"):
        SqliteJournal(tmp_path / "journal", key)
    assert list(tmp_path.iterdir()) == []


def test_database_of_something_else_is_not_a_journal(tmp_path):
    path = tmp_path / "journal"
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE steps (taken_on_the_stairs INTEGER)")
    other.commit()
    other.close()
    with pytest.raises(LocalError):
        SqliteJournal(path, KEY).commit(bytes(32), 1, lambda: b"state")


@pytest.mark.parametrize("asked", ["last_step", "last_answered", "state", "erase"])
def test_reading_an_unreadable_journal_is_our_callers_error(tmp_path, asked):
    journal = SqliteJournal(tmp_path / "journal", KEY)
    journal.close()
    arguments = (bytes(32), "") if asked == "last_answered" else (bytes(32),)
    with pytest.raises(LocalError):
        getattr(journal, asked)(*arguments)


def test_closed_journal_does_not_commit(tmp_path):
    journal = SqliteJournal(tmp_path / "journal", KEY)
    journal.close()
    with pytest.raises(LocalError, match="cannot write"):
        journal.commit(bytes(32), 1, lambda: b"state")


def test_state_that_cannot_be_written_down_is_not_recorded(files):
    def state() -> bytes:
        raise MemoryError

    with pytest.raises(MemoryError):
        files["a"].commit(bytes(32), 1, state)
    assert files["a"].last_step(bytes(32)) == 0
    files["a"].commit(bytes(32), 1, lambda: b"state")
    assert files["a"].last_step(bytes(32)) == 1


def test_steps_and_answers_are_in_the_file(tmp_path):
    """What was committed is known to the next process; a refused commit leaves no trace."""
    one, path = bytes(32), tmp_path / "journal"
    journal = SqliteJournal(path, KEY)
    journal.commit(one, 1, lambda: b"first")
    journal.commit(one, 2, lambda: b"second", (b"me", "task", 4))
    for step in (0, 1, 2, 4):
        with pytest.raises(LocalError, match="does not follow step 2"):
            journal.commit(one, step, lambda: b"other")
    with pytest.raises(AlreadyAnswered):
        journal.commit(one, 3, lambda: b"other", (b"me", "task", 4))
    journal.close()
    other = SqliteJournal(path, bytes(range(1, 33)))
    with pytest.raises(LocalError, match="does not open"):
        other.state(one)
    other.close()
    again = SqliteJournal(path, KEY)
    assert again.last_step(one) == 2
    assert again.state(one) == b"second"
    assert again.last_answered(b"me", "task") == 4
    assert again.last_answered(b"you", "task") == again.last_answered(b"me", "other") == -1
    again.commit(one, 3, lambda: b"third", (b"me", "task", 5))
    again.erase(one)
    assert again.last_step(one) == 3
    with pytest.raises(LocalError, match="does not follow step 3"):
        again.commit(one, 3, lambda: b"other")
    again.close()


@pytest.fixture(params=["memory", "sqlite"])
def one_journal(request, tmp_path):
    """A journal of either kind."""
    if request.param == "memory":
        yield MemoryJournal()
        return
    journal = SqliteJournal(tmp_path / "one", KEY)
    yield journal
    journal.close()


def test_vector_of_a_round_goes_to_one_cohort(one_journal):
    me, other, here, there = bytes(32), bytes(31) + b"1", b"here" * 8, b"there" * 8
    steps = 0

    def contribute(identity: bytes, task: str, number: int, cohort: bytes) -> None:
        nonlocal steps
        one_journal.commit(bytes(32), steps + 1, lambda: b"", None, (identity, task, number, cohort))
        steps += 1

    contribute(me, "task", 4, here)
    contribute(me, "task", 4, here)  # the same cohort again
    for number, cohort in ((4, there), (3, here), (3, there), (0, here)):
        with pytest.raises(AlreadyAnswered, match="a vector was already sent for round 4 of task 'task'"):
            contribute(me, "task", number, cohort)
        assert one_journal.last_step(bytes(32)) == steps
    contribute(other, "task", 4, there)
    contribute(me, "other", 3, there)
    contribute(me, "task", 4, here)  # what was refused has changed nothing
    contribute(me, "task", 5, there)
    with pytest.raises(AlreadyAnswered, match="round 5"):
        contribute(me, "task", 4, here)
    contribute(me, "task", 7, here)
    assert one_journal.last_answered(me, "task") == -1  # a vector is no answer


def test_refused_answer_records_no_vector_and_the_other_way_round(one_journal):
    machine, here = bytes(32), b"here" * 8
    one_journal.commit(machine, 1, lambda: b"", (b"me", "task", 4), (b"me", "task", 4, here))
    for answer, contribution in (
        ((b"me", "task", 4), (b"me", "task", 9, here)),
        ((b"me", "task", 9), (b"me", "task", 3, here)),
    ):
        with pytest.raises(AlreadyAnswered):
            one_journal.commit(machine, 2, lambda: b"", answer, contribution)
    assert one_journal.last_answered(b"me", "task") == 4
    one_journal.commit(machine, 2, lambda: b"", None, (b"me", "task", 5, here))


def test_last_cohort_is_in_the_file(tmp_path):
    path, here, there = tmp_path / "journal", b"here" * 8, b"there" * 8
    journal = SqliteJournal(path, KEY)
    journal.commit(bytes(32), 1, lambda: b"", None, (b"me", "task", 4, here))
    journal.close()
    again = SqliteJournal(path, KEY)
    with pytest.raises(AlreadyAnswered):
        again.commit(bytes(32), 2, lambda: b"", None, (b"me", "task", 4, there))
    again.commit(bytes(32), 2, lambda: b"", None, (b"me", "task", 4, here))
    again.close()


def test_commits_are_synced_to_the_disk_with_their_folder(files):
    assert files["a"]._db.execute("PRAGMA synchronous").fetchone() == (3,)  # EXTRA


def test_commit_beside_a_reader_fails_whole_and_can_be_repeated(tmp_path):
    """SQLite lets the transaction begin and refuses its end: it must not stay open."""
    machine, path, cohort = bytes(32), tmp_path / "journal", b"here" * 8
    journal = SqliteJournal(path, KEY)
    journal._db.execute("PRAGMA busy_timeout = 50")
    journal.commit(machine, 1, lambda: b"first")
    reader = sqlite3.connect(path, isolation_level=None)
    reader.execute("BEGIN")
    assert reader.execute("SELECT step FROM steps").fetchall() == [(1,)]

    def commit() -> None:
        journal.commit(machine, 2, lambda: b"second", (b"me", "task", 4), (b"me", "task", 4, cohort))

    for _ in range(2):
        with pytest.raises(LocalError, match="cannot write"):
            commit()
        assert not journal._db.in_transaction
        assert journal.last_step(machine) == 1
        assert journal.state(machine) == b"first"
        assert journal.last_answered(b"me", "task") == -1
    reader.close()
    commit()
    assert journal.last_step(machine) == 2
    assert journal.state(machine) == b"second"
    journal.close()
    again = SqliteJournal(path, KEY)
    assert again.last_step(machine) == 2
    assert again.last_answered(b"me", "task") == 4
    again.close()


@models
@pytest.mark.parametrize("early", [True, False], ids=["given early", "given in time"])
def test_state_after_masking_no_longer_holds_the_input(files, model, early):
    cohort = Cohort(files, threat_model=model, dim=16, bound=1 << 32)
    plain = [0xC0FFEE00 + i for i in range(16)]
    ring, machine = cohort.session.ring, machine_id(cohort.session, "a")
    vector = cohort.session.vector(plain)
    shapes = [vector.tobytes(), ring.pack(vector), *(v.to_bytes(4, "little") for v in plain)]
    client = cohort.parties["a"]
    up = [e for n in NAMES for e in cohort.parties[n].handle(Started())]
    for name in NAMES:
        if name != "a" or early:
            assert cohort.parties[name].handle(Input(plain)) == []
    if early:
        assert shapes[0] in client._dump()  # the control: so it looks when it is kept
    down = cohort.up(cohort.down(cohort.up(up)))
    sent = cohort.down(e for e in down if e.to == "a")
    if not early:
        assert client.stage == "input"
        sent = client.handle(Input(plain))
    assert [len(e.frame) for e in sent] == [ring.packed_size(16)]
    state = files["a"].state(machine)
    assert sent[0].frame in state  # it is the state of the mask step
    assert not [s for s in shapes if s in state or s in client._dump()]
    cohort.reopen("a")
    assert cohort.parties["a"].resend() == sent
    assert cohort.parties["a"]._pending is None


def test_erased_state_is_none(files):
    files["a"].commit(bytes(32), 1, lambda: b"state")
    files["a"].erase(bytes(32))
    assert files["a"].state(bytes(32)) is None


def test_two_processes_take_a_step_once(tmp_path):
    path = tmp_path / "journal"
    one, two = SqliteJournal(path, KEY), SqliteJournal(path, KEY)
    one.commit(bytes(32), 1, lambda: b"state")
    with pytest.raises(LocalError, match="does not follow step 1"):
        two.commit(bytes(32), 1, lambda: b"state")
    two.commit(bytes(32), 2, lambda: b"state")
    assert one.last_step(bytes(32)) == 2
    one.close()
    two.close()


@models
def test_file_holds_no_secret_and_none_after_erasing(tmp_path, files, model):
    cohort = Cohort(files, threat_model=model)
    up = cohort.start()
    state = cohort.parties["a"]._state
    secrets = [state.channel, state.mask, state.seed, state.entropy]
    machine = machine_id(cohort.session, "a")
    assert all(s in files["a"].state(machine) for s in secrets)
    raw = (tmp_path / "a").read_bytes()
    assert not [s for s in secrets if s in raw]
    cohort.finish(up)
    sealed = files["a"]._row("SELECT state FROM steps WHERE machine = ?", machine)[0]
    assert sealed[:64] in (tmp_path / "a").read_bytes()
    files["a"].erase(machine)
    assert sealed[:64] not in (tmp_path / "a").read_bytes()
