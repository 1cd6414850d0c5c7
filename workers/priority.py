"""Letting others go first: training takes what is left of a processor.

On a CPU the trainers want every core, all the time. The API, the supervisors and the database want
little, and soon: someone waits for them.
"""

import os
import time
from pathlib import Path
from typing import Final

NICENESS: Final = 5
_AUTOGROUP: Final = Path("/proc/self/autogroup")
_TRIES: Final = 10
_PAUSE_SECONDS: Final = 0.12  # Linux takes one such wish in a tenth of a second


def let_others_go_first() -> None:
    """Lower the priority of this process, and of the session that it leads."""
    os.nice(NICENESS)
    weigh_session()


def weigh_session() -> None:
    """Give the session that this process leads the weight of its niceness.

    Linux may weigh whole sessions against each other (`sched_autogroup_enabled`, see sched(7)); a
    process's niceness then counts within its session only, and a new session weighs as any other.
    """
    for _ in range(_TRIES):
        try:
            _AUTOGROUP.write_text(str(os.nice(0)))
        except BlockingIOError:
            time.sleep(_PAUSE_SECONDS)
        except OSError:  # not Linux, or without groups of sessions
            return
        else:
            return
