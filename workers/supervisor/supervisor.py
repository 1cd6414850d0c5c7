"""The serve loop: claim slots, ask parameters, drive the trainer, write what happened.

One turn: read the trainer's messages, look at deadlines, write and claim what is due, send what is
ready. All of it runs in one thread; the trainer trains meanwhile. When the database goes away the
loop trains on, keeps what is to be written, and lets its runs go when their leases would end.
"""

import itertools
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tuner_service.lifecycle.messages import HandBack, StudyWork
from tuner_service.processes import how_it_ended
from tuner_service.settings import Settings
from workers.protocol.messages import Shutdown, Start, TrialStart
from workers.supervisor.blame import Cause, assign
from workers.supervisor.database_sync import DatabaseSync
from workers.supervisor.deadlines import Deadlines
from workers.supervisor.held_runs import LeasedTrial, Phase
from workers.supervisor.restarts import TrainerRestarter
from workers.supervisor.session import ServeSession
from workers.supervisor.store import SlotStore
from workers.supervisor.studies import ActiveStudy, Studies
from workers.supervisor.trainer_events import TrainerEvents
from workers.supervisor.trainer_process import TrainerProcess

logger = logging.getLogger(__name__)

MAX_WAIT_SECONDS = 0.5
GIVE_UP_STARTS = 3

# Of the grace time: how long trials may take to write their checkpoints, and how long the
# database may be away before what is left to write is given up.
_CHECKPOINT_SHARE = 0.7
_WRITE_SHARE = 0.9
# A pipe closes a moment before its process is gone.
_EXIT_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Status:
    """What a supervisor is at, for the worker's heartbeat."""

    state: str = "idle"
    lanes: int = 0
    trials: tuple[dict[str, Any], ...] = ()


