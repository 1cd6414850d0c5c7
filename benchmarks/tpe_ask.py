"""What one TPE ask costs: ours on the mirror, Optuna's on an in-memory study, same history.

One turn is ask, start and finish of a trial, so that the history grows by one each time. Times are
CPU milliseconds of this process, one BLAS thread: a busy machine changes them less than the wall
clock.

Run: `nice -n 19 python -m benchmarks.tpe_ask`
"""

from benchmarks.rounds import Figure, describe, interleave, median_ratio, one_thread, report

one_thread()

import statistics  # noqa: E402
import time  # noqa: E402
from collections.abc import Callable  # noqa: E402

import numpy as np  # noqa: E402
import optuna  # noqa: E402
from optuna.distributions import BaseDistribution  # noqa: E402
from optuna.samplers import TPESampler  # noqa: E402

from tuner_service.definition.space import (  # noqa: E402
    CategoricalParameter,
    FloatParameter,
    IntParameter,
    Space,
    ordered,
)
from tuner_service.search.distributions import distributions  # noqa: E402
from tuner_service.search.history import History, HistoryTrial  # noqa: E402
from tuner_service.search.samplers.tpe.search import TpeSearch  # noqa: E402
from tuner_service.search.samplers.uniform import draw  # noqa: E402

SIZES = (0, 1_000, 5_000, 10_000)
GOAL_MS = 5.0
ROUNDS = 5
TURNS = 8

SPACES: dict[str, Space] = {
    "4 floats": ordered({f"x{i}": FloatParameter(type="float", low=0, high=1) for i in range(4)}),
    "2 floats, int, choice": ordered(
        {
            "learning_rate": FloatParameter(type="float", low=1e-5, high=0.1, log=True),
            "weight_decay": FloatParameter(type="float", low=1e-6, high=1e-2, log=True),
            "hidden_units": IntParameter(type="int", low=32, high=512, log=True),
            "optimizer": CategoricalParameter(type="categorical", choices=("a", "b", "c")),
        }
    ),
}

Params = dict[str, object]


def past(space: Space, size: int) -> list[tuple[Params, float]]:
    """Return random trials with random values: the worst case, since the best change often."""
    values = np.random.default_rng(size).random(size)
    return [(draw(space, seed=1, slot=i), float(value)) for i, value in enumerate(values)]


def ours(space: Space, size: int) -> Callable[[], float]:
    """Return a turn of ours: CPU milliseconds per ask."""
    by_name = distributions(space)
    history = History(by_name)
    history.merge(
        HistoryTrial(number, number, "COMPLETE", params, by_name, (value,))
        for number, (params, value) in enumerate(past(space, size), start=1)
    )
    search = TpeSearch(space, seed=0, maximize=False, startup_trials=10, candidates=24)
    rng = np.random.default_rng(0)
    search.ask(history, slot=0, fixed={})  # builds the columns once

    def turn() -> float:
        begin = time.process_time()
        for _ in range(TURNS):
            number = len(history) + 1
            params = search.ask(history, slot=number, fixed={})
            history.start(number, params)
            history.finish(number, "COMPLETE", (float(rng.random()),))
        return (time.process_time() - begin) / TURNS * 1e3

    return turn


def stock(space: Space, size: int) -> Callable[[], float]:
    """Return a turn of Optuna's sampler with its defaults: CPU milliseconds per ask and tell."""
    by_name: dict[str, BaseDistribution] = distributions(space)
    study = optuna.create_study(sampler=TPESampler(seed=0))
    study.add_trials(
        optuna.create_trial(params=dict(params), distributions=by_name, value=value)
        for params, value in past(space, size)
    )
    rng = np.random.default_rng(0)

    def turn() -> float:
        begin = time.process_time()
        for _ in range(TURNS):
            study.tell(study.ask(by_name), float(rng.random()))
        return (time.process_time() - begin) / TURNS * 1e3

    return turn


def measure(name: str, size: int) -> tuple[float, float, list[str]]:
    """Return our median milliseconds, how many times faster we are, and the details."""
    space = SPACES[name]
    turns = {"Optuna": stock(space, size), "ours": ours(space, size)}
    results = interleave(turns, ROUNDS)
    return (
        statistics.median(results["ours"]),
        median_ratio(results, "Optuna", "ours"),
        describe(results, "ms"),
    )


def quick() -> list[Figure]:
    """Measure the largest history only."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    figures = []
    for name in SPACES:
        milliseconds, ratio, details = measure(name, SIZES[-1])
        print("\n".join(details), flush=True)
        figures.append(
            Figure(
                f"TPE ask at {SIZES[-1]:,} trials, {name}",
                milliseconds,
                GOAL_MS,
                unit="ms",
                at_least=False,
                note=f"{ratio:.0f} times Optuna's speed in the same run",
            )
        )
    return figures


def main() -> None:
    """Print the whole table."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    for name in SPACES:
        for size in SIZES:
            _, ratio, details = measure(name, size)
            print(f"{name}, {size:,} trials: {ratio:.1f} x", *details, sep="\n", flush=True)
    report(quick())


if __name__ == "__main__":
    main()
