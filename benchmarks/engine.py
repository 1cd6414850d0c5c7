"""The training engine against the loop that one would write, on two cores, one thread each.

Contestants, all in two processes at once, over the same trials (five optimizers in turn, learning
rates spread over 1e-3 to 1e-1, a validation score after every epoch):

    usual       a DataLoader, one trial at a time, study.optimize, SQLite
    tight       data as one tensor, batches by index, no Optuna: the loop of a careful hand
    plain       our engine with fusing switched off
    K=1         our fused program with one lane, compiled by inductor: what compiling alone gives
    engine      our engine as it is, with its records, metrics and test scores; no database

They take turns within each round; a figure is the median over rounds of the ratio within a round.

    python -m benchmarks.engine [--rounds 5] [--rows 2x32 2x128 cnn 2x512]
    python -m benchmarks.engine --cuda [--rounds 5]

With `--cuda`: the engine in one process against the usual loop in two, and in sixteen that share
the GPU. The usual loop has its data in memory, and moves each batch to the GPU.
"""

import argparse
import contextlib
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.rounds import Figure, describe, interleave, median_ratio, one_thread, report

one_thread()

import optuna  # noqa: E402  after the threads are set
import torch  # noqa: E402
from torch import nn  # noqa: E402
from torch.utils.data import DataLoader, TensorDataset  # noqa: E402

from tuner_service.definition.trial_spec import TrialSpec  # noqa: E402
from workers.protocol.messages import Failed, RunId, TrialStart  # noqa: E402
from workers.training.data import DatasetCache, PreparedData  # noqa: E402
from workers.training.engine.engine import Engine  # noqa: E402
from workers.training.nets import networks  # noqa: E402
from workers.training.nets.randomness import epoch_orders  # noqa: E402
from workers.training.optim import plain  # noqa: E402
from workers.training.steps.factory import PlainStepFactory  # noqa: E402
from workers.training.steps.fused.executors import Compiled  # noqa: E402
from workers.training.steps.fused.step import FusedStep  # noqa: E402
from workers.training.steps.groups import group_of, hyper_of  # noqa: E402
from workers.training.steps.native import library  # noqa: E402
from workers.training.steps.select import BackendSelector  # noqa: E402

PROCESSES = 2
OPTIMIZERS: list[dict[str, Any]] = [
    {"type": "sgd", "momentum": 0.9},
    {"type": "nesterov", "momentum": 0.9},
    {"type": "adagrad"},
    {"type": "rmsprop"},
    {"type": "adam"},
]
ROUNDS, QUICK_ROUNDS = 5, 2
SHARING, SHARING_GOAL = 16, 20.0  # processes that share a GPU


@dataclass(frozen=True)
class Row:
    """One row of the table: a network, a batch size, a goal against a contestant.

    `slow` and `fast` are the trials per process and round of the loops, and of the engine.
    """

    title: str
    network: dict[str, Any]
    batch_size: int
    goal: float
    against: str = "usual"
    epochs: int = 5
    slow: int = 2
    fast: int = 64


def _mlp(width: int) -> dict[str, Any]:
    return {
        "type": "mlp", "hidden_layers": 2, "hidden_units": width, "activation": "relu",
        "dropout": 0.0, "norm": "none",
    }  # fmt: skip


CNN = {
    "type": "cnn", "conv_layers": 2, "channels": 16, "kernel_size": 3, "hidden_units": 64,
    "activation": "relu", "dropout": 0.0, "norm": "none",
}  # fmt: skip

ROWS = {
    "2x32": Row("engine, MLP 2x32, batch 16", _mlp(32), 16, 40.0, slow=4, fast=160),
    "2x128": Row("engine, MLP 2x128, batch 64", _mlp(128), 64, 8.0, slow=8, fast=64),
    "cnn": Row("engine, CNN on 8x8 images, batch 16", CNN, 16, 4.0, fast=16),
    "2x512": Row("engine, MLP 2x512, batch 64", _mlp(512), 64, 0.95, against="plain", fast=8),
}

CUDA_ROW = Row("engine on CUDA, MLP 2x128, batch 64", _mlp(128), 64, 200.0, slow=4, fast=1024)


def trial_spec(row: Row, number: int, *, fuse: bool = True) -> TrialSpec:
    """Return the row's trial of this number."""
    rate = 10.0 ** (-3.0 + 2.0 * (number % 16) / 15.0)
    return TrialSpec.model_validate({
        "dataset": {
            "name": "digits", "options": {},
            "split": {"validation": 0.1, "test": 0.1, "seed": 0, "stratify": True},
        },
        "network": row.network,
        "optimizer": {**OPTIMIZERS[number % len(OPTIMIZERS)], "learning_rate": rate},
        "schedule": {"type": "constant"},
        "loss": "cross_entropy",
        "metrics": ("accuracy",),
        "objective": (("val_accuracy", "maximize"),),
        "batch_size": row.batch_size,
        "epochs": row.epochs,
        "early_stopping": None,
        "label_smoothing": 0.0, "l1": 0.0, "gradient_clip": None,
        "precision": "float32", "fuse": fuse, "seed": number,
    })  # fmt: skip


