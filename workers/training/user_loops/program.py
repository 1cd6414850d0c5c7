"""A program as a training loop: started, heard, told to stop, and ended with all that it started.

It runs in the group of this process, which is the trial's own. What it prints goes on to the
trial's log; values are found there and in the file that `tuner_trial.report` writes.
"""

import contextlib
import ctypes
import fcntl
import json
import math
import os
import select
import shutil
import signal
import subprocess
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from tuner_service import tuner_trial
from tuner_service.files import private_folder
from tuner_service.layout import workers_path
from tuner_service.processes import how_it_ended
from workers.marked import TRIAL, family_of
from workers.protocol.user_loop import ProgramOrder
from workers.training.trials.log import MAX_BYTES
from workers.training.user_loops.program_place import ProgramDirectory
from workers.training.user_loops.program_values import (
    REPORTED,
    SAID,
    Measurement,
    NoNumberError,
    OutputReader,
    json_report,
)
from workers.training.user_loops.tracker_files import TrackerFiles
from workers.training.user_loops.trial import DivergedError, Trial

LOOK_SECONDS: Final = 0.1  # between looks at the report file and at what the trainer says
SAVED_SECONDS: Final = 2.0  # between looks for checkpoints, and signs of life
TRACKER_SECONDS: Final = 1.0  # between looks at trackers' files
HOLD_SECONDS: Final = 150.0  # that a line waits for a tracker's file, which may say it better
LAST_TRACKER_SECONDS: Final = 60.0  # for what is in them when the program has ended
PARAMETERS, REPORTS, HELPER = "parameters.json", "reports.jsonl", "helper"
LAST_BYTES: Final = 2000  # of output, that a failure quotes
LAST_LINES: Final = 5
OUT_OF_MEMORY: Final = ("OutOfMemoryError: ", "MemoryError: ", "CUDA out of memory")
FLOOD_SECONDS: Final = 0.002
FAMILY_SECONDS: Final = 2.0
_SUBREAPER: Final = 36  # PR_SET_CHILD_SUBREAPER
_CHUNK: Final = 1 << 20  # also what the pipe holds, if the system lets it


class ProgramFailedError(Exception):
    """The program failed, or gave no value; the message has its last lines.

    Attributes:
        memory: It ran out of memory.
        output: Its last lines; None where something else may have ended it.
    """

    def __init__(self, message: str, *, memory: bool = False, output: str | None = None) -> None:
        self.memory = memory
        self.output = output
        super().__init__(message)


