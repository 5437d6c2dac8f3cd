"""The command `secagg` (extra `cli`; pictures and data sets need `demo`).

Heavy imports happen inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from fedavg.experiment import Outcome
    from fedavg.round import Dropouts

_THREATS = ("honest-but-curious", "semi-malicious", "malicious")
_PROTOCOLS = ("secagg", "secagg+")
_UPLOADS = ("keys", "shares", "masked", "signatures", "reveals")
_SEED = click.IntRange(0, 2**32 - 1)  # what scikit-learn's split takes
_FILE = click.Path(dir_okay=False, path_type=Path)
_EXTRAS = {"sklearn": "demo", "matplotlib": "demo", "ray": "ray", "dp_accounting": "dp", "scipy": "dp"}
_CITIES = ("bern", "brno", "cork", "gent", "graz", "lyon", "oslo", "pisa", "riga", "york")


class _Fraction(click.FloatRange):
    """From 0 to below 1; click's own range lets NaN through."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        found = super().convert(value, param, ctx)
        if found != found:
            self.fail(f"{value} is not in the range {self._describe_range()}.", param, ctx)
        return found


_FRACTION = _Fraction(0, 1, max_open=True)


def _is_default(option: str) -> bool:
    """Whether the running command was not given it."""
    source = click.get_current_context().get_parameter_source(option)
    return source is click.core.ParameterSource.DEFAULT


@contextmanager
def _clear_errors() -> Iterator[None]:
    """Turn what a user can cause into one clear line."""
    from protocols.errors import Aborted, LocalError

    try:
        yield
    except (LocalError, ValueError, Aborted) as error:
        raise click.ClickException(str(error)) from None
    except MemoryError:
        raise click.ClickException(
            "this does not fit into memory: fewer clients or entries, please"
        ) from None
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get(str(error.name))
        if extra is None:
            raise
        print(f"This needs an extra: pip install 'secagg[{extra}]'", file=sys.stderr)
        sys.exit(2)


@contextmanager
def _progress(**steps: int) -> Iterator[Callable[[str, int, int], None]]:
    """A bar for each step (and how much it is) on the terminal's error stream; silent without one."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description:<20}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        tasks = {
            step: bar.add_task(step.replace("_", " "), total=total, start=False)
            for step, total in steps.items()
        }

        def tell(step: str, done: int, total: int) -> None:
            step = step.replace(" ", "_")
            if step not in tasks:
                tasks[step] = bar.add_task(step, total=total)
            bar.start_task(tasks[step])
            bar.update(tasks[step], completed=done, total=total)

        yield tell


def _agreement(function: Callable[..., Any]) -> Callable[..., Any]:
    """Options that say which protocol, against whom."""
    for option in (
        click.option(
            "--dropout", type=_FRACTION, default=0.1, show_default=True, help="Fraction that may vanish."
        ),
        click.option(
            "--corrupted",
            type=_FRACTION,
            default=0.1,
            show_default=True,
            help="Fraction that may be corrupted.",
        ),
        click.option("--threat-model", type=click.Choice(_THREATS), default=_THREATS[0], show_default=True),
        click.option("--protocol", type=click.Choice(_PROTOCOLS), default=_PROTOCOLS[0], show_default=True),
    ):
        function = option(function)
    return function


def _guarantee(function: Callable[..., Any]) -> Callable[..., Any]:
    """Options that say how little may be told of a record."""
    for option in (
        click.option(
            "--delta", type=float, default=1e-5, show_default=True,
            help="With --epsilon: the chance that it does not hold; far below one over all records.",
        ),
        click.option(
            "--epsilon", type=float,
            help="Differential privacy for every record, against the server too: noise is added.",
        ),
    ):  # fmt: skip
        function = option(function)
    return function


def _show(outcome: Outcome, title: str) -> None:
    """The table at the end, and who dropped out when."""
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from fedavg.experiment import aborted, who_dropped
    from protocols.wire import SERVER

    console = Console(width=None if sys.stdout.isatty() else 100)
    first, second = outcome.metrics
    table = Table(title=escape(title), box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
    table.add_column("model trained")
    table.add_column(first, justify="right")
    table.add_column(second, justify="right")
    ranks = [sorted(getattr(s, which) for s in outcome.alone.values()) for which in ("first", "second")]
    low, high = (f"{r[0]:.3f} to {r[-1]:.3f}" for r in ranks)
    table.add_row(f"by each of {len(outcome.sizes)} hospitals alone (range)", low, high)
    for name, found in (
        ("by plain FedAvg", outcome.plain_scores[-1]),
        ("by secure FedAvg", outcome.secure_scores[-1]),
        ("on pooled data (nobody's privacy)", outcome.pooled),
    ):
        table.add_row(name, f"{found.first:.4f}", f"{found.second:.4f}")
    console.print()
    console.print(table)
    rounds = len(outcome.secure)
    apart = "0 (bit for bit the same)" if outcome.difference == 0 else f"{outcome.difference:g}"
    console.print(
        f"Largest difference, secure to plain, any parameter, {rounds} rounds: {apart}", highlight=False
    )
    clients = outcome.aggregator.clients()
    server = outcome.aggregator.costs[SERVER]
    up = sum(c.bytes_up for c in clients) / len(clients) / rounds
    cpu = sum(c.cpu_seconds for c in clients) / len(clients)
    console.print(
        f"Each hospital: {up:,.0f} bytes up a round, {cpu:.2f} s of CPU in all. Server: "
        f"{server.bytes_up / rounds:,.0f} bytes down a round, {server.cpu_seconds:.2f} s of CPU in all.",
        highlight=False,
    )
    sizes = sorted(outcome.sizes.values())
    console.print(
        f"Hospitals of {sizes[0]} to {sizes[-1]} patients; tested on {outcome.test_size}.", highlight=False
    )
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("round", "dropped out (at stage)", "in the sum"):
        table.add_column(column)
    included = {r.number: len(r.included) for r in outcome.secure}
    gone: dict[int, list[str]] = {}
    for number, name, stage in who_dropped(outcome):
        gone.setdefault(number, []).append(escape(f"{name} ({stage})"))
    for number, names in gone.items():
        table.add_row(str(number + 1), ", ".join(names), f"{included[number]} of {len(outcome.sizes)}")
    if gone:
        console.print(table)
    for number, why in aborted(outcome):
        console.print(
            f"Round {number + 1} gave no sum and left the model as it was: {escape(str(why))}",
            highlight=False,
        )


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="secagg")
def cli() -> None:
    """A server learns the sum of its clients' vectors and nothing else."""


