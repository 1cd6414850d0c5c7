"""Files under the data directory that nothing needs any more.

    checkpoints/STUDY/SLOT.…          needed until the slot is done or failed, or its study is over
    models/STUDY/SLOT-TOKEN.…         needed while a trial names it, or its lease may yet do so
    deleted/STUDY                     the study was deleted, and so are its files

A worker drops the files of what it ends itself. What remains is swept here: of slots whose last
attempt ended elsewhere, of processes that died between a commit and the files' removal, and of
those that wrote on after they had lost their lease. A file is listed before the database is asked,
and removed only where the answer can never change. A directory whose study the database does not
know stays: the database may have been restored from an older backup.
"""

import contextlib
import logging
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final

from sqlalchemy import Connection, select

from tuner_service.data_directory import DataDirectory, fencing_token_of, slot_of
from tuner_service.files import private_folder
from tuner_service.reads.states import FINAL
from tuner_service.storage import Database
from tuner_service.storage.postgres import Row
from tuner_service.storage.schema import GONE, slots, studies, trials

logger = logging.getLogger(__name__)

GHOST_SECONDS: Final = 3600.0  # how long a process may write for a study that was deleted
_AT_ONCE: Final = 500  # slot numbers in one statement

Seen = dict[str, int]
"""The modification time, in ns, of each directory of models in which all is as it should be."""


def mark_deleted(directory: DataDirectory, study: str) -> None:
    """Note that a study was deleted, so that its files go, also what is written late."""
    with contextlib.suppress(OSError):  # a full disk is what studies are deleted for
        (private_folder(directory.deleted) / study).touch(mode=0o600)


def remove_files(directory: DataDirectory, study: str) -> None:
    """Remove the files of a study that is deleted."""
    for folder in directory.study_folders(study):
        try:
            shutil.rmtree(folder)
        except FileNotFoundError:
            continue
        except OSError as error:
            logger.warning("cannot remove %s (will try again): %s", folder, error)


def sweep(
    db: Database,
    directory: DataDirectory,
    seen: Seen,
    *,
    is_stopping: Callable[[], bool] = lambda: False,
) -> int:
    """Remove what nothing needs; return how many files. Idempotent, and safe at any time.

    Args:
        seen: Of the sweep before, brought up to date; empty at first.
        is_stopping: Asked between folders: what is left is for the next sweep.

    Raises:
        UnavailableError: The database cannot be reached.
    """
    _sweep_deleted(db, directory, is_stopping)
    removed = 0
    for folder in _folders(directory.all_checkpoints):
        if is_stopping():
            return removed
        removed += _remove(_spent_checkpoints(db, folder))
        with contextlib.suppress(OSError):  # not empty, or written to just now
            if _is_over(db, folder.name):
                folder.rmdir()
    folders = _folders(directory.all_models)
    for folder in folders:
        if is_stopping():
            return removed
        removed += _sweep_models(db, folder, seen)
    for gone in seen.keys() - {folder.name for folder in folders}:
        del seen[gone]
    return removed


def _sweep_deleted(db: Database, directory: DataDirectory, is_stopping: Callable[[], bool]) -> None:
    for mark in _entries(directory.deleted):
        if is_stopping():
            return
        with db.read() as connection:
            exists = _study(connection, mark.name) is not None  # a backup from before was restored
        if not exists:
            remove_files(directory, mark.name)
        with contextlib.suppress(OSError):
            if exists or _is_through(directory, mark):
                mark.unlink()


def _is_through(directory: DataDirectory, mark: Path) -> bool:
    """Return whether a deleted study's files have gone, and nobody writes more of them."""
    is_old = time.time() - mark.stat().st_mtime > GHOST_SECONDS
    return is_old and not any(folder.exists() for folder in directory.study_folders(mark.name))


def _is_over(db: Database, study: str) -> bool:
    with db.read() as connection:
        row = _study(connection, study)
    return row is not None and row["state"] in FINAL


def _spent_checkpoints(db: Database, folder: Path) -> list[Path]:
    """Return the checkpoints of slots that will never run again."""
    entries = _by_slot(folder)
    with db.read() as connection:
        study = _study(connection, folder.name)
        if study is None or not entries:
            return []
        states = {row["number"]: row["state"] for row in _slots(connection, study, entries)}
    spent = {"done", "failed"}
    if study["state"] in ("cancelled", "failed"):
        spent.add("cancelled")  # else a raised timeout opens what the timeout cancelled
    return [
        path for number, paths in entries.items() if states.get(number) in spent for path in paths
    ]


def _sweep_models(db: Database, folder: Path, seen: Seen) -> int:
    """Remove models that no trial names, nor ever will."""
    changed = _changed_ns(folder)
    if seen.get(folder.name) == changed:
        return 0
    entries = _by_slot(folder)
    with db.read() as connection:
        study = _study(connection, folder.name)
        if study is None:
            return 0
        held = {row["number"]: row for row in _slots(connection, study, entries)}
        named = set(
            connection.execute(
                select(trials.c.model_path).where(
                    trials.c.study_id == study["id"], trials.c.model_path.is_not(None)
                )
            ).scalars()
        )
    stems = {Path(path).stem for path in named}
    unnamed = [
        (held[number], path)
        for number, paths in entries.items()
        for path in paths
        if number in held and path.name.split(".")[0] not in stems
    ]
    spent = [path for slot, path in unnamed if not _may_be_named(slot, path)]
    if len(spent) == len(unnamed):
        seen[folder.name] = changed
    return _remove(spent)


def _may_be_named(slot: Row, path: Path) -> bool:
    """Return whether the lease under which the model was written still lives."""
    return slot["state"] == "leased" and fencing_token_of(path) == str(slot["fencing_token"])


def _study(connection: Connection, study: str) -> Row | None:
    query = select(studies.c.id, studies.c.state).where(studies.c.state != GONE)
    return connection.execute(query.where(studies.c.public_id == study)).mappings().first()


def _slots(connection: Connection, study: Row, numbers: Iterable[int]) -> Iterator[Row]:
    wanted = sorted(numbers)
    query = select(slots.c.number, slots.c.state, slots.c.fencing_token)
    for start in range(0, len(wanted), _AT_ONCE):
        part = wanted[start : start + _AT_ONCE]
        yield from connection.execute(
            query.where(slots.c.study_id == study["id"], slots.c.number.in_(part))
        ).mappings()


def _by_slot(folder: Path) -> dict[int, list[Path]]:
    """Return a study's files by the number of their slot."""
    found: dict[int, list[Path]] = {}
    for path in _entries(folder):
        if (number := slot_of(path)) is not None:
            found.setdefault(number, []).append(path)
    return found


def _folders(parent: Path) -> list[Path]:
    return [path for path in _entries(parent) if path.is_dir() and not path.is_symlink()]


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:  # not there, or deleted meanwhile
        return []


def _changed_ns(folder: Path) -> int:
    try:
        return folder.stat().st_mtime_ns
    except OSError:
        return 0


def _remove(paths: Iterable[Path]) -> int:
    """Remove files, and directories with all that is in them; return how many."""
    removed = 0
    for path in paths:
        try:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        except FileNotFoundError:
            continue
        except OSError as error:
            logger.warning("cannot remove %s (will try again): %s", path, error)
            continue
        removed += 1
    return removed
