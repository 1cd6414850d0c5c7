"""Which backend runs a group, and with how many lanes.

native      small networks on a CPU, in our own C++: no compilation per group (native/)
compiled    inductor's code; a child process compiles it, the traced graph runs until then
traced      the same step function, operation by operation
plain       one trial after another, autograd and torch.optim

A backend is trusted only after a probe: a few steps from the same state on both it and the plain
step must end in the same weights, and cost less than the trials there are cost one after another.
What fails is not tried again for that group; the reason goes into the trial's record. On a CPU a
fused step is also timed as it trains: one that turns out slower than plain is left within seconds.
What was measured is kept (speeds.py).
"""

import dataclasses
import gc
import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from workers.training.nets import networks
from workers.training.steps import lane_budget
from workers.training.steps.fused.background import Precompiler
from workers.training.steps.fused.executors import (
    Compiled,
    CompileInBackground,
    Traced,
    missing_tool,
)
from workers.training.steps.fused.padding import bucketed
from workers.training.steps.fused.recipe import recipe_of
from workers.training.steps.fused.step import Executor, FusedStep
from workers.training.steps.groups import GroupSpec, mixes_networks, structure
from workers.training.steps.native import backend as native
from workers.training.steps.patience import TracingPatience
from workers.training.steps.plain import PlainStep
from workers.training.steps.probe import compare, probe
from workers.training.steps.speeds import COMPILED, PLAIN, TRACED, Speeds
from workers.training.steps.step import TrainStep
from workers.training.trials.failures import is_out_of_memory, require_device

logger = logging.getLogger(__name__)

MEMORY_SECONDS = 60.0  # after which a group that found no memory for a probe is probed again
IDLE_EPOCHS = 8  # in which a quarter of the lanes had been enough, before a group shrinks
SLOWER = 1.25  # times plain, before a fused step is left: less may be the load of the machine
MOST_TRIES = 2  # of fused steps that turned out slower
COMPILING = "faster plain until the fused step is compiled in the background"
STREAMED = "the data is streamed: it does not fit the device beside the networks"


@dataclass(slots=True)
class FusionDecision:
    """What is known of a group: whether fusing works and pays, how, and its sizes.

    Attributes:
        doubles: Whether every power of two up to `full` is a size, not only `small` and `full`.
        probed: Lanes with which it was found not to pay; 0: it pays, or never will.
        until: When the decision is to be sought again.
        now: Lanes that the group has.
        idle: How often in a row it was asked for so few that most lanes would idle.
        stays: Why the trials there are now are faster plain, although fusing works; or None.
        executor: Of the step that was last made; it may be compiling.
        undone: How often a fused step was left because it was slower than plain.
    """

    refusal: str | None
    small: int = 1
    full: int = 1
    native: bool = False
    doubles: bool = False
    probed: int = 0
    until: float = math.inf
    now: int = 0
    idle: int = 0
    stays: str | None = None
    executor: Executor | None = None
    undone: int = 0

    def fitting(self, wanted: int) -> int:
        """Return the size for so many trials."""
        if self.doubles:
            return min(self.full, 1 << max(0, wanted - 1).bit_length())
        return self.full if wanted > self.small else self.small

    def lanes_for(self, wanted: int) -> int:
        """Return the group's size from now on; it seldom goes down, which costs a step function."""
        fitting = self.fitting(wanted)
        self.idle = self.idle + 1 if self.doubles and fitting * 4 <= self.now else 0
        shrinks = self.idle > IDLE_EPOCHS
        self.now = fitting if shrinks else max(self.now, fitting)
        return self.now


