"""The runs a worker holds: which slot, how far, and in which phase.

    HELD      leased; its trial does not exist yet (or continues), parameters may be unasked
    STARTING  its `Start` waits to be written
    READY     its trial exists; to be sent to the trainer
    SENT      in the trainer
    LOST      in the trainer, but the slot is no longer ours; gone with the trainer's last event

    HELD → STARTING → READY → SENT → LOST;  HELD → READY where the trial exists already;
    SENT → READY when the trainer died and the run goes again

A run is held until its end is in the outbox. Only the methods here change a run.
"""

import enum
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from tuner_service.lifecycle.messages import Lease
from workers.protocol.messages import RunId, StopMode
from workers.supervisor.studies import ActiveStudy


class Phase(enum.Enum):
    """Where a run stands."""

    HELD = "held"
    STARTING = "starting"
    READY = "ready"
    SENT = "sent"
    LOST = "lost"


@dataclass(slots=True, eq=False)
class LeasedTrial:
    """One leased slot on this worker.

    Attributes:
        id: The trainer's name for it.
        checkpoint_step: A checkpoint exists up to this step.
        sendings: How often it was sent to a trainer, the last time at `sent_at`.
        started_at: When the trainer began to train it.
        stop_mode: What the trainer was asked to do with it, at `stop_at`.
        offered: It was asked to stop for another worker's sake, without a deadline.
        out_of_time: It was asked to stop for its own trial_timeout.
    """

    id: RunId
    lease: Lease
    study: ActiveStudy
    phase: Phase = Phase.HELD
    parameters: dict[str, Any] | None = None
    spec: dict[str, Any] = field(default_factory=dict)
    trial_id: int | None = None
    trial_number: int | None = None
    checkpoint_step: int | None = None
    last_step: int | None = None
    sendings: int = 0
    sent_at: float = 0.0
    started_at: float | None = None
    stop_mode: StopMode | None = None
    stop_at: float = 0.0
    offered: bool = False
    out_of_time: bool = False

    @property
    def is_exclusive(self) -> bool:
        """Whether it must be the trainer's only run."""
        return self.lease.exclusive

    @property
    def trial(self) -> int:
        """Optuna's trial id, which a run that was sent to the trainer has."""
        if self.trial_id is None:
            raise RuntimeError(f"slot {self.lease.number} has no trial yet")
        return self.trial_id

    @property
    def number(self) -> int:
        """The trial's number in its study, which a run that was sent to the trainer has."""
        if self.trial_number is None:
            raise RuntimeError(f"slot {self.lease.number} has no trial yet")
        return self.trial_number

    # What happens to it

    def prepare(self, parameters: dict[str, Any], spec: dict[str, Any]) -> None:
        """Take the parameters and what the trainer is told of them."""
        self.parameters, self.spec = parameters, spec

    def starting(self) -> None:
        """Its trial is about to be created."""
        self._enter(Phase.STARTING, Phase.HELD)

    def created(self, trial_id: int, number: int) -> None:
        """Its trial exists."""
        self.trial_id, self.trial_number = trial_id, number

    def ready(self) -> None:
        """It can be sent to the trainer; its search counts the trial from now on."""
        self._enter(Phase.READY, Phase.HELD, Phase.STARTING)
        self.study.search.started(self.trial, self.parameters or {})

    def sent(self, now: float) -> None:
        """The trainer has been told to train it."""
        self._enter(Phase.SENT, Phase.READY)
        self.sendings, self.sent_at = self.sendings + 1, now

    def send_again(self) -> None:
        """The trainer that had it is gone: the next one gets it, as the same trial."""
        self._enter(Phase.READY, Phase.SENT)
        self.started_at = None

    def begun(self, now: float) -> None:
        """The trainer trains it."""
        self.started_at = now

    def reported(self, step: int) -> bool:
        """Note its last step; return whether it is its first report here."""
        first, self.last_step = self.last_step is None, step
        return first

    def checkpointed(self, step: int) -> None:
        """A checkpoint of it exists up to this step."""
        self.checkpoint_step = step

    def ask_stop(self, mode: StopMode, now: float) -> None:
        """Note what the trainer is asked to do with it."""
        self.stop_mode, self.stop_at, self.offered = mode, now, False

    def offer(self) -> None:
        """Note that the stop was asked for another worker's sake, and has no deadline."""
        self.offered = True

    def exceeded_timeout(self) -> None:
        """It has trained for longer than its study's `trial_timeout`."""
        self.out_of_time = True

    def shift_deadline(self, seconds: float) -> None:
        """Give it more time to answer: as long as this process itself stood still."""
        self.stop_at += seconds

    def lose(self) -> None:
        """The slot is no longer ours."""
        self._enter(Phase.LOST, Phase.SENT)

    def _enter(self, phase: Phase, *before: Phase) -> None:
        if self.phase not in before:
            raise RuntimeError(
                f"slot {self.lease.number}: only a run that is "
                f"{' or '.join(one.value for one in before)} becomes {phase.value}, "
                f"but it is {self.phase.value}"
            )
        self.phase = phase

    @property
    def is_free(self) -> bool:
        """Whether nobody waits for its stop."""
        return self.stop_mode is None or self.offered

    def describe(self) -> dict[str, Any]:
        """Return the run as it stands in the list of workers."""
        return {
            "study": self.study.work.name,
            "slot": self.lease.number,
            "trial": self.trial_number,
        }

    def log(self) -> dict[str, Any]:
        """Return the `extra` of a log line about this run."""
        return {
            "study": self.study.work.name,
            "slot": self.lease.number,
            "trial": self.trial_number,
        }


