"""Where the processes of loop trials come from: started anew, or forked off one that is warm.

To import torch takes seconds, and a short loop is through in a tenth of one. So from its second
trial on a trainer keeps a `template`: a process that has imported torch and does nothing else but
fork. It has one thread and no CUDA context, so that a fork of it is as good as a fresh process.
Where imports start threads (OpenBLAS with more than one, for instance) there is none.
"""

import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from typing import IO, Protocol

from workers.pipes import spawn

logger = logging.getLogger(__name__)

IDLE_SECONDS = 60.0  # without a new trial, after which the template's memory is given back


class Process(Protocol):
    """What is known of a process: its id, and its exit code once it has ended."""

    pid: int

    def poll(self) -> int | None:
        """Return the exit code (negative: the signal that ended it), None while it runs."""

    def wait(self, timeout: float) -> int | None:
        """Return the exit code, or None if it has not ended in time."""


Born = tuple[Process, IO[bytes], IO[bytes], IO[bytes]]
"""A process; where its commands are written, its events read and its output read."""


class Fresh:
    """A process of its own from the beginning."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self.pid = process.pid

    def poll(self) -> int | None:
        """Return the exit code, None while it runs."""
        return self._process.poll()

    def wait(self, timeout: float) -> int | None:
        """Return the exit code, or None if it has not ended in time."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(timeout)
        return None


class Fork:
    """A fork of the template, which reaps it and tells how it ended."""

    def __init__(self, pid: int, status: int) -> None:
        self.pid = pid
        self._status: IO[bytes] | None = os.fdopen(status, "rb", buffering=0)
        os.set_blocking(status, False)
        self._code: int | None = None
        self._lock = threading.Lock()

    def poll(self) -> int | None:
        """Return the exit code, None while it runs."""
        with self._lock:
            said = self._status.read(16) if self._status is not None else None
            if self._status is not None and said is not None:
                # Nothing said: the template is gone, and every fork of it is killed with it.
                self._code = int(said) if said else -signal.SIGKILL
                self._status.close()
                self._status = None
            return self._code

    def wait(self, timeout: float) -> int | None:
        """Return the exit code, or None if it has not ended in time."""
        deadline = time.monotonic() + timeout
        while self.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        return self._code


class Nursery:
    """Gives birth to the processes of loop trials."""

    def __init__(self) -> None:
        self._template: Template | None = None
        self._retired: list[Template] = []  # broken, but forks of theirs may still run
        self._born = 0
        self._born_at = 0.0

    def bear(self) -> Born:
        """Return a new process that waits for its order.

        Raises:
            OSError: It cannot be started.
        """
        self._born += 1
        self._born_at = time.monotonic()
        if self._template is None and self._born > 1 and not self._retired:
            self._template = Template()
        if self._template is not None:
            try:
                if (born := self._template.fork()) is not None:
                    return born
            except OSError as error:
                logger.warning("loops start anew from now on, each importing torch: %s", error)
                self._retired.append(self._template)
                self._template = None
        return _fresh()

    def rest(self) -> None:
        """Give the template's memory back if no trial has come for a while."""
        if self._born and time.monotonic() - self._born_at > IDLE_SECONDS:
            self.close()

    def close(self) -> None:
        """End the template, and with it every fork that still runs."""
        for template in (self._template, *self._retired):
            if template is not None:
                template.close()
        self._template, self._born = None, 0
        self._retired.clear()


def _fresh() -> Born:
    process, commands, events = spawn(
        ("-m", "workers.training.loops.child"), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    if process.stdout is None:
        raise AssertionError("its output is piped")
    return Fresh(process), commands, events, process.stdout


class Template:
    """The process that forks. It ends with this object."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603  # our own interpreter and module
                [sys.executable, "-m", "workers.training.loops.template", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        self._ready = False
        self.close = weakref.finalize(self, _end, self._socket, self._process)

    def fork(self) -> Born | None:
        """Return a fork; None while the template is getting ready.

        Raises:
            OSError: The template is gone.
        """
        if not self._ready and not self._hears_ready():
            return None
        ours, theirs = zip(*(_pipe(outward=at == 0) for at in range(4)), strict=True)
        try:
            socket.send_fds(self._socket, [b"f"], theirs)
            pid = int(self._line())
        except BaseException:
            for end in ours:
                os.close(end)
            raise
        finally:
            for end in theirs:
                os.close(end)
        commands, events, output, status = ours
        return (
            Fork(pid, status),
            os.fdopen(commands, "wb"),
            os.fdopen(events, "rb"),
            os.fdopen(output, "rb"),
        )

    def _hears_ready(self) -> bool:
        self._socket.setblocking(False)
        try:
            self._ready = json.loads(self._line())
        except BlockingIOError:
            return False
        finally:
            self._socket.settimeout(10.0)
        return self._ready

    def _line(self) -> bytes:
        said = self._socket.recv(64)
        if not said:
            raise BrokenPipeError("the template is gone")
        return said


def _end(control: socket.socket, process: subprocess.Popen[bytes]) -> None:
    control.close()
    process.kill()
    process.wait()


def _pipe(*, outward: bool) -> tuple[int, int]:
    """Return a pipe's end for us and the one for the fork."""
    reading, writing = os.pipe()
    return (writing, reading) if outward else (reading, writing)
