"""The training engine: takes trials on, gives the groups their turns, and says what happened.

No thread, no queue, no database: whoever owns it calls `advance` again and again, and hears what
happened as a list of events. Trials of one group train together where the step is fused; groups
take turns, one slice of an epoch each.
"""

import gc
import sys
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tuner_service.definition.trial_spec import TrialSpec
from workers.protocol.messages import (
    Event,
    Failed,
    RunEnd,
    RunId,
    StopMode,
    Stopped,
    TrialStart,
)
from workers.training import user_modules
from workers.training.data import DatasetCache, Room
from workers.training.engine.first_failure import FirstFailureProbe
from workers.training.engine.folds import Folds
from workers.training.engine.group_trainer import GroupTrainer
from workers.training.engine.on_board import OnBoard
from workers.training.engine.preflight import train_one_batch
from workers.training.engine.process_state import ProcessStateGuard, end_patched
from workers.training.engine.torch_names import PatchedTorchError, TorchNames
from workers.training.nets import networks
from workers.training.steps.factory import PlainStepFactory, StepFactory
from workers.training.steps.groups import hyper_of
from workers.training.steps.step import device_of
from workers.training.trials.best_models import ModelKeeper
from workers.training.trials.failures import failure_of, is_out_of_memory, require_device
from workers.training.trials.log import printing_to
from workers.training.trials.preparation import Prepared, prepare_trial
from workers.training.trials.runs import TrialRun, resume
from workers.training.user_loops.pool import UserLoopPool

GroupKey = tuple[str, int]  # group key, step within the epoch at which runs come in

IDLE_GROUPS = 4  # without trials, that keep their step warm for the next one


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """What an engine keeps to.

    Attributes:
        data_dirs: Where data files may lie.
        modules_dir: Where the networks lie that the operator brought.
        threads: Of torch on the CPU; None leaves them as they are.
        checkpoint_seconds: How often a running trial's checkpoint is written.
        max_groups: Groups that take turns at once; each study gets at least one.
    """

    data_dirs: tuple[Path, ...] = ()
    modules_dir: Path | None = None
    threads: int | None = None
    checkpoint_seconds: float = 60.0
    max_groups: int = 4


DEFAULTS = EngineSettings()


