"""What a trial's loop has reported, kept beside its checkpoints.

A checkpoint of the loop's own may be ahead of what the database knows: the reports since are on
their way when a worker dies. The process that goes on from it says them again from here, up to
where its own begin, so that the curve has no gap.
"""

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any


@dataclass(frozen=True, slots=True)
class LoggedReport:
    """One report: the step, the objectives, and what was logged of the step."""

    step: int
    values: list[float]
    record: dict[str, Any]


class ReportLog:
    """The reports of one trial, one JSON line each, appended before they are said.

    Without a disk to write to, reports go on and only the gap remains.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[str] | None = None

    def read(self) -> dict[int, LoggedReport]:
        """Return what was reported, by step; of a step that was reported twice the later word."""
        found: dict[int, LoggedReport] = {}
        with contextlib.suppress(OSError), self._path.open(encoding="utf-8") as file:
            for line in file:
                # The last line may be torn: its process was killed.
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    entry = LoggedReport(**json.loads(line))
                    found[entry.step] = entry
        return found

    def append(self, entry: LoggedReport) -> None:
        """Write one report; it outlives this process when this returns."""
        said = {"step": entry.step, "values": entry.values, "record": entry.record}
        with contextlib.suppress(OSError):
            if self._file is None:
                self._file = self._path.open("a", encoding="utf-8")
                if self._file.tell():
                    self._file.write("\n")  # ends a torn line
            self._file.write(json.dumps(said, allow_nan=False) + "\n")
            self._file.flush()
