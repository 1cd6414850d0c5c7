"""One trial on its way through the engine: where it stands, its best epoch, its checkpoint.

With early stopping, the trial's result is its best epoch: those values and weights. Without, it is
the last epoch, as in the usual loop. The metric of early stopping decides what is best, by default
the first objective.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch

from tuner_service.definition.trial_spec import TrialSpec
from workers.protocol.messages import RunId, StopMode, TrialStart
from workers.training.data import PreparedData
from workers.training.nets.metrics import MetricSet
from workers.training.optim import schedules
from workers.training.steps.groups import GroupSpec
from workers.training.steps.step import LaneHyper, LaneState
from workers.training.trials.checkpoints import (
    KEPT,
    CheckpointError,
    checkpoint_path,
    newest_checkpoint,
    read_tensors,
    write_tensors,
)

Direction = Literal["maximize", "minimize"]

FORMAT = 1  # of checkpoints; another format is not resumed


@dataclass(slots=True)
class TrialProgress:
    """Where a trial stands; the JSON of a checkpoint.

    Attributes:
        epoch: Epochs completed.
        position: Optimizer steps into the present epoch.
        loss_sum: Training loss summed over the present epoch's rows so far.
        rows: Rows trained in the present epoch so far.
        epoch_seconds: Device time of the present epoch so far, this trial's share.
        seconds: Device time in all, this trial's share.
        samples: Rows trained in all.
        best_watched: What decided which epoch is the best one, of that epoch.
        anchor: What early stopping watches, that later epochs must pass by more than `min_delta`.
        stale: Epochs since the anchor moved.
        plateau: What a plateau schedule has scaled the learning rate to.
    """

    epoch: int = 0
    position: int = 0
    loss_sum: float = 0.0
    rows: int = 0
    epoch_seconds: float = 0.0
    seconds: float = 0.0
    samples: int = 0
    best_step: int = 0
    best_values: list[float] | None = None
    last_values: list[float] | None = None
    best_watched: float | None = None
    anchor: float | None = None
    stale: int = 0
    plateau: float = 1.0
    plateau_best: float | None = None
    plateau_stale: int = 0


@dataclass(slots=True, eq=False)
class TrialRun:
    """A trial the engine has taken on.

    Attributes:
        state: Its tensors while it is in no lane; None before its first step.
        best: Weights of the best epoch, while the step does not hold them (`remembered`).
        allowed_step: Last step after which the pruner lets it go on.
        stop: How it was asked to stop.
        parameter_count: Numbers trained.
        resumed_from: Epoch of the checkpoint it continued from; 0 where that could not be read.
        threshold: From which probability on the model takes a row for the positive class.
        saved: Epochs completed in the checkpoints that are on disk, the latest last.
    """

    start: TrialStart
    spec: TrialSpec
    data: PreparedData
    group: GroupSpec
    hyper: LaneHyper
    metrics: MetricSet
    parameter_count: int
    checkpointed_at: float
    progress: TrialProgress = field(default_factory=TrialProgress)
    state: LaneState | None = None
    best: LaneState | None = None
    remembered: bool = False
    allowed_step: int = 0
    reported: int = 0
    stop: StopMode | None = None
    started: bool = False
    resumed_from: int | None = None
    threshold: float | None = None
    saved: list[int] = field(default_factory=list)

    @property
    def id(self) -> RunId:
        """The run's id."""
        return self.start.run

    @property
    def study(self) -> int:
        """The study's key."""
        return self.start.study

    @property
    def saved_step(self) -> int | None:
        """Epochs completed in the latest checkpoint."""
        return self.saved[-1] if self.saved else None

    @property
    def keeps_best(self) -> bool:
        """Whether the result is the best epoch rather than the last."""
        return self.spec.early_stopping is not None

    @property
    def waiting(self) -> bool:
        """Whether it must not go on before the pruner has seen its last report."""
        at_boundary = self.progress.position == 0
        return self.start.prunable and at_boundary and self.progress.epoch > self.allowed_step

    @property
    def done(self) -> bool:
        """Whether every epoch is trained, or patience is at its end."""
        stopping = self.spec.early_stopping
        if stopping is not None and self.progress.stale >= stopping.patience:
            return True
        return self.progress.epoch >= self.spec.epochs

    @property
    def values(self) -> list[float] | None:
        """The result so far, one value per objective; None before the first epoch ended."""
        return self.progress.best_values if self.keeps_best else self.progress.last_values

    @property
    def result_step(self) -> int:
        """The epoch that `values` are of."""
        return self.progress.best_step if self.keeps_best else self.progress.epoch

    def learning_rates(self) -> torch.Tensor:
        """Return the [S] float64 learning rates of the present epoch."""
        span = schedules.Span(self.progress.epoch, self.spec.epochs, self.group.steps)
        base = float(self.spec.optimizer["learning_rate"]) * self.progress.plateau
        # The plateau's factor is the trial's, not the schedule's: it follows the objective.
        return torch.from_numpy(schedules.learning_rates(self.spec.schedule, base, span))

    def add_slice(self, *, loss: float, rows: int, steps: int, seconds: float) -> None:
        """Account for a slice of the present epoch."""
        progress = self.progress
        progress.position += steps
        progress.loss_sum += loss
        progress.rows += rows
        progress.samples += rows
        self.add_seconds(seconds)

    def add_seconds(self, seconds: float) -> None:
        """Account for device time in the present epoch."""
        self.progress.epoch_seconds += seconds
        self.progress.seconds += seconds

    def end_epoch(self, values: list[float], watched: float) -> bool:
        """Account for a completed epoch; return whether it is the best.

        Args:
            values: The objectives.
            watched: What decides, as `TrialSpec.watched` says.
        """
        progress = self.progress
        progress.epoch += 1
        progress.position, progress.rows = 0, 0
        progress.loss_sum = progress.epoch_seconds = 0.0
        progress.last_values = values
        direction = self.spec.watched[1]
        best = progress.best_watched
        # Equal is not better, so that the earliest epoch stays.
        better = best is None or gain(watched, best, direction) > 0
        if better:
            progress.best_values, progress.best_step = values, progress.epoch
            progress.best_watched = watched
        self._count_stale(watched, direction)
        self._follow_plateau(values[0], self.spec.objective[0][1])
        return better

    @property
    def intact(self) -> bool:
        """Whether its tensors are those of the steps it has accounted for.

        A slice that broke midway has moved the weights, and its losses are lost.
        """
        if self.state is None:
            return True
        counted = self.progress.epoch * self.group.steps + self.progress.position
        return int(self.state["optimizer/steps"]) == counted

    def start_over(self) -> None:
        """Forget all progress; what was reported is not reported again."""
        self.progress, self.state, self.best = TrialProgress(), None, None
        self.remembered = False

    def _count_stale(self, value: float, direction: Direction) -> None:
        stopping, progress = self.spec.early_stopping, self.progress
        if stopping is None:
            return
        moved = progress.anchor is None
        if progress.anchor is not None:
            moved = gain(value, progress.anchor, direction) > stopping.min_delta
        # The anchor moves by gains beyond min_delta only: many small ones add up against it, as in
        # Keras' EarlyStopping.
        progress.anchor = value if moved else progress.anchor
        progress.stale = 0 if moved else progress.stale + 1

    def _follow_plateau(self, value: float, direction: Direction) -> None:
        """Scale the rate down after `patience` epochs without gain, as ReduceLROnPlateau."""
        schedule, progress = self.spec.schedule, self.progress
        if schedule["type"] != "plateau":
            return
        best = progress.plateau_best
        min_delta = float(schedule.get("min_delta", 0.0))
        if best is None or gain(value, best, direction) > min_delta:
            progress.plateau_best, progress.plateau_stale = value, 0
            return
        progress.plateau_stale += 1
        # More than `patience` epochs, not as many: torch's counting.
        if progress.plateau_stale > int(schedule.get("patience", 5)):
            lowered = progress.plateau * float(schedule.get("factor", 0.1))
            progress.plateau = max(lowered, float(schedule.get("min_factor", 0.0)))
            progress.plateau_stale = 0


