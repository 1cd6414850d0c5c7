"""What files need that must outlast a loss of power."""

import os
from pathlib import Path


def sync_folder(folder: Path) -> None:
    """Make the renames in a folder survive a loss of power, not only the files' bytes."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
