"""The process of one loop trial, seen from the trainer: pipes, output, end."""

import contextlib
import os
import queue
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

from workers import marked
from workers.protocol.codec import LOOP_COMMANDS, LOOP_MESSAGES
from workers.protocol.user_loop import LoopCommand, LoopMessage, LoopOrder
from workers.training.trials.log import TrialLog
from workers.training.user_loops.fork_server import ForkServer

MAX_UNREAD = 1000  # messages; a loop that says more waits for the trainer
MAX_LINE = 4_000_000
DRAIN_SECONDS = 1.0
_CHUNK = 1 << 16


class UserLoopProcess:
    """A child of its own process group. What it prints goes to the trial's log, up to its bound.

    Args:
        fork_server: Where the process comes from.
        log: The trial's log file; None drops what it prints.
        wake: Called from another thread when there is something to read.

    Raises:
        OSError: It cannot be started.
    """

    def __init__(
        self,
        order: LoopOrder,
        *,
        fork_server: ForkServer,
        log: str | None,
        wake: Callable[[], None],
    ) -> None:
        self._wake = wake
        self._inbox: queue.Queue[LoopMessage] = queue.Queue(MAX_UNREAD)
        self._ended = False
        self._mark = None if order.program is None else order.program.mark
        self._process, commands, events, output = fork_server.start()
        self._commands = commands
        self._threads = [
            threading.Thread(target=self._read, args=(events,), daemon=True),
            threading.Thread(target=_log, args=(output, log), daemon=True),
        ]
        try:
            for thread in self._threads:
                thread.start()
        except RuntimeError as error:  # the system has none left
            self.kill()
            commands.close()
            for pipe, thread in zip((events, output), self._threads, strict=True):
                if thread.ident is None:  # else it closes its pipe itself
                    pipe.close()
            raise OSError(str(error)) from error
        self.send(order)

    @property
    def pid(self) -> int:
        """The process's id, which is its group's too."""
        return self._process.pid

    @property
    def orphaned(self) -> bool:
        """Whether it ended because what it was forked off did, through no doing of its own."""
        return self._process.orphaned

    def send(self, command: LoopCommand) -> None:
        """Say something; a child that is gone need not know."""
        with contextlib.suppress(OSError, ValueError):
            self._commands.write(LOOP_COMMANDS.encode(command))
            self._commands.flush()

    @property
    def waiting(self) -> bool:
        """Whether there is something to read, or an end to see."""
        return not self._inbox.empty() or (self._process.poll() is not None and not self._ended)

    def read(self) -> list[LoopMessage]:
        """Return what it said since the last look; all there is, after its end."""
        messages = self._at_hand()
        deadline = time.monotonic() + DRAIN_SECONDS
        while self._ended and self._threads[0].is_alive() and time.monotonic() < deadline:
            self._threads[0].join(0.01)
            messages += self._at_hand()
        return messages + self._at_hand() if self._ended else messages

    def _at_hand(self) -> list[LoopMessage]:
        messages: list[LoopMessage] = []
        with contextlib.suppress(queue.Empty):
            for _ in range(MAX_UNREAD):
                messages.append(self._inbox.get_nowait())
        return messages

    def exit_code(self) -> int | None:
        """Return the exit code (negative: the signal that ended it), None while it runs.

        Whatever the loop started and left behind is ended too. After that nothing more comes.
        """
        code = self._process.poll()
        if code is not None and not self._ended:
            self._ended = True
            self._end_group()
            self._threads[1].join(DRAIN_SECONDS)  # its log is whole before its end is told
            with contextlib.suppress(OSError):
                self._commands.close()
        return code

    def kill(self) -> None:
        """End it, and what it started, at once."""
        running = self._mark is not None and self._process.poll() is None
        # Before it ends: those are its own only now that left its group and its environment.
        family = marked.family_of(self.pid) if running else []
        self._end_group()
        for one in family:
            with contextlib.suppress(OSError):
                os.kill(one, signal.SIGKILL)
        self._process.wait(5.0)

    def resident_bytes(self) -> int:
        """Return the memory that it holds; 0 where the system does not tell."""
        below = marked.family_of(self.pid) if self._mark is not None else []
        return sum(map(_resident_bytes, (self.pid, *below)))

    def _end_group(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        if self._mark is not None:  # a program may leave its group
            marked.end_marked(marked.TRIAL, self._mark)

    def _read(self, pipe: IO[bytes]) -> None:
        with contextlib.suppress(OSError, ValueError), pipe:
            while line := pipe.readline(MAX_LINE):
                # Not the torn line of a process that was killed, nor what the loop itself writes.
                with contextlib.suppress(ValueError):
                    self._inbox.put(LOOP_MESSAGES.decode(line))
                    self._wake()
        self._process.wait(DRAIN_SECONDS)  # its end is what there is to see now
        self._wake()


def _resident_bytes(process: int) -> int:
    try:
        pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def _log(pipe: IO[bytes], path: str | None) -> None:
    """Bring what the loop prints to its log; what is beyond the bound is read and dropped."""
    log = None if path is None else TrialLog(Path(path))
    with contextlib.suppress(OSError, ValueError), pipe:
        while chunk := os.read(pipe.fileno(), _CHUNK):
            if log is not None:
                log.write(chunk.decode("utf-8", "replace"))
                log.flush()
    if log is not None:
        log.close()
