"""Where everything lies under the data directory; no other module makes these paths or reads them.

    tuner.db                                the database, where it is SQLite
    broker/                                 the rings, where there is no Redis
    checkpoints/STUDY/SLOT.…                what a slot's next attempt continues from
    models/STUDY/SLOT-TOKEN.safetensors     a trial's weights; TOKEN is its lease's fencing token
    logs/STUDY/SLOT-ATTEMPT.log             what a trial prints
    logs/service/, logs/trainers/           what the processes print
    datasets/                               data; `tuner_service.datasets.store` has the uploads
    programs/PROJECT/tuner.yaml             programs that `tuner run` has registered
    gpus/UUID.lock                          held by the trainer that has this GPU
    deleted/STUDY                           an empty file: the study was deleted
    *.lock                                  held by the process that may be the only one

STUDY is a study's public id. All folders are their owner's alone, whatever the umask: who makes one
calls `tuner_service.files.private_folder`.
"""

import contextlib
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tuner_service.files import private_folder

_DIGITS: Final = 10  # a longer number is no slot's


@dataclass(frozen=True, slots=True)
class DataDirectory:
    """The paths under one data directory. To name a path makes nothing."""

    root: Path

    def prepare(self) -> Path:
        """Make the data directory, its owner's alone, and return it."""
        private_folder(self.root).chmod(0o700)
        return self.root

    # The service's own

    @property
    def database(self) -> Path:
        """Return the SQLite file."""
        return self.root / "tuner.db"

    @property
    def broker(self) -> Path:
        """Return the folder of the rings."""
        return self.root / "broker"

    @property
    def datasets(self) -> Path:
        """Return the folder of data."""
        return self.root / "datasets"

    @property
    def programs(self) -> Path:
        """Return the folder of registered programs."""
        return self.root / "programs"

    @property
    def gpus(self) -> Path:
        """Return the folder of the locks of GPUs."""
        return self.root / "gpus"

    @property
    def service_logs(self) -> Path:
        """Return the folder of what the service's processes print."""
        return self.root / "logs" / "service"

    @property
    def run_lock(self) -> Path:
        """Return the lock that those share for whose time a service runs."""
        return self.root / "run.lock"

    @property
    def up_lock(self) -> Path:
        """Return the lock of `tuner up`."""
        return self.root / "up.lock"

    @property
    def remover_lock(self) -> Path:
        """Return the lock of the process that removes deleted studies' rows."""
        return self.root / "remover.lock"

    def trainer_log(self, worker_id: str) -> Path:
        """Return the file of what a worker's trainers print."""
        return self.root / "logs" / "trainers" / f"{worker_id}.log"

    # A study's

    @property
    def all_checkpoints(self) -> Path:
        """Return the folder with a folder of checkpoints for each study."""
        return self.root / "checkpoints"

    @property
    def all_models(self) -> Path:
        """Return the folder with a folder of models for each study."""
        return self.root / "models"

    @property
    def deleted(self) -> Path:
        """Return the folder with a mark for each deleted study."""
        return self.root / "deleted"

    def study_folders(self, study: str) -> tuple[Path, Path, Path]:
        """Return where all files of a study lie: its models, logs and checkpoints."""
        return self.all_models / study, self.root / "logs" / study, self.all_checkpoints / study

    def checkpoint(self, study: str, slot: int) -> Path:
        """Return the prefix of a slot's checkpoint files; its next attempt continues from them."""
        return self.all_checkpoints / study / str(slot)

    def model(self, study: str, slot: int, fencing_token: int) -> Path:
        """Return where a trial's weights go; no two attempts share it, not even a zombie's."""
        return self.all_models / study / f"{slot}-{fencing_token}.safetensors"

    def log(self, study: str, slot: int, attempt: int) -> Path:
        """Return the file of what a trial prints."""
        return self.root / "logs" / study / f"{slot}-{attempt}.log"

    # Paths in the database

    def relative(self, path: str | None) -> str | None:
        """Return a path as it stands in the database; None for one outside the directory."""
        if path is None or not Path(path).is_relative_to(self.root):
            return None
        return str(Path(path).relative_to(self.root))

    def inside(self, relative: str | None) -> Path | None:
        """Return where a path of the database leads; None for one that leaves the directory."""
        if relative is None:
            return None
        path = (self.root / relative).resolve()
        return path if path.is_relative_to(self.root.resolve()) else None

    def drop(self, relative: str) -> None:
        """Delete a file, and its companions of the same stem, unless it lies outside."""
        if (path := self.inside(relative)) is not None:
            _delete(path.parent, f"{path.stem}.*")

    def drop_checkpoint(self, study: str, slot: int) -> None:
        """Delete a slot's checkpoint files; the slot is done."""
        prefix = self.checkpoint(study, slot)
        _delete(prefix.parent, prefix.name, f"{prefix.name}.*")


def slot_of(path: Path) -> int | None:
    """Return the number of the slot to which a study's file belongs; None: to no slot."""
    number = path.name.partition(".")[0].partition("-")[0]
    return int(number) if number.isdecimal() and len(number) < _DIGITS else None


def fencing_token_of(model: Path) -> str:
    """Return the token in a model file's name; empty where there is none."""
    return model.name.partition(".")[0].partition("-")[2]


def _delete(folder: Path, *patterns: str) -> None:
    for path in [path for pattern in patterns for path in folder.glob(pattern)]:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
            continue
        with contextlib.suppress(OSError):
            path.unlink()