# ------------------------------------------------------------------------------------------- learning

_DEMO_DROPOUTS = {
    1: {"oslo": "keys"},
    3: {"riga": "shares", "cork": "masked"},
    6: {"pisa": "masked", "lyon": "signatures", "york": "reveals"},
    10: {"bern": "keys", "gent": "shares", "brno": "masked"},
    14: {"graz": "reveals"},
}


@cli.command()
@click.option(
    "--seed", type=_SEED, default=3, show_default=True,
    help="Reproduces everything, keys included; with --epsilon, the noise only if it is given.",
)  # fmt: skip
@click.option("--rounds", default=20, show_default=True, type=click.IntRange(1))
@click.option(
    "--picture", type=_FILE, default=Path("secagg-demo.png"),
    show_default=True, help="Where the learning curves go.",
)  # fmt: skip
@_guarantee
def demo(seed: int, rounds: int, picture: Path, epsilon: float | None, delta: float) -> None:
    """Ten uneven hospitals learn to find breast cancer together; some drop out on the way."""
    with _clear_errors():
        from fedavg import pictures
        from fedavg.datasets import breast_cancer
        from fedavg.experiment import make_model
        from fedavg.server import FedAvg
        from fedavg.train import LocalSGD

        _check_writable(picture)
        data = breast_cancer()
        settings = FedAvg(
            make_model("logistic", data), LocalSGD(3, 16, 0.05), rounds, seed=seed, clipping_norm=6.0
        )
        # gamma = 0.3 gives t = floor(2n/3) + 1 = 7 of 10, so that any three may drop out in a round.
        agreed = {"threat_model": "malicious", "corrupted": 0.3, "dropout": 0.3, "task": "demo"}
        if epsilon is not None:
            from fedavg import cli_private
            from fedavg.private import PrivateSGD

            secret = None if _is_default("seed") else seed
            found = cli_private.run(
                data, _partition(data, list(_CITIES), "dirichlet", 0.6, seed),
                PrivateSGD(make_model("logistic", data), rounds, 2.0, seed=secret), agreed,
                lambda _: _DEMO_DROPOUTS, epsilon, delta, seed, progress=_progress,
            )  # fmt: skip
            title = f"Breast cancer, ten hospitals, malicious server; epsilon {epsilon:g} for every patient"
            pictures.private_curves(found, title, picture)
            cli_private.show(found, title)
            click.echo(f"\nLearning curves: {picture}")
            return
        outcome = _compare(
            data, settings, agreed, lambda _: _DEMO_DROPOUTS, list(_CITIES), "dirichlet", 0.6, seed
        )  # fmt: skip
        pictures.learning_curves(
            outcome, "Breast cancer, ten hospitals: secure and plain FedAvg coincide", picture
        )
        _show(outcome, "Breast cancer, 10 hospitals, malicious server; 7 of 10 shares open a secret")
        click.echo(f"\nLearning curves: {picture}")


