"""What opens a round in somebody else's framework: settings, cohort, and the session that follows from them.

A framework carries configuration as flat mappings of plain values; the server reads its settings from one
and sends them, with the cohort and a hash of the instruction (the model and all that says how to train it),
in the first message of a round. The session is made of nothing else, so that sites which were told different
things (another model, another learning rate, another clipping norm for everyone but one) cannot complete a
step together. The instruction itself comes when the protocol is ready for vectors, and each site compares
its hash before it does any work.

Who a site is, it knows from its own files and never from the server: see `Site`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from math import floor
from pathlib import Path
from typing import Any, Literal

import msgspec

from fedavg.codec import Codec
from protocols.errors import LocalError, RemoteError
from protocols.graph import HONEST_BUT_CURIOUS, MALICIOUS, SECAGG, THREAT_MODELS
from protocols.journal import Answer, Contribution, Journal, MemoryJournal, SqliteJournal
from protocols.roster import read_party, read_roster
from protocols.session import Policy, Session
from secagg.keys import Identity
from secagg.labels import Label, digest

PREFIX = "secagg-"
"""What our keys begin with in a framework's configuration: `clipping_norm` is `secagg-clipping-norm`."""

_OWN_KEYS = ("roster",)  # not a setting: the path of the party's own file
_SITE_KEYS = ("roster", "identity", "policy", "table", "min-cell", "query-budget", "max-records")
_FLOOR = 0.1  # of `corrupted`, at a site with an identity whose policy names none
_RING_BITS = 32  # entries of whole words are masked fastest, and cost no more than float32


