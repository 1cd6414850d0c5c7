"""The epoch loop of one group: lanes filled from a queue, trained, evaluated, reported, refilled.

    K   lanes of the present step
    S   optimizer steps per epoch
    n   training rows

All lanes start each epoch together, each at its own epoch of its own trial. A long epoch is trained
in slices, so that a stop is heard within about `SLICE_SECONDS`. The loop drives either step alike:
what kind of step it has, and how wide, the `StepFactory` decide.
"""

import logging
import math
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tuner_service.json_values import finite
from workers.protocol.messages import (
    Checkpointed,
    Event,
    Failed,
    Finished,
    Reported,
    RunEnd,
    RunFailure,
    Started,
    Stopped,
)
from workers.training.engine.lanes import Lanes
from workers.training.engine.scorer import EndScorer
from workers.training.nets.randomness import epoch_orders
from workers.training.steps.factory import StepFactory
from workers.training.steps.groups import GroupSpec
from workers.training.steps.plain import PlainStep
from workers.training.steps.step import LaneState
from workers.training.trials.best_models import ModelKeeper
from workers.training.trials.evaluation import measure, select_lanes
from workers.training.trials.failures import (
    diverged,
    failure_of,
    is_out_of_memory,
    require_device,
)
from workers.training.trials.log import printing_to
from workers.training.trials.records import epoch_record, final_record, objective_values
from workers.training.trials.runs import TrialRun, save_checkpoint

logger = logging.getLogger(__name__)

SLICE_SECONDS = 0.25
JUDGED_SLICES = 3  # of a step before its speed is believed
FIRST_STEPS = 32  # of a group's first slice, whose speed is not known yet


