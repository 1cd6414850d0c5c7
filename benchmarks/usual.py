"""The baseline: the script that a PyTorch and Optuna user writes.

A `DataLoader`, a training loop, one trial at a time, `study.optimize`, SQLite, and as many
processes as there are cores (two here), single-threaded. Nothing in it is made slow on purpose.

    python -m benchmarks.usual [--trials 64] [--processes 2]
"""

import argparse
import contextlib
import multiprocessing
import multiprocessing.connection
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

# Pickled, and called by each process.
MakeObjective = Callable[[], Callable[[optuna.Trial], float]]

EPOCHS = 10
BATCH_SIZE = 16
HIDDEN_UNITS = 32


@dataclass(frozen=True)
class Plan:
    """What the study searches: single choices are fixed.

    Attributes:
        hidden_units: Lowest and highest width of both hidden layers, drawn log-uniformly.
    """

    optimizers: tuple[str, ...] = ("sgd", "adam")
    batch_sizes: tuple[int, ...] = (BATCH_SIZE,)
    hidden_units: tuple[int, int] = (HIDDEN_UNITS, HIDDEN_UNITS)
    epochs: int = EPOCHS


def load_data() -> tuple[TensorDataset, TensorDataset]:
    """Return the training and the validation part of digits.

    A fifth of the rows is set aside for testing and a tenth for validation, as in the service's
    study.
    """
    inputs, targets = load_digits(return_X_y=True)
    inputs, _, targets, _ = train_test_split(
        inputs / 16.0, targets, test_size=0.2, stratify=targets, random_state=0
    )
    train_x, val_x, train_y, val_y = train_test_split(
        inputs, targets, test_size=0.125, stratify=targets, random_state=0
    )
    return (
        TensorDataset(torch.tensor(train_x, dtype=torch.float32), torch.tensor(train_y)),
        TensorDataset(torch.tensor(val_x, dtype=torch.float32), torch.tensor(val_y)),
    )


def make_optimizer(
    trial: optuna.Trial, model: nn.Module, optimizers: tuple[str, ...]
) -> torch.optim.Optimizer:
    """Return the optimizer that the trial asks for."""
    learning_rate = trial.suggest_float("learning_rate", 1e-4, 1e-1, log=True)
    name = trial.suggest_categorical("optimizer", optimizers)
    simple = {
        "adam": torch.optim.Adam,
        "adagrad": torch.optim.Adagrad,
        "rmsprop": torch.optim.RMSprop,
    }
    if name in simple:
        return simple[name](model.parameters(), lr=learning_rate)
    momentum = trial.suggest_float("momentum", 0.0, 0.99)
    nesterov = name == "nesterov" and momentum > 0
    return torch.optim.SGD(
        model.parameters(), lr=learning_rate, momentum=momentum, nesterov=nesterov
    )


def accuracy(model: nn.Module, loader: DataLoader[tuple[torch.Tensor, ...]]) -> float:
    """Return the share of rows that the model classifies rightly."""
    model.eval()
    hits = 0
    rows = 0
    with torch.no_grad():
        for inputs, targets in loader:
            hits += int((model(inputs).argmax(dim=1) == targets).sum())
            rows += len(targets)
    return hits / rows


class Objective:
    """Train one trial's network and return its validation accuracy."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.train, self.validation = load_data()

    def __call__(self, trial: optuna.Trial) -> float:
        torch.manual_seed(0)
        width, batch_size = self._width(trial), self._batch_size(trial)
        model = nn.Sequential(
            nn.Linear(64, width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Linear(width, 10),
        )
        optimizer = make_optimizer(trial, model, self.plan.optimizers)
        criterion = nn.CrossEntropyLoss()
        loader = DataLoader(self.train, batch_size=batch_size, shuffle=True)
        held_out = DataLoader(self.validation, batch_size=256)
        value = 0.0
        for epoch in range(1, self.plan.epochs + 1):
            model.train()
            for inputs, targets in loader:
                optimizer.zero_grad()
                loss = criterion(model(inputs), targets)
                loss.backward()
                optimizer.step()
            value = accuracy(model, held_out)
            trial.report(value, epoch)
        return value

    def _width(self, trial: optuna.Trial) -> int:
        low, high = self.plan.hidden_units
        return low if low == high else trial.suggest_int("hidden_units", low, high, log=True)

    def _batch_size(self, trial: optuna.Trial) -> int:
        choices = self.plan.batch_sizes
        return choices[0] if len(choices) == 1 else trial.suggest_categorical("batch_size", choices)


def work(storage: str, trials: int, make: MakeObjective, ready: Any, go: Any) -> None:
    """Run a share of the study's trials, one at a time; the clock starts when all are ready."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    torch.set_num_threads(1)
    study = optuna.load_study(study_name="digits", storage=storage)
    objective = make()
    ready.release()
    go.wait()
    study.optimize(objective, n_trials=trials)


def run(trials: int, processes: int = 2, plan: Plan = Plan()) -> float:  # frozen
    """Return the trials per second of the study of digits."""
    return run_objective(partial(Objective, plan), trials, processes)


def run_objective(make: MakeObjective, trials: int, processes: int = 2) -> float:
    """Return the trials per second, imports and loading of data not counted.

    That is in the baseline's favour: the service's clock includes the request, the queue and the
    writing of every result.
    """
    context = multiprocessing.get_context("spawn")
    ready, go = context.Semaphore(0), context.Event()
    with _storage() as storage:
        shares = [trials // processes + (i < trials % processes) for i in range(processes)]
        workers = [context.Process(target=work, args=(storage, n, make, ready, go)) for n in shares]
        for worker in workers:
            worker.start()
        for _ in workers:
            ready.acquire()
        start = time.perf_counter()
        go.set()
        for worker in workers:
            worker.join()
        seconds = time.perf_counter() - start
        if any(worker.exitcode for worker in workers):
            raise SystemExit("usual: a process of the baseline failed")
    return trials / seconds


def run_isolated(trials: int, processes: int = 2, plan: Plan = Plan()) -> float:  # frozen
    """Return the trials per second with a fresh process for each trial, as most tuners run them.

    Each imports torch and Optuna and loads the data: that is what such a tuner pays.
    """
    context = multiprocessing.get_context("spawn")
    with _storage() as storage:
        start = time.perf_counter()
        running: list[Any] = []
        for _ in range(trials):
            if len(running) == processes:
                running.remove(_first_to_end(running))
            worker = context.Process(target=_alone, args=(storage, plan))
            worker.start()
            running.append(worker)
        while running:
            running.remove(_first_to_end(running))
        return trials / (time.perf_counter() - start)


def _first_to_end(running: list[Any]) -> Any:
    ended = multiprocessing.connection.wait([worker.sentinel for worker in running])
    worker = next(worker for worker in running if worker.sentinel in ended)
    worker.join()
    if worker.exitcode:
        raise SystemExit("usual: a process of the baseline failed")
    return worker


def _alone(storage: str, plan: Plan) -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    torch.set_num_threads(1)
    study = optuna.load_study(study_name="digits", storage=storage)
    study.optimize(Objective(plan), n_trials=1)


@contextlib.contextmanager
def _storage() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="usual-") as directory:
        url = f"sqlite:///{Path(directory) / 'study.db'}"
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        optuna.create_study(study_name="digits", storage=url, direction="maximize")
        yield url


def main() -> None:
    """Print the baseline's trials per second."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=64)
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    rate = run(arguments.trials, arguments.processes)
    print(
        f"usual: {rate:.2f} trials/s ({arguments.trials} trials, {arguments.processes} processes)"
    )


if __name__ == "__main__":
    main()
