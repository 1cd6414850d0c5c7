"""The loop's dealings with the database: flush, claim, ask; and its absence.

Order matters: what happened is written before more is claimed, since a finished trial makes room
under its study's `parallel_trials`; and parameters are asked after that, when the sampler knows
the most.
"""

import logging
import traceback
from math import inf

from tuner_service.errors import TunerError, UnavailableError
from tuner_service.lifecycle.messages import Batch, Claimed, Fail, Flushed, HandBack, Start
from tuner_service.reads.views import Failure
from workers.protocol.messages import StopMode
from workers.supervisor.backoff import Outage
from workers.supervisor.balance import Surplus
from workers.supervisor.completion_rate import Pace
from workers.supervisor.exclusive import Lone
from workers.supervisor.held_runs import Phase, Run, split_alone
from workers.supervisor.outbox import Outcome
from workers.supervisor.session import Shift
from workers.supervisor.store import Ledger
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


class Books:
    """Writes what happened and takes on what is next."""

    def __init__(self, shift: Shift, ledger: Ledger, studies: Studies) -> None:
        self._shift = shift
        self._ledger = ledger
        self._studies = studies
        self._outage = Outage()
        self._surplus = Surplus(shift, ledger)
        self._lone = Lone(shift, ledger)
        self._pace = Pace(shift.now())
        self._unsure = False
        self._found_nothing = False
        self._gave_up = False
        # Slots that must run alone and all others take turns: one whose trials end their trainer
        # would else have the worker to itself, since each of their ends empties the board.
        self._was_alone = False
        self._claim_at = self._renewed_at = shift.now()
        self._greedy_at = inf

    @property
    def due(self) -> float:
        """When there will be something to do; infinite while nothing waits."""
        due = self._shift.outbox.due
        if self._shift.board.leased:
            due = min(due, self._renewed_at + self._renew_seconds)
        if self._limit() > 0:
            due = min(due, self._claim_at)
        return max(due, self._outage.retry_at)

    @property
    def exhausted(self) -> bool:
        """Whether there is nothing to claim, as far as is known."""
        return self._found_nothing or self._gave_up

    @property
    def leases_ended(self) -> bool:
        """Whether the database was away for as long as the leases last."""
        lasted = self._shift.now() - self._renewed_at
        return self._outage.active and lasted >= self._shift.settings.lease_seconds

    def keep(self) -> None:
        """Flush, claim and ask what is due, unless the database is away."""
        if not self._outage.may_try(self._shift.now()):
            return
        try:
            self._flush_if_due()
            self._claim_if_due()
            self._fill()
            self._refresh()
            self._surplus.give()
            self._lone.look()
            # A start that was just made goes out now; its trial waits for nothing else.
            self._flush_if_due()
        except UnavailableError as error:
            if self._outage.failed(self._shift.now()):
                logger.warning("database away, training on: %s", error)
        else:
            if self._outage.recovered():
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
        shift, now = self._shift, self._shift.now()
        renew = bool(shift.board.leased) and now >= self._renewed_at + self._renew_seconds
        if renew or shift.outbox.due <= now:
            self._write()

    def _write(self) -> None:
        shift, now = self._shift, self._shift.now()
        batch = shift.outbox.take([run.lease for run in shift.board.leased], now)
        try:
            flushed = self._ledger.flush(batch)
        except BaseException:
            shift.outbox.put_back(batch)
            self._unsure = True  # it may have been committed, and only the answer lost
            raise
        self._renewed_at = now
        shift.outbox.written(shift.now())
        self._absorb(batch, flushed)
        self._unsure = False

    def _absorb(self, batch: Batch, flushed: Flushed) -> None:
        board = self._shift.board
        for key in flushed.lost:
            if (run := board.of_lease(key)) is not None:
                self._shift.forget(run)
        for key, started in flushed.started.items():
            run = board.of_lease(key)
            if run is not None and run.phase is Phase.STARTING:
                run.trial_id, run.trial_number = started.trial_id, started.number
                _make_ready(run)
        for key, reason in flushed.stop.items():
            if (run := board.of_lease(key)) is not None:
                self._shift.stop([run], _STOPS[reason])
        for path in flushed.drop_models:
            self._shift.places.drop(path)
        self._tidy(batch, flushed.lost)

    def _tidy(self, batch: Batch, lost: set[tuple[int, int]]) -> None:
        """Drop the files that ended leases leave behind; their slots may be claimable again."""
        shift = self._shift
        for finish in batch.finishes:
            run = shift.closing.get(finish.lease.key)
            if run is None:
                continue
            if finish.lease.key not in lost:
                if _may_leave_files(run):
                    shift.places.drop_checkpoint(run.study.work, finish.lease)
            elif self._unsure:
                shift.discount(run, None)  # it may be counted after all
            else:
                logger.warning("lease lost, its result is not counted", extra=run.log())
                run.study.search.forget(finish.trial_id)
                shift.discount(run, finish.model_path)
        for fail in batch.fails:
            run = shift.closing.get(fail.lease.key)
            if run is not None and not fail.retry and fail.lease.key not in lost:
                shift.places.drop_checkpoint(run.study.work, fail.lease)
        ended: list[Outcome] = [*batch.finishes, *batch.fails, *batch.hand_backs]
        for outcome in ended:
            shift.closing.pop(outcome.lease.key, None)
        if ended:
            self._pace.note(len(ended), shift.now())
            self._found_nothing = False
            self._claim_at = min(self._claim_at, shift.now())

    # Claim

    def _claim_if_due(self) -> None:
        shift = self._shift
        limit = self._limit()
        if limit <= 0 or shift.now() < self._claim_at:
            return
        was_empty = not shift.board.runs
        claimed = self._claim(limit, exclude_alone=self._was_alone or not was_empty)
        if was_empty and self._was_alone and not claimed.leases:
            claimed = self._claim(limit, exclude_alone=False)
        now = shift.now()
        self._plan_claims(now, got_all=len(claimed.leases) == limit)
        self._found_nothing = not claimed.leases
        if was_empty:
            self._renewed_at = now
            self._lone.claimed()
        self._take_on(claimed, was_empty=was_empty)

    def _claim(self, limit: int, *, exclude_alone: bool) -> Claimed:
        shift = self._shift
        return self._ledger.claim(
            limit=limit,
            exclude_alone=exclude_alone,
            exclude_studies=self._surplus.left
            | (shift.board.study_ids if self._is_full else set()),
            fair_share=shift.now() < self._greedy_at,
            loops=max(0, shift.loops - sum(run.study.definition.is_loop for run in shift.board)),
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
        shift = self._shift
        mine, others = split_alone(claimed.leases, board_is_empty=was_empty)
        for lease in mine:
            shift.board.add(lease, self._studies.get(claimed.studies[lease.study_id]))
            self._was_alone = lease.alone
        for lease in others:
            shift.outbox.close(HandBack(lease, lease.checkpoint_step), shift.now())

    def _limit(self) -> int:
        """Return how many slots to claim now.

        Claiming ahead keeps lanes from waiting for a commit. A few places more are kept for
        studies that come later, so that a long study cannot shut them out.
        """
        shift, lanes = self._shift, self._shift.lanes
        if lanes == 0 or self._gave_up or shift.stopping.is_set():
            return 0
        if self._lone.clearing or any(run.is_alone for run in shift.board):
            return 0
        room = self._capacity - len(shift.board)
        return room if room > 0 else room + _reserve(lanes)

    @property
    def _capacity(self) -> int:
        return self._shift.lanes + self._pace.ahead(self._shift.now())

    @property
    def _is_full(self) -> bool:
        return len(self._shift.board) >= self._capacity

    # Parameters

    def _fill(self) -> None:
        """Give parameters to held runs and have their trials created.

        A slot whose parameters must be asked waits for a free lane: asked later, the sampler
        knows more.
        """
        board = self._shift.board
        free = self._capacity - len(board.of(Phase.STARTING, Phase.READY, Phase.SENT))
        for run in board.of(Phase.HELD):
            if run.parameters is None and free <= 0:
                continue
            free -= run.parameters is None
            self._prepare(run)

    def _refresh(self) -> None:
        """Let pruners see what other workers' trials report."""
        for study in {id(run.study): run.study for run in self._shift.board}.values():
            if study.prunes and self._shift.now() - study.seen_at > PRUNE_REFRESH_SECONDS:
                study.refresh(self._ledger, self._shift.now())

    def _prepare(self, run: Run) -> None:
        study, shift = run.study, self._shift
        try:
            if run.parameters is None or study.prunes:
                study.refresh(self._ledger, shift.now())
            if run.parameters is None:
                run.parameters = study.ask(run.lease)
            run.spec = study.spec(run.parameters)
        except UnavailableError:
            raise
        except STUDY_ERRORS as error:
            shift.close(run, _unaskable(run, error))
            return
        if run.trial_id is not None:
            _make_ready(run)
        else:
            run.phase = Phase.STARTING
            start = Start(run.lease, run.parameters, device=shift.device)
            shift.outbox.start(start, shift.now())

    @property
    def _renew_seconds(self) -> float:
        # Once a second, so that a cancel is heard within two; sooner with very short leases.
        return min(RENEW_SECONDS, self._shift.settings.lease_seconds / 3)


def _make_ready(run: Run) -> None:
    run.phase = Phase.READY
    run.study.search.started(run.trial, run.parameters or {})


def _may_leave_files(run: Run) -> bool:
    """Whether there can be checkpoints; to look costs more than a short trial's other ends."""
    # An attempt that died may have left one that nobody heard of; a loop has its directory always.
    return run.checkpoint_step is not None or run.lease.attempt > 1 or run.study.definition.is_loop


def _unaskable(run: Run, error: Exception) -> Fail:
    failure = Failure(
        kind="user_code",
        message=f"No parameters could be found for the trial: {error}",
        traceback="".join(traceback.format_exception(error)),
    )
    return Fail(run.lease, run.trial_id, failure, blamed=True, retry=False)


def _reserve(lanes: int) -> int:
    return max(1, lanes // 4)
