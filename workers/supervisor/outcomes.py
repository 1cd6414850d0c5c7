"""From a trainer's event to what the database shall be told: pure functions, no state."""

import math
import traceback
from collections.abc import Sequence
from typing import Any

from tuner_service.lifecycle.messages import Fail, Finish, HandBack, Report
from tuner_service.reads.views import Failure
from workers.protocol.messages import Failed, Finished, Reported, RunEnd, RunFailure, Stopped
from workers.supervisor.held_runs import LeasedTrial
from workers.supervisor.outbox import Outcome


def report_of(run: LeasedTrial, event: Reported) -> Report:
    """Return one epoch's report; a value that is no number is recorded without one."""
    value = event.value
    return Report(
        run.lease,
        run.trial,
        step=event.step,
        value=value if value is not None and math.isfinite(value) else None,
        record=event.record,
    )


def finished(run: LeasedTrial, event: Finished, *, model: str | None) -> Finish:
    """Return the end of a trial that ran through; a NaN among its values means it diverged."""
    values = _finite(event.values)
    if values is not None:
        return _finish(run, event, "COMPLETE", values=values, model=model)
    failure = Failure(
        kind="diverged",
        message=f"The final value must be a finite number, but got {event.values}",
        step=run.last_step,
    )
    return _finish(run, event, "PRUNED", failure=failure)


def stopped(run: LeasedTrial, event: Stopped, *, model: str | None = None) -> Outcome:
    """Return the end of a trial that was asked to stop."""
    match event.mode:
        case "prune":
            return _finish(run, event, "PRUNED", values=_finite(event.values))
        case "timeout":
            return timed_out(run, event, model=model)
        case "checkpoint":
            return HandBack(run.lease, run.checkpoint_step if event.step is None else event.step)
        case "cancel":
            return cancelled(run)


def cancelled(run: LeasedTrial) -> Fail:
    """Return the end of a trial whose study was cancelled."""
    failure = Failure(kind="cancelled", message="The study was cancelled.", step=run.last_step)
    return Fail(run.lease, run.trial_id, failure, blamed=False, retry=False)


def timed_out(run: LeasedTrial, event: Stopped, *, model: str | None) -> Outcome:
    """Return the end of a trial whose time, or whose study's time, is over.

    What it reported stands, as PRUNED; one that reported nothing has no result to keep.
    """
    limit = run.study.trial_timeout
    over = "its trial_timeout" if run.out_of_time else "the study's timeout"
    failure = Failure(
        kind="timeout",
        message=f"Stopped at {over}" + (f" of {limit:g} s." if run.out_of_time else "."),
        step=run.last_step,
    )
    if run.out_of_time and run.last_step is None:
        return Fail(run.lease, run.trial, failure, blamed=True, retry=False)
    values = _finite(event.values)
    return _finish(run, event, "PRUNED", values=values, failure=failure, model=model)


def failed(run: LeasedTrial, event: Failed, *, sole_suspect: bool) -> Outcome:
    """Return the end of a trial that failed by itself.

    Args:
        run: The trial's run.
        event: What the trainer said of it.
        sole_suspect: Whether no other trial can be the cause; only then does memory that ran out,
            or a process that was lost, say something about this trial.
    """
    failure = failure_of(event.failure)
    nothing_trains = event.failure.nothing_trains
    infeasible = failure.kind == "diverged" or (failure.kind == "out_of_memory" and sole_suspect)
    if infeasible and nothing_trains is None:
        return _finish(run, event, "PRUNED", failure=failure)
    shared = failure.kind == "out_of_memory" or (failure.kind == "worker_lost" and not sole_suspect)
    return Fail(
        run.lease,
        run.trial,
        failure,
        blamed=not shared,
        shared_death=shared,
        retry=failure.kind != "data",
        checkpoint_step=run.checkpoint_step,
        nothing_trains=nothing_trains,
    )


def unsearchable(run: LeasedTrial, what: str, error: Exception) -> Fail:
    """Return the end of a trial at which the study's own sampler or pruner has failed."""
    failure = Failure(
        kind="user_code",
        message=f"{what}: {error}",
        step=run.last_step,
        traceback="".join(traceback.format_exception(error)),
    )
    return Fail(run.lease, run.trial_id, failure, blamed=True, retry=False)


def failure_of(said: RunFailure) -> Failure:
    """Return the trainer's failure as the lifecycle knows it."""
    return Failure(kind=said.kind, message=said.message, step=said.step, traceback=said.traceback)


def _finite(values: Sequence[float] | None) -> tuple[float, ...] | None:
    """Return the values; None if there are none, or any is no finite number."""
    return tuple(values) if values and all(math.isfinite(v) for v in values) else None


def _finish(
    run: LeasedTrial,
    event: RunEnd,
    state: Any,
    *,
    values: tuple[float, ...] | None = None,
    failure: Failure | None = None,
    model: str | None = None,
) -> Finish:
    return Finish(
        run.lease,
        run.trial,
        state,
        values,
        record=event.record,
        failure=failure,
        backend=event.backend,
        backend_reason=event.backend_reason,
        group=event.group,
        model_path=model,
    )