def _compare(
    data: Any, settings: Any, agreed: dict[str, Any], dropouts: Any, names: list[str],
    partition: str, alpha: float, seed: int, max_records: int | None = None,
) -> Outcome:  # fmt: skip

    from fedavg import experiment

    steps = {
        "each_hospital_alone": len(names),
        "secure_FedAvg": settings.rounds,
        "plain_FedAvg": settings.rounds,
    }
    with _progress(**steps) as tell:
        return experiment.run(
            data, _partition(data, names, partition, alpha, seed), settings, agreed, dropouts, seed=seed,
            max_records=max_records, on_step=tell,
        )  # fmt: skip


def _partition(data: Any, names: list[str], partition: str, alpha: float, seed: int) -> Any:
    """What splits the training records among hospitals."""
    import numpy as np

    from fedavg import partition as ways

    rng = np.random.default_rng(seed)

    def part(train: Any) -> Any:
        if partition == "iid":
            return ways.iid(len(train), names, rng)
        if partition == "quantity":
            return ways.quantity(len(train), names, rng, alpha, least=4)
        if partition == "column":
            if data.groups is None:
                raise ValueError("partition column: needs --csv and --group")
            return ways.by_column([data.groups[i] for i in train])
        if data.task == "classification":
            return ways.dirichlet(data.y[train], names, rng, alpha, least=4)
        # For a quantity, label skew is by its quartile.
        quartile = np.searchsorted(np.quantile(data.y[train], [0.25, 0.5, 0.75]), data.y[train])
        return ways.dirichlet(quartile, names, rng, alpha, least=4)

    return part


