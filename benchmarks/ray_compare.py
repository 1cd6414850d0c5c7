"""The cost of a trial that does nothing: this service, whole, against Ray Tune.

Ray Tune runs an objective that only reports ten times, from an environment of its own that this
one does not share (Ray pins what we do not). The service has no objective that does nothing, so it
does more: it trains a network of 8 units on iris for ten full-batch epochs, over REST and to the
last row in the database, with every epoch reported.

    python3.11 -m venv /tmp/ray && /tmp/ray/bin/pip install 'ray[tune]'
    python -m benchmarks.ray_compare --ray-python /tmp/ray/bin/python
"""

import argparse
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.main_job import run_study, service_on
from benchmarks.rounds import Figure, describe, interleave, median_ratio, report
from tests.e2e.service import Service

GOAL = 100.0
RAY_SIDE = Path(__file__).with_name("ray_side.py")
EPOCHS = 10


def definition(trials: int) -> dict[str, Any]:
    """Return the smallest study there is."""
    return {
        "name": "nothing",
        "dataset": {"name": "iris"},
        "network": {"type": "mlp", "hidden_layers": 1, "hidden_units": 8},
        "objective": {"metric": "val_accuracy", "direction": "maximize"},
        "parameters": {"learning_rate": {"type": "float", "low": 1e-3, "high": 1e-1, "log": True}},
        "sampler": {"type": "random", "seed": 0},
        "training": {"epochs": EPOCHS, "batch_size": "full", "seed": 0},
        "budget": {"trials": trials},
    }


def ours(service: Service, trials: int) -> float:
    """Return the service's trials per second."""
    return run_study(service, definition(trials))


def theirs(python: Path, trials: int) -> float:
    """Return Ray Tune's trials per second."""
    done = subprocess.run(
        [str(python), str(RAY_SIDE), str(trials)], capture_output=True, text=True, timeout=900
    )
    if done.returncode:
        raise SystemExit(f"ray_compare: {done.stderr[-2000:]}")
    return float(done.stdout.strip().splitlines()[-1])


def measure(python: Path, *, rounds: int, trials: int, ray_trials: int) -> Figure:
    """Measure both in turns."""
    with service_on("filesystem") as service:
        ours(service, trials)
        results = interleave(
            {
                "service": partial(ours, service, trials),
                "Ray Tune": partial(theirs, python, ray_trials),
            },
            rounds,
        )
    print("\n".join(describe(results, "trials/s")))
    ratio = median_ratio(results, "service", "Ray Tune")
    return Figure("a trial of 10 reports, whole service", ratio, GOAL, "x Ray")


def main() -> None:
    """Print trials per second of both and their ratio."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ray-python", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--trials", type=int, default=512)
    parser.add_argument("--ray-trials", type=int, default=16)
    arguments = parser.parse_args()
    figure = measure(
        arguments.ray_python,
        rounds=arguments.rounds,
        trials=arguments.trials,
        ray_trials=arguments.ray_trials,
    )
    report([figure])


if __name__ == "__main__":
    main()
