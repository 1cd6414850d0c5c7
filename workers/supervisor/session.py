"""The state of one serve: what the parts of the loop share, and the moves they all make."""

import logging
import threading
from collections.abc import Callable, Iterable, Iterator

from tuner_service.lifecycle.messages import Fail, Finish, HandBack
from tuner_service.reads.views import Failure
from tuner_service.settings import Settings
from workers.protocol.messages import Command, ForgetResults, RunId, Stop, StopMode
from workers.supervisor import outcomes
from workers.supervisor.held_runs import HeldRuns, LeasedTrial, Phase
from workers.supervisor.outbox import Outbox, Outcome
from workers.supervisor.restarts import TrainerRestarter

logger = logging.getLogger(__name__)


class ServeSession:
    """What a worker holds from a ring until there is nothing more to do.

    Attributes:
        ended: Runs whose end is in the outbox and not written yet, by lease.
        stopping: Set when the worker shall stop for good.
    """

    def __init__(
        self,
        settings: Settings,
        restarter: TrainerRestarter,
        *,
        ids: Iterator[int],
        stopping: threading.Event,
        clock: Callable[[], float],
    ) -> None:
        self.settings = settings
        self.restarter = restarter
        self.stopping = stopping
        self.now = clock
        self.held = HeldRuns(ids)
        self.outbox = Outbox(flush_seconds=settings.flush_seconds)
        self.ended: dict[tuple[int, int], LeasedTrial] = {}
        self.directory = settings.directory

    @property
    def lanes(self) -> int:
        """How many trials the trainer can usefully hold; 0 while there is none ready."""
        trainer = self.restarter.current
        return trainer.ready.lanes if trainer is not None and trainer.ready else 0

    @property
    def loops(self) -> int:
        """How many training loops the trainer runs at once."""
        trainer = self.restarter.current
        return trainer.ready.user_loops if trainer is not None and trainer.ready else 0

    @property
    def device(self) -> str | None:
        """The trainer's device, once it is known."""
        trainer = self.restarter.current
        return trainer.ready.device if trainer is not None and trainer.ready else None

    def send(self, command: Command) -> None:
        """Tell the trainer something; with none alive there is nobody who must know."""
        if self.restarter.current is not None:
            self.restarter.current.send(command)

    def close(self, run: LeasedTrial, outcome: Outcome) -> None:
        """End a run: put its outcome into the outbox, and tell its search at once."""
        self.held.remove(run)
        self._settle(run, outcome)

    def give_up(self, run: LeasedTrial, outcome: Outcome) -> None:
        """End a run that the trainer has, and have it thrown away there."""
        self.stop([run], "cancel")
        self._settle(run, outcome)
        self.held.lose(run)

    def _settle(self, run: LeasedTrial, outcome: Outcome) -> None:
        self.ended[run.lease.key] = run
        self.outbox.close(outcome, self.now())
        _tell_search(run, outcome)
        _log(run, outcome)

    def stop(self, runs: Iterable[LeasedTrial], mode: StopMode) -> None:
        """Stop runs as `mode` says, in whichever phase they are.

        A run that the trainer has ends when the trainer says so. Of two modes the first counts,
        except that a cancel replaces any other.
        """
        asked: list[tuple[RunId, StopMode]] = []
        for run in runs:
            if run.phase is not Phase.SENT:
                self._close_unsent(run, mode)
            elif run.is_free or (mode == "cancel" and run.stop_mode != "cancel"):
                run.ask_stop(mode, self.now())
                asked.append((run.id, mode))
        if asked:
            self.send(Stop(asked))

    def offer(self, runs: Iterable[LeasedTrial]) -> None:
        """Hand runs back for another worker's sake, without a deadline.

        The trainer may be busy with something long, such as tracing, and answers after it. A run
        that hangs meanwhile is found by the usual deadlines, as if it had not been asked.
        """
        offered = [run for run in runs if run.stop_mode is None]
        self.stop(offered, "checkpoint")
        for run in offered:
            run.offer()

    def forget(self, run: LeasedTrial) -> None:
        """Write nothing more of a run whose lease is lost, and have the trainer cancel it."""
        logger.warning("lease lost", extra=run.log())
        if run.phase is Phase.SENT:
            self.stop([run], "cancel")
            self.held.lose(run)
        else:
            self._withdraw(run)
            self.held.remove(run)

    def discard_result(self, run: LeasedTrial, model: str | None) -> None:
        """Delete the run's model, and have the trainer compare no other trial with its result."""
        self.send(ForgetResults(run.study.work.study_id))
        if model is not None:
            self.directory.drop(model)

    def _withdraw(self, run: LeasedTrial) -> None:
        """Take back the start of a trial that was not created yet."""
        self.outbox.drop_start(run.lease)
        if run.phase is Phase.STARTING:
            run.study.search.withdraw(run.parameters or {})

    def _close_unsent(self, run: LeasedTrial, mode: StopMode) -> None:
        self._withdraw(run)
        if mode == "cancel":
            self.close(run, outcomes.cancelled(run))
        else:
            self.close(run, HandBack(run.lease, run.checkpoint_step))


def _tell_search(run: LeasedTrial, outcome: Outcome) -> None:
    if run.phase not in (Phase.READY, Phase.SENT):
        return  # it was never told of the trial
    search = run.study.search
    match outcome:
        case Finish():
            search.finished(
                outcome.trial_id,
                outcome.state,
                outcome.values,
                infeasible=_is_infeasible(outcome.failure),
            )
        case Fail(trial_id=int(trial_id)):
            search.finished(trial_id, "FAIL", None, infeasible=False)


def _is_infeasible(failure: Failure | None) -> bool:
    return failure is not None and failure.kind in ("diverged", "out_of_memory")


def _log(run: LeasedTrial, outcome: Outcome) -> None:
    match outcome:
        case Finish():
            why = f": {outcome.failure.kind}" if outcome.failure else ""
            logger.info("trial %s%s", outcome.state.lower(), why, extra=run.log())
        case Fail(failure=failure):
            logger.warning("trial failed: %s: %s", failure.kind, failure.message, extra=run.log())
        case HandBack():
            logger.info("handed back at step %s", outcome.checkpoint_step, extra=run.log())
