"""Cross-validation: a trial of k folds is k runs of the engine that speak as one.

Each run trains on all folds but one and validates on that one. The runs are on board together, in
groups by fold, so that the first folds of several trials still train as one step. To the outside
there is the trial alone: it reports an epoch when every fold has trained it, with the mean over the
folds; it has finished when the last fold has; it has failed when the first has, which stops the
others. Its result is the mean of the folds' results, and their spread stands in the record.
"""

import copy
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tuner_service.definition.trial_spec import TrialSpec
from workers.protocol.messages import (
    Checkpointed,
    Event,
    Failed,
    Finished,
    Reported,
    RunEnd,
    RunId,
    Started,
    Stopped,
    TrialStart,
)
from workers.training.trials.best_models import EVERY
from workers.training.trials.runs import Direction

Record = Mapping[str, Any]
Ranks = Callable[[TrialStart, float, Direction], bool]

_SUMS = ("seconds",)
_PARTLY_DEFINED = tuple(  # null where a fold has none
    f"{part}_{name}" for part in ("val", "test") for name in ("auroc", "average_precision", "r2")
)
_MOST = ("parameter_count", "epochs_run", "peak_memory_bytes", "resumed_from")


@dataclass(slots=True)
class _FoldedTrial:
    """One trial and what its folds have said so far.

    Attributes:
        members: The runs' keys, by fold.
        reports: Each run's reports, by epoch.
        ended: Each run's last event.
        saved: The step of each run's last checkpoint.
        told: The last epoch that the trial has reported.
    """

    start: TrialStart
    keys: list[str]
    members: list[RunId]
    reports: dict[RunId, dict[int, Reported]] = field(default_factory=dict)
    ended: dict[RunId, RunEnd] = field(default_factory=dict)
    saved: dict[RunId, int] = field(default_factory=dict)
    saved_told: int = -1
    told: int = 0
    started: bool = False
    failed: bool = False


