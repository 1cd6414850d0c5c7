"""Values that a program gives to a tracker: what the tracker writes in the trial's directory.

TensorBoard's event files, Lightning's `metrics.csv`, the `trainer_state.json` of Hugging Face's
Trainer, W&B's offline runs, and MLflow's `mlruns` or `mlflow.db`. They are looked for by their
names, and read as they grow. Links are not followed: what lies behind one is of other trials, too.
"""

import contextlib
import csv
import io
import json
import math
import os
import re
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, Final, Protocol

from workers.training.user_loops.program_values import TRACKED, Measurement
from workers.training.user_loops.tracker_records import MAX_READ, EventFile, Values, WandbFile

MAX_ENTRIES: Final = 20_000  # of the directory; what is beyond is not looked at
MAX_FILES: Final = 1_000
_WHOLE_FILE: Final = 64 << 20  # bytes; a larger table or state is not read


class TrackerFile(Protocol):
    """One file of a tracker's."""

    def news(self) -> Iterator[Values]:
        """Yield what was written since the last look.

        Raises:
            OSError: It cannot be read now.
        """


class TrackerFiles:
    """All such files below a directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._files: dict[str, TrackerFile] = {}

    @property
    def found(self) -> bool:
        """Whether there is one, whatever it says."""
        return bool(self._files)

    def news(self) -> Iterator[Measurement]:
        """Yield what was written since the last look, file by file."""
        for path in self._paths():
            reader = _reader_of(path)
            if path not in self._files and reader is not None and len(self._files) < MAX_FILES:
                self._files[path] = reader(Path(path))
        for file in self._files.values():
            with contextlib.suppress(OSError, ValueError):
                for step, values in file.news():
                    said = {plain_name(name): value for name, value in values.items()}
                    yield Measurement(step, said, rank=TRACKED)

    def _paths(self) -> Iterator[str]:
        seen = 0
        for folder, folders, names in os.walk(self._directory):
            folders[:] = sorted(one for one in folders if one != "__pycache__")
            seen += len(folders) + len(names)
            if seen > MAX_ENTRIES:
                return
            for name in sorted(names):
                path = os.path.join(folder, name)
                if is_tracker_file(path) and not os.path.islink(path):
                    yield path


def plain_name(name: str) -> str:
    """Return a tag as an objective's name has it: `val_acc` of `val/acc`."""
    return re.sub(r"\W+", "_", name).strip("_")


class MetricsTable:
    """Lightning's `metrics.csv`, which is written anew when a column comes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp: object = None
        self._rows = 0

    def news(self) -> Iterator[Values]:
        """Yield the rows since the last look; an epoch counts as the step where there is one."""
        text = self._changed()
        if text is None:
            return
        rows = list(csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1])))
        for row in rows[self._rows :]:
            said = {name: _number(cell) for name, cell in row.items() if isinstance(name, str)}
            numbers = {name: value for name, value in said.items() if value is not None}
            step = _whole(numbers.pop("epoch", None)), _whole(numbers.pop("step", None))
            if numbers:
                yield step[0] if step[0] is not None else step[1], numbers
        self._rows = max(self._rows, len(rows))

    def _changed(self) -> str | None:
        stat = self._path.stat()
        stamp = stat.st_size, stat.st_mtime_ns
        if stamp == self._stamp or stat.st_size > _WHOLE_FILE:
            return None
        self._stamp = stamp
        return self._path.read_text(encoding="utf-8", errors="replace")


class TrainerState:
    """The Trainer's `trainer_state.json`; each one has the whole history so far."""

    _told_states: ClassVar[dict[Path, set[str]]] = {}

    def __init__(self, path: Path) -> None:
        self._path = path
        checkpoint = path.parent.name.startswith("checkpoint-")
        output = path.parent.parent if checkpoint else path.parent
        self._told = self._told_states.setdefault(output, set())
        self._stamp: object = None

    def news(self) -> Iterator[Values]:
        """Yield the entries that no file has told so far."""
        stat = self._path.stat()
        stamp = stat.st_size, stat.st_mtime_ns
        if stamp == self._stamp or stat.st_size > _WHOLE_FILE:
            return
        history = json.loads(self._path.read_text(encoding="utf-8")).get("log_history", [])
        self._stamp = stamp
        for entry in history:
            key = json.dumps(entry, sort_keys=True)
            if key in self._told:
                continue
            self._told.add(key)
            said = {name: value for name, value in entry.items() if _number(value) is not None}
            step = _whole(said.pop("step", None))
            if said:
                yield step, {name: float(value) for name, value in said.items()}


class RunMetric:
    """One metric of MLflow's file store: lines of time, value and step."""

    def __init__(self, path: Path) -> None:
        parts = path.parts
        folder = len(parts) - 1 - parts[::-1].index("metrics")
        self._name = "/".join(parts[folder + 1 :])
        self._path = path
        self._at = 0

    def news(self) -> Iterator[Values]:
        """Yield the lines since the last look."""
        with self._path.open("rb") as file:
            file.seek(self._at)
            text = file.read(MAX_READ)
        text = text[: text.rfind(b"\n") + 1]
        self._at += len(text)
        for line in text.decode("utf-8", "replace").splitlines():
            _, value, *step = line.split()
            yield _whole(step[0]) if step else None, {self._name: float(value)}


class RunDatabase:
    """MLflow's SQLite store."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._row = 0

    def news(self) -> Iterator[Values]:
        """Yield the rows since the last look."""
        query = "SELECT rowid, key, value, step, is_nan FROM metrics WHERE rowid > ? ORDER BY rowid"
        uri = f"{self._path.as_uri()}?mode=ro"
        try:
            with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=0.2)) as database:
                rows = database.execute(query, (self._row,)).fetchall()
        except sqlite3.Error:  # locked, or not MLflow's
            return
        for row, key, value, step, is_nan in rows:
            self._row = row
            yield int(step), {str(key): math.nan if is_nan else float(value)}


def is_tracker_file(path: str) -> bool:
    """Return whether a file of this name is a tracker's."""
    return _reader_of(path) is not None


def _reader_of(path: str) -> Callable[[Path], TrackerFile] | None:
    """Return what reads a file of this name; None: no tracker's."""
    folder, _, name = path.rpartition("/")
    found: Callable[[Path], TrackerFile] | None = None
    if ".tfevents." in name:
        found = EventFile
    elif name == "metrics.csv":
        found = MetricsTable
    elif name == "trainer_state.json":
        found = TrainerState
    elif name.startswith("run-") and name.endswith(".wandb"):
        found = WandbFile
    elif name == "mlflow.db":
        found = RunDatabase
    elif "/mlruns/" in f"{folder}/" and "/metrics/" in f"{folder}/":
        found = RunMetric
    return found


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or value in (None, ""):
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _whole(value: Any) -> int | None:
    number = _number(value)
    if number is None or not math.isfinite(number) or number < 0 or number != int(number):
        return None
    return int(number)
