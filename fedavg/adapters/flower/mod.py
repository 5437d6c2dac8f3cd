"""The node's side: a mod that takes part in sessions with what the ClientApp replies.

Between the messages of a round, state lives in `context.state` and nowhere else; with the round's last
message it is erased, but for the public marks of which rounds were answered. Where the node's configuration
names an identity, the state is encrypted under a key of that file and tied to a journal beside it; without
one, the state of a session is as safe as the place where the SuperNode keeps it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import msgspec
import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp.typing import ClientAppCallable
from flwr.common.constant import ErrorCode
from numpy.typing import NDArray

from fedavg.adapters.flower.records import (
    ENVELOPES,
    RECORD,
    Form,
    bytes_of,
    category,
    claim,
    hash_instruction,
    instruction_in,
    log,
    pack,
    task,
    unpack,
)
from fedavg.adapters.opening import LEARNING_TERMS, Opening
from fedavg.adapters.site import Site
from fedavg.budget import BudgetSpent
from fedavg.codec import to_integers
from fedavg.ledger import Ledger
from fedavg.privacy import Plan
from protocols.errors import Aborted, RemoteError
from protocols.journal import MemoryJournal
from protocols.machine import ClientMachine, Input, Received, Started
from secagg.randomness import system


class Refused(Exception):
    """This node answers with an error, whose text the server may read."""

    def __init__(self, reason: str, code: int = ErrorCode.MOD_FAILED_PRECONDITION) -> None:
        super().__init__(reason)
        self.code = code


Vector = NDArray[np.int64]

Make = Callable[[RecordDict, Opening, Site], Callable[[], Vector]]
"""What a node does with an instruction once the protocol is ready for its vector.

First what does not depend on the node's data, and may be refused; the work itself is the function it returns.
"""


def secagg_mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Take part in a session with what the app replies; refuse every message that is not protected.

    Attach it first of all mods: `@app.train(mods=[secagg_mod, fixedclipping_mod])`, and the same for
    `@app.evaluate`; or `ClientApp(client_fn, mods=[secagg_mod])` in the legacy API, where it stands before
    every kind of message. What the app says when it fails goes to the node's own log, not to the server.
    """
    kind = category(message)

    def make(instruction: RecordDict, opening: Opening, _: Site) -> Callable[[], Vector]:
        form = Form.of(kind, instruction, opening.settings)
        codec = form.codec(opening.settings, len(opening.cohort), opening.plan, opening.instruction)
        if (codec.length, codec.bound) != (opening.length, opening.bound):
            raise Refused("the instruction does not fit the round that was opened for it")
        message.content = instruction
        return lambda: form.encode(_replied(call_next(message, context)), codec)

    return take_part(message, context, make if kind in ("train", "evaluate") else None)


def take_part(
    message: Message, context: Context, make: Make | None, terms: Collection[str] = LEARNING_TERMS
) -> Message:
    """The reply to one message of a session in which this node takes part, on these of its terms.

    No `make` refuses them all.
    """
    try:
        return Message(_answered(message, context, make, terms), reply_to=message)
    except Refused as refused:
        code, reason = refused.code, str(refused)
    except (RemoteError, ValueError, ModuleNotFoundError) as error:  # `LocalError` is a ValueError
        code, reason = ErrorCode.MOD_FAILED_PRECONDITION, str(error)
    log.warning("secagg: %s", reason)
    _erase(context)
    return Message(Error(code, f"secagg: {reason}"), reply_to=message)


def _replied(reply: Message) -> RecordDict:
    """What the app replied, unless that it failed."""
    if reply.has_error():  # of a mod further in, say
        log.warning("secagg: the app replied with an error: %s", reply.error.reason)
        raise Refused("the app replied with an error; its own log says why", reply.error.code)
    for name, record in reply.content.config_records.items():  # the legacy API's way to say the same
        if name.endswith("res.status") and record.get("code"):
            raise Refused("the app says that it failed")
    return reply.content


