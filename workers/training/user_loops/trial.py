"""What a training loop is given: its parameters, a place for checkpoints, and someone to tell.

The words go to the trainer as JSON lines; this module imports nothing that takes long, so that a
loop without torch starts at once.
"""

import contextlib
import math
import operator
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tuner_service.json_values import finite
from workers.protocol.user_loop import (
    AllowStep,
    LoopAlive,
    LoopCommand,
    LoopMessage,
    LoopReport,
    LoopSaved,
    StopLoop,
)
from workers.training.user_loops.report_log import LoggedReport, ReportLog

Say = Callable[[LoopMessage], None]

MAX_REPORTS = 100_000
MAX_METRICS = 1000


class DivergedError(BaseException):
    """The loop reported a value that is no finite number: its trial ends here.

    No `Exception`, so that a loop that catches those does not go on.
    """

    def __init__(self, value: float, step: int) -> None:
        self.step = step
        super().__init__(f"the objective became {value} at step {step}")


class Trial:
    """One trial, as a training loop sees it.

    Attributes:
        params: What the study chose and fixed, with the loop's own defaults for the rest.
        device: `cpu` or `cuda`, for `module.to(trial.device)`.
        seed: Torch, NumPy and `random` are seeded with it already.
        checkpoint_dir: An empty directory; after a pause or a lost worker, with what was put there.
    """

    def __init__(
        self,
        params: Mapping[str, Any],
        *,
        device: str,
        seed: int,
        checkpoint_dir: Path,
        waits_for_pruner: bool,
        report_log: ReportLog,
        reported: int | None,
        save: Callable[[Any], None],
        say: Say,
    ) -> None:
        self.params = MappingProxyType(dict(params))
        self.device = device
        self.seed = seed
        self.checkpoint_dir = checkpoint_dir
        self._waits_for_pruner = waits_for_pruner
        self._before = reported  # the last step that is known of an earlier process
        self._allowed_step = self._step = reported
        self._report_log = report_log
        self._unheard = _after(reported, report_log)  # said by that process, and perhaps lost
        self._save = save
        self._say = say
        self._pid = os.getpid()
        self._reports = 0
        self._metrics: dict[str, Any] = {}
        self._changed = threading.Condition()
        self._stopping = False
        self._seen = _fingerprint(checkpoint_dir)
        self.last_value: list[float] | None = None
        if self._unheard:
            self.last_value = self._unheard[-1].values

    @property
    def stopping(self) -> bool:
        """Whether the trial was asked to end."""
        return self._stopping

    @property
    def metrics(self) -> dict[str, Any]:
        """What was logged since the last report."""
        return dict(self._metrics)

    @property
    def step(self) -> int | None:
        """The last step that was reported."""
        return self._step

    def report(self, step: int, value: float | Sequence[float]) -> None:
        """Report the objective after a step; a step that was reported before is skipped.

        Args:
            step: A whole number that grows: the epoch, for most loops.
            value: The objective; with several objectives, all of them in their order.

        Raises:
            ValueError: The step or the value is none, or there are more than 100,000 reports.
        """
        self._refuse_forks()  # a fork's words would be taken for the trial's
        step = whole(step)
        values = numbers(value)
        bad = next((one for one in values if not math.isfinite(one)), None)
        if bad is not None:
            raise DivergedError(bad, step)
        self.last_value = values
        # A loop that continues from an older checkpoint of its own goes through steps again that an
        # earlier process has reported.
        if self._step is not None and step <= self._step:
            if self._before is None or step > self._before:
                raise ValueError(f"steps must grow, but got {step} after {self._step}")
            self._metrics = {}
            return
        self._reports += 1
        if self._reports > MAX_REPORTS:
            raise ValueError(f"a trial has at most {MAX_REPORTS:,} reports; report less often")
        record, self._metrics = self._metrics, {}
        self.repeat(before=step)
        entry = LoggedReport(step, values, record)
        # On disk before it is said: what a trainer does not live to hear is said again from it.
        self._report_log.append(entry)
        self._tell(entry)

    def repeat(self, *, before: int | None = None) -> None:
        """Say again what an earlier process reported before this step and may not be known."""
        unheard, self._unheard = self._unheard, []
        for entry in unheard:
            if before is None or entry.step < before:
                self._tell(entry)

    def _tell(self, entry: LoggedReport) -> None:
        self._step = entry.step
        self._say(
            LoopReport(
                step=entry.step,
                values=entry.values,
                record=entry.record,
                saved=self.has_saved(),
            )
        )

    def log_metrics(self, metrics: Mapping[str, Any] | None = None, /, **more: Any) -> None:
        """Log numbers of the present step; they are kept with the next report.

        What is logged after the last report is kept in the trial's record.
        """
        self._refuse_forks()
        for name, value in {**(metrics or {}), **more}.items():
            if len(self._metrics) >= MAX_METRICS and name not in self._metrics:
                raise ValueError(f"a step has at most {MAX_METRICS:,} metrics")
            self._metrics[str(name)] = plain(value)

    def should_prune(self) -> bool:
        """Return whether the loop should return now: pruned, paused, cancelled or out of time.

        Waits for the pruner's word on the last report. A loop that goes on all the same is killed
        after a grace time.
        """
        self._refuse_forks()
        self.note_saved()
        with self._changed:
            self._changed.wait_for(lambda: self._stopping or not self._is_waiting())
            return self._stopping

    def note_saved(self) -> None:
        """Say so if there is something new in the checkpoint directory."""
        if self.has_saved():
            self._say(LoopSaved())

    def alive(self) -> None:
        """Say that the trial goes on; a loop that says nothing for long is taken for hung."""
        self._say(LoopAlive())

    def save_model(self, model: Any) -> None:
        """Keep weights as the trial's model: a `torch.nn.Module`, or tensors by name.

        The last that was saved counts, if the trial is among the study's best (`keep_models`).
        """
        self._refuse_forks()
        self._save(model)

    def has_saved(self) -> bool:
        """Return whether there is something new in the directory since the last look."""
        before, self._seen = self._seen, _fingerprint(self.checkpoint_dir)
        return bool(self._seen) and self._seen != before

    def tell(self, command: LoopCommand) -> None:
        """Take a command of the trainer's; from any thread."""
        with self._changed:
            match command:
                case StopLoop():
                    self._stopping = True
                case AllowStep(step):
                    self._allowed_step = step
            self._changed.notify_all()

    def _is_waiting(self) -> bool:
        if not self._waits_for_pruner or self._step is None:
            return False
        return self._allowed_step is None or self._allowed_step < self._step

    def _refuse_forks(self) -> None:
        if os.getpid() != self._pid:
            raise RuntimeError("only the process that train was called in can use the trial")


