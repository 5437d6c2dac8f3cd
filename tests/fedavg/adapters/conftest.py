"""Flower without a network: real messages, contexts and apps; what travels is serialised on its way."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

_NEEDED = {"test_flower*.py": "flwr", "test_torch_*.py": "torch"}

collect_ignore_glob = [files for files, module in _NEEDED.items() if find_spec(module) is None]

if find_spec("flwr"):
    from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.common.constant import ErrorCode
    from flwr.common.serde import (
        message_from_proto,
        message_to_proto,
        recorddict_from_proto,
        recorddict_to_proto,
    )
    from flwr.serverapp import Grid
    from flwr.supercore.run import Run
    from flwr.supercore.task_identity import TaskIdentity

    from fedavg.adapters.flower import SecAggGrid, secagg_mod
    from fedavg.adapters.flower.records import Form
    from fedavg.adapters.opening import LEARNING_TERMS, STATISTICS_TERMS, Settings
    from protocols.roster import generate_party, write_roster

    Fault = Callable[[int, int, Message], str | None]
    """(node, how many messages it had before, message) -> what goes wrong, or None.

    "silent" (nothing arrives), "lost" (the reply does not arrive), "crash" (the app's process dies, after its
    work), "raise" (the app raises).
    """
    Down = Callable[[int, int, Message], None]
    """(node, how many messages it had before, message): a server that changes what one node is told."""
    Up = Callable[[int, int, Message], Message]
    """(node, how many messages it had before, reply) -> what the node sends instead."""

    def copy(message: Message) -> Message:
        """The message at the other end of a wire."""
        return message_from_proto(message_to_proto(message))

    class LocalGrid(Grid):
        """Runs each node's ClientApp in this process, as a SuperNode would.

        A state is handed back only by an app that returns: one that crashes leaves the older one. `app` is
        one for all nodes, or a mapping with an app for some, and one under None for the others.
        """

        def __init__(
            self, app: Any, nodes: int | Iterable[int], fault: Fault | None = None,
            run_config: Mapping[str, Any] | None = None,
            node_configs: Mapping[int, Mapping[str, Any]] | None = None,
        ) -> None:  # fmt: skip
            TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 7, 1, 1
            self.app, self.fault = app, fault or (lambda node, count, message: None)
            self.down: Down = lambda node, count, message: None
            self.up: Up = lambda node, count, reply: reply
            self.nodes = list(range(101, 101 + nodes)) if isinstance(nodes, int) else list(nodes)
            self.contexts = {
                node: Context(7, node, dict((node_configs or {}).get(node, {"partition-id": i})),
                              RecordDict(), dict(run_config or {}))
                for i, node in enumerate(self.nodes)
            }  # fmt: skip
            self.counts: Counter[int] = Counter()
            self.sent: list[tuple[int, Message]] = []
            self.said: list[tuple[int, Message]] = []
            self.replies: dict[str, Message] = {}
            self._next = 0

        def context(self, run_config: Mapping[str, Any] | None = None) -> Any:
            """The ServerApp's."""
            return Context(7, 1, {}, RecordDict(), dict(run_config or {}))

        def push_messages(self, messages: Iterable[Message]) -> list[str]:
            ids = []
            for message in messages:
                self._next += 1
                message.metadata.__dict__["_message_id"] = str(self._next)
                ids.append(str(self._next))
                reply = self._handle(copy(message))
                if reply is not None:
                    self.replies[str(self._next)] = reply
            return ids

        def _handle(self, message: Message) -> Message | None:
            node = message.metadata.dst_node_id
            count = self.counts[node]
            self.counts[node] += 1
            fault = self.fault(node, count, message)
            if fault == "silent":
                return None
            self.down(node, count, message)
            self.sent.append((node, copy(message)))
            context = self.contexts[node]
            state = recorddict_from_proto(recorddict_to_proto(context.state))
            work = Context(context.run_id, node, context.node_config, state, context.run_config)
            app = self.app.get(node, self.app.get(None)) if isinstance(self.app, dict) else self.app
            try:
                if fault == "raise":
                    raise RuntimeError("the app raised")
                reply = app(copy(message), work)
            except Exception as error:
                text = f"{type(error)}:<'{error}'>"
                return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, text), reply_to=message)
            if fault == "crash":
                return Message(Error(ErrorCode.CLIENT_APP_CRASHED, "crashed"), reply_to=message)
            self.contexts[node] = work
            reply = self.up(node, count, copy(reply))
            self.said.append((node, copy(reply)))
            return None if fault == "lost" else reply

        def sent_to(self, node: int, count: int) -> Message:
            """What this node got as its message of that number."""
            return copy([m for n, m in self.sent if n == node][count])

        def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
            return [self.replies.pop(i) for i in sorted(message_ids, key=int) if i in self.replies]

        def send_and_receive(
            self, messages: Iterable[Message], *, timeout: float | None = None
        ) -> list[Message]:
            return list(self.pull_messages(self.push_messages(messages)))

        def get_node_ids(self) -> list[int]:
            return list(self.nodes)

        def get_nodes(self) -> list[Any]:
            return [SimpleNamespace(node_id=node) for node in self.nodes]

        def set_run(self, run: Any) -> None:
            raise NotImplementedError

        @property
        def run(self) -> Any:
            return Run.create_empty(7)

        def create_message(self, *args: Any, **kwargs: Any) -> Message:
            raise NotImplementedError

    # ------------------------------------------------------------------------------------------- apps

    SHAPES: dict[str, tuple[int, ...]] = {"layer.0": (4, 3), "layer.1": (5,), "layer.2": ()}

    CONFIG = {
        "secagg-max-weight": 1000, "secagg-train-metrics": "loss:0:1",
        "secagg-evaluate-metrics": "accuracy:0:1", "secagg-timeout": 0.001,
    }  # fmt: skip

    TERMS = {"secagg-" + name.replace("_", "-") for name in (*LEARNING_TERMS, *STATISTICS_TERMS)}

    def model(seed: int = 0) -> ArrayRecord:
        """Three arrays of float32, one of them without dimensions."""
        rng = np.random.default_rng(seed)
        return ArrayRecord({k: Array(np.asarray(rng.normal(size=s), np.float32)) for k, s in SHAPES.items()})

    def trained(node: int, arrays: Mapping[str, Any]) -> dict[str, Any]:
        """What the node makes of the arrays: floats moved, integers counted up."""
        rng = np.random.default_rng(node)
        return {
            k: np.asarray(
                a + rng.normal(scale=0.1, size=a.shape) if a.dtype.kind == "f" else a + node, a.dtype
            )
            for k, a in arrays.items()
        }

    def weight(node: int) -> int:
        return 10 + node

    def make_app(*mods: Any) -> ClientApp:
        """Trains and evaluates; each node in its own way."""
        app = ClientApp()

        @app.train(mods=list(mods))
        def train(message: Message, context: Context) -> Message:
            before = {k: a.numpy() for k, a in message.content["arrays"].items()}
            arrays = {k: Array(a) for k, a in trained(context.node_id, before).items()}
            metrics = MetricRecord({"num-examples": weight(context.node_id), "loss": 1 / context.node_id})
            return Message(RecordDict({"arrays": ArrayRecord(arrays), "metrics": metrics}), reply_to=message)

        @app.evaluate(mods=list(mods))
        def evaluate(message: Message, context: Context) -> Message:
            metrics = MetricRecord({"num-examples": context.node_id, "accuracy": 50 / context.node_id})
            return Message(RecordDict({"metrics": metrics}), reply_to=message)

        return app

    class Play:
        """A server and its nodes: `grid` is Flower's, `secure` the one over it.

        With a `folder`, nodes have identities and a roster made there, are called site-0, site-1 ..., and
        have the terms of `config` in their own configuration.
        """

        def __init__(
            self, app: Any = None, nodes: int | Iterable[int] = 5, *, fault: Fault | None = None,
            config: Mapping[str, Any] | None = None, folder: Path | None = None, policy: str | None = None,
            **settings: Any,
        ) -> None:  # fmt: skip
            self.config = CONFIG | dict(config or {})
            numbers = range(101, 101 + nodes) if isinstance(nodes, int) else list(nodes)
            self.names = {node: str(node) for node in numbers}
            configs: dict[int, dict[str, Any]] = {n: {"partition-id": i} for i, n in enumerate(numbers)}
            roster = None
            if folder is not None:
                self.names = {node: f"site-{i}" for i, node in enumerate(numbers)}
                files = {node: generate_party(name, folder) for node, name in self.names.items()}
                roster = folder / "roster.json"
                write_roster(roster, [public for _, public in files.values()])
                for node, (key, _) in files.items():
                    configs[node] = {"secagg-identity": str(key), "secagg-roster": str(roster)}
                    configs[node] |= {
                        k: v for k, v in self.config.items() if k in TERMS or k == "secagg-max-records"
                    }
                    if policy is not None:
                        configs[node]["secagg-policy"] = policy
                if "secagg-threat-model" not in self.config:
                    self.config["secagg-threat-model"] = "malicious"
            self.roster = roster
            self.grid = LocalGrid(
                make_app(secagg_mod) if app is None else app, numbers, fault, self.config, configs
            )
            self.secure = self.server(**settings)

        def server(self, context: Any = None, **settings: Any) -> SecAggGrid:
            """A grid over the same nodes: a new ServerApp's, or that of the ServerApp with this context."""
            context = context or self.grid.context(self.config)
            return SecAggGrid(self.grid, context, roster=self.roster, **settings)

        @property
        def nodes(self) -> list[int]:
            return self.grid.nodes

        def send(
            self, kind: str, content: RecordDict, nodes: Iterable[int] | None = None,
            timeout: float | None = 0.001,
        ) -> dict[int, Message]:  # fmt: skip
            """One round with one instruction; replies by node."""
            to = self.nodes if nodes is None else nodes
            replies = list(
                self.secure.send_and_receive([Message(content, n, kind) for n in to], timeout=timeout)
            )
            assert len(replies) == len(list(to))
            return {m.metadata.src_node_id: m for m in replies}

        def train(self, record: ArrayRecord | None = None, **options: Any) -> dict[int, Message]:
            content = RecordDict({"arrays": record or model(), "config": ConfigRecord({"lr": 0.1})})
            return self.send("train", content, **options)

        def evaluate(self, **options: Any) -> dict[int, Message]:
            return self.send("evaluate", RecordDict({"arrays": model()}), **options)

        def check(
            self, replies: Mapping[int, Message], included: Iterable[int], record: ArrayRecord | None = None
        ) -> None:
            """The exact weighted mean of these nodes, errors for the others, reasons for each."""
            wanted, record = set(included), record or model()
            assert {n for n, m in replies.items() if m.has_content()} == wanted
            done = self.secure.rounds[-1]
            assert done.aborted is None
            assert set(done.included) == {self.names[n] for n in wanted}
            outside = [n for n in replies if n not in wanted]
            assert len(done.dropped) == len(outside)
            for node in outside:  # one that never said who it is has no name but its number
                assert done.dropped.get(self.names[node]) or done.dropped[str(node)]
                assert replies[node].error.reason
            before = {k: a.numpy() for k, a in record.items()}
            weights = sum(map(weight, wanted))
            settings = Settings.of(self.config)
            form = Form.of("train", RecordDict({"arrays": record}), settings)
            error = form.codec(settings, len(replies), None, b"").error(len(wanted), weights)
            changed = {n: trained(n, before) for n in wanted}
            for node in wanted:
                content = replies[node].content
                assert set(content) == {"arrays", "metrics"}
                assert list(content["arrays"]) == list(record)
                for key, old in before.items():
                    found = content["arrays"][key].numpy()
                    assert (found.dtype, found.shape) == (old.dtype, old.shape)
                    if old.dtype.kind != "f":
                        assert (found == old).all()
                        continue
                    mean = (
                        sum(weight(n) * (changed[n][key].astype(float) - old.astype(float)) for n in wanted)
                        / weights
                    )
                    room = error + 2 * np.finfo(old.dtype).eps * (abs(old).max(initial=0) + 1)
                    np.testing.assert_allclose(found - mean, old.astype(float), rtol=0, atol=room)
                assert content["metrics"]["num-examples"] == pytest.approx(weights / len(wanted))
                loss = sum(weight(n) / n for n in wanted) / weights
                assert content["metrics"]["loss"] == pytest.approx(loss, abs=1e-6)

        def refused(self, replies: Mapping[int, Message], reason: str = "") -> None:
            """No sum: errors only, and the reason where it is looked for."""
            assert all(m.has_error() for m in replies.values())
            done = self.secure.rounds[-1]
            assert done.aborted is not None
            assert done.included == ()
            assert reason in f"{done.aborted} {dict(done.dropped)}", (done.aborted, done.dropped)
            assert all(reason == "" or m.error.reason for m in replies.values())

    @pytest.fixture
    def sites(tmp_path: Path) -> Iterator[Callable[[], Path]]:
        """New folders for key files; in memory if the system has a place for that, since journals sync."""
        memory = Path("/dev/shm")
        with TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else tmp_path) as folder:
            yield lambda: Path(mkdtemp(dir=folder))

    @pytest.fixture
    def flower() -> Any:
        """The stage for tests of the Flower adapter: `Play` and its parts."""
        return SimpleNamespace(
            Play=Play, LocalGrid=LocalGrid, CONFIG=CONFIG, model=model, trained=trained, weight=weight,
            make_app=make_app, copy=copy,
            copy_state=lambda state: recorddict_from_proto(recorddict_to_proto(state)),
        )  # fmt: skip
