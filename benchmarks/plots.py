"""The pictures of the page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

_INK = {"secagg": "#2166ac", "secagg+": "#e08214"}
_BARS = ("#2166ac", "#b8b8b8")
_MARK = {"honest-but-curious": "o", "semi-malicious": "^", "malicious": "s"}


def draw(found: dict[str, Any], where: Path) -> None:
    """All pictures of what was measured."""
    where.mkdir(exist_ok=True)
    if "growth" in found:
        for sweep, label in (("clients", "clients"), ("entries", "entries"), ("dropout", "dropped out")):
            _growth(found["growth"][sweep], sweep, label, where / f"growth-{sweep}.png")
    if "model" in found:
        from model import picture

        picture(found["model"], where / "model.png")
    _summary(found, where / "summary.png")


def _figure(panels: int, width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=130, layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)[0]
    for panel in axes:
        panel.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _growth(points: list[dict[str, Any]], sweep: str, label: str, path: Path) -> None:
    """CPU of a client and of the server, and a client's bytes, each with its line."""
    from growth import line, series
    from matplotlib.ticker import NullFormatter

    figure, axes = _figure(3, 12.0, 4.0)
    field = {"clients": "n", "entries": "dim", "dropout": "dropout"}[sweep]
    for (protocol, model), theirs in series(points).items():
        x = [p[field] for p in theirs]
        style = {"color": _INK[protocol], "marker": _MARK[model], "ms": 4, "lw": 1.4}
        for panel, party in zip(axes, ("client", "server"), strict=False):
            panel.plot(x, [min(p[party]) * 1e3 for p in theirs], label=f"{protocol}, {model}", **style)
            panel.plot(x, [y * 1e3 for y in line(theirs, party)], color=_INK[protocol], lw=0.8, ls=":")
        axes[2].plot(x, [p["up"] for p in theirs], **style)
    for panel, title in zip(
        axes, ("a client, CPU ms", "the server, CPU ms", "bytes a client sends"), strict=True
    ):
        if sweep != "dropout":  # which changes them by less than ten
            panel.set_xscale("log")
            panel.set_yscale("log")
        else:
            panel.set_ylim(bottom=0)
        for axis in (panel.xaxis, panel.yaxis):
            axis.set_minor_formatter(NullFormatter())
        panel.set_xlabel(label)
        panel.set_title(title, loc="left", fontsize=10)
    axes[0].plot([], [], color="#444444", lw=0.8, ls=":", label="asymptotic line")
    figure.legend(
        *axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False, fontsize=8
    )
    figure.savefig(path)


def _summary(found: dict[str, Any], path: Path) -> None:
    """To the limit, and to peers: what the README shows."""
    limited = [
        r
        for r in found.get("limit", {"parties": []})["parties"]
        if r["at_most"] is not None and "additions" not in r["work"]
    ]  # the tiny edition has none: at its sizes nothing is asked
    panels = [part for part, rows in (("limit", limited), ("peers", found.get("peers"))) if rows]
    if not panels:
        return
    figure, axes = _figure(len(panels), 5.6 * len(panels), 3.9)
    by_part = dict(zip(panels, axes, strict=True))
    if "limit" in by_part:
        rows = limited
        names = [
            f"{r['work']}, k = {r['k']}" + (f", {r['dropout']:.0%} dropout" if r["work"] == "server" else "")
            for r in rows
        ]
        panel = by_part["limit"]
        bars = panel.barh(names[::-1], [r["ratio"] for r in rows][::-1], color=_BARS[0], height=0.6)
        panel.bar_label(bars, fmt="%.2f", label_type="center", color="white", fontsize=9)
        panel.axvline(1.0, color="#444444", lw=1.2, ls=":", label="the cipher alone")
        places = range(len(rows))
        panel.plot([r["at_most"] for r in rows][::-1], places, "|", color="#b2182b", ms=16, mew=2,
                   label="not above")  # fmt: skip
        panel.set_xlim(0, 1.5 * max(r["at_most"] for r in rows))
        panel.legend(frameon=False, fontsize=8, loc="upper right")
        panel.set_xlabel("CPU time, in units of the raw AES-128-CTR keystreams")
        panel.set_title(f"to the limit: {rows[0]['dim']:,} entries of 32 bits", loc="left", fontsize=10)
    if "peers" in by_part:
        rows = found["peers"]["rows"]
        names = [
            f"{c['what']}, n = {c['n']}, k = {c['shares'] - 1}"
            + (f", {c['dropout']:.0%} dropout" if c["what"] == "server" else "")
            for c in (r["case"] for r in rows)
        ]
        panel, places = by_part["peers"], range(len(rows))
        theirs = panel.barh([p + 0.2 for p in places], [min(r["theirs"]) for r in rows][::-1], 0.36,
                            color=_BARS[1], label="Flower's SecAgg+")  # fmt: skip
        panel.barh([p - 0.2 for p in places], [min(r["ours"]) for r in rows][::-1], 0.36, color=_BARS[0],
                   label="secagg")  # fmt: skip
        panel.bar_label(
            theirs, [f"{min(r['theirs']) / min(r['ours']):.0f} x" for r in rows][::-1], padding=3, fontsize=9
        )
        panel.set_yticks(list(places), names[::-1])
        panel.set_xscale("log")
        panel.set_xlabel("CPU seconds")
        panel.legend(frameon=False, fontsize=8, loc="upper right")
        panel.set_xlim(right=5 * max(min(r["theirs"]) for r in rows))
        panel.set_title(
            f"to a peer: {rows[0]['case']['dim']:,} entries",
            loc="left",
            fontsize=10,
        )
    figure.savefig(path)
