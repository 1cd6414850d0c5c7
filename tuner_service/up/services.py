"""The processes of `tuner up`: started, started again when they die, and stopped together.

What dies is started again, with a growing pause. Every child holds the reading end of a pipe (see
`up.parent_watch`), so that nothing is left behind even if this process is killed, and leads a
process group of its own, so that Ctrl-C reaches this process alone.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tuner_service.processes import how_it_ended

Say = Callable[[str], None]

FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 30.0
STEADY_SECONDS = 60.0  # a child that lived this long starts with the first pause again
POLL_SECONDS = 0.1
ORPHAN_SECONDS = 1.0  # a trainer notices the end of its worker, unless it is still starting
TAIL_LINES = 15
TAIL_BYTES = 64 << 10
LOG_BYTES = 64 << 20  # of one child's log; as much again is kept beside it


@dataclass(slots=True)
class Service:
    """One process that is to run all the time.

    Attributes:
        command: What to run, without `--parent-pipe`.
        log: Where its output goes; begun anew at every start of the service, and when it is full.
        due: When to start it again, while it does not run.
        read_to: Bytes of the log that `news` has returned.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    log: Path
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    due: float = 0.0
    pause: float = FIRST_PAUSE_SECONDS
    read_to: int = 0

    def start(self, parent_pipe: int, now: float) -> None:
        """Start the process."""
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(  # noqa: S603 - our own commands
                [*self.command, "--parent-pipe", str(parent_pipe)],
                env=dict(self.environment),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                pass_fds=[parent_pipe],
                process_group=0,
            )
        self.started_at = now

    def ended(self, now: float) -> str | None:
        """Note that the process has ended, and return how; None while it runs."""
        if self.process is None or self.process.poll() is None:
            return None
        how = how_it_ended(self.process.returncode)
        self.kill()  # what it may have left in its group
        self.process = None
        if now - self.started_at > STEADY_SECONDS:
            self.pause = FIRST_PAUSE_SECONDS
        self.back_off(now)
        return how

    def back_off(self, now: float) -> None:
        """Be due after a pause, and after one twice as long the next time."""
        self.due = now + self.pause
        self.pause = min(self.pause * 2, LONGEST_PAUSE_SECONDS)

    def terminate(self) -> None:
        """Ask the process to stop."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()

    def kill(self) -> None:
        """End the process and its process group at once."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)

    def turn_log(self) -> None:
        """Set a full log aside as `….log.1`, in place of the one before, and begin anew.

        The child writes on through the same descriptor, at the file's end: what it writes between
        the copy and the cut is lost.
        """
        with contextlib.suppress(OSError):  # a full disk: the log can be cut, if not kept
            if self.log.stat().st_size <= LOG_BYTES:
                return
            aside = aside_of(self.log)
            try:
                aside.unlink(missing_ok=True)
                shutil.copy(self.log, aside)
            finally:
                os.truncate(self.log, 0)

    def news(self) -> list[str]:
        """Return whole lines of its log that were not returned before, at most `TAIL_BYTES`."""
        try:
            with self.log.open("rb") as file:
                if file.seek(0, os.SEEK_END) < self.read_to:  # the log was begun anew
                    self.read_to = 0
                file.seek(self.read_to)
                text = file.read(TAIL_BYTES)
        except OSError:
            return []
        whole = len(text) if len(text) == TAIL_BYTES else text.rfind(b"\n") + 1
        self.read_to += whole
        return text[:whole].decode("utf-8", errors="replace").splitlines()

    def tail(self, lines: int = TAIL_LINES) -> str:
        """Return the end of its log, or of the one before where it has just begun anew."""
        text = _end_of(self.log) or _end_of(aside_of(self.log))
        return "\n".join(f"    {line}" for line in text.splitlines()[-lines:])


def aside_of(log: Path) -> Path:
    """Return where a full log is kept."""
    return log.with_name(f"{log.name}.1")


def _end_of(log: Path) -> str:
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
            return file.read(TAIL_BYTES).decode("utf-8", errors="replace").rstrip()
    except OSError:
        return ""


@dataclass(slots=True)
class Services:
    """Keeps children running until it is told to stop."""

    members: list[Service]
    say: Say
    grace_seconds: float
    stopping: threading.Event = field(default_factory=threading.Event)
    hurry: threading.Event = field(default_factory=threading.Event)

    @contextlib.contextmanager
    def held(self) -> Iterator[int]:
        """Own the children for the block; at its end none is left."""
        reading, writing = os.pipe()
        try:
            yield reading
        finally:
            self._stop_all()
            os.close(writing)
            os.close(reading)

    def restart_ended(self, parent_pipe: int) -> None:
        """Start what is due, and note what has ended."""
        now = time.monotonic()
        for service in self.members:
            how = service.ended(now)
            if how is not None:
                self.say(
                    f"{service.name} {how}; starting it again in {service.due - now:g} s. "
                    f"The end of {service.log}:\n{service.tail(1)}"
                )
            if service.process is None and now >= service.due:
                self._start(service, parent_pipe, now)
            service.turn_log()

    def _start(self, service: Service, parent_pipe: int, now: float) -> None:
        """Start a child; a machine that is out of processes or memory now may not be later."""
        try:
            service.start(parent_pipe, now)
        except OSError as error:
            service.back_off(now)
            wait = service.due - now
            self.say(f"{service.name} cannot be started: {error}; trying again in {wait:g} s.")

    def request_stop(self, *_: object) -> None:
        """Stop soon; at the second call, at once. Safe in a signal handler."""
        if self.stopping.is_set():
            self.hurry.set()
        self.stopping.set()

    def _stop_all(self) -> None:
        family = self._family()
        for service in self.members:
            service.terminate()
        deadline = time.monotonic() + self.grace_seconds
        while self._alive() and time.monotonic() < deadline and not self.hurry.wait(POLL_SECONDS):
            pass
        for service in self._alive():
            self.say(f"{service.name} does not stop; killing it")
        for service in self.members:
            service.kill()
            if service.process is not None:
                service.process.wait()
        _, left = psutil.wait_procs(family, timeout=ORPHAN_SECONDS)
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def _family(self) -> list[psutil.Process]:
        """Return what the children have started: trainers, and what those compile with."""
        family: list[psutil.Process] = []
        for service in self._alive():
            with contextlib.suppress(psutil.NoSuchProcess):
                assert service.process is not None
                family += psutil.Process(service.process.pid).children(recursive=True)
        return family

    def _alive(self) -> list[Service]:
        return [c for c in self.members if c.process is not None and c.process.poll() is None]
