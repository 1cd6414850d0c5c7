"""Who is in which lane of a group's step, and whose tensors are in the step just now.

A run has a lane from its start to its end. Its tensors are in the step (it is loaded) while it
trains; while it waits for the pruner and others go on, it keeps its lane and holds its own tensors.
"""

from collections.abc import Iterator, Sequence

from workers.training.steps.step import LaneState, TrainStep
from workers.training.trials.runs import TrialRun


class Lanes:
    """The lanes of one step."""

    def __init__(self, step: TrainStep, runs: Sequence[TrialRun] = ()) -> None:
        if len(runs) > step.lanes:
            raise ValueError(f"{len(runs)} runs do not fit the step's {step.lanes} lanes")
        self.step = step
        self.lanes: list[TrialRun | None] = [*runs, *[None] * (step.lanes - len(runs))]
        self.loaded: set[int] = set()

    def __iter__(self) -> Iterator[tuple[int, TrialRun]]:
        """Yield (lane, run) of every lane that is taken; lanes may be released meanwhile."""
        # A list, not a generator over the lanes: who iterates may release them.
        yield from [(lane, run) for lane, run in enumerate(self.lanes) if run is not None]

    @property
    def runs(self) -> list[TrialRun]:
        """The runs, by lane."""
        return [run for _, run in self]

    @property
    def full(self) -> bool:
        """Whether no lane is free."""
        return None not in self.lanes

    def __getitem__(self, lane: int) -> TrialRun:
        """Return the run in a lane that is taken."""
        run = self.lanes[lane]
        if run is None:
            raise LookupError(f"lane {lane} is empty")
        return run

    def assign(self, run: TrialRun) -> None:
        """Give the run a free lane."""
        self.lanes[self.lanes.index(None)] = run

    def load(self, lane: int) -> bool:
        """Put the run's tensors into the step; return whether they were not there yet."""
        if lane in self.loaded:
            return False
        run = self[lane]
        self.step.put(lane, run.hyper, run.state)
        run.state = None  # one copy of the tensors, in the step or here
        self.loaded.add(lane)
        return True

    def unload(self, lane: int) -> None:
        """Give the run its tensors back; it keeps its lane."""
        if lane not in self.loaded:
            return
        run = self[lane]
        # Before the lane is cleared: what the step remembers goes with its lane.
        run.best = self.best(lane)
        run.remembered = False
        run.state = self.step.take(lane)
        self.step.clear(lane)
        self.loaded.discard(lane)

    def release(self, lane: int) -> None:
        """Make the lane free."""
        if lane in self.loaded:
            self.step.clear(lane)
            self.loaded.discard(lane)
        self.lanes[lane] = None

    def remember(self, lanes: Sequence[int]) -> None:
        """Keep the present weights of these lanes as their runs' best."""
        if not lanes:
            return
        self.step.remember(lanes)
        for lane in lanes:
            self[lane].remembered = True

    def state(self, lane: int) -> LaneState | None:
        """Return a copy of the run's tensors; None before its first step."""
        return self.step.take(lane) if lane in self.loaded else self[lane].state

    def best(self, lane: int) -> LaneState | None:
        """Return the weights of the run's best epoch; None where none are kept."""
        run = self[lane]
        return self.step.recall(lane) if run.remembered else run.best

    def result(self, lane: int) -> LaneState | None:
        """Return the weights that the run's values are of: its best epoch's, or the present."""
        best = self.best(lane) if self[lane].keeps_best else None
        return best or self.state(lane)

    def holds_result(self, lane: int) -> bool:
        """Whether the weights in the step are those that the run's values are of."""
        run = self[lane]
        # Early stopping: the result is the best epoch, and the step is some epochs further by now.
        behind = run.keeps_best and run.progress.best_step != run.progress.epoch
        return lane in self.loaded and not behind
