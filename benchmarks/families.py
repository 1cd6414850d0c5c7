"""Whole studies over REST of every family of networks, against the script one would write.

The script has torch's own modules, a DataLoader, `study.optimize` and two single-threaded
processes; its imports and loading are not counted (`usual.py`). Learning rate and optimizer are
searched. Each row is measured three ways: warm; the first study of the row, in a service that has
run the rows before; and a single trial. 6,000 rows of made-up data, on whose values time does not
depend.

    python -m benchmarks.families [--rounds 3] [--rows mlp lstm] [--trials 16] [--data-rows 6000]
"""

import argparse
import contextlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks import usual
from benchmarks.brought import embedded_lstm, torch_resnet
from benchmarks.main_job import WORKERS, run_study
from benchmarks.rounds import Figure, describe, interleave, median_ratio, one_thread, report
from tests.e2e.service import Service, running

BROUGHT = Path(__file__).with_name("brought")
SIDE, CLASSES = 28, 10
LEAST = 1.0  # first studies and single trials, too, are never slower than the script
ADAMS = ("sgd", "adam", "rmsprop")
OF_TORCH = {
    "sgd": torch.optim.SGD, "adam": torch.optim.Adam, "rmsprop": torch.optim.RMSprop,
    "adagrad": torch.optim.Adagrad, "adamw": torch.optim.AdamW, "adamax": torch.optim.Adamax,
    "adadelta": torch.optim.Adadelta, "nadam": torch.optim.NAdam, "radam": torch.optim.RAdam,
}  # fmt: skip
DATA: dict[str, Callable[..., Any]] = {
    "torch_resnet": torch_resnet.load_data,
    "embedded_lstm": embedded_lstm.load_data,
}


def mlp(units: int) -> nn.Module:
    """Return two hidden layers."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(SIDE * SIDE, units), nn.ReLU(),
        nn.Linear(units, units), nn.ReLU(), nn.Linear(units, CLASSES),
    )  # fmt: skip


def cnn() -> nn.Module:
    """Return two convolutions with pooling and a hidden layer, as the built-in has them."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(32 * (SIDE // 4) ** 2, 64), nn.ReLU(), nn.Linear(64, CLASSES),
    )  # fmt: skip


