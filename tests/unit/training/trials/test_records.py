"""What every trial leaves behind, on whichever backend it ran."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.unit.training.builders import dataset, of, only, run_all, spec, start
from tests.unit.training.data.test_streaming import native_steps, traced_steps
from workers.training.engine.engine import Engine, EngineSettings
from workers.training.steps.factory import PlainStepFactory

EPOCH = {"step", "train_loss", "val_loss", "val_accuracy", "learning_rate", "seconds"}
TRIAL = {
    "test_loss", "test_accuracy", "test_confusion", "val_confusion", "parameter_count",
    "epochs_run", "best_step",
    "seconds", "samples_per_second", "peak_memory_bytes", "device", "versions", "data",
    "data_hash", "seed",
}  # fmt: skip


@pytest.mark.parametrize("folds", [{}, {"folds": 2}])
@pytest.mark.parametrize(
    ("steps", "backend"),
    [(PlainStepFactory, "plain"), (native_steps, "native"), (traced_steps, "traced")],
)
def test_a_trials_record_is_the_same_on_every_rung(
    tmp_path: Path, steps: Any, backend: str, folds: dict[str, int]
) -> None:
    schedule = {"type": "exponential", "gamma": 0.5}
    one = spec(dataset=dataset("iris", folds), epochs=2, fuse=True, schedule=schedule)
    engine = Engine("cpu", settings=EngineSettings(threads=1), steps=steps())
    events = run_all(engine, [start(n, one, folder=tmp_path) for n in (1, 2)])
    epochs = [event.record for event in of(events, 1, "reported")]
    assert [set(record) - {"val_accuracy_std"} for record in epochs] == [EPOCH, EPOCH]
    assert [record["learning_rate"] for record in epochs] == [0.01, 0.005]
    end = only(events, 1, "finished")
    assert end.backend == backend
    record = end.record
    ours = TRIAL | {"folds", "fold_std", "model_fold"} if folds else TRIAL
    assert set(record) == ours
    assert record["parameter_count"] == 4 * 16 + 16 + 16 * 3 + 3
    assert record["seconds"] == pytest.approx(sum(epoch["seconds"] for epoch in epochs))
    assert record["samples_per_second"] > 0
    assert record["peak_memory_bytes"] > 1 << 20
    assert record["versions"]["torch"] == torch.__version__
    assert set(record["versions"]) == {"tuner_service", "torch", "numpy", "python"}
    assert (record["device"], record["data"], record["seed"]) == ("cpu", "on device", 7)
    assert len(record["data_hash"]) == 64
