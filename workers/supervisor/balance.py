"""What another worker that has nothing to do could train is given to that one.

Two things lead there. A trainer is sent more trials than it may be able to train at once: of a
group that cannot be fused one trains, and the others wait for its end. And who comes first takes
all: after an outage, or while workers are started one by one, the first has none to share with.
"""

from workers.supervisor.held_runs import LeasedTrial, Phase
from workers.supervisor.session import ServeSession
from workers.supervisor.store import SlotStore

WAIT_SECONDS = 5.0  # what begins within this time is not worth moving
LOOK_SECONDS = 5.0
LEAVE_SECONDS = 10.0  # an idle worker is rung within a few seconds
# What has trained for so long may train for long: to move it costs a checkpoint and a fresh start.
TRAINED_SECONDS = 15.0


class Rebalancer:
    """Hands back what is too much, and leaves it to others for a while."""

    def __init__(self, session: ServeSession, store: SlotStore) -> None:
        self._session = session
        self._store = store
        self._look_at = session.now() + LOOK_SECONDS
        self._left: dict[int, float] = {}
        self._idle: set[int] = set()
        self._times: dict[int, int] = {}

    @property
    def left(self) -> set[int]:
        """Studies of which something was given away a moment ago."""
        now = self._session.now()
        return {study_id for study_id, until in self._left.items() if now < until}

    def give(self) -> None:
        """Hand back the idle workers' part of what waits; or else what is over an equal part.

        Raises:
            UnavailableError: The database is away.
        """
        now = self._session.now()
        if now < self._look_at:
            return
        self._look_at = now + LOOK_SECONDS
        before, self._idle = self._idle, set()
        left = self.left
        for study_id, runs in self._of_studies().items():
            if study_id in left:  # what was given a moment ago is not taken yet
                continue
            patience = 2.0 ** self._times.get(study_id, 0)
            waiting = _waiting(runs, now, WAIT_SECONDS * patience)
            movable = _movable(runs, now, TRAINED_SECONDS * patience)
            if not waiting and not movable:
                continue
            others = self._store.others(study_id)
            if waiting:
                self._hand_back(
                    study_id, waiting, -(-len(waiting) * others.idle // (others.idle + 1))
                )
            elif others.idle:
                self._idle.add(study_id)
                # One that was idle a moment ago too, and is not between two trials.
                if study_id in before:
                    self._hand_back(study_id, movable, len(runs) - others.part)

    def _hand_back(self, study_id: int, runs: list[LeasedTrial], count: int) -> None:
        """Hand back up to `count`, the last that came first.

        Each time the next may happen only after twice the wait, in case nobody takes what is given.
        """
        if count > 0:
            self._times[study_id] = self._times.get(study_id, 0) + 1
            self._left[study_id] = self._session.now() + LEAVE_SECONDS
            self._session.offer(runs[-count:])

    def _of_studies(self) -> dict[int, list[LeasedTrial]]:
        """Return what the trainer has, by study."""
        runs: dict[int, list[LeasedTrial]] = {}
        for run in self._session.held.of(Phase.SENT):
            if run.stop_mode is None and not run.is_exclusive:
                runs.setdefault(run.lease.study_id, []).append(run)
        return runs


def _waiting(runs: list[LeasedTrial], now: float, least: float) -> list[LeasedTrial]:
    """Return what has waited for long behind others of its study."""
    if all(run.started_at is None for run in runs):
        return []
    return [run for run in runs if run.started_at is None and now - run.sent_at >= least]


def _movable(runs: list[LeasedTrial], now: float, least: float) -> list[LeasedTrial]:
    """Return what trains for long, and goes on elsewhere where it stands.

    A loop of one's own need not have checkpoints, and would begin anew; and a trial's own timeout
    is counted by the worker that has it.
    """
    return [
        run
        for run in runs
        if not run.study.definition.is_user_loop
        and run.study.trial_timeout is None
        and run.started_at is not None
        and now - run.started_at >= least
    ]
