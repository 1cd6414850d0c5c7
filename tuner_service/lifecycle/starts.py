"""Starting trials of leased slots: Optuna's trial, ours, and what a retry takes over."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Final

from sqlalchemy import bindparam, select, update

from tuner_service.definition import space_of
from tuner_service.lifecycle.flush_transaction import FlushTransaction
from tuner_service.lifecycle.messages import Start, StartedTrial
from tuner_service.lifecycle.storable_text import fit_or_none
from tuner_service.reads.states import ACTIVE, timed_out
from tuner_service.reads.stored import stored_definition
from tuner_service.search.distributions import distributions
from tuner_service.storage import optuna_rows
from tuner_service.storage.bulk import insert_rows
from tuner_service.storage.postgres import DEFERRED, Row, among, integers
from tuner_service.storage.schema import epochs, slots, studies, trials

_PARAMETERS: Final = select(slots.c.id, slots.c.parameters).where(
    among(slots.c.id, bindparam("ids"))
)
_BEGIN: Final = (
    update(studies)
    .where(studies.c.id == bindparam("b_id"))
    .values({name: bindparam(name) for name in ("state", "started_at", "reason")})
)


def start_trials(unit: FlushTransaction, starts: Sequence[Start]) -> None:
    """Create the trials of leased slots, where their study still wants any.

    A start that was sent before is answered as it was then. In a cancelled study the slot is
    cancelled and the lease lost; in one that is paused or out of time nothing happens, and the
    worker is told to stop. A slot's parameters are fixed once: a start with others loses its lease.
    """
    by_study: dict[int, list[Start]] = defaultdict(list)
    fixed = _fixed_parameters(unit, starts)
    for start in starts:
        row = unit.held.get(start.lease.key)
        if row is None:
            continue
        if fixed[row["id"]] not in (None, start.parameters):  # guard: parameters-once
            del unit.held[start.lease.key]
            continue
        study = unit.studies[row["study_id"]]
        if row["trial_id"] is not None:  # guard: start-again
            _answer_again(unit, start, row["trial_id"])
        elif study["state"] in ACTIVE and not timed_out(study, unit.now):  # guard: start-active
            by_study[row["study_id"]].append(start)
        elif study["state"] in ("cancelled", "failed"):  # guard: start-refused
            _refuse(unit, start)
    for study_id, group in by_study.items():
        _start_in_study(unit, unit.studies[study_id], group, fixed)


def _fixed_parameters(
    unit: FlushTransaction, starts: Sequence[Start]
) -> dict[int, dict[str, Any] | None]:
    """Return what is fixed of the slots: at submit (grid, random), or by the first attempt."""
    if not starts:
        return {}
    ids = integers(unit.connection, [start.lease.slot_id for start in starts])
    rows = unit.connection.execute(_PARAMETERS, {"ids": ids})
    return {slot_id: parameters for slot_id, parameters in rows}


def _answer_again(unit: FlushTransaction, start: Start, trial_id: int) -> None:
    number = unit.connection.execute(
        select(trials.c.number).where(trials.c.trial_id == trial_id)
    ).scalar_one()
    unit.started[start.lease.key] = StartedTrial(trial_id, number)


def _refuse(unit: FlushTransaction, start: Start) -> None:
    row = unit.held.pop(start.lease.key)
    unit.update_slots(
        [
            {
                "id": row["id"],
                "fencing_token": row["fencing_token"],
                "state": "cancelled",
                "worker_id": None,
                "lease_expires_at": None,
            }
        ]
    )
    unit.tally.move(row["study_id"], "leased", "cancelled")


def _start_in_study(
    unit: FlushTransaction,
    study: Row,
    starts: Sequence[Start],
    fixed: Mapping[int, dict[str, Any] | None],
) -> None:
    rows = [unit.held[start.lease.key] for start in starts]
    before = _earlier_attempts(unit, rows)
    created = optuna_rows.create_trials(
        unit.connection,
        study["optuna_study_id"],
        [
            optuna_rows.NewTrial(start.parameters, _user_attrs(unit, start, row, before))
            for start, row in zip(starts, rows, strict=True)
        ],
        distributions(space_of(stored_definition(study["definition"]))),
        now=unit.now,
    )
    ours = []
    for start, row, (trial_id, number) in zip(starts, rows, created, strict=True):
        unit.started[start.lease.key] = StartedTrial(trial_id, number)
        ours.append(_trial_row(unit, start, row, before, trial_id=trial_id, number=number))
    insert_rows(unit.connection, trials, ours)
    _copy_curves(unit, ours, rows, before)
    _point_slots(unit, starts, ours, fixed)
    _begin(unit, study)


def _earlier_attempts(unit: FlushTransaction, rows: Sequence[Row]) -> dict[int, Row]:
    """Return the last trial of each slot that is tried again, by slot id."""
    retried = [row["id"] for row in rows if row["attempts"] > 0]
    if not retried:
        return {}
    found = unit.connection.execute(
        select(trials).where(trials.c.slot_id.in_(retried)).order_by(trials.c.attempt)
    ).mappings()
    return {row["slot_id"]: row for row in found}


def _user_attrs(
    unit: FlushTransaction, start: Start, row: Row, before: Mapping[int, Row]
) -> dict[str, Any]:
    attrs: dict[str, Any] = {
        "slot": row["number"],
        "attempt": row["attempts"] + 1,
        "worker": unit.worker_id,
    }
    if start.device is not None:
        attrs["device"] = start.device
    if row["id"] in before:
        attrs["retry_of"] = before[row["id"]]["number"]
    return attrs


def _trial_row(
    unit: FlushTransaction,
    start: Start,
    row: Row,
    before: Mapping[int, Row],
    *,
    trial_id: int,
    number: int,
) -> dict[str, Any]:
    earlier = before.get(row["id"])
    return {
        "trial_id": trial_id,
        "study_id": row["study_id"],
        "slot_id": row["id"],
        "number": number,
        "attempt": row["attempts"] + 1,
        "retry_of": earlier["number"] if earlier else None,
        "state": "RUNNING",
        "worker": unit.worker_id,
        "device": fit_or_none(start.device, 64),
        "started_at": unit.now,
        "record": {},
    }


def _copy_curves(
    unit: FlushTransaction,
    ours: Sequence[Mapping[str, Any]],
    rows: Sequence[Row],
    before: Mapping[int, Row],
) -> None:
    """Join a retried trial's curve to that of the attempt before, up to the checkpoint."""
    checkpoints = {row["id"]: row["checkpoint_step"] for row in rows}
    for row in ours:
        earlier, step = before.get(row["slot_id"]), checkpoints[row["slot_id"]]
        if earlier is None or step is None:
            continue
        source, target = earlier["trial_id"], row["trial_id"]
        optuna_rows.copy_values(unit.connection, source, target, up_to_step=step)
        old = unit.connection.execute(
            select(epochs.c.step, epochs.c.record).where(
                epochs.c.trial_id == source,
                epochs.c.step <= step,  # guard: copied-records
            )
        ).mappings()
        copies = [{"trial_id": target, **epoch} for epoch in old]
        insert_rows(unit.connection, epochs, copies)


def _point_slots(
    unit: FlushTransaction,
    starts: Sequence[Start],
    ours: Sequence[Mapping[str, Any]],
    fixed: Mapping[int, dict[str, Any] | None],
) -> None:
    """Point slots to their trials, and fix the parameters of those that have none yet."""
    again, first = [], []
    for start, row in zip(starts, ours, strict=True):
        slot = {
            "id": start.lease.slot_id,
            "fencing_token": start.lease.fencing_token,
            "trial_id": row["trial_id"],
            "attempts": row["attempt"],
        }
        if fixed[start.lease.slot_id] is None:
            first.append({**slot, "parameters": dict(start.parameters)})
        else:
            again.append(slot)
    unit.update_slots(again)
    unit.update_slots(first)


def _begin(unit: FlushTransaction, study: Row) -> None:
    unit.tally.touch(study["id"])
    if study["started_at"] is None:
        begun = {"state": "running", "started_at": unit.now, "reason": None}
        unit.connection.execute(_BEGIN, {"b_id": study["id"], **begun}, execution_options=DEFERRED)
        unit.studies[study["id"]] = {**study, **begun}
