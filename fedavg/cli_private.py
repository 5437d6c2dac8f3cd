"""What the command does where noise is added: training with a guarantee, and planning one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click

from fedavg import pictures
from fedavg.audit import audit
from fedavg.datasets import DATASETS, Dataset
from fedavg.experiment import PrivateOutcome, make_model, run_private
from fedavg.ledger import Ledger
from fedavg.privacy import Plan, plan
from fedavg.private import MOMENTUM, UNIT, PrivateSGD
from fedavg.turns import gain

EPSILONS = (0.5, 1.0, 2.0, 4.0, 8.0)
RATES = {"linear": 0.2, "logistic": 2.0, "mlp": 2.0}
_WITHOUT = ("epochs", "batch_size", "equal_weights", "bits", "tolerance")


def run(
    data: Dataset, part: Any, settings: PrivateSGD, agreed: Mapping[str, Any], dropouts: Any, epsilon: float,
    delta: float, seed: int, *, progress: Any, state: Path | None = None, colluding: int | None = None,
    max_records: int | None = None,
) -> PrivateOutcome:  # fmt: skip
    """Train with a progress bar. What is spent is kept beside the state."""
    path = None if state is None else state.with_name(state.name + ".ledger.json")
    ledger = Ledger(epsilon, delta, UNIT, path)
    with progress(each_hospital_alone=0, without_noise=1, with_noise=settings.rounds) as tell:
        return run_private(
            data, part, settings, agreed, dropouts, ledger, seed=seed, colluding=colluding,
            max_records=max_records, state=state, on_step=tell,
        )  # fmt: skip


def train(
    data: Dataset,
    kind: str,
    o: dict[str, Any],
    agreed: dict[str, Any],
    dropouts: Any,
    part: Any,
    progress: Any,
) -> None:
    """`secagg train --epsilon`."""
    given = click.get_current_context().get_parameter_source
    for name in _WITHOUT:
        if given(name) is not click.core.ParameterSource.DEFAULT:
            raise ValueError(f"--{name.replace('_', '-')} does not go with --epsilon")
    data = _with_ranges(data, o["ranges"])
    rate, norm = o["learning_rate"], o["clipping_norm"]
    if rate is None:
        rate = RATES[kind]
    settings = PrivateSGD(
        make_model(kind, data), o["rounds"], rate, clipping_norm=1.0 if norm is None else norm,
        quantile=o["clip_quantile"], sampling=1.0 if o["sampling"] is None else o["sampling"],
        turns=o["turns"], turns_of=o["turns_of"],
        seed=None if given("seed") is click.core.ParameterSource.DEFAULT else o["seed"],
    )  # fmt: skip
    try:
        outcome = run(
            data, part, settings, agreed, dropouts, o["epsilon"], o["delta"], o["seed"], progress=progress,
            state=o["state"], colluding=o["colluding"], max_records=o["max_records"],
        )  # fmt: skip
    except KeyboardInterrupt:
        if o["state"] is not None and o["state"].exists():
            click.echo(f"Kept in {o['state']}: the same command goes on from there.", err=True)
        raise
    title = (
        f"{data.name}, {kind}, {len(outcome.sizes)} hospitals, {o['protocol']}, {o['threat_model']}; "
        f"epsilon {o['epsilon']:g} for every record"
    )
    if o["save"] is not None:
        _save(o["save"], outcome, data, kind)
    if o["json_file"] is not None:
        text = json.dumps(_summary(outcome) | {"model": kind, "agreed": agreed, "seed": o["seed"]}, indent=2)
        try:
            o["json_file"].write_text(text + "\n")
        except OSError as error:
            raise ValueError(f"{o['json_file']}: cannot be written: {error}") from None
    show(outcome, title)
    if o["picture"] is not None:
        pictures.private_curves(outcome, title, o["picture"])
    files = (
        ("Learning curves", "picture"),
        ("Model", "save"),
        ("Scores", "json_file"),
        ("Training and ledger", "state"),
    )
    for what, path in files:
        if o[path] is not None:
            click.echo(f"{what}: {o[path]}")


def _with_ranges(data: Dataset, given: tuple[str, ...]) -> Dataset:
    """The data set with the public ranges that were given: all of a file's, or some instead of its own."""
    columns = [*data.features, *(() if data.classes else ("target",))]
    ranges = dict(zip(columns, data.ranges or (), strict=False))
    for text in given:
        column, _, bounds = text.partition(":")
        try:
            low, high = (float(bound) for bound in bounds.split(":"))
        except ValueError:
            raise ValueError(f"--range: expected COLUMN:LOW:HIGH, got {text!r}") from None
        if column not in columns:
            raise ValueError(f"--range: there is no feature {column!r}; there are {', '.join(columns)}")
        if not -1e100 < low < high < 1e100:
            raise ValueError(f"--range: expected a low below a high value, got {text!r}")
        ranges[column] = (low, high)
    missing = " ".join(f"--range '{column}:LOW:HIGH'" for column in columns if column not in ranges)
    if missing:
        target = "" if data.classes else " (target is what --label names)"
        raise ValueError(
            f"--epsilon needs the public range of every column, from what is known and not from the data: "
            f"{missing}{target}"
        )
    return replace(data, ranges=tuple(ranges[column] for column in columns))


