"""Which trials are on board, by counts: who may come in is asked for each that waits."""

from collections import Counter

from workers.protocol.messages import RunId


class OnBoard:
    """Runs that were let in, by their trial, whose folds may be several."""

    def __init__(self) -> None:
        self._trials: dict[RunId, RunId] = {}
        self._runs: Counter[RunId] = Counter()  # by trial
        self._exclusive: Counter[RunId] = Counter()  # of those that want no other on board

    def admits(self, trial: RunId, *, exclusive: bool) -> bool:
        """Whether a run of the trial may come in. Costs the same however many are on board."""
        apart = self._runs if exclusive else self._exclusive
        return len(apart) == (trial in apart)

    def add(self, run: RunId, trial: RunId, *, exclusive: bool) -> None:
        """Let a run in."""
        self._trials[run] = trial
        self._runs[trial] += 1
        if exclusive:
            self._exclusive[trial] += 1

    def remove(self, run: RunId) -> None:
        """Note that a run has ended; one that was never let in is none of its business."""
        trial = self._trials.pop(run, None)
        if trial is None:
            return
        for counts in (self._runs, self._exclusive):
            counts[trial] -= 1
            if counts[trial] <= 0:
                del counts[trial]
