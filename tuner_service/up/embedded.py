"""A `tuner up` for the time of a command, on a free port and this machine's data directory.

The commands share a lock, and the service ends when none of them holds it any more, however they
ended. From then on it has the lock for itself until it has ended, so that the next command finds
either a whole service or none.
"""

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tuner_service.files import locked, private_folder
from tuner_service.settings import Settings
from tuner_service.up.machine import StartError, answers, running_address, visible_gpus

START_SECONDS = 90.0
STOP_SECONDS = 60.0
NOTICE_SECONDS = 3.0  # until the service has seen that nobody holds the lock
LOOK_SECONDS = 0.2


@contextlib.contextmanager
def embedded(settings: Settings, *, loops: int, say: Callable[[str], None]) -> Iterator[str]:
    """Have a service run on the data directory for the context; yield its URL.

    Args:
        loops: How many programs run at once on a CPU, where it is started here.
        say: Is told that it is.

    Raises:
        StartError: It does not start.
    """
    settings.directory.prepare()
    process = None
    with locked(settings.directory.run_lock, shared=True):
        address = running_address(settings)
        if address is None or not answers(address):
            say("No service is running; one is started for this command.")
            log = private_folder(settings.directory.service_logs) / "run.log"
            process = _started(settings, loops, log)
            address = _address(settings, process, log)
        yield address
    if process is not None:
        _await_end(process, settings.directory.run_lock)


def _started(settings: Settings, loops: int, log: Path) -> "subprocess.Popen[bytes]":
    # On GPUs there is a worker for each, and a program for each worker.
    one_worker = [] if visible_gpus() else ["--workers", "1"]
    directory = ["--port", "0", "--data-dir", str(settings.data_dir)]
    until = ["--until-released", str(settings.directory.run_lock)]
    command = [sys.executable, "-P", "-m", "tuner_service.cli", "up"]
    environment = {**os.environ, "TUNER_LOOPS": str(loops) if one_worker else "1"}
    with log.open("wb") as output:
        return subprocess.Popen(  # noqa: S603  # our own interpreter and module
            [*command, *directory, *until, *one_worker],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for the command
        )


def _address(settings: Settings, process: "subprocess.Popen[bytes]", log: Path) -> str:
    """Return where the service is; another command may have started it at the same moment."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        found = running_address(settings)
        if found is not None and answers(found):
            return found
        if process.poll() is not None and found is None:
            raise StartError(f"the service does not start: {log.read_text(errors='replace')}")
        time.sleep(0.05)
    raise StartError(f"the service does not answer within {START_SECONDS:g} s; see {log}")


def _await_end(process: "subprocess.Popen[bytes]", lock: Path) -> None:
    """Wait until the service has ended, unless others use it still."""
    begun = time.monotonic()
    while process.poll() is None:
        with locked(lock, shared=True, wait=False) as is_used:
            limit = NOTICE_SECONDS if is_used else STOP_SECONDS
        if time.monotonic() - begun > limit:
            return
        time.sleep(0.05)


def stop_when_released(lock: Path, stop: Callable[[], None]) -> None:
    """Call `stop` when nobody shares the lock any more, and keep it to this process's end."""
    threading.Thread(target=_await_release, args=(lock, stop), daemon=True).start()


def _await_release(lock: Path, stop: Callable[[], None]) -> None:
    while True:
        with locked(lock, wait=False) as mine:
            if mine:
                stop()
                threading.Event().wait()  # for this process's end
        time.sleep(LOOK_SECONDS)
