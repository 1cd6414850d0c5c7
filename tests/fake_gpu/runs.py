"""Whole runs of an engine on the fake device, and what they said."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tests.unit.training import builders
from workers.protocol.messages import Event, Finished
from workers.training.engine.engine import Engine
from workers.training.steps.select import BackendSelector

NUMBERS = ("train_loss", "val_loss", "val_accuracy")


def specs(count: int, **changes: Any) -> list[Any]:
    fields = {"fuse": True, "epochs": 2, "precision": "float64", **changes}
    return [builders.spec(seed=n, **fields) for n in range(count)]


def engine(*, compile: bool = False, probe: bool = False) -> Engine:
    device = torch.device("cuda")
    return Engine("cuda", steps=BackendSelector(device, compile=compile, probe=probe))


def run(given: Sequence[Any], folder: Path, made: Engine | None = None) -> list[Event]:
    starts = [builders.start(n, one, folder=folder) for n, one in enumerate(given)]
    return builders.run_all(made or engine(), starts)


def curves(events: Sequence[Event]) -> dict[int, list[list[float]]]:
    """Return each finished trial's numbers by epoch."""
    ended = {event.run for event in events if isinstance(event, Finished)}
    return {
        trial: [
            [event.record[name] for name in NUMBERS]
            for event in builders.of(events, trial, "reported")
        ]
        for trial in sorted(ended)
    }


def equal(one: dict[int, Any], other: dict[int, Any]) -> bool:
    """Whether the trials are the same, and their numbers but for rounding."""
    return one.keys() == other.keys() and all(
        torch.allclose(torch.tensor(one[n]), torch.tensor(other[n]), rtol=1e-9, atol=1e-12)
        for n in one
    )
