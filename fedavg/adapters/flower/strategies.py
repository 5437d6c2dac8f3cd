"""Which of Flower's strategies a mean is enough for."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

from flwr.serverapp.strategy import Strategy

from fedavg.adapters.opening import PREFIX
from protocols.errors import LocalError

_SEE_SINGLE = {
    "Krum": "compares single updates", "MultiKrum": "compares single updates",
    "Bulyan": "compares single updates", "FedMedian": "takes a median of single updates",
    "FedTrimmedAvg": "sorts single updates", "QFedAvg": "weighs by each site's loss",
    "FedXgbBagging": "collects each site's trees", "FedXgbCyclic": "takes one site's trees at a time",
    "FedXgbNnAvg": "collects each site's trees", "DPFedAvgAdaptive": "reads each site's norm bit",
    "DPFedAvgFixed": "takes a mean without weights and adds noise for each reply",
    "DifferentialPrivacyServerSideFixedClipping": "clips single updates at the server",
    "DifferentialPrivacyServerSideAdaptiveClipping": "clips single updates at the server",
    "DifferentialPrivacyClientSideAdaptiveClipping": "reads each site's norm bit",
}  # fmt: skip


def check_caller(max_weight: int) -> None:
    """Refuse a strategy that needs single replies. A Grid is not told who calls it: the stack knows."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        caller = frame.f_locals.get("self")
        if isinstance(caller, Strategy):
            check_averages(caller, max_weight)
        frame = frame.f_back


def check_averages(strategy: Any, max_weight: int) -> None:
    """Raise `LocalError` for a strategy, or one that it wraps, that is known to need single replies."""
    name = type(strategy).__name__
    for kind in type(strategy).__mro__:
        if kind.__module__.startswith("flwr.") and kind.__name__ in _SEE_SINGLE:
            raise LocalError(
                f"{name} {_SEE_SINGLE[kind.__name__]}: under secure aggregation there is only their mean"
            )
    if getattr(strategy, "accountant", None) is not None and max_weight != 1:
        raise LocalError(
            f"{name} accounts for equal weights, and cannot see whether they are: set {PREFIX}max-weight = 1 "
            "and let every node report 1"
        )
    wrapped = getattr(strategy, "strategy", None)
    if wrapped is not None:
        check_averages(wrapped, max_weight)
