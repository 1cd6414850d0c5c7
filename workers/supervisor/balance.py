"""Handing runs back so that idle workers can train them.

One worker has too much for two reasons. Its trainer is sent more trials than it can train at once:
of a group that cannot be fused one trains, and the others wait. And the first worker claims all
slots: after an outage, or while workers are started one by one, it is alone at first.
"""

from workers.supervisor.held_runs import LeasedTrial, Phase
from workers.supervisor.session import ServeSession
from workers.supervisor.store import SlotStore

WAIT_SECONDS = 5.0  # a trial that begins within this time is not worth moving
CHECK_SECONDS = 5.0
COOLDOWN_SECONDS = 10.0  # an idle worker is rung within a few seconds
# A trial that has trained for so long may go on for long; moving it costs a checkpoint and a start.
TRAINED_SECONDS = 15.0


class Rebalancer:
    """Hands back runs that others could train, and does not claim their studies for a while."""

    def __init__(self, session: ServeSession, store: SlotStore) -> None:
        self._session = session
        self._store = store
        self._check_at = session.now() + CHECK_SECONDS
        self._cooldowns: dict[int, float] = {}
        self._idle: set[int] = set()
        self._rounds: dict[int, int] = {}

    @property
    def cooling_down(self) -> set[int]:
        """Studies of which a run was handed back a moment ago."""
        now = self._session.now()
        return {study_id for study_id, until in self._cooldowns.items() if now < until}

    def rebalance(self) -> None:
        """Hand back the idle workers' part of the waiting runs, or else the runs over a fair share.

        Raises:
            UnavailableError: The database is away.
        """
        now = self._session.now()
        if now < self._check_at:
            return
        self._check_at = now + CHECK_SECONDS
        before, self._idle = self._idle, set()
        cooling_down = self.cooling_down
        for study_id, runs in self._of_studies().items():
            if study_id in cooling_down:  # others may not have claimed them yet
                continue
            patience = 2.0 ** self._rounds.get(study_id, 0)
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
        """Hand back up to `count` runs, the last claimed first.

        The wait before the next time doubles, in case nobody claims them.
        """
        if count > 0:
            self._rounds[study_id] = self._rounds.get(study_id, 0) + 1
            self._cooldowns[study_id] = self._session.now() + COOLDOWN_SECONDS
            self._session.offer(runs[-count:])

    def _of_studies(self) -> dict[int, list[LeasedTrial]]:
        """Return what the trainer has, by study."""
        runs: dict[int, list[LeasedTrial]] = {}
        for run in self._session.held.of(Phase.SENT):
            if run.stop_mode is None and not run.is_exclusive:
                runs.setdefault(run.lease.study_id, []).append(run)
        return runs


def _waiting(runs: list[LeasedTrial], now: float, least: float) -> list[LeasedTrial]:
    """Return the runs that have waited for `least` seconds behind others of their study."""
    if all(run.started_at is None for run in runs):
        return []
    return [run for run in runs if run.started_at is None and now - run.sent_at >= least]


def _movable(runs: list[LeasedTrial], now: float, least: float) -> list[LeasedTrial]:
    """Return the runs that have trained for `least` seconds and can continue on another worker.

    A user's loop need not have checkpoints, and would begin anew; a trial's own timeout is counted
    by the worker that has it.
    """
    return [
        run
        for run in runs
        if not run.study.definition.is_user_loop
        and run.study.trial_timeout is None
        and run.started_at is not None
        and now - run.started_at >= least
    ]