class Supervisor:
    """Serves one worker's trainer. `serve` may be called again and again, by one thread at a time.

    Attributes:
        status: What it is at; replaced as a whole, so that another thread may read it.
    """

    def __init__(
        self,
        store: SlotStore,
        restarter: TrainerRestarter,
        *,
        settings: Settings,
        stopping: threading.Event,
        memory_limit_bytes: int | None = None,
        open_study: Callable[[StudyWork], ActiveStudy] = ActiveStudy.open,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.status = Status()
        self._store = store
        self._restarter = restarter
        self._settings = settings
        self._stopping = stopping
        self._memory_limit_bytes = memory_limit_bytes
        self._clock = clock
        self._studies = Studies(open_study)
        self._ids = itertools.count(1)
        self._lock = threading.Lock()
        self._begin()

    def serve(self) -> None:
        """Work until no slot is claimable and no run is held, or the worker is stopped."""
        with self._lock:
            self._begin()
            try:
                while not self._is_done():
                    self._turn()
            except BaseException:
                self._abort()
                raise
            finally:
                self.status = Status(lanes=self._session.lanes)

    def wake(self) -> None:
        """Make the loop look at the stopping event now."""
        if self._restarter.current is not None:
            self._restarter.current.wake()

    def shut_down_idle_trainer(self) -> None:
        """Tell the trainer to end, unless a serve uses it: the worker is to stop."""
        if self._restarter.current is not None and self._lock.acquire(blocking=False):
            try:
                self._restarter.current.send(Shutdown())
            finally:
                self._lock.release()

    def _begin(self) -> None:
        self._session = ServeSession(
            self._settings,
            self._restarter,
            ids=self._ids,
            stopping=self._stopping,
            clock=self._clock,
        )
        self._deadlines = Deadlines(
            self._settings, self._clock(), memory_limit_bytes=self._memory_limit_bytes
        )
        self._trainer_events = TrainerEvents(self._session, self._deadlines)
        self._sync = DatabaseSync(self._session, self._store, self._studies)
        self._drain_at: float | None = None

    def _turn(self) -> None:
        stopping = self._stopping.is_set()
        self._read(self._restarter.current if stopping else self._restarter.ensure(self._clock()))
        self._check_death()
        self._check_deadlines()
        if stopping:
            self._drain()
        self._sync.sync()
        if self._sync.leases_ended:
            self._session.stop(self._session.held.leased, "checkpoint")
        if not stopping:
            self._dispatch()
        self._publish()

    def _is_done(self) -> bool:
        idle = not self._session.held.runs and not len(self._session.outbox)
        if not self._stopping.is_set():
            return idle and self._sync.exhausted
        if self._is_past(_WRITE_SHARE):
            logger.error("stopped without writing %d entries", len(self._session.outbox))
            return True
        return idle

    def _read(self, trainer: TrainerProcess | None) -> None:
        timeout = max(0.0, min(self._sync.due - self._clock(), MAX_WAIT_SECONDS))
        if trainer is None:
            time.sleep(min(timeout + 0.01, 0.05))
            return
        for message in trainer.receive(timeout):
            self._trainer_events.take(message)

    # To the trainer

    def _dispatch(self) -> None:
        ready = self._session.held.of(Phase.READY)
        if not ready or self._session.lanes == 0:
            return
        self._session.send(Start([self._start_of(run) for run in ready]))
        for run in ready:
            run.sent(self._clock())
            logger.info("trial sent to the trainer", extra=run.log())

    def _start_of(self, run: LeasedTrial) -> TrialStart:
        directory = self._settings.directory
        study, slot = run.study.work.public_id, run.lease.number
        model = directory.model(study, slot, run.lease.fencing_token)
        return TrialStart(
            run=run.id,
            number=run.number,
            study=run.study.work.study_id,
            spec=run.spec,
            checkpoint=str(directory.checkpoint(study, slot)),
            resume=run.checkpoint_step,
            model=str(model) if run.study.keep_models else None,
            keep_models=run.study.keep_models,
            prunable=run.study.prunes,
            exclusive=run.is_exclusive,
            log=str(directory.log(study, slot, run.lease.attempt)),
        )

    # Deadlines and deaths

    def _check_death(self) -> None:
        trainer = self._restarter.current
        if trainer is None or not self._restarter.is_dead(self._clock()):
            return
        for message in trainer.receive(0.0):  # its last words came before the end of its pipe
            self._trainer_events.take(message)
        why = _death_message(trainer.exit_code(wait_seconds=_EXIT_SECONDS), trainer.log_tail())
        lost, self._trainer_events.device_lost = self._trainer_events.device_lost, None
        if lost is not None:  # others on board have nothing to do with it
            why = f"The trainer ended: {lost.message}"
        turn = frozenset(lost.turn if lost is not None else ())
        self._end_trainer(Cause("crashed", why, turn=turn))

    def _check_deadlines(self) -> None:
        now, held = self._clock(), self._session.held
        self._deadlines.notice_absence(held, now)
        late = self._deadlines.over_time(held, now)
        for run in late:
            run.exceeded_timeout()
        self._session.stop(late, "timeout")
        if (cause := self._deadlines.fault(held, now)) is not None:
            self._end_trainer(cause)

    def _end_trainer(self, cause: Cause) -> None:
        """End a trainer, dead or not, and its runs by who is to blame; the next one backs off."""
        held = self._session.held
        on_board = held.of(Phase.SENT, Phase.LOST)
        if not self._stopping.is_set() or on_board:
            logger.error("trainer ended with %d on board: %s", len(on_board), cause.message)
        self._restarter.end_current(self._clock())
        self._deadlines.trainer_ended()
        ends = assign(on_board, cause)
        for run in on_board:
            if run.phase is Phase.LOST:
                held.remove(run)
            elif (outcome := ends[run.id]) is not None:
                self._session.close(run, outcome)
            else:
                run.send_again()
        if self._restarter.failed_starts >= GIVE_UP_STARTS:
            logger.error("the trainer does not start; handing back, the next ring tries again")
            self._restarter.failed_starts = 0
            self._session.stop(held.leased, "checkpoint")
            self._sync.give_up_claiming()

    # The end

    def _drain(self) -> None:
        """Stop for good: hand back runs that have not begun, and ask the others for checkpoints."""
        held = self._session.held
        if self._drain_at is None:
            self._drain_at = self._clock()
            logger.info("stopping: %d runs to hand back", len(held.leased))
            self._session.stop(held.of(Phase.HELD, Phase.STARTING, Phase.READY), "checkpoint")
            for run in held.of(Phase.SENT):
                if run.is_free:
                    run.ask_stop("checkpoint", self._drain_at)
            self._session.send(Shutdown())  # guard: drain-checkpoints
        elif held.runs and self._is_past(_CHECKPOINT_SHARE):
            self._end_trainer(Cause("unanswered", "The worker was stopped."))

    def _is_past(self, share: float) -> bool:
        if self._drain_at is None:
            return False
        return self._clock() >= self._drain_at + share * self._settings.grace_seconds

    def _abort(self) -> None:
        """The loop itself failed: end the trainer, and try once to hand everything back."""
        logger.exception("the serve loop failed; handing back what it holds")
        self._restarter.end_current(self._clock())
        held = self._session.held
        self._session.stop(held.of(Phase.HELD, Phase.STARTING, Phase.READY), "checkpoint")
        for run in held.of(Phase.SENT):
            self._session.close(run, HandBack(run.lease, run.checkpoint_step))
        self._sync.write_once()

    def _publish(self) -> None:
        runs = self._session.held.of(Phase.SENT)
        state = "stopping" if self._stopping.is_set() else "busy"
        if len(runs) == len(self.status.trials) and state == self.status.state == "busy":
            return
        self.status = Status(state, self._session.lanes, tuple(run.describe() for run in runs))


def _death_message(code: int | None, tail: str) -> str:
    how = "did not become ready, or closed its pipe" if code is None else how_it_ended(code)
    return f"The trainer {how}. It last said:\n{tail}" if tail else f"The trainer {how}."
