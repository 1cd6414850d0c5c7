"""Where the processes of loop trials come from: started anew, or forked off one that is warm.

To import torch takes seconds, and a short loop is through in a tenth of one. So from its second
trial on a trainer keeps a server: a process that has imported torch and does nothing else but
fork. It has one thread and no CUDA context, so that a fork of it is as good as a fresh process.
Where imports start threads (OpenBLAS with more than one, for instance) there is none.
"""

# Not `multiprocessing.get_context("forkserver")`, which was tried on Python 3.11. Its server ends
# with the first request that it has no room for (`accept` or `fork` raise, and it re-raises all but
# ECONNABORTED): of every loop that runs the exit code is lost then (255, while it still runs), and
# what ties a loop's life to the trainer's. Here such a request is refused, that trial starts anew
# and the others go on. Its `start` also waits until the server has imported torch, seconds in
# which the trainer would hear nobody; there is one server for the whole process, shared with user
# code that uses `multiprocessing`; and nothing public ends it, to give its memory back.

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
from typing import IO, NamedTuple, Protocol

from workers.protocol.pipes import spawn

logger = logging.getLogger(__name__)

IDLE_SECONDS = 60.0  # without a new trial, after which the server's memory is given back


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


class StartedProcess(NamedTuple):
    """A process; where its commands are written, its events read and its output read."""

    process: Process
    commands: IO[bytes]
    events: IO[bytes]
    output: IO[bytes]


class SpawnedProcess:
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


class ForkedProcess:
    """A fork of the server, which reaps it and tells how it ended."""

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
                # Nothing said: the server is gone, and every fork of it is killed with it.
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


class ForkServer:
    """Starts the processes of loop trials: forked where that can be, else anew."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._server: ServerProcess | None = None
        self._retired: list[ServerProcess] = []  # broken, but forks of theirs may still run
        self._impossible = False
        self._started = 0
        self._idle_since: float | None = None

    def start(self) -> StartedProcess:
        """Return a new process that waits for its order.

        Raises:
            OSError: It cannot be started.
        """
        self._started += 1
        self._idle_since = None
        return self._fork() or _spawned()

    def rest(self) -> None:
        """Give the server's memory back after a while; called as long as no trial runs."""
        now = self._clock()
        if self._idle_since is None:
            self._idle_since = now
        elif self._started and now - self._idle_since > IDLE_SECONDS:
            self.close()

    def close(self) -> None:
        """End the server, and with it every fork that still runs."""
        for server in (self._server, *self._retired):
            if server is not None:
                server.close()
        self._server, self._started = None, 0
        self._retired.clear()

    def _fork(self) -> StartedProcess | None:
        """Return a fork of the server, which is started if need be; None: there is none now."""
        if self._started == 1 or self._retired or self._impossible:
            return None
        try:
            if self._server is None:
                self._server = ServerProcess()
            return self._server.fork()
        except OSError as error:
            logger.warning("loops start anew from now on, each importing torch: %s", error)
        if self._server is not None:
            # One that ended before it was ready would do so again.
            self._impossible = not self._server.ready
            self._retired.append(self._server)
            self._server = None
        return None


def _spawned() -> StartedProcess:
    process, commands, events = spawn(
        ("-m", "workers.training.user_loops.child"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    if process.stdout is None:
        raise AssertionError("its output is piped")
    return StartedProcess(SpawnedProcess(process), commands, events, process.stdout)


class ServerProcess:
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

    def fork(self) -> StartedProcess | None:
        """Return a fork; None while the server is getting ready, or has no room for one.

        Raises:
            OSError: The server is gone.
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
            logger.warning("a loop starts anew, importing torch: the fork server cannot fork now")
            return None
        commands, events, output, status = ours
        return StartedProcess(
            ForkedProcess(pid, status),
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
            raise BrokenPipeError("the fork server is gone")
        return said


def _end(control: socket.socket, process: subprocess.Popen[bytes]) -> None:
    control.close()
    process.kill()
    process.wait()
