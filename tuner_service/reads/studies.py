"""Studies as they are shown: one, a page of them, and how each stands."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, func, select

from tuner_service.errors import NotFoundError
from tuner_service.reads.cursors import decode_cursor, encode_cursor
from tuner_service.reads.eligibility import LiveWorker, live_now, needed_modules, waits_for
from tuner_service.reads.lookup import find_study
from tuner_service.reads.states import ACTIVE, FINAL, worked_seconds
from tuner_service.reads.trials import best_trial_id, time_of, views_by_id
from tuner_service.reads.views import Progress, StudyPage, StudySummary, StudyView, TrialView
from tuner_service.storage import Database
from tuner_service.storage.postgres import Row
from tuner_service.storage.schema import GONE, api_keys, studies

# A page of definitions may be large, and nobody reads them there.
_SUMMARY: Final = [column for column in studies.c if column is not studies.c.definition]


def get_study(db: Database, ref: str) -> StudyView:
    """Return one study by id or name.

    Raises:
        NotFoundError: There is none.
    """
    with db.read() as connection:
        return _view(connection, find_study(connection, ref), db.now(connection))


def study_view(connection: Connection, study_id: int, *, now: float) -> StudyView:
    """Return the view of a study within a transaction.

    Raises:
        NotFoundError: It was deleted.
    """
    there = studies.c.id == study_id, studies.c.state != GONE
    row = connection.execute(select(studies).where(*there)).mappings().first()
    if row is None:
        raise NotFoundError("the study was deleted a moment ago")
    return _view(connection, row, now)


def list_studies(
    db: Database,
    *,
    cursor: str | None = None,
    limit: int = 50,
    state: str | None = None,
    tag: str | None = None,
) -> StudyPage:
    """Return a page of studies, the newest first.

    Args:
        tag: `key=value`, or `key` for any value.

    Raises:
        InputError: The cursor is not one of ours.
    """
    query = select(*_SUMMARY).where(studies.c.state != GONE)
    query = query.order_by(studies.c.id.desc()).limit(limit + 1)
    if state is not None:
        query = query.where(studies.c.state == state)
    if tag is not None:
        key, _, value = tag.partition("=")
        found = studies.c.tags[key].as_string()
        query = query.where(found == value if value else found.is_not(None))
    if cursor is not None:
        query = query.where(studies.c.id < decode_cursor(cursor, int)[0])
    with db.read() as connection:
        rows = list(connection.execute(query).mappings())
        now = db.now(connection)
        page = rows[:limit]
        views = _summaries(connection, page, now)
    more = len(rows) > limit
    return StudyPage(items=views, next_cursor=encode_cursor(page[-1]["id"]) if more else None)


def list_version(db: Database) -> str:
    """Return what tells one list of studies from another: how many, the newest, all revisions."""
    with db.read() as connection:
        count, newest, revisions = connection.execute(
            select(func.count(), func.max(studies.c.id), func.sum(studies.c.revision)).where(
                studies.c.state != GONE
            )
        ).one()
    return f"{count}-{newest or 0}-{revisions or 0}"


@dataclass(frozen=True, slots=True)
class StudyRevision:
    """What tells whether a study has changed."""

    revision: int
    has_ended: bool


def study_revisions(db: Database, public_ids: Sequence[str]) -> dict[str, StudyRevision]:
    """Return where studies stand, by id; cheap, for those who wait for a change."""
    columns = (studies.c.public_id, studies.c.revision, studies.c.state)
    with db.read() as connection:
        there = studies.c.public_id.in_(public_ids), studies.c.state != GONE
        rows = connection.execute(select(*columns).where(*there))
        return {ref: StudyRevision(revision, state in FINAL) for ref, revision, state in rows}


def _view(connection: Connection, row: Row, now: float) -> StudyView:
    (summary,) = _summaries(connection, [row], now)
    return StudyView(**dict(summary), definition=_as_changed(row))


def _as_changed(row: Row) -> dict[str, Any]:
    """Return the definition with what was changed of the study since it was submitted."""
    stored: dict[str, Any] = row["definition"]
    budget = {**stored.get("budget", {}), "max_failures": row["max_failures"]}
    if "trials" in budget:
        budget["trials"] = row["budget_trials"]
    if row["timeout_seconds"] is not None:
        budget["timeout"] = row["timeout_seconds"]
    changed = {"budget": budget, "priority": row["priority"], "tags": row["tags"]}
    resources = stored.get("resources", {})
    if "parallel_trials" in resources:
        changed["resources"] = {**resources, "parallel_trials": row["parallel_trials"]}
    return {**stored, **changed}


def _summaries(connection: Connection, rows: Sequence[Row], now: float) -> list[StudySummary]:
    best_ids = {row["id"]: best_trial_id(connection, row) for row in rows}
    best = views_by_id(connection, [one for one in best_ids.values() if one is not None])
    waiting = [row["id"] for row in rows if row["state"] in ACTIVE]
    live = live_now(connection, now) if waiting else []
    needed = needed_modules(connection, waiting) if waiting else {}
    owners = _owners(connection, {row["owner"] for row in rows if row["owner"]})
    return [
        _summary(
            row, best.get(best_ids[row["id"]] or -1), _waits(row, needed, live), now
        ).model_copy(update={"owner": owners.get(row["owner"])})
        for row in rows
    ]


def _owners(connection: Connection, ids: set[str]) -> dict[str, str]:
    """Return the names of API keys; of one that is not in the table (any more) its id."""
    if not ids:
        return {}
    rows = connection.execute(select(api_keys.c.id, api_keys.c.name).where(api_keys.c.id.in_(ids)))
    return {one: one for one in ids} | {row.id: row.name for row in rows}


def _waits(row: Row, needed: Mapping[int, set[str]], live: Sequence[LiveWorker]) -> str | None:
    if row["state"] not in ACTIVE:
        return None
    return waits_for(row["device"], needed.get(row["id"], ()), live)


def _summary(row: Row, best: TrialView | None, waits: str | None, now: float) -> StudySummary:
    return StudySummary(
        id=row["public_id"],
        name=row["name"],
        state=row["state"],
        reason=row["reason"] or waits,
        revision=row["revision"],
        device=row["device"],
        priority=row["priority"],
        parallel_trials=row["parallel_trials"],
        max_failures=row["max_failures"],
        timeout_seconds=row["timeout_seconds"],
        tags=row["tags"],
        created_at=time_of(row["created_at"]),
        started_at=time_of(row["started_at"]),
        finished_at=time_of(row["finished_at"]),
        progress=Progress(
            total=row["budget_trials"],
            open=row["slots_open"],
            leased=row["slots_leased"],
            done=row["slots_done"],
            failed=row["slots_failed"],
            cancelled=row["slots_cancelled"],
            pruned=row["trials_pruned"],
        ),
        best_trial=best,
        # What was found in the data when it was read for that trial.
        warnings=[] if best is None else best.record.get("warnings", []),
        eta_seconds=_eta(row, now),
    )


def _eta(row: Row, now: float) -> float | None:
    ended = row["slots_done"] + row["slots_failed"]
    if row["state"] != "running" or not ended:
        return None
    left = row["budget_trials"] - ended
    return float(worked_seconds(row, now) / ended * left)