@cli.command()
@click.option(
    "--dataset", type=click.Choice(("breast-cancer", "diabetes")), default="breast-cancer", show_default=True
)
@click.option("--csv", "csv_file", type=click.Path(path_type=Path), help="Your own data instead.")
@click.option("--label", help="The CSV file's label column.")
@click.option("--group", help="The CSV file's column that names the hospital.")
@click.option("--ignore", multiple=True, help="A column of the CSV file to leave out; may be repeated.")
@click.option("--hospitals", default=10, show_default=True, type=click.IntRange(3))
@click.option(
    "--partition", type=click.Choice(("iid", "dirichlet", "quantity", "column")),
    help="How records are spread; dirichlet unless --group is given.",
)  # fmt: skip
@click.option("--alpha", default=0.5, show_default=True, help="Skew: small is very uneven.")
@click.option(
    "--model", type=click.Choice(("logistic", "mlp", "linear")), help="Default: what fits the label."
)
@click.option("--rounds", default=20, show_default=True, type=click.IntRange(1))
@click.option("--epochs", default=2, show_default=True, type=click.IntRange(1))
@click.option("--batch-size", default=16, show_default=True, type=click.IntRange(1))
@click.option("--learning-rate", type=float, help="[default: 0.05; with --epsilon, 2, or 0.2 if linear]")
@click.option(
    "--clipping-norm", type=float,
    help="Largest L2 norm of an update, or with --epsilon of a record's gradient.  [default: 4, or 1]",
)  # fmt: skip
@click.option("--bits", default=16, show_default=True, help="Of the grid on which updates are sent.")
@click.option("--tolerance", default=0.0, show_default=True, help="Stop when the mean update is smaller.")
@click.option("--equal-weights", is_flag=True, help="Every hospital counts 1, whatever its size.")
@click.option(
    "--max-records", type=click.IntRange(1, 2**32 - 1), help="Public bound on a hospital's records."
)
@click.option(
    "--dropping",
    type=_FRACTION,
    default=0.0,
    show_default=True,
    help="Fraction that really drops out, each round.",
)
@click.option(
    "--seed", type=_SEED, default=0, show_default=True,
    help="Reproduces everything, keys included; with --epsilon, the noise only if it is given.",
)  # fmt: skip
@click.option("--json", "json_file", type=_FILE, help="Write the scores here.")
@click.option("--picture", type=_FILE, help="Draw the learning curves here.")
@click.option("--save", type=_FILE, help="Write the model here, as .npz.")
@click.option(
    "--sampling", type=float,
    help="With --epsilon: the chance of a record to be in a round, kept secret.  [default: 1]",
)  # fmt: skip
@click.option(
    "--turns", type=click.IntRange(1), default=1, show_default=True,
    help="With --epsilon: only so many-th of the records are in a round, in turns.",
)  # fmt: skip
@click.option(
    "--turns-of", type=click.Choice(("records", "hospitals")), default="records", show_default=True,
    help="With --turns: whether each hospital's records take turns, or the hospitals do.",
)  # fmt: skip
@click.option(
    "--clip-quantile", type=float,
    help="With --epsilon: move the clipping norm so that this part of the records stays below it.",
)  # fmt: skip
@click.option(
    "--state", type=_FILE,
    help="With --epsilon: keep the training here, and what is spent beside it, each round; go on from there.",
)  # fmt: skip
@click.option(
    "--colluding", type=click.IntRange(0),
    help="With --epsilon: hospitals whose noise is not counted on.  [default: as many as may be corrupted]",
)  # fmt: skip
@click.option(
    "--range", "ranges", multiple=True, metavar="COLUMN:LOW:HIGH",
    help="With --epsilon: a column's public range; with --csv, one for each feature, and for a target.",
)  # fmt: skip
@_guarantee
@_agreement
def train(**o: Any) -> None:
    """Train a model over simulated hospitals and compare it with the alternatives."""
    with _clear_errors():
        from fedavg import pictures
        from fedavg.datasets import DATASETS, from_csv
        from fedavg.experiment import make_model
        from fedavg.server import FedAvg
        from fedavg.train import LocalSGD

        _check_writable(o["picture"], o["save"], o["json_file"], o["state"])
        if o["save"] is not None and o["save"].suffix != ".npz":
            raise ValueError(f"{o['save']}: the model is written in numpy's format: name it .npz")
        if o["csv_file"] is None and (o["label"] or o["group"] or o["ignore"]):
            raise ValueError("--label, --group and --ignore go with --csv")
        if o["group"] is not None:
            if o["partition"] not in (None, "column"):
                raise ValueError(
                    "--group says which hospital a record belongs to: it needs no other --partition"
                )
            o["partition"] = "column"
        o["partition"] = o["partition"] or "dirichlet"
        if o["csv_file"] is not None:
            if o["label"] is None:
                raise ValueError("--csv needs --label, the column to predict")
            data = from_csv(o["csv_file"], o["label"], o["group"], o["ignore"])
        else:
            data = DATASETS[o["dataset"]]()
        kind = o["model"] or ("logistic" if data.classes else "linear")
        agreed = {k: o[k] for k in ("protocol", "threat_model", "corrupted", "dropout")} | {"task": "train"}
        width = len(str(o["hospitals"]))
        names = [f"hospital-{i:0{width}}" for i in range(1, o["hospitals"] + 1)]
        stages = [s for s in _UPLOADS if s != "signatures" or o["threat_model"] != _THREATS[0]]

        def dropouts(found: list[str]) -> Dropouts:
            return random_dropouts(found, o["rounds"], o["dropping"], stages, o["seed"])

        if o["epsilon"] is not None:
            from fedavg import cli_private

            part = _partition(data, names, o["partition"], o["alpha"], o["seed"])
            cli_private.train(data, kind, o, agreed, dropouts, part, _progress)
            return
        for name in (
            "delta",
            "state",
            "colluding",
            "ranges",
            "clip_quantile",
            "sampling",
            "turns",
            "turns_of",
        ):
            if not _is_default(name):
                option = "range" if name == "ranges" else name.replace("_", "-")
                raise ValueError(f"--{option} goes with --epsilon")
        rate = 0.05 if o["learning_rate"] is None else o["learning_rate"]
        norm = 4.0 if o["clipping_norm"] is None else o["clipping_norm"]
        settings = FedAvg(
            make_model(kind, data), LocalSGD(o["epochs"], o["batch_size"], rate), o["rounds"],
            not o["equal_weights"], clipping_norm=norm, bits=o["bits"], tolerance=o["tolerance"],
            seed=o["seed"],
        )  # fmt: skip
        outcome = _compare(
            data, settings, agreed, dropouts, names, o["partition"], o["alpha"], o["seed"], o["max_records"]
        )
        if o["picture"] is not None:
            pictures.learning_curves(outcome, f"{data.name}, {len(outcome.sizes)} hospitals", o["picture"])
        if o["save"] is not None:
            _save_model(o["save"], outcome, data, kind)
        if o["json_file"] is not None:
            _write(o["json_file"], {"model": kind, "agreed": agreed, "seed": o["seed"], **_summary(outcome)})
        _show(
            outcome,
            f"{data.name}, {kind}, {len(outcome.sizes)} hospitals, {o['protocol']}, {o['threat_model']}",
        )
        for what, path in (("Learning curves", "picture"), ("Model", "save"), ("Scores", "json_file")):
            if o[path] is not None:
                click.echo(f"{what}: {o[path]}")


