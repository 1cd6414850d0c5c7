"""Trials: pages, one with its epochs, the best, coverage, export.

Optuna's `trials` is the list; our row beside it is missing for trials made by plain Optuna, which
are shown all the same (slot -1).
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

from optuna.trial import TrialState as OptunaState
from sqlalchemy import Connection, RowMapping, and_, func, or_, select, tuple_

from tuner_service.errors import NotFoundError
from tuner_service.reads.cursors import decode_cursor, encode_cursor
from tuner_service.reads.lookup import find_study
from tuner_service.reads.optuna_trials import read_parameters, read_values
from tuner_service.reads.stored import stored_definition
from tuner_service.reads.views import Coverage, Failure, TrialPage, TrialView
from tuner_service.storage import Database
from tuner_service.storage.optuna_rows import TRIALS, VALUES, read_value
from tuner_service.storage.postgres import Row
from tuner_service.storage.schema import epochs, slots, studies, trials

Sort = Literal["number", "-number", "value", "-value"]
EXPORT_PAGE = 500

_COLUMNS = (
    TRIALS.c.trial_id,
    TRIALS.c.number,
    TRIALS.c.state,
    TRIALS.c.datetime_start,
    TRIALS.c.datetime_complete,
    *(
        trials.c[name]
        for name in (
            "attempt", "retry_of", "value", "worker", "device", "backend",
            "backend_reason", "group_key", "started_at", "finished_at", "failure_kind",
            "failure_message", "failure_traceback", "record", "model_path",
        )
    ),
    slots.c.number.label("slot_number"),
    select(func.max(epochs.c.step))
    .where(epochs.c.trial_id == TRIALS.c.trial_id)
    .scalar_subquery()
    .label("last_step"),
)  # fmt: skip
_BASE = (
    select(*_COLUMNS)
    .select_from(TRIALS)
    .outerjoin(trials, trials.c.trial_id == TRIALS.c.trial_id)
    .outerjoin(slots, slots.c.id == trials.c.slot_id)
)


def list_trials(
    db: Database,
    ref: str,
    *,
    cursor: str | None = None,
    limit: int = 50,
    state: str | None = None,
    sort: Sort = "number",
) -> TrialPage:
    """Return a page of a study's trials.

    Args:
        sort: By number, or by value (`-`: the highest first); the latter leaves out trials
            without one, and those of plain Optuna.

    Raises:
        NotFoundError: There is no such study.
        InputError: The cursor is not one of this list.
    """
    with db.read() as connection:
        study = find_study(connection, ref)
        page = _by_number if sort.endswith("number") else _by_value
        query = page(study, state, cursor, down=sort.startswith("-"))
        ids = list(connection.execute(query.limit(limit + 1)).scalars())
        found = views_by_id(connection, ids[:limit])
    views = [found[trial_id] for trial_id in ids[:limit]]
    more = len(ids) > limit
    return TrialPage(items=views, next_cursor=_place(views[-1], sort) if more else None)


def page_of(db: Database, ids: Sequence[int], *, cursor: str | None, limit: int) -> TrialPage:
    """Return a page of trials that were found by a filter, in the order given.

    Args:
        ids: Optuna's trial ids of all that were found.

    Raises:
        InputError: The cursor is not one of this list.
    """
    first = decode_cursor(cursor, int)[0] if cursor is not None else 0
    shown = ids[first : first + limit]
    with db.read() as connection:
        found = views_by_id(connection, shown)
    more = first + limit < len(ids)
    return TrialPage(
        items=[found[trial_id] for trial_id in shown if trial_id in found],
        next_cursor=encode_cursor(first + limit) if more else None,
    )


# A page is looked up by ids alone, from one table with an index, before anything is joined: the
# planner would else join all of a study's trials first.


def _by_number(study: RowMapping, state: str | None, cursor: str | None, *, down: bool) -> Any:
    # By id, in which order Optuna numbers a study's trials: an index has them so, and no page sorts
    # all trials of the study.
    place = TRIALS.c.trial_id
    query = select(place).where(TRIALS.c.study_id == study["optuna_study_id"])
    if state is not None:
        query = query.where(TRIALS.c.state == OptunaState[state])
    if cursor is not None:
        (after,) = decode_cursor(cursor, int)
        query = query.where(place < after if down else place > after)
    return query.order_by(place.desc() if down else place)


def _by_value(study: RowMapping, state: str | None, cursor: str | None, *, down: bool) -> Any:
    value, number = trials.c.value, trials.c.number
    query = select(trials.c.trial_id).where(
        trials.c.study_id == study["id"], trials.c.value.is_not(None)
    )
    if state is not None:
        query = query.where(trials.c.state == state)
    if cursor is not None:
        last, after = decode_cursor(cursor, (int, float), int)
        beyond = value < last if down else value > last
        query = query.where(or_(beyond, and_(value == last, number > after)))
    return query.order_by(value.desc() if down else value, number)


def _place(last: TrialView, sort: Sort) -> str:
    if sort.endswith("number"):
        return encode_cursor(last.trial_id)
    return encode_cursor(last.value, last.number)


def get_trial(db: Database, ref: str, number: int) -> TrialView:
    """Return one trial with its per-epoch records.

    Raises:
        NotFoundError: There is no such study, or no such trial in it.
    """
    with db.read() as connection:
        study = find_study(connection, ref)
        rows = list(
            connection.execute(
                _BASE.where(
                    TRIALS.c.study_id == study["optuna_study_id"], TRIALS.c.number == number
                )
            ).mappings()
        )
        if not rows:
            raise NotFoundError(f"study {study['name']!r} has no trial {number}")
        records = connection.execute(
            select(epochs.c.record)
            .where(epochs.c.trial_id == rows[0]["trial_id"])
            .order_by(epochs.c.step)
        ).scalars()
        return _views(connection, rows)[0].model_copy(update={"epochs": list(records)})


def best_trials(db: Database, ref: str) -> list[TrialView]:
    """Return the best trial, or with several objectives those that no other dominates.

    Only feasible COMPLETE trials count; where there are none, what those had reached that a timeout
    stopped. The list may be empty.
    """
    with db.read() as connection:
        study = find_study(connection, ref)
        directions = [o.direction for o in stored_definition(study["definition"]).objective]
        if len(directions) == 1:
            found = best_trial_id(connection, study)
            return [] if found is None else list(views_by_id(connection, [found]).values())
        front = _front(connection, study["optuna_study_id"], directions)
        return list(views_by_id(connection, front).values())


def best_trial_id(connection: Connection, study: Row) -> int | None:
    """Return the trial that is the best of a study with one objective."""
    noted: int | None = study["best_trial_id"]
    if noted is not None or study["trials_pruned"] == 0:
        return noted
    stopped = select(trials.c.trial_id).where(
        trials.c.study_id == study["id"],
        trials.c.state == "PRUNED",
        trials.c.failure_kind == "timeout",
        trials.c.value.is_not(None),
    )
    found = connection.execute(stopped.limit(1)).scalar()
    if found is None:
        return None
    text = connection.execute(select(studies.c.definition).where(studies.c.id == study["id"]))
    objectives = stored_definition(text.scalar_one()).objective
    if len(objectives) > 1:
        return None
    value = trials.c.value
    first = value.desc() if objectives[0].direction == "maximize" else value
    return connection.execute(stopped.order_by(first, trials.c.trial_id).limit(1)).scalar()


def _front(connection: Connection, optuna_study_id: int, directions: Sequence[str]) -> list[int]:
    rows = connection.execute(
        select(VALUES.c.trial_id, VALUES.c.objective, VALUES.c.value, VALUES.c.value_type)
        .join(TRIALS, TRIALS.c.trial_id == VALUES.c.trial_id)
        .where(TRIALS.c.study_id == optuna_study_id, TRIALS.c.state == OptunaState.COMPLETE)
        .order_by(VALUES.c.trial_id, VALUES.c.objective)
    )
    points: dict[int, list[float]] = defaultdict(list)
    for trial_id, objective, value, kind in rows:
        sign = -1.0 if directions[objective] == "maximize" else 1.0
        points[trial_id].append(sign * read_value(value, kind))
    return [i for i, point in points.items() if not _dominated(point, points.values())]


def _dominated(point: Sequence[float], others: Iterable[Sequence[float]]) -> bool:
    return any(
        other != point and all(a <= b for a, b in zip(other, point, strict=True))
        for other in others
    )


def coverage(db: Database, ref: str) -> Coverage:
    """Say what became of every slot (of a grid: every point), naming the failed ones."""
    with db.read() as connection:
        study = find_study(connection, ref)
        failed = connection.execute(
            select(slots)
            .where(
                slots.c.study_id == study["id"],
                slots.c.state == "failed",  # guard: coverage-failed
            )
            .order_by(slots.c.number)
        ).mappings()
        points = [
            {
                "slot": row["number"],
                "parameters": row["parameters"],
                "failure": {"kind": row["failure_kind"], "message": row["failure_message"]},
            }
            for row in failed
        ]
    states = ("done", "failed", "open", "leased", "cancelled")
    counts = {state: study[f"slots_{state}"] for state in states}
    return Coverage(total=study["budget_trials"], failed_points=points, **counts)


def export_rows(db: Database, ref: str) -> Iterator[dict[str, Any]]:
    """Yield one flat row per trial, in order; parameters as `params_NAME`."""
    cursor = None
    while True:
        page = list_trials(db, ref, cursor=cursor, limit=EXPORT_PAGE)
        yield from (_flat(view) for view in page.items)
        cursor = page.next_cursor
        if cursor is None:
            return


def _flat(view: TrialView) -> dict[str, Any]:
    row = view.model_dump(
        mode="json", exclude={"parameters", "failure", "record", "values", "epochs", "has_model"}
    )
    row |= {f"params_{name}": value for name, value in view.parameters.items()}
    # The record has names of its own that mean something else: its `seconds` is training time.
    row |= {
        f"record_{key}" if key in row else key: value
        for key, value in view.record.items()
        if isinstance(value, (int, float, str))
    }
    row["failure"] = view.failure.kind if view.failure else None
    return row


def views_by_id(connection: Connection, trial_ids: Sequence[int]) -> dict[int, TrialView]:
    """Return the views of these trials by Optuna's trial id."""
    if not trial_ids:
        return {}
    rows = connection.execute(
        _BASE.where(TRIALS.c.trial_id.in_(trial_ids)).order_by(TRIALS.c.number)
    ).mappings()
    return {view.trial_id: view for view in _views(connection, list(rows))}


