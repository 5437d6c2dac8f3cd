"""What opens a round in somebody else's framework: settings, cohort, and the session that follows from them.

A framework carries configuration as flat mappings of plain values; the server reads its settings from one
and sends them, with the cohort and a hash of the instruction (the model and all that says how to train it),
in the first message of a round. The session is made of nothing else, so that sites which were told different
things (another model, another learning rate, another clipping norm for everyone but one) cannot complete a
step together. The instruction itself comes when the protocol is ready for vectors, and each site compares
its hash before it does any work.

With noise (`epsilon`), the server plans it, and the plan is part of the opening: found in floats, it might
come out otherwise in a last bit elsewhere. A site checks that it gives what its own terms demand.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import lru_cache
from typing import Any, Literal, TypeVar

import msgspec

from fedavg.accounting import check_target
from fedavg.codec import Codec, PrivateCodec, joint_norm
from fedavg.privacy import Plan, plan
from protocols.errors import LocalError, RemoteError
from protocols.graph import HONEST_BUT_CURIOUS, SECAGG, whole
from protocols.session import Session
from secagg.keys import Identity
from secagg.labels import Label, digest

PREFIX = "secagg-"
"""What our keys begin with in a framework's configuration: `clipping_norm` is `secagg-clipping-norm`."""

_NOISY_BITS = 24  # beyond is nothing to gain, and squared norms would not fit 64 bits
_RING_BITS = 32  # entries of whole words are masked fastest, and cost no more than float32


