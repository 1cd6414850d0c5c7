"""The loop's dealings with the database: flush, claim, ask; and its absence.

Order matters: what happened is written before more is claimed, since a finished trial makes room
under its study's `parallel_trials`; and parameters are asked after that, when the sampler knows
the most.
"""

import logging
from math import inf

from tuner_service.errors import TunerError, UnavailableError
from tuner_service.lifecycle.messages import Batch, Claimed, Flushed, HandBack, Start
from workers.protocol.messages import StopMode
from workers.supervisor import outcomes
from workers.supervisor.backoff import Backoff
from workers.supervisor.balance import Rebalancer
from workers.supervisor.completion_rate import CompletionRate
from workers.supervisor.exclusive import ExclusiveSlots
from workers.supervisor.held_runs import LeasedTrial, Phase, split_exclusive
from workers.supervisor.outbox import Outcome
from workers.supervisor.session import ServeSession
from workers.supervisor.store import SlotStore
from workers.supervisor.studies import STUDY_ERRORS, Studies

logger = logging.getLogger(__name__)

IDLE_CLAIM_SECONDS = 0.5
FULL_CLAIM_SECONDS = 0.05
RENEW_SECONDS = 1.0
PRUNE_REFRESH_SECONDS = 1.0

_STOPS: dict[str, StopMode] = {
    "cancelled": "cancel",
    "paused": "checkpoint",
    "timeout": "timeout",
}