def whole(step: Any) -> int:
    """Return a step as an int, also if NumPy or torch has it.

    Raises:
        ValueError: It is no whole number from 0.
    """
    try:
        found = _scalar(step)
        index = -1 if isinstance(found, bool) else operator.index(found)
    except (TypeError, ValueError):
        index = -1
    if index < 0:
        raise ValueError(f"a step must be a whole number from 0, but got {step!r}")
    return index


def numbers(value: Any) -> list[float]:
    """Return one objective or several as floats.

    Raises:
        ValueError: It is no number.
    """
    several = value.tolist() if hasattr(value, "tolist") else value
    if not isinstance(several, (list, tuple)):
        several = [several]
    try:
        return [float(_scalar(one)) for one in several]
    except (TypeError, ValueError) as error:
        kind = type(value).__name__
        raise ValueError(f"the objective must be a number, but got {value!r} ({kind})") from error


def plain(value: Any) -> bool | float | int | str | None:
    """Return a metric as JSON can hold it: a number or a text; no finite number becomes null.

    Raises:
        ValueError: It is neither.
    """
    if isinstance(value, str):
        return value[:1000]
    try:
        found = _scalar(value)
        if found is None or isinstance(found, (bool, int)):
            return found
        number = float(found)
    except (TypeError, ValueError) as error:
        raise ValueError(f"a metric must be a number or a text, but got {value!r}") from error
    return finite(number)  # type: ignore[no-any-return]


def _scalar(value: Any) -> Any:
    """Return the one element of an array, a tensor or a list of one; else the value itself."""
    found = value.tolist() if hasattr(value, "tolist") else value
    while isinstance(found, list) and len(found) == 1:
        found = found[0]
    return found


def _after(step: int | None, report_log: ReportLog) -> list[LoggedReport]:
    """Return the reports that came after what is known, the earliest first."""
    said = report_log.read()
    return [said[at] for at in sorted(said) if step is None or at > step]


def _fingerprint(directory: Path) -> tuple[Any, ...]:
    """Return what changes when a file does; cheap, as it is taken at every report."""
    found = []
    with contextlib.suppress(OSError):
        for path in sorted(directory.rglob("*"))[:1000]:
            with contextlib.suppress(OSError):
                stat = path.stat()
                found.append((str(path), stat.st_size, stat.st_mtime_ns))
    return tuple(found)