class Terms(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What says how much a site's own vector tells: settings that each site has to agree to.

    clipping_norm, norm, max_weight
                       see `fedavg.codec.Codec`. A `max_weight` of 0 is 10,000, or with noise 1: all count the
                       same. With noise, a larger weight is cut to it; without, it is refused
    bits               of the grid; 0 takes as many as fit an entry of 32 bits, which costs nothing
    epsilon, delta     what all sums together may tell of a site's whole contribution; 0 is no noise
    rounds             how many sums with noise that is for, of training and of evaluation
    train_metrics, evaluate_metrics
                       the metrics to aggregate, each with its public range: "loss:0:10, accuracy:0:1"
    weight_key         the metric that is the weight, an integer from 1 to `max_weight`
    max_records        the largest table that statistics are asked of
    """

    clipping_norm: float = 10.0
    norm: Literal["l2", "max"] = "l2"
    max_weight: int = 0
    bits: int = 0
    epsilon: float = 0.0
    delta: float = 1e-5
    rounds: int = 0
    train_metrics: str = ""
    evaluate_metrics: str = ""
    weight_key: str = "num-examples"
    max_records: int = 10_000

    def __post_init__(self) -> None:
        for metrics in (self.train_metrics, self.evaluate_metrics):
            if {self.weight_key, "num-examples", "num_examples"} & set(read_ranges(metrics)):
                raise LocalError("metrics: a weight cannot be a metric too: it is summed as it is")
        if not self.max_weight:
            msgspec.structs.force_setattr(self, "max_weight", 1 if self.epsilon else 10_000)
        if not self.epsilon:
            return
        try:
            check_target(self.epsilon, self.delta)
        except ValueError as error:
            raise LocalError(f"{PREFIX}epsilon, {PREFIX}delta: {error}") from None
        if self.rounds < 1:
            raise LocalError(f"{PREFIX}rounds: with {PREFIX}epsilon, expected how many sums it is for")
        if self.norm != "l2" or self.bits:
            raise LocalError(
                f"{PREFIX}epsilon: noise is for updates of bounded L2 norm, and chooses the grid: expected "
                f"{PREFIX}norm = 'l2' and {PREFIX}bits = 0"
            )


STATISTICS_TERMS = ("max_records", "epsilon")
"""Sums of statistics have no noise: a site that insists on it gives none."""

LEARNING_TERMS = tuple(name for name in Terms.__struct_fields__ if name != "max_records")


class Settings(Terms, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How rounds are run, the same for all parties of a round: the terms, and what is agreed beside them.

    protocol, threat_model, corrupted, dropout, min_included
                       see `protocols.session.Session`; `degree` and `threshold` are an expert's choice. 0 in
                       the last three is what the parameter finder demands
    ring_bits          of an entry on its way; 0 takes the fewest that hold the sum
    timeout            seconds that the server waits in each stage but the one in which nodes work
    """

    protocol: str = SECAGG
    threat_model: str = HONEST_BUT_CURIOUS
    corrupted: float = 0.1
    dropout: float = 0.1
    min_included: int = 0
    degree: int = 0
    threshold: int = 0
    ring_bits: int = 0
    timeout: float = 60.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.timeout > 0:
            raise LocalError(f"{PREFIX}timeout: expected seconds above 0, got {self.timeout}")
        if self.epsilon and self.ring_bits > _NOISY_BITS:
            raise LocalError(f"{PREFIX}ring-bits: with noise, expected at most {_NOISY_BITS}")

    @classmethod
    def of(cls, config: Mapping[str, Any], **defaults: Any) -> Settings:
        """Settings from the `secagg-...` keys of a framework's configuration; `defaults` where it is silent.

        Raises `LocalError` for a key that is none of ours, or a value of the wrong type. `secagg-roster` is
        not a setting: it is the path of the server's own file.
        """
        return read(config, cls, {PREFIX + "roster"}, **defaults)

    def plan(self, dim: int, metrics: int, without: Session) -> Plan:
        """The noise of a round with so many parameters and metrics, whose session `without` it would be this.

        The clients that may be corrupted are not counted on for theirs. Raises `Infeasible` where there can
        be none.
        """
        extras = metrics + (self.max_weight > 1)
        if not dim + extras:
            raise LocalError(
                "there is nothing to sum but noise: give the evaluation metrics, or leave it out "
                "(fraction_evaluate=0)"
            )
        n, found = len(without.names), without.parameters
        return plan(
            dim + extras, joint_norm(self.clipping_norm, extras), n, self.epsilon, self.delta,
            rounds=self.rounds, colluding=found.corrupted,
            least=max(without.min_included, n - found.dropped), bits=self.ring_bits or None,
        )  # fmt: skip

    def codec(
        self, dim: int, metrics: Mapping[str, tuple[float, float]], clients: int, plan: Plan | None = None,
        seed: bytes = b"",
    ) -> Codec | PrivateCodec:  # fmt: skip
        """How the reports of so many clients travel: `dim` parameters and these metrics.

        With a plan, with noise, and a public rotation that `seed` makes.
        """
        ranges = tuple(metrics.values())
        if plan is not None:
            return PrivateCodec(plan, seed, dim, self.clipping_norm, self.max_weight, ranges)
        bits = self.bits or max(2, min(32, ((1 << _RING_BITS) // clients).bit_length() - 1))
        return Codec(dim, self.clipping_norm, self.max_weight, bits, ranges, self.norm)


T = TypeVar("T", bound=msgspec.Struct)


def read(config: Mapping[str, Any], kind: type[T], others: Collection[str] = (), **defaults: Any) -> T:
    """A struct of our keys in a framework's configuration but `others`; `defaults` where it is silent.

    Raises `LocalError` for a key that is none of the struct's fields, or a value of the wrong type.
    """
    known = {PREFIX + name.replace("_", "-"): name for name in kind.__struct_fields__}
    given = dict(defaults)
    for key, value in config.items():
        if not key.startswith(PREFIX) or key in others:
            continue
        if key not in known:
            raise LocalError(f"{key}: there is no such setting; expected one of {', '.join(known)}")
        given[known[key]] = value
    try:
        return msgspec.convert(given, kind)
    except msgspec.ValidationError as error:
        raise LocalError(f"settings: {error}") from None


def read_ranges(text: str) -> dict[str, tuple[float, float]]:
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

    `length` entries below `bound` are summed for an `instruction` of this hash (32 bytes), with the noise of
    `plan`, if any.
    """

    settings: Settings
    round: int
    cohort: list[str]
    length: int
    bound: int
    instruction: bytes
    plan: Plan | None = None

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

        Raises `LocalError` for a cohort or settings that cannot be, `Infeasible` where no parameters meet
        them.
        """
        s, noise, clients = self.settings, self.plan, len(self.cohort)
        if noise is not None:
            planned = (noise.dim, noise.bound, noise.cohort, noise.records)
            if planned != (self.length, self.bound, clients, 1):
                raise LocalError("plan: its noise is for other sums than this round's")
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
            corrupted = max(corrupted, whole(corrupted, len(roster)) / len(members))
        return Session(
            members, self.length, self.bound, protocol=s.protocol, threat_model=s.threat_model,
            corrupted=corrupted, dropout=s.dropout, task=task, round=self.round,
            min_included=s.min_included or None, degree=s.degree or None, threshold=s.threshold or None,
            noise=None if noise is None else noise.noisy,
            bits=noise.bits if noise is not None else (0 if s.epsilon else s.ring_bits) or None,
            model_hash=digest(Label.OPENING, self.to_bytes()),
        )  # fmt: skip


@lru_cache(1 << 12)
def placeholder(name: str) -> Identity:
    """An identity that anyone can make: it fills the roster where nothing is signed, and says nothing."""
    return Identity(digest(Label.PLACEHOLDER, name.encode()))
