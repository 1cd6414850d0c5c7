"""The watcher of a trainer and its supervisor: what neither can do for itself."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from workers import marked
from workers.supervisor import watcher

SUPERVISOR = """
import os, sys, time
from pathlib import Path
from workers.supervisor.trainer_process import TrainerCommand, TrainerProcess

code = "import ctypes, os; os.write(1, b'in'); ctypes.PyDLL(None).sleep(60)"
trainer = TrainerProcess(TrainerCommand(("-c", code), os.environ, Path(sys.argv[1])))
while "in" not in Path(sys.argv[1]).read_text():
    time.sleep(0.01)
print(trainer.pid, flush=True)
time.sleep(60)
"""


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20.0
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_an_orphan_whose_code_holds_the_interpreter_is_killed(tmp_path: Path) -> None:
    arguments = [sys.executable, "-c", SUPERVISOR, str(tmp_path / "log")]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, cwd=Path.cwd()) as supervisor:
        assert supervisor.stdout is not None
        trainer = psutil.Process(int(supervisor.stdout.readline()))
        supervisor.kill()
    until(lambda: not trainer.is_running() or trainer.status() == psutil.STATUS_ZOMBIE)


DAEMON = "import subprocess; subprocess.Popen(['sleep', '60'], start_new_session=True); "


def test_what_left_the_group_of_an_orphan_ends_with_it(tmp_path: Path) -> None:
    code = SUPERVISOR.replace("os.write(1,", DAEMON + "os.write(1,")
    arguments = [sys.executable, "-c", code, str(tmp_path / "log")]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, cwd=Path.cwd()) as supervisor:
        assert supervisor.stdout is not None
        trainer = psutil.Process(int(supervisor.stdout.readline()))
        (daemon,) = (one for one in trainer.children() if one.name() == "sleep")
        supervisor.kill()
    until(lambda: not daemon.is_running() or daemon.status() == psutil.STATUS_ZOMBIE)


def watch(supervisor: int, trainer: int, *, stopped_seconds: float) -> "subprocess.Popen[bytes]":
    arguments = (
        str(supervisor), str(trainer), str(stopped_seconds), marked.__file__, "none"
    )  # fmt: skip
    return subprocess.Popen(
        [sys.executable, "-I", "-S", watcher.__file__, *arguments], stdin=subprocess.PIPE
    )


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="only Linux tells by /proc")
def test_a_supervisor_that_was_stopped_is_continued() -> None:
    with subprocess.Popen(["sleep", "60"]) as supervisor:
        one = psutil.Process(supervisor.pid)
        watching = watch(supervisor.pid, supervisor.pid, stopped_seconds=0.2)
        os.kill(supervisor.pid, signal.SIGSTOP)
        until(lambda: one.status() == psutil.STATUS_STOPPED)
        until(lambda: one.status() != psutil.STATUS_STOPPED)
        watching.communicate(b".")
        assert supervisor.poll() is None
        supervisor.kill()


def test_a_trainer_that_ended_is_watched_no_more() -> None:
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as trainer:
        watching = watch(os.getpid(), trainer.pid, stopped_seconds=60.0)
        watching.communicate(b".", timeout=20.0)
        assert watching.returncode == 0
        time.sleep(watcher.ORPHAN_SECONDS + 0.2)
        assert trainer.poll() is None
        trainer.kill()
