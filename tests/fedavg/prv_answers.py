"""Epsilons of sampled Gaussian releases by prv-accountant, which wants an environment of its own.

python tests/fedavg/prv_answers.py             write the JSON file beside this script
python tests/fedavg/prv_answers.py --check     compare with what is there
"""

import json
import sys
from pathlib import Path

from prv_accountant import PoissonSubsampledGaussianMechanism, PRVAccountant

HERE = Path(__file__).with_suffix(".json")
GRID = [
    (multiplier, rate, rounds, delta)
    for multiplier, rate, rounds in (
        (0.8, 0.01, 1000), (1.0, 0.1, 100), (2.0, 0.2, 20), (5.0, 0.5, 30), (3.0, 0.05, 500), (1.0, 1.0, 5),
    )
    for delta in (1e-5, 1e-7)
]  # fmt: skip


def answers() -> list[dict[str, float]]:
    found = []
    for multiplier, rate, rounds, delta in GRID:
        mechanism = PoissonSubsampledGaussianMechanism(sampling_probability=rate, noise_multiplier=multiplier)
        accountant = PRVAccountant(
            prvs=[mechanism], max_self_compositions=[rounds], eps_error=0.005, delta_error=delta / 1000
        )
        low, _, high = accountant.compute_epsilon(delta=delta, num_self_compositions=[rounds])
        found.append({
            "multiplier": multiplier, "rate": rate, "rounds": rounds, "delta": delta,
            "low": round(float(low), 4), "high": round(float(high), 4),
        })  # fmt: skip
    return found


if __name__ == "__main__":
    text = json.dumps(answers(), indent=1) + "\n"
    if "--check" not in sys.argv:
        HERE.write_text(text)
    elif HERE.read_text() != text:
        sys.exit(f"{HERE.name}: prv-accountant says something else")
