"""One loop trial on board: what it said, and what its end means."""

import math
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tuner_service.definition.trial_spec import UserLoopSpec
from tuner_service.processes import how_it_ended
from workers.protocol.messages import Event, StopMode, TrialStart
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
        ending: Its last words.
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
    ending: dict[str, Any] | None = None
    killed: dict[str, Any] | None = None
    source_hash: str | None = None
    peak_bytes: int = 0
    reported_at: float = 0.0
    device: str = "cpu"

    @property
    def trial(self) -> int:
        """The supervisor's key."""
        return self.start["trial"]

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
    return Path(start["checkpoint"] + ".loop")


def prepare(start: TrialStart) -> tuple[int | None, list[float] | None]:
    """Make the trial's directory ready; return the step and values that were reported before.

    Without a checkpoint to continue from it is emptied: what lies there is of another attempt.
    """
    directory, log = checkpoint_dir(start), report_log_path(start)
    known = start["resume"]
    if known is None:
        shutil.rmtree(directory, ignore_errors=True)
        log.unlink(missing_ok=True)
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if known is None:
        return None, None
    # What the database knows no report of is said again, by the loop or from its log.
    said = [entry for step, entry in sorted(ReportLog(log).read().items()) if step <= known]
    return (said[-1].step, said[-1].values) if said else (None, None)


def outcome(run: UserLoopRun, code: int, keep: Callable[[UserLoopRun], str | None]) -> Event:
    """Return the event of a trial whose process has ended.

    Args:
        code: The process's exit code.
        keep: Keeps the model that the loop saved, if it is among the best.
    """
    said = run.ending or {}
    if said.get("saved"):
        run.saved()
    record = {**said.get("record", {}), **run.record()}
    where = {"backend": "plain", "backend_reason": BACKEND_REASON, "record": record}
    if run.killed is not None:
        return _event(run, "failed", failure=run.killed, alone=True, **where)
    if run.stop is not None and said.get("type") != "finished":
        return _stopped(run, where)
    match said.get("type"):
        case "finished":
            run.values = said["values"]
            return _event(run, "finished", values=said["values"], model=keep(run), **where)
        case "pruned":  # by the loop itself
            return _stopped(run, where, mode="prune")
        case "failed":
            parts = ("kind", "message", "step", "traceback")
            failure = {name: said.get(name) for name in parts}
            return _event(run, "failed", failure=failure, alone=True, **where)
    # It said nothing: ended with the fork server, or by itself.
    if run.process.orphaned:
        return _event(run, "failed", failure=_orphaned(run), **where)
    return _event(run, "failed", failure=_silent(run, code), alone=True, **where)


def _stopped(run: UserLoopRun, where: dict[str, Any], *, mode: StopMode | None = None) -> Event:
    more: dict[str, Any] = {"mode": mode or run.stop}
    step = run.saved_step if run.stop == "checkpoint" else run.reported
    if step is not None:
        more["step"] = step
    if run.values is not None:
        more["values"] = run.values
    return _event(run, "stopped", **more, **where)


def _orphaned(run: UserLoopRun) -> dict[str, Any]:
    said = "The process that the training loop was forked off has ended, and the loop with it."
    return failure("worker_lost", said, run.reported)


def _silent(run: UserLoopRun, code: int) -> dict[str, Any]:
    """Return the failure of a process that ended without a last word."""
    how = how_it_ended(code)
    if code == -signal.SIGKILL:
        how += ", as the system does when memory runs out"
    return failure("user_code", f"The training loop's process {how}.", run.reported)


def failure(kind: str, message: str, step: int | None) -> dict[str, Any]:
    """Return the `failure` of an event."""
    return {"kind": kind, "message": message, "step": step, "traceback": None}


def _event(run: UserLoopRun, kind: str, **more: Any) -> Event:
    return {"kind": kind, "trial": run.trial, **more}  # type: ignore[typeddict-item]


def report_log_path(start: TrialStart) -> Path:
    """Return the file of what the loop has reported."""
    return Path(start["checkpoint"] + ".loop.jsonl")
