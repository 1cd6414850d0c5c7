"""The loop trials on board: started as there is room, heard, stopped, and ended when they must be.

No thread of its own decides anything: whoever owns it calls `advance` again and again.
"""

import contextlib
import logging
import math
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from tuner_service.definition.trial_spec import UserLoopSpec
from tuner_service.programs import ProjectError
from workers.protocol.messages import (
    Checkpointed,
    Event,
    Failed,
    Reported,
    RunFailure,
    RunId,
    Started,
    StopMode,
    Stopped,
    TrialStart,
    Working,
)
from workers.protocol.user_loop import (
    AllowStep,
    LoopFailed,
    LoopFinished,
    LoopMessage,
    LoopOrder,
    LoopPruned,
    LoopReport,
    LoopSaved,
    LoopStarted,
    LoopStopped,
    StopLoop,
)
from workers.training.trials.best_models import ModelKeeper
from workers.training.user_loops.fork_server import ForkServer
from workers.training.user_loops.process import UserLoopProcess
from workers.training.user_loops.program_order import ordered
from workers.training.user_loops.run import (
    UserLoopRun,
    checkpoint_dir,
    outcome,
    prepare,
    report_log_path,
)

logger = logging.getLogger(__name__)

LOOK_SECONDS = 1.0  # between looks at memory and deadlines
GAP_SECONDS = 5.0  # this long without a turn, and the trainer itself stood still


