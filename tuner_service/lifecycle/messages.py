"""What a worker says to the lifecycle and what it hears back: plain frozen records.

One `Batch` goes into one transaction (`lifecycle.flush`), together with Optuna's rows of the same
events. Everything in a batch is guarded by the slot's fencing token: what a zombie sends changes no
row and comes back in `Flushed.lost`.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

from tuner_service.reads.views import Failure


@dataclass(frozen=True, slots=True)
class Lease:
    """A worker's time-limited right to one slot, as `claim` hands it out.

    Attributes:
        fencing_token: Every later write about the slot must carry it.
        parameters: Fixed parameters; None when the sampler is still to be asked.
        enqueued: The user's partial point that the sampler must complete, if any.
        trial_id: The RUNNING trial to continue after a hand-back; None means start a new one.
        checkpoint_step: Continue after this step from the slot's checkpoint; None: from the start.
        exclusive: Run with no other trial in the trainer (after two shared deaths).
        attempt: Number of this attempt, from 1.
    """

    slot_id: int
    fencing_token: int
    study_id: int
    number: int
    parameters: dict[str, Any] | None
    enqueued: dict[str, Any] | None
    trial_id: int | None
    trial_number: int | None
    checkpoint_step: int | None
    attempt: int
    exclusive: bool

    @property
    def key(self) -> tuple[int, int]:
        """Identity of the lease: (slot id, fencing token)."""
        return (self.slot_id, self.fencing_token)


@dataclass(frozen=True, slots=True)
class StudyWork:
    """What a worker must know of a study to work on it.

    Attributes:
        definition: The stored definition, as JSON.
        remaining_seconds: Until the study's timeout; None without one.
    """

    study_id: int
    public_id: str
    name: str
    optuna_study_id: int
    definition: dict[str, Any]
    remaining_seconds: float | None


@dataclass(frozen=True, slots=True)
class Claimed:
    """Leases from one `claim`, with the studies they belong to by study id."""

    leases: list[Lease]
    studies: dict[int, StudyWork]


@dataclass(frozen=True, slots=True)
class Start:
    """Create the RUNNING trial of a leased slot, fixing its parameters."""

    lease: Lease
    parameters: dict[str, Any]
    device: str | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """One epoch of one trial.

    Attributes:
        step: The epoch, from 1.
        value: The (first) objective's intermediate value; None records the epoch only.
        record: Losses, metrics, learning rate, seconds of the epoch.
    """

    lease: Lease
    trial_id: int
    step: int
    value: float | None
    record: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Finish:
    """End a trial with a result: COMPLETE or PRUNED; the slot is done.

    Attributes:
        values: One per objective; may be None for PRUNED (then the last report stands).
        failure: For PRUNED only: `diverged` or `out_of_memory`, stored with an infeasibility
            constraint; or `timeout` when the study's time ended.
        record: Test metrics, parameter count, versions, seconds, and so on.
    """

    lease: Lease
    trial_id: int
    state: Literal["COMPLETE", "PRUNED"]
    values: tuple[float, ...] | None
    record: dict[str, Any]
    failure: Failure | None = None
    backend: str | None = None
    backend_reason: str | None = None
    group: str | None = None
    model_path: str | None = None


@dataclass(frozen=True, slots=True)
class Fail:
    """End an attempt without a result; the trial becomes FAIL, the slot opens again or fails.

    Attributes:
        trial_id: None when the slot was leased but its trial never created.
        blamed: Whether the attempt counts against the cap (its own trial is to blame).
        shared_death: The trainer died with several lanes on board.
        retry: False fails the slot at once, whatever attempts are left.
        checkpoint_step: A checkpoint up to this step exists for the next attempt.
        hopeless: Why no other trial of the study could succeed: ends the study, and the
            slot with it, if nothing was reported in it yet.
    """

    lease: Lease
    trial_id: int | None
    failure: Failure
    blamed: bool
    shared_death: bool = False
    retry: bool = True
    checkpoint_step: int | None = None
    nothing_trains: str | None = None


@dataclass(frozen=True, slots=True)
class HandBack:
    """Give a slot back unblamed: the trial stays RUNNING, its checkpoint reaches `step`.

    A lease whose trial was never created, or that has no checkpoint, is handed back with
    `checkpoint_step=None`; its trial, if any, is continued from the start.
    """

    lease: Lease
    checkpoint_step: int | None


@dataclass(frozen=True, slots=True)
class Batch:
    """All that one flush writes. `renew` lists leases held on to; `checkpoints` new ones."""

    starts: list[Start] = field(default_factory=list)
    reports: list[Report] = field(default_factory=list)
    finishes: list[Finish] = field(default_factory=list)
    fails: list[Fail] = field(default_factory=list)
    hand_backs: list[HandBack] = field(default_factory=list)
    renew: list[Lease] = field(default_factory=list)
    checkpoints: list[tuple[Lease, int]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class StartedTrial:
    """Optuna's id and number of a trial that a `Start` created."""

    trial_id: int
    number: int


@dataclass(frozen=True, slots=True)
class Flushed:
    """What a flush did.

    Attributes:
        started: By lease key. A start that was refused (cancelled study) is in `lost`.
        lost: Keys of leases that are no longer this worker's: drop their trials, write no more.
        stop: Keys of leases still held, whose study asks them to stop, with the reason:
            `cancelled` (throw away), `paused` (checkpoint and hand back), `timeout` (finish as
            PRUNED with what there is), `asked` (somebody stops this trial: the same).
        drop_models: Relative paths of model files that no kept trial refers to any more.
    """

    started: dict[tuple[int, int], StartedTrial]
    lost: set[tuple[int, int]]
    stop: dict[tuple[int, int], str]
    drop_models: list[str]
