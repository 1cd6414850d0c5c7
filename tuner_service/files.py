"""What files need: private folders, a lasting rename, a disk with room, one process at a time."""

import errno
import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tuner_service.errors import UnavailableError

PROBE_BYTES = 1 << 16


def sync_folder(folder: Path) -> None:
    """Make the renames in a folder survive a loss of power, not only the files' bytes."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_writable(folder: Path) -> None:
    """Write a file that has no name, and is gone at once.

    Raises:
        UnavailableError: It cannot be written.
    """
    try:
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            file.write(bytes(PROBE_BYTES))
            os.fsync(file.fileno())
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        what = "has no space left on its disk" if full else "cannot be written"
        raise UnavailableError(f"the data directory {what}", cause=str(error)) from error


def private_folder(path: Path) -> Path:
    """Make a folder and what is missing above it, for its owner alone, and return it.

    `Path.mkdir` gives its mode to the last folder only, and the umask takes from it.
    """
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        if not path.is_dir():
            raise
    except FileNotFoundError:
        private_folder(path.parent)
        return private_folder(path)
    else:
        path.chmod(0o700)
    return path


@contextmanager
def locked(path: Path, *, shared: bool = False, wait: bool = True) -> Iterator[bool]:
    """Hold a lock file, between processes and between threads, for the block.

    It ends with the process, too. A file that is open for writing is locked, not its folder: NFS
    locks nothing else for other machines.

    Args:
        path: Made if it is missing, with its folder.
        shared: Together with others who share it.

    Yields:
        Whether it is held: without `wait` somebody else may have it.
    """
    private_folder(path.parent)
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        how = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        try:
            fcntl.flock(handle, how if wait else how | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(handle)
