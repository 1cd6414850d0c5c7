"""Reconciling: what any process may do at any time, and as often as it likes.

Reap expired leases, shorten those that a clock set back made long, end studies that are through or
out of time, and say which queues to ring.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, or_, select, update

from tuner_service.lifecycle.attempts import EndedAttempt, end_attempts
from tuner_service.lifecycle.claimable import workers_to_ring
from tuner_service.lifecycle.counters import CounterChanges, lock_rows
from tuner_service.lifecycle.ending import settle
from tuner_service.lifecycle.foreign_trials import adopt, ended_outside, without
from tuner_service.reads.states import ACTIVE, timed_out
from tuner_service.reads.views import Failure
from tuner_service.settings import Settings
from tuner_service.storage import Database, optuna_rows
from tuner_service.storage.postgres import Row
from tuner_service.storage.schema import slots, studies


@dataclass(frozen=True, slots=True)
class Reconciled:
    """What one round did, and how many workers of each queue to ring."""

    reaped: int
    finished: list[str]
    rings: dict[str, int]


def reconcile(db: Database, *, settings: Settings) -> Reconciled:
    """Do one round: one transaction for each study that needs something.

    Raises:
        UnavailableError: The database cannot be reached.
    """
    with db.read() as connection:
        now = db.now(connection)
        needy = _with_leases_to_mend(connection, now, settings) | _maybe_ending(connection, now)
        rings = workers_to_ring(connection, now)  # guard: reconcile-rings
    reaped, finished = 0, []
    for study_id in sorted(needy):
        with db.write() as connection:
            rows = lock_rows(connection, [study_id])
            now = db.now(connection)
            _shorten(connection, rows, settings, now)  # guard: reconcile-shortens
            reaped += _reap(connection, rows, settings, now)
            finished += settle(
                connection, lock_rows(connection, rows).values(), now=now
            )  # guard: reconcile-ends
    return Reconciled(reaped, finished, rings)


def _overlong(now: float, settings: Settings) -> ColumnElement[bool]:
    """A lease from before the clock was set back; other processes' settings may differ a little."""
    return slots.c.lease_expires_at > now + 2 * settings.lease_seconds


def _with_leases_to_mend(connection: Connection, now: float, settings: Settings) -> set[int]:
    """Return studies with leases that ran out or are overlong."""
    mend = or_(slots.c.lease_expires_at < now, _overlong(now, settings))
    leased = select(slots.c.study_id).where(slots.c.state == "leased", mend)
    return set(connection.execute(leased.distinct()).scalars())


def _shorten(
    connection: Connection, rows: Mapping[int, Row], settings: Settings, now: float
) -> None:
    """Leave overlong leases of a locked study one lease's time.

    A worker that lives renews them in it. Those of a lost one would last for as long as the clock
    went back, and with them its RUNNING trials.
    """
    connection.execute(
        update(slots)
        .where(slots.c.study_id.in_(list(rows)), slots.c.state == "leased")
        .where(_overlong(now, settings))
        .values(lease_expires_at=now + settings.lease_seconds)  # guard: shorten-to
    )


def _maybe_ending(connection: Connection, now: float) -> set[int]:
    """Return studies that nothing runs of and that may be through, or out of time.

    What ends a study is seen in the transaction in which it happens, but for the passing of time.
    """
    rows = connection.execute(
        select(studies).where(
            studies.c.state.in_((*ACTIVE, "paused")),
            studies.c.slots_leased == 0,
            (studies.c.slots_open == 0) | studies.c.timeout_seconds.is_not(None),
        )
    ).mappings()
    return {row["id"] for row in rows if row["slots_open"] == 0 or timed_out(row, now)}


def _reap(connection: Connection, rows: Mapping[int, Row], settings: Settings, now: float) -> int:
    """End the expired leases of a locked study; looked up under the lock, after any heartbeat."""
    if not rows:
        return 0
    optuna_rows.lock_studies(connection, (row["optuna_study_id"] for row in rows.values()))
    gone = list(
        connection.execute(
            select(slots).where(
                slots.c.study_id.in_(list(rows)),
                slots.c.state == "leased",
                slots.c.lease_expires_at < now,  # guard: reap-expired
            )
        ).mappings()
    )
    tally = CounterChanges()
    outside = ended_outside(connection, gone)
    adopt(connection, outside, tally=tally, now=now)
    lost = without(gone, outside)
    ended = [_lost(slot, rows[slot["study_id"]], settings) for slot in lost]
    end_attempts(connection, ended, studies=rows, tally=tally, settings=settings, now=now)
    tally.write(connection)
    return len(gone)


def _lost(slot: Row, study: Row, settings: Settings) -> EndedAttempt:
    # Not heard of, or unable to write: a full disk and a network that is cut look alike from here.
    failure = Failure(
        kind="worker_lost",
        message=f"worker {slot['worker_id']} was not heard of for {settings.lease_seconds:g} s, "
        "or could not write to the database",
    )
    if study["state"] in ("cancelled", "failed"):
        failure = Failure(kind="cancelled", message=f"the study is {study['state']}")
    return EndedAttempt(
        slot=slot,
        failure=failure,
        blamed=False,
        shared_death=False,
        retry=True,
        checkpoint_step=None,
        lost_lease=slot["trial_id"] is not None,
    )
