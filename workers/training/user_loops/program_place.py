"""The working directory of one trial's program: the project's files, and what the trial writes.

A program reads `./data` and writes `./best.pt`, as it does when it is run by hand. Every trial has
a directory of its own for that, so that no two write over each other, nor read each other's values:
the project's folders and large files are there as links, small files as copies.
"""

import contextlib
import os
import shutil
from pathlib import Path
from typing import Final

from tuner_service.files import private_folder
from workers.training.user_loops.tracker_files import is_tracker_file

MAX_COPY: Final = 1_000_000  # bytes of one file
MAX_COPIES: Final = 20_000_000  # bytes of all of them
_LEFT_OUT: Final = frozenset({"__pycache__", ".git"})
_TRACKERS: Final = frozenset({"lightning_logs", "mlruns", "runs", "tb_logs", "wandb"})


class ProgramDirectory:
    """Made ready before the program starts, tidied after its end.

    What trackers have written into the project is left out: the trial's own goes to the same place.
    """

    def __init__(self, path: Path, project: Path) -> None:
        self.path = private_folder(path)
        self._copies: dict[Path, tuple[int, int]] = {}
        self._links: list[Path] = []
        self._left = MAX_COPIES
        with os.scandir(project) as entries:
            for entry in entries:
                if entry.name in _LEFT_OUT or path.is_relative_to(entry.path):
                    continue
                if not _is_trackers(entry):
                    self._bring(entry)

    def tidy(self) -> None:
        """Leave what the program wrote, and nothing of the project's."""
        for link in self._links:
            with contextlib.suppress(OSError):
                if link.is_symlink():
                    link.unlink()
        for copy, stamp in self._copies.items():
            with contextlib.suppress(OSError):
                if _stamp(copy) == stamp:
                    copy.unlink()
        cache = self.path / "__pycache__"
        if cache.is_dir() and not cache.is_symlink():
            shutil.rmtree(cache, ignore_errors=True)
        with contextlib.suppress(OSError):  # it wrote something
            self.path.rmdir()

    def _bring(self, entry: "os.DirEntry[str]") -> None:
        here = self.path / entry.name
        if here.exists():  # of an earlier process of this trial
            return
        size = entry.stat(follow_symlinks=False).st_size
        if entry.is_file(follow_symlinks=False) and size <= min(MAX_COPY, self._left):
            shutil.copy2(entry.path, here)
            self._left -= size
            self._copies[here] = _stamp(here)
        else:
            with contextlib.suppress(FileExistsError):  # a link that leads nowhere
                here.symlink_to(os.path.abspath(entry.path))
            self._links.append(here)


def _is_trackers(entry: "os.DirEntry[str]") -> bool:
    if entry.is_dir():
        return entry.name in _TRACKERS and not any(Path(entry.path).glob("*.py"))
    return is_tracker_file(entry.path)


def _stamp(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns
