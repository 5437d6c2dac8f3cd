"""What Flower's records hold: an instruction and its hash, envelopes, and how a reply travels as integers."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from numpy.typing import NDArray

from fedavg.adapters.opening import Settings, read_ranges
from fedavg.codec import Codec, PrivateCodec
from fedavg.params import Arrays, Layout
from fedavg.privacy import Plan
from protocols.errors import LocalError, RemoteError
from protocols.machine import Aggregate
from protocols.session import Session
from protocols.wire import Envelope, from_bytes_checked, to_bytes
from secagg.labels import Label, bind, digest
from secagg.randomness import system

log = logging.getLogger("flwr.secagg")

RECORD = "secagg"
"""Our record in a message (the opening of a round, a question, an answer) and in a state."""

AnyCodec = Codec | PrivateCodec

ENVELOPES = "secagg.envelopes"
"""The record of the protocol's envelopes in a message."""


def category(message: Message) -> str:
    """ "train" of "train.fast"."""
    return message.metadata.message_type.split(".")[0]


def task(context: Context, message: Message) -> str:
    """What rounds are counted within: the run and the kind of message, the same for server and nodes."""
    return f"flower/{context.run_id}/{message.metadata.message_type}"


def claim(run_id: int, node_id: int) -> bytes:
    """What a node signs to say which client of the roster it is, in this run."""
    return bind(Label.CLAIM, str(run_id).encode(), str(node_id).encode())


def instruction_in(content: RecordDict) -> RecordDict:
    """The records of a message but ours."""
    return RecordDict({name: r for name, r in content.items() if name not in (RECORD, ENVELOPES)})


def hash_instruction(instruction: RecordDict, message: Message, run_config: Mapping[str, Any]) -> bytes:
    """SHA-256 over all that an app is told: an instruction's records in order, its group, the run's
    configuration. 32 bytes.

    The whole of it, not only the model: were one node told a learning rate and all others 0, the sum would
    be that node's update.
    """
    told = (message.metadata.group_id, sorted(run_config.items()))
    parts = [msgspec.msgpack.encode(told)]
    for name, record in instruction.items():
        kind = type(record).__name__
        if isinstance(record, ArrayRecord):
            parts.append(msgspec.msgpack.encode((name, kind, len(record))))
            for key, a in record.items():
                parts += [msgspec.msgpack.encode((key, a.dtype, list(a.shape), a.stype)), a.data]
        else:
            parts.append(msgspec.msgpack.encode((name, kind, list(record.items()))))
    return digest(Label.INSTRUCTION, *parts)


# ----------------------------------------------------------------------------------------- envelopes


def pack(envelopes: Iterable[Envelope]) -> ArrayRecord:
    """Envelopes as arrays of bytes, which Flower sends in chunks however long they are."""
    packed = (to_bytes(e) for e in envelopes)
    return ArrayRecord({str(i): Array("uint8", (len(d),), ENVELOPES, d) for i, d in enumerate(packed)})


def unpack(record: ArrayRecord, session: Session) -> list[Envelope]:
    """The envelopes in a record; `RemoteError` if they are none."""
    return [from_bytes_checked(array.data, session.max_envelope_bytes) for array in record.values()]


def bytes_of(record: ConfigRecord, key: str) -> bytes:
    """A value that must be bytes; else `RemoteError`."""
    value = record.get(key)
    if not isinstance(value, bytes):
        raise RemoteError(f"{key}: expected bytes")
    return value


# ------------------------------------------------------------------------------------------- replies


@dataclass(frozen=True, slots=True)
class Form:
    """What is in replies to one instruction; the same at the server and at each node.

    `arrays` are the instruction's, in its record `name` (none for an evaluation): a reply's travel as the
    change from them. `metrics` have their public ranges.
    """

    name: str
    weight_key: str
    keys: tuple[str, ...]
    arrays: tuple[NDArray[Any], ...]
    layout: Layout
    metrics: Mapping[str, tuple[float, float]]

    @classmethod
    def of(cls, kind: str, instruction: RecordDict, settings: Settings) -> Form:
        """The form for "train" or "evaluate". Raises `LocalError` if there can be none."""
        if kind == "evaluate":
            metrics = read_ranges(settings.evaluate_metrics)
            return cls("", settings.weight_key, (), (), Layout((), ()), metrics)
        records = instruction.array_records
        if len(records) != 1:
            raise LocalError(f"instruction: expected one ArrayRecord to train on, got {len(records)}")
        ((name, record),) = records.items()
        arrays = tuple(_numpy(a) for a in record.values())
        layout, metrics = Layout.of(arrays), read_ranges(settings.train_metrics)
        if not layout.dim:
            raise LocalError("instruction: there is no array of floats in it to average")
        return cls(name, settings.weight_key, tuple(record), arrays, layout, metrics)

    def plan(self, settings: Settings, without: Session) -> Plan:
        """The noise of a round whose session `without` it would be this; see `Settings.plan`."""
        return settings.plan(self.layout.dim, len(self.metrics), without)

    def codec(self, settings: Settings, clients: int, plan: Plan | None, instruction: bytes) -> AnyCodec:
        """How the replies of so many nodes to an instruction of this hash travel, with a plan's noise."""
        return settings.codec(self.layout.dim, self.metrics, clients, plan, instruction)

    def encode(self, reply: RecordDict, codec: AnyCodec) -> NDArray[np.int64]:
        """A node's reply as integers. The errors (`ValueError`) may tell what is private: for its own log."""
        update = self._update(reply, codec) if self.arrays else np.zeros(0)
        numbers = _numbers(reply)
        missing = [name for name in (self.weight_key, *self.metrics) if name not in numbers]
        if missing:
            raise ValueError(f"reply: there is no number {', '.join(missing)} in its metrics")
        withheld = sorted(set(numbers) - {self.weight_key, *self.metrics})
        if withheld:
            log.info("secagg: without a range in the settings, and so not sent: %s", ", ".join(withheld))
        weight: Any = numbers[self.weight_key]  # the codec refuses what is no integer
        if isinstance(codec, PrivateCodec):
            weight = min(weight, codec.max_weight)
        return codec.encode(update, weight, system, [numbers[m] for m in self.metrics])

    def _update(self, reply: RecordDict, codec: AnyCodec) -> NDArray[np.float64]:
        records = list(reply.array_records.values())
        if len(records) != 1 or tuple(records[0]) != self.keys:
            raise ValueError("reply: expected one ArrayRecord with the keys that the server sent")
        after = [_numpy(a) for a in records[0].values()]
        found = Layout.of(after)
        # Strategies such as FedAdam send float64 where they got float32: precision may differ.
        if [(a.shape, a.dtype.kind) for a in after] != [(a.shape, a.dtype.kind) for a in self.arrays]:
            raise ValueError(f"reply: expected {self.layout.describe()}; got {found.describe()}")
        change = found.flatten(after)
        change -= self.layout.flatten(self.arrays)
        if codec.clips(change):
            log.info("secagg: this node's update is longer than the clipping norm: it is cut")
        return change

    def decode(self, result: Aggregate, codec: AnyCodec) -> tuple[Arrays, dict[str, float], int]:
        """The mean of the arrays, the means of the metrics, the sum of the weights.

        Raises `ValueError`, or with noise `Aborted`, for a sum that nothing can be made of.
        """
        included = len(result.included)
        mean, weights = codec.decode(result.sum, included)
        metrics = dict(zip(self.metrics, codec.decode_metrics(result.sum, included), strict=True))
        if not self.arrays:
            return [], metrics, weights
        mean += self.layout.flatten(self.arrays)
        return self.layout.restore(mean, self.arrays), metrics, weights

    def reply(
        self, instruction: RecordDict, arrays: Arrays, metrics: Mapping[str, float], share: float
    ) -> RecordDict:
        """The content of a reply to the strategy, in the form of the API that the instruction is of."""
        if any(name.startswith(("fitins.", "evaluateins.")) for name in instruction):
            return self._legacy(arrays, metrics, share)
        content = RecordDict({"metrics": MetricRecord({**metrics, self.weight_key: share})})
        if self.arrays:
            content[self.name] = ArrayRecord(dict(zip(self.keys, map(Array, arrays), strict=True)))
        return content

    def _legacy(self, arrays: Arrays, metrics: Mapping[str, float], share: float) -> RecordDict:
        from flwr.common import Code, EvaluateRes, FitRes, Status, ndarrays_to_parameters
        from flwr.compat.common import recorddict_compat as compat

        status, examples = Status(Code.OK, ""), max(1, round(share))
        if self.arrays:
            fit = FitRes(status, ndarrays_to_parameters(arrays), examples, dict(metrics))
            return compat.fitres_to_recorddict(fit, keep_input=False)
        loss = metrics.get("loss", float("nan"))  # withheld unless its range is set
        return compat.evaluateres_to_recorddict(EvaluateRes(status, loss, examples, dict(metrics)))


def _numpy(array: Array) -> NDArray[Any]:
    try:
        return array.numpy()
    except (TypeError, ValueError, EOFError, OSError) as error:
        raise LocalError(f"an array cannot be read: {type(error).__name__}") from None


def _numbers(reply: RecordDict) -> dict[str, float | int]:
    """All single numbers among a reply's metrics; the legacy API has some of them in a ConfigRecord.

    Where names are the same, the legacy API's own loss and number of examples count.
    """
    legacy = [r for name, r in reply.config_records.items() if name.endswith("res.metrics")]
    found: list[MetricRecord | ConfigRecord] = [*legacy, *reply.metric_records.values()]
    return {k: v for record in found for k, v in record.items() if isinstance(v, (int, float))}
