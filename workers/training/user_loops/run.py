"""One loop trial on board: what it said, and what its end means."""

import math
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import torch

from tuner_service.definition.trial_spec import UserLoopSpec
from tuner_service.files import private_folder
from tuner_service.processes import how_it_ended
from workers.protocol.messages import (
    Failed,
    Finished,
    RunFailure,
    RunId,
    StopMode,
    Stopped,
    TrialStart,
)
from workers.protocol.user_loop import LoopEnd, LoopFailed, LoopFinished, LoopPruned, LoopStopped
from workers.training.trials.records import device_name, versions
from workers.training.user_loops.process import UserLoopProcess
from workers.training.user_loops.report_log import ReportLog

BACKEND_REASON = "a training loop of the operator's own runs in its own process"


@dataclass(slots=True, eq=False)
class UserLoopRun:
    """A loop trial with its process.

    Attributes:
        reported: The last step that was reported, by whichever process.
        values: The objectives of that step.
        saved_step: The step up to which `checkpoint_dir` is taken to go; None while it is empty.
        heard_at: When it last said something.
        stop: How it was asked to stop, and when; it is killed some time after.
        ending: Its last message.
        killed: Why it was killed, if that was for what it did.
    """

    start: TrialStart
    spec: UserLoopSpec
    process: UserLoopProcess
    begun_at: float
    heard_at: float
    reported: int | None = None
    values: list[float] | None = None
    saved_step: int | None = None
    stop: StopMode | None = None
    stop_at: float = math.inf
    ending: LoopEnd | None = None
    killed: RunFailure | None = None
    source_hash: str | None = None
    peak_bytes: int = 0
    reported_at: float = 0.0
    device: str = "cpu"

    @property
    def id(self) -> RunId:
        """The run's id."""
        return self.start.run

    def record(self) -> dict[str, Any]:
        """Return what is recorded of the trial, beside what the loop logged at its end."""
        return {
            "seconds": time.monotonic() - self.begun_at,
            "steps_run": self.reported,
            "peak_memory_bytes": self.peak_bytes or None,
            "seed": self.spec.seed,
            "source_hash": self.source_hash,
            "device": device_name(torch.device(self.device)),
            "versions": versions(),
        }

    def saved(self) -> int:
        """Take note of a checkpoint; return its step."""
        self.saved_step = self.reported if self.reported is not None else 0
        return self.saved_step


def checkpoint_dir(start: TrialStart) -> Path:
    """Return the directory that is the loop's own."""
    return Path(start.checkpoint + ".loop")


def prepare(start: TrialStart) -> tuple[int | None, list[float] | None]:
    """Make the trial's directory ready; return the step and values that were reported before.

    Without a checkpoint to continue from it is emptied: what lies there is of another attempt.
    """
    directory, log = checkpoint_dir(start), report_log_path(start)
    known = start.resume
    if known is None:
        shutil.rmtree(directory, ignore_errors=True)
        log.unlink(missing_ok=True)
    private_folder(directory)
    if known is None:
        return None, None
    # What the database knows no report of is said again, by the loop or from its log.
    said = [entry for step, entry in sorted(ReportLog(log).read().items()) if step <= known]
    return (said[-1].step, said[-1].values) if said else (None, None)


def outcome(
    run: UserLoopRun, code: int, keep: Callable[[UserLoopRun], str | None]
) -> Finished | Stopped | Failed:
    """Return the event of a trial whose process has ended.

    Args:
        code: The process's exit code.
        keep: Keeps the model that the loop saved, if it is among the best.
    """
    said = run.ending
    if isinstance(said, LoopStopped) and said.saved:
        run.saved()
    logged = {} if said is None else said.record
    how = _How(record={**logged, **run.record()}, backend="plain", backend_reason=BACKEND_REASON)
    if run.killed is not None:
        return _failed(run, run.killed, how)
    if run.stop is not None and not isinstance(said, LoopFinished):
        return _stopped(run, run.stop, how)
    match said:
        case LoopFinished(values):
            run.values = values
            return Finished(run=run.id, values=values, model=keep(run), **how)
        case LoopPruned():  # by the loop itself
            return _stopped(run, "prune", how)
        case LoopFailed():
            return _failed(run, RunFailure(said.kind, said.message, said.step, said.traceback), how)
    # It said nothing: ended with the fork server, or by itself.
    if run.process.orphaned:
        return _failed(run, _orphaned(run), how, sole_suspect=None)
    return _failed(run, _silent(run, code), how)


class _How(TypedDict):
    """What is said of every loop trial that ends."""

    record: dict[str, Any]
    backend: str
    backend_reason: str


def _stopped(run: UserLoopRun, mode: StopMode, how: _How) -> Stopped:
    step = run.saved_step if run.stop == "checkpoint" else run.reported
    return Stopped(run=run.id, mode=mode, step=step, values=run.values, **how)


def _failed(
    run: UserLoopRun, failure: RunFailure, how: _How, *, sole_suspect: bool | None = True
) -> Failed:
    return Failed(run=run.id, failure=failure, sole_suspect=sole_suspect, **how)


def _orphaned(run: UserLoopRun) -> RunFailure:
    said = "The process that the training loop was forked off has ended, and the loop with it."
    return RunFailure("worker_lost", said, run.reported)


def _silent(run: UserLoopRun, code: int) -> RunFailure:
    """Return the failure of a process that ended without a last word."""
    how = how_it_ended(code)
    if code == -signal.SIGKILL:
        how += ", as the system does when memory runs out"
    return RunFailure("user_code", f"The training loop's process {how}.", run.reported)


def report_log_path(start: TrialStart) -> Path:
    """Return the file of what the loop has reported."""
    return Path(start.checkpoint + ".loop.jsonl")
