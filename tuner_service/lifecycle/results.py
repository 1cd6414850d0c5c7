"""Ending trials: the rows of a result, or of a failure, in Optuna's tables and in ours.

What is written here is final. Only RUNNING trials are ended; those that have ended already, by
whomever, stay as they are, and their ids are not among those returned.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

from optuna.trial import TrialState
from sqlalchemy import Connection, select

from tuner_service.lifecycle.messages import Finish
from tuner_service.lifecycle.storable_text import fit_or_none, storable_failure
from tuner_service.reads.views import Failure
from tuner_service.storage import optuna_rows
from tuner_service.storage.bulk import update_rows
from tuner_service.storage.schema import studies, trials

INFEASIBLE: Final = ("diverged", "out_of_memory")
NOTE_CHARACTERS: Final = 2045  # what one attribute of the dashboard's notes holds


@dataclass(frozen=True, slots=True)
class Result:
    """How one trial ends: COMPLETE or PRUNED with what came of it, or FAIL with why."""

    trial_id: int
    state: Literal["COMPLETE", "PRUNED", "FAIL"]
    values: tuple[float, ...] | None = None
    failure: Failure | None = None
    record: Mapping[str, Any] = field(default_factory=dict)
    backend: str | None = None
    backend_reason: str | None = None
    group: str | None = None
    model_path: str | None = None


def result_of(finish: Finish) -> Result:
    """Return what a `Finish` writes.

    A result is finite. A COMPLETE trial whose values are not has diverged: it is written as that,
    so that the sampler learns from it.
    """
    state, values, failure = finish.state, finish.values, finish.failure
    if values is not None and not all(math.isfinite(value) for value in values):
        if state == "COMPLETE":
            message = f"the final values must be finite numbers, but got {list(values)}"
            state, failure = "PRUNED", Failure(kind="diverged", message=message)
        values = None
    return Result(
        trial_id=finish.trial_id,
        state=state,
        values=values,
        failure=failure,
        record=finish.record,
        backend=finish.backend,
        backend_reason=finish.backend_reason,
        group=finish.group,
        model_path=finish.model_path,
    )


def write_results(
    connection: Connection, results: Sequence[Result], *, now: float
) -> dict[int, Result]:
    """End RUNNING trials, in a few statements however many they are.

    Returns:
        By trial id, the results that were written, with the values that stand.
    """
    written: dict[int, Result] = {}
    for state in (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL):
        mine = {r.trial_id: r for r in results if r.state == state.name}
        ended = optuna_rows.finish_trials(connection, list(mine), state, now=now)
        written |= {trial_id: mine[trial_id] for trial_id in mine if trial_id in ended}
    if not written:
        return {}
    written = _with_last_values(connection, written)
    optuna_rows.set_values(connection, [(i, r.values) for i, r in written.items() if r.values])
    rows = [_row(result, now) for result in written.values()]
    update_rows(connection, trials, rows, match=("trial_id",))
    _show(connection, list(written.values()))
    return written


def _with_last_values(connection: Connection, results: dict[int, Result]) -> dict[int, Result]:
    """Give a pruned trial the last finite value that it reported, as Optuna's `tell` does."""
    wanted = [i for i, r in results.items() if r.state == "PRUNED" and r.values is None]
    last = optuna_rows.last_finite_values(connection, wanted)
    return {
        i: replace(result, values=(last[i],)) if i in last else result
        for i, result in results.items()
    }


def _row(result: Result, now: float) -> dict[str, Any]:
    failure = None if result.failure is None else storable_failure(result.failure)
    step = {} if failure is None or failure.step is None else {"failure_step": failure.step}
    return {
        "trial_id": result.trial_id,
        "state": result.state,
        "value": result.values[0] if result.values else None,
        "finished_at": now,
        "failure_kind": failure.kind if failure else None,
        "failure_message": failure.message if failure else None,
        "failure_traceback": failure.traceback if failure else None,
        "record": {**result.record, **step},
        "backend": result.backend,
        "backend_reason": fit_or_none(result.backend_reason),
        "group_key": result.group,
        "model_path": result.model_path,
    }


# -- what plain Optuna and its dashboard show ---------------------------------------------------


def _show(connection: Connection, results: Sequence[Result]) -> None:
    failed = [(r.trial_id, storable_failure(r.failure)) for r in results if r.failure is not None]
    attrs = [item for trial_id, failure in failed for item in _failure_attrs(trial_id, failure)]
    attrs += [(r.trial_id, "backend", r.backend) for r in results if r.backend is not None]
    optuna_rows.set_attrs(connection, optuna_rows.USER_ATTRS, attrs)
    infeasible = [
        (r.trial_id, optuna_rows.CONSTRAINT_PREFIX + r.failure.kind, 1.0)
        for r in results
        if r.state == "PRUNED" and r.failure is not None and r.failure.kind in INFEASIBLE
    ]
    optuna_rows.set_attrs(connection, optuna_rows.SYSTEM_ATTRS, infeasible)
    _write_notes(connection, failed)


def _failure_attrs(trial_id: int, failure: Failure) -> list[tuple[int, str, Any]]:
    attrs: list[tuple[int, str, Any]] = [
        (trial_id, "failure", failure.kind),
        (trial_id, "failure_message", failure.message),
    ]
    if failure.step is not None:
        attrs.append((trial_id, "failure_step", failure.step))
    return attrs


def _write_notes(connection: Connection, failed: Sequence[tuple[int, Failure]]) -> None:
    if not failed:
        return
    found = connection.execute(
        select(trials.c.trial_id, studies.c.optuna_study_id)
        .join(studies, studies.c.id == trials.c.study_id)
        .where(trials.c.trial_id.in_([trial_id for trial_id, _ in failed]))
    )
    study_of = {trial_id: study_id for trial_id, study_id in found}
    optuna_rows.set_notes(
        connection,
        [(study_of[trial_id], trial_id, _note(failure)) for trial_id, failure in failed],
    )


def _note(failure: Failure) -> str:
    where = "" if failure.step is None else f" at step {failure.step}"
    note = f"**{failure.kind}**{where}: {failure.message}"
    room = NOTE_CHARACTERS - len(note) - len("\n\n```\n\n```")
    if failure.traceback is None or room < 100:
        return note[:NOTE_CHARACTERS]
    return f"{note}\n\n```\n{failure.traceback[-room:]}\n```"
