"""Five hospitals with identities of their own, a server that none of them trusts, and a power cut.

    python examples/flower/deploy.py FOLDER

Writes each hospital's table, its identity (`secagg keygen`) and the roster (`secagg roster`) into FOLDER;
starts a SuperLink and five SuperNodes, each a process of its own, with TLS and authentication of nodes;
trains in the malicious model; kills one hospital's node in the middle of a round; then asks those that are
left for statistics. All of it runs on this machine, in a few minutes, and is ended with the script.
"""

import subprocess
import sys
import time
from pathlib import Path

from deployment import Deployment

HERE = Path(__file__).parent
# What each hospital agreed to beforehand: which metrics, in which ranges, and how large a table may be.
TERMS = {
    "secagg-train-metrics": "loss:0:5",
    "secagg-evaluate-metrics": "accuracy:0:1",
    "secagg-max-records": 1000,
}
NAMES = ("oslo", "pisa", "york", "graz", "lyon")
AGREED = {"secagg-threat-model": "malicious", "secagg-dropout": 0.2, "secagg-timeout": 45.0}


def prepare(folder):
    """Tables, identities and roster of five hospitals, if not there yet; what each node must know."""
    folder.mkdir(parents=True, exist_ok=True)
    scripts = Path(sys.executable).parent
    if not all((scripts / name).exists() for name in ("secagg", "flower-superlink")):
        raise SystemExit("this needs the extras demo and flower: pip install -e '.[demo,flower]'")
    if not (folder / "roster.json").exists():
        subprocess.run([sys.executable, HERE.parent / "hospitals.py", folder, "5"], check=True)
        subprocess.run([scripts / "secagg", "keygen", *NAMES, "--out", folder], check=True)
        publics = [folder / f"{name}.pub" for name in NAMES]
        subprocess.run([scripts / "secagg", "roster", *publics, "--out", folder / "roster.json"], check=True)
    return [
        {
            "secagg-identity": str(folder / f"{name}.key"),
            "secagg-roster": str(folder / "roster.json"),
            "secagg-table": str(folder / f"{name}.csv"),
            **TERMS,
        }
        for name in NAMES
    ]


def until(federation, run, words):
    """Wait until the ServerApp's log has these words."""
    while words not in federation.log(run):
        if federation.status(run).startswith("finished"):
            raise SystemExit(federation.log(run))
        time.sleep(1)


def show(run):
    print(run.log)
    if not run.completed:
        raise SystemExit(f"{run.status}: {run.details}")


def main():
    folder = Path(sys.argv[1]).resolve()
    agreed = AGREED | {"secagg-roster": str(folder / "roster.json")}
    with Deployment(prepare(folder), folder=folder / "processes") as federation:
        print("five hospitals are online")
        model = {"rounds": 2, "model": str(folder / "model.npz")}
        learning = federation.start(HERE / "learning", agreed | model)
        until(federation, learning, "/evaluate: the sum of 5 nodes")
        time.sleep(6)  # in the middle of the second round
        federation.kill_node(2)
        print(f"{NAMES[2]} was killed")
        show(federation.wait(learning))
        show(federation.run(HERE / "statistics", agreed))


if __name__ == "__main__":
    main()