class Engine:
    """Trains trials on one device.

    Args:
        device: `cpu` or `cuda`.
        room: Where data may lie when it is prepared; by default on the device, or in files for
            temporary ones.
        steps: Makes the steps; plain ones by default.
        user_loops: Runs the trials that are training loops of the operator's; None fails them.
        ask: Asks for points of a study (`probe`) when its first trials fail; None: failures
            are told as they come.
        clock: Seconds, for durations.
    """

    def __init__(
        self,
        device: str,
        *,
        settings: EngineSettings = DEFAULTS,
        room: Room | None = None,
        steps: StepFactory | None = None,
        user_loops: UserLoopPool | None = None,
        ask: Callable[[int], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if settings.threads is not None:
            torch.set_num_threads(settings.threads)
        self._settings = settings
        self._device = device_of(device)
        self._data = DatasetCache(self._device, directories=settings.data_dirs, room=room)
        names = TorchNames()
        self._modules = user_modules.UserModules(settings.modules_dir, check=names.check)
        self._steps = steps or PlainStepFactory()
        self._clock = clock
        self._keeper = user_loops.keeper if user_loops is not None else ModelKeeper()
        self._user_loops = user_loops or UserLoopPool(device, modules_dir=None, keeper=self._keeper)
        self._folds = Folds(self._keeper.ranks)
        self._first_failures = FirstFailureProbe(ask, self._trains, self._crowded)
        self._process_state = ProcessStateGuard(names)
        self._waiting: deque[TrialStart] = deque()
        self._stops: dict[RunId, StopMode] = {}
        self._groups: OrderedDict[GroupKey, GroupTrainer] = OrderedDict()  # the next turn's first
        self._runs: dict[RunId, TrialRun] = {}  # every run in a group
        self._on_board = OnBoard()
        self._counts: dict[str, int] = {}
        self._events: list[Event] = []  # of the present call
        self._preparing: RunId | None = None
        self._at_work: GroupTrainer | None = None

    @property
    def turn(self) -> list[RunId]:
        """Runs that the present call prepares or trains; for another thread to look at."""
        preparing, group = self._preparing, self._at_work
        runs = [run.id for run in group.at_work] if group is not None else []
        keys = [preparing] if preparing is not None else runs
        return sorted({self._folds.trial_of(key) for key in keys})

    @property
    def lanes(self) -> int:
        """How many trials it can usefully hold at once."""
        return self._steps.capacity(self._device)

    @property
    def user_loops(self) -> int:
        """How many training loops of the operator's run at once."""
        return self._user_loops.capacity

    @property
    def idle(self) -> bool:
        """Whether no trial is on board."""
        on_board = self._waiting or self._runs or self._first_failures.pending
        return not on_board and self._user_loops.idle

    @property
    def runnable(self) -> bool:
        """Whether `advance` has anything to do; else every trial waits for the pruner."""
        if self._stops or self._admissible() or self._first_failures.runnable:
            return True
        return self._user_loops.runnable or any(group.runnable for group in self._groups.values())

    def submit(self, start: TrialStart) -> None:
        """Take a trial on, after those already there."""
        if start.spec.get("kind") == "loop":
            self._user_loops.submit(start)
        else:
            self._first_failures.expect(start)
            self._waiting.extend(self._folds.split(start))

    def stop(self, run: RunId, mode: StopMode) -> None:
        """Stop a run at its next step; of one that has ended meanwhile nothing is left to stop."""
        self._stops |= dict.fromkeys(self._folds.runs_of(run), mode)

    def allow(self, run: RunId, step: int) -> None:
        """Let a prunable trial go on after this step: the pruner has seen its report."""
        for each in self._folds.runs_of(run):
            if each in self._runs:
                taken = self._runs[each]
                taken.allowed_step = max(taken.allowed_step, step)
        self._user_loops.allow(run, step)

    def forget_results(self, study: int) -> None:
        """A result of this study was not counted: rank its models anew."""
        self._keeper.forget(study)

    def probe(self, study: int, specs: Sequence[dict[str, Any]]) -> None:
        """Find out with these trials whether any of the study can be trained."""
        self._first_failures.answer(study, specs)

    def advance(self) -> list[Event]:
        """Do what was asked, then give one group its turn.

        Raises:
            DeviceLostError: The device is gone, and with it every trial on board; `last_words` is
                what happened before, and `turn` whose turn it was.
        """
        events = self._events = self._apply_stops()
        events += self._user_loops.advance()
        self._admit(events)
        group = self._next()
        if group is not None:
            self._at_work = group
            events += self._guarded(group, group.turn)
            self._at_work = None
            self._move(group.strays(), group)
        self._forget_idle_groups()
        return [*self._first_failures.pass_on(self._joined(events)), *self._first_failures.turn()]

    def last_words(self) -> list[Event]:
        """Return what happened in the call in which the device was lost, and before that."""
        told = self._ended(self._at_work.drain()) if self._at_work is not None else []
        events = self._joined([*self._events, *told])
        return [*self._first_failures.pass_on(events), *self._first_failures.release()]

    def shutdown(self) -> list[Event]:
        """Checkpoint every trial on board and stop it."""
        # As a stop, not as an end of its own: one way out, whatever a run is at.
        for run in [*(start.run for start in self._waiting), *self._runs]:
            self._stops[run] = "checkpoint"
        self._events = self._apply_stops()
        events = [*self._joined(self._events), *self._user_loops.shutdown()]
        return [*self._first_failures.pass_on(events), *self._first_failures.release()]

    def _joined(self, events: list[Event]) -> list[Event]:
        joined, stops = self._folds.join(events)
        self._stops |= dict.fromkeys(stops, "cancel")
        return joined

    # -- coming in --------------------------------------------------------------------------

    def _admissible(self) -> bool:
        if not self._waiting:
            return False
        first = self._waiting[0]
        return self._on_board.admits(self._folds.trial_of(first.run), exclusive=first.exclusive)

    def _admit(self, events: list[Event]) -> None:
        while self._admissible():
            start = self._waiting.popleft()
            self._preparing = start.run
            try:
                with self._process_state.restored():
                    run = self._prepare(start)
            except BaseException as error:  # noqa: BLE001  one trial's fault, not ours
                require_device(self._device, error)
                self._preparing = None
                # Once with all the memory there is, before it is the trial's fault.
                if is_out_of_memory(error) and self._make_room():
                    self._waiting.appendleft(start)
                    continue
                failure = failure_of(error, 0)
                events.append(Failed(run=start.run, failure=failure))
                with printing_to(start.log):
                    sys.stderr.write(failure.traceback or "")
                continue
            self._preparing = None
            self._runs[run.id] = run
            trial = self._folds.trial_of(run.id)
            self._on_board.add(run.id, trial, exclusive=start.exclusive)
            self._group_trainer(run).queue.append(run)

    def _prepare(self, start: TrialStart) -> TrialRun:
        with printing_to(start.log):
            prepared = self._prepared(TrialSpec.model_validate(start.spec))
            spec, data = prepared.spec, prepared.data
            count = self._parameter_count(spec, data.shape, data.outputs)
        run = TrialRun(
            start=start,
            spec=spec,
            data=data,
            group=prepared.group,
            hyper=hyper_of(spec),
            metrics=prepared.metrics,
            parameter_count=count,
            checkpointed_at=self._clock(),
        )
        if start.resume is not None:
            resume(run)
        return run

    def _prepared(self, spec: TrialSpec) -> Prepared:
        return prepare_trial(
            spec,
            cache=self._data,
            user_module=self._modules,
            device=self._device,
            group_network=self._steps.group_network,
        )

    def _trains(self, spec: dict[str, Any], log: str | None) -> bool | None:
        """Whether one batch of the trial can be trained; None while others take the memory."""
        try:
            with self._process_state.restored(), printing_to(log):
                sys.stderr.write("One batch of another point of the search space:\n")
                train_one_batch(self._prepared(TrialSpec.model_validate(spec)))
        except BaseException as error:  # noqa: BLE001  as in `_admit`
            require_device(self._device, error)
            failure = failure_of(error, 0)
        else:
            return True
        full = failure.kind == "out_of_memory"
        if full and self._make_room():
            return self._trains(spec, log)
        with printing_to(log):
            sys.stderr.write(f"{failure.message}\n")
        return None if full and self._crowded() else False

    def _make_room(self) -> bool:
        """Let go of what is only kept warm: groups without trials, and data of no trial."""
        idle = [key for key, group in self._groups.items() if not group.runs]
        for key in idle:
            del self._groups[key]
        gc.collect()  # steps and their compiled graphs refer to themselves
        let_go = self._data.let_go()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        return bool(idle) or let_go

    def _crowded(self, run: RunId | None = None) -> bool:
        """Whether any trial but this one takes memory."""
        trials = {self._folds.trial_of(key) for key in self._runs} - {run}
        return bool(trials) or not self._user_loops.idle

    def _parameter_count(self, spec: TrialSpec, shape: tuple[int, ...], outputs: int) -> int:
        key = repr((sorted(spec.network.items()), shape, outputs))
        if key not in self._counts:
            # Shapes only, nothing is allocated; but a user's code may not bear it.
            with torch.device("cpu" if user_modules.is_user_module(spec.network) else "meta"):
                module = networks.build(spec.network, inputs=shape, outputs=outputs)
            if len(self._counts) > 1000:
                self._counts.clear()
            self._counts[key] = sum(parameter.numel() for parameter in module.parameters())
        return self._counts[key]

    def _group_trainer(self, run: TrialRun) -> GroupTrainer:
        key = (run.group.key, run.progress.position)
        if key not in self._groups:
            self._groups[key] = GroupTrainer(
                run.group,
                self._steps,
                keeper=self._keeper,
                checkpoint_seconds=self._settings.checkpoint_seconds,
                make_room=self._make_room,
                position=run.progress.position,
                clock=self._clock,
            )
        return self._groups[key]

    # -- turns ------------------------------------------------------------------------------

    def _next(self) -> GroupTrainer | None:
        """Return the group whose turn it is, and put it last in the row."""
        active = [group for group in self._groups.values() if group.active]
        room = len(active) < self._settings.max_groups
        for key, group in self._groups.items():
            if group.runnable and (group.active or room or self._is_owed_a_turn(group, active)):
                self._groups.move_to_end(key)
                return group
        return None

    def _is_owed_a_turn(self, group: GroupTrainer, active: Sequence[GroupTrainer]) -> bool:
        """Whether a group must begin although as many as may are active."""
        served = {run.study for one in active for run in one.runs}
        if not served.issuperset(run.study for run in group.runs):
            return True  # no group of its study is active: a study must not wait for another's end
        # The pruner sees a trial when all its folds have reported: they must all get under way.
        begun = {self._folds.trial_of(run.id) for one in active for run in one.runs}
        folds = (run for run in group.runs if run.id < 0)
        return any(self._folds.trial_of(run.id) in begun for run in folds)

    def _move(self, strays: list[TrialRun], origin: GroupTrainer) -> None:
        """Bring runs to the group of their position in the epoch; a lowered limit goes along."""
        for run in reversed(strays):  # each to the front: the order among them stays
            group = self._group_trainer(run)
            group.limit, group.limit_reason = origin.limit, origin.limit_reason
            group.queue.appendleft(run)

    def _forget_idle_groups(self) -> None:
        idle = [key for key, group in self._groups.items() if not group.runs]
        for key in idle[: max(0, len(idle) - IDLE_GROUPS)]:
            del self._groups[key]

    # -- stops ------------------------------------------------------------------------------

    def _apply_stops(self) -> list[Event]:
        stops, self._stops = self._stops, {}
        if not stops:
            return []
        events = self._events = list[Event]()
        for start in [start for start in self._waiting if start.run in stops]:
            self._waiting.remove(start)
            events.append(Stopped(run=start.run, mode=stops[start.run]))
        for key, mode in stops.items():
            if key in self._runs:
                self._runs[key].stop = mode
            else:
                events += self._user_loops.stop(key, mode)
        for group in self._groups.values():
            self._at_work = group
            events += self._guarded(group, group.apply_stops)
        self._at_work = None
        return events

    def _guarded(self, group: GroupTrainer, act: Callable[[], list[Event]]) -> list[Event]:
        """Have a group do something; what its code may not do is its runs' failure."""
        runs, events = group.runs, list[Event]()
        try:
            with self._process_state.restored():
                events = act()
        except PatchedTorchError as error:
            if not user_modules.is_user_module(group.spec.network):
                end_patched(error)  # by a thread of some module's: this group's results are off
            events = group.refuse(runs, events, error)
        return self._ended(events)

    def _ended(self, events: list[Event]) -> list[Event]:
        """Let go of the runs that these events end."""
        for event in events:
            if isinstance(event, RunEnd):
                self._runs.pop(event.run, None)
                self._on_board.remove(event.run)
        return events
