"""What can be claimed: the studies that have a slot ready for a worker, and those slots.

The statements are made once for each kind of question and read the clock themselves: to build one
anew costs more than to run it.
"""

from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, Literal

from sqlalchemy import ColumnElement, Connection, Select, and_, bindparam, func, or_, select

from tuner_service.lifecycle.attempts import LONGEST_BACKOFF_SECONDS
from tuner_service.reads.eligibility import (
    able_workers,
    can_run,
    has_modules,
    is_user_loop,
    on_queue,
    some_worker,
)
from tuner_service.reads.states import ACTIVE
from tuner_service.storage.database import CLOCK
from tuner_service.storage.postgres import among, integers
from tuner_service.storage.schema import slots, studies, workers

# How many studies a claim looks at and locks: the first in the order of claiming, one for each slot
# that it wants, and some to spare for those that turn out to have none.
MOST_STUDIES: Final = 32
SPARE_STUDIES: Final = 7


@dataclass(frozen=True, slots=True)
class ClaimRequest:
    """What a worker would take; without a name, what any live worker of the queue would."""

    queue: str
    worker_id: str | None = None
    exclude_exclusive: bool = False
    excluded: frozenset[int] = frozenset()
    limit: int = 1
    loops: int = 1


def claimable(connection: Connection, wanted: ClaimRequest) -> list[int]:
    """Return studies that have a slot ready, the first in the order of claiming."""
    statement = _studies(
        connection.dialect.name,
        wanted.queue,
        named=wanted.worker_id is not None,
        exclude_exclusive=wanted.exclude_exclusive,
        loops=wanted.loops > 0,
    )
    values = {
        "excluded": integers(connection, wanted.excluded),
        "most": min(wanted.limit + SPARE_STUDIES, MOST_STUDIES),
    }
    if wanted.worker_id is not None:
        values["worker"] = wanted.worker_id
    return list(connection.execute(statement, values).scalars())


def workers_to_ring(connection: Connection, now: float) -> dict[str, int]:
    """Return how many workers of each queue to ring, where a live one could claim a slot now.

    Each that is idle and able, so that no one takes what was meant for several; and one at least:
    who is listed as busy may be idle since.
    """
    wanted = {}
    for queue in ("cuda", "cpu"):
        if ready := claimable(connection, ClaimRequest(queue)):
            idle = able_workers(connection, ready, queue, now, idle=True)
            wanted[queue] = max(1, *idle.values()) if idle else 1
    return wanted


@lru_cache(maxsize=64)
def _studies(
    dialect: str, queue: str, *, named: bool, exclude_exclusive: bool, loops: bool
) -> Select[Any]:
    now = CLOCK[dialect].scalar_subquery()
    slot = _ready(dialect, exclude_exclusive=exclude_exclusive)
    return (
        select(studies.c.id)
        .where(
            studies.c.state.in_(ACTIVE),  # guard: claimable-active
            on_queue(queue, now),
            has_modules(bindparam("worker")) if named else some_worker(queue, now),
            *(() if loops else (~is_user_loop(),)),
            studies.c.slots_open > 0,
            studies.c.slots_leased < studies.c.parallel_trials,
            ~among(studies.c.id, bindparam("excluded")),
            slot.where(slots.c.study_id == studies.c.id).exists(),  # guard: claimable-ready
        )
        .order_by(
            studies.c.priority.desc(),
            studies.c.slots_leased,
            studies.c.created_at,
            studies.c.id,
        )
        .limit(bindparam("most"))
    )


def _ready(dialect: str, *, exclude_exclusive: bool) -> Select[Any]:
    """Return the SELECT of the ids of open slots whose back-off has passed."""
    now = CLOCK[dialect].scalar_subquery()
    waited: ColumnElement[bool] = or_(
        slots.c.not_before <= now,
        # A time beyond every back-off is from before the clock was set back.
        slots.c.not_before > now + LONGEST_BACKOFF_SECONDS,
    )
    query = select(slots.c.id).where(slots.c.state == "open", waited)
    return query.where(slots.c.exclusive.is_(False)) if exclude_exclusive else query


@lru_cache(maxsize=16)
def fresh_slots(dialect: str, *, exclude_exclusive: bool) -> Select[Any]:
    """Return the SELECT of a `:study`'s first `:most` ready slots that have no trial."""
    return _first(
        _ready(dialect, exclude_exclusive=exclude_exclusive).where(slots.c.trial_id.is_(None))
    )


@lru_cache(maxsize=16)
def handed_back_slots(dialect: str, *, exclude_exclusive: bool) -> Select[Any]:
    """Return the SELECT of a `:study`'s first `:most` ready slots that were handed back."""
    return _first(
        _ready(dialect, exclude_exclusive=exclude_exclusive).where(slots.c.trial_id.is_not(None))
    )


def _first(query: Select[Any]) -> Select[Any]:
    mine = query.where(slots.c.study_id == bindparam("study"))
    return mine.order_by(slots.c.number).limit(bindparam("most"))


@lru_cache(maxsize=16)
def exclusive_slots(dialect: str) -> Select[Any]:
    """Return the SELECT of the ready slots of studies `:ids` that must run alone."""
    return (
        _ready(dialect, exclude_exclusive=False)
        .add_columns(slots.c.study_id, slots.c.trial_id)
        .where(among(slots.c.study_id, bindparam("ids")), slots.c.exclusive)
        .order_by(slots.c.id)
    )


def exclusive_slot_to_serve(
    connection: Connection,
    *,
    worker_id: str,
    queue: Literal["cpu", "cuda"],
    busy_with: Collection[int],
    now: float,
) -> int | None:
    """Return the id of a ready slot that must run alone and for which this worker is to make room.

    Of all live workers that can run it the first by name makes room, so that no two do. It does so
    for no slot of a lower priority than all that it is busy with.

    Args:
        busy_with: The studies of the trials that the worker has.
    """
    found = claimable(connection, ClaimRequest(queue, worker_id, limit=MOST_STUDIES))
    ids = {"ids": integers(connection, found)}
    exclusive = connection.execute(exclusive_slots(connection.dialect.name), ids).mappings().all()
    if not exclusive:
        return None
    able = and_(can_run(queue, now), workers.c.state != "stopping")
    lowest = select(func.min(studies.c.priority)).where(studies.c.id.in_(busy_with))
    first = select(studies.c.id, func.min(workers.c.id)).select_from(studies)
    rows = connection.execute(
        first.join(workers, able)
        .where(
            studies.c.id.in_({row["study_id"] for row in exclusive}),
            studies.c.priority >= (connection.execute(lowest).scalar() or 0),
        )
        .group_by(studies.c.id)
    )
    mine = {study_id for study_id, worker in rows if worker == worker_id}
    return next((int(row["id"]) for row in exclusive if row["study_id"] in mine), None)
