"""The serve loop's turn at the database, and what happens while it is away.

Order matters: what happened is written before more is claimed, since a finished trial makes room
under its study's `parallel_trials`; and parameters are asked after that, when the sampler knows
the most.
"""

import logging
from math import inf

from tuner_service.errors import TunerError, UnavailableError
from workers.supervisor.balance import Rebalancer
from workers.supervisor.claims import ClaimSchedule
from workers.supervisor.exclusive import ExclusiveSlots
from workers.supervisor.outbox_writer import OutboxWriter
from workers.supervisor.parameters import prepare_runs, refresh_pruners
from workers.supervisor.session import ServeSession
from workers.supervisor.store import SlotStore
from workers.supervisor.studies import Studies

logger = logging.getLogger(__name__)

_FIRST_SECONDS = 0.1
_LONGEST_SECONDS = 2.0


class DatabaseSync:
    """Writes what happened and takes on what is next."""

    def __init__(self, session: ServeSession, store: SlotStore, studies: Studies) -> None:
        self._session = session
        self._store = store
        self._backoff = Backoff()
        self._rebalancer = Rebalancer(session, store)
        self._exclusive = ExclusiveSlots(session, store)
        self._writer = OutboxWriter(session, store)
        self._claims = ClaimSchedule(
            session, store, studies, rebalancer=self._rebalancer, exclusive=self._exclusive
        )

    @property
    def due(self) -> float:
        """When there will be something to do; infinite while nothing waits."""
        return max(min(self._writer.due, self._claims.due), self._backoff.retry_at)

    @property
    def exhausted(self) -> bool:
        """Whether there is nothing to claim, as far as is known."""
        return self._claims.found_nothing or self._claims.gave_up

    @property
    def leases_ended(self) -> bool:
        """Whether the database was away for as long as the leases last."""
        lasted = self._session.now() - self._writer.renewed_at
        return self._backoff.active and lasted >= self._session.settings.lease_seconds

    def sync(self) -> None:
        """Write, claim and ask what is due, unless the database is away."""
        if not self._backoff.may_try(self._session.now()):
            return
        try:
            self._write_if_due()
            self._claim_if_due()
            prepare_runs(self._session, self._store, capacity=self._claims.capacity)
            refresh_pruners(self._session, self._store)
            self._rebalancer.rebalance()
            self._exclusive.make_room()
            # A start that was just made goes out now; its trial waits for nothing else.
            self._write_if_due()
        except UnavailableError as error:
            if self._backoff.failed(self._session.now()):
                logger.warning("database away, training on: %s", error)
        else:
            if self._backoff.recovered():
                logger.info("database is back")

    def give_up_claiming(self) -> None:
        """Claim nothing more in this session."""
        self._claims.gave_up = True

    def write_once(self) -> None:
        """Write what waits, now or never; the loop has failed and nobody will try again."""
        try:
            self._writer.write()
        except TunerError as error:
            logger.error("could not write: %s", error)  # noqa: TRY400  # expected while it is away

    def _write_if_due(self) -> None:
        self._claims.runs_ended(self._writer.write_if_due())

    def _claim_if_due(self) -> None:
        was_empty = not self._session.held.runs
        self._claims.claim_if_due()
        if was_empty and self._session.held.runs:
            self._writer.renewed_at = self._session.now()  # all that is held was claimed just now


class Backoff:
    """Back-off while the database is away: 0.1, 0.2, 0.4 … 2 s between tries."""

    def __init__(self) -> None:
        self.retry_at = -inf
        self._wait = 0.0

    @property
    def active(self) -> bool:
        """Whether the last try failed."""
        return self._wait > 0

    def may_try(self, now: float) -> bool:
        """Return whether it is time to try (again)."""
        return now >= self.retry_at

    def failed(self, now: float) -> bool:
        """Note a failed try; return whether it is the first of this outage."""
        first = not self.active
        self._wait = min(max(self._wait * 2, _FIRST_SECONDS), _LONGEST_SECONDS)
        self.retry_at = now + self._wait
        return first

    def recovered(self) -> bool:
        """Note a try that worked; return whether an outage ended by it."""
        was_active = self.active
        self._wait, self.retry_at = 0.0, -inf
        return was_active
