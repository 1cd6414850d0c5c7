"""Bulk writes of Optuna's rows, through Optuna's own SQLAlchemy models.

Every function works inside the caller's transaction, takes lists, and costs a few statements
however long they are. Optuna keeps naive UTC in its datetime columns. Its trial numbers are dense
per study and are taken under the lock of the study's row, as plain Optuna takes them.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from optuna.distributions import BaseDistribution, distribution_to_json
from optuna.storages._rdb import models
from optuna.study import StudyDirection
from optuna.trial import TrialState
from sqlalchemy import (
    Connection,
    Table,
    bindparam,
    delete,
    func,
    insert,
    select,
    text,
    update,
)

from tuner_service.storage.bulk import insert_rows
from tuner_service.storage.postgres import among, integers, together

STUDIES: Final[Table] = models.StudyModel.__table__
DIRECTIONS: Final[Table] = models.StudyDirectionModel.__table__
STUDY_USER_ATTRS: Final[Table] = models.StudyUserAttributeModel.__table__
STUDY_SYSTEM_ATTRS: Final[Table] = models.StudySystemAttributeModel.__table__
TRIALS: Final[Table] = models.TrialModel.__table__
PARAMS: Final[Table] = models.TrialParamModel.__table__
VALUES: Final[Table] = models.TrialValueModel.__table__
INTERMEDIATE: Final[Table] = models.TrialIntermediateValueModel.__table__
USER_ATTRS: Final[Table] = models.TrialUserAttributeModel.__table__
SYSTEM_ATTRS: Final[Table] = models.TrialSystemAttributeModel.__table__
HEARTBEATS: Final[Table] = models.TrialHeartbeatModel.__table__

CONSTRAINT_PREFIX: Final = "constraints:"
TRIALS_IN_A_STATEMENT: Final = 2_000

_LOCKED_STUDIES: Final = (
    select(STUDIES.c.study_id)
    .where(among(STUDIES.c.study_id, bindparam("ids")))
    .order_by(STUDIES.c.study_id)
    .with_for_update()
)
_LOCKED_TRIALS: Final = (
    select(TRIALS.c.trial_id, TRIALS.c.state)
    .where(among(TRIALS.c.trial_id, bindparam("ids")))
    .order_by(TRIALS.c.trial_id)
    .with_for_update()
)
_COUNTED: Final = (
    select(func.count().label("taken"))
    .select_from(TRIALS)
    .where(TRIALS.c.study_id == bindparam("study"))
)
_WAITING_ENDED: Final = (
    update(TRIALS)
    .where(TRIALS.c.study_id == bindparam("study"), TRIALS.c.state == TrialState.WAITING)
    .values(
        state=TrialState.FAIL,
        datetime_complete=bindparam("now", type_=TRIALS.c.datetime_complete.type),
    )
    .returning(TRIALS.c.trial_id)
)
_FINISHED: Final = (
    update(TRIALS)
    .where(
        among(TRIALS.c.trial_id, bindparam("ids")),
        TRIALS.c.state == TrialState.RUNNING,  # guard: end-running-only
    )
    .values(
        state=bindparam("ended", type_=TRIALS.c.state.type),
        datetime_complete=bindparam("now", type_=TRIALS.c.datetime_complete.type),
    )
    .returning(TRIALS.c.trial_id)
)


@dataclass(frozen=True, slots=True)
class NewTrial:
    """A trial to create RUNNING."""

    params: Mapping[str, Any]
    user_attrs: Mapping[str, Any]
    intermediate_values: Mapping[int, float] = field(default_factory=dict)


def create_study(
    connection: Connection,
    name: str,
    directions: Sequence[str],
    *,
    user_attrs: Mapping[str, Any],
    system_attrs: Mapping[str, Any],
) -> int:
    """Create a study and return Optuna's id of it."""
    fresh = _fresh_ids(connection, STUDIES, 1)
    given = {} if fresh is None else {"study_id": fresh[0]}
    study_id: int = connection.execute(
        insert(STUDIES).values(study_name=name, **given).returning(STUDIES.c.study_id)
    ).scalar_one()
    connection.execute(
        insert(DIRECTIONS),
        [
            {
                "study_id": study_id,
                "objective": index,
                "direction": StudyDirection.MAXIMIZE
                if direction == "maximize"
                else StudyDirection.MINIMIZE,
            }
            for index, direction in enumerate(directions)
        ],
    )
    for table, attrs in ((STUDY_USER_ATTRS, user_attrs), (STUDY_SYSTEM_ATTRS, system_attrs)):
        rows = [
            {"study_id": study_id, "key": key, "value_json": json.dumps(value)}
            for key, value in attrs.items()
        ]
        if rows:
            connection.execute(insert(table), rows)
    return study_id