def random_dropouts(names: list[str], rounds: int, fraction: float, stages: list[str], seed: int) -> Dropouts:
    """In each round, `fraction` of the hospitals vanish, each at a random stage."""
    import numpy as np

    rng, count = np.random.default_rng([seed, 1]), int(fraction * len(names) + 1e-9)
    return {
        number: {
            names[i]: stages[rng.integers(len(stages))] for i in rng.choice(len(names), count, replace=False)
        }
        for number in range(rounds)
    }


def _summary(outcome: Outcome) -> dict[str, Any]:
    first, second = outcome.metrics

    def named(found: Any) -> dict[str, float]:
        return {first: found.first, second: found.second}

    return {
        "hospitals": outcome.sizes,
        "test_size": outcome.test_size,
        "alone": {name: named(found) for name, found in outcome.alone.items()},
        "plain": [named(found) for found in outcome.plain_scores],
        "secure": [named(found) for found in outcome.secure_scores],
        "pooled": named(outcome.pooled),
        "difference": outcome.difference,
        "included": [list(r.included) for r in outcome.secure],
        "costs": {party: asdict(cost) for party, cost in outcome.aggregator.costs.items()},
    }


def _save_model(path: Path, outcome: Outcome, data: Any, kind: str) -> None:
    """Parameters in order, and what is needed to use them: columns, their moments, classes."""
    import numpy as np

    content: dict[str, Any] = {f"parameter_{i}": array for i, array in enumerate(outcome.model)}
    content |= {"model": kind, "columns": np.array(data.features), "classes": np.array(data.classes)}
    content |= {"mean": outcome.standard.mean, "deviation": outcome.standard.deviation}
    if outcome.targets is not None:
        content |= {"target_mean": outcome.targets.mean, "target_deviation": outcome.targets.deviation}
    try:
        with path.open("wb") as file:
            np.savez(file, allow_pickle=False, **content)
    except OSError as error:
        raise ValueError(f"{path}: the model cannot be written: {error}") from None


def _check_writable(*paths: Path | None) -> None:
    """Before the work, not after it."""
    for path in paths:
        if path is not None and not path.absolute().parent.is_dir():
            raise ValueError(f"{path}: there is no such folder")
        if path is not None and not os.access(path.absolute().parent, os.W_OK):
            raise ValueError(f"{path}: its folder cannot be written to")


def _write(path: Path, content: dict[str, Any]) -> None:
    try:
        path.write_text(json.dumps(content, indent=2) + "\n")
    except OSError as error:
        raise ValueError(f"{path}: cannot be written: {error}") from None


@cli.command()
@click.option(
    "--epsilon", type=float, multiple=True,
    help="May be repeated.  [default: 0.5, 1, 2, 4 and 8; with --audit, 1 and 4]",
)  # fmt: skip
@click.option("--delta", type=float, default=1e-5, show_default=True)
@click.option("--hospitals", default=10, show_default=True, type=click.IntRange(1))
@click.option(
    "--max-records", default=1, show_default=True, type=click.IntRange(1),
    help="Of a hospital, if each record is protected; with 1, the hospital's whole contribution is.",
)  # fmt: skip
@click.option("--dim", default=1000, show_default=True, type=click.IntRange(1), help="Entries of an update.")
@click.option("--rounds", default=20, show_default=True, type=click.IntRange(1))
@click.option("--clipping-norm", default=1.0, show_default=True, help="Largest L2 norm of a contribution.")
@click.option(
    "--colluding", default=0, show_default=True, type=click.IntRange(0),
    help="Hospitals whose noise is not counted on.",
)  # fmt: skip
@click.option(
    "--sampling", default=1.0, show_default=True, help="Chance of a record to be in a round, kept secret."
)
@click.option(
    "--turns", default=1, show_default=True, type=click.IntRange(1),
    help="Each contribution is in every such round only, in turns.",
)  # fmt: skip
@click.option(
    "--dataset", type=click.Choice(("breast-cancer", "diabetes")),
    help="Train on it for every epsilon, and show what is left of the accuracy.",
)  # fmt: skip
@click.option("--bits", type=click.IntRange(4, 64), help="Of the ring.  [default: the fewest that do]")
@click.option(
    "--audit", is_flag=True,
    help="Attack a real round instead, for every epsilon: --hospitals, --delta, --clipping-norm, --canaries "
    "and --seed go with it.",
)  # fmt: skip
@click.option(
    "--canaries", type=click.IntRange(100), help="Records that the attack invents.  [default: 2000]"
)
@click.option(
    "--seed",
    type=_SEED,
    default=0,
    show_default=True,
    help="Of the attack, or of the trainings of --dataset.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--picture", type=_FILE, help="Draw error against epsilon, for other rounds and cohorts too.")
