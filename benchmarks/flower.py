"""What a round of Flower costs and survives: plain averaging, Flower's own SecAgg+, and this library.

    python benchmarks/flower.py            two sizes of model, about five minutes
    python benchmarks/flower.py --small    a hundredth of it, to see that it runs
    python benchmarks/flower.py --write    also write benchmarks/FLOWER.md and results/flower.json

Whole rounds from the strategy to the clients and back, in Flower's simulation engine (ray), in one process
tree: every round of one kind is followed by one of each other, in an order that moves. The training is one
addition, so that what is left is the framework, the transport and the protocol. The unit is the plain
round; every figure beside it is a ratio within the run.

Linux and macOS; needs the extra `flower` with Flower's own extra `simulation`.
"""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ |= {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.client import NumPyClient
from flwr.client.mod import secaggplus_mod
from flwr.clientapp import ClientApp
from flwr.common import ndarrays_to_parameters
from flwr.common.serde import recorddict_to_proto
from flwr.server import LegacyContext, ServerConfig
from flwr.server.strategy import FedAvg as LegacyFedAvg
from flwr.server.workflow import DefaultWorkflow, SecAggPlusWorkflow
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from numpy.typing import NDArray
from record import machine, write

from fedavg.adapters.flower import SecAggGrid, secagg_mod

CLIENTS, SHARES, THRESHOLD = 10, 10, 6  # complete graph, and what our parameter finder takes for 10 clients
EXAMPLES, MAX_WEIGHT = 10, 1000
STEP = 0.1  # length of the first client's update
STAGES = ("keys", "shares", "masked", "reveals")  # as our protocol's; Flower's has the same four


# ----------------------------------------------------------------------------------------- the clients


def direction(dim: int) -> NDArray[np.float32]:
    """A vector of length 1 that costs nothing to make."""
    return np.full(dim, dim**-0.5, np.float32)


def trained(arrays: NDArray[Any], context: Context) -> NDArray[np.float32]:
    """The training: client p goes p + 1 steps, so that the mean tells who is in it."""
    steps = 1 + int(context.node_config["partition-id"])
    return np.asarray(arrays + np.float32(STEP * steps) * direction(arrays.size), np.float32)


class Client(NumPyClient):
    """The same training for Flower's legacy API."""

    def __init__(self, context: Context) -> None:
        self.context = context

    def fit(self, parameters: Any, config: Any) -> Any:
        return [trained(parameters[0], self.context)], EXAMPLES, {}


def sabotage(message: Message, context: Context, following: Callable[..., Message]) -> Message:
    """A mod that fails at the stage it was told by the last `query.fault`, and is else not there."""
    fault = context.state.get("fault")
    if isinstance(fault, ConfigRecord):
        now = int(fault["stages left"])  # type: ignore[arg-type]
        context.state["fault"] = ConfigRecord({**fault, "stages left": now - 1})
        if now == 0 and fault["how"] == "raises":
            raise RuntimeError("a fault on demand")
        if now == 0 and fault["how"] == "silent":
            time.sleep(float(fault["seconds"]))  # type: ignore[arg-type]
    return following(message, context)


def client_app() -> ClientApp:
    """All three kinds of rounds in one app, told apart by the message's type."""
    app = ClientApp()
    legacy = ClientApp(client_fn=lambda context: Client(context).to_client())

    def train(message: Message, context: Context) -> Message:
        arrays = message.content.array_records["arrays"]
        new = {key: Array(trained(a.numpy(), context)) for key, a in arrays.items()}
        metrics = MetricRecord({"num-examples": EXAMPLES})
        return Message(RecordDict({"arrays": ArrayRecord(new), "metrics": metrics}), reply_to=message)

    app.train("plain", mods=[sabotage])(train)
    for action in ("ours", "ours_in_trouble"):
        app.train(action, mods=[sabotage, secagg_mod])(train)
    app.train(mods=[sabotage, secaggplus_mod])(lambda message, context: legacy(message, context))

    @app.query()
    def nothing(message: Message, context: Context) -> Message:
        return Message(RecordDict(), reply_to=message)

    @app.query("fault")
    def be_told(message: Message, context: Context) -> Message:
        if context.node_config["partition-id"] == 0:
            context.state["fault"] = message.content["fault"]
        return Message(RecordDict(), reply_to=message)

    return app


# ------------------------------------------------------------------------------------------ the server


class Watched(Grid):
    """A grid that notes, exchange by exchange, how many were asked and how many answered well.

    On demand it also counts bytes of records (as protobuf), which takes time itself.
    """

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self.start(counting=False)

    def start(self, counting: bool) -> None:
        self.asked, self.answered = list[int](), list[int]()
        self.counting, self.down, self.up = counting, 0, 0

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        return self._grid.push_messages(self._sent(messages))

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return self._came(self._grid.pull_messages(message_ids))

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        return self._came(self._grid.send_and_receive(self._sent(messages), timeout=timeout))

    def _sent(self, messages: Iterable[Message]) -> list[Message]:
        messages = list(messages)
        if messages:
            self.asked.append(len(messages))
            self.answered.append(0)
        if self.counting:
            self.down += sum(recorddict_to_proto(m.content).ByteSize() for m in messages)
        return messages

    def _came(self, replies: Iterable[Message]) -> list[Message]:
        replies = list(replies)
        good = [m for m in replies if m.has_content()]
        if good:
            self.answered[-1] += len(good)
        if self.counting:
            self.up += sum(recorddict_to_proto(m.content).ByteSize() for m in good)
        return replies

    def set_run(self, run: Any) -> None:
        self._grid.set_run(run)

    @property
    def run(self) -> Any:
        return self._grid.run

    def create_message(self, *arguments: Any, **named: Any) -> Message:
        return self._grid.create_message(*arguments, **named)

    def get_node_ids(self) -> Iterable[int]:
        return self._grid.get_node_ids()

    def get_nodes(self) -> Iterable[Any]:
        return self._grid.get_nodes()


class Addressed(FedAvg):
    """FedAvg whose training messages go to one named function of the app."""

    def __init__(self, action: str) -> None:
        super().__init__(fraction_evaluate=0.0, min_train_nodes=2, min_available_nodes=CLIENTS)
        self.action = action

    def configure_train(self, *arguments: Any) -> Iterable[Message]:
        messages = list(super().configure_train(*arguments))
        for message in messages:
            message.metadata.message_type = f"train.{self.action}"
        return messages


class Rounds:
    """One round at a time of each kind, each with a model of its own that goes on from round to round.

    `timeout` is the server's patience in each stage, in seconds; `action` names our function of the app,
    and with it the task in which our rounds are numbered.
    """

    def __init__(self, grid: Watched, context: LegacyContext, timeout: float, action: str) -> None:
        self.grid, self.context, self.timeout, self.action = grid, context, timeout, action
        self.models: dict[str, NDArray[np.float32]] = {}
        self._secure = SecAggGrid(grid, context, max_weight=MAX_WEIGHT, timeout=timeout)

    def reset(self, dim: int) -> None:
        self.models = {kind: np.zeros(dim, np.float32) for kind in KINDS}

    def run(self, kind: str) -> None:
        {"plain": self._plain, "ours": self._ours, "flower": self._flower}[kind]()

    def _plain(self) -> None:
        self._train("plain", "plain", self.grid)

    def _ours(self) -> None:
        self._train("ours", self.action, self._secure)

    def _train(self, kind: str, action: str, grid: Grid) -> None:
        model = ArrayRecord({"w": Array(self.models[kind])})
        result = Addressed(action).start(grid, model, num_rounds=1, timeout=self.timeout)
        if result.arrays:
            self.models[kind] = result.arrays["w"].numpy()

    def _flower(self) -> None:
        state = self.context.state
        state["parameters"] = ArrayRecord({"w": Array(self.models["flower"])})
        workflow = SecAggPlusWorkflow(SHARES, THRESHOLD, max_weight=MAX_WEIGHT, timeout=self.timeout)
        workflow(self.grid, self.context)
        self.models["flower"] = next(iter(state.array_records["parameters"].values())).numpy()


KINDS = {
    "plain": "plain FedAvg",
    "flower": "Flower's SecAgg+",
    "ours": "this library",
}


@dataclass
class Cost:
    """What rounds of one kind cost; one entry a round, but for the counts."""

    kind: str
    dim: int
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    exchanges: int = 0
    bytes_up: float = 0.0
    bytes_down: float = 0.0

    @property
    def wall(self) -> float:
        return statistics.median(self.seconds)

    @property
    def cpu(self) -> float:
        # Clocks tick in hundredths: single rounds are rough, their sum is not.
        return statistics.fmean(self.cpu_seconds)


@dataclass
class Fate:
    """What became of a round in which the first of the clients failed."""

    kind: str
    stage: str
    how: str
    outcome: str


@dataclass
class Found:
    """Everything measured in one run."""

    costs: list[Cost] = field(default_factory=list)
    fates: list[Fate] = field(default_factory=list)
    empty: float = 0.0
    empty_cpu: float = 0.0


class CpuClock:
    """CPU seconds, user and system, of this process and all below it: the server, ray, its workers."""

    def __init__(self) -> None:
        import ray  # noqa: F401  (it brings psutil)
        from psutil import Process

        self._self = Process()

    def __call__(self) -> float:
        total = 0.0
        for process in (self._self, *self._self.children(recursive=True)):
            try:
                times = process.cpu_times()
            except Exception:  # gone meanwhile; psutil's own classes are not there to name before ray is
                continue
            total += times.user + times.system
        return total


def ask(grid: Grid, kind: str, content: RecordDict) -> None:
    """One message to each client, and its answer."""
    for reply in grid.send_and_receive([Message(content, node, kind) for node in grid.get_node_ids()]):
        if reply.has_error():
            raise RuntimeError(f"{kind}: {reply.error.reason}")


def measure(rounds: Rounds, dim: int, count: int) -> list[Cost]:
    """The costs of `count` rounds of each kind, interleaved, after one that is not timed but counted."""
    rounds.reset(dim)
    costs, clock, grid = {kind: Cost(kind, dim) for kind in KINDS}, CpuClock(), rounds.grid
    for kind, cost in costs.items():
        grid.start(counting=True)
        rounds.run(kind)
        cost.exchanges = len(grid.asked)
        cost.bytes_up, cost.bytes_down = grid.up / CLIENTS, grid.down / CLIENTS
    grid.start(counting=False)
    for i in range(count):
        for kind in [*KINDS][i % 3 :] + [*KINDS][: i % 3]:
            cpu, start = clock(), time.perf_counter()
            rounds.run(kind)
            costs[kind].seconds.append(time.perf_counter() - start)
            costs[kind].cpu_seconds.append(clock() - cpu)
    for kind, model in rounds.models.items():
        steps, expected = went(model), (count + 1) * (CLIENTS + 1) / 2
        if abs(steps - expected) > 0.01 * expected:
            raise RuntimeError(f"{kind}: {steps:.3f} steps instead of {expected}: a wrong mean was measured")
    return list(costs.values())


def went(model: NDArray[np.float32]) -> float:
    """How many steps a model went from zero."""
    return float(model.sum(dtype=np.float64)) * model.size**-0.5 / STEP


def outcome(steps: float) -> str:
    """What the mean of the steps tells: client p goes p + 1 of them."""
    if abs(steps - (CLIENTS + 1) / 2) < 0.02:
        return f"mean of all {CLIENTS}"
    if abs(steps - (CLIENTS + 2) / 2) < 0.02:
        return f"mean of the other {CLIENTS - 1}"
    return "no result, the model stays" if abs(steps) < 1e-6 else f"WRONG: {steps:.2f} steps"


def fail(rounds: Rounds) -> list[Fate]:
    """One round for each kind, stage and way to fail."""
    fates = []
    for kind in KINDS:
        for i, stage in enumerate(("train",) if kind == "plain" else STAGES):
            for how in ("raises", "silent"):
                rounds.reset(1000)
                fault: dict[str, Any] = {"stages left": i, "how": how, "seconds": 1.5 * rounds.timeout}
                ask(rounds.grid, "query.fault", RecordDict({"fault": ConfigRecord(fault)}))
                rounds.grid.start(counting=False)
                try:
                    rounds.run(kind)
                    found = outcome(went(rounds.models[kind]))
                except Exception as error:
                    found = f"the run ends: {type(error).__name__}"
                if how == "silent":  # the sleeper's state, stored when it wakes, would replace a newer one
                    time.sleep(fault["seconds"])
                answered = rounds.grid.answered[: i + 1]
                if answered != [CLIENTS] * i + [CLIENTS - 1]:
                    raise RuntimeError(f"{kind}, {stage}, {how}: the fault did not happen there: {answered}")
                fates.append(Fate(kind, stage, how, found))
    return fates


def server_app(found: Found, dims: Iterable[int], count: int, patience: float) -> ServerApp:
    """Everything as the one round of a legacy workflow, since Flower's SecAgg+ must be in one."""
    app = ServerApp()

    def work(grid: Grid, context: Context) -> None:
        assert isinstance(context, LegacyContext)
        watched = Watched(grid)
        rounds = Rounds(watched, context, 600.0, "ours")
        for dim in dims:
            found.costs += measure(rounds, dim, count)
        times, clock = [], CpuClock()
        cpu = clock()
        for _ in range(count):
            start = time.perf_counter()
            ask(grid, "query", RecordDict())
            times.append(time.perf_counter() - start)
        found.empty, found.empty_cpu = statistics.median(times), (clock() - cpu) / count
        found.fates += fail(Rounds(watched, context, patience, "ours_in_trouble"))

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        while len(list(grid.get_node_ids())) < CLIENTS:
            time.sleep(0.05)
        strategy = LegacyFedAvg(
            fraction_evaluate=0.0, min_available_clients=CLIENTS,
            initial_parameters=ndarrays_to_parameters([np.zeros(1, np.float32)]),
        )  # fmt: skip
        legacy = LegacyContext(context, config=ServerConfig(num_rounds=1), strategy=strategy)
        DefaultWorkflow(fit_workflow=work)(grid, legacy)

    return app


def report(where: dict[str, str], found: Found, count: int, patience: float) -> str:
    """The tables as Markdown."""
    lines = [
        "# A round of Flower, as a ratio to the plain one",
        "",
        f"Taken in one run on {where['cpu']} ({where['cores']} cores), Python {where['python']}, Flower",
        f"{where['flwr']}, ray {where['ray']}, numpy {where['numpy']}, commit {where['commit'][:12]}.",
        f"{CLIENTS} clients in Flower's simulation engine, training that costs nothing, {count} rounds of",
        f"each kind in turn. Both protocols: complete graph, {THRESHOLD} shares open a secret. Wall time is",
        "the median of the rounds; CPU time is the mean, of all processes; bytes are those of the records,",
        f"as protobuf, that one client sends. An exchange of nothing takes {found.empty * 1e3:.0f} ms:",
        "Flower looks for messages ten times a second, so wall times are steps of that and a plain round is",
        'one or two: the ratio of CPU times is the steadier one. "Waiting" is one step for each exchange.',
        f"The same exchange of nothing takes {found.empty_cpu:.3f} s of CPU: four exchanges in the place of",
        'one take three of these more than a plain round, whatever is in them ("least").',
        "Made by `benchmarks/flower.py --write`.",
        "",
        "| round | parameters | exchanges | wall s | waiting s | ratio "
        "| CPU s | ratio | least | bytes up | ratio |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    plain = {c.dim: c for c in found.costs if c.kind == "plain"}
    for c in found.costs:
        unit = plain[c.dim]
        lines.append(
            f"| {KINDS[c.kind]} | {c.dim:,} | {c.exchanges} | {c.wall:.2f} | {c.exchanges * found.empty:.2f} "
            f"| **{c.wall / unit.wall:.2f}** | {c.cpu:.2f} | **{c.cpu / unit.cpu:.2f}** "
            f"| {(unit.cpu + (c.exchanges - 1) * found.empty_cpu) / unit.cpu:.2f} "
            f"| {c.bytes_up:,.0f} | **{c.bytes_up / unit.bytes_up:.2f}** |"
        )
    lines += [
        "",
        f"One of the {CLIENTS} fails at a stage: it raises an exception, or it says nothing for longer than",
        f"the {patience:.0f} s that the server waits. What the round comes to:",
        "",
        "| round | stage | raises | silent |",
        "|---|---|---|---|",
    ]
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for f in found.fates:
        rows.setdefault((f.kind, f.stage), {})[f.how] = f.outcome
    for (kind, stage), row in rows.items():
        lines.append(f"| {KINDS[kind]} | {stage} | {row['raises']} | {row['silent']} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print, and write if asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    dims, count, patience = ((10_000,), 3, 2.0) if options.small else ((100_000, 1_000_000), 20, 4.0)
    logging.getLogger("flwr").setLevel(logging.CRITICAL)
    found = Found()
    run_simulation(
        server_app(found, dims, count, patience), client_app(), CLIENTS,
        backend_config={
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            "init_args": {
                "num_cpus": os.cpu_count() or 1, "include_dashboard": False, "log_to_driver": False,
            },
        },
    )  # fmt: skip
    where = machine("secagg", "numpy", "cryptography", "flwr", "ray") | {"cores": str(os.cpu_count())}
    text = report(where, found, count, patience)
    print(text)
    if options.write:
        costs = [asdict(c) | {"wall": c.wall, "cpu": c.cpu} for c in found.costs]
        fates = [asdict(f) for f in found.fates]
        write("FLOWER.md", text, "flower.json", {"machine": where, "costs": costs, "fates": fates})


if __name__ == "__main__":
    main()
