"""What the model of the lifecycle does to its world: crashes, time, other programs, the end."""

import contextlib
import random
from collections.abc import Iterator
from typing import Any

from optuna.storages import RDBStorage
from optuna.trial import TrialState
from sqlalchemy import Connection, select, update
from sqlalchemy import delete as sql_delete

from tests.integration.lifecycle.hands import SETTINGS, Hand
from tuner_service.lifecycle.change import resume
from tuner_service.lifecycle.messages import Lease, Start
from tuner_service.lifecycle.reconcile import reconcile
from tuner_service.reads.studies import get_study
from tuner_service.reads.trials import get_trial
from tuner_service.storage import Database
from tuner_service.storage.optuna_rows import delete_study
from tuner_service.storage.schema import (
    epochs,
    idempotency_keys,
    slots,
    studies,
    trials,
    workers,
)

ENDED = ("completed", "cancelled", "failed")


class CrashError(Exception):
    """The process died here."""


class Dying(Database):
    """A database whose client dies between two transactions, or at a commit.

    Args:
        commits: How many transactions are committed before.
        deaf: It dies when the next one is committed, and does not hear of it; else right before.
    """

    def __init__(self, db: Database, *, commits: int = 0, deaf: bool = False) -> None:
        super().__init__(db.url, writer=db._writer, reader=db._reader)
        self._left = commits
        self._deaf = deaf

    @contextlib.contextmanager
    def write(self) -> Iterator[Connection]:
        dies = self._left == 0
        self._left -= 1
        with super().write() as connection:
            yield connection
            if dies and not self._deaf:
                raise CrashError
        if dies:
            raise CrashError


def everything(db: Database) -> list[Any]:
    """Return all that a transaction of the lifecycle may change."""
    with db.read() as connection:
        return [
            sorted(map(repr, connection.execute(select(table)).all()))
            for table in (studies, slots, trials, epochs, idempotency_keys)
        ]


def jump(db: Database, seconds: float) -> None:
    """Set the clock: move every time that the lifecycle decides by the other way."""
    with db.write() as connection:
        for table, names in (
            (slots, ("lease_expires_at",)),
            (studies, ("started_at", "paused_at", "finished_at", "created_at")),
            (workers, ("heartbeat_at", "started_at")),
        ):
            moved = {name: table.c[name] - seconds for name in names}
            connection.execute(update(table).values(moved))
        connection.execute(
            update(slots)
            .where(slots.c.not_before != 0)
            .values(not_before=slots.c.not_before - seconds)
        )


def point(lease: Lease) -> dict[str, Any]:
    """Return the slot's parameters, or what a sampler would have said."""
    if lease.parameters is not None:
        return lease.parameters
    return {"learning_rate": random.Random(lease.slot_id).uniform(1e-4, 1e-1)}


def tell_outside(storage: RDBStorage, trial_id: int, state: TrialState, value: float) -> bool:
    """End a trial as another Optuna program would; return whether it was RUNNING."""
    values = [value] if state is TrialState.COMPLETE else None
    with contextlib.suppress(RuntimeError, KeyError):  # it has ended, or is gone
        return storage.set_trial_state_values(trial_id, state, values)
    return False


def drain(db: Database, refs: list[str]) -> None:
    """I4: time, one honest worker and the database are enough to end every study."""
    for ref in refs:
        if get_study(db, ref).state == "paused":
            resume(db, ref)
    for seconds in (60.0, 60.0, 400.0):  # a lease and a heartbeat; the longest back-off
        jump(db, seconds)
        reconcile(db, settings=SETTINGS)
    with db.read() as connection:
        held = connection.execute(select(slots.c.id).where(slots.c.state == "leased")).all()
    assert not held, f"I4: leases that nobody holds: {held}"
    honest = Hand(db, "honest")
    while leases := honest.claim(8).leases:
        for lease in leases:
            trial_id = lease.trial_id
            if trial_id is None:
                start = Start(lease, point(lease))
                trial_id = honest.flush(starts=[start]).started[lease.key].trial_id
            assert not honest.finish(lease, trial_id, 0.5).lost
    for ref in refs:
        view = get_study(db, ref)
        assert view.state in ENDED, f"I4: {view.name} is {view.state}: {view.progress}"
        assert view.progress.open == view.progress.leased == 0, f"I4: {view.progress}"
        if view.best_trial is not None:
            assert get_trial(db, ref, view.best_trial.number).state == "COMPLETE"


def empty(db: Database) -> None:
    """Delete every study; the tables stay."""
    with db.write() as connection:
        ids = list(connection.execute(select(studies.c.optuna_study_id)).scalars())
        for table in (epochs, trials, slots, idempotency_keys, workers, studies):
            connection.execute(sql_delete(table))
        for optuna_id in ids:
            delete_study(connection, optuna_id)
