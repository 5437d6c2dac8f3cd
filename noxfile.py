"""Environments beside the usual one: `nox -s flower`, or `nox -s flower -- ARGUMENTS OF PYTEST`."""

import nox

nox.options.default_venv_backend = "venv"
nox.options.reuse_existing_virtualenvs = True


@nox.session
def flower(session: nox.Session) -> None:
    """The adapter for Flower, and models of PyTorch: their own versions of what we use too."""
    session.install("-q", "-e", ".[flower,test]", "flwr[simulation]", "torch==2.13.0")
    session.run("mypy")
    everything = ["tests/fedavg/adapters", "tests/benchmarks/test_flower_benchmark.py"]
    session.run("pytest", *(session.posargs or everything))
