"""Workers: who is there, what they can run, when they were last heard of."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import (
    delete,
    insert,
    update,
)

from tuner_service.json_values import storable
from tuner_service.reads.workers import is_listed
from tuner_service.storage.database import Database
from tuner_service.storage.schema import modules, refused_modules, workers

MAX_NAME = 128
MAX_REASON = 1_000


def register_worker(
    db: Database,
    *,
    worker_id: str,
    host: str,
    pid: int,
    queue: str,
    device: str | None,
    version: str,
    lanes: int,
) -> None:
    """List a worker, replacing an entry of the same id; long-lost ones leave the list."""
    with db.write() as connection:
        now = db.now(connection)
        connection.execute(delete(workers).where((workers.c.id == worker_id) | ~is_listed(now)))
        connection.execute(
            insert(workers).values(
                id=worker_id,
                host=host,
                pid=pid,
                queue=queue,
                device=device,
                version=version,
                state="idle",
                lanes=lanes,
                current_trials=[],
                started_at=now,
                heartbeat_at=now,
            )
        )


def worker_heartbeat(
    db: Database,
    worker_id: str,
    *,
    state: str,
    lanes: int,
    current_trials: Sequence[Mapping[str, Any]],
) -> bool:
    """Renew a worker's entry.

    Returns:
        False if it is not listed (any more): register again.
    """
    with db.write() as connection:
        renewed = connection.execute(
            update(workers)
            .where(workers.c.id == worker_id)
            .values(
                heartbeat_at=db.now(connection),
                state=state,
                lanes=lanes,
                current_trials=[dict(trial) for trial in current_trials],
            )
        )
        return renewed.rowcount == 1


def leave(db: Database, worker_id: str) -> None:
    """Take a worker off the list; one that is not on it stays off."""
    with db.write() as connection:
        connection.execute(delete(workers).where(workers.c.id == worker_id))


def publish_modules(
    db: Database,
    worker_id: str,
    published: Mapping[str, tuple[Mapping[str, Any], str]],
    refused: Mapping[str, str] | None = None,
) -> None:
    """Replace what modules a worker has.

    Args:
        published: By module name: its description (parameters of `build`) and its source hash.
        refused: Why files are not offered, by file name.
    """
    with db.write() as connection:
        connection.execute(delete(modules).where(modules.c.worker_id == worker_id))
        rows = [
            {
                "worker_id": worker_id,
                "name": name,
                "description": dict(description),
                "source_hash": source_hash,
            }
            for name, (description, source_hash) in published.items()
        ]
        if rows:
            connection.execute(insert(modules), rows)
        mine = refused_modules.c.worker_id == worker_id
        connection.execute(delete(refused_modules).where(mine))
        # By what is stored of the names: two files may be one there.
        reasons = {
            storable(file)[-MAX_NAME:]: storable(reason)[:MAX_REASON]
            for file, reason in (refused or {}).items()
        }
        if reasons:
            connection.execute(
                insert(refused_modules),
                [
                    {"worker_id": worker_id, "file": file, "reason": reason}
                    for file, reason in reasons.items()
                ],
            )
