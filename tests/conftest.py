"""Hypothesis profiles: HYPOTHESIS_PROFILE=thorough runs thousands of examples; under CI runs repeat."""

import os

from hypothesis import HealthCheck, settings

_SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large]
_REPEATABLE = bool(os.environ.get("CI"))

settings.register_profile(
    "default", max_examples=150, deadline=None, derandomize=_REPEATABLE, suppress_health_check=_SLOW
)
settings.register_profile(
    "thorough", max_examples=5000, deadline=None, derandomize=_REPEATABLE, suppress_health_check=_SLOW
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))