@dataclass(slots=True)
class HeldRuns:
    """All runs, in the order in which they were claimed.

    Attributes:
        ids: Names for runs, each used once in a trainer's life.
    """

    ids: Iterator[int]
    runs: dict[RunId, LeasedTrial] = field(default_factory=dict)
    _by_lease: dict[tuple[int, int], LeasedTrial] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.runs)

    def __iter__(self) -> Iterator[LeasedTrial]:
        return iter(list(self.runs.values()))

    def add(self, lease: Lease, study: ActiveStudy) -> LeasedTrial:
        """Hold a fresh lease."""
        run = LeasedTrial(
            RunId(next(self.ids)),
            lease,
            study,
            parameters=lease.parameters,
            trial_id=lease.trial_id,
            trial_number=lease.trial_number,
            checkpoint_step=lease.checkpoint_step,
            last_step=lease.checkpoint_step,
        )
        self.runs[run.id] = run
        self._by_lease[lease.key] = run
        return run

    def remove(self, run: LeasedTrial) -> None:
        """Hold a run no longer."""
        self.runs.pop(run.id, None)
        self._by_lease.pop(run.lease.key, None)

    def of_lease(self, key: tuple[int, int]) -> LeasedTrial | None:
        """Return the run of a lease, if it is held."""
        return self._by_lease.get(key)

    def lose(self, run: LeasedTrial) -> None:
        """The slot is no longer ours: what the trainer still says of the run is ignored."""
        self._by_lease.pop(run.lease.key, None)
        run.lose()

    def of(self, *phases: Phase) -> list[LeasedTrial]:
        """Return the runs in one of these phases."""
        return [run for run in self.runs.values() if run.phase in phases]

    @property
    def leased(self) -> list[LeasedTrial]:
        """Runs whose lease is ours to renew."""
        return [run for run in self.runs.values() if run.phase is not Phase.LOST]

    @property
    def study_ids(self) -> set[int]:
        """Studies with a run that is held."""
        return {run.lease.study_id for run in self.runs.values()}


def split_exclusive(leases: list[Lease], *, nothing_held: bool) -> tuple[list[Lease], list[Lease]]:
    """Divide fresh leases into those to run now and those to hand back.

    Where nothing is held, an exclusive one runs first and by itself: it would otherwise wait for
    ever, since there are always other slots.
    """
    exclusive = [lease for lease in leases if lease.exclusive]
    together = [lease for lease in leases if not lease.exclusive]
    if exclusive and nothing_held:
        return exclusive[:1], exclusive[1:] + together
    return together, exclusive