class DatabaseSync:
    """Writes what happened and takes on what is next."""

    def __init__(self, session: ServeSession, store: SlotStore, studies: Studies) -> None:
        self._session = session
        self._store = store
        self._studies = studies
        self._backoff = Backoff()
        self._rebalancer = Rebalancer(session, store)
        self._exclusive = ExclusiveSlots(session, store)
        self._completion_rate = CompletionRate(session.now())
        self._unsure = False
        self._found_nothing = False
        self._gave_up = False
        # Slots that must run alone and all others take turns: one whose trials end their trainer
        # would else have the worker to itself, since each of their ends empties the board.
        self._was_exclusive = False
        self._claim_at = self._renewed_at = session.now()
        self._greedy_at = inf

    @property
    def due(self) -> float:
        """When there will be something to do; infinite while nothing waits."""
        due = self._session.outbox.due
        if self._session.held.leased:
            due = min(due, self._renewed_at + self._renew_seconds)
        if self._limit() > 0:
            due = min(due, self._claim_at)
        return max(due, self._backoff.retry_at)

    @property
    def exhausted(self) -> bool:
        """Whether there is nothing to claim, as far as is known."""
        return self._found_nothing or self._gave_up

    @property
    def leases_ended(self) -> bool:
        """Whether the database was away for as long as the leases last."""
        lasted = self._session.now() - self._renewed_at
        return self._backoff.active and lasted >= self._session.settings.lease_seconds

    def keep(self) -> None:
        """Flush, claim and ask what is due, unless the database is away."""
        if not self._backoff.may_try(self._session.now()):
            return
        try:
            self._flush_if_due()
            self._claim_if_due()
            self._fill()
            self._refresh()
            self._rebalancer.give()
            self._exclusive.look()
            # A start that was just made goes out now; its trial waits for nothing else.
            self._flush_if_due()
        except UnavailableError as error:
            if self._backoff.failed(self._session.now()):
                logger.warning("database away, training on: %s", error)
        else:
            if self._backoff.recovered():
                logger.info("database is back")

    def give_up_claiming(self) -> None:
        """Claim nothing more in this shift."""
        self._gave_up = True

    def write_once(self) -> None:
        """Write what waits, now or never; the loop has failed and nobody will try again."""
        try:
            self._write()
        except TunerError as error:
            logger.error("could not write: %s", error)  # noqa: TRY400  # expected while it is away

    # Flush

    def _flush_if_due(self) -> None:
        session, now = self._session, self._session.now()
        renew = bool(session.held.leased) and now >= self._renewed_at + self._renew_seconds
        if renew or session.outbox.due <= now:
            self._write()

    def _write(self) -> None:
        session, now = self._session, self._session.now()
        batch = session.outbox.take([run.lease for run in session.held.leased], now)
        try:
            flushed = self._store.flush(batch)
        except BaseException:
            session.outbox.put_back(batch)  # guard: kept-batch
            self._unsure = True  # it may have been committed, and only the answer lost
            raise
        self._renewed_at = now
        session.outbox.written(session.now())
        self._absorb(batch, flushed)
        self._unsure = False

    def _absorb(self, batch: Batch, flushed: Flushed) -> None:
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
        self._tidy(batch, flushed.lost)

    def _tidy(self, batch: Batch, lost: set[tuple[int, int]]) -> None:
        """Drop the files that ended leases leave behind; their slots may be claimable again."""
        session = self._session
        for finish in batch.finishes:
            run = session.closing.get(finish.lease.key)
            if run is None:
                continue
            if finish.lease.key not in lost:
                if _may_leave_files(run):
                    session.directory.drop_checkpoint(run.study.work.public_id, run.lease.number)
            elif self._unsure:
                session.discount(run, None)  # it may be counted after all
            else:
                logger.warning("lease lost, its result is not counted", extra=run.log())
                run.study.search.forget(finish.trial_id)
                session.discount(run, finish.model_path)
        for fail in batch.fails:
            run = session.closing.get(fail.lease.key)
            if run is not None and not fail.retry and fail.lease.key not in lost:
                session.directory.drop_checkpoint(run.study.work.public_id, run.lease.number)
        ended: list[Outcome] = [*batch.finishes, *batch.fails, *batch.hand_backs]
        for outcome in ended:
            session.closing.pop(outcome.lease.key, None)
        if ended:
            self._completion_rate.note(len(ended), session.now())
            self._found_nothing = False
            self._claim_at = min(self._claim_at, session.now())

    # Claim

    def _claim_if_due(self) -> None:
        session = self._session
        limit = self._limit()
        if limit <= 0 or session.now() < self._claim_at:
            return
        was_empty = not session.held.runs
        claimed = self._claim(limit, exclude_exclusive=self._was_exclusive or not was_empty)
        if was_empty and self._was_exclusive and not claimed.leases:
            claimed = self._claim(limit, exclude_exclusive=False)
        now = session.now()
        self._plan_claims(now, got_all=len(claimed.leases) == limit)
        self._found_nothing = not claimed.leases
        if was_empty:
            self._renewed_at = now
            self._exclusive.claimed()
        self._take_on(claimed, was_empty=was_empty)

    def _claim(self, limit: int, *, exclude_exclusive: bool) -> Claimed:
        session = self._session
        return self._store.claim(
            limit=limit,
            exclude_exclusive=exclude_exclusive,
            exclude_studies=self._rebalancer.left
            | (session.held.study_ids if self._is_full else set()),
            fair_share=session.now() < self._greedy_at,
            loops=max(
                0, session.loops - sum(run.study.definition.is_user_loop for run in session.held)
            ),
        )

    def _plan_claims(self, now: float, *, got_all: bool) -> None:
        # What is flushed next makes the next claim due; these times are for when nothing is.
        self._claim_at = now + (FULL_CLAIM_SECONDS if got_all else IDLE_CLAIM_SECONDS)
        # What others leave of their shares for a while, this worker takes.
        if got_all:
            self._greedy_at = inf
        elif not now < self._greedy_at < inf:
            self._greedy_at = now + IDLE_CLAIM_SECONDS

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

        Claiming ahead keeps lanes from waiting for a commit. A few places more are kept for
        studies that come later, so that a long study cannot shut them out.
        """
        session, lanes = self._session, self._session.lanes
        if lanes == 0 or self._gave_up or session.stopping.is_set():
            return 0
        if self._exclusive.clearing or any(run.is_exclusive for run in session.held):
            return 0
        room = self._capacity - len(session.held)
        return room if room > 0 else room + _reserve(lanes)

    @property
    def _capacity(self) -> int:
        return self._session.lanes + self._completion_rate.ahead(self._session.now())

    @property
    def _is_full(self) -> bool:
        return len(self._session.held) >= self._capacity

    # Parameters

    def _fill(self) -> None:
        """Give parameters to held runs and have their trials created.

        A slot whose parameters must be asked waits for a free lane: asked later, the sampler
        knows more.
        """
        held = self._session.held
        free = self._capacity - len(held.of(Phase.STARTING, Phase.READY, Phase.SENT))
        for run in held.of(Phase.HELD):
            if run.parameters is None and free <= 0:
                continue
            free -= run.parameters is None
            self._prepare(run)

    def _refresh(self) -> None:
        """Let pruners see what other workers' trials report."""
        for study in {id(run.study): run.study for run in self._session.held}.values():
            if study.prunes and self._session.now() - study.seen_at > PRUNE_REFRESH_SECONDS:
                study.refresh(self._store, self._session.now())

    def _prepare(self, run: LeasedTrial) -> None:
        study, session = run.study, self._session
        try:
            if run.parameters is None or study.prunes:
                study.refresh(self._store, session.now())
            parameters = study.ask(run.lease) if run.parameters is None else run.parameters
            run.prepare(parameters, study.spec(parameters))
        except UnavailableError:
            raise
        except STUDY_ERRORS as error:
            said = "No parameters could be found for the trial"
            session.close(run, outcomes.unsearchable(run, said, error))
            return
        if run.trial_id is not None:
            run.ready()
        else:
            run.starting()
            start = Start(run.lease, parameters, device=session.device)
            session.outbox.start(start, session.now())

    @property
    def _renew_seconds(self) -> float:
        # Once a second, so that a cancel is heard within two; sooner with very short leases.
        return min(RENEW_SECONDS, self._session.settings.lease_seconds / 3)


def _may_leave_files(run: LeasedTrial) -> bool:
    """Whether there can be checkpoints; to look costs more than a short trial's other ends."""
    # An attempt that died may have left one that nobody heard of; a loop has its directory always.
    return (
        run.checkpoint_step is not None
        or run.lease.attempt > 1
        or run.study.definition.is_user_loop
    )


def _reserve(lanes: int) -> int:
    return max(1, lanes // 4)
