"""Writing the outbox: when, what the database answers, and what ended runs leave behind."""

import logging

from tuner_service.lifecycle.messages import Batch, Flushed
from workers.protocol.messages import StopMode
from workers.supervisor.held_runs import LeasedTrial, Phase
from workers.supervisor.outbox import Outcome
from workers.supervisor.session import ServeSession
from workers.supervisor.store import SlotStore

logger = logging.getLogger(__name__)

RENEW_SECONDS = 1.0

_STOPS: dict[str, StopMode] = {
    "cancelled": "cancel",
    "paused": "checkpoint",
    "timeout": "timeout",
    "asked": "prune",
}


class OutboxWriter:
    """Writes what waits in the outbox, and acts on the answer.

    Attributes:
        renewed_at: When all leases that are held had their whole time before them.
    """

    def __init__(self, session: ServeSession, store: SlotStore) -> None:
        self._session = session
        self._store = store
        self._may_be_written = False
        self.renewed_at = session.now()

    @property
    def due(self) -> float:
        """When to write; infinite while nothing is held and nothing waits."""
        due = self._session.outbox.due
        if self._session.held.leased:
            due = min(due, self.renewed_at + self._renew_seconds)
        return due

    def write_if_due(self) -> int:
        """Write what is due; return how many runs ended by it.

        Raises:
            UnavailableError: The database is away; what waits stays in the outbox.
        """
        return self.write() if self.due <= self._session.now() else 0

    def write(self) -> int:
        """Write all that waits, and renew the leases; return how many runs ended by it.

        Raises:
            UnavailableError: The database is away; what waits stays in the outbox.
        """
        session, now = self._session, self._session.now()
        batch = session.outbox.take([run.lease for run in session.held.leased], now)
        try:
            flushed = self._store.flush(batch)
        except BaseException:
            session.outbox.put_back(batch)  # guard: kept-batch
            self._may_be_written = True  # perhaps only the answer was lost
            raise
        self.renewed_at = now
        session.outbox.written(session.now())
        self._apply(flushed)
        ended = self._end_runs(batch, flushed.lost)
        self._may_be_written = False
        return ended

    def _apply(self, flushed: Flushed) -> None:
        held = self._session.held
        for key in flushed.lost:
            if (run := held.of_lease(key)) is not None:
                self._session.forget(run)
        for key, started in flushed.started.items():
            run = held.of_lease(key)
            if run is not None and run.phase is Phase.STARTING:
                run.created(started.trial_id, started.number)
                run.ready()
        for key, reason in flushed.stop.items():
            if (run := held.of_lease(key)) is not None:
                self._session.stop([run], _STOPS[reason])
        for path in flushed.drop_models:
            self._session.directory.drop(path)

    def _end_runs(self, batch: Batch, lost: set[tuple[int, int]]) -> int:
        """Drop the checkpoints of slots that are done, and results that are not counted."""
        session = self._session
        for finish in batch.finishes:
            run = session.ended.get(finish.lease.key)
            if run is None:
                continue
            if finish.lease.key not in lost:
                if _may_leave_files(run):
                    self._drop_checkpoint(run)
            elif self._may_be_written:
                session.discard_result(run, None)  # its model stays: it may be counted after all
            else:
                logger.warning("lease lost, its result is not counted", extra=run.log())
                run.study.search.forget(finish.trial_id)
                session.discard_result(run, finish.model_path)
        for fail in batch.fails:
            run = session.ended.get(fail.lease.key)
            if run is not None and not fail.retry and fail.lease.key not in lost:
                self._drop_checkpoint(run)
        outcomes: list[Outcome] = [*batch.finishes, *batch.fails, *batch.hand_backs]
        for outcome in outcomes:
            session.ended.pop(outcome.lease.key, None)
        return len(outcomes)

    def _drop_checkpoint(self, run: LeasedTrial) -> None:
        self._session.directory.drop_checkpoint(run.study.work.public_id, run.lease.number)

    @property
    def _renew_seconds(self) -> float:
        # Once a second, so that a cancel is heard within two; sooner with very short leases.
        return min(RENEW_SECONDS, self._session.settings.lease_seconds / 3)


def _may_leave_files(run: LeasedTrial) -> bool:
    """Whether there can be checkpoints: to look for them costs a short trial more than its end."""
    # An attempt that died may have left one that nobody heard of; a user's loop has its directory
    # always.
    return (
        run.checkpoint_step is not None
        or run.lease.attempt > 1
        or run.study.definition.is_user_loop
    )