def privacy(**o: Any) -> None:
    """Plan differential privacy: what noise a guarantee takes, how many bits, and what error is left.

    With --dataset, what accuracy is left too, after training on it.
    """
    with _clear_errors():
        from fedavg import cli_private, pictures

        _check_writable(o["picture"])
        if o["canaries"] is not None and not o["audit"]:
            raise ValueError("--canaries goes with --audit")
        if o["audit"]:
            cli_private.audits(o, _progress)
            return
        if o["dataset"] is not None:
            cli_private.tries(o, _partition, _progress)
            return
        found = cli_private.plans(o)
        if o["picture"] is not None:
            curves = {f"{o['hospitals']} hospitals, {o['rounds']} rounds": found}
            for hospitals, rounds in ((o["hospitals"], 4 * o["rounds"]), (4 * o["hospitals"], o["rounds"])):
                other = {**o, "hospitals": hospitals, "rounds": rounds, "bits": None}
                curves[f"{hospitals} hospitals, {rounds} rounds"] = cli_private.plans(other)
            pictures.privacy(curves, o["picture"])
        if o["as_json"]:
            click.echo(
                json.dumps([asdict(p) | {"noise_multiplier": p.noise_multiplier} for p in found], indent=2)
            )
            return
        cli_private.show_plans(found)
        if o["picture"] is not None:
            click.echo(f"Picture: {o['picture']}")


# ------------------------------------------------------------------------------------ protocol alone


