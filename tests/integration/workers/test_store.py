"""The database's store keeps its contract, on both databases."""

from typing import Any, Literal

import pytest
from sqlalchemy import select, update

from tests.integration.lifecycle.hands import SETTINGS, definition, expire, in_a_hurry
from tests.unit.workers.store_contract import SlotStoreContract
from tuner_service.definition import ModuleDescription
from tuner_service.lifecycle.change import cancel, pause
from tuner_service.lifecycle.messages import Lease
from tuner_service.lifecycle.reconcile import reconcile
from tuner_service.lifecycle.submit import submit
from tuner_service.lifecycle.workers import publish_modules, register_worker
from tuner_service.storage import Database
from tuner_service.storage.schema import epochs, slots, studies, trials
from workers.supervisor.database_store import DatabaseSlotStore

LOOP = ModuleDescription(name="loop", source_hash="0" * 64, defines=("train",), open=True)
WORKER = "worker-1"


class DatabaseWorld:
    """The contract's world in a database."""

    def __init__(self, db: Database) -> None:
        self.db = db
        self.store = DatabaseSlotStore(db, SETTINGS, WORKER, "cpu")
        self._names = (f"study-{number}" for number in range(100))
        register_worker(
            db,
            worker_id=WORKER,
            host="here",
            pid=1,
            queue="cpu",
            device="cpu",
            version="0",
            lanes=64,
        )
        publish_modules(db, WORKER, {LOOP.name: ({}, LOOP.source_hash)})

    def submit(
        self, slots: int, *, priority: int = 0, parallel: int = 64, user_loop: bool = False
    ) -> int:
        loop = {"network": {"type": LOOP.name}, "dataset": None, "training": {}}
        study = definition(
            {LOOP.name: LOOP},
            **(loop if user_loop else {}),
            name=next(self._names),
            priority=priority,
            sampler={"type": "tpe"},
            budget={"trials": slots},
            resources={"parallel_trials": parallel},
        )
        view, _ = submit(self.db, study, settings=SETTINGS)
        with self.db.read() as connection:
            query = select(studies.c.id).where(studies.c.public_id == view.id)
            return int(connection.execute(query).scalar_one())

    def lose(self, lease: Lease) -> None:
        expire(self.db, lease)
        reconcile(self.db, settings=SETTINGS)
        other = DatabaseSlotStore(self.db, SETTINGS, "worker-2", "cpu")
        claimed = other.claim(
            limit=1, exclude_exclusive=False, exclude_studies=(), fair_share=False
        )
        assert [one.slot_id for one in claimed.leases] == [lease.slot_id]

    def ask_stop(self, study_id: int, reason: Literal["paused", "cancelled"]) -> None:
        with self.db.read() as connection:
            query = select(studies.c.public_id).where(studies.c.id == study_id)
            public_id = connection.execute(query).scalar_one()
        (pause if reason == "paused" else cancel)(self.db, public_id)

    def make_exclusive(self, lease: Lease) -> None:
        with self.db.write() as connection:
            connection.execute(
                update(slots).where(slots.c.id == lease.slot_id).values(exclusive=True)
            )

    def contents(self) -> Any:
        with self.db.read() as connection:
            leases_run_on = [column for column in slots.c if column.name != "lease_expires_at"]
            history = [
                self.store.history(study_id, after_trial_id=0, unfinished=())
                for study_id in connection.execute(select(studies.c.id)).scalars().all()
            ]
            return history, [
                sorted(map(repr, connection.execute(query).all()))
                for query in (select(*leases_run_on), select(trials), select(epochs))
            ]


class TestDatabaseSlotStore(SlotStoreContract):
    @pytest.fixture
    def world(self, db: Database) -> DatabaseWorld:
        return DatabaseWorld(in_a_hurry(db))