def gain(value: float, other: float, direction: Direction) -> float:
    """Return by how much `value` is better than `other`; NaN is never better."""
    difference = value - other if direction == "maximize" else other - value
    return -math.inf if math.isnan(difference) else difference


def save_checkpoint(run: TrialRun, state: LaneState, best: LaneState | None) -> None:
    """Write a checkpoint: the run's state, the best weights, its progress. Drop what is too old."""
    tensors = {f"state/{name}": tensor for name, tensor in state.items()}
    tensors |= {f"best/{name}": tensor for name, tensor in (best or {}).items()}
    note = {"format": FORMAT, "seed": run.spec.seed, "progress": asdict(run.progress)}
    prefix, step = run.start.checkpoint, run.progress.epoch
    # Written before an older one goes: a crash in between leaves one too many, never none.
    write_tensors(checkpoint_path(prefix, step), tensors, note)
    if step != run.saved_step:
        run.saved.append(step)
    for old in run.saved[:-KEPT]:
        checkpoint_path(prefix, old).unlink(missing_ok=True)
    del run.saved[:-KEPT]


def resume(run: TrialRun) -> None:
    """Continue from the checkpoint that the database knows, or from one before it.

    Where none can be read, the run begins at the start.
    """
    known = run.start.resume
    try:
        path = newest_checkpoint(run.start.checkpoint, up_to=-1 if known is None else known)
        tensors, note = read_tensors(path)
        progress = _progress(note, run)
    except CheckpointError:
        run.resumed_from = 0
        return
    run.progress = progress
    run.state = _under("state/", tensors)
    run.best = _under("best/", tensors) or None
    run.resumed_from = run.allowed_step = run.reported = progress.epoch
    run.saved = [progress.epoch]


def _progress(note: Mapping[str, Any], run: TrialRun) -> TrialProgress:
    # The seed shows whether the file is this trial's at all.
    if note.get("format") != FORMAT or note.get("seed") != run.spec.seed:
        raise CheckpointError(
            f"the checkpoint is of format {note.get('format')!r} and seed {note.get('seed')!r}, "
            f"not of format {FORMAT} and seed {run.spec.seed}"
        )
    try:
        progress = TrialProgress(**note["progress"])
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"the checkpoint's progress cannot be read: {error}") from error
    if progress.best_watched is None and progress.best_values:  # written before there was a choice
        progress.best_watched = progress.best_values[0]
    return progress


def _under(prefix: str, tensors: Mapping[str, torch.Tensor]) -> LaneState:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
