"""From a trainer's event to what the database shall be told: pure functions, no state."""

import math
from typing import Any, get_args

from tuner_service.lifecycle.messages import Fail, Finish, HandBack, Report
from tuner_service.reads.views import Failure, FailureKind
from workers.protocol.messages import Event
from workers.supervisor.held_runs import LeasedTrial
from workers.supervisor.outbox import Outcome

_KINDS = get_args(FailureKind)


def report_of(run: LeasedTrial, event: Event) -> Report:
    """Return one epoch's report; a value that is no number is recorded without one."""
    value = event.get("value")
    return Report(
        run.lease,
        run.trial,
        step=event["step"],
        value=float(value) if value is not None and math.isfinite(value) else None,
        record=event.get("record", {}),
    )


def finished(run: LeasedTrial, event: Event, *, model: str | None) -> Finish:
    """Return the end of a trial that ran through; a NaN among its values means it diverged."""
    values = tuple(float(v) for v in event.get("values", ()))
    if values and all(math.isfinite(v) for v in values):
        return _finish(run, event, "COMPLETE", values=values, model=model)
    failure = Failure(
        kind="diverged",
        message=f"The final value must be a finite number, but got {list(values)}",
        step=run.last_step,
    )
    return _finish(run, event, "PRUNED", failure=failure)


def stopped(run: LeasedTrial, event: Event) -> Outcome:
    """Return the end of a trial that was asked to stop."""
    match event.get("mode"):
        case "prune":
            return _finish(run, event, "PRUNED", values=_values(event))
        case "timeout":
            return timed_out(run, event)
        case "checkpoint":
            return HandBack(run.lease, event.get("step", run.checkpoint_step))
        case _:
            return cancelled(run)


def cancelled(run: LeasedTrial) -> Fail:
    """Return the end of a trial whose study was cancelled."""
    failure = Failure(kind="cancelled", message="The study was cancelled.", step=run.last_step)
    return Fail(run.lease, run.trial_id, failure, blamed=False, retry=False)


def timed_out(run: LeasedTrial, event: Event) -> Outcome:
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
    return _finish(run, event, "PRUNED", values=_values(event), failure=failure)


def failed(run: LeasedTrial, event: Event, *, alone: bool) -> Outcome:
    """Return the end of a trial that failed by itself.

    Args:
        run: The trial's run.
        event: The trainer's `failed` event.
        alone: Whether no other trial was on board; only then does memory that ran out, or a
            process that was lost, say something about this trial.
    """
    failure = failure_of(event)
    nothing_trains = event.get("failure", {}).get("nothing_trains")
    infeasible = failure.kind == "diverged" or (failure.kind == "out_of_memory" and alone)
    if infeasible and nothing_trains is None:
        return _finish(run, event, "PRUNED", failure=failure)
    shared = failure.kind == "out_of_memory" or (failure.kind == "worker_lost" and not alone)
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


def failure_of(event: Event) -> Failure:
    """Return the trainer's failure as the lifecycle knows it."""
    said: dict[str, Any] = event.get("failure", {})
    kind = said.get("kind")
    return Failure(
        kind=kind if kind in _KINDS else "user_code",
        message=str(said.get("message", "The trial failed without a message.")),
        step=said.get("step"),
        traceback=said.get("traceback"),
    )


def _values(event: Event) -> tuple[float, ...] | None:
    values = tuple(float(v) for v in event.get("values") or ())
    return values if values and all(math.isfinite(v) for v in values) else None


def _finish(
    run: LeasedTrial,
    event: Event,
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
        record=event.get("record", {}),
        failure=failure,
        backend=event.get("backend"),
        backend_reason=event.get("backend_reason"),
        group=event.get("group"),
        model_path=model,
    )