def _summary(outcome: PrivateOutcome) -> dict[str, Any]:
    first, second = outcome.metrics

    def named(found: Any) -> dict[str, float]:
        return {first: found.first, second: found.second}

    return {
        "hospitals": outcome.sizes,
        "test_size": outcome.test_size,
        "alone": {name: named(found) for name, found in outcome.alone.items()},
        "pooled": named(outcome.pooled),
        "without_noise": [named(found) for found in outcome.plain_scores],
        "with_noise": [named(found) for found in outcome.scores],
        "included": [list(r.included) for r in outcome.rounds],
        "plan": asdict(outcome.plan),
        "spent": outcome.ledger.spent,
        "unit": outcome.ledger.unit,
    }


def _save(path: Path, outcome: PrivateOutcome, data: Dataset, kind: str) -> None:
    """Parameters in order, and what is needed to use them: columns, their public ranges, classes."""
    import numpy as np

    content: dict[str, Any] = {f"parameter_{i}": array for i, array in enumerate(outcome.model)}
    content |= {"model": kind, "columns": np.array(data.features), "classes": np.array(data.classes)}
    content |= {"ranges": np.array(data.ranges)}
    try:
        with path.open("wb") as file:
            np.savez(file, allow_pickle=False, **content)
    except OSError as error:
        raise ValueError(f"{path}: the model cannot be written: {error}") from None


