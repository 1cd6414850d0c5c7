"""A warm trainer: memory stays where it is, however many trials have passed."""

import gc
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch

from tests.unit.training.builders import mlp, only, run_all, spec, start
from tests.unit.training.lanes_of_plain import LanesOf, PlainLanes
from workers.training.engine.engine import Engine
from workers.training.steps.groups import GroupSpec
from workers.training.steps.step import TrainStep

WARM, MORE = 100, 500


class Lanes(LanesOf):
    """Does not remember the steps it made."""

    def make_step(self, group: GroupSpec, lanes: int) -> TrainStep:
        return PlainLanes(group, lanes)


def tensors() -> int:
    # By type: `isinstance` asks the object, and one of torch's answers with a warning.
    return sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects())


def trials(engine: Engine, numbers: range, folder: Path) -> None:
    """Train trials of changing width, kind and metrics, and forget what they said."""
    for n in numbers:
        kind = ("sgd", "adam", "rmsprop")[n % 3]
        one = spec(
            epochs=1,
            network=mlp(hidden_units=2 + n % 7),
            optimizer={"type": kind, "learning_rate": 1e-3},
            early_stopping={"patience": 3, "min_delta": 0.0},
            batch_size=64,
            seed=n,
        )
        begun = start(n, one, folder=folder, study=n % 5, prunable=n % 11 == 0)
        events = run_all(engine, [begun])
        only(events, n, "finished")


@pytest.mark.parametrize("ask", [None, lambda study: None], ids=["no doubts", "doubts"])
def test_memory_does_not_grow_over_500_trials(
    tmp_path: Path, ask: Callable[[int], None] | None
) -> None:
    engine = Engine("cpu", steps=Lanes(2), ask=ask)
    tracemalloc.start()
    try:
        # Warm: caches fill, and small objects made before tracing are replaced by traced ones.
        trials(engine, range(WARM), tmp_path)
        gc.collect()
        before = tensors()
        traced = tracemalloc.get_traced_memory()[0]
        resident = psutil.Process().memory_info().rss
        trials(engine, range(WARM, WARM + MORE), tmp_path)
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0] - traced
    finally:
        tracemalloc.stop()
    assert tensors() <= before + 100
    # 200 bytes a trial, less than the smallest thing of a trial's that could be kept. After other
    # tests in the process 60,000 were seen: what they left is still being replaced.
    assert grown < 100_000
    assert psutil.Process().memory_info().rss - resident < 20_000_000