@cli.command()
@click.option("--clients", default=100, show_default=True, type=click.IntRange(3))
@click.option(
    "--dim", default=100_000, show_default=True, type=click.IntRange(1), help="Entries of a vector."
)
@click.option(
    "--bits", default=16, show_default=True, type=click.IntRange(1, 63), help="Of an entry before the sum."
)
@click.option(
    "--dropping", type=_FRACTION, default=0.0, show_default=True, help="Fraction that really drops out."
)
@click.option(
    "--at", type=click.Choice(_UPLOADS), default="masked", show_default=True, help="The stage they miss."
)
@click.option("--seed", type=_SEED, default=0, show_default=True, help="Reproduces everything.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@click.option("--picture", type=_FILE, help="Draw the costs here.")
@click.option(
    "--workers", type=click.IntRange(1), help="Processes to run the clients in.  [default: this one]"
)
@click.option(
    "--ray", is_flag=True,
    help="Run on Ray (extra `ray`): on the cluster that RAY_ADDRESS names, or here on so many --workers.",
)  # fmt: skip
@click.option(
    "--estimate", is_flag=True,
    help="Predict the costs instead, for up to 10^8 clients, from what operations take on this machine. All "
    "from --link-up to --fanout goes with it.",
)  # fmt: skip
@click.option("--link-up", type=float, help="Of a client, in Mbit/s.  [default: 10]")
@click.option("--link-down", type=float, help="Of a client, in Mbit/s.  [default: 50]")
@click.option("--latency", type=float, help="Of a round trip, in ms.  [default: 50]")
@click.option("--server-link", type=float, help="Of the server, each way, in Mbit/s.  [default: 1000]")
@click.option("--cores", type=click.IntRange(1), help="Of the server, to expand masks on.  [default: 1]")
@click.option("--aggregators", type=click.IntRange(1), help="That share the server's work.  [default: 1]")
@click.option("--fanout", type=click.IntRange(2), help="Sums that an aggregator above adds.  [default: 16]")
@_agreement
def simulate(**o: Any) -> None:
    """Run one session with every key, share and mask real; show what each stage costs."""
    with _clear_errors():
        from fedavg import cli_costs, pictures
        from protocols.errors import Aborted
        from protocols.simulator import simulate as run_session

        if o["at"] == "signatures" and o["threat_model"] == _THREATS[0]:
            raise ValueError(f"nothing is signed in the {_THREATS[0]} model: choose another stage with --at")
        _check_writable(o["picture"])
        if cli_costs.estimating(o):
            if o["ray"] or o["workers"]:
                raise ValueError("--workers, --ray: nothing is run with --estimate; the server has --cores")
            found = cli_costs.estimate(o)
            if o["picture"] is not None:
                pictures.costs(cli_costs.title(found), found.rows(), o["picture"])
            if o["as_json"]:
                click.echo(json.dumps(cli_costs.estimated(found), indent=2))
            else:
                cli_costs.show_estimate(found)
            return
        count = int(o["dropping"] * o["clients"] + 1e-9)
        width = len(str(o["clients"] - 1))
        drop = {f"client-{i:0{width}}": o["at"] for i in range(count)}
        agreed = {k: o[k] for k in ("protocol", "threat_model", "corrupted", "dropout")}
        with _progress() as tell:
            run = run_session(
                o["clients"], dim=o["dim"], bound=1 << o["bits"], drop=drop, seed=o["seed"],
                on_event=tell, engine=_engine(o["workers"], o["ray"]), **agreed,
            )  # fmt: skip
        if o["picture"] is not None:
            pictures.costs(cli_costs.title(run), run.rows(), o["picture"])
        if o["as_json"]:
            click.echo(json.dumps(cli_costs.measured(run), indent=2))
        else:
            cli_costs.show(run)
        if o["picture"] is not None and not o["as_json"]:
            click.echo(f"Costs: {o['picture']}")
        if isinstance(run.result, Aborted):
            least = run.session.parameters.dropped
            more = f"; {count} dropped out, the session withstands {least}: raise --dropout"
            raise ValueError(str(run.result) + (more if count > least else ""))


def _engine(workers: int | None, on_ray: bool) -> Any:
    """Where the clients of a simulation run."""
    if not on_ray:
        from protocols.crowd import Here, Processes

        return Here() if workers is None else Processes(workers)
    import ray

    from fedavg.adapters.ray import OnRay

    _check_reachable(os.environ.get("RAY_ADDRESS", ""))
    more: dict[str, Any] = (
        {} if "RAY_ADDRESS" in os.environ else {"num_cpus": workers, "include_dashboard": False}
    )
    ray.init(log_to_driver=False, logging_level=logging.ERROR, **more)
    return OnRay(workers)


def _check_reachable(address: str) -> None:
    """Ray itself goes on trying for ever."""
    import socket

    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        return  # a local one, or one that Ray finds by itself
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise ValueError(f"RAY_ADDRESS: there is no cluster at {address}: {error}") from None


@cli.command()
@click.option("--clients", required=True, type=click.IntRange(1))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@_agreement
def params(clients: int, as_json: bool, **o: Any) -> None:
    """Find the degree and the thresholds for a cohort, or say why there are none."""
    with _clear_errors():
        from protocols.graph import parameters

        found = parameters(clients, o["corrupted"], o["dropout"], o["protocol"], o["threat_model"])
        if as_json:
            click.echo(json.dumps(asdict(found), indent=2))
            return
        what = {
            "neighbours each client masks with": found.degree,
            "shares that open a secret": found.threshold,
            "corrupted clients withstood": found.corrupted,
            "dropouts guaranteed to be survived": found.dropped,
            "fewest clients in a sum": found.min_included,
            "signatures before anyone reveals": found.quorum or "none in this model",
        }
        for line, value in what.items():
            click.echo(f"{line:<36}{value}")


# ------------------------------------------------------------------------------------ who takes part


@cli.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("."), show_default=True,
    help="The folder for the files.",
)  # fmt: skip
def keygen(names: tuple[str, ...], out: Path) -> None:
    """Make the identity of one client or more: NAME.key and NAME.pub each. Never overwrites."""
    with _clear_errors():
        from protocols.roster import generate_party

        for name in names:
            secret, public = generate_party(name, out)
            click.echo(f"{secret}: secret, stays where {name} runs")
            click.echo(f"{public}: public, goes to whoever makes the roster")


