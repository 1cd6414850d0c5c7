"""What waits to be written to the database, and when it must be."""

from collections.abc import Iterable
from dataclasses import fields
from math import inf

from tuner_service.lifecycle.messages import Batch, Fail, Finish, HandBack, Lease, Report, Start

Outcome = Finish | Fail | HandBack

# Between two flushes at least twice what the last one took, within these bounds: many lanes finish
# close together, and one commit for all of them costs what one commit for one costs.
MIN_PAUSE_SECONDS = 0.01
MAX_PAUSE_SECONDS = 0.05


class Outbox:
    """One growing batch. What could not be written is put back and goes with the next.

    Starts and outcomes are written as soon as the pause since the last flush allows, reports
    within `flush_seconds`.
    """

    def __init__(self, *, flush_seconds: float) -> None:
        self._flush_seconds = flush_seconds
        self._batch = Batch()
        self._due = inf
        self._flushed_at = -inf
        self._pause = MIN_PAUSE_SECONDS

    def __len__(self) -> int:
        return _size(self._batch)

    def start(self, start: Start, now: float) -> None:
        """Create a trial."""
        self._batch.starts.append(start)
        self._hurry(now)

    def drop_start(self, lease: Lease) -> None:
        """Take back a start that has not been written."""
        self._batch.starts[:] = [s for s in self._batch.starts if s.lease.key != lease.key]

    def report(self, report: Report, now: float, *, first: bool = False) -> None:
        """Write an epoch, soon; a trial's first at once, since somebody may be watching."""
        self._batch.reports.append(report)
        if first:
            self._hurry(now)
        self._due = min(self._due, now + self._flush_seconds)

    def checkpoint(self, lease: Lease, step: int, now: float) -> None:
        """Note that a checkpoint exists, soon."""
        self._batch.checkpoints.append((lease, step))
        self._due = min(self._due, now + self._flush_seconds)

    def close(self, outcome: Outcome, now: float) -> None:
        """End a lease."""
        match outcome:
            case Finish():
                self._batch.finishes.append(outcome)
            case Fail():
                self._batch.fails.append(outcome)
            case HandBack():
                self._batch.hand_backs.append(outcome)
        self._hurry(now)

    @property
    def due(self) -> float:
        """When to flush; infinite while nothing waits."""
        return self._due

    def take(self, renew: Iterable[Lease], now: float) -> Batch:
        """Return everything that waits, with the leases to renew, and leave the outbox empty."""
        batch, self._batch = self._batch, Batch()
        batch.renew.extend(renew)
        self._due = inf
        self._flushed_at = now
        return batch

    def written(self, now: float) -> None:
        """The batch last taken is in the database; the next waits in proportion."""
        took = now - self._flushed_at
        self._pause = min(max(2 * took, MIN_PAUSE_SECONDS), MAX_PAUSE_SECONDS)
        self._flushed_at = now

    def put_back(self, batch: Batch) -> None:
        """Return a batch that was perhaps not written; its renewals are made anew."""
        for field in fields(Batch):
            if field.name != "renew":
                getattr(self._batch, field.name)[:0] = getattr(batch, field.name)
        self._due = self._flushed_at

    def _hurry(self, now: float) -> None:
        self._due = min(self._due, max(now, self._flushed_at + self._pause))


def _size(batch: Batch) -> int:
    return sum(len(getattr(batch, field.name)) for field in fields(Batch))