class Recurrent(nn.Module):
    """The last state over the lines of an image."""

    def __init__(self, kind: str, units: int = 64) -> None:
        super().__init__()
        made = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}[kind]
        self.cells = made(SIDE, units, batch_first=True)
        self.output = nn.Linear(units, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, 1, 28, 28] -> [B, 10]."""
        states, _ = self.cells(x.flatten(1, 2))
        return self.output(states[:, -1])  # type: ignore[no-any-return]


class Transformer(nn.Module):
    """Two encoder layers over the lines of an image."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.embedding = nn.Linear(SIDE, width)
        self.positions = nn.Parameter(torch.zeros(SIDE, width))
        layer = nn.TransformerEncoderLayer(
            width, 4, 4 * width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.output = nn.Linear(width, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, 1, 28, 28] -> [B, 10]."""
        x = self.encoder(self.embedding(x.flatten(1, 2)) + self.positions)
        return self.output(x.mean(1))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Row:
    """A study, what its script builds, and the goal of its warm ratio."""

    title: str
    network: dict[str, Any]
    build: Callable[[], nn.Module]
    goal: float
    data: str = "torch_resnet"
    batch_size: int = 64
    epochs: int = 2
    optimizers: tuple[str, ...] = field(default=ADAMS)


def _recurrent(kind: str) -> Row:
    network = {"type": kind, "hidden_units": 64}
    return Row(f"{kind} 64, 28 steps", network, partial(Recurrent, kind), 3.0)


ROWS = {
    "mlp": Row(
        "mlp 2x256", {"type": "mlp", "hidden_layers": 2, "hidden_units": 256},
        partial(mlp, 256), 8.0, batch_size=128, epochs=4,
    ),
    "optimizers": Row(
        "mlp 2x64, every optimizer", {"type": "mlp", "hidden_layers": 2, "hidden_units": 64},
        partial(mlp, 64), 10.0, epochs=4, optimizers=tuple(OF_TORCH),
    ),
    "cnn": Row(
        "cnn 16/32", {"type": "cnn", "channels": 16, "conv_layers": 2, "hidden_units": 64}, cnn, 4.0
    ),
    "transformer": Row(
        "transformer 2x64, 28 steps", {"type": "transformer", "width": 64, "layers": 2},
        Transformer, 2.0,
    ),
    "resnet": Row(
        "resnet 3x16, batch norm",
        {"type": "resnet", "stages": 3, "channels": 16, "norm": "batch"},
        partial(torch_resnet.build, (1, SIDE, SIDE), CLASSES), 1.5,
    ),
    "lstm": _recurrent("lstm"),
    "gru": _recurrent("gru"),
    "rnn": _recurrent("rnn"),
    "brought-lstm": Row(
        "brought: nn.LSTM, embeddings", {"type": "embedded_lstm"},
        partial(embedded_lstm.build, (40,), 4), LEAST, data="embedded_lstm",
    ),
    "brought-resnet": Row(
        "brought: ResNet of torch's modules", {"type": "torch_resnet"},
        partial(torch_resnet.build, (1, SIDE, SIDE), CLASSES), LEAST,
    ),
}  # fmt: skip


def first_step() -> None:
    """Have torch import what it does at an optimizer's first step: no imports are counted."""
    weight = nn.Parameter(torch.zeros(1))
    weight.grad = torch.zeros(1)
    torch.optim.Adam([weight]).step()


class Objective:
    """Train one trial of a row and return its validation accuracy."""

    def __init__(self, row: Row, rows: int) -> None:
        self.row = row
        first_step()
        inputs, targets = DATA[row.data](rows=rows)
        data = TensorDataset(torch.tensor(inputs), torch.tensor(targets))
        first = int(0.8 * rows)  # a tenth each is for validation and for the test
        self.train = torch.utils.data.Subset(data, range(first))
        self.validation = torch.utils.data.Subset(data, range(first, first + rows // 10))

    def __call__(self, trial: optuna.Trial) -> float:
        torch.manual_seed(0)
        model = self.row.build()
        rate = trial.suggest_float("learning_rate", 1e-4, 1e-2, log=True)
        made = OF_TORCH[trial.suggest_categorical("optimizer", self.row.optimizers)]
        optimizer = made(model.parameters(), lr=rate)
        criterion = nn.CrossEntropyLoss()
        loader = DataLoader(self.train, batch_size=self.row.batch_size, shuffle=True)
        held_out = DataLoader(self.validation, batch_size=256)
        value = 0.0
        for epoch in range(1, self.row.epochs + 1):
            model.train()
            for inputs, targets in loader:
                optimizer.zero_grad()
                loss = criterion(model(inputs), targets)
                loss.backward()
                optimizer.step()
            value = usual.accuracy(model, held_out)  # type: ignore[arg-type]
            trial.report(value, epoch)
        return value


def definition(row: Row, trials: int, rows: int) -> dict[str, Any]:
    """Return the row's study, the same search as the script's."""
    split = {"validation": 0.1, "test": 0.1, "seed": 0}
    return {
        "name": "families",
        # As they are: tokens are numbers of rows of an embedding.
        "dataset": {"name": row.data, "rows": rows, "standardize": False, "split": split},
        "network": row.network,
        "objective": {"metric": "val_accuracy", "direction": "maximize"},
        "parameters": {
            "learning_rate": {"type": "float", "low": 1e-4, "high": 1e-2, "log": True},
            "optimizer": {"type": "categorical", "choices": list(row.optimizers)},
        },
        "sampler": {"type": "random", "seed": 0},
        "training": {"epochs": row.epochs, "batch_size": row.batch_size, "seed": 0},
        "budget": {"trials": trials},
    }


def measure(service: Service, row: Row, *, rounds: int, trials: int, rows: int) -> list[Figure]:
    """Measure one row against its script, in turns; the first study comes before all."""
    make = partial(Objective, row, rows)
    study, single = (definition(row, many, rows) for many in (trials, 1))
    first = run_study(service, study)
    results = interleave(
        {
            "service, warm": partial(run_study, service, study),
            "usual script": partial(usual.run_objective, make, trials),
            "service, one trial": partial(run_study, service, single),
            "usual, one trial": partial(usual.run_objective, make, 1, 1),
        },
        rounds,
    )
    print(f"{row.title}, {trials} trials, {rounds} rounds; first study {first:.2f} trials/s")
    print("\n".join(describe(results, "trials/s")), flush=True)
    warm = median_ratio(results, "service, warm", "usual script")
    alone = median_ratio(results, "service, one trial", "usual, one trial")
    script = sorted(results["usual script"])[rounds // 2]
    return [
        Figure(row.title, warm, row.goal, "x usual"),
        Figure(f"{row.title}, first study", first / script, LEAST, "x usual"),
        Figure(f"{row.title}, one trial", alone, LEAST, "x usual"),
    ]


@contextlib.contextmanager
def fresh_service() -> Iterator[Service]:
    """Run a service as `tuner up` does on two cores, with the brought networks and empty caches."""
    with tempfile.TemporaryDirectory(prefix="bench-families-") as name:
        url, settings = f"sqlite:///{name}/tuner.db", {"TUNER_MODULES_DIR": str(BROUGHT)}
        with running(Service(Path(name), url, settings=settings), workers=WORKERS) as started:
            yield started


def main() -> None:
    """Print every row's ratios with their goals, and the least."""
    one_thread()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--data-rows", type=int, default=6000)
    given = parser.parse_args()
    with fresh_service() as service:
        figures = [
            figure
            for name in given.rows
            for figure in measure(
                service, ROWS[name], rounds=given.rounds, trials=given.trials, rows=given.data_rows
            )
        ]
    report(figures)
    least = min(figures, key=lambda figure: figure.measured)
    report([Figure("the least of all", least.measured, LEAST, "x usual", note=least.name)])


if __name__ == "__main__":
    main()