class Folds:
    """Splits trials of several folds into runs, and joins what the runs say.

    Args:
        ranks: Whether an objective is among its study's best: the study, the value, the direction
            and how many are kept.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._trials: dict[RunId, _FoldedTrial] = {}
        self._owners: dict[RunId, _FoldedTrial] = {}  # by run
        self._next = -1  # runs count down; the supervisor's keys are not negative

    def split(self, start: TrialStart) -> list[TrialStart]:
        """Return the runs of a trial: one per fold, or the trial itself."""
        try:
            spec = TrialSpec.model_validate(start.spec)
        except ValidationError:  # which is found again, and told, where the trial is taken on
            return [start]
        split = spec.dataset.split
        if split.folds is None or split.fold is not None:
            return [start]
        runs = [self._run(start, fold) for fold in range(split.runs)]
        trial = _FoldedTrial(
            start, [key for key, _ in spec.objective], [run.run for run in runs],
            told=start.resume or 0,
        )  # fmt: skip
        self._trials[start.run] = trial
        self._owners |= dict.fromkeys(trial.members, trial)
        return runs

    def _run(self, start: TrialStart, fold: int) -> TrialStart:
        spec = copy.deepcopy(start.spec)
        spec["dataset"]["split"]["fold"] = fold
        run, self._next = RunId(self._next), self._next - 1  # negative: no supervisor's id is
        kept = start.model is not None and start.keep_models > 0
        return replace(
            start,
            run=run,
            spec=spec,
            checkpoint=f"{start.checkpoint}.fold{fold}",
            # Whether the trial is among the best, and by which fold it is told, shows at its end.
            model=f"{start.model}.fold{fold}" if kept else None,
            keep_models=EVERY if kept else 0,
        )

    def runs_of(self, run: RunId) -> Sequence[RunId]:
        """Return the engine's runs of the supervisor's: one per fold, or itself."""
        return self._trials[run].members if run in self._trials else [run]

    def trial_of(self, run: RunId) -> RunId:
        """Return the supervisor's run that one of the engine's belongs to."""
        return self._owners[run].start.run if run in self._owners else run

    def join(self, events: Iterable[Event]) -> tuple[list[Event], list[RunId]]:
        """Return what the trials say, and the runs to stop since another fold failed."""
        joined: list[Event] = []
        stops: list[RunId] = []
        for event in events:
            trial = self._owners.get(event.run)
            if trial is None:
                joined.append(event)
                continue
            for one in self._heard(trial, event):
                joined.append(replace(one, run=trial.start.run))
                if isinstance(one, Failed):
                    stops += [run for run in trial.members if run not in trial.ended]
            if len(trial.ended) == len(trial.members):
                _drop_models(trial)
                self._forget(trial)
        return joined, stops

    def _forget(self, trial: _FoldedTrial) -> None:
        del self._trials[trial.start.run]
        for run in trial.members:
            del self._owners[run]

    def _heard(self, trial: _FoldedTrial, event: Event) -> list[Event]:
        if isinstance(event, RunEnd):
            trial.ended[event.run] = event
        if trial.failed:
            return []
        match event:
            case Failed():
                trial.failed = True
                return [event]
            case Started() if not trial.started:
                trial.started = True
                return [event]
            case Checkpointed(run=run, step=step):
                trial.saved[run] = step
                return _checkpoint(trial, event)
            case Reported(run=run, step=step):
                trial.reports.setdefault(run, {})[step] = event
        told: list[Event] = [*_reports(trial)]
        if len(trial.ended) == len(trial.members):
            told.append(self._end(trial))
        return told

    def _end(self, trial: _FoldedTrial) -> Event:
        """Return the end of a trial whose folds have all ended, and none of them by failing."""
        ends = [trial.ended[run] for run in trial.members]
        last = [event for event in ends if isinstance(event, Finished | Stopped)]
        record = _final_record(last, trial.keys)
        values = [event.values for event in last if event.values]
        means: list[float] = []
        if len(values) == len(last):
            means = [statistics.fmean(column) for column in zip(*values, strict=True)]
        # Stopped: what all folds have reached. Finished: early stopping ends each at its own.
        steps = [event.step for event in last if event.step is not None]
        stopped = next((event for event in last if isinstance(event, Stopped)), None)
        if stopped is not None:
            step = min(steps) if len(steps) == len(last) else None
            reached = means or None
            return replace(stopped, record=record, values=reached, step=step, model=None)
        finished = [event for event in last if isinstance(event, Finished)]
        fold = self._representative(trial, finished, means[0])
        return replace(
            finished[0],
            record={**record, "model_fold": fold},
            values=means,
            step=max(steps, default=None),
            model=None if fold is None else trial.start.model,
        )

    def _representative(
        self, trial: _FoldedTrial, last: Sequence[Finished], value: float
    ) -> int | None:
        """Keep one fold's weights as the trial's if it is among the best; return which.

        The fold whose result is nearest to the mean: the best fold's would be chosen by the luck
        of its rows, and do worse than the trial says.
        """
        start = trial.start
        direction = start.spec["objective"][0][1]
        kept = {fold: path for fold, event in enumerate(last) if (path := event.model)}
        if not kept or not self._ranks(start, value, direction):
            return None
        nearest = min(kept, key=lambda fold: abs(last[fold].values[0] - value))
        Path(kept[nearest]).replace(str(start.model))
        return nearest


def _drop_models(trial: _FoldedTrial) -> None:
    for event in trial.ended.values():
        if isinstance(event, Finished | Stopped) and event.model is not None:
            Path(event.model).unlink(missing_ok=True)


def _checkpoint(trial: _FoldedTrial, event: Checkpointed) -> list[Event]:
    """Return that the trial is saved up to the step that all its folds are, if that moved."""
    if len(trial.saved) < len(trial.members):
        return []
    # Of the fold that is furthest behind, and no further than the supervisor has heard.
    step = min(*trial.saved.values(), trial.told)
    if step <= trial.saved_told:
        return []
    trial.saved_told = step
    return [replace(event, step=step)]


def _reports(trial: _FoldedTrial) -> list[Reported]:
    """Return the epochs that every fold has trained by now; one that finished stays at its last."""
    told: list[Reported] = []
    while True:
        step = trial.told + 1
        events = [_at(trial, run, step) for run in trial.members]
        present = [event for event in events if event is not None]
        if len(present) < len(events) or all(event.step < step for event in present):
            return told
        trial.told = step
        record = _epoch_record(step, [event.record for event in present], trial.keys)
        value = _mean([event.value for event in present])
        told.append(replace(present[0], step=step, record=record, value=value))
        for reports in trial.reports.values():
            for old in sorted(reports)[:-1]:  # the last one stands for a run that has ended
                if old < step:
                    del reports[old]


def _at(trial: _FoldedTrial, run: RunId, step: int) -> Reported | None:
    reports = trial.reports.get(run, {})
    ended = trial.ended.get(run)
    if step in reports or not isinstance(ended, Finished):
        return reports.get(step)
    if reports:
        return reports[max(reports)]
    if not ended.values:
        return None
    # It came in with nothing left to train.
    record = dict(zip(trial.keys, ended.values, strict=True))
    return Reported(run=run, step=0, value=ended.values[0], record=record)


def _epoch_record(step: int, records: Sequence[Record], keys: Sequence[str]) -> dict[str, Any]:
    joined: dict[str, Any] = {name: _joined(name, records) for name in records[0]}
    for key in keys:
        spread = _spread([record.get(key) for record in records])
        if spread is not None:
            joined[f"{key}_std"] = spread
    return {**joined, "step": step}


def _final_record(events: Sequence[Finished | Stopped], keys: Sequence[str]) -> dict[str, Any]:
    records = [event.record for event in events]
    names = dict.fromkeys(name for record in records for name in record)
    joined = {name: _joined(name, records) for name in names if name != "best_step"}
    values: list[Sequence[float | None]] = [event.values or [None] * len(keys) for event in events]
    by_key = {key: [row[at] for row in values] for at, key in enumerate(keys)}
    best = [step for record in records if (step := record.get("best_step")) is not None]
    joined["best_step"] = round(statistics.fmean(best)) if best else None
    joined["folds"] = by_key
    joined["fold_std"] = {key: _spread(column) for key, column in by_key.items()}
    return joined


def _joined(name: str, records: Sequence[Record]) -> Any:
    """Return sums of times, the most of sizes, means of other numbers, and else the first."""
    values = [record.get(name) for record in records]
    present = [v for v in values if isinstance(v, (int, float)) and not isinstance(v, bool)]
    if name in ("val_confusion", "test_confusion"):
        return _total(values)
    if name == "seed" or not present:
        return values[0]
    if name in _SUMS:
        return sum(present)
    if name in _MOST:
        return max(present)
    return _mean(present if name in _PARTLY_DEFINED else values)


def _total(matrices: Sequence[Any]) -> list[list[int]] | None:
    """Return the sum of confusion matrices, which are of one size."""
    if any(matrix is None for matrix in matrices):
        return None
    rows = zip(*matrices, strict=True)
    return [[sum(cells) for cells in zip(*row, strict=True)] for row in rows]


def _mean(values: Sequence[Any]) -> float | None:
    return None if any(value is None for value in values) else statistics.fmean(values)


def _spread(values: Sequence[Any]) -> float | None:
    """Return the sample standard deviation (n - 1)."""
    numbers = [float(value) for value in values if value is not None]
    return statistics.stdev(numbers) if len(numbers) == len(values) else None
