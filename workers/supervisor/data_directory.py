"""Where a trial's files lie under the data directory: checkpoints, models, logs."""

import contextlib
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from tuner_service.lifecycle.messages import Lease, StudyWork


@dataclass(frozen=True, slots=True)
class DataDirectory:
    """Where a trial's files lie under the data directory."""

    data_dir: Path
    _made: set[Path] = field(default_factory=set)

    def checkpoint(self, work: StudyWork, lease: Lease) -> Path:
        """Return the prefix of a slot's checkpoint files; its next attempt continues from them."""
        return self._folder("checkpoints", work) / str(lease.number)

    def model(self, work: StudyWork, lease: Lease) -> Path:
        """Return where a trial's weights go; no two attempts share it, not even a zombie's."""
        return self._folder("models", work) / f"{lease.number}-{lease.fencing_token}.safetensors"

    def log(self, work: StudyWork, lease: Lease) -> Path:
        """Return the file of what a trial prints."""
        return self._folder("logs", work) / f"{lease.number}-{lease.attempt}.log"

    def relative(self, path: str | None) -> str | None:
        """Return a path as it stands in the database: relative to the data directory."""
        if path is None:
            return None
        inside = Path(path).is_relative_to(self.data_dir)
        return str(Path(path).relative_to(self.data_dir)) if inside else None

    def drop(self, relative: str) -> None:
        """Delete a file (and its companions of the same stem) that no kept trial refers to."""
        path = (self.data_dir / relative).resolve()
        if not path.is_relative_to(self.data_dir.resolve()):
            return
        for part in path.parent.glob(f"{path.stem}.*"):
            with contextlib.suppress(OSError):
                part.unlink()

    def drop_checkpoint(self, work: StudyWork, lease: Lease) -> None:
        """Delete a slot's checkpoint files; the slot is done."""
        prefix = self.checkpoint(work, lease)
        for part in (*prefix.parent.glob(f"{prefix.name}.*"), *prefix.parent.glob(prefix.name)):
            if part.is_dir():
                shutil.rmtree(part, ignore_errors=True)
                continue
            with contextlib.suppress(OSError):
                part.unlink()

    def _folder(self, kind: str, work: StudyWork) -> Path:
        folder = self.data_dir / kind / work.public_id
        if folder not in self._made:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._made.add(folder)
        return folder
