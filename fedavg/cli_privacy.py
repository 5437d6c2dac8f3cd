"""What the command does to plan a guarantee, to try it, and to attack it: `secagg privacy`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import click

from fedavg import pictures
from fedavg.audit import audit
from fedavg.cli_output import check_writable, console, refuse, table
from fedavg.cli_train import RATES, cancelling, hospital_names, partition, private_summary
from fedavg.datasets import DATASETS
from fedavg.experiment import make_model, run_private
from fedavg.ledger import Ledger
from fedavg.privacy import Plan, plan
from fedavg.private import MOMENTUM, UNIT, PrivateSGD

_EPSILONS = (0.5, 1.0, 2.0, 4.0, 8.0)
_ATTACKED = (1.0, 4.0)


def privacy(o: dict[str, Any], progress: Callable[..., Any]) -> None:
    """`secagg privacy`."""
    check_writable(o["picture"])
    if o["audit"]:
        refuse(
            ["max_records", "dim", "rounds", "colluding", "bits", "sampling", "turns", "dataset", "picture"],
            "does not go with --audit",
        )
        _attack(o, progress)
        return
    refuse(["canaries"], "goes with --audit")
    if o["dataset"] is not None:
        refuse(["max_records", "dim", "bits"], "does not go with --dataset: it follows from it")
        _try(o, progress)
    else:
        refuse(["seed"], "goes with --audit or --dataset")
        _plan(o)
    if o["picture"] is not None and not o["as_json"]:
        click.echo(f"Picture: {o['picture']}")


# -------------------------------------------------------------------------------------------- planning


def _plan(o: Mapping[str, Any]) -> None:
    found = _plans(o)
    if o["picture"] is not None:
        curves = {f"{o['hospitals']} hospitals, {o['rounds']} rounds": found}
        for hospitals, rounds in ((o["hospitals"], 4 * o["rounds"]), (4 * o["hospitals"], o["rounds"])):
            other = {**o, "hospitals": hospitals, "rounds": rounds, "bits": None}
            curves[f"{hospitals} hospitals, {rounds} rounds"] = _plans(other)
        title = f"{_unit(found[0])}; {o['dim']:,} entries, delta {o['delta']:g}"
        pictures.privacy(curves, title, o["picture"])
    if o["as_json"]:
        content = [asdict(p) | {"noise_multiplier": p.noise_multiplier} for p in found]
        click.echo(json.dumps(content, indent=2))
        return
    one, out = found[0], console()
    cohort = f"{one.rounds} rounds, {one.cohort} hospitals"
    shown = table(
        f"{cohort}, {one.dim:,} entries, delta {one.delta:g}; {_unit(one)}",
        ("epsilon", "noise multiplier", "bits", "error of the sum", "at a trusted server", "if each adds all",
         "wraps"),
    )  # fmt: skip
    for p in found:
        shown.add_row(
            f"{p.epsilon:g}", f"{p.noise_multiplier:.3g}", str(p.bits), f"{p.error:.4g}", f"{p.central:.4g}",
            f"{p.local:.4g}", f"{max(p.wraps):.1e}",
        )  # fmt: skip
    out.print()
    out.print(shown)
    out.print(
        "Errors are root mean squares of an entry of the sum; divide by the number of contributions for a "
        "mean. Wraps: entries of a sum expected to, if all contributions are alike.",
        highlight=False,
    )
    if one.turns > 1:
        out.print(
            f"One in {one.turns} contributes in a round, times {', '.join(map(str, one.coefficients))} in it "
            f"and in those after; errors and noise multiplier are for a coefficient of 1. {cancelling(one)}",
            highlight=False,
        )


def _plans(o: Mapping[str, Any]) -> list[Plan]:
    """A plan for every epsilon that was asked for."""
    return [
        plan(
            o["dim"], o["clipping_norm"], o["hospitals"], epsilon, o["delta"], rounds=o["rounds"],
            records=o["max_records"], colluding=o["colluding"], bits=o["bits"], sampling=o["sampling"],
            turns=o["turns"], momentum=MOMENTUM,
        )
        for epsilon in o["epsilon"] or _EPSILONS
    ]  # fmt: skip


def _unit(one: Plan) -> str:
    unit = "one hospital's whole contribution" if one.records == 1 else "one record"
    return f"protected: {unit} of L2 norm {one.clipping_norm:g} at most"


# ---------------------------------------------------------------------------------------------- trying


def _try(o: Mapping[str, Any], progress: Callable[..., Any]) -> None:
    """Train on a data set of the library for every epsilon, and show what accuracy is left."""
    data = DATASETS[o["dataset"]]()
    kind = "logistic" if data.classes else "linear"
    names, epsilons = hospital_names(o["hospitals"]), o["epsilon"] or _EPSILONS
    settings = PrivateSGD(
        make_model(kind, data), o["rounds"], RATES[kind], clipping_norm=o["clipping_norm"],
        sampling=o["sampling"], turns=o["turns"], seed=o["seed"],
    )  # fmt: skip
    found = []
    with progress(trainings=len(epsilons)) as tell:
        for done, epsilon in enumerate(epsilons, 1):
            part = partition(data, names, "dirichlet", 0.5, o["seed"])
            ledger = Ledger(epsilon, o["delta"], UNIT)
            outcome = run_private(
                data, part, settings, {"dropout": 0.0}, lambda _: {}, ledger, seed=o["seed"],
                colluding=o["colluding"],
            )  # fmt: skip
            found.append(outcome)
            tell("trainings", done, len(epsilons))
    if o["picture"] is not None:
        pictures.tradeoff(found, f"{data.name}, {len(names)} hospitals, {o['rounds']} rounds", o["picture"])
    if o["as_json"]:
        click.echo(json.dumps([private_summary(outcome) for outcome in found], indent=2))
        return
    shown = table(
        f"{data.name}, {kind}, {len(names)} hospitals, {o['rounds']} rounds, delta {o['delta']:g}",
        ("epsilon", "noise multiplier", "bits", "error of the sum", *found[0].metrics),
    )
    for outcome in found:
        p, last = outcome.plan, outcome.scores[-1]
        shown.add_row(
            f"{p.epsilon:g}", f"{p.noise_multiplier:.3g}", str(p.bits), f"{p.error:.4g}",
            f"{last.first:.4f}", f"{last.second:.4f}",
        )  # fmt: skip
    for name, score in (("without noise", found[0].plain_scores[-1]), ("pooled, as usual", found[0].pooled)):
        shown.add_row(name, "", "", "", f"{score.first:.4f}", f"{score.second:.4f}")
    out = console()
    out.print()
    out.print(shown)
    out.print(
        f"Protected: {UNIT}. Tested on {found[0].test_size} records, after one training each: another seed "
        "gives other digits.",
        highlight=False,
    )


# ------------------------------------------------------------------------------------------- attacking


def _attack(o: Mapping[str, Any], progress: Callable[..., Any]) -> None:
    """Attack a round for every epsilon, and say what was found."""
    epsilons, canaries = o["epsilon"] or _ATTACKED, o["canaries"] or 2000
    with progress(canaries=o["hospitals"]) as tell:
        found = [
            audit(
                canaries, o["hospitals"], epsilon, o["delta"], clipping_norm=o["clipping_norm"],
                seed=o["seed"], on_step=tell,
            )
            for epsilon in epsilons
        ]  # fmt: skip
    if o["as_json"]:
        click.echo(json.dumps([asdict(a) | {"refuted": a.refuted} for a in found], indent=2))
        return
    shown = table(
        f"One round of {o['hospitals']} hospitals, {canaries:,} canaries, delta {o['delta']:g}",
        ("promised epsilon", "at least, if Gaussian", "at least", "variance of the noise", "p", "promise"),
    )
    for a in found:
        shown.add_row(
            f"{a.promised:g}", f"{a.gaussian:.3g}", f"{a.free:.3g}", f"{a.variance:.4f}", f"{a.p:.2f}",
            "refuted" if a.refuted else "stands",
        )  # fmt: skip
    out = console()
    out.print()
    out.print(shown)
    out.print(
        "Lower bounds of epsilon from this attack, each right with a chance of its own: under a Gaussian "
        "trade-off, and without any assumption. The variance is over what it should be; p is the chance of "
        "one as far off. Refuted is what a bound exceeds, or p below 0.02: without reason at most one time "
        "in twenty.",
        highlight=False,
    )