def _views(connection: Connection, rows: Sequence[RowMapping]) -> list[TrialView]:
    ids = [row["trial_id"] for row in rows]
    (params, _), values = read_parameters(connection, ids), read_values(connection, ids)
    latest = _latest(connection, rows)
    return [
        _view(row, params.get(row["trial_id"], {}), values.get(row["trial_id"])).model_copy(
            update={"latest": latest.get(row["trial_id"])}
        )
        for row in rows
    ]


def _latest(connection: Connection, rows: Sequence[RowMapping]) -> dict[int, dict[str, Any]]:
    """Return what running trials said of their last epochs."""
    last = [
        (row["trial_id"], row["last_step"])
        for row in rows
        if row["state"] == OptunaState.RUNNING and row["last_step"] is not None
    ]
    if not last:
        return {}
    found = connection.execute(
        select(epochs.c.trial_id, epochs.c.record).where(
            tuple_(epochs.c.trial_id, epochs.c.step).in_(last)
        )
    )
    return {trial_id: record for trial_id, record in found}


def _view(row: RowMapping, params: Mapping[str, Any], values: list[float] | None) -> TrialView:
    started = time_of(row["started_at"]) or _aware(row["datetime_start"])
    finished = time_of(row["finished_at"]) or _aware(row["datetime_complete"])
    record = dict(row["record"] or {})
    step = record.pop("failure_step", None)
    return TrialView(
        number=row["number"],
        trial_id=row["trial_id"],
        state=row["state"].name,
        slot=-1 if row["slot_number"] is None else row["slot_number"],
        attempt=row["attempt"] or 1,
        retry_of=row["retry_of"],
        parameters=dict(params),
        value=values[0] if values else None,
        values=values,
        last_step=row["last_step"],
        failure=_failure(row, step),
        worker=row["worker"],
        device=row["device"],
        backend=row["backend"],
        backend_reason=row["backend_reason"],
        group=row["group_key"],
        started_at=started or datetime.fromtimestamp(0, UTC),
        finished_at=finished,
        seconds=(finished - started).total_seconds() if started and finished else None,
        record=record,
        has_model=row["model_path"] is not None,
        foreign=row["slot_number"] is None,
    )


def _failure(row: RowMapping, step: int | None) -> Failure | None:
    if row["failure_kind"] is None:
        return None
    return Failure(
        kind=row["failure_kind"],
        message=row["failure_message"] or "",
        step=step,
        traceback=row["failure_traceback"],
    )


def time_of(seconds: float | None) -> datetime | None:
    """Return the UTC time of seconds since the epoch."""
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def _aware(naive: datetime | None) -> datetime | None:
    return None if naive is None else naive.replace(tzinfo=UTC)
