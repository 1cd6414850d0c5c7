"""One batch of a trial, forward and backward, and its metrics, before a budget is spent."""

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from tuner_service.definition.trial_spec import TrialSpec, UserLoopSpec
from workers.protocol.messages import Failed, Finished, Reported, RunId, TrialStart
from workers.training import user_modules
from workers.training.data import DatasetCache, Room
from workers.training.steps.factory import PlainStepFactory
from workers.training.steps.groups import hyper_of
from workers.training.steps.plain import PlainStep
from workers.training.trials.best_models import ModelKeeper
from workers.training.trials.evaluation import measure
from workers.training.trials.preparation import Prepared, prepare_trial
from workers.training.trials.records import peak_memory_bytes
from workers.training.user_loops.pool import UserLoopPool

Findings = dict[str, Any]

TIMED_SECONDS = 0.25
TIMED_RUNS = 15


class PreflightError(Exception):
    """A training loop failed before its first report.

    Attributes:
        traceback: Of the loop.
    """

    def __init__(self, message: str, traceback: str | None) -> None:
        self.traceback = traceback
        super().__init__(message)


def preflight(
    spec: TrialSpec, *, room: Room, data_dirs: Sequence[Path], modules_dir: Path | None
) -> Findings:
    """Train one batch plainly and measure it on the validation part.

    What the data, the network, the loss or a metric raises comes through.

    Returns:
        `batch` and `output` (shapes), `parameter_count`, `train_loss` (of the first batch),
        `metrics` (after it), `batch_seconds`, `epoch_seconds` (estimated: its batches and its
        validation, without what only the first of them cost), `peak_memory_bytes`.
    """
    prepared = prepare_trial(
        spec,
        cache=DatasetCache(room.device, directories=tuple(data_dirs), room=room),
        user_module=user_modules.UserModules(modules_dir),
        device=room.device,
        group_network=PlainStepFactory().group_network,
    )
    return one_batch(prepared)


def one_batch(prepared: Prepared) -> Findings:
    """Train one batch plainly, and measure the network on the validation part, until both are warm.

    What the network, the loss or a metric raises comes through.

    Returns:
        As `preflight`.
    """
    group, batch = prepared.group, _Batch(prepared)
    loss = batch.train()
    outputs, measured = batch.measure()
    # Only now: the first batch pays for allocations and kernels that the others do not.
    train_seconds, validation_seconds = usual_seconds(batch.train), usual_seconds(batch.measure)
    parameters = (v for k, v in batch.step.take(0).items() if k.startswith("parameters/"))
    return {
        "batch": [batch.rows, *prepared.data.shape],
        "output": [batch.rows, *outputs.shape[2:]],
        "parameter_count": sum(tensor.numel() for tensor in parameters),
        "train_loss": loss,
        "metrics": {f"val_{name}": value for name, value in measured.items()},
        "batch_seconds": train_seconds,
        "epoch_seconds": train_seconds * group.steps + validation_seconds,
        "peak_memory_bytes": peak_memory_bytes(group.device),
    }


def train_one_batch(prepared: Prepared) -> None:
    """Train one batch plainly and measure the network on the validation part.

    What the network, the loss or a metric raises comes through.
    """
    batch = _Batch(prepared)
    batch.train()
    batch.measure()


class _Batch:
    """The first rows of a trial's data, and a plain step to train them with."""

    def __init__(self, prepared: Prepared) -> None:
        self._prepared = prepared
        self.step = PlainStep(prepared.group)
        self.step.put(0, hyper_of(prepared.spec), None)
        self.rows = min(prepared.group.batch_size, prepared.data.train.rows)

    def train(self) -> float:
        """Return the mean loss."""
        order = torch.arange(self.rows).unsqueeze(0)  # [1, rows]: one batch
        learning_rate = float(self._prepared.spec.optimizer["learning_rate"])
        rate = torch.full((1, 1), learning_rate, dtype=torch.float64)  # [K, S] of one step
        return float(self.step.train_epoch(order, rate)) / self.rows

    def measure(self) -> tuple[torch.Tensor, dict[str, float]]:
        """Return the outputs for the validation part, [1, rows, ...], and its metrics.

        Of the training part, where there is none.
        """
        part = self._prepared.data.validation or self._prepared.data.train
        outputs = self.step.evaluate(part.inputs)
        loss, metrics = self._prepared.group.loss, [self._prepared.metrics]
        return outputs, measure(outputs, part, loss=loss, metrics=metrics)[0]


def preflight_user_loop(
    spec: UserLoopSpec,
    *,
    device: torch.device,
    modules_dir: Path | None,
    timeout_seconds: float,
    programs: Sequence[Path] = (),
) -> Findings:
    """Run a training loop up to its first report.

    Returns:
        `metrics` (what it reported), `seconds` to the first report, `peak_memory_bytes`.

    Raises:
        PreflightError: It failed before that, or took longer.
    """
    with tempfile.TemporaryDirectory() as folder:
        loops = UserLoopPool(
            str(device),
            modules_dir=modules_dir,
            programs=programs,
            keeper=ModelKeeper(),
            stop_seconds=2.0,
            progress_seconds=timeout_seconds,
        )
        loops.submit(_start(spec, folder))
        begun = time.monotonic()
        event = _first(loops)
        seconds, peak = time.monotonic() - begun, loops.peak_bytes
        if not loops.idle:
            loops.shutdown()
    names = [key for key, _ in spec.objective]
    match event:
        case Failed(failure=failure):
            raise PreflightError(failure.message, failure.traceback)
        case Reported(record=record):
            values = [record.get(name) for name in names]
        case Finished():
            values = [*event.values] or [None] * len(names)
    return {
        "metrics": dict(zip(names, values, strict=False)),
        "seconds": seconds,
        "peak_memory_bytes": peak or None,
    }


def _first(loops: UserLoopPool) -> Reported | Finished | Failed:
    """Return the first report, or the end where there is none."""
    while True:
        for event in loops.advance():
            if isinstance(event, Reported | Finished | Failed):
                return event
        time.sleep(0.01)


def _start(spec: UserLoopSpec, folder: str) -> TrialStart:
    return TrialStart(
        run=RunId(1),
        number=0,
        study=1,
        spec=spec.model_dump(mode="json"),
        checkpoint=f"{folder}/checkpoint",
        resume=None,
        model=f"{folder}/model.safetensors",
        keep_models=1,
        prunable=False,
        exclusive=True,
        log=None,
    )


def usual_seconds(work: Callable[[], object]) -> float:
    """Return the median of the seconds that something takes which has been done before."""
    seconds: list[float] = []
    # The median: a machine that does something else for a moment is no part of the estimate.
    while not seconds or (sum(seconds) < TIMED_SECONDS and len(seconds) < TIMED_RUNS):
        begun = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds)
