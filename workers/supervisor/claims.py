"""Claiming slots: when, how many (by how fast trials end), and which of them are taken on."""

import math
from math import inf

from tuner_service.lifecycle.messages import Claimed, HandBack
from workers.supervisor.balance import Rebalancer
from workers.supervisor.exclusive import ExclusiveSlots
from workers.supervisor.held_runs import split_exclusive
from workers.supervisor.session import ServeSession
from workers.supervisor.store import SlotStore
from workers.supervisor.studies import Studies

IDLE_CLAIM_SECONDS = 0.5
FULL_CLAIM_SECONDS = 0.05

_MEMORY_SECONDS = 1.0
# A slot claimed now is at work after about two commits. What ends in that time should be at hand
# already; more would be kept from other workers for nothing.
_LEAD_SECONDS = 0.25
_MOST_AHEAD = 64


class ClaimSchedule:
    """Claims as many slots as the worker can use.

    Attributes:
        found_nothing: Whether the last claim found no slot, and none has opened here since.
        gave_up: Claim nothing more in this session.
    """

    def __init__(
        self,
        session: ServeSession,
        store: SlotStore,
        studies: Studies,
        *,
        rebalancer: Rebalancer,
        exclusive: ExclusiveSlots,
    ) -> None:
        self._session = session
        self._store = store
        self._studies = studies
        self._rebalancer = rebalancer
        self._exclusive = exclusive
        self._completion_rate = CompletionRate(session.now())
        self.found_nothing = False
        self.gave_up = False
        # Slots that must run alone and all others take turns: one whose trials end their trainer
        # would else have the worker to itself, since after each of their ends it holds nothing.
        self._was_exclusive = False
        self._claim_at = session.now()
        self._beyond_share_at = inf

    @property
    def due(self) -> float:
        """When to claim; infinite while there is no room."""
        return self._claim_at if self._limit() > 0 else inf

    @property
    def capacity(self) -> int:
        """How many runs to hold: claiming ahead keeps lanes from waiting for a commit."""
        return self._session.lanes + self._completion_rate.ahead(self._session.now())

    def runs_ended(self, count: int) -> None:
        """Note that runs ended: their slots may be open again, and their studies have room."""
        if count:
            now = self._session.now()
            self._completion_rate.note(count, now)
            self.found_nothing = False
            self._claim_at = min(self._claim_at, now)

    def claim_if_due(self) -> None:
        """Claim slots if it is time and there is room.

        Raises:
            UnavailableError: The database is away.
        """
        limit = self._limit()
        if limit <= 0 or self._session.now() < self._claim_at:
            return
        was_empty = not self._session.held.runs
        claimed = self._claim(limit, exclude_exclusive=self._was_exclusive or not was_empty)
        if was_empty and self._was_exclusive and not claimed.leases:
            claimed = self._claim(limit, exclude_exclusive=False)
        self._plan(got_all=len(claimed.leases) == limit)
        self.found_nothing = not claimed.leases
        if was_empty:
            self._exclusive.claimed()
        self._take_on(claimed, was_empty=was_empty)

    def _claim(self, limit: int, *, exclude_exclusive: bool) -> Claimed:
        session = self._session
        is_full = len(session.held) >= self.capacity
        user_loops = sum(run.study.definition.is_user_loop for run in session.held)
        return self._store.claim(
            limit=limit,
            exclude_exclusive=exclude_exclusive,
            exclude_studies=self._rebalancer.cooling_down
            | (session.held.study_ids if is_full else set()),
            fair_share=session.now() < self._beyond_share_at,
            loops=max(0, session.loops - user_loops),
        )

    def _plan(self, *, got_all: bool) -> None:
        # A write that ends runs makes the next claim due; these times are for when none does.
        now = self._session.now()
        self._claim_at = now + (FULL_CLAIM_SECONDS if got_all else IDLE_CLAIM_SECONDS)
        # After a while this worker also takes what others do not take of their shares.
        if got_all:
            self._beyond_share_at = inf
        elif not now < self._beyond_share_at < inf:
            self._beyond_share_at = now + IDLE_CLAIM_SECONDS

    def _take_on(self, claimed: Claimed, *, was_empty: bool) -> None:
        session = self._session
        mine, others = split_exclusive(claimed.leases, nothing_held=was_empty)
        for lease in mine:
            session.held.add(lease, self._studies.get(claimed.studies[lease.study_id]))
            self._was_exclusive = lease.exclusive
        for lease in others:
            session.outbox.close(HandBack(lease, lease.checkpoint_step), session.now())

    def _limit(self) -> int:
        """Return how many slots to claim now.

        A few places beyond the capacity are kept for studies that come later, so that a long study
        cannot shut them out.
        """
        session = self._session
        if session.lanes == 0 or self.gave_up or session.stopping.is_set():
            return 0
        if self._exclusive.clearing or any(run.is_exclusive for run in session.held):
            return 0
        room = self.capacity - len(session.held)
        return room if room > 0 else room + _reserve(session.lanes)


class CompletionRate:
    """Trials ended per second, by an average that forgets within a second or so."""

    def __init__(self, now: float) -> None:
        self._rate = 0.0
        self._at = now

    def note(self, count: int, now: float) -> None:
        """Some trials ended."""
        self._rate = self.rate(now) + count / _MEMORY_SECONDS
        self._at = now

    def rate(self, now: float) -> float:
        """Return trials per second."""
        return self._rate * math.exp(-(now - self._at) / _MEMORY_SECONDS)

    def ahead(self, now: float) -> int:
        """Return how many slots to hold beyond the lanes: none while trials take long."""
        return min(int(self.rate(now) * _LEAD_SECONDS), _MOST_AHEAD)


def _reserve(lanes: int) -> int:
    return max(1, lanes // 4)
