"""Pictures of results, by matplotlib (extra `demo`), drawn without a display."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedavg.experiment import Outcome, who_dropped
from protocols.simulator import Simulation

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


def costs(run: Simulation, path: Path) -> None:
    """CPU by stage of a simulated session: client mean and server."""
    figure, axes = _figure(7.0, 3.8)
    rows = run.rows()
    places = list(range(len(rows)))
    axes.bar(
        [p - 0.2 for p in places],
        [r[1] * 1e3 for r in rows],
        0.4,
        label="client (mean)",
        color=_INK["secure"],
    )
    axes.bar([p + 0.2 for p in places], [r[5] * 1e3 for r in rows], 0.4, label="server", color=_INK["plain"])
    axes.set_xticks(places, [r[0] for r in rows])
    axes.set_ylabel("CPU, ms")
    session = run.session
    title = (
        f"{session.protocol}, {session.threat_model}: {len(session.names)} clients, k = "
        f"{session.parameters.degree}, {session.dim:,} entries of {session.ring.bits} bits"
    )
    axes.set_title(title, loc="left", fontsize=10)
    axes.legend(frameon=False)
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: the picture cannot be written: {error}") from None
