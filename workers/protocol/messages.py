"""The messages between supervisor and trainer: JSON lines over two pipes, told apart by `type`.

    supervisor → trainer   Start · Stop · Allow · ProbePoints · ForgetResults · Shutdown
    trainer → supervisor   Ready · Events · ProbeRequest · Alive · DeviceLost

`codec` brings them to the wire and back. The trainer's standard output and error belong to user
code and go to log files; they are never the channel. End of file on the command pipe ends the
trainer at once.
"""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NewType

from pydantic import Field

_BY_TYPE = Field(discriminator="type")

RunId = NewType("RunId", int)
"""The supervisor's key for a run: an integer it chooses, unique in the trainer's life."""

StopMode = Literal["prune", "cancel", "checkpoint", "timeout"]

RunFailureKind = Literal["diverged", "out_of_memory", "user_code", "data", "worker_lost"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialStart:
    """One trial to train.

    Attributes:
        number: The trial's in its study: of equal values the lower one ranks first.
        study: The study's id.
        spec: A `TrialSpec` or a `UserLoopSpec`, as JSON.
        checkpoint: Path prefix of the trial's checkpoint files.
        resume: The step of the checkpoint that the database knows, None to begin at the start. The
            engine continues from it, from an earlier one, or from the start, saying so in the
            record, but never from a later one, whose reports may be lost.
        model: Where the weights go if the trial ends among the study's `keep_models` best that
            this trainer knows of; None keeps none.
        prunable: The engine runs at most one epoch ahead of the last `Allow`.
        exclusive: No other trial may be in the trainer meanwhile.
        log: The file of what the trial prints; None keeps nothing of it.
    """

    run: RunId
    number: int
    study: int
    spec: dict[str, Any]
    checkpoint: str
    resume: int | None
    model: str | None
    keep_models: int
    prunable: bool
    exclusive: bool
    log: str | None


# Supervisor → trainer ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Start:
    """Start these trials, in this order as lanes are free."""

    trials: list[TrialStart]
    type: Literal["start"] = "start"


@dataclass(frozen=True, slots=True)
class Stop:
    """Stop these runs at their next step.

    `prune` and `timeout` end with a `Stopped` that carries test metrics and record; `cancel`
    throws the trial away; `checkpoint` writes one first, and `Stopped` carries its step.
    """

    runs: list[tuple[RunId, StopMode]]
    type: Literal["stop"] = "stop"


@dataclass(frozen=True, slots=True)
class Allow:
    """(run, step): the pruner saw the report of this step, and the trial may go on after it."""

    steps: list[tuple[RunId, int]]
    type: Literal["allow"] = "allow"


@dataclass(frozen=True, slots=True)
class ProbePoints:
    """The answer to `ProbeRequest`: specs of trials at other points of the search space."""

    study: int
    specs: list[dict[str, Any]]
    type: Literal["probe_points"] = "probe_points"


@dataclass(frozen=True, slots=True)
class ForgetResults:
    """A result of the study was not counted: keep models as if none of it had been seen."""

    study: int
    type: Literal["forget_results"] = "forget_results"


@dataclass(frozen=True, slots=True)
class Shutdown:
    """Checkpoint everything on board, report each as `Stopped`, and exit."""

    type: Literal["shutdown"] = "shutdown"


Command = Annotated[Start | Stop | Allow | ProbePoints | ForgetResults | Shutdown, _BY_TYPE]


# What happened to a run --------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RunFailure:
    """Why a trial failed.

    Attributes:
        nothing_trains: A sentence, where no other trial of the study would do better.
    """

    kind: RunFailureKind
    message: str
    step: int | None = None
    traceback: str | None = None
    nothing_trains: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """The run has its lane, or its process."""

    run: RunId
    backend: str | None = None
    backend_reason: str | None = None
    group: str | None = None
    type: Literal["started"] = "started"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reported:
    """An epoch is trained: the first objective's value, None where it is no number, and more."""

    run: RunId
    step: int
    value: float | None
    record: dict[str, Any]
    type: Literal["reported"] = "reported"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpointed:
    """A checkpoint of the run exists up to this step."""

    run: RunId
    step: int
    type: Literal["checkpointed"] = "checkpointed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Working:
    """The trainer moves, whatever this run is at: a training loop, or one that is probed."""

    run: RunId
    type: Literal["working"] = "working"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEnd:
    """What every run's last event says: what is recorded of it, and how it was trained."""

    run: RunId
    record: dict[str, Any] = field(default_factory=dict)
    backend: str | None = None
    backend_reason: str | None = None
    group: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished(RunEnd):
    """The trial ran through."""

    values: list[float]
    step: int | None = None
    model: str | None = None
    type: Literal["finished"] = "finished"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopped(RunEnd):
    """The trial was asked to stop, and has.

    Attributes:
        step: Of the checkpoint with `checkpoint`, else the last that was trained; None: none.
        values: What it had reached; None before its first epoch.
        model: With `timeout`, of what it had reached, if that is among the best.
    """

    mode: StopMode
    step: int | None = None
    values: list[float] | None = None
    model: str | None = None
    type: Literal["stopped"] = "stopped"


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed(RunEnd):
    """The trial failed.

    Attributes:
        sole_suspect: Whether no other trial can be the cause of it; None: the trainer does not
            know.
    """

    failure: RunFailure
    sole_suspect: bool | None = None
    type: Literal["failed"] = "failed"


Event = Annotated[
    Started | Reported | Checkpointed | Working | Finished | Stopped | Failed, _BY_TYPE
]


# Trainer → supervisor ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """The trainer is up.

    Attributes:
        lanes: How many trials it can usefully hold at once.
        user_loops: How many training loops it runs at once.
    """

    pid: int
    device: str
    queue: Literal["cpu", "cuda"]
    versions: dict[str, str]
    lanes: int
    user_loops: int = 1
    type: Literal["ready"] = "ready"


@dataclass(frozen=True, slots=True)
class Events:
    """Events in the order in which they happened."""

    events: list[Event]
    type: Literal["events"] = "events"


@dataclass(frozen=True, slots=True)
class ProbeRequest:
    """The study's first trials failed; their ends are held back until `ProbePoints` comes."""

    study: int
    type: Literal["probe_request"] = "probe_request"


@dataclass(frozen=True, slots=True, kw_only=True)
class Alive:
    """Sent at least every second by a thread of its own.

    Attributes:
        busy_seconds: How long the engine has been in its present call.
        turn: Runs that this call prepares or trains.
    """

    busy_seconds: float
    turn: list[RunId]
    memory_bytes: int
    type: Literal["alive"] = "alive"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceLost:
    """The trainer's last words: the device answers nothing any more.

    Attributes:
        turn: Runs of which one may have done it; what happened before was told in `Events`.
    """

    turn: list[RunId]
    message: str
    type: Literal["device_lost"] = "device_lost"


DEVICE_LOST_EXIT = 72  # the exit code after it

TrainerMessage = Annotated[Ready | Events | ProbeRequest | Alive | DeviceLost, _BY_TYPE]
