"""What files need: to outlast a loss of power, and a disk with room."""

import errno
import os
import tempfile
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
