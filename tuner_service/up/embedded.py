"""A `tuner up` for the time of one command, on a free port and this machine's data directory."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tuner_service.errors import TunerError
from tuner_service.files import private_folder
from tuner_service.settings import Settings
from tuner_service.up.machine import visible_gpus

START_SECONDS = 90.0
STOP_SECONDS = 60.0
_ADDRESS = re.compile(r"^  API +(\S+)", re.MULTILINE)


class EmbeddedError(TunerError):
    """The service could not be started; the message has what it said."""

    code = "start_failed"


@contextlib.contextmanager
def embedded(settings: Settings, *, loops: int) -> Iterator[str]:
    """Run a service; yield its URL. It ends with the context, and with this process.

    Args:
        loops: How many programs run at once on a CPU.

    Raises:
        EmbeddedError: It does not start.
    """
    log = private_folder(settings.directory.service_logs) / "run.log"
    # On GPUs there is a worker for each, and a program for each worker.
    one_worker = [] if visible_gpus() else ["--workers", "1"]
    directory = ["--port", "0", "--data-dir", str(settings.data_dir)]
    command = [sys.executable, "-P", "-m", "tuner_service.cli", "up", *directory, *one_worker]
    environment = {**os.environ, "TUNER_LOOPS": str(loops) if one_worker else "1"}
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603  # our own interpreter and module
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for the command, which then ends this
        )
    try:
        yield _address(process, log)
    finally:
        _end(process)


def _address(process: "subprocess.Popen[bytes]", log: Path) -> str:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        found = _ADDRESS.search(log.read_text(errors="replace"))
        if found is not None:
            return found[1]
        if process.poll() is not None:
            raise EmbeddedError(f"the service does not start: {log.read_text(errors='replace')}")
        time.sleep(0.05)
    raise EmbeddedError(f"the service does not answer within {START_SECONDS:g} s; see {log}")


def _end(process: "subprocess.Popen[bytes]") -> None:
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
