"""A trial's files under the data directory: its weights, and what it printed."""

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sqlalchemy import select

from tuner_service.data_directory import DataDirectory
from tuner_service.errors import NotFoundError, NotKeptError
from tuner_service.reads.lookup import find_study
from tuner_service.storage import Database
from tuner_service.storage.optuna_rows import TRIALS
from tuner_service.storage.schema import slots, trials

NOTE: Final = "tuner"  # the key of our JSON in a model file's header
MAX_HEADER: Final = 100_000_000  # safetensors' own limit


@dataclass(frozen=True, slots=True)
class TrialFiles:
    """Where one trial's files lie; either may be missing.

    Attributes:
        study: The study's public id.
        definition: The study's definition.
    """

    study: str
    number: int
    definition: dict[str, Any]
    model: Path | None
    log: Path | None


def trial_files(db: Database, ref: str, number: int, *, directory: DataDirectory) -> TrialFiles:
    """Return where a trial's files lie.

    Raises:
        NotFoundError: There is no such study, or no such trial in it.
    """
    with db.read() as connection:
        study = find_study(connection, ref)
        row = connection.execute(
            select(trials.c.model_path, trials.c.attempt, slots.c.number.label("slot"))
            .select_from(TRIALS)
            .outerjoin(trials, trials.c.trial_id == TRIALS.c.trial_id)
            .outerjoin(slots, slots.c.id == trials.c.slot_id)
            .where(TRIALS.c.study_id == study["optuna_study_id"], TRIALS.c.number == number)
        ).first()
    if row is None:
        raise NotFoundError(f"study {study['name']!r} has no trial {number}")
    public_id = study["public_id"]
    return TrialFiles(
        study=public_id,
        number=number,
        definition=dict(study["definition"]),
        model=directory.inside(row.model_path),
        log=None if row.slot is None else directory.log(public_id, row.slot, row.attempt),
    )


def read_note(path: Path) -> dict[str, Any]:
    """Return the JSON that the trainer left in a model file's header.

    Raises:
        NotKeptError: The file is gone, or is no model of ours.
    """
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(min(length, MAX_HEADER)))
        note: dict[str, Any] = json.loads(header["__metadata__"][NOTE])
    except (OSError, struct.error, ValueError, KeyError) as error:
        raise NotKeptError(f"the model file {path.name} cannot be read") from error
    return note


def read_log(path: Path | None, *, tail: int | None) -> str:
    """Return what a trial printed, or its last lines; a trial that printed nothing has no file."""
    if path is None:
        return ""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""
    if tail is None:
        return text
    lines = text.splitlines(keepends=True)
    return "".join(lines[-tail:]) if tail else ""