def _answered(message: Message, context: Context, make: Make | None, terms: Collection[str]) -> RecordDict:
    """One message of a round: the first, which opens it, or one of those that follow."""
    content = message.content
    ours, letters = content.config_records.get(RECORD), content.array_records.get(ENVELOPES)
    if make is None or (ours is None and letters is None):
        raise Refused(
            f"{message.metadata.message_type}: a message without protection is refused: send it by "
            "SecAggGrid (in the legacy API: by fit_workflow and evaluate_workflow)"
        )
    kept = context.state.config_records.get(RECORD, ConfigRecord())
    journal = bytes_of(kept, "journal") if "journal" in kept else None
    spent = bytes_of(kept, "ledger") if "ledger" in kept else None
    try:
        site = Site.of(context.node_config, str(context.node_id), journal)
    except ValueError as error:  # it may name files and rules of this site
        log.error("secagg: this node's configuration cannot be used: %s", error)
        raise Refused("its own configuration cannot be used; its log says why") from None
    if ours is not None and "who" in ours:
        signature = site.identity.sign(claim(context.run_id, context.node_id))
        return RecordDict({RECORD: ConfigRecord({"name": site.name, "signature": signature})})
    if ours is not None:
        _erase(context)  # a round that was never finished
        opening = Opening.from_bytes_checked(bytes_of(ours, "opening"))
        if kept.get("terms") not in (None, _packed(opening, terms)):
            raise Refused("the settings are not those of this run's first round")
        session = opening.session(task(context, message), site.roster)
        site.check(opening, session, terms)
        if opening.plan is not None:
            _spend(site, opening, session.task, spent, Ledger.check)
        client = session.client(site.name, site.identity, policy=site.policy, journal=site.journal)
        sent = client.handle(Started())
    elif "snapshot" not in kept:
        raise Refused("nothing is kept of this round: it ended, or never began here")
    else:
        opening = Opening.from_bytes_checked(bytes_of(kept, "opening"))
        session = opening.session(task(context, message), site.roster)
        client = session.restore_client(
            site.name, site.identity, site.journal, snapshot=bytes_of(kept, "snapshot"),
            key=site.key or bytes_of(kept, "key"), policy=site.policy,
        )  # fmt: skip
        sent = []
    for envelope in unpack(letters or ArrayRecord(), session):
        sent += client.handle(Received(envelope))
    instruction = instruction_in(content)
    if instruction and client.result is None:
        if hash_instruction(instruction, message, context.run_config) != opening.instruction:
            raise Refused("the instruction is not the one that the round was opened for")
        work = make(instruction, opening, site)
        if opening.plan is not None:
            # Whether the sum comes about is not known here: what is sent is spent. Before the work: how that
            # ends may depend on what is private.
            spent = _spend(site, opening, session.task, spent, Ledger.reserve).dump()
        sent += client.handle(Input(_vector(work, opening.plan)))
    _keep(client, context, site, opening, _packed(opening, terms), spent)
    return RecordDict({ENVELOPES: pack(sent)})


def _spend(site: Site, opening: Opening, task: str, kept: bytes | None, how: Callable[..., None]) -> Ledger:
    """This node's ledger, which has looked at the round (`Ledger.check`) or charged it (`Ledger.reserve`)."""
    try:
        ledger = site.ledger(opening, kept)
        how(ledger, task, opening.round, opening.plan)
    except BudgetSpent:
        raise
    except ValueError as error:  # it names a file
        log.error("secagg: this node's ledger cannot be used: %s", error)
        raise Refused("its ledger of privacy cannot be used; its log says why") from None
    return ledger


def _vector(work: Callable[[], Vector], plan: Plan | None) -> Vector:
    """Do the work. What fails in there may tell what is private: the log has it.

    With noise, that it failed would tell something too, and free of charge: then nothing is contributed.
    """
    try:
        return work()
    except Exception as error:
        if plan is not None:
            log.exception("secagg: the work failed: this node contributes nothing but noise")
            return to_integers(plan, np.zeros(plan.dim, np.int64))
        if isinstance(error, Refused):
            raise
        log.exception("secagg: nothing to send; the server is told no more than the kind of error")
        reason = f"it has nothing to send ({type(error).__name__}); its own log says why"
        raise Refused(reason, ErrorCode.CLIENT_APP_RAISED_EXCEPTION) from None


def _packed(opening: Opening, terms: Collection[str]) -> bytes:
    return msgspec.msgpack.encode([getattr(opening.settings, term) for term in terms])


def _keep(
    client: ClientMachine, context: Context, site: Site, opening: Opening, terms: bytes, spent: bytes | None
) -> None:
    """Keep the client's state until the next message, or nothing if this was the last."""
    kept = ConfigRecord({"terms": terms})
    if client.result is None:
        # Without an identity's file there is no place for a key but beside what it opens.
        key = site.key or system(32)
        # Flower delivers once or not at all: what was sent need not be kept.
        kept["opening"], kept["snapshot"] = opening.to_bytes(), client.snapshot(key, outbox=False)
        if site.key is None:
            kept["key"] = key
    elif isinstance(client.result, Aborted):
        log.warning("secagg: %s", client.result)
    if isinstance(site.journal, MemoryJournal):
        kept["journal"] = site.journal.dump()
        if spent is not None:
            kept["ledger"] = spent
    context.state[RECORD] = kept


def _erase(context: Context) -> None:
    """Forget the round, but not which rounds were answered, on what terms, and what they cost."""
    kept = context.state.config_records.get(RECORD, ConfigRecord())
    left = ConfigRecord({k: v for k, v in kept.items() if k in ("journal", "ledger", "terms")})
    if left:
        context.state[RECORD] = left
    elif RECORD in context.state:
        del context.state[RECORD]
