"""The front door: a server learns the sum of its clients' vectors and nothing else.

>>> from secagg import simulate
>>> simulate({"oslo": [1, 2], "pisa": [3, 4], "york": [5, 6], "graz": [7, 8]}, bound=100).sum.tolist()
[16, 20]

Names are loaded when first used, so that a primitive can be had without the protocols.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "Session": "protocols.session",
    "Policy": "protocols.session",
    "hash_model": "protocols.session",
    "Started": "protocols.machine",
    "Received": "protocols.machine",
    "Input": "protocols.machine",
    "StageClosed": "protocols.machine",
    "Aggregate": "protocols.machine",
    "Answered": "protocols.machine",
    "Envelope": "protocols.wire",
    "to_bytes": "protocols.wire",
    "from_bytes_checked": "protocols.wire",
    "Aborted": "protocols.errors",
    "Fault": "protocols.errors",
    "LocalError": "protocols.errors",
    "RemoteError": "protocols.errors",
    "AlreadyAnswered": "protocols.errors",
    "Infeasible": "protocols.errors",
    "MemoryJournal": "protocols.journal",
    "SqliteJournal": "protocols.journal",
    "Party": "protocols.roster",
    "read_party": "protocols.roster",
    "read_roster": "protocols.roster",
    "parameters": "protocols.graph",
    "Parameters": "protocols.graph",
    "Identity": "secagg.keys",
    "threaded": "secagg.prg",
    "simulate": "protocols.simulator",
    "Simulation": "protocols.simulator",
    "Drop": "protocols.simulator",
    "Delay": "protocols.simulator",
    "Duplicate": "protocols.simulator",
    "Reorder": "protocols.simulator",
    "Corrupt": "protocols.simulator",
    "Replay": "protocols.simulator",
    "Noisy": "protocols.xnoise",
    "Processes": "protocols.crowd",
    "estimate": "protocols.estimate",
    "Estimate": "protocols.estimate",
    "Link": "protocols.estimate",
}

__all__ = sorted(_HOMES)
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'secagg' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
