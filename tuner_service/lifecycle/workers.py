"""Workers: who is there, what they can run, when they were last heard of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    ColumnElement,
    RowMapping,
    delete,
    insert,
    select,
    update,
)

from tuner_service.definition import ModuleDescription
from tuner_service.definition.modules import RefusedModule
from tuner_service.lifecycle.views import WorkerView
from tuner_service.storage.database import Database
from tuner_service.storage.schema import modules, refused_modules, workers

# Workers renew their entry every two seconds; one that missed this many seconds is not counted on.
LIVE_SECONDS = 15.0
# After this long without a word a worker leaves the list.
FORGET_SECONDS = 120.0
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
        connection.execute(delete(workers).where((workers.c.id == worker_id) | ~_is_listed(now)))
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


def list_workers(db: Database) -> list[WorkerView]:
    """Return the workers heard of lately, by start; who is not counted on any more is `lost`."""
    with db.read() as connection:
        now = db.now(connection)
        rows = connection.execute(
            select(workers, is_live(now).label("lives"))
            .where(_is_listed(now))
            .order_by(workers.c.started_at, workers.c.id)
        ).mappings()
        return [_view(row) for row in rows]


def is_live(now: float | ColumnElement[Any]) -> ColumnElement[bool]:
    """Heard of lately; not at a time to come, which is from before the clock was set back."""
    return workers.c.heartbeat_at.between(now - LIVE_SECONDS, now + LIVE_SECONDS)


@dataclass(frozen=True, slots=True)
class Modules:
    """What the listed workers say of their modules.

    Attributes:
        known: The description of each, by name.
        refused: Files that are not offered, by name.
    """

    known: dict[str, ModuleDescription]
    refused: list[RefusedModule]


def _is_listed(now: float) -> ColumnElement[bool]:
    return workers.c.heartbeat_at.between(now - FORGET_SECONDS, now + FORGET_SECONDS)


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
            _storable(file)[-MAX_NAME:]: _storable(reason)[:MAX_REASON]
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


def listed_modules(db: Database) -> Modules:
    """Return what modules the listed workers have, and which files they do not offer."""
    with db.read() as connection:
        listed = _is_listed(db.now(connection))
        rows = connection.execute(
            select(modules.c.name, modules.c.description)
            .join(workers, workers.c.id == modules.c.worker_id)
            .where(listed)
            .order_by(modules.c.name, workers.c.started_at)
        )
        known = {name: ModuleDescription.model_validate(text) for name, text in rows}
        refused: dict[tuple[str, str], list[str]] = {}
        for row in connection.execute(
            select(refused_modules)
            .join(workers, workers.c.id == refused_modules.c.worker_id)
            .where(listed)
            .order_by(refused_modules.c.file, workers.c.started_at)
        ):
            refused.setdefault((row.file, row.reason), []).append(row.worker_id)
    return Modules(
        known,
        [
            RefusedModule(file=file, reason=reason, workers=tuple(ids))
            for (file, reason), ids in refused.items()
        ],
    )


def _storable(text: str) -> str:
    """Return a text without what a database's UTF-8 cannot hold, such as a broken file name."""
    return text.encode("utf-8", "replace").decode().replace("\0", "?")


def _view(row: RowMapping) -> WorkerView:
    values = dict(row)
    if not values.pop("lives"):
        values |= {"state": "lost", "current_trials": []}  # what it said last is out of date
    for name in ("started_at", "heartbeat_at"):
        values[name] = datetime.fromtimestamp(values[name], UTC)
    return WorkerView(**values)
