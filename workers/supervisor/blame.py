"""Who is to blame when a trainer died: nobody, its only trial, or all that were on board."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from tuner_service.lifecycle.messages import Fail, HandBack
from tuner_service.reads.views import Failure, FailureKind
from workers.protocol.messages import Failed, RunFailure, RunId, Stopped
from workers.supervisor import outcomes
from workers.supervisor.held_runs import LeasedTrial, Phase
from workers.supervisor.outbox import Outcome

CauseKind = Literal["crashed", "hung", "memory", "unanswered"]

# What a trial that only can be the cause is said to have done.
_SOLE_SUSPECT_KINDS: Mapping[CauseKind, FailureKind] = {
    "crashed": "user_code",
    "hung": "timeout",
    "memory": "out_of_memory",
    "unanswered": "timeout",
}


@dataclass(frozen=True, slots=True)
class Cause:
    """Why the trainer is gone.

    Attributes:
        kind: `crashed` by itself; `hung`, killed for want of progress; `memory`, killed since it
            took more than it may; `unanswered`, killed since it did not stop `culprit` when asked.
        message: What is known of it, for the trial's record.
        culprit: The run that was asked to stop.
        turn: The runs that the trainer was at when it stuck, or when its device broke; empty: not
            known.
    """

    kind: CauseKind
    message: str
    culprit: RunId | None = None
    turn: frozenset[RunId] = frozenset()


def assign(on_board: Sequence[LeasedTrial], cause: Cause) -> dict[RunId, Outcome | None]:
    """Return for each run its outcome; None: it goes again, same trial, in the next trainer.

    A run that was being stopped ends as asked. Of the others, one that was alone on board is to
    blame; several share the death, unless we killed the trainer over another run, or they had not
    begun. Where it is known whose turn it was when the trainer stuck, only those count.
    """
    ghosts = [run for run in on_board if run.phase is Phase.LOST]
    mine = [run for run in on_board if run.phase is Phase.SENT]
    stopping = {run.id for run in mine if not run.is_free}
    suspects = _suspects([run for run in mine if run.id not in stopping], cause)
    only = len(mine) == 1 and not ghosts
    sole_suspect = len(suspects) == 1 and (only or {suspects[0].id} == cause.turn)
    ends: dict[RunId, Outcome | None] = {}
    for run in mine:
        if run.id in stopping:
            ends[run.id] = _as_asked(run, cause, sole_suspect=only or {run.id} == cause.turn)
        else:
            ends[run.id] = (
                _death(run, cause, sole_suspect=sole_suspect) if run in suspects else None
            )
    return ends


def _suspects(others: list[LeasedTrial], cause: Cause) -> list[LeasedTrial]:
    if cause.kind == "unanswered":
        return []
    if cause.turn:
        return [run for run in others if run.id in cause.turn]
    begun = [run for run in others if run.started_at is not None]
    # Before it began, the trainer may have been dying already: it gets a second sending.
    return begun or [run for run in others if run.sendings > 1]


def _as_asked(run: LeasedTrial, cause: Cause, *, sole_suspect: bool) -> Outcome:
    if run.stop_mode == "timeout" and run.out_of_time:
        # It ran over its own time and did not even stop: nothing it says later can be waited for.
        return _death(run, cause, sole_suspect=sole_suspect, kind="timeout")
    if run.stop_mode == "checkpoint":
        return HandBack(run.lease, run.checkpoint_step)
    return outcomes.stopped(run, Stopped(run=run.id, mode=run.stop_mode or "cancel"))


def _death(
    run: LeasedTrial,
    cause: Cause,
    *,
    sole_suspect: bool,
    kind: Literal["timeout"] | None = None,
) -> Outcome:
    its_kind = kind or _SOLE_SUSPECT_KINDS[cause.kind]
    if sole_suspect and its_kind == "out_of_memory":
        said = RunFailure("out_of_memory", cause.message, run.last_step)
        return outcomes.failed(run, Failed(run=run.id, failure=said), sole_suspect=True)
    failure = Failure(
        kind=its_kind if sole_suspect else "worker_lost",
        message=cause.message,
        step=run.last_step,
    )
    return Fail(
        run.lease,
        run.trial,
        failure,
        blamed=sole_suspect,  # guard: shared-death
        shared_death=not sole_suspect,
        checkpoint_step=run.checkpoint_step,
    )
