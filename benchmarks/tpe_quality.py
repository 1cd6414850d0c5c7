"""How good TPE's best point is: ours against Optuna's, and by how many trials run at once.

`at once` keeps that many trials open: each time the oldest ends and one more is asked. Optuna's
sampler asks on an in-memory study, ours on the mirror; the seeds are the same numbers, the draws
are not. A high p says that the best values of the seeds cannot be told apart.

Run: `nice -n 19 python -m benchmarks.tpe_quality` (minutes)
"""

from benchmarks.rounds import one_thread

one_thread()

import math  # noqa: E402
from collections import deque  # noqa: E402
from collections.abc import Callable, Mapping  # noqa: E402
from typing import Any  # noqa: E402

import numpy as np  # noqa: E402
import optuna  # noqa: E402
from optuna.samplers import TPESampler  # noqa: E402
from scipy.stats import ks_2samp, mannwhitneyu  # noqa: E402

from tuner_service.definition.space import (  # noqa: E402
    CategoricalParameter,
    FloatParameter,
    IntParameter,
    Space,
    ordered,
)
from tuner_service.search.distributions import distributions  # noqa: E402
from tuner_service.search.history import History  # noqa: E402
from tuner_service.search.samplers.tpe.search import TpeSearch  # noqa: E402
from tuner_service.search.samplers.uniform import draw  # noqa: E402

SEEDS = range(20)
TRIALS = 128
WIDTHS = (1, 4, 16, 64)

Params = Mapping[str, Any]
Function = Callable[[Params], float]


def _floats(count: int, low: float, high: float) -> Space:
    return ordered(
        {f"x{i}": FloatParameter(type="float", low=low, high=high) for i in range(count)}
    )


def ackley(params: Params) -> float:
    """Ackley's function in 4 dimensions, best 0."""
    x = np.array(list(params.values())) - 0.7
    return float(
        20 * (1 - np.exp(-0.2 * np.sqrt(np.mean(x**2))))
        + math.e
        - np.exp(np.mean(np.cos(2 * math.pi * x)))
    )


def rosenbrock(params: Params) -> float:
    """The logarithm of Rosenbrock's function in 4 dimensions, plus one, best 0."""
    x = np.array([params[f"x{i}"] for i in range(4)])
    return float(np.log1p(np.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)))


def tuning(params: Params) -> float:
    """A loss like a small network's: rate, width, decay and optimizer interact."""
    rate, decay = math.log10(params["learning_rate"]), math.log10(params["weight_decay"])
    best_rate = {"sgd": -1.5, "adam": -3.0, "rmsprop": -3.2}[params["optimizer"]]
    floor = {"sgd": 0.02, "adam": 0.0, "rmsprop": 0.01}[params["optimizer"]]
    width = math.log2(params["hidden_units"] / 200)
    return (
        floor + 0.1 * (rate - best_rate) ** 2 + 0.02 * width**2
        + 0.01 * (decay + 4 + 0.3 * width) ** 2
    )  # fmt: skip


MIXED = ordered(
    {
        "learning_rate": FloatParameter(type="float", low=1e-5, high=0.1, log=True),
        "weight_decay": FloatParameter(type="float", low=1e-6, high=1e-2, log=True),
        "hidden_units": IntParameter(type="int", low=32, high=512, log=True),
        "optimizer": CategoricalParameter(type="categorical", choices=("sgd", "adam", "rmsprop")),
    }
)

FUNCTIONS: dict[str, tuple[Function, Space]] = {
    "ackley, 4 floats": (ackley, _floats(4, -5, 5)),
    "rosenbrock, 4 floats": (rosenbrock, _floats(4, -2, 2)),
    "tuning, mixed": (tuning, MIXED),
}


def best_of_ours(function: Function, space: Space, seed: int, at_once: int) -> float:
    """Return the best value that our TPE finds."""
    history = History(distributions(space))
    search = TpeSearch(space, seed=seed, maximize=False, startup_trials=10, candidates=24)
    open_trials: deque[tuple[int, float]] = deque()
    best = math.inf
    for number in range(1, TRIALS + 1):
        params = search.ask(history, slot=number - 1, fixed={})
        history.start(number, params)
        open_trials.append((number, function(params)))
        if len(open_trials) == at_once:
            done, value = open_trials.popleft()
            history.finish(done, "COMPLETE", (value,))
            best = min(best, value)
    return min([best, *(value for _, value in open_trials)])


def best_of_stock(function: Function, space: Space, seed: int, at_once: int) -> float:
    """Return the best value that Optuna's TPE finds, with its defaults."""
    study = optuna.create_study(sampler=TPESampler(seed=seed))
    by_name = distributions(space)
    open_trials: deque[optuna.Trial] = deque()
    for _ in range(TRIALS):
        open_trials.append(study.ask(by_name))
        if len(open_trials) == at_once:
            done = open_trials.popleft()
            study.tell(done, function(done.params))
    for trial in open_trials:
        study.tell(trial, function(trial.params))
    return study.best_value


def best_of_random(function: Function, space: Space, seed: int) -> float:
    """Return the best value of as many independent draws."""
    return min(function(draw(space, seed=seed, slot=slot)) for slot in range(TRIALS))


def quartiles(values: list[float]) -> str:
    """Return median and quartiles."""
    low, middle, high = np.percentile(values, [25, 50, 75])
    return f"{middle:.4f} ({low:.4f} to {high:.4f})"


def compare(name: str, at_once: int) -> None:
    """Print both samplers' best values and how probable such a difference is by chance."""
    function, space = FUNCTIONS[name]
    own = [best_of_ours(function, space, seed, at_once) for seed in SEEDS]
    other = [best_of_stock(function, space, seed, at_once) for seed in SEEDS]
    print(
        f"{name:<22} {at_once:>3} at once   ours {quartiles(own)}   Optuna {quartiles(other)}"
        f"   Mann-Whitney p {mannwhitneyu(own, other).pvalue:.2f}"
        f"   KS p {ks_2samp(own, other).pvalue:.2f}",
        flush=True,
    )


def main() -> None:
    """Print both tables."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    print(f"Best of {TRIALS} trials over {len(SEEDS)} seeds: median (quartiles)")
    for name in FUNCTIONS:
        for at_once in (1, 16):
            compare(name, at_once)
    for name, (function, space) in FUNCTIONS.items():
        for at_once in WIDTHS:
            found = [best_of_ours(function, space, seed, at_once) for seed in SEEDS]
            print(f"{name:<22} {at_once:>3} at once   {quartiles(found)}", flush=True)
        drawn = [best_of_random(function, space, seed) for seed in SEEDS]
        print(f"{name:<22}      random   {quartiles(drawn)}", flush=True)


if __name__ == "__main__":
    main()
