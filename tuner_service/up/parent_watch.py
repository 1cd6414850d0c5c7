"""A pipe whose end-of-file means that the parent is gone, however it went.

`tuner up` keeps the writing end and each child a reading end. The kernel closes the writing end
even after SIGKILL, so that no child outlives its parent. (PR_SET_PDEATHSIG would be tied to the
thread of the parent that started the child, and to Linux.)
"""

import os
import signal
import threading
import time


def hold(descriptor: int, *, grace_seconds: float) -> threading.Thread:
    """End this process once `descriptor` reaches end-of-file.

    First as SIGTERM ends it, so that work is handed back; after `grace_seconds` by SIGKILL.

    Args:
        descriptor: The reading end of the parent's pipe.
    """
    thread = threading.Thread(
        target=_watch, args=(descriptor, grace_seconds), name="parent-watch", daemon=True
    )
    thread.start()
    return thread


def _watch(descriptor: int, grace_seconds: float) -> None:
    while os.read(descriptor, 1024):
        pass  # the parent never writes, but only the end of the pipe counts
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(grace_seconds)
    os.kill(os.getpid(), signal.SIGKILL)
