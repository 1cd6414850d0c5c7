"""Whole studies, from `POST /v1/studies` to the last row, against the script one would write.

    lanes     MLP 2 x 32, batch size 16, 32 or 64, five optimizers, 256 trials: warm, and cold (the
              first study of a service with an empty data directory); also against a fresh process
              for each trial
    widths    hidden_units from 32 to 512 and four batch sizes, 100 trials: every trial a network of
              another shape

TPE, ten epochs, every one of them reported, in both. The baselines of `lanes` run fewer trials:
there their rate does not depend on it.

    python -m benchmarks.whole_study [--rounds 3] [--studies lanes widths]
"""

import argparse
import contextlib
import math
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import usual
from benchmarks.main_job import WORKERS, run_study
from benchmarks.rounds import Figure, describe, interleave, median_ratio, one_thread, report
from tests.e2e.service import Service, running

FIVE = ("sgd", "nesterov", "adagrad", "rmsprop", "adam")
ISOLATED_TRIALS = 8


@dataclass(frozen=True)
class Study:
    """A study, what its baseline searches, and the goals."""

    title: str
    plan: usual.Plan
    trials: int
    baseline_trials: int
    warm_goal: float
    cold_goal: float | None = None
    isolated_goal: float | None = None


STUDIES = {
    "lanes": Study(
        "whole study, 256 trials, MLP 2x32",
        usual.Plan(FIVE, (16, 32, 64)),
        trials=256,
        baseline_trials=24,
        warm_goal=20.0,
        cold_goal=2.5,
        isolated_goal=100.0,
    ),
    "widths": Study(
        "whole study, 100 trials, hidden_units 32-512",
        usual.Plan(FIVE, (32, 64, 128, 256), (32, 512)),
        trials=100,
        baseline_trials=100,  # as many: TPE comes to prefer wide networks, which take longer
        warm_goal=8.0,
    ),
}


def definition(study: Study) -> dict[str, Any]:
    """Return the study's definition, the same search as the baseline's."""
    plan = study.plan
    low, high = plan.hidden_units
    network: dict[str, Any] = {"type": "mlp", "hidden_layers": 2, "activation": "relu"}
    parameters: dict[str, Any] = {
        "learning_rate": {"type": "float", "low": 1e-4, "high": 1e-1, "log": True},
        "optimizer": {"type": "categorical", "choices": list(plan.optimizers)},
        "momentum": {
            "type": "float",
            "low": 0.0,
            "high": 0.99,
            "when": {"optimizer": ["sgd", "nesterov"]},
        },
        "batch_size": {"type": "categorical", "choices": list(plan.batch_sizes)},
    }
    if low == high:
        network["hidden_units"] = low
    else:
        parameters["hidden_units"] = {"type": "int", "low": low, "high": high, "log": True}
    return {
        "name": "whole-study",
        "dataset": {"name": "digits", "split": {"validation": 0.1, "test": 0.2, "seed": 0}},
        "network": network,
        "objective": {"metric": "val_accuracy", "direction": "maximize"},
        "parameters": parameters,
        "sampler": {"type": "tpe"},
        "training": {"epochs": plan.epochs, "seed": 0},
        "budget": {"trials": study.trials},
    }


@contextlib.contextmanager
def fresh_service() -> Iterator[Service]:
    """Run a service as `tuner up` does on two cores, with nothing in any cache of its own."""
    with tempfile.TemporaryDirectory(prefix="bench-whole-") as name:
        directory = Path(name)
        service = Service(directory, f"sqlite:///{directory / 'tuner.db'}")
        with running(service, workers=WORKERS) as started:
            yield started


def measure(study: Study, *, rounds: int) -> list[Figure]:
    """Measure one study against its baselines, in turns."""
    body = definition(study)
    with fresh_service() as service:
        cold = run_study(service, body)
        contestants = {
            "service, warm": partial(run_study, service, body),
            "usual script": partial(usual.run, study.baseline_trials, plan=study.plan),
        }
        if study.isolated_goal is not None:
            contestants["a process per trial"] = partial(
                usual.run_isolated, ISOLATED_TRIALS, plan=study.plan
            )
        results = interleave(contestants, rounds)
    print(f"{study.title}, {rounds} rounds:")
    print("\n".join(describe(results, "trials/s")))
    print(f"  {'service, cold':<28} {cold:9.2f} trials/s")
    warm_rate = statistics.median(results["service, warm"])
    usual_rate = statistics.median(results["usual script"])
    print(f"  {'break-even, cold':<28} {break_even(study, cold, warm_rate, usual_rate):9d} trials")
    ratio = median_ratio(results, "service, warm", "usual script")
    figures = [Figure(f"{study.title}, warm", ratio, study.warm_goal, "x usual")]
    if study.cold_goal is not None:
        goal = study.cold_goal
        figures.append(Figure(f"{study.title}, cold", cold / usual_rate, goal, "x usual"))
    if study.isolated_goal is not None:
        ratio = median_ratio(results, "service, warm", "a process per trial")
        title = "the same against a process per trial"
        figures.append(Figure(title, ratio, study.isolated_goal, "x"))
    return figures


def break_even(study: Study, cold: float, warm: float, other: float) -> int:
    """Return from how many trials a cold service is done before the script.

    Args:
        study: Whose number of trials the cold rate was measured with.
        cold: Trials per second of the first study.
        warm: Trials per second of later ones.
        other: Trials per second of the script.
    """
    fixed = max(0.0, study.trials / cold - study.trials / warm)
    saved = 1.0 / other - 1.0 / warm
    if saved <= 0:
        raise SystemExit("whole_study: the service is slower than the script")
    return max(1, math.ceil(fixed / saved))


def quick() -> list[Figure]:
    """Measure for `make bench`."""
    return [figure for study in STUDIES.values() for figure in measure(study, rounds=1)]


def main() -> None:
    """Print trials per second of all, their ratios, and the break-even."""
    one_thread()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--studies", nargs="+", choices=list(STUDIES), default=list(STUDIES))
    arguments = parser.parse_args()
    begun = time.perf_counter()
    report(
        [
            figure
            for name in arguments.studies
            for figure in measure(STUDIES[name], rounds=arguments.rounds)
        ]
    )
    print(f"{time.perf_counter() - begun:.0f} s")


if __name__ == "__main__":
    main()