def lock_studies(connection: Connection, study_ids: Iterable[int]) -> None:
    """Lock Optuna's study rows, in order, as plain Optuna does before it numbers a trial."""
    connection.execute(_LOCKED_STUDIES, {"ids": integers(connection, study_ids)}).all()


def create_trials(
    connection: Connection,
    study_id: int,
    trials: Sequence[NewTrial],
    distributions: Mapping[str, BaseDistribution],
    *,
    now: float,
) -> list[tuple[int, int]]:
    """Create RUNNING trials in one study, whose row the caller has locked.

    Returns:
        (trial id, number) of each, in order.
    """
    numbered = _numbered(connection, study_id, len(trials))
    ids = [trial_id for trial_id, _ in numbered]
    rows = [
        {
            "trial_id": trial_id,
            "study_id": study_id,
            "number": number,
            "state": TrialState.RUNNING,
            "datetime_start": utc(now),
        }
        for trial_id, number in numbered
    ]
    insert_rows(connection, TRIALS, rows)
    _insert_params(connection, ids, trials, distributions)
    set_attrs(
        connection,
        USER_ATTRS,
        [
            (i, key, value)
            for i, t in zip(ids, trials, strict=True)
            for key, value in t.user_attrs.items()
        ],
    )
    report_values(
        connection,
        [
            (i, step, value)
            for i, t in zip(ids, trials, strict=True)
            for step, value in t.intermediate_values.items()
        ],
    )
    return numbered


def _numbered(connection: Connection, study_id: int, count: int) -> list[tuple[int, int]]:
    """Return a new id and the next number of each trial to be, both ascending."""
    counted = (_COUNTED, {"study": study_id})
    fresh = _fresh_ids(connection, TRIALS, count)
    if fresh is None:
        taken, ids = together(connection, counted, (_NEXT_TRIAL_IDS, {"count": count}))
        fresh = [row["trial_id"] for row in ids]
    else:
        (taken,) = together(connection, counted)
    return [(trial_id, taken[0]["taken"] + index) for index, trial_id in enumerate(fresh)]


def _insert_params(
    connection: Connection,
    ids: Sequence[int],
    trials: Sequence[NewTrial],
    distributions: Mapping[str, BaseDistribution],
) -> None:
    as_json = {name: distribution_to_json(item) for name, item in distributions.items()}
    rows = [
        {
            "trial_id": trial_id,
            "param_name": name,
            "param_value": float(distributions[name].to_internal_repr(value)),
            "distribution_json": as_json[name],
        }
        for trial_id, trial in zip(ids, trials, strict=True)
        for name, value in trial.params.items()
    ]
    insert_rows(connection, PARAMS, rows)


def report_values(connection: Connection, values: Sequence[tuple[int, int, float]]) -> None:
    """Write intermediate values (trial id, step, value); one already there is replaced."""
    rows = []
    for trial_id, step, value in values:
        stored, kind = models.TrialIntermediateValueModel.intermediate_value_to_stored_repr(
            float(value)
        )
        rows.append(
            {
                "trial_id": trial_id,
                "step": step,
                "intermediate_value": stored,
                "intermediate_value_type": kind,
            }
        )
    insert_rows(connection, INTERMEDIATE, rows, replace=("trial_id", "step"))


