"""What the lifecycle answers with; the REST API and the client's JSON are these models."""

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

StudyState = Literal["queued", "running", "paused", "completed", "cancelled", "failed"]
TrialState = Literal["RUNNING", "COMPLETE", "PRUNED", "FAIL", "WAITING"]
SlotState = Literal["open", "leased", "done", "failed", "cancelled"]
FailureKind = Literal[
    "diverged", "out_of_memory", "timeout", "user_code", "data", "worker_lost", "cancelled"
]


class View(BaseModel):
    """Base of all answers: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Failure(View):
    """Why a trial has no result, or an infeasible one.

    Attributes:
        step: The step at which it happened, where that is known.
    """

    kind: FailureKind
    message: str
    step: int | None = None
    traceback: str | None = None


class TrialView(View):
    """One trial. `epochs` is filled for a single trial only, not in lists.

    Attributes:
        foreign: Another Optuna program added it: no slot of the budget is behind it, no worker
            takes it up, and it does not count for the study's best. One that was enqueued
            elsewhere is WAITING until the study ends, and FAIL then.
        latest: Of a running trial: what it said of its last epoch.
    """

    number: int
    trial_id: int
    state: TrialState
    slot: int
    attempt: int
    retry_of: int | None
    parameters: dict[str, Any]
    value: float | None
    values: list[float] | None
    last_step: int | None
    failure: Failure | None
    worker: str | None
    device: str | None
    backend: str | None
    backend_reason: str | None
    group: str | None
    started_at: datetime
    finished_at: datetime | None
    seconds: float | None
    record: dict[str, Any]
    has_model: bool
    latest: dict[str, Any] | None = None
    foreign: bool = False
    epochs: list[dict[str, Any]] | None = None


class Progress(View):
    """Slots by state, and how many of the done ones were pruned. `total` is the budget."""

    total: int
    open: int
    leased: int
    done: int
    failed: int
    cancelled: int
    pruned: int


class StudySummary(View):
    """One study with its state and progress, as it stands in lists: without its definition.

    Attributes:
        reason: Why it ended, or what it waits for, in a sentence; null while all is usual.
        eta_seconds: Estimated time to the end at the present rate; null when unknown.
        owner: The name of the API key that submitted it; null where none was needed.
    """

    id: str
    name: str
    state: StudyState
    reason: str | None
    revision: int
    owner: str | None = None
    device: str
    priority: int
    parallel_trials: int
    max_failures: int
    timeout_seconds: float | None
    tags: dict[str, str]
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    progress: Progress
    best_trial: TrialView | None
    eta_seconds: float | None
    warnings: list[str] = Field(default_factory=list)


class StudyView(StudySummary):
    """One study with its definition."""

    definition: dict[str, Any]


class StudyPage(View):
    """A page of studies; `next_cursor` is null on the last."""

    items: list[StudySummary]
    next_cursor: str | None


class TrialPage(View):
    """A page of trials; `next_cursor` is null on the last."""

    items: list[TrialView]
    next_cursor: str | None


class Coverage(View):
    """What became of every point of a grid study (or every slot of another).

    Attributes:
        failed_points: The parameters of each failed slot with its failure.
    """

    total: int
    done: int
    failed: int
    open: int
    leased: int
    cancelled: int
    failed_points: list[dict[str, Any]]


class WorkerView(View):
    """One worker that was heard of lately."""

    id: str
    host: str
    pid: int
    queue: str
    device: str | None
    version: str
    state: str
    lanes: int
    current_trials: list[dict[str, Any]]
    started_at: datetime
    heartbeat_at: datetime


class Plan(View):
    """What a definition would do, without storing anything.

    Attributes:
        grid_size: Number of grid points; null for other samplers.
        fusible: Parameters that may differ within one fused group.
        fusible_on_cpu: Further ones that may on a CPU; on a GPU their values split trials.
        structural: Parameters whose values split trials into groups.
    """

    slots: int
    grid_size: int | None
    parallel_trials: int
    parameters: list[str]
    fusible: list[str]
    fusible_on_cpu: list[str]
    structural: list[str]
    warnings: list[str]
