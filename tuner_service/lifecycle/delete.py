"""Deleting studies: gone for everyone at once, its rows in parts.

All of a large study's rows in one transaction would keep SQLite's only writer for many seconds, and
PostgreSQL would give its statements up. So the study is marked and loses its name; from then on
nobody finds it, and no lease of it holds. Its rows follow in transactions that are short, by
whoever comes by: a part that was deleted is done, and what is left after a crash is found again.
"""

import time
from collections.abc import Callable
from typing import Final

from sqlalchemy import Connection, select, update
from sqlalchemy import delete as sql_delete

from tuner_service.errors import ConflictError
from tuner_service.lifecycle.counters import lock_rows, lock_study
from tuner_service.reads.states import ACTIVE
from tuner_service.storage import Database, optuna_rows
from tuner_service.storage.postgres import Row
from tuner_service.storage.schema import (
    GONE,
    epochs,
    idempotency_keys,
    slots,
    studies,
    study_modules,
    trials,
)

PART_SECONDS: Final = 0.1  # what a part should take: others wait for it
FIRST_PART: Final = 200
LARGEST_PART: Final = 10_000


def delete(db: Database, ref: str) -> str:
    """Delete a study that is not running: nobody finds it any more.

    Returns:
        Its id, for `leftovers.remove_files`.

    Raises:
        NotFoundError: There is none.
        ConflictError: It is queued or running: cancel it first.
    """
    with db.write() as connection:
        row = lock_study(connection, ref)
        if row["state"] in ACTIVE:  # guard: delete-running
            raise ConflictError(
                f"only a study that is paused or has ended can be deleted, but "
                f"{row['name']!r} is {row['state']}: cancel it first"
            )
        _mark(connection, row)
    return str(row["public_id"])


def delete_part(
    db: Database, *, size: int, note: Callable[[str], None] = lambda _: None
) -> int | None:
    """Delete up to `size` trials or slots of a study that was marked; when none is left, itself.

    Args:
        note: Called with its id before anything of it goes: after the last part the database
            does not know that it was deleted.

    Returns:
        The size for the next part; None if no study is marked.

    Raises:
        UnavailableError: The database cannot be reached.
    """
    with db.read() as connection:
        gone = select(studies.c.id, studies.c.public_id).where(studies.c.state == GONE)
        marked = gone.order_by(studies.c.id)
        found = connection.execute(marked.limit(1)).first()
    if found is None:
        return None
    study_id, public_id = found
    note(public_id)
    begun = time.monotonic()
    with db.write() as connection:
        for row in lock_rows(connection, [study_id]).values():
            begun = time.monotonic()
            if not (_delete_trials(connection, row, size) or _delete_slots(connection, row, size)):
                _delete_study(connection, row)
    return next_size(size, time.monotonic() - begun)


def next_size(size: int, seconds: float) -> int:
    """Return how large the next part should be, after one that took so long."""
    wanted = size * PART_SECONDS / max(seconds, 1e-3)
    return int(min(max(wanted, size / 4, 1), size * 2, LARGEST_PART))


def _mark(connection: Connection, row: Row) -> None:
    name = f"~{row['public_id']}"  # no study can be named like that
    connection.execute(
        update(studies)
        .where(studies.c.id == row["id"])
        .values(state=GONE, name=name, revision=studies.c.revision + 1)
    )
    optuna_rows.rename_study(connection, row["optuna_study_id"], name)
    keys = idempotency_keys.c.study_id == row["id"]
    connection.execute(sql_delete(idempotency_keys).where(keys))
    # Workers that train it yet learn at their next flush that their leases are lost.
    connection.execute(
        update(slots)
        .where(slots.c.study_id == row["id"], slots.c.state == "leased")
        .values(
            state="cancelled",
            worker_id=None,
            lease_expires_at=None,
            fencing_token=slots.c.fencing_token + 1,
        )
    )


def _delete_trials(connection: Connection, row: Row, size: int) -> bool:
    """Delete the last trials, so that the numbers of those left have no gap."""
    ids = optuna_rows.last_trials(connection, row["optuna_study_id"], size)
    for table in (epochs, trials):
        connection.execute(sql_delete(table).where(table.c.trial_id.in_(ids)))
    optuna_rows.delete_trials(connection, ids)
    return bool(ids)


def _delete_slots(connection: Connection, row: Row, size: int) -> bool:
    ids = select(slots.c.id).where(slots.c.study_id == row["id"]).limit(size)
    deleted = connection.execute(sql_delete(slots).where(slots.c.id.in_(ids)))
    return deleted.rowcount > 0


def _delete_study(connection: Connection, row: Row) -> None:
    connection.execute(sql_delete(study_modules).where(study_modules.c.study_id == row["id"]))
    connection.execute(sql_delete(studies).where(studies.c.id == row["id"]))
    optuna_rows.delete_study(connection, row["optuna_study_id"])
