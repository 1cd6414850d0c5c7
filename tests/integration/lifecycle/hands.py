"""What the lifecycle's tests work with: small definitions, and a worker's hand on the lifecycle."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import optuna
from sqlalchemy import event, update

from tuner_service.definition import ModuleDescription, StudyDefinition, parse_definition
from tuner_service.lifecycle.claim import claim
from tuner_service.lifecycle.delete import delete_part
from tuner_service.lifecycle.flush import flush
from tuner_service.lifecycle.messages import (
    Batch,
    Claimed,
    Fail,
    Finish,
    Flushed,
    Lease,
    Report,
    Start,
)
from tuner_service.lifecycle.submit import submit
from tuner_service.reads.views import Failure, StudyView
from tuner_service.settings import Settings
from tuner_service.storage import Database
from tuner_service.storage.schema import slots

SETTINGS = Settings(lease_seconds=30.0, retry_backoff_seconds=0.0, reconcile_seconds=1.0)
PARAMETERS = {"learning_rate": {"type": "float", "low": 1e-4, "high": 1e-1, "log": True}}


def definition(
    modules: Mapping[str, ModuleDescription] | None = None, **changes: Any
) -> StudyDefinition:
    """A small random study, changed."""
    base = {
        "name": "small",
        "dataset": {"name": "iris"},
        "network": {"type": "mlp"},
        "objective": {"metric": "val_accuracy"},
        "parameters": PARAMETERS,
        "sampler": {"type": "random", "seed": 3},
        "training": {"epochs": 3},
        "budget": {"trials": 4},
    }
    return parse_definition({**base, **changes}, modules=modules)


def submitted(db: Database, **changes: Any) -> StudyView:
    return submit(db, definition(**changes), settings=SETTINGS)[0]


def remove(db: Database) -> None:
    """Delete all rows of the studies that were deleted, as the API's thread does."""
    while delete_part(db, size=1000) is not None:
        pass


class Hand:
    """A worker's hand on the lifecycle: the calls a supervisor makes."""

    def __init__(self, db: Database, name: str = "worker-1") -> None:
        self.db = db
        self.name = name

    def claim(self, limit: int = 1, lease_seconds: float = 30.0, **more: Any) -> Claimed:
        queue = more.pop("queue", "cpu")
        return claim(
            self.db,
            worker_id=self.name,
            queue=queue,
            limit=limit,
            lease_seconds=lease_seconds,
            **more,
        )

    def flush(self, lease_seconds: float = 30.0, **parts: Any) -> Flushed:
        return flush(
            self.db,
            worker_id=self.name,
            batch=Batch(**parts),
            lease_seconds=lease_seconds,
            settings=SETTINGS,
        )

    def starts(self, leases: list[Lease]) -> list[Start]:
        return [Start(lease, lease.parameters or {"learning_rate": 0.01}) for lease in leases]

    def start(self, lease: Lease) -> int:
        return self.flush(starts=self.starts([lease])).started[lease.key].trial_id

    def claim_and_start(self) -> tuple[Lease, int]:
        (lease,) = self.claim().leases
        return lease, self.start(lease)

    def report(self, lease: Lease, trial_id: int, *steps: int) -> Flushed:
        return self.flush(
            reports=[Report(lease, trial_id, step, 0.1 * step, {"step": step}) for step in steps]
        )

    def finish(self, lease: Lease, trial_id: int, value: float) -> Flushed:
        return self.flush(finishes=[Finish(lease, trial_id, "COMPLETE", (value,), {})])

    def fail(self, lease: Lease, trial_id: int | None, **how: Any) -> Flushed:
        failure = how.pop("failure", Failure(kind="user_code", message="boom"))
        return self.flush(fails=[Fail(lease, trial_id, failure, **{"blamed": True, **how})])


def expire(db: Database, lease: Lease, *, seconds: float = 1.0) -> None:
    """Let a lease run out: what the clock would do."""
    with db.write() as connection:
        connection.execute(
            update(slots)
            .where(slots.c.id == lease.slot_id, slots.c.fencing_token == lease.fencing_token)
            .where(slots.c.state == "leased")
            .values(lease_expires_at=db.now(connection) - seconds)
        )


@contextlib.contextmanager
def plain_optuna(url: str) -> Iterator[optuna.storages.RDBStorage]:
    """Optuna's own storage on the database, closed afterwards."""
    storage = optuna.storages.RDBStorage(url)
    yield storage
    storage.remove_session()
    storage.engine.dispose()


def in_a_hurry(db: Database) -> Database:
    """Return the database with SQLite's waits for the disk left out: tests cut no power."""
    if db.dialect == "sqlite":

        @event.listens_for(db._writer, "connect")
        def relax(connection: Any, _record: object) -> None:
            connection.execute("PRAGMA synchronous=OFF")

    return db
