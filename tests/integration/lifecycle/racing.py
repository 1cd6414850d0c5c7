"""What the tests of races share: two calls against each other, and what is often called."""

from typing import Any

from sqlalchemy import select

from tests.integration.lifecycle.hands import SETTINGS
from tests.integration.lifecycle.racers import Call, Point, Track, call
from tests.invariants import check_invariants
from tuner_service.lifecycle.claim import claim
from tuner_service.lifecycle.flush import flush
from tuner_service.lifecycle.messages import Batch, Finish, Lease
from tuner_service.lifecycle.reconcile import reconcile
from tuner_service.reads.trials import list_trials
from tuner_service.storage import Database
from tuner_service.storage.schema import slots


class Race:
    """Runs two calls against each other, either first."""

    def __init__(self, db: Database, track: Track, point: Point, swapped: bool) -> None:
        self.db = db
        self._track = track
        self._point = point
        self.swapped = swapped

    def __call__(self, one: Call, two: Call) -> tuple[Any, Any]:
        """Return the results of both, `one`'s first whoever ran first."""
        pair = (two, one) if self.swapped else (one, two)
        first, second = self._track.race(*pair, stop_at=self._point)
        check_invariants(self.db, settings=SETTINGS)
        return (second, first) if self.swapped else (first, second)


def claiming(worker: str, limit: int) -> Call:
    return call(claim, worker_id=worker, queue="cpu", limit=limit, lease_seconds=30.0)


def flushing(worker: str = "worker-1", **parts: Any) -> Call:
    return call(
        flush, worker_id=worker, batch=Batch(**parts), lease_seconds=30.0, settings=SETTINGS
    )


def finishing(lease: Lease, trial_id: int, value: float = 0.5, **more: Any) -> Call:
    return flushing(
        more.pop("worker", "worker-1"),
        finishes=[Finish(lease, trial_id, "COMPLETE", (value,), {}, **more)],
    )


RECONCILING = call(reconcile, settings=SETTINGS)


def slot_row(db: Database, lease: Lease) -> Any:
    with db.read() as connection:
        return connection.execute(select(slots).where(slots.c.id == lease.slot_id)).mappings().one()


def states(db: Database, study: str) -> list[str]:
    return [trial.state for trial in list_trials(db, study).items]
