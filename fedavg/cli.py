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
from typing import Any

import click

from fedavg.cli_output import check_writable, write_json

_THREATS = ("honest-but-curious", "semi-malicious", "malicious")
_PROTOCOLS = ("secagg", "secagg+", "threshold-paillier")
_UPLOADS = ("keys", "shares", "masked", "signatures", "reveals")
_SEED = click.IntRange(0, 2**32 - 1)  # what scikit-learn's split takes
_FILE = click.Path(dir_okay=False, path_type=Path)
_EXTRAS = {
    "sklearn": "demo",
    "matplotlib": "demo",
    "ray": "ray",
    "dp_accounting": "dp",
    "scipy": "dp",
    "gmpy2": "paillier",
}
_CITIES = ("bern", "brno", "cork", "gent", "graz", "lyon", "oslo", "pisa", "riga", "york")


class _Fraction(click.FloatRange):
    """From 0 to below 1; click's own range lets NaN through."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        found = super().convert(value, param, ctx)
        if found != found:
            self.fail(f"{value} is not in the range {self._describe_range()}.", param, ctx)
        return found


_FRACTION = _Fraction(0, 1, max_open=True)


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
        print(
            f"This needs an extra, for {error.name}: pip install 'secagg[{extra}]', or in a clone "
            f"pip install -e '.[{extra}]'", file=sys.stderr,
        )  # fmt: skip
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
        click.option(
            "--protocol",
            type=click.Choice(_PROTOCOLS),
            default=_PROTOCOLS[0],
            show_default=True,
            help="threshold-paillier encrypts each vector for each client: begin with five, 1000 entries.",
        ),
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


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="secagg")
def cli() -> None:
    """A server learns the sum of its clients' vectors and nothing else."""


# ------------------------------------------------------------------------------------------- learning


@cli.command()
@click.option(
    "--seed", type=_SEED, default=3, show_default=True,
    help="Reproduces everything, keys included; with --epsilon, the noise only if it is given.",
)  # fmt: skip
@click.option("--rounds", default=20, show_default=True, type=click.IntRange(1))
@click.option(
    "--protocol", type=click.Choice(("secagg", "threshold-paillier")), default="secagg", show_default=True,
    help="With threshold-paillier (extra paillier), all ten in one process take two minutes for means and "
    "deviations, and half a minute a round.",
)  # fmt: skip
@click.option(
    "--picture", type=_FILE, default=Path("secagg-demo.png"),
    show_default=True, help="Where the learning curves go.",
)  # fmt: skip
@_guarantee
def demo(seed: int, rounds: int, protocol: str, picture: Path, epsilon: float | None, delta: float) -> None:
    """Ten uneven hospitals learn to find breast cancer together; some drop out on the way."""
    with _clear_errors():
        from fedavg import cli_train

        cli_train.demo(seed, rounds, protocol, picture, epsilon, delta, _progress)


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
        from fedavg import cli_train

        cli_train.train(o, _progress)


@cli.command()
@click.option(
    "--epsilon", type=float, multiple=True,
    help="May be repeated.  [default: 0.5, 1, 2, 4 and 8; with --audit, 1 and 4]",
)  # fmt: skip
@click.option("--delta", type=float, default=1e-5, show_default=True)
@click.option("--hospitals", default=10, show_default=True, type=click.IntRange(3))
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
        from fedavg import cli_privacy

        cli_privacy.privacy(o, _progress)


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
        from protocols.session import stages
        from protocols.simulator import simulate as run_session

        there = stages(o["protocol"], o["threat_model"])
        if o["at"] == "signatures" and o["at"] not in there:
            raise ValueError(f"nothing is signed in the {_THREATS[0]} model: choose another stage with --at")
        if o["at"] not in there:
            raise ValueError(f"--at: {o['protocol']} has {', '.join(there)}, got {o['at']}")
        check_writable(o["picture"])
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
        masks = o["protocol"] != "threshold-paillier"
        what = {
            "neighbours each client masks with" if masks else "others each client encrypts for": found.degree,
            "shares that open a secret" if masks else "owners of keys who open a sum": found.threshold,
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

        check_writable(o["picture"], o["json_file"])
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
            write_json(o["json_file"], {"agreed": agreed, **settings, "results": found})
        cli_stats.show(results, o["min_cell"])
        for what, path in (("Picture", "picture"), ("Results", "json_file")):
            if o[path] is not None:
                click.echo(f"{what}: {o[path]}")