# ------------------------------------------------------ what one process does, per contestant


class Contestants:
    """Runs any contestant in this process; keeps warm what the service keeps warm."""

    def __init__(self, device: str) -> None:
        torch.set_num_threads(1)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._device = torch.device(device)
        self._data = DatasetCache(self._device, directories=())
        self._ladder = BackendSelector(self._device, cache=library.cache_directory())
        self._engines = {
            "engine": Engine(device, steps=self._ladder),
            "plain": Engine(device, steps=PlainStepFactory()),
        }
        self._fused: dict[str, FusedStep] = {}
        self._numbers = iter(range(1, 1_000_000))

    def run(self, name: str, row: Row, trials: int, storage: str) -> str:
        """Train this many trials; return what ran them."""
        if name in self._engines:
            return self._engine(name, row, trials)
        if name == "K=1":
            return self._one_lane(row, trials)
        data = self._prepared(row)
        loop = partial(_usual, row, data) if name == "usual" else partial(_tight, row, data)
        if name == "usual":
            study = optuna.load_study(study_name="usual", storage=storage)
            study.optimize(lambda trial: loop(trial), n_trials=trials)
        else:
            for number in range(trials):
                loop(number)
        return "autograd"

    def close(self) -> None:
        """End compiling processes."""
        self._ladder.close()

    def _prepared(self, row: Row) -> PreparedData:
        spec = trial_spec(row, 0)
        return self._data.get(spec.dataset, targets="classes", dtype=torch.float32)

    def _engine(self, name: str, row: Row, trials: int) -> str:
        engine, backends = self._engines[name], {""}
        with tempfile.TemporaryDirectory() as folder:
            for number in range(trials):
                engine.submit(_start(next(self._numbers), row, number, Path(folder)))
            while not engine.idle:
                for event in engine.advance():
                    backends.add(getattr(event, "backend", None) or "")
                    if isinstance(event, Failed):
                        raise SystemExit(f"engine: a trial failed: {event.failure}")
        return "/".join(sorted(backends - {""}))

    def _one_lane(self, row: Row, trials: int) -> str:
        spec = trial_spec(row, 0)
        group = group_of(
            spec, self._prepared(row), device=self._device, group_network=lambda network: network
        )
        step = self._fused.setdefault(row.title, FusedStep(group, 1, Compiled()))
        for number in range(trials):
            step.put(0, hyper_of(trial_spec(row, number)), None)
            rates = torch.full((1, group.steps), spec.optimizer["learning_rate"]).double()
            for epoch in range(row.epochs):
                orders = epoch_orders(torch.tensor([number]), torch.tensor([epoch]), group.rows)
                step.train_epoch(orders.to(self._device), rates)
                step.evaluate(self._prepared(row).validation.inputs)
        return step.backend


def _start(trial: int, row: Row, number: int, folder: Path) -> TrialStart:
    return TrialStart(
        run=RunId(trial), number=trial, study=1,
        spec=trial_spec(row, number).model_dump(mode="json"),
        checkpoint=str(folder / f"{trial}"), resume=None, model=None,
        keep_models=0, prunable=False, exclusive=False, log=None,
    )  # fmt: skip


def _prepare_loop(row: Row, data: PreparedData, number: int) -> tuple[nn.Module, Any]:
    spec = trial_spec(row, number)
    module = networks.build(row.network, inputs=data.shape, outputs=data.outputs)
    networks.initialise(module, spec.seed).to(data.train.inputs.device)
    options = {k: v for k, v in spec.optimizer.items() if k not in ("type", "learning_rate")}
    optimizer = plain.build(spec.optimizer["type"], options, module.parameters())
    plain.set_rate(optimizer, spec.optimizer["learning_rate"])
    return module, optimizer


def _usual(row: Row, data: PreparedData, trial: optuna.Trial) -> float:
    module, optimizer = _prepare_loop(row, data, trial.number)
    trial.suggest_float("learning_rate", 1e-3, 1e-1, log=True)
    device = data.train.inputs.device
    train = TensorDataset(data.train.inputs.cpu(), data.train.targets.cpu())
    held_out = TensorDataset(data.validation.inputs.cpu(), data.validation.targets.cpu())
    score = 0.0
    for epoch in range(row.epochs):
        module.train()
        for inputs, targets in DataLoader(train, batch_size=row.batch_size, shuffle=True):
            _step(module, optimizer, inputs.to(device), targets.to(device))
        module.eval()
        with torch.no_grad():
            hits = [
                (module(inputs.to(device)).argmax(1) == targets.to(device)).sum()
                for inputs, targets in DataLoader(held_out, batch_size=256)
            ]
        score = int(torch.stack(hits).sum()) / len(held_out)
        trial.report(score, epoch)
    return score


def _tight(row: Row, data: PreparedData, number: int) -> None:
    module, optimizer = _prepare_loop(row, data, number)
    for _ in range(row.epochs):
        module.train()
        order = torch.randperm(len(data.train.inputs), device=data.train.inputs.device)
        for rows in order.split(row.batch_size):
            _step(module, optimizer, data.train.inputs[rows], data.train.targets[rows])
        module.eval()
        with torch.no_grad():
            (module(data.validation.inputs).argmax(1) == data.validation.targets).sum().item()


