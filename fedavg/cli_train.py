"""What the command does to train: `secagg demo` and `secagg train`, with exact sums or with noise."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click
import numpy as np

from fedavg import experiment, pictures
from fedavg import partition as ways
from fedavg.cli_output import check_writable, console, is_default, refuse, table, write_json
from fedavg.datasets import DATASETS, Dataset, breast_cancer, from_csv
from fedavg.experiment import Outcome, PrivateOutcome, Score, make_model, run_private
from fedavg.ledger import Ledger
from fedavg.partition import Partition
from fedavg.privacy import Plan
from fedavg.private import UNIT, PrivateSGD
from fedavg.round import Dropouts
from fedavg.server import FedAvg
from fedavg.train import LocalSGD
from fedavg.turns import gain
from protocols.graph import SECAGG
from protocols.session import stages
from protocols.wire import SERVER

RATES = {"linear": 0.2, "logistic": 2.0, "mlp": 2.0}
"""Learning rates of a training with noise."""

_WITHOUT_NOISE = ("epochs", "batch_size", "equal_weights", "bits", "tolerance")
_WITH_NOISE = ("delta", "state", "colluding", "ranges", "clip_quantile", "sampling", "turns", "turns_of")

Progress = Callable[..., Any]
"""A context in which bars stand, one for each keyword; it gives what moves them."""

# ------------------------------------------------------------------------------------------------ demo

_CITIES = ("bern", "brno", "cork", "gent", "graz", "lyon", "oslo", "pisa", "riga", "york")
_DEMO_DROPOUTS = {
    1: {"oslo": "keys"},
    3: {"riga": "shares", "cork": "masked"},
    6: {"pisa": "masked", "lyon": "signatures", "york": "reveals"},
    10: {"bern": "keys", "gent": "shares", "brno": "masked"},
    14: {"graz": "reveals"},
}


def demo(
    seed: int, rounds: int, protocol: str, picture: Path, epsilon: float | None, delta: float,
    progress: Progress,
) -> None:  # fmt: skip
    """`secagg demo`."""
    check_writable(picture)
    if epsilon is None:
        refuse(["delta"], "goes with --epsilon")
    data = breast_cancer()
    model, part = make_model("logistic", data), partition(data, _CITIES, "dirichlet", 0.6, seed)
    # gamma = 0.3 gives t = floor(2n/3) + 1 = 7 of 10, so that any three may drop out in a round.
    agreed = {"threat_model": "malicious", "corrupted": 0.3, "dropout": 0.3, "task": "demo"}
    agreed["protocol"] = protocol
    masked = protocol == SECAGG  # else there are no shares of secrets to be dealt
    dropouts = {
        number: {name: stage if masked or stage != "shares" else "masked" for name, stage in gone.items()}
        for number, gone in _DEMO_DROPOUTS.items()
    }
    if epsilon is not None:
        private = PrivateSGD(model, rounds, RATES["logistic"], seed=None if is_default("seed") else seed)
        found = _with_noise(data, part, private, agreed, lambda _: dropouts, epsilon, delta, seed, progress)
        title = f"Breast cancer, ten hospitals, {protocol}, malicious server; epsilon {epsilon:g} a patient"
        pictures.private_curves(found, title, picture)
        _show_private(found, title)
    else:
        settings = FedAvg(model, LocalSGD(3, 16, 0.05), rounds, seed=seed, clipping_norm=6.0)
        outcome = _compare(data, settings, agreed, lambda _: dropouts, part, len(_CITIES), seed, progress)
        pictures.learning_curves(
            outcome, "Breast cancer, ten hospitals: secure and plain FedAvg coincide", picture
        )
        opens = "shares open a secret" if masked else "owners of keys open the sum"
        _show(outcome, f"Breast cancer, malicious server; 7 of 10 {opens}")
    click.echo(f"\nLearning curves: {picture}")


# ----------------------------------------------------------------------------------------------- train


def train(o: dict[str, Any], progress: Progress) -> None:
    """`secagg train`."""
    check_writable(o["picture"], o["save"], o["json_file"], o["state"])
    refuse(*((_WITH_NOISE, "goes with --epsilon") if o["epsilon"] is None
             else (_WITHOUT_NOISE, "does not go with --epsilon")))  # fmt: skip
    if not is_default("turns_of") and o["turns"] == 1:
        raise ValueError("--turns-of goes with --turns")
    if o["save"] is not None and o["save"].suffix != ".npz":
        raise ValueError(f"{o['save']}: the model is written in numpy's format: name it .npz")
    data = _data(o)
    kind = o["model"] or ("logistic" if data.classes else "linear")
    agreed = {k: o[k] for k in ("protocol", "threat_model", "corrupted", "dropout")} | {"task": "train"}
    names = hospital_names(o["hospitals"])
    part = partition(data, names, o["partition"] or "dirichlet", o["alpha"], o["seed"])

    def dropouts(found: list[str]) -> Dropouts:
        there = list(stages(o["protocol"], o["threat_model"]))
        return random_dropouts(found, o["rounds"], o["dropping"], there, o["seed"])

    rate, norm = o["learning_rate"], o["clipping_norm"]
    if o["epsilon"] is not None:
        private = PrivateSGD(
            make_model(kind, data), o["rounds"], RATES[kind] if rate is None else rate,
            clipping_norm=1.0 if norm is None else norm, quantile=o["clip_quantile"],
            sampling=1.0 if o["sampling"] is None else o["sampling"], turns=o["turns"],
            turns_of=o["turns_of"], seed=None if is_default("seed") else o["seed"],
        )  # fmt: skip
        _train_private(_with_ranges(data, o["ranges"]), kind, o, private, agreed, dropouts, part, progress)
        return
    settings = FedAvg(
        make_model(kind, data), LocalSGD(o["epochs"], o["batch_size"], 0.05 if rate is None else rate),
        o["rounds"], not o["equal_weights"], clipping_norm=4.0 if norm is None else norm, bits=o["bits"],
        tolerance=o["tolerance"], seed=o["seed"],
    )  # fmt: skip
    outcome = _compare(
        data, settings, agreed, dropouts, part, len(names), o["seed"], progress, o["max_records"]
    )
    if o["save"] is not None:
        more = {"mean": outcome.standard.mean, "deviation": outcome.standard.deviation}
        if outcome.targets is not None:
            more |= {"target_mean": outcome.targets.mean, "target_deviation": outcome.targets.deviation}
        _save(o["save"], outcome, data, kind, more)
    if o["json_file"] is not None:
        write_json(o["json_file"], {"model": kind, "agreed": agreed, "seed": o["seed"], **_summary(outcome)})
    _show(
        outcome, f"{data.name}, {kind}, {len(outcome.sizes)} hospitals, {o['protocol']}, {o['threat_model']}"
    )
    if o["picture"] is not None:
        pictures.learning_curves(outcome, f"{data.name}, {len(outcome.sizes)} hospitals", o["picture"])
    _say_files(o, picture="Learning curves", save="Model", json_file="Scores")


def _train_private(
    data: Dataset, kind: str, o: dict[str, Any], settings: PrivateSGD, agreed: dict[str, Any],
    dropouts: Callable[[list[str]], Dropouts], part: Any, progress: Progress,
) -> None:  # fmt: skip
    """`secagg train --epsilon`."""
    try:
        outcome = _with_noise(
            data, part, settings, agreed, dropouts, o["epsilon"], o["delta"], o["seed"], progress,
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
        _save(o["save"], outcome, data, kind, {"ranges": np.array(data.ranges)})
    if o["json_file"] is not None:
        found = private_summary(outcome) | {"model": kind, "agreed": agreed, "seed": settings.seed}
        write_json(o["json_file"], found)
    _show_private(outcome, title)
    if o["picture"] is not None:
        pictures.private_curves(outcome, title, o["picture"])
    _say_files(o, picture="Learning curves", save="Model", json_file="Scores", state="Training")
    if o["state"] is not None:
        click.echo(f"Ledger: {_ledger_path(o['state'])}")


def _compare(
    data: Dataset, settings: FedAvg, agreed: dict[str, Any], dropouts: Callable[[list[str]], Dropouts],
    part: Any, hospitals: int, seed: int, progress: Progress, max_records: int | None = None,
) -> Outcome:  # fmt: skip
    steps = {
        "ranges_and_means": 0,
        "each_hospital_alone": hospitals,
        "secure_FedAvg": settings.rounds,
        "plain_FedAvg": settings.rounds,
    }
    with progress(**steps) as tell:
        return experiment.run(
            data, part, settings, agreed, dropouts, seed=seed, max_records=max_records, on_step=tell
        )


def _with_noise(
    data: Dataset, part: Any, settings: PrivateSGD, agreed: Mapping[str, Any],
    dropouts: Callable[[list[str]], Dropouts], epsilon: float, delta: float, seed: int, progress: Progress, *,
    state: Path | None = None, colluding: int | None = None, max_records: int | None = None,
) -> PrivateOutcome:  # fmt: skip
    """What is spent is kept beside the state."""
    ledger = Ledger(epsilon, delta, UNIT, None if state is None else _ledger_path(state))
    with progress(each_hospital_alone=0, without_noise=1, with_noise=settings.rounds) as tell:
        return run_private(
            data, part, settings, agreed, dropouts, ledger, seed=seed, colluding=colluding,
            max_records=max_records, state=state, on_step=tell,
        )  # fmt: skip


def _ledger_path(state: Path) -> Path:
    return state.with_name(state.name + ".ledger.json")


# ------------------------------------------------------------------------------------ data and hospitals


def _data(o: Mapping[str, Any]) -> Dataset:
    """The data set, or the table, that was asked for."""
    if o["csv_file"] is None and (o["label"] or o["group"] or o["ignore"]):
        raise ValueError("--label, --group and --ignore go with --csv")
    if o["group"] is not None and o["partition"] not in (None, "column"):
        raise ValueError("--group says which hospital a record belongs to: it needs no other --partition")
    if o["csv_file"] is None:
        return DATASETS[o["dataset"]]()
    if o["label"] is None:
        raise ValueError("--csv needs --label, the column to predict")
    return from_csv(o["csv_file"], o["label"], o["group"], o["ignore"])


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


def hospital_names(count: int) -> list[str]:
    """So many, in order."""
    return [f"hospital-{i:0{len(str(count))}}" for i in range(1, count + 1)]


def partition(data: Dataset, names: Any, way: str, alpha: float, seed: int) -> Callable[[Any], Partition]:
    """What splits the training records among hospitals."""
    rng, names = np.random.default_rng(seed), list(names)
    if data.groups is not None:
        way = "column"

    def part(train: Any) -> Partition:
        if way == "iid":
            return ways.iid(len(train), names, rng)
        if way == "quantity":
            return ways.quantity(len(train), names, rng, alpha, least=4)
        if way == "column":
            if data.groups is None:
                raise ValueError("partition column: needs --csv and --group")
            return ways.by_column([data.groups[i] for i in train])
        if data.task == "classification":
            return ways.dirichlet(data.y[train], names, rng, alpha, least=4)
        # For a quantity, label skew is by its quartile.
        quartile = np.searchsorted(np.quantile(data.y[train], [0.25, 0.5, 0.75]), data.y[train])
        return ways.dirichlet(quartile, names, rng, alpha, least=4)

    return part


def random_dropouts(names: list[str], rounds: int, fraction: float, stages: list[str], seed: int) -> Dropouts:
    """In each round, `fraction` of the hospitals vanish, each at a random stage."""
    rng, count = np.random.default_rng([seed, 1]), int(fraction * len(names) + 1e-9)
    return {
        number: {
            names[i]: stages[rng.integers(len(stages))] for i in rng.choice(len(names), count, replace=False)
        }
        for number in range(rounds)
    }


# --------------------------------------------------------------------------------------------- results


def _save(
    path: Path, outcome: Outcome | PrivateOutcome, data: Dataset, kind: str, more: dict[str, Any]
) -> None:
    """Parameters in order, and what is needed to use them: columns, how they were scaled, classes."""
    content: dict[str, Any] = {f"parameter_{i}": array for i, array in enumerate(outcome.model)}
    content |= {"model": kind, "columns": np.array(data.features), "classes": np.array(data.classes), **more}
    try:
        with path.open("wb") as file:
            np.savez(file, allow_pickle=False, **content)
    except OSError as error:
        raise ValueError(f"{path}: the model cannot be written: {error}") from None


def _say_files(o: Mapping[str, Any], **files: str) -> None:
    for option, what in files.items():
        if o[option] is not None:
            click.echo(f"{what}: {o[option]}")


def _named(outcome: Outcome | PrivateOutcome, found: Score) -> dict[str, float]:
    first, second = outcome.metrics
    return {first: found.first, second: found.second}


def _common(outcome: Outcome | PrivateOutcome) -> dict[str, Any]:
    return {
        "hospitals": outcome.sizes,
        "test_size": outcome.test_size,
        "alone": {name: _named(outcome, found) for name, found in outcome.alone.items()},
        "pooled": _named(outcome, outcome.pooled),
    }


def _summary(outcome: Outcome) -> dict[str, Any]:
    return _common(outcome) | {
        "plain": [_named(outcome, found) for found in outcome.plain_scores],
        "secure": [_named(outcome, found) for found in outcome.secure_scores],
        "difference": outcome.difference,
        "included": [list(r.included) for r in outcome.secure],
        "costs": {party: asdict(cost) for party, cost in outcome.aggregator.costs.items()},
    }


def private_summary(outcome: PrivateOutcome) -> dict[str, Any]:
    """All that was found, for JSON."""
    return _common(outcome) | {
        "without_noise": [_named(outcome, found) for found in outcome.plain_scores],
        "with_noise": [_named(outcome, found) for found in outcome.scores],
        "included": [list(r.included) for r in outcome.rounds],
        "plan": asdict(outcome.plan),
        "spent": outcome.ledger.spent,
        "unit": outcome.ledger.unit,
    }


def _scores(outcome: Outcome | PrivateOutcome, title: str, alone: str, rows: Mapping[str, Score]) -> Any:
    """A row for each model; of the hospitals alone, the range."""
    found = table(title)
    found.add_column("model trained")
    for metric in outcome.metrics:
        found.add_column(metric, justify="right")
    ranks = [sorted(getattr(s, which) for s in outcome.alone.values()) for which in ("first", "second")]
    low, high = (f"{r[0]:.3f} to {r[-1]:.3f}" for r in ranks)
    found.add_row(f"by each of {len(outcome.sizes)} hospitals alone{alone} (range)", low, high)
    for name, score in rows.items():
        found.add_row(name, f"{score.first:.4f}", f"{score.second:.4f}")
    return found


def _show(outcome: Outcome, title: str) -> None:
    """The table at the end, and who dropped out when."""
    from rich.markup import escape

    out = console()
    rows = {
        "by plain FedAvg": outcome.plain_scores[-1],
        "by secure FedAvg": outcome.secure_scores[-1],
        "on pooled data (nobody's privacy)": outcome.pooled,
    }
    out.print()
    out.print(_scores(outcome, title, "", rows))
    rounds = len(outcome.secure)
    apart = "0 (bit for bit the same)" if outcome.difference == 0 else f"{outcome.difference:g}"
    out.print(
        f"Largest difference, secure to plain, any parameter, {rounds} rounds: {apart}", highlight=False
    )
    clients = outcome.aggregator.clients()
    server = outcome.aggregator.costs[SERVER]
    up = sum(c.bytes_up for c in clients) / len(clients) / rounds
    cpu = sum(c.cpu_seconds for c in clients) / len(clients)
    out.print(
        f"Each hospital: {up:,.0f} bytes up a round, {cpu:.2f} s of CPU in all rounds. "
        f"Server: {server.bytes_up / rounds:,.0f} bytes down a round, {server.cpu_seconds:.2f} s of CPU.",
        highlight=False,
    )
    sizes = sorted(outcome.sizes.values())
    out.print(
        f"Hospitals of {sizes[0]} to {sizes[-1]} patients; tested on {outcome.test_size}.", highlight=False
    )
    gone: dict[int, list[str]] = {}
    for number, name, stage in experiment.who_dropped(outcome):
        gone.setdefault(number, []).append(escape(f"{name} ({stage})"))
    if gone:
        included = {r.number: len(r.included) for r in outcome.secure}
        found = table()
        for column in ("round", "dropped out (at stage)", "in the sum"):
            found.add_column(column)
        for number, names in gone.items():
            found.add_row(str(number + 1), ", ".join(names), f"{included[number]} of {len(outcome.sizes)}")
        out.print(found)
    for number, why in experiment.aborted(outcome):
        out.print(
            f"Round {number + 1} gave no sum and left the model as it was: {escape(str(why))}",
            highlight=False,
        )


def _show_private(outcome: PrivateOutcome, title: str) -> None:
    """The scores, the guarantee and what it cost."""
    out, plan, ledger = console(), outcome.plan, outcome.ledger
    rows = {
        "on pooled data, as usual (nobody's privacy)": outcome.pooled,
        "together, on clipped gradients, without noise": outcome.plain_scores[-1],
        "together, with the guarantee": outcome.scores[-1],
    }
    out.print()
    out.print(_scores(outcome, title, ", without noise", rows))
    if plan.colluding:
        while_ = f"at most {plan.colluding} of the hospitals leave out their noise or tell it"
    else:
        while_ = "every hospital adds its noise and keeps it to itself"
    said = [
        f"Guarantee: epsilon {ledger.epsilon:g} at delta {ledger.delta:g} for {ledger.unit}, against "
        "everybody who sees the sums, the server included. Spent: "
        f"{ledger.spent:.4g} in {len(ledger.releases)} rounds; it holds while {while_}."
    ]
    if outcome.seeded:
        said.append(
            "Noise, rounding and samples came from the --seed that was given: to who knows it, nothing is "
            "guaranteed."
        )
    if plan.sampling < 1:
        said.append(
            f"In each round is a secret sample of {plan.sampling:g} of the records; who sees it learns "
            f"more: epsilon {ledger.spent_if_seen:.4g}."
        )
    if plan.turns > 1:
        said.append(f"In each round are those whose turn it is, one in {plan.turns}. {cancelling(plan)}")
    said.append(
        f"Noise multiplier {plan.noise_multiplier:.3g}; planned for {plan.bits} bits an entry: mean squared "
        f"error {(plan.error / plan.central) ** 2:.4f} times that of Gaussian noise at a trusted server, "
        f"{max(plan.wraps):.2g} entries of a sum expected to wrap."
    )
    done = [len(r.included) for r in outcome.rounds if r.aborted is None]
    failed = [r.aborted for r in outcome.rounds if r.aborted is not None]
    sizes = f"{min(done)}" if min(done) == max(done) else f"{min(done)} to {max(done)}"
    said.append(
        f"{len(done)} of {len(outcome.rounds)} rounds gave a sum, of {sizes} hospitals"
        + (f" (the first that did not: {failed[0]}; --dropout says how many may vanish)" if failed else "")
        + f"; tested on {outcome.test_size} records."
    )
    for sentence in said:
        out.print(sentence, highlight=False)


def cancelling(plan: Plan) -> str:
    """What turns gain."""
    part = gain(plan.coefficients, plan.turns, plan.rounds)
    return (
        f"Noise cancels in running totals of sums: their error is {part:.2f} times what it would be with "
        "independent noise in each round."
    )
