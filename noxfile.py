"""Environments beside the usual one; nox itself is in none of them (`pip install nox`, anywhere).

`nox -s flower`, `nox -s federation` and `nox -s ray`, each with arguments of pytest after `--`; `nox -s prv`;
`nox -s benchmarks -- --full`.
"""

import nox

nox.options.default_venv_backend = "venv"
nox.options.reuse_existing_virtualenvs = True


@nox.session
def flower(session: nox.Session) -> None:
    """The adapter for Flower, and models of PyTorch: their own versions of what we use too."""
    session.install("-q", "-e", ".[flower,test]", "flwr[simulation]", "torch==2.13.0")
    session.run("mypy")
    benchmarks = ["tests/benchmarks/test_flower_benchmark.py", "tests/benchmarks/test_peers.py"]
    everything = ["tests/fedavg/adapters", "--ignore=tests/fedavg/adapters/test_ray.py", *benchmarks]
    session.run("pytest", *(session.posargs or ["-m", "not slow", *everything]))


@nox.session
def federation(session: nox.Session) -> None:
    """Processes with TLS and identities, one of which is killed: six minutes."""
    session.install("-q", "-e", ".[flower,test]", "flwr[simulation]")
    session.run("pytest", "-m", "slow", "tests/fedavg/adapters/test_flower_engines.py", *session.posargs)


@nox.session
def ray(session: nox.Session) -> None:
    """The adapter for Ray, of which Flower needs a version of its own."""
    session.install("-q", "-e", ".[ray,test]")
    session.run("pytest", *(session.posargs or ["tests/fedavg/adapters/test_ray.py"]))


@nox.session
def prv(session: nox.Session) -> None:
    """What another accountant of privacy says, which wants an environment of its own."""
    session.install("-q", "prv-accountant==0.2.0")
    session.run("python", "tests/fedavg/prv_answers.py", "--check")


@nox.session
def benchmarks(session: nox.Session) -> None:
    """All benchmarks, peers beside them: some minutes; with `-- --full`, as published."""
    session.install("-q", "-e", ".[flower,demo,phe]", "tenseal", "openfhe")
    session.run("python", "benchmarks/run.py", *session.posargs)
