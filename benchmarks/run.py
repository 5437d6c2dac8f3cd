"""All benchmarks, one after the other, and the page about them.

    nox -s benchmarks                 the small edition, some minutes
    nox -s benchmarks -- --full       as published, about three hours; writes RESULTS.md and results/

Without nox: `python benchmarks/run.py [--full | --tiny]`, where the package is installed with its extras
`demo`, `flower` and `phe`, and TenSEAL; a part whose peer is not installed is left out. `--only` runs some
parts and takes the others from `results/`; `--into` writes the page, its figures and its pictures to another
directory, in any edition.
"""

from __future__ import annotations

import argparse
import importlib
import json
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import Any

from plots import draw
from record import HERE, taken_on, write_results

PARTS = ("limit", "peers", "paillier", "noise", "model", "growth")
NEEDS = {"peers": "flwr", "paillier": "phe"}

HEAD = """\
# What secure aggregation costs here

Every ratio is taken in one run, on one machine, in turn: to the raw cipher, to a peer, or to the
protocol's own asymptotic line. Every row states the cohort n, a client's neighbours k, the threshold t, the
ring's bits b, the entries of a vector, the fraction that drops out, the threat model and the noise.
`benchmarks/run.py` makes this page; FLOWER.md beside it is about whole rounds of Flower.

![summary](results/summary.png)
"""


def main() -> None:
    """Measure, and print or write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    edition = parser.add_mutually_exclusive_group()
    edition.add_argument("--full", dest="edition", action="store_const", const="full", help="as published")
    edition.add_argument("--tiny", dest="edition", action="store_const", const="tiny", help="to see it run")
    parser.set_defaults(edition="small")
    parser.add_argument("--only", choices=PARTS, action="append")
    parser.add_argument("--into", type=Path, help="where to write; benchmarks/ if --full, else nowhere")
    options = parser.parse_args()
    into = HERE if options.into is None and options.edition == "full" else options.into
    missing = {part: package for part, package in NEEDS.items() if find_spec(package) is None}
    if into == HERE and missing:
        parser.error(f"not installed: {', '.join(missing.values())}; use --into for another place")
    found: dict[str, Any] = {}
    for part in PARTS:
        if part in missing:
            print(f"{part}: left out, {missing[part]} is not installed", flush=True)
            continue
        kept = HERE / "results" / f"{part}.json"
        if options.only and part not in options.only:
            if kept.exists():
                found[part] = json.loads(kept.read_text())
            continue
        start = perf_counter()
        found[part] = importlib.import_module(part).measure(options.edition) | {"edition": options.edition}
        print(f"{part}: {perf_counter() - start:.0f} s", flush=True)
        if into is not None:
            write_results(f"{part}.json", found[part], into)
    if into is None:
        print(page(found, options.edition))
    else:
        draw(found, into / "results")
        (into / "RESULTS.md").write_text(page(found, options.edition))


def page(found: dict[str, Any], edition: str) -> str:
    """RESULTS.md: a section of each part that was measured."""
    lines = [HEAD]
    if edition != "full":
        lines += [
            f"**This is the {edition} edition**: at its sizes what does not grow with the model prevails.",
            "",
        ]
    for part, content in found.items():
        section = importlib.import_module(part).report(content)
        lines += [*section, "", f"Taken on {taken_on(content['machine'])}; {content['edition']} edition.", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
