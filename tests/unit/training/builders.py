"""Trial specifications and starts written by hand, and what drives an engine in tests."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tuner_service.definition.trial_spec import TrialSpec
from workers.protocol.messages import RunId, TrialStart
from workers.training.engine.engine import Engine

DATA = Path(os.environ.get("TUNER_TEST_DATA", Path(__file__).parents[3] / "../shared/data"))

SPLIT = {"validation": 0.2, "test": 0.2, "seed": 0, "stratify": True}


def needs(path: str) -> Path:
    """Return a file or directory of the test data, or skip."""
    found = DATA / path
    if not found.exists():
        pytest.skip(f"no {path} in {DATA}; set TUNER_TEST_DATA")
    return found


def dataset(name: str = "digits", split: Mapping[str, Any] | None = None, **options: Any) -> Any:
    return {"name": name, "options": options, "split": SPLIT | dict(split or {})}


def mlp(**options: Any) -> dict[str, Any]:
    network = {"type": "mlp", "hidden_layers": 1, "hidden_units": 16, "activation": "relu"}
    return {**network, "dropout": 0.0, "norm": "none", **options}


def spec(**changes: Any) -> TrialSpec:
    fields: dict[str, Any] = {
        "dataset": dataset("iris"),
        "network": mlp(),
        "optimizer": {"type": "adam", "learning_rate": 0.01},
        "schedule": {"type": "constant"},
        "loss": "cross_entropy",
        "metrics": ("accuracy",),
        "objective": (("val_accuracy", "maximize"),),
        "batch_size": 16,
        "epochs": 3,
        "early_stopping": None,
        "label_smoothing": 0.0,
        "l1": 0.0,
        "gradient_clip": None,
        "precision": "float32",
        "fuse": False,
        "seed": 7,
    }
    return TrialSpec.model_validate(fields | changes)


def regression(**changes: Any) -> TrialSpec:
    fields = {
        "dataset": dataset("diabetes"),
        "loss": "mse",
        "metrics": ("mse", "r2"),
        "objective": (("val_mse", "minimize"),),
    }
    return spec(**(fields | changes))


def start(
    run: int, trial_spec: TrialSpec | None = None, *, folder: Path, **changes: Any
) -> TrialStart:
    fields: dict[str, Any] = {
        "run": RunId(run),
        "number": run,
        "study": 1,
        "spec": (trial_spec or spec()).model_dump(mode="json"),
        "checkpoint": str(folder / f"checkpoint-{run}"),
        "resume": None,
        "model": None,
        "keep_models": 0,
        "prunable": False,
        "exclusive": False,
        "log": None,
    }
    return TrialStart(**(fields | changes))


def run_all(engine: Engine, starts: Iterable[TrialStart] = (), turns: int = 10_000) -> list[Any]:
    """Advance until nothing is on board."""
    for one in starts:
        engine.submit(one)
    events: list[Any] = []
    for _ in range(turns):
        if engine.idle:
            return events
        events += engine.advance()
    raise AssertionError(f"the engine is not idle after {turns} turns")


def of(events: Iterable[Any], run: int, kind: str | None = None) -> list[Any]:
    return [e for e in events if e.run == run and kind in (None, e.type)]


def only(events: Iterable[Any], run: int, kind: str) -> Any:
    found = of(events, run, kind)
    assert len(found) == 1, found
    return found[0]
