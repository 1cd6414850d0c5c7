"""Studies: asking them to pause, resume, cancel or change.

Each function is one transaction, but for a budget that is raised by many trials: its slots are
written in parts, each of which is a smaller raise, so that others can write in between. What the
state does not allow is a `ConflictError`; what changes nothing answers with the study as it is.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Connection, select, update

from tuner_service.access.quotas import check_quota
from tuner_service.definition.study import MAX_TAGS, TagKey
from tuner_service.definition.types import Int, Seconds, Text
from tuner_service.errors import ConflictError, InputError, NotFoundError, UnavailableError
from tuner_service.lifecycle.counters import lock_rows, lock_study
from tuner_service.lifecycle.ending import end_study, settle
from tuner_service.lifecycle.slot_rows import insert_slots, slot_rows
from tuner_service.reads.lookup import find_study
from tuner_service.reads.states import FINAL, TIMEOUT, paused_seconds, worked_seconds
from tuner_service.reads.stored import stored_definition
from tuner_service.reads.studies import get_study, study_view
from tuner_service.reads.views import StudyView
from tuner_service.settings import Settings
from tuner_service.storage import Database
from tuner_service.storage.postgres import Row
from tuner_service.storage.schema import slots, studies, trials

Action = Callable[[Connection, Row, float], None]

SLOTS_PER_PART: Final = 2000  # a tenth of a second or so
TRIES: Final = 30  # every round lets one of those through that raise the same budget


class StudyPatch(BaseModel):
    """What may be changed of a study; what is absent stays."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # The bounds of the definition: what it refuses must not come in by this door.
    trials: Int | None = Field(default=None, ge=1, le=10_000_000)
    timeout: Seconds | None = None
    max_failures: Int | None = Field(default=None, ge=0, le=1_000_000)
    priority: Int | None = Field(default=None, ge=-100, le=100)
    parallel_trials: Int | None = Field(default=None, ge=1, le=4096)
    tags: dict[TagKey, Text] | None = Field(default=None, max_length=MAX_TAGS)


def pause(db: Database, ref: str) -> StudyView:
    """Start no more trials, and hand the running ones back with a checkpoint.

    Raises:
        ConflictError: The study has ended.
    """
    return _change(db, ref, _pause)


def resume(db: Database, ref: str) -> StudyView:
    """Go on with a paused study.

    Raises:
        ConflictError: The study has ended.
    """
    return _change(db, ref, _resume)


def cancel(db: Database, ref: str) -> StudyView:
    """End a study: no new trial starts, the running ones are thrown away.

    Raises:
        NotFoundError: There is no such study.
    """
    return _change(db, ref, _cancel)


def patch(db: Database, ref: str, change: StudyPatch, *, settings: Settings) -> StudyView:
    """Change the budget, the priority, the parallelism or the tags.

    A raise that is cut off by an error stands as far as it came; asked again, it goes on there.

    Raises:
        ConflictError: The budget of a study that was cancelled or failed.
        InputError: The budget is lowered, or the trials of a grid are changed.
        QuotaError: The study's owner has too much under way.
    """
    view = _patch_part(db, ref, change, settings)
    rest = StudyPatch(trials=change.trials)
    while rest.trials is not None and view.progress.total < rest.trials:
        begun = time.monotonic()
        try:
            view = _patch_part(db, ref, rest, settings)
        except InputError:
            return get_study(db, ref)  # somebody raised it further meanwhile
        time.sleep(min(time.monotonic() - begun, 1.0))  # SQLite's writers do not queue
    return view


def add_points(
    db: Database, ref: str, points: Sequence[Mapping[str, Any]], *, settings: Settings
) -> StudyView:
    """Raise the budget by one trial for each point, which that trial tries.

    Args:
        points: As `enqueue` of a checked definition has them; what one leaves out is sampled.

    Raises:
        ConflictError: The study was cancelled or failed.
        InputError: It is a grid, or would have too many trials.
        QuotaError: The study's owner has too much under way.
    """
    for _ in range(TRIES):
        with db.read() as connection:
            row = find_study(connection, ref)
        wanted = StudyPatch(trials=row["budget_trials"] + len(points))
        total = _check_raise(row, row["budget_trials"] + len(points), settings)
        first, definition = row["budget_trials"], stored_definition(row["definition"])
        rows = list(slot_rows(definition, first=first, count=total, added=points))
        try:
            return _change(db, ref, _Patch(wanted, _SlotPart(first, rows, total), settings))
        except _RaisedMeanwhileError:
            continue
    raise UnavailableError(f"the budget of {ref!r} is fought over; try again")


