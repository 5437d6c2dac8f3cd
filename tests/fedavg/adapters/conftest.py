"""Flower without a network: real messages, contexts and apps; what travels is serialised on its way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from typing import Any

import pytest

_NEEDED = {"test_flower*.py": "flwr", "test_torch_*.py": "torch"}

collect_ignore_glob = [files for files, module in _NEEDED.items() if find_spec(module) is None]

if find_spec("flwr"):
    from flwr.app import Context, Error, Message, RecordDict
    from flwr.common.constant import ErrorCode
    from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
    from flwr.serverapp import Grid
    from flwr.supercore.run import Run
    from flwr.supercore.task_identity import TaskIdentity

    Fault = Callable[[int, int, Message], "str | Message | None"]
    """(node, how many messages it had before, message) -> "silent", "crash", another reply, or None."""

    class LocalGrid(Grid):
        """Runs each node's ClientApp in this process, as a SuperNode would.

        A state is handed back only by an app that returns: one that crashes leaves the older one.
        """

        def __init__(
            self, app: Any, nodes: int | Iterable[int], fault: Fault | None = None,
            run_config: dict[str, Any] | None = None, node_configs: dict[int, dict[str, Any]] | None = None,
        ) -> None:  # fmt: skip
            TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 7, 1, 1
            self.app, self.fault = app, fault or (lambda node, count, message: None)
            self.nodes = list(range(101, 101 + nodes)) if isinstance(nodes, int) else list(nodes)
            self.contexts = {
                node: Context(7, node, (node_configs or {}).get(node, {"partition-id": i}), RecordDict(),
                              dict(run_config or {}))
                for i, node in enumerate(self.nodes)
            }  # fmt: skip
            self.counts: Counter[int] = Counter()
            self.up: dict[int, list[int]] = {node: [] for node in self.nodes}
            self.sent: list[Message] = []
            self.replies: dict[str, Message] = {}
            self._next = 0

        def context(self, run_config: dict[str, Any] | None = None) -> Any:
            """The ServerApp's."""
            return Context(7, 1, {}, RecordDict(), dict(run_config or {}))

        def push_messages(self, messages: Iterable[Message]) -> list[str]:
            ids = []
            for message in messages:
                self._next += 1
                message.metadata.__dict__["_message_id"] = str(self._next)
                ids.append(str(self._next))
                self.sent.append(message)
                reply = self._handle(message)
                if reply is not None:
                    reply.metadata.__dict__["_reply_to_message_id"] = str(self._next)
                    self.replies[str(self._next)] = reply
            return ids

        def _handle(self, message: Message) -> Message | None:
            node = message.metadata.dst_node_id
            count = self.counts[node]
            self.counts[node] += 1
            fault = self.fault(node, count, message)
            if isinstance(fault, Message):
                return fault
            if fault == "silent":
                return None
            if fault == "crash":
                return Message(Error(ErrorCode.CLIENT_APP_CRASHED, "crashed"), reply_to=message)
            context = self.contexts[node]
            state = recorddict_from_proto(recorddict_to_proto(context.state))
            work = Context(context.run_id, node, context.node_config, state, context.run_config)
            message.content = recorddict_from_proto(recorddict_to_proto(message.content))
            try:
                reply = self.app(message, work)
            except Exception as error:
                text = f"{type(error)}:<'{error}'>"
                return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, text), reply_to=message)
            self.contexts[node] = work
            if not reply.has_error():
                packed = recorddict_to_proto(reply.content)
                self.up[node].append(packed.ByteSize())
                reply.content = recorddict_from_proto(packed)
            return reply

        def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
            return [self.replies.pop(i) for i in list(message_ids) if i in self.replies]

        def send_and_receive(
            self, messages: Iterable[Message], *, timeout: float | None = None
        ) -> list[Message]:
            return list(self.pull_messages(self.push_messages(messages)))

        def get_node_ids(self) -> list[int]:
            return list(self.nodes)

        def set_run(self, run: Any) -> None:
            raise NotImplementedError

        @property
        def run(self) -> Any:
            return Run.create_empty(7)

        def create_message(self, *args: Any, **kwargs: Any) -> Message:
            raise NotImplementedError

    @pytest.fixture
    def local_grid() -> type[LocalGrid]:
        return LocalGrid
