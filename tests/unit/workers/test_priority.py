"""Who lets others go first is nice, and so is its session where sessions are weighed."""

import os
import subprocess
import sys
from pathlib import Path

from workers.priority import NICENESS

PROGRAM = """
import os, pathlib
from workers.priority import let_others_go_first
let_others_go_first()
group = pathlib.Path("/proc/self/autogroup")
print(os.nice(0), group.read_text().split()[-1] if group.exists() else os.nice(0))
"""


def test_a_process_and_its_session_become_nice() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=Path(__file__).parents[3],
        start_new_session=True,
        capture_output=True,
        text=True,
        check=True,
        timeout=60.0,
    )
    assert done.stdout.split() == [str(min(os.nice(0) + NICENESS, 19))] * 2
