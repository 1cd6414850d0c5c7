"""What takes too much: a trial over its time, a stop unanswered, a trainer that hangs or grows."""

from tuner_service.settings import Settings
from workers.protocol.messages import Alive, RunId
from workers.supervisor.blame import Cause
from workers.supervisor.held_runs import HeldRuns, LeasedTrial, Phase

# A trainer says every second that it lives, and what its engine is at. One that does not was
# stopped from outside, or holds the interpreter: whose turn it is, is not known then.
_ALIVE_SECONDS = 5.0
# Reading data and compiling, for the first of many trials, may take longer than a trial may.
_START_SECONDS = 120.0
# A supervisor that was itself stopped for a while (SIGSTOP, a suspended machine) must not take
# its own absence for the trainer's.
_OWN_GAP_SECONDS = 5.0


class Deadlines:
    """Deadlines of a supervisor's runs. Progress is an event of a trial; `alive` is none."""

    def __init__(
        self, settings: Settings, now: float, *, memory_limit_bytes: int | None = None
    ) -> None:
        self._memory_bytes = 0
        self._turn: frozenset[RunId] = frozenset()
        self._busy_seconds = 0.0
        self._alive_at = now
        self._memory_limit_bytes = memory_limit_bytes
        self._progress_seconds = settings.progress_timeout_seconds
        self._answer_seconds = settings.grace_seconds
        self._progress_at = now
        self._looked_at = now

    def progressed(self, now: float) -> None:
        """Note an event of a trial."""
        self._progress_at = now

    def alive(self, message: Alive, now: float) -> None:
        """Note the trainer's message of what it holds and what its engine does."""
        self._memory_bytes = message.memory_bytes
        self._turn, self._busy_seconds = frozenset(message.turn), message.busy_seconds
        self._alive_at = now

    def trainer_ended(self) -> None:
        """Forget what the trainer said: it is not true of the next one."""
        self._memory_bytes, self._turn, self._busy_seconds = 0, frozenset(), 0.0

    def over_time(self, held: HeldRuns, now: float) -> list[LeasedTrial]:
        """Return runs that have trained for longer than their study's `trial_timeout`.

        One that hangs in its first step never said that it started: the call of the engine in which
        it hangs counts instead.
        """
        turn, begun = self._at_work(now), now - self._busy_seconds
        return [
            run
            for run in held.of(Phase.SENT)
            if _is_over(run, now, since=begun if run.id in turn else now)
        ]

    def _at_work(self, now: float) -> frozenset[RunId]:
        """Return the runs whose turn it is, if the trainer can still say so."""
        return self._turn if now - self._alive_at < _ALIVE_SECONDS else frozenset()

    def fault(self, held: HeldRuns, now: float) -> Cause | None:
        """Return why the trainer must be killed; None while it need not."""
        on_board = held.of(Phase.SENT, Phase.LOST)
        limit_bytes = self._memory_limit_bytes
        if limit_bytes is not None and self._memory_bytes > limit_bytes:
            used, self._memory_bytes = self._memory_bytes, 0
            return Cause("memory", f"The trainer held {used} bytes, more than {limit_bytes}.")
        if not on_board:
            self._progress_at = now
            return None
        quiet = now - self._progress_at
        for run in on_board:
            # Only a trainer that is quiet is taken for stuck: one that moves will get to it.
            asked = now - run.stop_at
            if not run.is_free and min(asked, quiet) > self._answer_seconds:
                return Cause(
                    "unanswered",
                    f"A trial did not stop within {self._answer_seconds:g} s of being asked.",
                    culprit=run.id,
                    turn=self._at_work(now),
                )
        if quiet > self._progress_seconds:
            why = (
                f"No progress within {self._progress_seconds:g} s: its code hangs, or an epoch "
                "takes longer; then raise TUNER_PROGRESS_TIMEOUT_SECONDS."
            )
            return Cause("hung", why, turn=self._at_work(now))
        return None

    def notice_absence(self, held: HeldRuns, now: float) -> None:
        """Move deadlines by the time in which this process itself stood still."""
        gap, self._looked_at = now - self._looked_at, now
        if gap > _OWN_GAP_SECONDS:
            self._progress_at += gap
            for run in held:
                run.shift_deadline(gap)


def _is_over(run: LeasedTrial, now: float, *, since: float) -> bool:
    limit = run.study.trial_timeout
    if limit is None or not run.is_free:
        return False
    if run.started_at is None:
        return now - since > max(limit, _START_SECONDS)
    return now - run.started_at > limit
