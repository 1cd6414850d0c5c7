"""The messages between supervisor and trainer: JSON lines over two pipes.

Supervisor → trainer: `start`, `stop`, `verdicts`, `try`, `forget`, `shutdown`. Trainer →
supervisor: `ready`, `events` (a list, from day one), `doubt`, `alive`. The trainer's standard
output and error belong to user code and go to log files; they are never the channel. End of file on
the command pipe ends the trainer at once.

`trial` is the supervisor's key for a run: an integer it chooses, unique in the trainer's life.
"""

from typing import Any, Literal, NotRequired, TypedDict

StopMode = Literal["prune", "cancel", "checkpoint", "timeout"]


class TrialStart(TypedDict):
    """One trial to train.

    `checkpoint` is the path prefix for this trial's checkpoint files. `resume` is the step of the
    one that the database knows, null to begin at the start: the engine continues from it, from an
    earlier one, or from the start, saying so in the record, but never from a later one, whose
    reports may be lost.
    `model` is where the weights go if the trial ends among the study's `keep_models` best that
    this trainer knows of; null keeps none. `number` is the trial's in its study: of equal values
    the lower one ranks first. With `prunable` the engine runs at most one epoch
    ahead of the last verdict. `alone` wants no other trial on board.
    """

    trial: int
    number: int
    study: int
    spec: dict[str, Any]  # TrialSpec, or LoopSpec
    checkpoint: str
    resume: int | None
    model: str | None
    keep_models: int
    prunable: bool
    alone: bool
    log: str | None


class StartMessage(TypedDict):
    """Start these trials, in this order as lanes are free."""

    type: Literal["start"]
    trials: list[TrialStart]


class StopMessage(TypedDict):
    """Stop these at their next step.

    `prune` and `timeout` end with a `stopped` event carrying test metrics and record; `cancel`
    throws the trial away; `checkpoint` writes one first and the event carries its step.
    """

    type: Literal["stop"]
    trials: list[tuple[int, StopMode]]


class VerdictsMessage(TypedDict):
    """(trial, step): the pruner saw the report of this step and lets the trial go on."""

    type: Literal["verdicts"]
    trials: list[tuple[int, int]]


class TryMessage(TypedDict):
    """The answer to `doubt`: specs of trials at other points of the study's search space."""

    type: Literal["try"]
    study: int
    specs: list[dict[str, Any]]


class ForgetMessage(TypedDict):
    """A result of the study was not counted: keep models as if none of it had been seen."""

    type: Literal["forget"]
    study: int


class ShutdownMessage(TypedDict):
    """Checkpoint everything on board, report each as `stopped`, and exit."""

    type: Literal["shutdown"]


class ReadyMessage(TypedDict):
    """The trainer is up: its device and versions."""

    type: Literal["ready"]
    pid: int
    device: str
    queue: Literal["cpu", "cuda"]
    versions: dict[str, str]
    lanes: int  # how many trials it can usefully hold at once
    loops: NotRequired[int]  # how many training loops it runs at once


class DoubtMessage(TypedDict):
    """The study's first trials failed; their last words wait for `try`."""

    type: Literal["doubt"]
    study: int


class AliveMessage(TypedDict):
    """Sent at least every second by a thread, with how long the engine has been in this call."""

    type: Literal["alive"]
    busy_seconds: float
    turn: list[int]  # trials that the engine's present call prepares or trains
    memory_bytes: int


class Event(TypedDict):
    """What happened to one trial.

    kinds: `started`; `report` (step, value, record); `checkpointed` (step); `working` (a training
    loop that has its process, whatever it is at); `finished` (values, record, …); `stopped` (mode,
    step, values, record); `failed` (failure, record; `alone` if no other trial can be its cause).

    `failure` is `{kind, message, step, traceback}` with kind diverged, out_of_memory, user_code
    or data; and `hopeless`, a sentence, where no other trial of the study would do better.
    """

    kind: Literal["started", "report", "checkpointed", "working", "finished", "stopped", "failed"]
    trial: int
    step: NotRequired[int]
    value: NotRequired[float | None]
    values: NotRequired[list[float]]
    mode: NotRequired[StopMode]
    record: NotRequired[dict[str, Any]]
    failure: NotRequired[dict[str, Any]]
    alone: NotRequired[bool]
    backend: NotRequired[str]
    backend_reason: NotRequired[str | None]
    group: NotRequired[str | None]
    model: NotRequired[str | None]


class EventsMessage(TypedDict):
    """Events in the order in which they happened."""

    type: Literal["events"]
    events: list[Event]