def stop_trial(db: Database, ref: str, number: int) -> StudyView:
    """End a running trial at its next report, as PRUNED with the value that it has then.

    Raises:
        NotFoundError: There is no such study, or no such trial in it.
        ConflictError: The trial has ended.
    """

    def stop(connection: Connection, row: Row, now: float) -> None:
        del now
        mine = trials.c.study_id == row["id"], trials.c.number == number
        found = connection.execute(select(trials).where(*mine)).mappings().first()
        if found is None:
            raise NotFoundError(f"study {row['name']!r} has no trial {number} of its own")
        if found["state"] != "RUNNING":
            raise ConflictError(
                f"only a running trial can be stopped, but trial {number} is {found['state']}"
            )
        connection.execute(
            update(slots)
            .where(slots.c.id == found["slot_id"], slots.c.trial_id == found["trial_id"])
            .values(stop_trial_id=found["trial_id"])
        )
        _set(connection, row)

    return _change(db, ref, stop)


@dataclass(frozen=True, slots=True)
class _SlotPart:
    """Slots of a raise, drawn before the transaction that writes them.

    Attributes:
        first: The number of the first one; the budget of which the raise was thought out.
        total: How many slots the whole raise adds, of which these are the first.
    """

    first: int
    rows: Sequence[Mapping[str, Any]]
    total: int


class _RaisedMeanwhileError(Exception):
    """Another raise of the same budget came between the draw and the transaction."""


def _patch_part(db: Database, ref: str, change: StudyPatch, settings: Settings) -> StudyView:
    for _ in range(TRIES):
        part = _drawn(db, ref, change, settings)
        try:
            return _change(db, ref, _Patch(change, part, settings))
        except _RaisedMeanwhileError:
            continue
    raise UnavailableError(f"the budget of {ref!r} is fought over; try again")


def _drawn(db: Database, ref: str, change: StudyPatch, settings: Settings) -> _SlotPart | None:
    """Return the next slots of a raised budget; None if it is not raised."""
    if change.trials is None:
        return None
    with db.read() as connection:
        row = find_study(connection, ref)
    total = _check_raise(row, change.trials, settings)
    definition = stored_definition(row["definition"])
    first, count = row["budget_trials"], min(total, SLOTS_PER_PART)
    return _SlotPart(first, list(slot_rows(definition, first=first, count=count)), total)


def _check_raise(row: Row, wanted: int, settings: Settings) -> int:
    """Return how many slots a raise adds.

    Raises:
        InputError: The budget cannot be that.
    """
    if wanted == row["budget_trials"]:
        return 0
    definition = stored_definition(row["definition"])
    if definition.sampler.entry.budget_from_grid:  # guard: grid-budget
        raise InputError("the trials of a grid study are its points: they cannot be changed")
    if wanted < row["budget_trials"]:
        raise InputError(
            "a budget can only be raised: trials >= "
            f"{row['budget_trials']} must hold, but got {wanted}"
        )
    if wanted > settings.slots_cap:
        raise InputError(
            f"trials <= slots_cap must hold, but got (trials={wanted}, "
            f"slots_cap={settings.slots_cap})"
        )
    return int(wanted - row["budget_trials"])


# -- changes --------------------------------------------------------------------------------


def _change(db: Database, ref: str, action: Action) -> StudyView:
    """Lock the study, apply the action, and return the study as it is then."""
    with db.write() as connection:
        row = lock_study(connection, ref)
        now = db.now(connection)
        action(connection, row, now)
        return study_view(connection, row["id"], now=now)


def _set(connection: Connection, row: Row, **values: Any) -> None:
    connection.execute(
        update(studies)
        .where(studies.c.id == row["id"], studies.c.state == row["state"])
        .values(revision=studies.c.revision + 1, **values)
    )