class BackendSelector:
    """Makes the step of every group; one per trainer.

    Args:
        device: Where the groups train.
        cache: Where the native library and measured speeds are kept; None goes without.
        compile: Whether to go beyond the traced graph.
        background: Compile in a child process; else where it stands.
        probe: Whether to compare with the plain step first.
        patience_seconds: How long a group that must be traced trains plain first: tracing takes
            seconds, in which the few short trials of a small study are done. On a CPU one by itself
            trains plain for good. 0: all are traced at once.
    """

    def __init__(
        self,
        device: torch.device,
        *,
        cache: Path | None = None,
        compile: bool = True,
        background: bool = True,
        probe: bool = True,
        patience_seconds: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._compile = compile
        self._background = background
        self._probe = probe
        self._precompiler = Precompiler()
        self._clock = clock
        self._patience = TracingPatience(patience_seconds, clock)
        self._decisions: dict[str, FusionDecision] = {}
        self._speeds = Speeds(cache)
        self._native: native.NativeBackend | None = None
        if cache is not None and device.type == "cpu":
            self._native = native.load(cache, probe=probe)

    def group_network(self, network: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return what a network's group has in common.

        Never the dropout rate, or a user's `per_trial` options. Widths are raised to their buckets.
        Native code takes lanes of different networks, so that there only the type is left.
        """
        if self._native is not None and self._native.mixes(network):
            return native.mixed_network(network)
        return bucketed(structure(network))

    def lanes_for(self, group: GroupSpec, wanted: int) -> int:
        """Return the group's size for `wanted` trials, and 1 where it is not fused."""
        if self._waits(group, wanted):
            return 1
        decision = self._decision(group, wanted)
        if decision.refusal is not None:
            return 1
        lanes = max(decision.now, decision.fitting(wanted))
        decision.stays = self._plain_for(group, decision, lanes, wanted)
        fewer = decision.fitting(wanted)
        if decision.stays is not None and self._speeds.seconds(group, COMPILED, fewer) is not None:
            decision.now = fewer  # what is compiled may pay yet; the last few compile nothing anew
            decision.stays = self._plain_for(group, decision, fewer, wanted)
        return 1 if decision.stays is not None else decision.lanes_for(wanted)

    def make_step(self, group: GroupSpec, lanes: int) -> TrainStep:
        """Return a step with this many lanes on the fastest backend that can be had."""
        if lanes == 1 and self._patience.lends and self._is_undecided(group):
            return self._patience.lend(group)
        decision = self._decision(group, lanes)
        refusal = decision.refusal or decision.stays
        if refusal is not None and lanes == 1:
            return PlainStep(group, refusal)
        if decision.native and self._native is not None:
            return self._native.make_step(group, lanes)
        decision.executor = self._executor(group, lanes)
        return FusedStep(group, lanes, decision.executor)

    def measured(self, group: GroupSpec, step: TrainStep, trials: int, seconds: float) -> bool:
        """Hear what an optimizer step took with so many trials; return whether to go on with it.

        A fused step that turns out slower than the plain one, trial after trial, is left: until it
        is compiled if that is under way, else for as long as there are no more trials.
        """
        decision = self._decisions.get(group.key)
        settled = decision is not None and (decision.refusal is not None or decision.native)
        if not self._probe or settled or not _is_judged(group, step):
            return True
        self._speeds.note(group, step.backend, step.lanes, seconds)
        plain = self._speeds.seconds(group, PLAIN, 1)
        if decision is None or step.backend == PLAIN or plain is None:
            return True
        if seconds <= SLOWER * trials * plain:
            return True
        decision.undone += 1
        return False

    def _plain_for(
        self, group: GroupSpec, decision: FusionDecision, lanes: int, trials: int
    ) -> str | None:
        """Return why so many trials are faster plain for now, though fusing works; or None."""
        if not self._probe or decision.native or group.device.type != "cpu":
            return None
        if decision.undone > MOST_TRIES:
            return f"fusing was slower than the plain step {decision.undone} times"
        if decision.undone and isinstance(decision.executor, CompileInBackground):
            job = decision.executor.job
            if job is not None and not job.done:
                return COMPILING
            if self._speeds.seconds(group, COMPILED, lanes) is None and (
                decision.executor.backend == COMPILED or (job is not None and job.failure is None)
            ):
                return None  # the compiled code is there, and not measured yet
        hoped = self._compile and self._background and missing_tool(group.device) is None
        # Once the fused step was seen running, what was hoped of it is worth nothing.
        return self._speeds.refusal(group, lanes, trials, compiles=hoped and not decision.undone)

    def capacity(self, device: torch.device) -> int:
        """Return how many trials a trainer can usefully hold: a group at work, one to follow."""
        return lane_budget.capacity(device)

    def close(self) -> None:
        """End the compiling child processes."""
        self._precompiler.close()

    def _executor(self, group: GroupSpec, lanes: int) -> Executor:
        if not self._compile:
            return Traced("compiling is switched off")
        missing = missing_tool(group.device)
        if missing is not None:
            return Traced(missing)
        if not self._background:
            return Compiled()
        return CompileInBackground(
            self._precompiler, lambda function: recipe_of(group, lanes, function).key
        )

    def _decision(self, group: GroupSpec, wanted: int) -> FusionDecision:
        known = self._decisions.get(group.key)
        # What does not pay for few trials may for many.
        holds = known is not None and (not known.probed or wanted <= 2 * known.probed)
        if known is not None and holds and self._clock() < known.until:
            return known
        decision = self._decisions[group.key] = self._decide(group, wanted)
        self._patience.decided(group, decision.refusal)
        return decision

    def _waits(self, group: GroupSpec, wanted: int) -> bool:
        """Whether the group is to train plain for a while yet, before a decision is sought.

        One trial by itself always, on a CPU: it has nobody to share the cost of tracing with.
        """
        if not self._patience.lends or not self._is_undecided(group):
            return False
        holds = self._patience.holds(group)  # asked first: it counts from a group's first coming
        return holds or (wanted == 1 and group.device.type == "cpu")

    def _is_undecided(self, group: GroupSpec) -> bool:
        """Whether only tracing the group could tell whether fusing it pays."""
        if group.key in self._decisions or _declared(group) is not None:
            return False
        if self._native is not None and (
            self._native.takes(group) or mixes_networks(group.network)
        ):
            return False  # nothing to trace
        return _untraceable(group) is None

    def _decide(self, group: GroupSpec, wanted: int) -> FusionDecision:
        """Find out whether fusing the group works and pays."""
        refusal = _declared(group)
        if refusal is not None:
            return FusionDecision(refusal)
        try:
            return self._natively(group) or self._fused(group, wanted)
        except Exception as error:  # a user's module may fail under vmap in any way
            require_device(group.device, error)
            logger.info("group %s runs plain", group.key, exc_info=True)
            first = str(error).strip().split("\n")[0]
            until = self._clock() + MEMORY_SECONDS if is_out_of_memory(error) else math.inf
            return FusionDecision(
                f"cannot be fused: {type(error).__name__}: {first}"[:300], until=until
            )

    def _natively(self, group: GroupSpec) -> FusionDecision | None:
        """Return the decision of a group that runs natively; None where it cannot."""
        if self._native is None:
            return None
        refusal = self._native.refusal(group)
        if refusal is None:
            # Two sizes although nothing is compiled: each lane holds an order of rows, idle or not.
            small, full = lane_budget.native_sizes(group)
            return FusionDecision(None, small, full, native=True)
        # Nothing else takes lanes of different networks.
        return FusionDecision(refusal) if mixes_networks(group.network) else None

    def _fused(self, group: GroupSpec, wanted: int) -> FusionDecision:
        untraceable = _untraceable(group) or _unbatched(group)
        if untraceable is not None:
            return FusionDecision(untraceable)
        small, full = lane_budget.group_sizes(group)
        decision = FusionDecision(None, small, full, doubles=group.device.type == "cuda")
        if self._probe and decision.doubles:
            self._compare(group, decision, wanted)
        elif self._probe:
            decision.refusal = self._plain_for(group, decision, decision.fitting(wanted), wanted)
            decision.probed = 0 if decision.refusal is None else wanted  # as it was measured before
            if decision.refusal is None:
                self._measure(group, decision, wanted)
        return decision

    def _measure(self, group: GroupSpec, decision: FusionDecision, wanted: int) -> None:
        """Probe the step that so many trials would have, and note what either step takes."""
        # An optimizer with its own update is probed as SGD: it is the network that may not fuse.
        probed, lanes = dataclasses.replace(group, optimizer=None), decision.fitting(wanted)
        found = compare(probed, FusedStep(probed, lanes, Traced()))
        decision.refusal = found.unfaithful
        self._speeds.note(group, PLAIN, 1, found.plain_seconds)
        self._speeds.note(group, TRACED, lanes, found.fused_seconds)

    def _compare(self, group: GroupSpec, decision: FusionDecision, wanted: int) -> None:
        """Probe the group's step, with fewer lanes where memory runs out, and note what it says."""
        probed = dataclasses.replace(group, optimizer=None)  # as `_measure`
        while True:
            lanes = decision.fitting(wanted) if decision.doubles else decision.full
            try:
                decision.refusal = probe(probed, FusedStep(probed, lanes, Traced()))
            except Exception as error:
                if not (is_out_of_memory(error) and decision.doubles and lanes > 1):
                    raise
            else:
                break
            decision.full = lanes // 2
            gc.collect()  # the step that did not fit
            torch.cuda.empty_cache()
        decision.probed = lanes if decision.doubles and decision.refusal is not None else 0


def _is_judged(group: GroupSpec, step: TrainStep) -> bool:
    """Whether the step's speed says anything of the group's fused or plain steps."""
    kind = isinstance(step, FusedStep | PlainStep)
    return group.device.type == "cpu" and kind and not mixes_networks(group.network)


def _declared(group: GroupSpec) -> str | None:
    """Return why the group wants no fusing, or its network declares that it cannot be; or None."""
    if not group.fuse:
        return group.fuse_reason
    if group.streamed and group.device.type != "cpu":
        return STREAMED
    family = networks.NETWORKS.get(str(group.network["type"]))
    if family is not None and not family.fusible:
        return family.reason or f"network {group.network['type']} cannot be fused"
    return None


def _untraceable(group: GroupSpec) -> str | None:
    """Return why vmap is not to take the network on rows of this shape; native code may."""
    family = networks.NETWORKS.get(str(group.network["type"]))
    return family.refuses(group.inputs) if family is not None else None


def _unbatched(group: GroupSpec) -> str | None:
    """Return why a network is not to be tried: torch has no rule to run its layers for many lanes.

    To find that out by tracing takes seconds, and ends in the plain step.
    """
    module = networks.build(group.network, inputs=group.inputs, outputs=group.outputs)
    for part in module.modules():
        if isinstance(part, nn.RNNBase):
            return f"torch trains a {type(part).__name__} layer for one trial at a time only"
    return None
