"""Pictures of results, by matplotlib (extra `demo`), drawn without a display."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from fedavg.experiment import Outcome, PrivateOutcome, who_dropped
from fedavg.privacy import Plan
from fedavg.statistics import Bars, Result, Rows, describe, shown, tabulate
from protocols.simulator import Row

_INK = {"alone": "#b8b8b8", "plain": "#e08214", "secure": "#2166ac", "pooled": "#444444", "drop": "#b2182b"}


def _figure(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=130, layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def learning_curves(outcome: Outcome, title: str, path: Path) -> None:
    """First metric on the test set by round: secure over plain, between alone and pooled."""
    figure, axes = _figure(8.0, 4.8)
    rounds = [r.number + 1 for r in outcome.secure]
    for place, found in enumerate(outcome.alone.values()):
        label = None if place else "each hospital alone"
        axes.axhline(found.first, color=_INK["alone"], lw=1.0, label=label)
    axes.axhline(outcome.pooled.first, color=_INK["pooled"], ls=":", lw=1.5, label="pooled data")
    plain = [s.first for s in outcome.plain_scores]
    secure = [s.first for s in outcome.secure_scores]
    axes.plot(
        [r.number + 1 for r in outcome.plain],
        plain,
        color=_INK["plain"],
        lw=5,
        alpha=0.6,
        label="plain FedAvg",
    )
    axes.plot(rounds, secure, color=_INK["secure"], lw=1.6, marker="o", ms=3.5, label="secure FedAvg")
    drops = [number + 1 for number, _, _ in who_dropped(outcome)]
    if drops:
        level = [secure[rounds.index(n)] for n in drops]
        axes.plot(
            drops, level, ls="", marker="x", ms=8, mew=2, color=_INK["drop"], label="a hospital dropped out"
        )
    axes.set_xlabel("round")
    axes.set_ylabel(f"{outcome.metrics[0]} on the test set")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_title(title, loc="left", fontsize=11)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    _save(figure, path)


def costs(title: str, rows: Sequence[Row], path: Path) -> None:
    """CPU by stage of a session, simulated or estimated: client mean and server."""
    figure, axes = _figure(7.0, 3.8)
    places = list(range(len(rows)))
    axes.bar(
        [p - 0.2 for p in places],
        [r.client_cpu_mean * 1e3 for r in rows],
        0.4,
        label="client (mean)",
        color=_INK["secure"],
    )
    axes.bar(
        [p + 0.2 for p in places],
        [r.server_cpu * 1e3 for r in rows],
        0.4,
        label="server",
        color=_INK["plain"],
    )
    axes.set_xticks(places, [r.stage for r in rows])
    axes.set_ylabel("CPU, ms")
    axes.set_title(title, loc="left", fontsize=10)
    axes.legend(frameon=False)
    _save(figure, path)


def statistics(results: Sequence[Result], path: Path) -> None:
    """Results below each other: histograms as bars, all others as tables."""
    from matplotlib.figure import Figure

    bars = [result for result in results if isinstance(result, Bars)]
    tables = tabulate(result for result in results if not isinstance(result, Bars))
    heights = [0.35 + 0.24 * len(rows) for _, rows in tables] + [3.0] * len(bars)
    figure = Figure(figsize=(8.0, sum(heights) + 0.4), dpi=110, layout="constrained")
    panels = figure.subplots(len(heights), height_ratios=heights, squeeze=False)[:, 0]
    for axes, (title, rows) in zip(panels, tables, strict=False):
        axes.set_title(title, loc="left", fontsize=10)
        _numbers(axes, rows)
    for axes, result in zip(panels[len(tables) :], bars, strict=True):
        axes.set_title(f"{describe(result.query)} ({result.sites} sites)", loc="left", fontsize=10)
        _bars(axes, result)
    _save(figure, path)


def _bars(axes: Any, result: Bars) -> None:
    edges = result.query.edges
    widths = [b - a for a, b in pairwise(edges)]
    axes.bar(edges[:-1], result.counts, widths, align="edge", color=_INK["secure"], edgecolor="white")
    # What is beyond the edges has no width of its own: as wide as its neighbour, in another ink.
    for left, width, count in (
        (edges[0] - widths[0], widths[0], result.below),
        (edges[-1], widths[-1], result.above),
    ):
        if count:
            axes.bar(left, count, width, align="edge", color=_INK["alone"], edgecolor="white")
            axes.text(left + width / 2, count, "beyond", ha="center", va="bottom", fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel(result.query.column)
    axes.set_ylabel("values")
    axes.yaxis.get_major_locator().set_params(integer=True)


def _numbers(axes: Any, rows: Rows) -> None:
    axes.axis("off")
    cells = [[shown(value) for value in row] for row in rows]
    widths = [max(map(len, column)) + 3 for column in zip(*cells, strict=True)]
    shares = [width / sum(widths) for width in widths]
    table = axes.table(cells[1:], colLabels=cells[0], colWidths=shares, bbox=(0, 0, 1, 1), edges="horizontal")
    table.auto_set_font_size(False)
    table.set_fontsize(9)
    for (row, column), cell in table.get_celld().items():
        cell.get_text().set_horizontalalignment("right" if column else "left")
        cell.set_linewidth(0.8 if row == 0 else 0.2)


def _save(figure: Any, path: Path) -> None:
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: the picture cannot be written: {error}") from None


def private_curves(outcome: PrivateOutcome, title: str, path: Path) -> None:
    """First metric on the test set by round: with the guarantee, without noise, and alone."""
    figure, axes = _figure(8.0, 4.8)
    for place, found in enumerate(outcome.alone.values()):
        label = None if place else "each hospital alone, without noise"
        axes.axhline(found.first, color=_INK["alone"], lw=1.0, label=label)
    rounds = [r.number + 1 for r in outcome.rounds]
    plain = [s.first for s in outcome.plain_scores]
    axes.plot(
        range(1, len(plain) + 1),
        plain,
        color=_INK["plain"],
        lw=2.5,
        alpha=0.8,
        label="together, without noise",
    )
    axes.plot(
        rounds, [s.first for s in outcome.scores], color=_INK["secure"], lw=1.6, marker="o", ms=3.5,
        label=f"together, epsilon {outcome.ledger.epsilon:g}",
    )  # fmt: skip
    axes.set_xlabel("round")
    axes.set_ylabel(f"{outcome.metrics[0]} on the test set")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_title(title, loc="left", fontsize=10)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    _save(figure, path)


def tradeoff(outcomes: Sequence[PrivateOutcome], title: str, path: Path) -> None:
    """First metric on the test set against epsilon, and without noise."""
    figure, axes = _figure(7.0, 4.4)
    epsilons = [o.plan.epsilon for o in outcomes]
    axes.plot(
        epsilons, [o.scores[-1].first for o in outcomes], color=_INK["secure"], marker="o", ms=4, lw=1.6,
        label="with the guarantee",
    )  # fmt: skip
    axes.axhline(outcomes[0].plain_scores[-1].first, color=_INK["plain"], lw=2, label="without noise")
    axes.set_xscale("log")
    axes.set_xticks(epsilons, [f"{e:g}" for e in epsilons])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("epsilon")
    axes.set_ylabel(f"{outcomes[0].metrics[0]} on the test set")
    axes.set_title(title, loc="left", fontsize=10)
    axes.legend(frameon=False, fontsize=9)
    _save(figure, path)


def privacy(curves: Mapping[str, Sequence[Plan]], title: str, path: Path) -> None:
    """Error against epsilon: a curve for every setting, and a trusted server's beneath it."""
    figure, axes = _figure(7.0, 4.4)
    for label, plans in curves.items():
        epsilons, contributions = [p.epsilon for p in plans], plans[0].cohort * plans[0].records
        errors = [p.error / contributions for p in plans]
        (line,) = axes.plot(epsilons, errors, marker="o", ms=3.5, lw=1.4, label=label)
        central = [p.central / contributions for p in plans]
        axes.plot(epsilons, central, lw=6, alpha=0.3, color=line.get_color())
        axes.set_xscale("log")
        axes.set_xticks(epsilons, [f"{e:g}" for e in epsilons])
    axes.plot([], [], lw=6, alpha=0.3, color="#444444", label="at a trusted server")
    axes.set_yscale("log")
    axes.set_xticks([], minor=True)
    axes.set_xlabel("epsilon")
    axes.set_ylabel("error of an entry of the mean")
    axes.set_title(title, loc="left", fontsize=10)
    axes.legend(frameon=False, fontsize=9)
    _save(figure, path)
