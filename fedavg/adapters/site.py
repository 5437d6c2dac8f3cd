"""Who a site is and what it insists on, from its own files and never from the server."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from msgspec import UNSET, UnsetType

from fedavg.adapters.opening import PREFIX, Opening, Terms, placeholder, read
from fedavg.ledger import Ledger
from protocols.errors import LocalError
from protocols.graph import MALICIOUS, THREAT_MODELS
from protocols.journal import Journal, MemoryJournal, SqliteJournal
from protocols.roster import read_party, read_roster
from protocols.session import Policy, Session
from secagg.keys import Identity

UNIT = "a site's whole contribution"
"""What noise protects here."""

_MIN_CORRUPTED = 0.1  # at a site with an identity whose policy names none


class Own(Terms, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The `secagg-...` keys of a site's own configuration: its terms, and

    identity, roster   paths of its key file and of the roster: both or neither
    policy             see `read_policy`
    table              path of the CSV file that statistics are of
    min_cell           counts below it are hidden
    query_budget       how many queries are answered at all
    epsilon_budget     what all runs together may spend, of `epsilon` each; 0 is as much as one
    """

    identity: str | UnsetType = UNSET
    roster: str | UnsetType = UNSET
    policy: str = ""
    table: str | UnsetType = UNSET
    min_cell: int = 5
    query_budget: int = 20
    epsilon_budget: float = 0.0


@dataclass(frozen=True, slots=True)
class Site:
    """What a client knows of itself: its name, its roster, its policy, its terms, and what it did already.

    `roster` is None where no identity was given: honest-but-curious only, and the journal is a memory that
    the framework keeps with the rest of the state. Otherwise that state is sealed under `key`.
    """

    name: str
    identity: Identity
    roster: Mapping[str, bytes] | None
    policy: Policy
    terms: Mapping[str, Any]
    own: Own
    journal: Journal
    key: bytes | None = field(repr=False)

    @classmethod
    def of(cls, config: Mapping[str, Any], name: str, journal: bytes | None) -> Site:
        """The site that its own configuration describes.

        The terms among its keys are its own; with an identity, those that it does not name are the defaults.
        Beside the key file stands a journal (SQLite) of what was answered. Without an identity, `name` is the
        framework's name for it, and `journal` what `MemoryJournal.dump` gave last time. Raises `LocalError`
        for files, keys or words that cannot be used.
        """
        own = read(config, Own)
        if (own.identity is UNSET) != (own.roster is UNSET):
            raise LocalError(
                f"expected both {PREFIX}identity and {PREFIX}roster in the site's configuration, or neither"
            )
        policy = read_policy(own.policy, pinned=own.identity is not UNSET)
        terms = {term: getattr(own, term) for term in Terms.__struct_fields__}
        if own.identity is UNSET or own.roster is UNSET:
            said = {t: value for t, value in terms.items() if PREFIX + t.replace("_", "-") in config}
            memory = MemoryJournal.load(journal)
            return cls(name, placeholder(name), None, policy, said, own, memory, None)
        party, roster = read_party(Path(own.identity)), read_roster(Path(own.roster))
        if roster.get(party.name) != party.identity.public:
            raise LocalError(f"roster: {party.name!r} is not in it with the key of this site's identity")
        # The framework keeps a round's state, and may never come back for it: here it would stay for good.
        beside = SqliteJournal(Path(own.identity).with_suffix(".journal"), party.journal_key, states=False)
        return cls(party.name, party.identity, roster, policy, terms, own, beside, party.journal_key)

    def check(self, opening: Opening, session: Session, terms: Collection[str]) -> None:
        """Raise `LocalError` unless these terms of a round, and what it withstands, are this site's own.

        A server that chose terms freely could ask, round by round, whether a weight is above `max_weight`, or
        by a tiny clipping norm make an update its signs.
        """
        settings, plan = opening.settings, opening.plan
        other = [
            PREFIX + t.replace("_", "-")
            for t, v in self.terms.items()
            if t in terms and getattr(settings, t) != v
        ]
        if other:
            raise LocalError(f"settings: {', '.join(other)}: not what this site's own configuration says")
        # The session withstands at least that fraction of the cohort; the policy is of the whole roster.
        if not settings.corrupted >= self.policy.min_corrupted:
            raise LocalError(
                f"policy: corrupted must be at least {self.policy.min_corrupted}, the settings have "
                f"{settings.corrupted}"
            )
        if (plan is None) != (not settings.epsilon):
            raise LocalError(
                f"plan: {PREFIX}epsilon is {settings.epsilon:g}, and the round does not fit that"
            )
        if plan is not None:
            promised = (settings.epsilon, settings.delta, settings.rounds, session.parameters.corrupted)
            if (plan.epsilon, plan.delta, plan.rounds, plan.colluding) != promised:
                raise LocalError("plan: it is not for the guarantee that the settings promise")
            plan.check(session.min_included)

    def ledger(self, opening: Opening, kept: bytes | None) -> Ledger:
        """What this site has spent of its privacy: in a file beside the key, or else in what was `kept`.

        Raises `ValueError` for one that cannot be used, or is of another budget.
        """
        settings = opening.settings
        budget = self.own.epsilon_budget or settings.epsilon
        if self.own.identity is not UNSET:
            return Ledger(budget, settings.delta, UNIT, Path(self.own.identity).with_suffix(".ledger.json"))
        ledger = Ledger(budget, settings.delta, UNIT)
        if kept is not None:
            ledger.load(kept)
        return ledger


def read_policy(text: str, *, pinned: bool) -> Policy:
    """The policy in "threat models joined by +, cohort:N, included:N, corrupted:FRACTION", in any order.

    The threat models accepted (with an identity, `pinned`, only `malicious` unless others are named), the
    fewest in a cohort and in a sum, and the least fraction of the roster that may be corrupted (with an
    identity, 0.1 unless another is named). Each stands there once: of two, a reader might take the other to
    count. Raises `LocalError` for anything else.
    """
    models: Sequence[str] = (MALICIOUS,) if pinned else THREAT_MODELS
    floors = {"cohort": 3.0, "included": 3.0, "corrupted": _MIN_CORRUPTED if pinned else 0.0}
    said = set()
    for part in filter(None, (p.strip() for p in text.split(","))):
        name, colon, value = part.partition(":")
        what = name if colon else "threat models"
        try:
            if colon:
                floors[name] = {"cohort": int, "included": int, "corrupted": float}[name](value)
            else:
                models = [{m: m for m in THREAT_MODELS}[m] for m in part.split("+")]
            if what in said or not floors.get(what, 0) >= 0:  # below NaN is nothing
                raise ValueError
            said.add(what)
        except (KeyError, ValueError):
            raise LocalError(
                f"{PREFIX}policy: expected threat models ({'+'.join(THREAT_MODELS)}), cohort:N, included:N, "
                f"corrupted:FRACTION; got {part!r}"
            ) from None
    return Policy(int(floors["cohort"]), int(floors["included"]), floors["corrupted"], tuple(models))
