"""The trainer as its supervisor sees it: a child process, two pipes and a log file.

Two threads keep the supervisor's loop from ever blocking on the child: one writes commands, since
a hung trainer leaves its pipe full; one reads messages into an inbox. The child's standard output
and error go to its log, whose end tells why it died.
"""

import contextlib
import fcntl
import logging
import os
import queue
import re
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil

from tuner_service.files import private_folder
from workers import marked
from workers.protocol.codec import COMMANDS, TRAINER_MESSAGES
from workers.protocol.messages import Command, Ready, TrainerMessage
from workers.protocol.pipes import spawn
from workers.supervisor import watcher

logger = logging.getLogger(__name__)

STOPPED_SECONDS = 180.0  # after which a stopped supervisor is continued
_TAIL_BYTES = 4000
# Also what moves a terminal's cursor.
_UNREADABLE = re.compile(r"[\ufffd\x00-\x08\x0b-\x1f\x7f-\x9f]+")
_LOG_CAP_BYTES = 10_000_000
_LOG_SECONDS = 7 * 24 * 3600.0  # a worker's log has its name, and no worker's name comes again


@dataclass(frozen=True, slots=True)
class TrainerCommand:
    """How to start a trainer.

    Attributes:
        arguments: After `python`, without the pipe descriptors.
        environment: Complete, already scrubbed.
        log_path: Where its standard output and error go, appended.
    """

    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    log_path: Path


class TrainerProcess:
    """A running trainer. `receive`, `wake` and `send` may be called from any thread."""

    def __init__(self, command: TrainerCommand) -> None:
        self.ready: Ready | None = None
        self.closed = False
        self.started_at = time.monotonic()
        self.heard_at = self.started_at
        self._log_path = command.log_path
        self._log_start = _prepare_log(command.log_path)
        self._inbox: queue.SimpleQueue[TrainerMessage | None] = queue.SimpleQueue()
        self._outgoing: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        commands, events = self._spawn(command)
        self._threads = [
            threading.Thread(target=self._write, args=(commands,), daemon=True),
            threading.Thread(target=self._read, args=(events,), daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._process.pid

    def send(self, command: Command) -> None:
        """Queue a command; one that a dead trainer never reads is dropped."""
        self._outgoing.put(COMMANDS.encode(command))

    def receive(self, timeout: float) -> list[TrainerMessage]:
        """Return what came in, waiting up to `timeout` seconds for the first message.

        After the end of the pipe, `closed` is true and everything sent before it was returned.
        """
        messages: list[TrainerMessage] = []
        with contextlib.suppress(queue.Empty):
            first = self._inbox.get(timeout=timeout) if timeout > 0 else self._inbox.get_nowait()
            while True:
                if first is not None:
                    messages.append(first)
                first = self._inbox.get_nowait()
        return messages

    def wake(self) -> None:
        """Make a waiting `receive` return at once."""
        self._inbox.put(None)

    def exit_code(self, *, wait_seconds: float = 0.0) -> int | None:
        """Return the exit code (negative: the signal that ended it), None while it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(wait_seconds)
        return None

    def kill(self) -> None:
        """End it and whatever it started, at once."""
        self._kill(self._family(), wait_seconds=5.0)

    def _kill(self, family: Sequence[psutil.Process], *, wait_seconds: float) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        for process in family:
            with contextlib.suppress(psutil.Error):
                process.kill()
        marked.end_marked(marked.TRAINER, self._mark)
        self._outgoing.put(None)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(wait_seconds)
        _end_watcher(self._watcher)

    def close(self, timeout: float) -> None:
        """Close the command pipe, which ends a healthy trainer; kill it after `timeout`.

        On a busy machine the system takes seconds to give its memory back: that is waited for
        no longer than `timeout` again.
        """
        family = self._family()
        self._outgoing.put(None)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout)
        self._kill(family, wait_seconds=timeout)

    def _family(self) -> list[psutil.Process]:
        """Return what it has started. What left its process group is found only while it lives."""
        try:
            return list(psutil.Process(self.pid).children(recursive=True))
        except psutil.Error:
            return []

    def log_tail(self) -> str:
        """Return the end of what this process printed."""
        try:
            with self._log_path.open("rb") as log:
                size = log.seek(0, os.SEEK_END)
                log.seek(max(self._log_start, size - _TAIL_BYTES))
                text = log.read().decode("utf-8", "replace")
        except OSError:
            return ""
        return _UNREADABLE.sub("\ufffd", text).strip()

    def _spawn(self, command: TrainerCommand) -> tuple[IO[bytes], IO[bytes]]:
        self._mark = secrets.token_hex(16)  # in the environment of all that it starts
        environment = {**command.environment, marked.TRAINER: self._mark}
        with command.log_path.open("ab") as log:
            with contextlib.suppress(OSError):
                fcntl.flock(log, fcntl.LOCK_SH)  # held by what inherits it, until all of that ends
            self._process, commands, events = spawn(
                command.arguments, stdout=log, stderr=log, env=environment
            )
        self._watcher = _watch(self._process.pid, self._mark)
        return commands, events

    def _write(self, pipe: IO[bytes]) -> None:
        with contextlib.suppress(OSError), pipe:
            while (line := self._outgoing.get()) is not None:
                pipe.write(line)
                pipe.flush()

    def _read(self, pipe: IO[bytes]) -> None:
        with contextlib.suppress(OSError), pipe:
            for message in _messages(pipe):
                self.heard_at = time.monotonic()
                if isinstance(message, Ready):
                    self.ready = message
                self._inbox.put(message)
        self.closed = True
        self._inbox.put(None)


def _watch(trainer: int, mark: str) -> "subprocess.Popen[bytes]":
    arguments = (str(os.getpid()), str(trainer), str(STOPPED_SECONDS), marked.__file__, mark)
    return subprocess.Popen(  # noqa: S603  # our own interpreter and file
        [sys.executable, "-I", "-S", watcher.__file__, *arguments],
        stdin=subprocess.PIPE,
        start_new_session=True,
    )


def _end_watcher(watching: "subprocess.Popen[bytes]") -> None:
    if watching.stdin is not None and not watching.stdin.closed:
        with contextlib.suppress(OSError), watching.stdin as pipe:
            pipe.write(b".")
    with contextlib.suppress(subprocess.TimeoutExpired):
        watching.wait(5.0)


def _messages(pipe: IO[bytes]) -> Iterator[TrainerMessage]:
    for line in pipe:
        try:
            yield TRAINER_MESSAGES.decode(line)
        except ValueError as error:  # such as the torn last line of a process that was killed
            logger.warning("dropped a line of %d bytes from the trainer: %s", len(line), error)


def _prepare_log(path: Path) -> int:
    """Make room for the log and return the offset at which a new process's output starts."""
    private_folder(path.parent)
    _drop_old_logs(path.parent)
    size = path.stat().st_size if path.exists() else 0
    if size > _LOG_CAP_BYTES:
        path.unlink()
        return 0
    return size


def _drop_old_logs(folder: Path) -> None:
    """Remove the logs to which nobody has written for a week, but those of the living."""
    oldest = time.time() - _LOG_SECONDS
    for log in folder.glob("*.log"):
        with contextlib.suppress(OSError):
            if log.stat().st_mtime < oldest:
                with log.open("rb") as opened:
                    fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    log.unlink()
