"""Watches a trainer and its supervisor from a process of its own; the standard library only.

    python -I watcher.py SUPERVISOR TRAINER STOPPED_SECONDS MARKED_FILE MARK

Standard input is a pipe of the supervisor's. A byte on it says that the trainer has ended; its end,
that the supervisor has. A trainer whose code holds the interpreter in C never hears of that, and
would keep the device: it is killed, and with it whatever has the trainer's mark. A supervisor that
was stopped (SIGSTOP), as a trainer's code may do to its parent, is continued after a time in which
its leases have run out long ago.
"""

import contextlib
import os
import runpy
import select
import signal
import sys
import time

LOOK_SECONDS = 5.0
ORPHAN_SECONDS = 1.0  # a trainer that hears of it ends by itself


def main(supervisor: int, trainer: int, stopped_seconds: float, marked: str, mark: str) -> None:
    """Watch until either is gone."""
    stopped_since: float | None = None
    look = min(LOOK_SECONDS, stopped_seconds / 4)
    while True:
        if select.select([0], [], [], look)[0]:
            if os.read(0, 1):
                return
            break
        now = time.monotonic()
        stopped_since = (stopped_since or now) if _is_stopped(supervisor) else None
        if stopped_since is not None and now - stopped_since >= stopped_seconds:
            with contextlib.suppress(OSError):
                os.kill(supervisor, signal.SIGCONT)
            stopped_since = None
    time.sleep(ORPHAN_SECONDS)
    with contextlib.suppress(OSError):  # it is gone
        os.killpg(trainer, signal.SIGKILL)
    module = runpy.run_path(marked)  # not imported: there is no path to our packages here
    module["end_marked"](module["TRAINER"], mark)


def _is_stopped(process: int) -> bool:
    try:
        with open(f"/proc/{process}/stat", "rb") as file:  # pathlib is a slow import
            return file.read().rpartition(b")")[2].split()[0] == b"T"
    except OSError:
        return False


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), sys.argv[4], sys.argv[5])