class UserLoopPool:
    """Runs loop trials in processes of their own.

    Args:
        device: What the loops are told to train on.
        modules_dir: Where the modules lie, and perhaps projects with programs.
        programs: Where more of those lie.
        keeper: Decides whose model is kept.
        capacity: How many run at once.
        threads: Of torch in each process.
        stop_seconds: How long a loop that was asked to stop may take.
        progress_seconds: How long a loop may say nothing.
        memory_limit_bytes: With more in all, the largest is ended.
        wake: Called from other threads when `advance` has something to do.
    """

    def __init__(
        self,
        device: str,
        *,
        modules_dir: Path | None,
        programs: Sequence[Path] = (),
        keeper: ModelKeeper,
        capacity: int = 1,
        threads: int | None = None,
        stop_seconds: float = 10.0,
        progress_seconds: float = 600.0,
        memory_limit_bytes: int | None = None,
        wake: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.capacity = capacity
        self.keeper = keeper
        self._device = device
        self._modules_dir = modules_dir
        self._programs = (*(() if modules_dir is None else (modules_dir,)), *programs)
        self._threads = threads or 1
        self._stop_seconds = stop_seconds
        self._progress_seconds = progress_seconds
        self._memory_limit_bytes = memory_limit_bytes
        self._wake = wake
        self._clock = clock
        self._waiting: deque[TrialStart] = deque()
        self._runs: dict[RunId, UserLoopRun] = {}
        self._looked_at = clock()
        self._fork_server = ForkServer(clock)

    @property
    def peak_bytes(self) -> int:
        """The most memory that the loops held together, now or at an earlier look."""
        return sum(max(r.peak_bytes, r.process.resident_bytes()) for r in self._runs.values())

    @property
    def idle(self) -> bool:
        """Whether no loop trial is on board."""
        return not self._waiting and not self._runs

    @property
    def runnable(self) -> bool:
        """Whether `advance` has something to do now."""
        if self._has_room or any(run.process.waiting for run in self._runs.values()):
            return True
        return bool(self._runs) and self._clock() - self._looked_at >= LOOK_SECONDS

    def submit(self, start: TrialStart) -> None:
        """Take a trial on, after those already there."""
        self._waiting.append(start)

    def stop(self, run: RunId, mode: StopMode) -> list[Event]:
        """Ask a run to stop; return its end if it had not begun."""
        for start in self._waiting:
            if start.run == run:
                self._waiting.remove(start)
                return [Stopped(run=run, mode=mode)]
        begun = self._runs.get(run)
        if begun is not None:
            if begun.stop is None:
                begun.stop_at = self._clock() + self._stop_seconds
                begun.process.send(StopLoop())
            begun.stop = mode
        return []

    def allow(self, run: RunId, step: int) -> None:
        """Let a trial go on after this step."""
        if run in self._runs:
            self._runs[run].process.send(AllowStep(step))

    def advance(self) -> list[Event]:
        """Hear what was said, end what must end, start what there is room for."""
        events: list[Event] = []
        self._look(events)
        for run in list(self._runs.values()):
            if self._clock() > run.stop_at:
                run.process.kill()
            self._hear(run, events)
        while self._has_room:
            self._begin(self._waiting.popleft(), events)
        if not self._runs:
            self._fork_server.rest()
        return events

    def shutdown(self) -> list[Event]:
        """Stop every trial for a later continuation; those that do not are killed."""
        events: list[Event] = []
        for key in [*(start.run for start in self._waiting), *self._runs]:
            events += self.stop(key, "checkpoint")
        while self._runs:
            events += self.advance()
            time.sleep(0.02)
        self._fork_server.close()
        return events

    @property
    def _has_room(self) -> bool:
        return bool(self._waiting) and len(self._runs) < self.capacity

    # -- one trial --------------------------------------------------------------------------

    def _begin(self, start: TrialStart, events: list[Event]) -> None:
        spec = UserLoopSpec.model_validate(start.spec)
        try:
            order = self._order(start, spec)
            run = self._started(start, spec, order)
        except (LookupError, ProjectError) as error:
            failure = RunFailure("user_code", str(error))
            events.append(Failed(run=start.run, failure=failure))
            return
        except OSError as error:  # no disk, no process, no descriptor: not the loop's doing
            said = f"The training loop could not be started: {error}"
            events.append(Failed(run=start.run, failure=RunFailure("worker_lost", said)))
            return
        self._runs[run.id] = run
        events.append(Started(run=run.id, backend="plain"))

    def _order(self, start: TrialStart, spec: UserLoopSpec) -> LoopOrder:
        """Return what to run.

        Raises:
            LookupError: This worker does not have it.
            ProjectError: The program's project is not what it must be.
        """
        program = None
        path = None if self._modules_dir is None else self._modules_dir / f"{spec.module}.py"
        if "." in spec.module:
            path, program = ordered(self._programs, start, spec, device=self._device)
        elif path is None or not path.is_file():
            raise LookupError(
                f"this worker has no module {spec.module!r}; start it with --modules DIR"
            )
        return LoopOrder(
            module=str(path),
            program=program,
            parameters=spec.parameters,
            objectives=[name for name, _ in spec.objective],
            device=self._device,
            seed=spec.seed,
            threads=self._threads,
            checkpoint_dir=str(checkpoint_dir(start)),
            report_log=str(report_log_path(start)),
            prunable=start.prunable,
            reported=None,
            model=_draft(start),
        )

    def _started(self, start: TrialStart, spec: UserLoopSpec, order: LoopOrder) -> UserLoopRun:
        reported, values = prepare(start)
        order = replace(order, reported=reported)
        process = UserLoopProcess(
            order, fork_server=self._fork_server, log=start.log, wake=self._wake
        )
        now = self._clock()
        run = UserLoopRun(start, spec, process, begun_at=now, heard_at=now, reported_at=now)
        run.reported, run.values, run.device = reported, values, self._device
        run.saved_step = start.resume
        return run

    def _hear(self, run: UserLoopRun, events: list[Event]) -> None:
        code = run.process.exit_code()  # before what it said, which is complete then
        for message in run.process.read():
            run.heard_at = self._clock()
            self._take(run, message, events)
        if code is not None:
            del self._runs[run.id]
            events.append(outcome(run, code, self._keep))
            _drop_draft(run.start)

    def _take(self, run: UserLoopRun, message: LoopMessage, events: list[Event]) -> None:
        match message:
            case LoopStarted(source_hash):
                run.source_hash = source_hash
            case LoopReport():
                self._report(run, message, events)
            case LoopSaved():
                events.append(Checkpointed(run=run.id, step=run.saved()))
            case LoopFinished() | LoopFailed() | LoopStopped() | LoopPruned():
                run.ending = message

    def _report(self, run: UserLoopRun, message: LoopReport, events: list[Event]) -> None:
        step, values, now = message.step, message.values, self._clock()
        named = dict(zip((key for key, _ in run.spec.objective), values, strict=False))
        seconds, run.reported_at = now - run.reported_at, now
        run.reported, run.values = step, values
        record = {**message.record, "step": step, **named, "seconds": seconds}
        value = values[0] if values else None
        events.append(Reported(run=run.id, step=step, value=value, record=record))
        if message.saved:
            events.append(Checkpointed(run=run.id, step=run.saved()))

    def _keep(self, run: UserLoopRun) -> str | None:
        """Keep the model that the loop saved, if its trial is among the study's best."""
        path, draft = run.start.model, _draft(run.start)
        if path is None or draft is None or not run.values or not Path(draft).exists():
            return None
        ranked = run.start, run.values[0], run.spec.objective[0][1]
        if not self.keeper.ranks(*ranked):
            return None
        try:
            os.replace(draft, path)
        except OSError as error:  # costs the model, not the result
            logger.warning("no model of run %s: %s", run.id, error)
            self.keeper.withdraw(*ranked)
            return None
        return path

    # -- deadlines --------------------------------------------------------------------------

    def _look(self, events: list[Event]) -> None:
        # A trainer that stood still (a long step of a network beside) heard nobody meanwhile: that
        # time is nobody's silence.
        now = self._clock()
        gap, since = 0.0, now - self._looked_at
        if since < LOOK_SECONDS:
            return
        self._looked_at = now
        if since > GAP_SECONDS:
            gap = since
        for run in self._runs.values():
            run.heard_at += gap
            run.stop_at += gap
            if now - run.heard_at > self._progress_seconds and not run.process.waiting:
                said = (
                    f"The training loop said nothing for {self._progress_seconds:g} s "
                    "(progress_timeout_seconds); report more often."
                )
                self._kill(run, RunFailure("user_code", said, run.reported))
            # The trainer moves, though this trial may be silent for long.
            events.append(Working(run=run.id))
        self._check_memory()

    def _check_memory(self) -> None:
        held = {run: run.process.resident_bytes() for run in self._runs.values()}
        for run, size in held.items():
            run.peak_bytes = max(run.peak_bytes, size)
        total, limit = sum(held.values()), self._memory_limit_bytes or math.inf
        if total <= limit:
            return
        # One at a time: the others may fit once it is gone.
        largest = max(held, key=lambda run: held[run])
        said = f"The training loop held {held[largest]} bytes; all of them may hold {limit:.0f}."
        self._kill(largest, RunFailure("out_of_memory", said, largest.reported))

    def _kill(self, run: UserLoopRun, why: RunFailure) -> None:
        run.killed = why
        run.process.kill()


def _draft(start: TrialStart) -> str | None:
    return None if start.model is None else start.model + ".draft"


def _drop_draft(start: TrialStart) -> None:
    draft = _draft(start)
    if draft is not None:
        with contextlib.suppress(OSError):
            Path(draft).unlink()
