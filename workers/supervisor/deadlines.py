"""What takes too much: a trial over its time, a stop unanswered, a trainer that hangs or grows."""

from tuner_service.settings import Settings
from workers.supervisor.board import Board, Phase, Run
from workers.supervisor.deaths import Cause

# A supervisor that was itself stopped for a while (SIGSTOP, a suspended machine) must not take
# its own absence for the trainer's.
_OWN_GAP_SECONDS = 5.0


class Watch:
    """Deadlines of a supervisor's runs. Progress is an event of a trial; `alive` is none.

    Attributes:
        memory_bytes: What the trainer last said it holds.
    """

    def __init__(
        self, settings: Settings, now: float, *, memory_limit_bytes: int | None = None
    ) -> None:
        self.memory_bytes = 0
        self._memory_limit_bytes = memory_limit_bytes
        self._progress_seconds = settings.progress_timeout_seconds
        self._answer_seconds = settings.grace_seconds
        self._progress_at = now
        self._looked_at = now

    def progressed(self, now: float) -> None:
        """Some trial moved."""
        self._progress_at = now

    def over_time(self, board: Board, now: float) -> list[Run]:
        """Return runs that have trained for longer than their study's `trial_timeout`."""
        return [run for run in board.of(Phase.SENT) if _is_over(run, now)]

    def fault(self, board: Board, now: float) -> Cause | None:
        """Return why the trainer must be killed; None while it need not."""
        on_board = board.of(Phase.SENT, Phase.GHOST)
        limit_bytes = self._memory_limit_bytes
        if limit_bytes is not None and self.memory_bytes > limit_bytes:
            held, self.memory_bytes = self.memory_bytes, 0
            return Cause("memory", f"The trainer held {held} bytes, more than {limit_bytes}.")
        if not on_board:
            self._progress_at = now
            return None
        quiet = now - self._progress_at
        for run in on_board:
            # Only a trainer that is quiet is taken for stuck: one that moves will get to it.
            asked = now - run.stop_at
            if run.stop_mode is not None and min(asked, quiet) > self._answer_seconds:
                return Cause(
                    "unanswered",
                    f"A trial did not stop within {self._answer_seconds:g} s of being asked.",
                    culprit=run.key,
                )
        if quiet > self._progress_seconds:
            limit = f"{self._progress_seconds:g} s"
            return Cause("hung", f"No progress within {limit} (progress_timeout_seconds).")
        return None

    def notice_absence(self, board: Board, now: float) -> None:
        """Move deadlines by the time in which this process itself stood still."""
        gap, self._looked_at = now - self._looked_at, now
        if gap > _OWN_GAP_SECONDS:
            self._progress_at += gap
            for run in board:
                run.stop_at += gap


def _is_over(run: Run, now: float) -> bool:
    limit = run.study.trial_timeout
    if limit is None or run.started_at is None or run.stop_mode is not None:
        return False
    return now - run.started_at > limit