class GroupTrainer:
    """One group's trials: those waiting in `queue` and those in lanes.

    Args:
        make_room: Lets go of memory that no trial needs; returns whether there was any.
        position: Step within the epoch at which its runs come in; beyond 0 for runs that continue
            inside an epoch, which keep to themselves until it ends.
        checkpoint_seconds: How often a run's checkpoint is written.
    """

    def __init__(
        self,
        spec: GroupSpec,
        steps: StepFactory,
        *,
        keeper: ModelKeeper,
        checkpoint_seconds: float,
        make_room: Callable[[], bool],
        position: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.spec = spec
        self.queue: deque[TrialRun] = deque()
        self.limit: int | None = None  # lanes, after memory ran out or a step broke
        self.limit_reason: str | None = None
        self._steps = steps
        self._keeper = keeper
        self._end_scorer = EndScorer(spec)
        self._checkpoint_seconds = checkpoint_seconds
        self._make_room = make_room
        self._clock = clock
        self._entry = position
        self._position = position
        self._lanes: Lanes | None = None
        self._going: list[int] = []  # lanes that train in the present epoch; empty between epochs
        self._orders: Tensor  # [K, n] of the present epoch
        self._learning_rates: Tensor  # [K, S]
        self._tried = 0  # lanes of the step that was last made, or tried to make
        self._step_seconds: float | None = None
        self._paces: list[float] = []  # seconds per step of the slices on the present backend
        self._events: list[Event] = []

    @property
    def runs(self) -> list[TrialRun]:
        """Every run, those in lanes first."""
        return [*(self._lanes.runs if self._lanes else ()), *self.queue]

    @property
    def at_work(self) -> list[TrialRun]:
        """The runs in lanes; before there are any, those for which lanes are made."""
        return self._lanes.runs if self.active and self._lanes else list(self.queue)

    @property
    def active(self) -> bool:
        """Whether any run is in a lane."""
        return self._lanes is not None and bool(self._lanes.runs)

    @property
    def runnable(self) -> bool:
        """Whether a turn would train anything."""
        if self._lanes is None:
            return bool(self.queue)
        going_on = any(not run.waiting for run in self._lanes.runs)
        return going_on or (bool(self.queue) and not self._lanes.full)

    def turn(self) -> list[Event]:
        """Train one slice of an epoch, and end the epoch when that was the last."""
        with printing_to(self._log()):
            try:
                self._turn()
            except BaseException as error:  # noqa: BLE001  its code may raise anything
                self._break(error)
        return self.drain()

    def _log(self) -> str | None:
        """Return the log of the run that is alone in this turn; None where several share it."""
        runs = self.runs
        one_lane = self._lanes is not None and self._lanes.step.lanes == 1
        return runs[0].start.log if runs and (len(runs) == 1 or one_lane) else None

    def apply_stops(self) -> list[Event]:
        """End every run that was asked to stop; between slices."""
        for run in [run for run in self.queue if run.stop]:
            self.queue.remove(run)
            self._stop_queued(run)
        for lane, run in self._lanes or ():
            if run.stop:
                self._stop_in_lane(lane, run)
        return self.drain()

    def refuse(
        self, runs: Sequence[TrialRun], events: list[Event], error: Exception
    ) -> list[Event]:
        """Fail the runs of a turn that counts for nothing, and return its events without results.

        Args:
            runs: All of the group before the turn.
            events: What came of it.
        """
        kept = [event for event in events if not isinstance(event, Reported | Finished)]
        ended = {event.run for event in kept if isinstance(event, RunEnd)}
        at_work = {run.id for run in (self._lanes.runs if self._lanes else ())}
        at_work |= {event.run for event in events}
        for run in runs:
            if run.id in at_work - ended:
                self._emit_failed(run, failure_of(error, run.progress.epoch + 1))
        self.queue = deque(run for run in self.queue if run.id not in at_work)
        self._lanes, self._going, self._tried = None, [], 0
        return kept + self.drain()

    def strays(self) -> list[TrialRun]:
        """Take out the runs that stand elsewhere in their epoch than runs come in here."""
        if self._lanes is not None and not self._going:
            for lane, run in self._lanes:
                if run.progress.position != self._entry:
                    self._lanes.unload(lane)
                    self._lanes.release(lane)
                    self.queue.append(run)
        strays = [run for run in self.queue if run.progress.position != self._entry]
        for run in strays:
            self.queue.remove(run)
        return strays

    # One turn ------------------------------------------------------------------------------

    def _turn(self) -> None:
        lanes = self._lanes
        if lanes is None or not self._going:
            lanes = self._fill_lanes()
            self._begin_epoch(lanes)
        if self._going and self._position < self.spec.steps:
            self._train_slice(lanes)
        goes_on = self._pays(lanes)
        if self._going and self._position >= self.spec.steps:
            self._end_epoch(lanes)
        elif self._going and not goes_on:
            self._leave_step(lanes)
            return
        self._write_due_checkpoints(lanes)

    def _fill_lanes(self) -> Lanes:
        """Give queued runs the free lanes, of a step of the right width."""
        lanes = self._lanes
        taken = len(lanes.runs) if lanes else 0
        # Asked anew each epoch: a queue that grew may pay for a wider step.
        width = self._steps.lanes_for(self.spec, taken + len(self.queue))
        if self.limit is not None:
            width = min(width, self.limit)
        if lanes is not None and width == 1 < taken:  # plain is faster: one after another from here
            self._leave_step(lanes)
            lanes = None
        if lanes is None or (width != lanes.step.lanes and width >= taken):
            lanes = self._move_to_new_step(width)
        while self.queue and not lanes.full:
            lanes.assign(self.queue.popleft())
        return lanes

    def _move_to_new_step(self, width: int) -> Lanes:
        runs: list[TrialRun] = []
        if self._lanes is not None:
            for lane, _ in self._lanes:
                self._lanes.unload(lane)
            runs = self._lanes.runs
            # The old step's memory goes before the new one's comes; until then the runs queue.
            self._lanes = None
            self.queue.extendleft(reversed(runs))
        self._tried = width
        forced = self.limit == 1
        step = (
            PlainStep(self.spec, self.limit_reason)
            if forced
            else self._steps.make_step(self.spec, width)
        )
        for _ in runs:
            self.queue.popleft()
        self._lanes = Lanes(step, runs)
        self._paces = []
        return self._lanes

    def _leave_step(self, lanes: Lanes) -> None:
        """Put the runs back in the queue with what they reached, also inside an epoch."""
        self._requeue(lanes)
        self._lanes, self._going, self._tried = None, [], 0

    def _begin_epoch(self, lanes: Lanes) -> None:
        # Runs may come in with nothing left to train: resumed at their last epoch.
        done = [lane for lane, run in lanes if run.done and not run.progress.position]
        for lane in done:
            self._load(lanes, lane)
        self._finish(lanes, done)
        self._position = self._entry
        # Those who wait for the pruner keep their lane but not their place in the step: the step
        # trains whatever is loaded.
        going = [lane for lane, run in lanes if not run.waiting]
        for lane, _ in lanes:
            if lane in going:
                self._load(lanes, lane)
            else:
                lanes.unload(lane)
        self._orders = self._draw_orders(lanes)
        still = torch.zeros(self.spec.steps, dtype=torch.float64)
        self._learning_rates = torch.stack(
            [
                run.learning_rates() if run and lane in going else still
                for lane, run in enumerate(lanes.lanes)
            ]
        )
        self._going = going

    def _draw_orders(self, lanes: Lanes) -> Tensor:
        """Return the [K, n] row orders of each lane's own epoch; an empty lane has none drawn."""
        device = self.spec.device
        seeds = torch.tensor([run.spec.seed for run in lanes.runs], device=device)
        epochs = torch.tensor([run.progress.epoch for run in lanes.runs], device=device)
        # By (seed, epoch) alone: a trial sees its rows in this order in whatever lane or group.
        orders = epoch_orders(seeds, epochs, self.spec.rows)  # [runs, n]
        if lanes.full:
            return orders
        every = torch.zeros(len(lanes.lanes), self.spec.rows, dtype=torch.int64, device=device)
        every[torch.tensor([lane for lane, _ in lanes], device=device)] = orders
        return every

    def _load(self, lanes: Lanes, lane: int) -> None:
        lanes.load(lane)
        run = lanes[lane]
        if not run.started:
            run.started = True
            run.checkpointed_at = self._clock()
            self._events.append(Started(run=run.id, **self._where()))

    def _train_slice(self, lanes: Lanes) -> None:
        size = self.spec.batch_size
        first, last = self._position, self._position + self._slice_steps()
        start, stop = first * size, min(last * size, self.spec.rows)
        begun, backend = self._clock(), lanes.step.backend
        sums = lanes.step.train_epoch(
            self._orders[:, start:stop], self._learning_rates[:, first:last]
        )
        losses = sums.tolist()  # the one wait for the device in a slice
        seconds = self._clock() - begun
        self._step_seconds = seconds / (last - first)
        if lanes.step.backend != backend:  # compiled code was loaded in this slice
            self._paces = []
        self._paces.append(self._step_seconds)
        self._position = last
        share = seconds / len(self._going)  # of device time: K lanes took these seconds together
        for lane in list(self._going):
            run = lanes[lane]
            run.add_slice(loss=losses[lane], rows=stop - start, steps=last - first, seconds=share)
            # Inside the epoch already: a network of NaNs would train on for nothing to its end.
            if not math.isfinite(losses[lane]):
                step = run.progress.epoch + 1
                self._fail(lane, run, diverged("the training loss", losses[lane], step))

    def _pays(self, lanes: Lanes) -> bool:
        """Whether to go on with the step, by the faster of its last two slices.

        The first slice is no measure: a step function is traced in it, caches are cold.
        """
        if self.limit == 1 or not self._going or len(self._paces) < JUDGED_SLICES:
            return True
        seconds = min(self._paces[-2:])
        return self._steps.measured(self.spec, lanes.step, len(self._going), seconds)

    def _slice_steps(self) -> int:
        """Return how many steps take about SLICE_SECONDS; what is left if not much more."""
        left = self.spec.steps - self._position
        # A short first slice measures the step: how long one takes is not known before.
        if self._step_seconds is None:
            return min(left, FIRST_STEPS)
        steps = max(1, int(SLICE_SECONDS / max(self._step_seconds, 1e-9)))
        return left if left <= 2 * steps else steps

    # The end of an epoch -------------------------------------------------------------------

    def _end_epoch(self, lanes: Lanes) -> None:
        begun = self._clock()
        going = self._going
        runs = [lanes[lane] for lane in going]
        measured = self._validated(lanes, runs)
        share = (self._clock() - begun) / len(going)
        self._going = []
        better: list[int] = []
        for lane, run, validation in zip(going, runs, measured, strict=True):
            run.add_seconds(share)
            if self._report(lane, run, validation) and run.keeps_best:
                better.append(lane)
        lanes.remember(better)
        self._finish(lanes, [lane for lane, run in lanes if lane in going and run.done])

    def _validated(self, lanes: Lanes, runs: Sequence[TrialRun]) -> Sequence[Mapping[str, float]]:
        """Return each run's loss and metrics on the validation part, if there is one."""
        part = runs[0].data.validation
        if part is None:
            return [{} for _ in runs]
        # One pass serves all lanes, also those that wait and are not asked: [len(going), R, …].
        outputs = select_lanes(lanes.step.evaluate(part.inputs), self._going)
        metrics = [run.metrics for run in runs]
        return measure(outputs, part, loss=self.spec.loss, metrics=metrics)

    def _report(self, lane: int, run: TrialRun, validation: Mapping[str, float]) -> bool:
        """Record the epoch; return whether it is the run's best. A diverged run leaves its lane."""
        record = epoch_record(run, validation, float(self._learning_rates[lane, -1]))
        values = objective_values(run, record)
        step = run.progress.epoch + 1
        watched = values[0]
        if run.spec.watched != run.spec.objective[0]:
            watched = float(record[run.spec.watched[0]])
        losses = [key for key in ("train_loss", "val_loss") if key in record]
        keys = [*losses, run.spec.watched[0], *(key for key, _ in run.spec.objective)]
        numbers = [*(record[key] for key in losses), watched, *values]
        for key, value in zip(keys, numbers, strict=True):
            if not math.isfinite(value):
                self._fail(lane, run, diverged(key, value, step))
                return False
        better = run.end_epoch(values, watched)
        if step > run.reported:  # what a run reported before it started over is not said again
            run.reported = step
            self._events.append(
                Reported(run=run.id, step=step, value=values[0], record=finite(record))
            )
        return better

    def _finish(self, lanes: Lanes, ended: Sequence[int]) -> None:
        scores = self._end_scorer.score(lanes, ended)
        for lane in ended:
            run = lanes[lane]
            self._events.append(
                Finished(
                    run=run.id,
                    step=run.progress.epoch,
                    values=run.values or [],
                    record=final_record(run, self.spec.device, scores[lane]),
                    model=self._keeper.keep(run, partial(lanes.result, lane)),
                    **self._where(),
                )
            )
            lanes.release(lane)

    # Leaving -------------------------------------------------------------------------------

    def _stop_queued(self, run: TrialRun) -> None:
        scores: dict[str, Any] = {}
        weights = (run.best if run.keeps_best else None) or run.state
        if run.stop == "checkpoint":
            self._save(run, run.state, run.best)
        elif run.stop != "cancel" and run.values is not None:
            scores = self._end_scorer.score_weights(run, weights)
        self._emit_stopped(run, scores, lambda: weights)

    def _stop_in_lane(self, lane: int, run: TrialRun) -> None:
        lanes = self._lanes
        if lanes is None:
            return
        try:
            scores: dict[str, Any] = {}
            if run.stop == "checkpoint":
                self._save(run, lanes.state(lane), lanes.best(lane))
            elif run.stop != "cancel" and run.values is not None:
                scores = self._end_scorer.score(lanes, [lane])[lane]
            self._emit_stopped(run, scores, partial(lanes.result, lane))
            self._release(lane)
        except BaseException as error:  # noqa: BLE001  as in `turn`
            require_device(self.spec.device, error)
            self._fail(lane, run, failure_of(error, run.progress.epoch + 1))

    def _emit_stopped(
        self, run: TrialRun, scores: Mapping[str, Any], weights: Callable[[], LaneState | None]
    ) -> None:
        # A study that runs out of time before any trial ends has its best among these.
        model = self._keeper.keep(run, weights) if run.stop == "timeout" else None
        self._events.append(
            Stopped(
                run=run.id,
                mode=run.stop or "cancel",
                # A checkpoint that was never written has none.
                step=run.saved_step if run.stop == "checkpoint" else run.progress.epoch,
                values=run.values,
                record=final_record(run, self.spec.device, scores),
                model=model,
                **self._where(),
            )
        )

    def _fail(self, lane: int, run: TrialRun, failure: RunFailure) -> None:
        self._emit_failed(run, failure)
        self._release(lane)

    def _emit_failed(self, run: TrialRun, failure: RunFailure) -> None:
        with printing_to(run.start.log):
            sys.stderr.write(failure.traceback or "")
        record = final_record(run, self.spec.device, {})
        self._events.append(Failed(run=run.id, failure=failure, record=record, **self._where()))

    def _release(self, lane: int) -> None:
        if self._lanes is not None:
            self._lanes.release(lane)
        if lane in self._going:
            self._going.remove(lane)

    # Checkpoints ---------------------------------------------------------------------------

    def _write_due_checkpoints(self, lanes: Lanes) -> None:
        now = self._clock()
        for lane, run in lanes:
            if now - run.checkpointed_at >= self._checkpoint_seconds:
                self._save(run, lanes.state(lane), lanes.best(lane))

    def _save(self, run: TrialRun, state: LaneState | None, best: LaneState | None) -> None:
        """Write the run's checkpoint, unless it has done nothing yet; a full disk is survived."""
        run.checkpointed_at = self._clock()
        if state is None or not run.progress.samples:
            return
        try:
            save_checkpoint(run, state, best)
        except OSError as error:
            logger.warning("no checkpoint of run %s: %s", run.id, error)
            return
        self._events.append(Checkpointed(run=run.id, step=run.progress.epoch))

    # When a step breaks --------------------------------------------------------------------

    def _break(self, error: BaseException) -> None:
        """Blame a run that was alone; split a crowd, in which nobody knows who is to blame.

        Raises:
            DeviceLostError: Nobody can train on the device any more.
        """
        require_device(self.spec.device, error)
        lanes = self._lanes
        crowd = max(self._tried, len(lanes.runs) if lanes else 0)
        if is_out_of_memory(error) and self._make_room():  # it says nothing of these trials yet
            if lanes is not None:
                self._requeue(lanes)
        elif crowd > 1:
            # Half the lanes need half the memory; of an error, one lane tells whose it is.
            self.limit = crowd // 2 if is_out_of_memory(error) else 1
            self.limit_reason = f"the fused step failed: {type(error).__name__}: {error}"[:300]
            if lanes is not None:
                self._requeue(lanes)
        else:
            blamed = lanes.runs if lanes else []
            if not blamed and self.queue:
                blamed = [self.queue.popleft()]
            for run in blamed:
                self._emit_failed(run, failure_of(error, run.progress.epoch + 1))
        self._lanes, self._going, self._tried = None, [], 0
        if self.spec.device.type == "cuda":
            torch.cuda.empty_cache()  # what the broken step held, in pieces that fit nobody else

    def _requeue(self, lanes: Lanes) -> None:
        """Put runs in lanes back in the queue with the state they reached, or from the start."""
        for lane, run in reversed(list(lanes)):
            try:
                lanes.unload(lane)
                intact = run.intact
            except BaseException:  # noqa: BLE001  the step is broken: nothing to take
                intact = False
            if not intact:
                run.start_over()
            self.queue.appendleft(run)

    def _where(self) -> dict[str, Any]:
        """Return how runs of this group are trained, as events say it."""
        where: dict[str, Any] = {"group": self.spec.key}
        if self._lanes is not None:
            step = self._lanes.step
            where |= {"backend": step.backend, "backend_reason": step.backend_reason}
        return where

    def drain(self) -> list[Event]:
        """Return what happened since it was last asked."""
        events, self._events = self._events, []
        return events
