"""The runs a worker holds: which slot, how far, and where each stands.

    HELD      leased; its trial does not exist yet (or continues), parameters may be unasked
    STARTING  its `Start` waits to be written
    READY     its trial exists; to be sent to the trainer
    SENT      in the trainer
    GHOST     in the trainer, but the slot is no longer ours; ends with the trainer's last word

A run leaves the board when its end is in the outbox.
"""

import enum
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from tuner_service.lifecycle.messages import Lease
from workers.protocol.messages import StopMode
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
        key: The trainer's name for it.
        checkpoint_step: A checkpoint exists up to this step.
        sendings: How often it was sent to a trainer, the last time at `sent_at`.
        started_at: When the trainer began to train it.
        stop_mode: What the trainer was asked to do with it, at `stop_at`.
        offered: It was asked for another worker's sake, which has no deadline.
        out_of_time: It was asked to stop for its own trial_timeout.
    """

    key: int
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
        """Whether it must run with no other on board."""
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

    def ask_stop(self, mode: StopMode, now: float) -> None:
        """Note what the trainer is asked to do with the run."""
        self.stop_mode, self.stop_at, self.offered = mode, now, False

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
        keys: Names for runs, each used once in a trainer's life.
    """

    keys: Iterator[int]
    runs: dict[int, LeasedTrial] = field(default_factory=dict)
    _by_lease: dict[tuple[int, int], LeasedTrial] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.runs)

    def __iter__(self) -> Iterator[LeasedTrial]:
        return iter(list(self.runs.values()))

    def add(self, lease: Lease, study: ActiveStudy) -> LeasedTrial:
        """Put a fresh lease on the board."""
        run = LeasedTrial(
            next(self.keys),
            lease,
            study,
            parameters=lease.parameters,
            trial_id=lease.trial_id,
            trial_number=lease.trial_number,
            checkpoint_step=lease.checkpoint_step,
            last_step=lease.checkpoint_step,
        )
        self.runs[run.key] = run
        self._by_lease[lease.key] = run
        return run

    def remove(self, run: LeasedTrial) -> None:
        """Take a run off the board."""
        self.runs.pop(run.key, None)
        self._by_lease.pop(run.lease.key, None)

    def of_lease(self, key: tuple[int, int]) -> LeasedTrial | None:
        """Return the run of a lease, if it is on the board."""
        return self._by_lease.get(key)

    def disown(self, run: LeasedTrial) -> None:
        """The slot is no longer ours: what the trainer still says of the run is ignored."""
        self._by_lease.pop(run.lease.key, None)
        run.phase = Phase.LOST

    def of(self, *phases: Phase) -> list[LeasedTrial]:
        """Return the runs in one of these phases."""
        return [run for run in self.runs.values() if run.phase in phases]

    @property
    def leased(self) -> list[LeasedTrial]:
        """Runs whose lease is ours to renew."""
        return [run for run in self.runs.values() if run.phase is not Phase.LOST]

    @property
    def study_ids(self) -> set[int]:
        """Studies with a run on the board."""
        return {run.lease.study_id for run in self.runs.values()}


def split_exclusive(leases: list[Lease], *, nothing_held: bool) -> tuple[list[Lease], list[Lease]]:
    """Divide fresh leases into those to run now and those to hand back.

    A run that must be alone goes first on an empty board, by itself: otherwise it would wait for
    ever behind slots that keep coming.
    """
    alone = [lease for lease in leases if lease.exclusive]
    together = [lease for lease in leases if not lease.exclusive]
    if alone and nothing_held:
        return alone[:1], alone[1:] + together
    return together, alone
