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
from collections.abc import Callable
from typing import IO, Protocol

from workers.protocol.pipes import spawn

logger = logging.getLogger(__name__)

IDLE_SECONDS = 60.0  # without a new trial, after which the template's memory is given back


class Process(Protocol):
    """What is known of a process.

    Attributes:
        pid: Its id.
        orphaned: Whether it ended because what it was forked off did.
    """

    pid: int
    orphaned: bool

    def poll(self) -> int | None:
        """Return the exit code (negative: the signal that ended it), None while it runs."""

    def wait(self, timeout: float) -> int | None:
        """Return the exit code, or None if it has not ended in time."""


Born = tuple[Process, IO[bytes], IO[bytes], IO[bytes]]
"""A process; where its commands are written, its events read and its output read."""


class Fresh:
    """A process of its own from the beginning."""

    orphaned = False

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
        self.orphaned = False
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
                self.orphaned = not said
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

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._template: Template | None = None
        self._retired: list[Template] = []  # broken, but forks of theirs may still run
        self._impossible = False
        self._born = 0
        self._idle_since: float | None = None

    def bear(self) -> Born:
        """Return a new process that waits for its order.

        Raises:
            OSError: It cannot be started.
        """
        self._born += 1
        self._idle_since = None
        return self._fork() or _fresh()

    def rest(self) -> None:
        """Give the template's memory back after a while; called as long as no trial runs."""
        now = self._clock()
        if self._idle_since is None:
            self._idle_since = now
        elif self._born and now - self._idle_since > IDLE_SECONDS:
            self.close()

    def close(self) -> None:
        """End the template, and with it every fork that still runs."""
        for template in (self._template, *self._retired):
            if template is not None:
                template.close()
        self._template, self._born = None, 0
        self._retired.clear()

    def _fork(self) -> Born | None:
        """Return a fork of the template, which is started if need be; None: there is none now."""
        if self._born == 1 or self._retired or self._impossible:
            return None
        try:
            if self._template is None:
                self._template = Template()
            return self._template.fork()
        except OSError as error:
            logger.warning("loops start anew from now on, each importing torch: %s", error)
        if self._template is not None:
            # One that ended before it was ready would do so again.
            self._impossible = not self._template.ready
            self._retired.append(self._template)
            self._template = None
        return None


def _fresh() -> Born:
    process, commands, events = spawn(
        ("-m", "workers.training.user_loops.child"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    if process.stdout is None:
        raise AssertionError("its output is piped")
    return Fresh(process), commands, events, process.stdout


class Template:
    """The process that forks. It ends with this object.

    Attributes:
        ready: Whether it has said that it can fork.
    """

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair()
        try:
            self._process = subprocess.Popen(  # noqa: S603  # our own interpreter and module
                [
                    sys.executable,
                    "-m",
                    "workers.training.user_loops.fork_main",
                    str(theirs.fileno()),
                ],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        except OSError:
            self._socket.close()
            raise
        finally:
            theirs.close()
        self.ready = False
        self.close = weakref.finalize(self, _end, self._socket, self._process)

    def fork(self) -> Born | None:
        """Return a fork; None while the template is getting ready, or has no room for one.

        Raises:
            OSError: The template is gone.
        """
        if not self.ready and not self._hears_ready():
            return None
        ours: list[int] = []
        theirs: list[int] = []
        pid = 0
        try:
            for outward in (True, False, False, False):
                reading, writing = os.pipe()
                ours.append(writing if outward else reading)
                theirs.append(reading if outward else writing)
            socket.send_fds(self._socket, [b"f"], theirs)
            pid = int(self._line())
        finally:
            for end in theirs if pid else (*theirs, *ours):
                os.close(end)
        if pid == 0:
            logger.warning("a loop starts anew, importing torch: the template cannot fork now")
            return None
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
            self.ready = json.loads(self._line())
        except BlockingIOError:
            return False
        finally:
            self._socket.settimeout(10.0)
        return self.ready

    def _line(self) -> bytes:
        said = self._socket.recv(64)
        if not said:
            raise BrokenPipeError("the template is gone")
        return said


def _end(control: socket.socket, process: subprocess.Popen[bytes]) -> None:
    control.close()
    process.kill()
    process.wait()