_TERMS = ("clipping_norm", "norm", "max_weight", "bits", "weight_key", "train_metrics", "evaluate_metrics")


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How rounds are run; the same for all parties of a round.

    protocol, threat_model, corrupted, dropout, min_included
                       see `protocols.session.Session`; `degree` and `threshold` are an expert's choice
    clipping_norm, norm, max_weight
                       see `fedavg.codec.Codec`
    bits               of the grid; 0 takes as many as fit an entry of 32 bits, which costs nothing
    ring_bits          of an entry on its way; 0 takes the fewest that hold the sum
    train_metrics, evaluate_metrics
                       the metrics to aggregate, each with its public range: "loss:0:10, accuracy:0:1"
    weight_key         the metric that is the weight, an integer from 1 to `max_weight`
    timeout            seconds that the server waits in each stage after the first
    """

    protocol: str = SECAGG
    threat_model: str = HONEST_BUT_CURIOUS
    corrupted: float = 0.1
    dropout: float = 0.1
    min_included: int = 0
    degree: int = 0
    threshold: int = 0
    clipping_norm: float = 10.0
    norm: Literal["l2", "max"] = "l2"
    max_weight: int = 10_000
    bits: int = 0
    ring_bits: int = 0
    train_metrics: str = ""
    evaluate_metrics: str = ""
    weight_key: str = "num-examples"
    timeout: float = 60.0

    def __post_init__(self) -> None:
        if not self.timeout > 0:
            raise LocalError(f"{PREFIX}timeout: expected seconds above 0, got {self.timeout}")
        for metrics in (self.train_metrics, self.evaluate_metrics):
            if {self.weight_key, "num-examples", "num_examples"} & set(ranges(metrics)):
                raise LocalError("metrics: a weight cannot be a metric too: it is summed as it is")

    @property
    def terms(self) -> dict[str, Any]:
        """What says how much a site's own vector tells: the settings that each site has to agree to."""
        return {name: getattr(self, name) for name in _TERMS}

    @classmethod
    def of(cls, config: Mapping[str, Any], own: Sequence[str] = _OWN_KEYS, **defaults: Any) -> Settings:
        """Settings from the `secagg-...` keys of a framework's configuration, but for those in `own`.

        Raises `LocalError` for a key that is none of ours, or a value of the wrong type.
        """
        known = {name.replace("_", "-"): name for name in cls.__struct_fields__}
        given = dict(defaults)
        for key, value in config.items():
            name = key.removeprefix(PREFIX)
            if name == key or name in own:
                continue
            if name not in known:
                keys = ", ".join(PREFIX + k for k in (*known, *own))
                raise LocalError(f"{key}: there is no such setting; expected one of {keys}")
            given[known[name]] = value
        try:
            return msgspec.convert(given, cls)
        except msgspec.ValidationError as error:
            raise LocalError(f"settings: {error}") from None

    def codec(self, dim: int, metrics: Mapping[str, tuple[float, float]], cohort: int) -> Codec:
        """How the reports of `cohort` sites travel: `dim` parameters and these metrics."""
        bits = self.bits or max(2, min(32, ((1 << _RING_BITS) // cohort).bit_length() - 1))
        return Codec(dim, self.clipping_norm, self.max_weight, bits, tuple(metrics.values()), self.norm)


def ranges(text: str) -> dict[str, tuple[float, float]]:
    """The metrics in "name:lowest:highest, ..." in order. Raises `LocalError` for anything else."""
    found: dict[str, tuple[float, float]] = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        name, *bounds = part.rsplit(":", 2)
        try:
            low, high = (float(b) for b in bounds)
        except ValueError:
            raise LocalError(f"metrics: expected name:lowest:highest, got {part!r}") from None
        if not name or name in found or not -1e100 <= low < high <= 1e100:
            raise LocalError(f"metrics: expected new names, each with a lowest below a highest, got {part!r}")
        found[name] = (low, high)
    return found


class Opening(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The first message of a round, public: who takes part, in what, and how.

    `length` entries below `bound` are summed for an `instruction` of this hash (32 bytes).
    """

    settings: Settings
    round: int
    cohort: list[str]
    length: int
    bound: int
    instruction: bytes

    def to_bytes(self) -> bytes:
        """Its one encoding, by `msgspec.msgpack`."""
        return msgspec.msgpack.encode(self, order="deterministic")

    @classmethod
    def from_bytes_checked(cls, data: bytes) -> Opening:
        """The opening in `data`; `RemoteError` if it is none."""
        try:
            opening = msgspec.msgpack.decode(data, type=cls)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            raise RemoteError("the opening of the round cannot be decoded") from None
        if opening.to_bytes() != data:
            raise RemoteError("the opening of the round is not in its one encoding")
        return opening

    def session(self, task: str, roster: Mapping[str, bytes] | None) -> Session:
        """The session that this opening and the party's own roster make.

        With a roster, `corrupted` is a fraction of all of it, in the signed models: there the server may
        choose a cohort in which all of those are. Without one, identities are placeholders made of the
        names: good for the honest-but-curious model only, in which they sign nothing.
        """
        s = self.settings
        if roster is None:
            if s.threat_model != HONEST_BUT_CURIOUS:
                raise LocalError(
                    f"{s.threat_model}: needs identities that were agreed on beforehand: see `secagg keygen` "
                    f"and `secagg roster`, and set {PREFIX}identity and {PREFIX}roster"
                )
            members = {name: placeholder(name).public for name in self.cohort}
        else:
            strangers = sorted(set(self.cohort) - set(roster))
            if strangers:
                raise LocalError(f"cohort: {', '.join(strangers)}: not in this party's roster")
            members = {name: roster[name] for name in self.cohort}
        if len(members) != len(self.cohort):
            raise LocalError("cohort: a name stands there twice")
        corrupted = s.corrupted
        # What is no fraction is for the session to refuse.
        if roster is not None and members and s.threat_model != HONEST_BUT_CURIOUS and 0 <= corrupted < 1:
            corrupted = max(corrupted, floor((corrupted + 1e-9) * len(roster)) / len(members))
        return Session(
            members, self.length, self.bound, protocol=s.protocol, threat_model=s.threat_model,
            corrupted=corrupted, dropout=s.dropout, task=task, round=self.round,
            min_included=s.min_included or None, bits=s.ring_bits or None, degree=s.degree or None,
            threshold=s.threshold or None,
            model_hash=digest(Label.MODEL, self.to_bytes()),
        )  # fmt: skip


@lru_cache(1 << 12)
def placeholder(name: str) -> Identity:
    """An identity that anyone can make: it fills the roster where nothing is signed, and says nothing."""
    return Identity(digest(Label.PLACEHOLDER, name.encode()))


@dataclass(frozen=True, slots=True)
class Site:
    """What a client knows of itself: its name, its roster, its floor, its terms, and what it did already.

    `roster` is None where no identity was given: honest-but-curious only, and the journal is a memory that
    the framework keeps with the rest of the state. Otherwise that state is sealed under `key`.
    """

    name: str
    identity: Identity
    roster: Mapping[str, bytes] | None
    policy: Policy
    terms: Mapping[str, Any]
    journal: Journal
    key: bytes | None = field(repr=False)

    @classmethod
    def of(cls, config: Mapping[str, Any], name: str, journal: bytes | None) -> Site:
        """The site that its own configuration describes.

        `secagg-identity` and `secagg-roster` are the paths of its key file and of the roster; a journal
        (SQLite) stands beside the key file. `secagg-policy` is its floor, for instance
        "malicious+semi-malicious, cohort:5, included:4, corrupted:0.2": the threat models accepted (with
        an identity, only `malicious` unless others are named), the fewest in a cohort and in a sum, and
        the least fraction of corrupted sites in the roster to be withstood (with an identity, 0.1 unless
        another is named). The settings among its keys are its terms; with an identity those that it does not
        name are the defaults. Without an identity, `name` is the framework's name for it, and `journal` what
        `MemoryJournal.dump` gave last time.
        """
        identity, roster = config.get(PREFIX + "identity"), config.get(PREFIX + "roster")
        if (identity is None) != (roster is None):
            raise LocalError(
                f"expected both {PREFIX}identity and {PREFIX}roster in the site's configuration, or neither"
            )
        floor_of = policy(str(config.get(PREFIX + "policy", "")), pinned=identity is not None)
        terms = Settings.of(config, _SITE_KEYS).terms
        if identity is None:
            terms = {t: v for t, v in terms.items() if PREFIX + t.replace("_", "-") in config}
            return cls(name, placeholder(name), None, floor_of, terms, MemoryJournal.load(journal), None)
        party = read_party(Path(str(identity)))
        beside = os.fspath(Path(str(identity)).with_suffix(".journal"))
        found = read_roster(Path(str(roster)))
        if found.get(party.name) != party.identity.public:
            raise LocalError(f"roster: {party.name!r} is not in it with the key of this site's identity")
        marks = _Marks(beside, party.journal_key)
        return cls(party.name, party.identity, found, floor_of, terms, marks, party.journal_key)

    def check(self, settings: Settings) -> None:
        """Raise `LocalError` unless the settings of a round are on this site's terms.

        A server that chose them freely could ask, round by round, whether a weight is above `max_weight`, or
        by a tiny clipping norm make an update its signs.
        """
        other = [PREFIX + t.replace("_", "-") for t, v in self.terms.items() if getattr(settings, t) != v]
        if other:
            raise LocalError(f"settings: {', '.join(other)}: not what this site's own configuration says")
        # The session withstands at least that fraction of the cohort; the floor is of the whole roster.
        if not settings.corrupted >= self.policy.min_corrupted:
            raise LocalError(
                f"policy: corrupted must be at least {self.policy.min_corrupted}, the settings have "
                f"{settings.corrupted}"
            )


class _Marks(SqliteJournal):
    """A journal of steps and rounds without states.

    Those are with the framework, which may never come back for a round: here they would stay for good.
    """

    def commit(
        self, machine: bytes, step: int, state: Callable[[], bytes], answer: Answer | None = None,
        contribution: Contribution | None = None,
    ) -> None:  # fmt: skip
        super().commit(machine, step, bytes, answer, contribution)


def policy(text: str, *, pinned: bool) -> Policy:
    """The floor in "threat models joined by +, cohort:N, included:N, corrupted:FRACTION", in any order.

    Each stands there once: of two, a reader might take the other to count.
    """
    models: Sequence[str] = (MALICIOUS,) if pinned else THREAT_MODELS
    floors = {"cohort": 3.0, "included": 3.0, "corrupted": _FLOOR if pinned else 0.0}
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