@cli.command()
@click.argument("publics", nargs=-1, required=True, type=_FILE, metavar="NAME.pub...")
@click.option(
    "--out", type=_FILE, default=Path("roster.json"), show_default=True, help="Where the roster goes."
)
@click.option("--force", is_flag=True, help="Overwrite a roster that is there.")
def roster(publics: tuple[Path, ...], out: Path, force: bool) -> None:
    """Make the roster that every client gets, of the .pub files of all."""
    with _clear_errors():
        from protocols.roster import write_roster

        _show_roster(write_roster(out, publics, overwrite=force))
        click.echo(f"Roster: {out}. Give it to every client, to compare its fingerprint with yours.")


@cli.command()
@click.argument("roster", type=_FILE)
def fingerprint(roster: Path) -> None:
    """Show the names in a roster and the fingerprint to compare by telephone."""
    with _clear_errors():
        from protocols.roster import read_roster

        _show_roster(read_roster(roster))


def _show_roster(roster: dict[str, bytes]) -> None:
    from protocols.roster import fingerprint

    for name in roster:
        click.echo(name)
    click.echo(f"Clients: {len(roster)}. Fingerprint: {fingerprint(roster)}")


# ---------------------------------------------------------------------------------------- statistics


@cli.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE.csv ...", type=_FILE)
@click.option("--count", is_flag=True, help="How many records.")
@click.option("--mean", multiple=True, metavar="COLUMN:LOW:HIGH", help="Mean, values clipped: age:0:120.")
@click.option(
    "--variance", multiple=True, metavar="COLUMN:LOW:HIGH", help="Mean, variance and deviation: bmi:10:60."
)
@click.option(
    "--histogram", multiple=True, metavar="COLUMN:LOW:HIGH:BINS", help="Counts in equal bins: age:0:120:12."
)
@click.option("--quantiles", multiple=True, metavar="COLUMN:LOW:HIGH", help="Quartiles: age:0:120.")
@click.option(
    "--bins", default=64, show_default=True, type=click.IntRange(1, 2**16 - 1),
    help="Of the histogram behind quartiles: more are finer, fewer hide less.",
)  # fmt: skip
@click.option(
    "--contingency", multiple=True, nargs=2, metavar="COLUMN=VALUE,... COLUMN=VALUE,...",
    help="Counts by two columns: sex=f,m stage=1,2,3. Other values count as (other).",
)  # fmt: skip
@click.option("--where", metavar="COLUMN=VALUE", help="Only records with this value: ward=3.")
@click.option(
    "--min-cell", default=5, show_default=True, type=click.IntRange(1, 2**32 - 1),
    help="A site sends smaller counts as 0.",
)  # fmt: skip
@click.option(
    "--budget", default=20, show_default=True, type=click.IntRange(0, 2**32 - 1),
    help="Queries that a site answers.",
)  # fmt: skip
@click.option("--max-records", type=click.IntRange(1, 2**32 - 1), help="Public bound on a site's records.")
@click.option("--json", "json_file", type=_FILE, help="Write the results here.")
@click.option("--picture", type=_FILE, help="Draw the results here.")
@_agreement
def stats(files: tuple[Path, ...], **o: Any) -> None:
    """Statistics over tables held by three or more sites, each a CSV file, as sums over sites alone.

    Every option for a statistic may be repeated; each is one query, and one session with every key, share
    and mask real, here with all sites in one process. LOW and HIGH, the bins and the lists of values are
    public: give them from what is known, not from the data. Empty cells are left out.
    """
    with _clear_errors():
        import msgspec

        from fedavg import cli_stats, pictures
        from fedavg.round import SecureSum
        from fedavg.statistics import ask

        _check_writable(o["picture"], o["json_file"])
        queries = cli_stats.queries(o)
        sites = cli_stats.sites(files, o["min_cell"], o["budget"])
        # As all sites are here, their size need not be known before: the next power of two.
        most = o["max_records"] or 1 << max(len(site.table) for site in sites.values()).bit_length()
        agreed = {k: o[k] for k in ("protocol", "threat_model", "corrupted", "dropout")} | {"task": "stats"}
        with _progress() as tell:
            results = ask(queries, sites, SecureSum(agreed, on_event=tell), most)
        if o["picture"] is not None:
            pictures.statistics(results, o["picture"])
        if o["json_file"] is not None:
            found = [msgspec.to_builtins(result) for result in results]
            settings = {"sites": sorted(sites), "min_cell": o["min_cell"], "max_records": most}
            _write(o["json_file"], {"agreed": agreed, **settings, "results": found})
        cli_stats.show(results, o["min_cell"])
        for what, path in (("Picture", "picture"), ("Results", "json_file")):
            if o[path] is not None:
                click.echo(f"{what}: {o[path]}")