def _refuse_final(row: Row, asked: str) -> None:
    if row["state"] in FINAL:
        raise ConflictError(
            f"only a study that has not ended can be {asked}, but {row['name']!r} is {row['state']}"
        )


def _pause(connection: Connection, row: Row, now: float) -> None:
    _refuse_final(row, "paused")
    if row["state"] != "paused":
        _set(connection, row, state="paused", paused_at=now)


def _resume(connection: Connection, row: Row, now: float) -> None:
    _refuse_final(row, "resumed")
    if row["state"] != "paused":
        return
    _set(
        connection,
        row,
        state="running",
        paused_at=None,
        paused_seconds=paused_seconds(row, now),
    )


def _cancel(connection: Connection, row: Row, now: float) -> None:
    if row["state"] in FINAL:
        return
    end_study(connection, row, "cancelled", "cancelled by request", now=now)


@dataclass(frozen=True, slots=True)
class _Patch:
    """The transaction of a change."""

    change: StudyPatch
    part: _SlotPart | None
    settings: Settings

    def __call__(self, connection: Connection, row: Row, now: float) -> None:
        change = self.change
        values: dict[str, Any] = {
            name: getattr(change, name)
            for name in ("priority", "parallel_trials", "tags")
            if getattr(change, name) is not None
        }
        if (change.trials, change.timeout, change.max_failures) != (None, None, None):
            if row["state"] in ("cancelled", "failed"):
                raise ConflictError(
                    f"the budget of a {row['state']} study cannot be raised: submit it again"
                )
            values |= self._raised(connection, row, now)
        if values:
            _set(connection, row, **values)
            # Less time or patience may end it here and now.
            settle(connection, lock_rows(connection, [row["id"]]).values(), now=now)

    def _raised(self, connection: Connection, row: Row, now: float) -> dict[str, Any]:
        """Return the columns of a raised budget; a completed study with more to do runs again."""
        change = self.change
        values: dict[str, Any] = {}
        if change.max_failures is not None:
            values["max_failures"] = change.max_failures
        if change.timeout is not None:
            values["timeout_seconds"] = change.timeout
        _refuse_without_time(row, change, now)
        more = self._add_slots(connection, row)
        if more:
            values["budget_trials"] = row["budget_trials"] + more
        was_late = row["reason"] == TIMEOUT
        again = _reopened(connection, row, change) if was_late else 0  # guard: reopened
        if more or again:
            total = again + (self.part.total if self.part is not None else 0)
            check_quota(connection, row["owner"] or "", self.settings, slots=total)
            values["slots_open"] = row["slots_open"] + more + again
            values["slots_cancelled"] = row["slots_cancelled"] - again
        if row["state"] == "completed" and (more or again):
            # The time between its end and now does not count against its timeout.
            idle = now - row["finished_at"]
            values |= {
                "state": "running",
                "reason": None,
                "finished_at": None,
                "paused_seconds": row["paused_seconds"] + idle,
            }
        return values

    def _add_slots(self, connection: Connection, row: Row) -> int:
        if self.part is None:
            return 0
        if row["budget_trials"] != self.part.first:
            raise _RaisedMeanwhileError
        insert_slots(connection, row["id"], self.part.rows)
        return len(self.part.rows)


def _refuse_without_time(row: Row, change: StudyPatch, now: float) -> None:
    timeout = change.timeout if change.timeout is not None else row["timeout_seconds"]
    used = worked_seconds(row, now)
    if change.trials is not None and timeout is not None and used >= timeout:
        raise ConflictError(
            f"more trials need more time: timeout > {used:.0f} s (the time used) must hold, but "
            f"got (timeout={timeout:g})"
        )


def _reopened(connection: Connection, row: Row, change: StudyPatch) -> int:
    """Open the slots again that the study's timeout cancelled, if it is raised."""
    if change.timeout is None or change.timeout <= worked_seconds(row, row["finished_at"]):
        return 0
    return connection.execute(
        update(slots)
        .where(slots.c.study_id == row["id"], slots.c.state == "cancelled")
        .values(
            state="open",
            trial_id=None,
            worker_id=None,
            not_before=0.0,
            fencing_token=slots.c.fencing_token + 1,
        )
    ).rowcount
