"""Workers: who is there, and what they can run."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    ColumnElement,
    RowMapping,
    select,
)

from tuner_service.definition import ModuleDescription
from tuner_service.definition.user_modules import RefusedModule
from tuner_service.reads.views import WorkerView
from tuner_service.storage.database import Database
from tuner_service.storage.schema import modules, refused_modules, workers

# Workers renew their entry every two seconds; one that missed this many seconds is not counted on.
LIVE_SECONDS = 15.0


# After this long without a word a worker leaves the list.
FORGET_SECONDS = 120.0


def list_workers(db: Database) -> list[WorkerView]:
    """Return the workers heard of lately, by start; who is not counted on any more is `lost`."""
    with db.read() as connection:
        now = db.now(connection)
        rows = connection.execute(
            select(workers, is_live(now).label("lives"))
            .where(is_listed(now))
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


def is_listed(now: float) -> ColumnElement[bool]:
    """Heard of within the last two minutes: shown in the list, if perhaps as lost."""
    return workers.c.heartbeat_at.between(now - FORGET_SECONDS, now + FORGET_SECONDS)


def listed_modules(db: Database) -> Modules:
    """Return what modules the listed workers have, and which files they do not offer."""
    with db.read() as connection:
        listed = is_listed(db.now(connection))
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


def _view(row: RowMapping) -> WorkerView:
    values = dict(row)
    if not values.pop("lives"):
        values |= {"state": "lost", "current_trials": []}  # what it said last is out of date
    for name in ("started_at", "heartbeat_at"):
        values[name] = datetime.fromtimestamp(values[name], UTC)
    return WorkerView(**values)