def last_finite_values(connection: Connection, trial_ids: Sequence[int]) -> dict[int, float]:
    """Return the finite intermediate value of the highest step, of each trial that has one."""
    if not trial_ids:
        return {}
    finite = models.TrialIntermediateValueModel.TrialIntermediateValueType.FINITE
    rows = connection.execute(
        select(INTERMEDIATE.c.trial_id, INTERMEDIATE.c.intermediate_value)
        .where(
            INTERMEDIATE.c.trial_id.in_(trial_ids), INTERMEDIATE.c.intermediate_value_type == finite
        )
        .order_by(INTERMEDIATE.c.step)
    )
    return {trial_id: float(value) for trial_id, value in rows}


def lock_trials(connection: Connection, trial_ids: Sequence[int]) -> dict[int, TrialState]:
    """Lock trials' rows, in order, and return their states.

    Plain Optuna ends a trial under the lock of its row; that it is RUNNING now holds until the
    transaction ends.
    """
    if not trial_ids:
        return {}
    rows = connection.execute(_LOCKED_TRIALS, {"ids": integers(connection, trial_ids)})
    return {trial_id: state for trial_id, state in rows}


def first_values(connection: Connection, trial_ids: Sequence[int]) -> dict[int, float]:
    """Return the first objective's final value, of each trial that has one."""
    if not trial_ids:
        return {}
    rows = connection.execute(
        select(VALUES.c.trial_id, VALUES.c.value, VALUES.c.value_type).where(
            VALUES.c.trial_id.in_(trial_ids), VALUES.c.objective == 0
        )
    )
    return {trial_id: read_value(value, kind) for trial_id, value, kind in rows}


def finish_trials(
    connection: Connection, trial_ids: Sequence[int], state: TrialState, *, now: float
) -> set[int]:
    """Move RUNNING trials to a final state; finished ones are immutable.

    Returns:
        The ids that were RUNNING and now are not.
    """
    if not trial_ids:
        return set()
    ids = integers(connection, trial_ids)
    values = {"ids": ids, "ended": state, "now": utc(now)}
    return set(connection.execute(_FINISHED, values).scalars())


def end_waiting(connection: Connection, study_id: int, *, now: float) -> list[int]:
    """Move those trials of a study to FAIL that another program enqueued; return their ids."""
    values = {"study": study_id, "now": utc(now)}
    return list(connection.execute(_WAITING_ENDED, values).scalars())


def set_values(connection: Connection, values: Sequence[tuple[int, Sequence[float]]]) -> None:
    """Write final values, one per objective.

    Raises:
        ValueError: A value is NaN.
    """
    rows = []
    for trial_id, numbers in values:
        for objective, value in enumerate(numbers):
            if math.isnan(value):
                raise ValueError(f"a final value must be a number, but trial {trial_id} has NaN")
            stored, kind = models.TrialValueModel.value_to_stored_repr(float(value))
            rows.append(
                {
                    "trial_id": trial_id,
                    "objective": objective,
                    "value": stored,
                    "value_type": kind,
                }
            )
    insert_rows(connection, VALUES, rows)


def set_attrs(connection: Connection, table: Table, attrs: Sequence[tuple[int, str, Any]]) -> None:
    """Write trials' attributes (trial id, key, value); one already there is replaced."""
    rows = [
        {"trial_id": trial_id, "key": key, "value_json": json.dumps(value)}
        for trial_id, key, value in attrs
    ]
    insert_rows(connection, table, rows, replace=("trial_id", "key"))


def set_notes(connection: Connection, notes: Sequence[tuple[int, int, str]]) -> None:
    """Write the dashboard's notes of trials (study id, trial id, Markdown), one piece each."""
    rows = [
        {"study_id": study_id, "key": f"dashboard:{trial_id}:{part}", "value_json": value}
        for study_id, trial_id, text in notes
        for part, value in (("note_ver", "1"), ("note_str:0", json.dumps(text)))
    ]
    insert_rows(connection, STUDY_SYSTEM_ATTRS, rows, replace=("study_id", "key"))


