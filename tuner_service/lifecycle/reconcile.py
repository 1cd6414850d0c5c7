"""Reconciling: what any process may do at any time, and as often as it likes.

Reap expired leases, end studies that are through or out of time, and say which queues to ring.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from sqlalchemy import ColumnElement, Connection, and_, or_, select

from tuner_service.lifecycle.attempts import EndedAttempt, end_attempts
from tuner_service.lifecycle.claimable import workers_to_ring
from tuner_service.lifecycle.ending import ACTIVE, settle, timed_out
from tuner_service.lifecycle.outside import adopt, ended_outside, without
from tuner_service.lifecycle.tally import Tally, lock_rows
from tuner_service.lifecycle.views import Failure
from tuner_service.lifecycle.workers import is_live
from tuner_service.settings import Settings
from tuner_service.storage import Database, optuna_rows
from tuner_service.storage.pipeline import Row
from tuner_service.storage.schema import slots, studies, workers

LONGEST_LEASE_SECONDS: Final = 2 * 3600.0  # settings allow half of it


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
        needy = _with_expired_leases(connection, now, settings) | _maybe_ending(connection, now)
        rings = workers_to_ring(connection, now)
    reaped, finished = 0, []
    for study_id in sorted(needy):
        with db.write() as connection:
            rows = lock_rows(connection, [study_id])
            now = db.now(connection)
            reaped += _reap(connection, rows, settings, now)
            finished += settle(connection, lock_rows(connection, rows).values(), now=now)
    return Reconciled(reaped, finished, rings)


def _expired(now: float, settings: Settings) -> ColumnElement[bool]:
    """A lease that ran out, or a stray one, from before the clock was set back.

    A worker that lives renews a stray lease within a second or two. Of one that is lost nobody
    would, and its trial would stay RUNNING for as long as the clock went back.
    """
    ends = slots.c.lease_expires_at
    lives = select(workers.c.id).where(workers.c.id == slots.c.owner, is_live(now)).exists()
    stray = or_(
        and_(ends > now + settings.lease_seconds, ~lives),
        ends > now + LONGEST_LEASE_SECONDS,
    )
    return and_(slots.c.state == "leased", or_(ends < now, stray))


def _with_expired_leases(connection: Connection, now: float, settings: Settings) -> set[int]:
    expired = _expired(now, settings)
    return set(connection.execute(select(slots.c.study_id).where(expired).distinct()).scalars())


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
            select(slots).where(slots.c.study_id.in_(list(rows)), _expired(now, settings))
        ).mappings()
    )
    tally = Tally()
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
        message=f"the lease was not renewed for {settings.lease_seconds:g} s: worker "
        f"{slot['owner']} was not heard of, or the database could not be written",
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