def show(outcome: PrivateOutcome, title: str) -> None:
    """The scores, the guarantee and what it cost."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    console = _console()
    first, second = outcome.metrics
    table = Table(title=escape(title), box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
    table.add_column("model trained")
    table.add_column(first, justify="right")
    table.add_column(second, justify="right")
    ranks = [sorted(getattr(s, which) for s in outcome.alone.values()) for which in ("first", "second")]
    low, high = (f"{r[0]:.3f} to {r[-1]:.3f}" for r in ranks)
    table.add_row(f"by each of {len(outcome.sizes)} hospitals alone, without noise (range)", low, high)
    for name, found in (
        ("on pooled data, as usual (nobody's privacy)", outcome.pooled),
        ("together, on clipped gradients, without noise", outcome.plain_scores[-1]),
        ("together, with the guarantee", outcome.scores[-1]),
    ):
        table.add_row(name, f"{found.first:.4f}", f"{found.second:.4f}")
    console.print()
    console.print(table)
    if outcome.seeded:
        console.print(
            "Noise, rounding and samples came from the --seed that was given: to who knows it, nothing is "
            "guaranteed.",
            highlight=False,
        )
    found_plan, ledger = outcome.plan, outcome.ledger
    done = sum(r.aborted is None for r in outcome.rounds)
    failed = [r.aborted for r in outcome.rounds if r.aborted is not None]
    console.print(
        f"Guarantee: epsilon {ledger.epsilon:g} at delta {ledger.delta:g} for {ledger.unit}, against "
        "everybody who sees the sums, the server included. Spent: "
        f"{ledger.spent:.4g} in {len(ledger.releases)} rounds"
        f"{_colluding(found_plan)}.",
        highlight=False,
    )
    if found_plan.sampling < 1:
        console.print(
            f"In each round is a secret sample of {found_plan.sampling:g} of the records; who sees it learns "
            f"more: epsilon {ledger.spent_if_seen:.4g}.",
            highlight=False,
        )
    if found_plan.turns > 1:
        console.print(
            f"In each round are those whose turn it is, one in {found_plan.turns}. {_running(found_plan)}",
            highlight=False,
        )
    console.print(_noise(found_plan), highlight=False)
    console.print(
        f"{done} of {len(outcome.rounds)} rounds gave a sum, of {_included(outcome)} hospitals"
        + (f" (the first that did not: {failed[0]}; --dropout says how many may vanish)" if failed else "")
        + f"; tested on {outcome.test_size} records.",
        highlight=False,
    )


def _colluding(found: Plan) -> str:
    if not found.colluding:
        return "; it holds while every hospital adds its noise and keeps it to itself"
    return f"; it holds while at most {found.colluding} of the hospitals leave out their noise or tell it"


def _noise(found: Plan) -> str:
    return (
        f"Noise multiplier {found.noise_multiplier:.3g}; {found.bits} bits an entry; mean squared error "
        f"{(found.error / found.central) ** 2:.4f} times that of Gaussian noise at a trusted server; "
        f"{max(found.wraps):.2g} entries of a sum expected to wrap."
    )


def _running(found: Plan) -> str:
    part = gain(found.coefficients, found.turns, found.rounds)
    return (
        f"Noise cancels in running totals of sums: their error is {part:.2f} times what it would be with "
        "independent noise in each round."
    )


def _included(outcome: PrivateOutcome) -> str:
    sizes = sorted({len(r.included) for r in outcome.rounds if r.aborted is None})
    return f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"


def _console() -> Any:
    import sys

    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 100)


# ------------------------------------------------------------------------------------------ planning


def plans(o: Mapping[str, Any]) -> list[Plan]:
    """A plan for every epsilon that was asked for."""
    return [
        plan(
            o["dim"], o["clipping_norm"], o["hospitals"], epsilon, o["delta"], rounds=o["rounds"],
            records=o["max_records"], colluding=o["colluding"], bits=o["bits"], sampling=o["sampling"],
            turns=o["turns"], momentum=MOMENTUM,
        )
        for epsilon in o["epsilon"] or EPSILONS
    ]  # fmt: skip


def show_plans(found: list[Plan]) -> None:
    """A row for every plan."""
    from rich import box
    from rich.table import Table

    console, one = _console(), found[0]
    unit = "one hospital's whole contribution" if one.records == 1 else "one record"
    title = (
        f"{one.rounds} rounds, {one.cohort} hospitals, {one.dim:,} entries, delta {one.delta:g}; protected: "
        f"{unit} of L2 norm {one.clipping_norm:g} at most"
    )
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
    columns = (
        "epsilon", "noise multiplier", "bits", "error of the sum", "at a trusted server", "if each adds all",
        "wraps",
    )  # fmt: skip
    for column in columns:
        table.add_column(column, justify="right")
    for p in found:
        table.add_row(
            f"{p.epsilon:g}", f"{p.noise_multiplier:.3g}", str(p.bits), f"{p.error:.4g}", f"{p.central:.4g}",
            f"{p.local:.4g}", f"{max(p.wraps):.1e}",
        )  # fmt: skip
    console.print()
    console.print(table)
    console.print(
        "Errors are root mean squares of an entry of the sum; divide by the number of contributions for a "
        "mean. Wraps: entries of a sum expected to, if all contributions are alike.",
        highlight=False,
    )
    if one.turns > 1:
        console.print(
            f"One in {one.turns} contributes in a round, times {', '.join(map(str, one.coefficients))} in it "
            f"and in those after; errors and noise multiplier are for a coefficient of 1. {_running(one)}",
            highlight=False,
        )


def tries(o: Mapping[str, Any], partition: Any, progress: Any) -> None:
    """Train on a data set of the library for every epsilon, and show what accuracy is left."""
    from rich import box
    from rich.table import Table

    given = click.get_current_context().get_parameter_source
    for name in ("max_records", "dim", "bits"):
        if given(name) is not click.core.ParameterSource.DEFAULT:
            raise ValueError(f"--{name.replace('_', '-')} does not go with --dataset: it follows from it")
    data = DATASETS[o["dataset"]]()
    kind = "logistic" if data.classes else "linear"
    width = len(str(o["hospitals"]))
    names = [f"hospital-{i:0{width}}" for i in range(1, o["hospitals"] + 1)]
    settings = PrivateSGD(
        make_model(kind, data), o["rounds"], RATES[kind], clipping_norm=o["clipping_norm"],
        sampling=o["sampling"], turns=o["turns"], seed=o["seed"],
    )  # fmt: skip
    found = []
    with progress(trainings=len(o["epsilon"] or EPSILONS)) as tell:
        for done, epsilon in enumerate(o["epsilon"] or EPSILONS, 1):
            found.append(
                run_private(
                    data,
                    partition(data, names, "dirichlet", 0.5, o["seed"]),
                    settings,
                    {"dropout": 0.0},
                    lambda _: {},
                    Ledger(epsilon, o["delta"], UNIT),
                    seed=o["seed"],
                    colluding=o["colluding"],
                )
            )
            tell("trainings", done, len(o["epsilon"] or EPSILONS))
    if o["picture"] is not None:
        pictures.tradeoff(found, f"{data.name}, {len(names)} hospitals, {o['rounds']} rounds", o["picture"])
    if o["as_json"]:
        click.echo(json.dumps([_summary(outcome) for outcome in found], indent=2))
        return
    first, second = found[0].metrics
    title = f"{data.name}, {kind}, {len(names)} hospitals, {o['rounds']} rounds, delta {o['delta']:g}"
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
    for column in ("epsilon", "noise multiplier", "bits", "error of the sum", first, second):
        table.add_column(column, justify="right")
    for outcome in found:
        p, last = outcome.plan, outcome.scores[-1]
        table.add_row(
            f"{p.epsilon:g}", f"{p.noise_multiplier:.3g}", str(p.bits), f"{p.error:.4g}",
            f"{last.first:.4f}", f"{last.second:.4f}",
        )  # fmt: skip
    plain = found[0].plain_scores[-1]
    table.add_row("without noise", "", "", "", f"{plain.first:.4f}", f"{plain.second:.4f}")
    console = _console()
    console.print()
    console.print(table)
    console.print(
        f"Protected: {UNIT}. Tested on {found[0].test_size} records, after one training each: another seed "
        "gives other digits.",
        highlight=False,
    )
    if o["picture"] is not None:
        click.echo(f"Picture: {o['picture']}")


def audits(o: Mapping[str, Any], progress: Any) -> None:
    """Attack a round for every epsilon, and say what was found."""
    from rich import box
    from rich.table import Table

    given = click.get_current_context().get_parameter_source
    for name in (
        "max_records", "dim", "rounds", "colluding", "bits", "sampling", "turns", "dataset", "picture"
    ):  # fmt: skip
        if given(name) is not click.core.ParameterSource.DEFAULT:
            raise ValueError(f"--{name.replace('_', '-')} does not go with --audit")
    epsilons, canaries = o["epsilon"] or (1.0, 4.0), o["canaries"] or 2000
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
    table = Table(
        title=f"One round of {o['hospitals']} hospitals, {canaries:,} canaries, delta {o['delta']:g}",
        box=box.SIMPLE_HEAD, title_justify="left", title_style="bold",
    )  # fmt: skip
    for column in ("promised epsilon", "at least, if Gaussian", "at least", "variance of the noise", "p", ""):
        table.add_column(column, justify="right")
    for a in found:
        table.add_row(
            f"{a.promised:g}", f"{a.gaussian:.3g}", f"{a.free:.3g}", f"{a.variance:.4f}", f"{a.p:.2f}",
            "refuted" if a.refuted else "stands",
        )  # fmt: skip
    console = _console()
    console.print()
    console.print(table)
    console.print(
        "Lower bounds of epsilon from this attack, each right with a chance of its own: under a Gaussian "
        "trade-off, and without any assumption. The variance is over what it should be; p is the chance of "
        "one as far off. Refuted is what a bound exceeds, or p below 0.02: without reason at most one time "
        "in twenty.",
        highlight=False,
    )
