"""Small file systems, to be filled to the last byte."""

import contextlib
import logging
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

MEGABYTES = 256

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def small_disk(directory: Path, megabytes: int = MEGABYTES) -> Iterator[Path | None]:
    """Make the directory a small file system of its own, where we may; else yield None."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(directory)]
    if os.geteuid() != 0 or subprocess.run(command, check=False).returncode != 0:
        logger.warning("no small disk to fill: that takes the right to mount")
        yield None
        return
    try:
        yield directory
    finally:
        subprocess.run(["umount", "--lazy", str(directory)], check=False)


@contextlib.contextmanager
def full(disk: Path) -> Iterator[None]:
    """Leave no byte on a disk for the block."""
    ballast = disk / "ballast"
    try:
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            for size in (1 << 20, 1 << 12, 1):
                with contextlib.suppress(OSError):
                    while file.write(b"x" * size) == size:
                        pass
        yield
    finally:
        ballast.unlink(missing_ok=True)
