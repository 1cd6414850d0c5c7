"""One worker's store of slots, on the database."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from tuner_service.lifecycle.claim import FairShare, claim, others
from tuner_service.lifecycle.claimable import exclusive_slot_to_serve
from tuner_service.lifecycle.flush import flush
from tuner_service.lifecycle.messages import Batch, Claimed, Flushed
from tuner_service.reads.history import load_history
from tuner_service.search.history import HistoryTrial
from tuner_service.settings import Settings
from tuner_service.storage import Database


@dataclass(frozen=True, slots=True)
class DatabaseSlotStore:
    """Binds the lifecycle's transactions to one worker."""

    db: Database
    settings: Settings
    worker_id: str
    queue: Literal["cpu", "cuda"]

    def claim(
        self,
        *,
        limit: int,
        exclude_exclusive: bool,
        exclude_studies: Collection[int],
        fair_share: bool,
        loops: int | None = None,
    ) -> Claimed:
        """Lease up to `limit` open slots of this worker's queue."""
        return claim(
            self.db,
            worker_id=self.worker_id,
            queue=self.queue,
            limit=limit,
            lease_seconds=self.settings.lease_seconds,
            exclude_exclusive=exclude_exclusive,
            exclude_studies=exclude_studies,
            fair_share=fair_share,
            loops=loops,
        )

    def flush(self, batch: Batch) -> Flushed:
        """Write a batch in one transaction."""
        return flush(
            self.db,
            worker_id=self.worker_id,
            batch=batch,
            lease_seconds=self.settings.lease_seconds,
            settings=self.settings,
        )

    def others(self, study_id: int) -> FairShare:
        """Return how the study's work would be spread evenly."""
        with self.db.read() as connection:
            return others(connection, study_id, self.queue, self.db.now(connection))

    def exclusive_slot(self, busy_with: Collection[int]) -> int | None:
        """Return a slot that must run alone and for which this worker is to make room."""
        with self.db.read() as connection:
            return exclusive_slot_to_serve(
                connection,
                worker_id=self.worker_id,
                queue=self.queue,
                busy_with=busy_with,
                now=self.db.now(connection),
            )

    def history(
        self, study_id: int, *, after_trial_id: int, unfinished: Collection[int]
    ) -> list[HistoryTrial]:
        """Return the trials of a study that are new or were unfinished."""
        return load_history(self.db, study_id, after_trial_id=after_trial_id, unfinished=unfinished)
