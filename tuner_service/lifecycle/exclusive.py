"""Slots that must run alone, and wait because nobody's trainer is empty."""

from collections.abc import Collection
from typing import Literal

from sqlalchemy import Connection, and_, func, select

from tuner_service.lifecycle.claimable import MOST_STUDIES, ClaimRequest, claimable, exclusive_slots
from tuner_service.reads.eligibility import can_run
from tuner_service.storage.postgres import integers
from tuner_service.storage.schema import studies, workers


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
    alone = connection.execute(exclusive_slots(connection.dialect.name), ids).mappings().all()
    if not alone:
        return None
    able = and_(can_run(queue, now), workers.c.state != "stopping")
    lowest = select(func.min(studies.c.priority)).where(studies.c.id.in_(busy_with))
    first = select(studies.c.id, func.min(workers.c.id)).select_from(studies)
    rows = connection.execute(
        first.join(workers, able)
        .where(
            studies.c.id.in_({row["study_id"] for row in alone}),
            studies.c.priority >= (connection.execute(lowest).scalar() or 0),
        )
        .group_by(studies.c.id)
    )
    mine = {study_id for study_id, worker in rows if worker == worker_id}
    return next((int(row["id"]) for row in alone if row["study_id"] in mine), None)
