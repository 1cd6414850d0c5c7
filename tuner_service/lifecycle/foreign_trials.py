"""Trials that another Optuna program ended under our hands, by `study.tell` for instance.

A finished Optuna trial is immutable, so its slot follows it: done with a COMPLETE or PRUNED one,
failed with a FAIL. Whoever leases the slot learns that the lease is lost.
"""

from collections.abc import Mapping, Sequence
from typing import Final

from optuna.trial import TrialState
from sqlalchemy import Connection, select

from tuner_service.lifecycle.best import keep_best
from tuner_service.lifecycle.counters import CounterChanges
from tuner_service.lifecycle.results import Result
from tuner_service.storage import optuna_rows
from tuner_service.storage.bulk import update_rows
from tuner_service.storage.postgres import Row
from tuner_service.storage.schema import slots, studies, trials

_MESSAGE: Final = "another Optuna program ended the trial as FAIL"
_SLOT_STATE: Final = {"COMPLETE": "done", "PRUNED": "done", "FAIL": "failed"}
ENDED: Final = frozenset(_SLOT_STATE)


def ended_outside(connection: Connection, held: Sequence[Row]) -> list[Row]:
    """Return those leased or open slots whose trial is not RUNNING any more; lock the trials."""
    ids = [row["trial_id"] for row in held if row["trial_id"] is not None]
    states = optuna_rows.lock_trials(connection, ids)
    ended = {trial_id for trial_id, state in states.items() if state.is_finished()}
    return [row for row in held if row["trial_id"] in ended]


def without(rows: Sequence[Row], others: Sequence[Row]) -> list[Row]:
    """Return the slots that are not among the others."""
    ids = {row["id"] for row in others}
    return [row for row in rows if row["id"] not in ids]


def adopt(
    connection: Connection, ended: Sequence[Row], *, tally: CounterChanges, now: float
) -> None:
    """Move slots whose trial has ended in Optuna's tables to where the trial is.

    Args:
        ended: Rows of slots, leased or open, of locked studies.
    """
    if not ended:
        return
    ids = [row["trial_id"] for row in ended]
    states = optuna_rows.lock_trials(connection, ids)
    values = optuna_rows.first_values(connection, ids)
    trial_rows, slot_rows = [], []
    for slot in ended:
        trial_id, state = slot["trial_id"], states[slot["trial_id"]].name
        failed = state == "FAIL"
        failure = {
            "failure_kind": "cancelled" if failed else None,
            "failure_message": _MESSAGE if failed else None,
        }
        trial_rows.append(
            {
                "trial_id": trial_id,
                "state": state,
                "value": values.get(trial_id),
                "finished_at": now,
                **failure,
            }
        )
        slot_rows.append(
            {
                "id": slot["id"],
                "state": _SLOT_STATE[state],
                "worker_id": None,
                "lease_expires_at": None,
                "fencing_token": slot["fencing_token"] + 1,
                **failure,
            }
        )
        tally.move(slot["study_id"], slot["state"], _SLOT_STATE[state])
        if state == "PRUNED":
            tally.add(slot["study_id"], "trials_pruned")
    update_rows(connection, trials, trial_rows, match=("trial_id",))
    update_rows(connection, slots, slot_rows, match=("id",))
    for study_id in {slot["study_id"] for slot in ended}:
        mine = [slot["trial_id"] for slot in ended if slot["study_id"] == study_id]
        _note_best(connection, study_id, {i: values[i] for i in mine if i in values}, states)


def _note_best(
    connection: Connection,
    study_id: int,
    values: Mapping[int, float],
    states: Mapping[int, TrialState],
) -> None:
    study = connection.execute(select(studies).where(studies.c.id == study_id)).mappings().one()
    complete = [
        Result(trial_id, "COMPLETE", values=(value,))
        for trial_id, value in values.items()
        if states[trial_id] is TrialState.COMPLETE
    ]
    keep_best(connection, study, complete)