def _step(module: nn.Module, optimizer: Any, inputs: torch.Tensor, targets: torch.Tensor) -> None:
    optimizer.zero_grad()
    nn.functional.cross_entropy(module(inputs), targets).backward()
    optimizer.step()


# ----------------------------------------------------------------------------------- the processes


def _serve(pipe: Connection, device: str) -> None:
    contestants = Contestants(device)
    while True:
        asked = pipe.recv()
        if asked is None:
            contestants.close()
            return
        pipe.send(contestants.run(*asked))


class Crew:
    """Processes that run the same contestant at once."""

    def __init__(self, pipes: list[Connection], directory: Path) -> None:
        self._pipes = pipes
        self._directory = directory
        self._studies = iter(range(1_000_000))
        self.backends: dict[str, str] = {}

    def rate(self, name: str, row: Row) -> float:
        """Return the trials per second of all together."""
        trials = row.fast if name == "engine" else row.slow
        storage = f"sqlite:///{self._directory / str(next(self._studies))}.db"
        if name == "usual":
            optuna.create_study(study_name="usual", storage=storage, direction="maximize")
        begun = time.perf_counter()
        for pipe in self._pipes:
            pipe.send((name, row, trials, storage))
        self.backends[name] = self._pipes[0].recv()
        for pipe in self._pipes[1:]:
            pipe.recv()
        return trials * len(self._pipes) / (time.perf_counter() - begun)


@contextlib.contextmanager
def crew(device: str, count: int = PROCESSES) -> Iterator[Crew]:
    """Start the processes, and end them."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="bench-engine-") as directory:
        pipes, processes = [], []
        for _ in range(count):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, device), daemon=False)
            process.start()
            theirs.close()  # so that a child that died is heard
            pipes.append(ours)
            processes.append(process)
        try:
            yield Crew(pipes, Path(directory))
        finally:
            for pipe in pipes:
                with contextlib.suppress(BrokenPipeError):
                    pipe.send(None)
            for process in processes:
                process.join()


def measure(both: Crew, row: Row, *, rounds: int, beside: bool = True) -> Figure:
    """Measure one row; with `beside`, also the contestants that are there for comparison."""
    names = dict.fromkeys(["engine", row.against])
    if beside:
        names |= dict.fromkeys(["usual", "tight", "plain", "K=1"])
    contestants: dict[str, Callable[[], float]] = {n: partial(both.rate, n, row) for n in names}
    for name in names:  # warm: caches, probes, compilations
        both.rate(name, row)
    _climb(both, row)
    results = interleave(contestants, rounds)
    print(f"{row.title}, {row.epochs} epochs, {rounds} rounds:")
    print("\n".join(describe(results, "trials/s")), flush=True)
    backend = both.backends["engine"]
    ratio = median_ratio(results, "engine", row.against)
    return Figure(row.title, ratio, row.goal, f"x {row.against}", note=backend)


def _climb(crew: Crew, row: Row) -> None:
    """Wait until background compilation is over, by training."""
    deadline = time.monotonic() + 240
    while "traced" in crew.backends["engine"] and time.monotonic() < deadline:
        crew.rate("engine", row)


def measure_cuda(row: Row = CUDA_ROW, *, rounds: int) -> list[Figure]:
    """Measure the engine on a GPU against the usual loop, in two processes and in many."""
    with crew("cuda", 1) as alone, crew("cuda") as two, crew("cuda", SHARING) as many:
        contestants: dict[str, Callable[[], float]] = {
            "engine": partial(alone.rate, "engine", row),
            "usual": partial(two.rate, "usual", row),
            "sharing": partial(many.rate, "usual", row),
        }
        for run in contestants.values():  # warm: contexts, data, probes, compilations
            run()
        _climb(alone, row)
        results = interleave(contestants, rounds)
        backend = alone.backends["engine"]
    print(f"{row.title}, {row.epochs} epochs, {rounds} rounds:")
    print("\n".join(describe(results, "trials/s")))
    usual, sharing = (median_ratio(results, "engine", name) for name in ("usual", "sharing"))
    title = f"the same against {SHARING} processes that share the GPU"
    return [
        Figure(row.title, usual, row.goal, "x usual", note=backend),
        Figure(title, sharing, SHARING_GOAL, "x", note=backend),
    ]


def figures(names: list[str], *, rounds: int, beside: bool = True) -> list[Figure]:
    """Measure the named rows, on the CPU."""
    with crew("cpu") as both:
        return [measure(both, ROWS[name], rounds=rounds, beside=beside) for name in names]


def quick() -> list[Figure]:
    """Measure for `make bench`."""
    return figures(list(ROWS), rounds=QUICK_ROUNDS, beside=False)


def main() -> None:
    """Print each row's contestants, and its figure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--cuda", action="store_true")
    arguments = parser.parse_args()
    if arguments.cuda:
        report(measure_cuda(rounds=arguments.rounds))
    else:
        report(figures(arguments.rows, rounds=arguments.rounds))


if __name__ == "__main__":
    sys.exit(main())
