"""What a supervisor needs of the database: claims, flushes and history, each one transaction."""

from collections.abc import Collection
from typing import Protocol

from tuner_service.lifecycle.claim import FairShare
from tuner_service.lifecycle.messages import Batch, Claimed, Flushed
from tuner_service.search.history import HistoryTrial


class SlotStore(Protocol):
    """Claims, flushes and what is read; each call is one transaction.

    Every method raises `UnavailableError` while the database is away.
    """

    def claim(
        self,
        *,
        limit: int,
        exclude_exclusive: bool,
        exclude_studies: Collection[int],
        fair_share: bool,
        loops: int | None = None,
    ) -> Claimed:
        """Lease up to `limit` open slots."""

    def flush(self, batch: Batch) -> Flushed:
        """Write a batch; written twice, it changes nothing the second time."""

    def others(self, study_id: int) -> FairShare:
        """Return how the study's work would be spread evenly over the live workers."""

    def exclusive_slot(self, busy_with: Collection[int]) -> int | None:
        """Return a slot that must run alone and for which this worker is to make room."""

    def history(
        self, study_id: int, *, after_trial_id: int, unfinished: Collection[int]
    ) -> list[HistoryTrial]:
        """Return the trials of a study that are new or were unfinished."""
