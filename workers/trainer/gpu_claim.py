"""A GPU belongs to one trainer of a data directory, unless several were asked to share it.

Two trainers that do not know of each other would each count on the memory that is free now.
"""

import time
from contextlib import ExitStack
from pathlib import Path

from tuner_service.files import locked

RELEASE_SECONDS = 10.0  # in which a trainer that was killed, and its children, are gone
LOOK_SECONDS = 0.2


class GpuTakenError(Exception):
    """Another trainer has the GPU."""


def claim(folder: Path, uuid: str, *, wait_seconds: float = RELEASE_SECONDS) -> ExitStack:
    """Take the GPU until the stack is closed, or the process ends.

    Args:
        folder: Of the locks, the same for all trainers of a data directory.
        uuid: The GPU's, or its instance's (MIG): numbers differ from process to process.

    Raises:
        GpuTakenError: Somebody has it, and keeps it for `wait_seconds`.
    """
    deadline = time.monotonic() + wait_seconds
    while True:
        stack = ExitStack()
        if stack.enter_context(locked(folder / f"{uuid}.lock", wait=False)):
            return stack
        stack.close()
        if time.monotonic() >= deadline:
            raise GpuTakenError(
                f"GPU {uuid} has a worker already: choose another by CUDA_VISIBLE_DEVICES, or let "
                "them share it with TUNER_SHARE_GPU=true"
            )
        time.sleep(LOOK_SECONDS)
