"""Statistics over tables of Flower's nodes: as numpy has them, and what each node keeps to itself."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict

from fedavg.adapters.flower import ask, statistics_app
from fedavg.adapters.flower.statistics import QUERY
from fedavg.budget import Budget
from fedavg.statistics import Contingency, Count, Histogram, Mean, Quantile, Variance, to_bytes
from protocols.errors import Aborted, LocalError

MOST = 1000
SECRET = "4711.25"


def records(node: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(node)
    return [
        {"age": round(float(a), 3), "sex": s, "site": node}
        for a, s in zip(rng.uniform(20, 90, 100 + node % 7), rng.choice(["f", "m"], 200), strict=False)
    ]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    return path


@pytest.fixture
def tables(flower: Any, tmp_path: Path) -> Callable[..., Any]:
    """Makes a `Play` of nodes with tables; `changed` gives some other records."""

    def make(
        nodes: int = 5,
        *,
        most: Any = MOST,
        changed: dict[int, list[dict[str, Any]]] | None = None,
        **options: Any,
    ) -> Any:
        play = flower.Play(
            statistics_app(),
            nodes,
            config={"secagg-train-metrics": "", "secagg-max-records": most},
            **options,
        )
        for node, context in play.grid.contexts.items():
            rows = (changed or {}).get(node, records(node))
            context.node_config["secagg-table"] = str(write(tmp_path / f"{node}.csv", rows))
        return play

    return make


def ages(nodes: list[int]) -> Any:
    return np.array([row["age"] for n in nodes for row in records(n)])


def test_as_numpy_has_it(tables: Any) -> None:
    play = tables()
    edges = (20.0, 30.0, 50.0, 90.0)
    queries = [
        Count(), Mean(column="age", low=0, high=100), Variance(column="age", low=0, high=100),
        Histogram(column="age", edges=edges), Quantile(column="age", low=20, high=90, bins=8),
        Contingency(row="sex", column="site", row_values=("f", "m"), column_values=("101", "103")),
        Count(where=("sex", "f")),
    ]  # fmt: skip
    count, mean, spread, bars, cuts, cross, women = ask(play.secure, queries)
    wanted = ages(play.nodes)
    assert (count.count, count.sites) == (wanted.size, 5)
    assert mean.mean == pytest.approx(wanted.mean(), abs=mean.error)
    assert spread.variance == pytest.approx(wanted.var(), abs=spread.variance_error)
    assert bars.counts == tuple(np.histogram(wanted, edges)[0])
    for value, q in zip(cuts.values, (0.25, 0.5, 0.75), strict=True):
        assert value == pytest.approx(np.quantile(wanted, q, method="inverted_cdf"), abs=cuts.error)
    rows = [row for n in play.nodes for row in records(n)]
    assert [list(r) for r in cross.counts] == [
        [sum(r["sex"] == s and (r["site"] == n if n else r["site"] not in (101, 103)) for r in rows)
         for n in (101, 103, 0)] for s in ("f", "m")
    ] + [[0, 0, 0]]  # fmt: skip
    assert women.count == sum(r["sex"] == "f" for r in rows)
    assert [(r.task, r.number) for r in play.secure.rounds] == [
        ("flower/7/query.statistics", i + 1) for i in range(7)
    ]


def test_with_identities(tables: Any, sites: Callable[[], Path]) -> None:
    play = tables(folder=sites())
    (count,) = ask(play.secure, [Count()])
    assert count.count == ages(play.nodes).size
    assert play.secure.rounds[0].included == tuple(f"site-{i}" for i in range(5))


def test_nodes_that_are_gone(tables: Any) -> None:
    play = tables(fault=lambda n, count, message: "silent" if n == 103 else None)
    (mean,) = ask(play.secure, [Mean(column="age", low=0, high=100)], timeout=0.001)
    assert mean.sites == 4
    assert mean.mean == pytest.approx(ages([101, 102, 104, 105]).mean(), abs=mean.error)


def test_small_cells_are_hidden_by_each_node(tables: Any) -> None:
    few = [{"age": 40.0, "sex": "f", "site": 1}] * 3 + [{"age": 50.0, "sex": "m", "site": 1}] * 7
    play = tables(3, changed=dict.fromkeys((101, 102, 103), few))
    query = Contingency(row="sex", column="site", row_values=("f", "m"), column_values=("1",))
    ((f, m, _),) = [r.counts for r in ask(play.secure, [query])]
    assert (f[0], m[0]) == (0, 21)
    for context in play.grid.contexts.values():
        context.node_config["secagg-min-cell"] = 3
    ((f, m, _),) = [r.counts for r in ask(play.secure, [query])]
    assert (f[0], m[0]) == (9, 21)


def test_a_table_by_partition(flower: Any, tmp_path: Path) -> None:
    """In simulations, nodes are told apart by their partition."""
    for i in range(3):
        write(tmp_path / f"part-{i}.csv", records(i))
    app = statistics_app(lambda context: tmp_path / f"part-{context.node_config['partition-id']}.csv")
    (count,) = ask(flower.Play(app, 3).secure, [Count()])
    assert count.count == ages([0, 1, 2]).size


# ----------------------------------------------------------------------------------------- what is refused


def test_a_budget(tables: Any, tmp_path: Path) -> None:
    """It is kept beside the table, in whatever process; a node that has none left is out, and says so."""
    play = tables()
    play.grid.contexts[104].node_config["secagg-query-budget"] = 2
    results = ask(play.secure, [Count()] * 3)
    assert [r.sites for r in results] == [5, 5, 4]
    assert play.secure.rounds[-1].dropped == {"104": "secagg: its budget of queries is spent"}
    assert Budget(9, tmp_path / "104.budget").spent == 2
    assert Budget(9, tmp_path / "101.budget").spent == 3
    for context in play.grid.contexts.values():
        context.node_config["secagg-query-budget"] = 3
    (none,) = ask(play.secure, [Count()])
    assert isinstance(none, Aborted)
    assert set(play.secure.rounds[-1].dropped) >= {"101", "102", "103"}


def test_twenty_queries_unless_said_otherwise(tables: Any) -> None:
    play = tables(3)
    for path in (Path(c.node_config["secagg-table"]) for c in play.grid.contexts.values()):
        budget = Budget(20, path.with_suffix(".budget"))
        for _ in range(19):
            budget.spend()
    (count,) = ask(play.secure, [Count()])
    assert count.sites == 3
    (none,) = ask(play.secure, [Count()])
    assert isinstance(none, Aborted)
    assert set(play.secure.rounds[-1].dropped.values()) == {"secagg: its budget of queries is spent"}


@pytest.mark.parametrize("how", ["column", "value", "records", "no file", "no table", "budget"])
def test_a_node_that_cannot_answer(tables: Any, tmp_path: Path, how: str) -> None:
    """It is named; what its table holds is not."""
    rows = records(103)
    if how == "column":
        rows = [{"years": SECRET, "sex": "f"}] * 9
    if how == "value":
        rows[3]["age"] = f"old-{SECRET}"
    if how == "records":
        rows = rows * 10
    play = tables(changed={103: rows})
    config = play.grid.contexts[103].node_config
    match how:
        case "no file":
            Path(config["secagg-table"]).unlink()
        case "no table":
            del config["secagg-table"]
        case "budget":
            config["secagg-query-budget"] = "many"
    (mean,) = ask(play.secure, [Mean(column="age", low=0, high=100)])
    assert mean.sites == 4
    assert mean.mean == pytest.approx(ages([101, 102, 104, 105]).mean(), abs=mean.error)
    (reason,) = play.secure.rounds[-1].dropped.values()
    assert "its log says why" in reason or "its own log says why" in reason
    assert list(play.secure.rounds[-1].dropped) == ["103"]
    for _, message in play.grid.said:
        assert SECRET not in str(message)
        assert "years" not in str(message)
        assert str(tmp_path) not in str(message)


def test_too_few_nodes(tables: Any) -> None:
    (none,) = ask(tables(2).secure, [Count()], min_nodes=2)
    assert isinstance(none, Aborted)
    assert "a cohort of 2" in none.cause


def test_it_waits_for_nodes(tables: Any) -> None:
    play = tables(4)
    there = [play.nodes[:3], play.nodes]
    play.grid.get_node_ids = lambda: there.pop(0)
    (count,) = ask(play.secure, [Count()], min_nodes=4)
    assert count.sites == 4
    assert there == []


def test_no_sum_is_a_result_too(tables: Any) -> None:
    """What was answered before and after it is not lost."""
    play = tables(fault=lambda n, count, message: "silent" if n < 104 and count == 5 else None)
    one, two, three = ask(play.secure, [Count()] * 3, timeout=0.001)
    assert (one.sites, three.sites) == (5, 5)
    assert isinstance(two, Aborted)
    assert play.secure.rounds[1].aborted is two


@pytest.mark.parametrize("most", [0, -1, 1 << 32])
def test_a_bound_that_is_none(tables: Any, most: Any) -> None:
    play = tables(most=most)
    with pytest.raises(ValueError, match="max_records"):
        ask(play.secure, [Count()])
    assert play.grid.sent == []


def test_a_server_that_asks_one_node_something_else(tables: Any) -> None:
    play = tables()

    def down(node: int, count: int, message: Message) -> None:
        if node == 103 and QUERY in message.content:
            message.content[QUERY]["query"] = to_bytes(Count(where=("sex", "f")))

    play.grid.down = down
    (count,) = ask(play.secure, [Count()])
    assert count.count == ages([101, 102, 104, 105]).size
    assert "instruction is not the one" in play.secure.rounds[-1].dropped["103"]
    assert not Path(play.grid.contexts[103].node_config["secagg-table"]).with_suffix(".budget").exists()


@pytest.mark.parametrize("record", [{"query": b"x"}, {"other": 1}, {}, {"query": b""}])
def test_a_query_that_is_none(tables: Any, record: Any) -> None:
    """Sent to all alike, by a server that does not look at it."""
    play = tables()
    like = Message(RecordDict({QUERY: ConfigRecord(record)}), 101, "query.statistics")
    settings = play.secure.settings(5)
    cohort = play.secure.gather(play.nodes, like, settings)
    result = play.secure.sum(like, cohort, play.secure.open(like, cohort, settings, 1, MOST + 1), None)
    assert isinstance(result, Aborted)
    assert len(play.secure.rounds[-1].dropped) == 5


@pytest.mark.parametrize(("length", "bound"), [(2, MOST + 1), (1, MOST + 2), (1, 2)])
def test_a_query_that_does_not_fit_its_round(tables: Any, length: int, bound: int) -> None:
    """Nor is anything charged for it."""
    play = tables()
    content = RecordDict({QUERY: ConfigRecord({"query": to_bytes(Count())})})
    like = Message(content, 101, "query.statistics")
    settings = play.secure.settings(5)
    cohort = play.secure.gather(play.nodes, like, settings)
    opening = play.secure.open(like, cohort, settings, length, bound)
    assert isinstance(play.secure.sum(like, cohort, opening, None), Aborted)
    assert not list(Path(play.grid.contexts[101].node_config["secagg-table"]).parent.glob("*.budget"))


def test_the_app_answers_nothing_else(flower: Any) -> None:
    grid = flower.LocalGrid(statistics_app(), 3)
    for kind in ("train", "evaluate", "query"):
        (reply,) = grid.send_and_receive([Message(RecordDict(), 101, kind)])
        assert "function registered" in reply.error.reason
    with pytest.raises(LocalError, match="only train or evaluate"):
        flower.Play(statistics_app()).send("query.statistics", RecordDict())
    assert isinstance(grid.contexts[101], Context)
