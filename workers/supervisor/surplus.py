"""What waits here for a lane while another worker has nothing to do is given to that one.

A trainer is sent more trials than it may be able to train at once: of a group that cannot be fused
one trains, and the others wait for its end. A worker that came later, or was started again, would
find nothing to claim until then.
"""

from workers.supervisor.board import Phase, Run
from workers.supervisor.ledger import Ledger
from workers.supervisor.shift import Shift

WAIT_SECONDS = 5.0  # what begins within this time is not worth moving
LOOK_SECONDS = 5.0
LEAVE_SECONDS = 10.0  # an idle worker is rung within a few seconds


class Surplus:
    """Hands back what waits, and leaves it to others for a while."""

    def __init__(self, shift: Shift, ledger: Ledger) -> None:
        self._shift = shift
        self._ledger = ledger
        self._look_at = shift.now() + LOOK_SECONDS
        self._left: dict[int, float] = {}

    @property
    def left(self) -> set[int]:
        """Studies of which something was given away a moment ago."""
        now = self._shift.now()
        return {study_id for study_id, until in self._left.items() if now < until}

    def give(self) -> None:
        """Hand back the idle workers' part of what waits, the last that came first.

        Raises:
            UnavailableError: The database is away.
        """
        now = self._shift.now()
        if now < self._look_at:
            return
        self._look_at = now + LOOK_SECONDS
        for study_id, runs in self._waiting(now).items():
            idle = self._ledger.idle_workers(study_id)
            count = -(-len(runs) * idle // (idle + 1))
            if count:
                self._left[study_id] = now + LEAVE_SECONDS
                self._shift.stop(runs[-count:], "checkpoint")

    def _waiting(self, now: float) -> dict[int, list[Run]]:
        """Return what has waited for long behind trials of the same study, by study."""
        sent = [run for run in self._shift.board.of(Phase.SENT) if run.stop_mode is None]
        begun = {run.lease.study_id for run in sent if run.started_at is not None}
        waiting: dict[int, list[Run]] = {}
        for run in sent:
            waits = run.started_at is None and now - run.sent_at >= WAIT_SECONDS
            if waits and run.lease.study_id in begun:
                waiting.setdefault(run.lease.study_id, []).append(run)
        return waiting
