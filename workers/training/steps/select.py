"""Which backend runs a group, and with how many lanes.

native      small networks on a CPU, in our own C++: no compilation per group (native/)
compiled    inductor's code; a child process compiles it, the traced graph runs until then
traced      the same program, operation by operation
plain       one trial after another, autograd and torch.optim

A backend is trusted only after a probe: a few steps from the same state on both it and the plain
step must end in the same weights, and cost less per lane. What fails is not tried again for that
group; the reason goes into the trial's record.
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
from workers.training.steps.groups import GroupSpec, mixes_networks, without_dropout
from workers.training.steps.native import backend as native
from workers.training.steps.patience import TracingPatience
from workers.training.steps.plain import PlainStep
from workers.training.steps.probe import probe
from workers.training.steps.step import TrainStep
from workers.training.trials.failures import is_out_of_memory, require_device

logger = logging.getLogger(__name__)

MEMORY_SECONDS = 60.0  # after which a group that found no memory for a probe is probed again
IDLE_EPOCHS = 8  # in which a quarter of the lanes had been enough, before a group shrinks
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

    def fitting(self, wanted: int) -> int:
        """Return the size for so many trials."""
        if self.doubles:
            return min(self.full, 1 << max(0, wanted - 1).bit_length())
        return self.full if wanted > self.small else self.small

    def lanes_for(self, wanted: int) -> int:
        """Return the group's size from now on; it seldom goes down, which costs a program."""
        fitting = self.fitting(wanted)
        self.idle = self.idle + 1 if self.doubles and fitting * 4 <= self.now else 0
        shrinks = self.idle > IDLE_EPOCHS
        self.now = fitting if shrinks else max(self.now, fitting)
        return self.now


class BackendSelector:
    """Makes the step of every group; one per trainer.

    Args:
        device: Where the groups train.
        cache: Where the native library is kept; None goes without it.
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
        self._native: native.NativeBackend | None = None
        if cache is not None and device.type == "cpu":
            self._native = native.load(cache, probe=probe)

    def group_network(self, network: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return what a network's group has in common.

        Never the dropout rate. Widths are raised to their buckets. Native code takes lanes of
        different networks, so that there only the type is left.
        """
        if self._native is not None and self._native.mixes(network):
            return native.mixed_network(network)
        return bucketed(without_dropout(network))

    def lanes_for(self, group: GroupSpec, wanted: int) -> int:
        """Return the group's size for `wanted` trials, and 1 where it is not fused."""
        if self._waits(group, wanted):
            return 1
        decision = self._decision(group, wanted)
        return 1 if decision.refusal is not None else decision.lanes_for(wanted)

    def make_step(self, group: GroupSpec, lanes: int) -> TrainStep:
        """Return a step with this many lanes on the fastest backend that can be had."""
        if lanes == 1 and self._patience.lends and self._is_undecided(group):
            return self._patience.lend(group)
        decision = self._decision(group, lanes)
        if decision.refusal is not None and lanes == 1:
            return PlainStep(group, decision.refusal)
        if decision.native and self._native is not None:
            return self._native.make_step(group, lanes)
        return FusedStep(group, lanes, self._executor(group, lanes))

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
            self._precompiler, lambda program: recipe_of(group, lanes, program).key
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
        untraceable = _untraceable(group)
        if untraceable is not None:
            return FusionDecision(untraceable)
        small, full = lane_budget.group_sizes(group)
        decision = FusionDecision(None, small, full, doubles=group.device.type == "cuda")
        if self._probe:
            self._compare(group, decision, wanted)
        return decision

    def _compare(self, group: GroupSpec, decision: FusionDecision, wanted: int) -> None:
        """Probe the group's step, with fewer lanes where memory runs out, and note what it says."""
        # An optimizer with its own update is probed as SGD: it is the network that may not fuse.
        probed = dataclasses.replace(group, optimizer=None)
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
