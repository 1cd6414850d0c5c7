"""Letting others go first: training takes what is left of a processor.

On a CPU the trainers want every core, all the time. The API, the supervisors and the database want
little, and soon: someone waits for them.
"""

import os
import random
import threading
import time
from pathlib import Path
from typing import Final

NICENESS: Final = 5
_AUTOGROUP: Final = Path("/proc/self/autogroup")
_TRIES: Final = 100
_PAUSE_SECONDS: Final = 0.2  # Linux takes one such wish in a tenth of a second, of all processes


def let_others_go_first() -> None:
    """Lower the priority of this process, and of the session that it leads."""
    os.nice(NICENESS)
    weigh_session()


def weigh_session() -> None:
    """Give the session that this process leads the weight of its niceness, in a moment.

    Linux may weigh whole sessions against each other (`sched_autogroup_enabled`, see sched(7)); a
    process's niceness then counts within its session only, and a new session weighs as any other.
    """
    if os.nice(0):
        # A thread, as others may be before it: a short loop would be through before its turn.
        threading.Thread(target=_weigh, args=(_AUTOGROUP,), daemon=True).start()


def _weigh(group: Path) -> None:
    for _ in range(_TRIES):
        try:
            group.write_text(str(os.nice(0)))
        except BlockingIOError:
            time.sleep(_PAUSE_SECONDS * random.random())  # noqa: S311  spreads processes in time
        except OSError:  # not Linux, or without groups of sessions
            return
        else:
            return
