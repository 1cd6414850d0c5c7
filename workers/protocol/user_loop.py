"""The messages between the trainer and the process of one training loop, as JSON lines.

trainer → process   LoopOrder first; then StopLoop · AllowStep
process → trainer   LoopStarted · LoopReport · LoopSaved · LoopAlive; at last
                    LoopFinished, LoopStopped, LoopPruned or LoopFailed
"""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field

from workers.protocol.messages import RunFailureKind


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramOrder:
    """A program that is run as the loop.

    Attributes:
        arguments: Of the process, filled in.
        metrics: Metric -> pattern of a line of output.
        parameters: All of the trial's, which the program also finds in a file and a variable.
        directory: The project's, whose files are brought into `working_dir`.
        working_dir: The trial's own, for what it writes; where it runs, too, but with `in_project`.
        folder: The attempt's own, for that file, and for what is reported to a file.
        mark: Stands in the environment of the program and of all that it starts.
    """

    arguments: list[str]
    directory: str
    working_dir: str
    in_project: bool
    metrics: dict[str, str]
    environment: dict[str, str]
    parameters: dict[str, Any]
    folder: str
    mark: str
    source_hash: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopOrder:
    """What to run.

    Attributes:
        module: Path of the file whose `train` is called.
        program: What is run in place of it.
        objectives: The names of the values that it must give.
        report_log: The file of what was reported.
        reported: The last step that is known of an earlier process.
        model: Where the draft of a model goes; None keeps none.
    """

    module: str
    parameters: dict[str, Any]
    objectives: list[str]
    device: str
    seed: int
    threads: int
    checkpoint_dir: str
    report_log: str
    prunable: bool
    reported: int | None
    model: str | None
    program: ProgramOrder | None = None
    type: Literal["order"] = "order"


@dataclass(frozen=True, slots=True)
class StopLoop:
    """The trial is to end."""

    type: Literal["stop"] = "stop"


@dataclass(frozen=True, slots=True)
class AllowStep:
    """The pruner saw the report of this step, and the trial may go on after it."""

    step: int
    type: Literal["allow"] = "allow"


LoopCommand = Annotated[LoopOrder | StopLoop | AllowStep, Field(discriminator="type")]


@dataclass(frozen=True, slots=True)
class LoopStarted:
    """The module's file was read; its hash."""

    source_hash: str
    type: Literal["started"] = "started"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopReport:
    """The loop reported a step; `saved`: the checkpoint directory has changed since the last."""

    step: int
    values: list[float]
    record: dict[str, Any]
    saved: bool
    type: Literal["report"] = "report"


@dataclass(frozen=True, slots=True)
class LoopSaved:
    """The checkpoint directory has changed."""

    type: Literal["saved"] = "saved"


@dataclass(frozen=True, slots=True)
class LoopAlive:
    """A program runs, though it may have nothing to report for long."""

    type: Literal["alive"] = "alive"


@dataclass(frozen=True, slots=True)
class LoopFinished:
    """The loop returned; its values."""

    values: list[float]
    record: dict[str, Any]
    type: Literal["finished"] = "finished"


@dataclass(frozen=True, slots=True)
class LoopStopped:
    """The loop ended as it was asked to."""

    record: dict[str, Any]
    saved: bool
    type: Literal["stopped"] = "stopped"


@dataclass(frozen=True, slots=True)
class LoopPruned:
    """The loop pruned itself."""

    record: dict[str, Any]
    type: Literal["pruned"] = "pruned"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopFailed:
    """The loop raised, or its value is no finite number."""

    kind: RunFailureKind
    message: str
    step: int | None
    traceback: str | None = None
    record: dict[str, Any] = field(default_factory=dict)
    type: Literal["failed"] = "failed"


LoopEnd = LoopFinished | LoopStopped | LoopPruned | LoopFailed
LoopMessage = Annotated[
    LoopStarted | LoopReport | LoopSaved | LoopAlive | LoopEnd, Field(discriminator="type")
]