def copy_values(connection: Connection, source: int, target: int, *, up_to_step: int) -> None:
    """Copy a trial's intermediate values up to a step to another trial."""
    columns = [INTERMEDIATE.c.step, INTERMEDIATE.c.intermediate_value]
    kind = INTERMEDIATE.c.intermediate_value_type
    rows = connection.execute(
        select(*columns, kind).where(
            INTERMEDIATE.c.trial_id == source,
            INTERMEDIATE.c.step <= up_to_step,  # guard: copied-values
        )
    ).mappings()
    copies = [{"trial_id": target, **row} for row in rows]
    insert_rows(connection, INTERMEDIATE, copies)


# SQLite gives the highest id out again once its row is deleted, and the dashboard keeps what it
# knows by study id: a new study would be shown with a deleted one's parameters. SQLite's own table
# of highest ids remembers them, here for tables that Optuna made without AUTOINCREMENT.
_NEXT_ID = {
    table: text(
        "SELECT 1 + max("  # noqa: S608  # names of ours, not of users
        f"coalesce((SELECT max({key}) FROM {table}), 0), "
        f"coalesce((SELECT max(seq) FROM sqlite_sequence WHERE name = '{table}'), 0))"
    )
    for table, key in (("studies", "study_id"), ("trials", "trial_id"))
}
_NEXT_TRIAL_IDS = select(
    func.nextval(func.pg_get_serial_sequence("trials", "trial_id")).label("trial_id")
).select_from(func.generate_series(1, bindparam("count")))
_FORGET = text("DELETE FROM sqlite_sequence WHERE name = :name")
_REMEMBER = text("INSERT INTO sqlite_sequence (name, seq) VALUES (:name, :seq)")


def _fresh_ids(connection: Connection, table: Table, count: int) -> list[int] | None:
    """Return ids that no row ever had; None where the database sees to it."""
    if connection.dialect.name != "sqlite":
        return None
    first: int = connection.execute(_NEXT_ID[table.name]).scalar_one()
    return list(range(first, first + count))


def _remember_ids(connection: Connection) -> None:
    for table in (STUDIES, TRIALS):
        fresh = _fresh_ids(connection, table, 1)
        if fresh is not None:
            connection.execute(_FORGET, {"name": table.name})
            connection.execute(_REMEMBER, {"name": table.name, "seq": fresh[0] - 1})


def rename_study(connection: Connection, study_id: int, name: str) -> None:
    """Give a study another name."""
    connection.execute(
        update(STUDIES).where(STUDIES.c.study_id == study_id).values(study_name=name)
    )


def last_trials(connection: Connection, study_id: int, count: int) -> list[int]:
    """Return the ids of a study's last trials, the last first."""
    ours = select(TRIALS.c.trial_id).where(TRIALS.c.study_id == study_id)
    return list(connection.execute(ours.order_by(TRIALS.c.trial_id.desc()).limit(count)).scalars())


def delete_trials(connection: Connection, trial_ids: Sequence[int]) -> None:
    """Delete trials and everything of them; the time it takes is that of their rows."""
    _remember_ids(connection)
    for table in (PARAMS, VALUES, INTERMEDIATE, USER_ATTRS, SYSTEM_ATTRS, HEARTBEATS, TRIALS):
        connection.execute(delete(table).where(table.c.trial_id.in_(trial_ids)))


def delete_study(connection: Connection, study_id: int) -> None:
    """Delete a study and everything of it."""
    _remember_ids(connection)
    while ids := last_trials(connection, study_id, TRIALS_IN_A_STATEMENT):
        delete_trials(connection, ids)
    for table in (DIRECTIONS, STUDY_USER_ATTRS, STUDY_SYSTEM_ATTRS, STUDIES):
        connection.execute(delete(table).where(table.c.study_id == study_id))


def utc(seconds: float) -> datetime:
    """Return Optuna's form of a time: naive UTC."""
    return datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None)


def read_value(value: float | None, kind: Any) -> float:
    """Return a stored final value as a number."""
    return float(models.TrialValueModel.stored_repr_to_value(value, kind))


def read_intermediate(value: float | None, kind: Any) -> float:
    """Return a stored intermediate value as a number."""
    stored = models.TrialIntermediateValueModel.stored_repr_to_intermediate_value(value, kind)
    return float(stored)