class Program:
    """A program's run, called as a module's `train` is.

    Args:
        objectives: Names of the values that every report must have.
    """

    def __init__(self, order: ProgramOrder, objectives: Sequence[str]) -> None:
        self._order = order
        self._objectives = list(objectives)
        self._reader = OutputReader(objectives, order.metrics)
        self._last: deque[bytes] = deque(maxlen=64)
        self._values: dict[str, float] = {}
        self._ranks: dict[str, int] = {}
        self._trackers = TrackerFiles(Path(order.working_dir))
        self._tracked_at = -math.inf
        self._held: list[Measurement] = []
        self._held_since = math.inf
        self._room = MAX_BYTES + 1  # one more than a log holds: so it says that it is cut
        self._step = -1
        self._reports = b""
        self._reports_at = 0

    def __call__(self, trial: Trial) -> None:
        """Run it to its end, or until it is to stop.

        Raises:
            DivergedError: A value is no finite number.
            ProgramFailedError: It failed, or gave no value.
        """
        # All of the group get it, this process, too; a handler, unlike "ignore", ends with exec.
        signal.signal(signal.SIGTERM, lambda *_: None)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_SUBREAPER, 1)  # what loses its parent becomes this one's child
        place = self._place()
        try:
            self._run(trial)
        finally:
            _end_family()
            if place is not None:
                place.tidy()

    def _place(self) -> ProgramDirectory | None:
        directory = Path(self._order.directory)
        if self._order.in_project:
            private_folder(Path(self._order.working_dir))
            return None
        try:
            return ProgramDirectory(Path(self._order.working_dir), directory)
        except FileNotFoundError as error:
            if not directory.is_dir():
                raise ProgramFailedError(f"There is no directory {directory}.") from error
            raise

    def _run(self, trial: Trial) -> None:
        process = self._started(trial)
        try:
            self._follow(process, trial)
            code = process.wait()
            self._read_trackers(trial, last=True)
            self._let_go(trial)
        except NoNumberError as error:
            raise ProgramFailedError(f"{error}{self._quoted()}") from error
        finally:
            if process.poll() is None:
                process.kill()
        if trial.stopping:
            return
        if code != 0:
            quoted = self._quoted()
            memory = any(words in quoted for words in OUT_OF_MEMORY)
            last = self._last_lines()[-1:]  # such as the exception: what is cut is cut after it
            said = f"The program {how_it_ended(code)}{': ' if last else ''}{''.join(last)}.{quoted}"
            output = "\n".join(self._last_lines()) if code > 0 else None
            raise ProgramFailedError(said, memory=memory, output=output)
        if trial.last_value is None:
            raise ProgramFailedError(self._no_value())

    def _started(self, trial: Trial) -> "subprocess.Popen[bytes]":
        order, folder = self._order, Path(self._order.folder)
        parameters = json.dumps(order.parameters)
        folder.joinpath(PARAMETERS).write_text(parameters, encoding="utf-8")
        private_folder(folder / HELPER)
        shutil.copy(str(tuner_trial.__file__), folder / HELPER)
        path = [order.environment.get("PYTHONPATH"), os.environ.get("PYTHONPATH")]
        ours = {
            TRIAL: order.mark,
            "TUNER_PARAMETERS": parameters,
            "TUNER_PARAMETERS_FILE": str(folder / PARAMETERS),
            "TUNER_REPORTS": str(folder / REPORTS),
            "TUNER_CHECKPOINT_DIR": str(trial.checkpoint_dir),
            "TUNER_OUTPUT_DIR": order.working_dir,
            "PYTHONPATH": os.pathsep.join([str(folder / HELPER), *_modules_of(path)]),
            "TUNER_SEED": str(trial.seed),
            "TUNER_DEVICE": trial.device,
        }
        if trial.device == "cpu":
            ours["CUDA_VISIBLE_DEVICES"] = ""
        buffering = {"PYTHONUNBUFFERED": "1"}  # else a value is seen when the program ends
        # Ours are started so; a script is to find the modules beside it.
        theirs = {k: v for k, v in os.environ.items() if k != "PYTHONSAFEPATH"}
        environment = {**theirs, **buffering, **order.environment, **ours}
        try:
            return subprocess.Popen(  # noqa: S603  what an operator's tuner.yaml is for
                order.arguments,
                cwd=order.directory if order.in_project else order.working_dir,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
        except FileNotFoundError as error:
            missing = f"The command {order.arguments[0]!r} was not found"
            raise ProgramFailedError(f"{missing}, in {order.directory} or on PATH.") from error
        except (OSError, ValueError) as error:
            raise ProgramFailedError(f"The program could not be started: {error}") from error

    def _follow(self, process: "subprocess.Popen[bytes]", trial: Trial) -> None:
        """Hear the program until it has ended; ask it once to stop, if it is to."""
        output = process.stdout
        if output is None:
            raise TypeError("the program has no pipe")
        with contextlib.suppress(OSError, AttributeError):
            fcntl.fcntl(output, fcntl.F_SETPIPE_SZ, _CHUNK)
        poll, asked, saved_at = select.poll(), False, time.monotonic()
        poll.register(output.fileno(), select.POLLIN)
        is_open = True
        while is_open or process.poll() is None:
            # What it left running may hold its output: its own end is what counts.
            ended = process.poll() is not None
            ready = poll.poll(0 if ended else LOOK_SECONDS * 1000) if is_open else []
            if not is_open:
                time.sleep(LOOK_SECONDS)
            if ready:
                chunk = os.read(output.fileno(), _CHUNK)
                is_open = bool(chunk)
                self._hear(chunk, trial)
                if len(chunk) < _CHUNK and not ended:
                    time.sleep(FLOOD_SECONDS)  # lines by the thousand are one look's, not one each
            elif ended:
                is_open = False
            self._read_reports(trial)
            self._read_trackers(trial)
            if time.monotonic() - saved_at > SAVED_SECONDS and not trial.stopping:
                saved_at = time.monotonic()
                trial.alive()
                trial.note_saved()
            if trial.stopping and not asked:
                asked = True
                os.killpg(0, signal.SIGTERM)  # the trainer kills what does not hear it
        for found in self._reader.end():
            self._take(found, trial)
        self._read_reports(trial)

    def _hear(self, chunk: bytes, trial: Trial) -> None:
        self._last.append(chunk[-LAST_BYTES:])
        part = chunk[: self._room]
        self._room -= len(part)
        with contextlib.suppress(OSError):
            while part:
                part = part[os.write(1, part) :]
        for found in self._reader.feed(chunk):
            self._take(found, trial)

    def _read_reports(self, trial: Trial) -> None:
        for found in self._reported():
            self._take(found, trial)

    def _read_trackers(self, trial: Trial, *, last: bool = False) -> None:
        """Look at trackers' files, unless the operator's patterns say where the values are."""
        now = time.monotonic()
        if all(name in self._order.metrics for name in self._objectives):
            return
        if not last and now - self._tracked_at < TRACKER_SECONDS:
            return
        while True:
            found = list(self._trackers.news())
            for one in found:
                self._take(one, trial)
            self._tracked_at = time.monotonic()
            # Each look reads a bounded part of a file.
            if not last or not found or self._tracked_at - now > LAST_TRACKER_SECONDS:
                return

    def _reported(self) -> Iterator[Measurement]:
        """Yield what was written to the report file since the last look."""
        try:
            with Path(self._order.folder, REPORTS).open("rb") as file:
                file.seek(self._reports_at)
                said = file.read()
        except OSError:
            return
        self._reports_at += len(said)
        *lines, self._reports = (self._reports + said).split(b"\n")
        for line in lines:
            found = json_report(line.decode("utf-8", "replace"))
            if found is not None:
                found.rank = REPORTED
                yield found

    def _take(self, found: Measurement, trial: Trial) -> None:
        """Take what was said, at once or, of a mere line, when no tracker says it."""
        if found.rank == SAID and self._is_to_wait(found, trial):
            self._held.append(found)
        else:
            self._count(found, trial)

    def _is_to_wait(self, found: Measurement, trial: Trial) -> bool:
        """Whether a tracker may say what this line says, exactly and with its own steps."""
        unsure = [name for name in found.values if self._ranks.get(name, 0) <= SAID]
        if not any(name in self._objectives for name in unsure):
            return False
        if self._tracked_at < 0:
            self._read_trackers(trial)
        if not self._trackers.found:
            return False
        now = time.monotonic()
        self._held_since = min(self._held_since, now)
        if now - self._held_since < HOLD_SECONDS:
            return True
        self._let_go(trial)
        return False

    def _let_go(self, trial: Trial) -> None:
        """Take the lines that waited."""
        held, self._held = self._held, []
        for one in held:
            self._count(one, trial)

    def _count(self, found: Measurement, trial: Trial) -> None:
        """Report when all objectives are known; other metrics go along with the next report."""
        for name, value in found.values.items():
            if name not in self._objectives:
                with contextlib.suppress(ValueError):  # more than a step may have
                    trial.log_metrics({name: value})
            elif found.rank >= self._ranks.get(name, 0):
                self._values[name], self._ranks[name] = value, found.rank
                if found.rank > SAID:
                    self._held.clear()
        if trial.stopping or any(name not in self._values for name in self._objectives):
            return
        values = [self._values.pop(name) for name in self._objectives]
        said = found.step
        if said is not None and found.is_new and said <= self._step:
            self._correct(values, said, trial)
            return
        self._step = said if said is not None and said > self._step else self._step + 1
        trial.report(self._step, values)

    def _correct(self, values: list[float], step: int, trial: Trial) -> None:
        """Take values of a step that is no new one: a bar that is drawn again, a second source.

        They are no part of the curve, but the last of them is the result.
        """
        bad = next((value for value in values if not math.isfinite(value)), None)
        if bad is not None:
            raise DivergedError(bad, step)
        trial.last_value = values

    def _no_value(self) -> str:
        names = " and ".join(self._objectives)
        patterns = [
            f"the pattern {self._order.metrics[name]!r} matched no line"
            for name in self._objectives
            if name in self._order.metrics
        ]
        how = "; ".join(patterns) or f"no line said `{self._objectives[0]}=0.5` or the like"
        return f"The program ended without a value of {names}: {how}.{self._quoted()}"

    def _last_lines(self) -> list[str]:
        text = b"".join(self._last)[-LAST_BYTES:].decode("utf-8", "replace")
        # Its own directory differs between attempts; that is no other failure.
        text = text.replace(f"{self._order.working_dir}/", "")
        return [line.strip() for line in text.splitlines() if line.strip()][-LAST_LINES:]

    def _quoted(self) -> str:
        lines = self._last_lines()
        return f" Its last lines: {' | '.join(lines)}" if lines else " It printed nothing."


def _end_family() -> None:
    """Kill what the program has started, also what has left its group and its environment."""
    deadline = time.monotonic() + FAMILY_SECONDS
    while (family := family_of(os.getpid())) and time.monotonic() < deadline:
        for one in family:
            with contextlib.suppress(OSError):
                os.kill(one, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(0.005)


def _modules_of(paths: Sequence[str | None]) -> list[str]:
    """Return where Python looks for modules, without where ours lie."""
    found = [one for path in paths if path for one in path.split(os.pathsep)]
    return [one for one in found if one and one != str(workers_path())]
