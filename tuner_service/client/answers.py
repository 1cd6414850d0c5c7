"""What the service says about studies and trials, as plain frozen objects.

Each keeps the whole JSON in `data`, so that what a newer service adds is not lost on an older
client; `tuner_service.reads.views` describes every field of it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

FINAL_STATES = frozenset({"completed", "cancelled", "failed"})


@dataclass(frozen=True, slots=True)
class Trial:
    """One training run.

    Attributes:
        state: RUNNING, COMPLETE, PRUNED or FAIL; WAITING if another Optuna program enqueued it.
        value: The objective's value; with several objectives the first of `values`.
        record: The last epoch's metrics and what the best model reached on the test part.
        failure: Why it has no result, or an infeasible one, in a sentence.
    """

    number: int
    state: str
    value: float | None
    values: tuple[float, ...] | None
    params: Mapping[str, Any]
    record: Mapping[str, Any]
    failure: str | None
    seconds: float | None
    data: Mapping[str, Any] = field(repr=False)

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> "Trial":
        """Read a trial of the API."""
        failure = data.get("failure")
        values = data.get("values")
        return cls(
            number=data["number"],
            state=data["state"],
            value=data.get("value"),
            values=None if values is None else tuple(values),
            params=dict(data.get("parameters") or {}),
            record=dict(data.get("record") or {}),
            failure=f"{failure['kind']}: {failure['message']}" if failure else None,
            seconds=data.get("seconds"),
            data=data,
        )

    @property
    def attempt(self) -> int:
        """Its slot's how many-th trial it is."""
        return int(self.data.get("attempt", 1))

    @property
    def is_finished(self) -> bool:
        """Whether the trial has ended, in whatever way."""
        return self.state not in ("RUNNING", "WAITING")


@dataclass(frozen=True, slots=True)
class Progress:
    """Slots by state; `total` is the budget, and `pruned` counts among `done`."""

    total: int
    open: int
    leased: int
    done: int
    failed: int
    cancelled: int
    pruned: int

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> "Progress":
        """Read a study's progress of the API."""
        return cls(**{name: data[name] for name in cls.__dataclass_fields__})

    @property
    def finished(self) -> int:
        """How many slots have ended with a trial of theirs, and not by a cancel."""
        return self.done + self.failed

    @property
    def complete(self) -> int:
        """How many slots ended with a result: a COMPLETE trial."""
        return self.done - self.pruned


@dataclass(frozen=True, slots=True)
class StudyStatus:
    """A study at one moment.

    Attributes:
        reason: Why it ended, or what it waits for; None while all is usual.
    """

    id: str
    name: str
    state: str
    reason: str | None
    revision: int
    progress: Progress
    best_trial: Trial | None
    eta_seconds: float | None
    warnings: tuple[str, ...]
    data: Mapping[str, Any] = field(repr=False)

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> "StudyStatus":
        """Read a study of the API."""
        best = data.get("best_trial")
        return cls(
            id=data["id"],
            name=data["name"],
            state=data["state"],
            reason=data.get("reason"),
            revision=data["revision"],
            progress=Progress.of(data["progress"]),
            best_trial=Trial.of(best) if best else None,
            eta_seconds=data.get("eta_seconds"),
            warnings=tuple(data.get("warnings") or ()),
            data=data,
        )

    @property
    def is_final(self) -> bool:
        """Whether the study has ended."""
        return self.state in FINAL_STATES
