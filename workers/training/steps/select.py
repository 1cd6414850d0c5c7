"""Which rung a group runs on, and how many lanes it has.

    native     our own C++ for small networks on a CPU; nothing to compile per group
    compiled   the fused program as inductor's code, on a GPU as a CUDA graph
    traced     the fused program operation by operation, while a child process compiles
    plain      one trial at a time, by autograd and torch.optim

A rung is trusted only after a probe: a few steps from the same state on both the fused and the
plain step must end in the same weights, and cost less per lane. What fails is not tried again for
that group; the reason goes into the trial's record.
"""

import dataclasses
import logging
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tuner_service.definition.catalogue import NATIVE_LIMITS
from workers.training.data.room import free_on_gpu
from workers.training.nets import networks
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
from workers.training.steps.groups import GroupSpec, dtype_of, without_dropout
from workers.training.steps.native import library
from workers.training.steps.native import step as native_step
from workers.training.steps.native.step import NativeStep
from workers.training.steps.plain import PlainStep
from workers.training.steps.step import LaneHyper, LaneState, TrainStep

logger = logging.getLogger(__name__)

CPU_LANES, GPU_LANES = (4, 32), (64, 512)  # fewest and most of a full group
SMALL = 4  # a small group has this fraction of a full one's lanes
CPU_STATE_BYTES = 8 << 20  # weights, gradients and slots beyond this fall out of the caches
GPU_STATE_SHARE = 0.3  # of the free memory
CPU_ACTIVATION_BYTES = 1 << 30  # of all lanes' batches; a trainer's memory has to hold them
GPU_ACTIVATION_SHARE = 0.4  # of the free memory
CPU_ORDER_BYTES = 1 << 30
GPU_ORDER_SHARE = 0.2  # of the free memory
ORDER_BYTES = 32  # of a row's place in an epoch: the number itself, and what it is drawn with
KEPT_ROWS = 2
NATIVE_PROBE_LANES = 2
STREAMED = "the data is streamed: it does not fit the device beside the networks"
EARLY = "trains plain until tracing its network would pay"
STATE_COPIES = 4  # weights, gradients, two slots
PROBE_STEPS = 4
PROBE_ROUNDS = 2
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3}
HALF_TOLERANCE = 5e-2  # bfloat16 and tf32


@dataclass(slots=True)
class FusionDecision:
    """What is known of a group: whether fusing works and pays, how, and its two sizes."""

    refusal: str | None
    small: int = 1
    full: int = 1
    native: bool = False
    now: int = 0


class BackendSelector:
    """Makes the step of every group; one per trainer.

    Args:
        device: Where the groups train.
        cache: Where the native library is kept; None goes without it.
        compile: Whether to go beyond the traced rung.
        background: Compile in a child process; else where it stands.
        probe: Whether to compare with the plain step first.
        patience_seconds: How long a group that must be traced trains plain first: tracing takes
            seconds, in which the few short trials of a small study are done.
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
        self._patience_seconds = patience_seconds
        self._clock = clock
        self._decisions: dict[str, FusionDecision] = {}
        self._seen_at: dict[str, float] = {}  # when each group first came
        # Steps of groups without a verdict yet, as long as somebody else holds them.
        self._early: dict[str, weakref.WeakSet[PlainStep]] = {}
        self._library: Path | None = None
        if cache is not None and device.type == "cpu":
            self._library = _native_library(cache)

    def group_network(self, network: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return what a network's group has in common.

        Never the dropout rate. Widths are raised to their buckets. Native code takes lanes of
        different networks, so that there only the type is left.
        """
        if self._library is None or not (native_step.suits(network) and _moderate(network)):
            return bucketed(without_dropout(network))
        return {"type": network["type"]}

    def lanes_for(self, group: GroupSpec, wanted: int) -> int:
        """Return the group's size for `wanted` trials: one, small or full."""
        if self._is_early(group):
            return 1
        decision = self._decision(group)
        if decision.refusal is not None:
            return 1
        # Going down would mean another compilation for the last few trials of a study.
        decision.now = max(
            decision.now, decision.full if wanted > decision.small else decision.small
        )
        return decision.now

    def make_step(self, group: GroupSpec, lanes: int) -> TrainStep:
        """Return a step with this many lanes on the highest rung that can be had."""
        if lanes == 1 and group.key not in self._decisions and self._patience_seconds > 0:
            step = PlainStep(group, EARLY)
            self._early.setdefault(group.key, weakref.WeakSet()).add(step)
            return step
        decision = self._decision(group)
        if decision.refusal is not None and lanes == 1:
            return PlainStep(group, decision.refusal)
        if decision.native and self._library is not None:
            return NativeStep(group, lanes, self._library)
        return FusedStep(group, lanes, self._runner(group, lanes))

    def capacity(self, device: torch.device) -> int:
        """Return how many trials a trainer can usefully hold: a group at work, one to follow."""
        return 2 * (CPU_LANES[1] if device.type == "cpu" else GPU_LANES[1])

    def close(self) -> None:
        """End the compiling child processes."""
        self._precompiler.close()

    def _runner(self, group: GroupSpec, lanes: int) -> Executor:
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

    def _decision(self, group: GroupSpec) -> FusionDecision:
        if group.key not in self._decisions:
            decision = self._decisions[group.key] = self._decide(group)
            for step in self._early.pop(group.key, ()):
                step.backend_reason = decision.refusal or EARLY
        return self._decisions[group.key]

    def _is_early(self, group: GroupSpec) -> bool:
        """Whether the group is to train plain for a while yet, before a verdict is sought."""
        if group.key in self._decisions or _declared(group) is not None:
            return False
        if self._library is not None and native_step.unsuitable(group) is None:
            return False  # nothing to trace
        now = self._clock()
        return now - self._seen_at.setdefault(group.key, now) < self._patience_seconds

    def _decide(self, group: GroupSpec) -> FusionDecision:
        """Find out whether fusing the group works and pays."""
        refusal = _declared(group)
        if refusal is not None:
            return FusionDecision(refusal)
        try:
            return self._natively(group) or self._fused(group)
        except Exception as error:  # a user's module may fail under vmap in any way
            logger.info("group %s runs plain", group.key, exc_info=True)
            first = str(error).strip().split("\n")[0]
            return FusionDecision(f"cannot be fused: {type(error).__name__}: {first}"[:300])

    def _natively(self, group: GroupSpec) -> FusionDecision | None:
        """Return the verdict of a group that runs natively; None where it cannot."""
        if self._library is None:
            return None
        unsuitable = native_step.unsuitable(group)
        if unsuitable is None and self._probe:
            unsuitable = probe(group, NativeStep(group, NATIVE_PROBE_LANES, self._library))
        if unsuitable is None:
            full = min(CPU_LANES[1], _lanes_of_orders(group, CPU_ORDER_BYTES))
            return FusionDecision(None, min(CPU_LANES[0], full), full, native=True)
        # Nothing else takes lanes of different networks.
        return FusionDecision(unsuitable) if set(group.network) == {"type"} else None

    def _fused(self, group: GroupSpec) -> FusionDecision:
        small, full = sizes(group)
        # An optimizer with its own update is probed as SGD: it is the network that may not fuse.
        probed = dataclasses.replace(group, optimizer=None)
        refusal = probe(probed, FusedStep(probed, full, Traced())) if self._probe else None
        return FusionDecision(refusal, small, full)


def _native_library(cache: Path) -> Path | None:
    try:
        path = library.build(cache)
        library.Library(path, torch.float32)  # a directory may forbid to run what is in it
    except (library.NativeError, OSError) as error:
        logger.warning("networks run without native code: %s", error)
        return None
    return path


def _moderate(network: Mapping[str, Any]) -> bool:
    """Whether native code pays for the network as it does for any of its type (then no probe)."""
    limits = NATIVE_LIMITS[str(network["type"])]
    return all(int(network.get(name, 0)) <= most for name, most in limits.items())


def _declared(group: GroupSpec) -> str | None:
    """Return why the group wants no fusing, or its network declares that it cannot be; or None."""
    if not group.fuse:
        return group.fuse_reason
    if group.streamed and group.device.type != "cpu":
        return STREAMED
    family = networks.NETWORKS.get(str(group.network["type"]))
    if family is not None and not family.fusible:
        return family.reason or f"network {group.network['type']} cannot be fused"
    return family.refuses(group.inputs) if family is not None else None


def sizes(group: GroupSpec) -> tuple[int, int]:
    """Return the lanes of a small and of a full group, by the memory of state and activations."""
    module = networks.build(group.network, inputs=group.inputs, outputs=group.outputs)
    itemsize = dtype_of(group.precision).itemsize
    lane = STATE_COPIES * itemsize * sum(p.numel() for p in module.parameters())
    fewest, most = CPU_LANES if group.device.type == "cpu" else GPU_LANES
    if group.device.type == "cpu":
        room, wide, long = CPU_STATE_BYTES, CPU_ACTIVATION_BYTES, CPU_ORDER_BYTES
    else:
        free = free_on_gpu(group.device)
        room, wide = int(free * GPU_STATE_SHARE), int(free * GPU_ACTIVATION_SHARE)
        long = int(free * GPU_ORDER_SHARE)
    batch = group.batch_size * itemsize * kept_numbers(module, group.inputs)
    full = min(max(_power(room // max(lane, 1)), fewest), most, _power(wide // max(batch, 1)))
    full = min(full, _lanes_of_orders(group, long))
    return max(1, full // SMALL), full


def _lanes_of_orders(group: GroupSpec, room: int) -> int:
    """Return for how many lanes there is room for the order of an epoch's rows."""
    return _power(room // (ORDER_BYTES * group.rows))


def kept_numbers(module: nn.Module, inputs: networks.InputShape) -> int:
    """Return how many numbers a row's forward pass keeps for its backward pass, about."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes() // tensor.itemsize
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = module(torch.zeros(KEPT_ROWS, *inputs))
    del outputs
    return sum(kept.values()) // KEPT_ROWS


def _power(number: int) -> int:
    """Return the largest power of two up to the number, at least 1."""
    return 1 << max(0, number.bit_length() - 1)


def probe(group: GroupSpec, step: TrainStep) -> str | None:
    """Compare a few steps with the plain step; return what is wrong with the fused one.

    Every lane trains, as in earnest. Both steps start from the same fresh weights.
    """
    plain = PlainStep(group)
    hyper = _probe_hyper(seed=1)
    plain.put(0, hyper, None)
    for lane in range(step.lanes):
        step.put(lane, hyper, None)
    steps = min(PROBE_STEPS, group.steps)
    rows = min(steps * group.batch_size, group.rows)
    plain_seconds = _timed(plain, rows, steps)
    fused_seconds = _timed(step, rows, steps)
    difference = _difference(plain.take(0), step.take(step.lanes - 1))
    limit = HALF_TOLERANCE if group.precision in ("bfloat16", "tf32") else None
    limit = limit or TOLERANCE[dtype_of(group.precision)]
    if not difference <= limit:
        return f"fused and plain weights differ by {difference:.1e} after {steps} steps"
    gain = plain_seconds * step.lanes / fused_seconds
    if gain < 1.0:
        return f"fusing does not pay: {gain:.2f} times the plain step's speed"
    return None


def _probe_hyper(seed: int) -> LaneHyper:
    # Momentum, not Adam: Adam's first steps have the sign of the gradient alone, which magnifies
    # the rounding of gradients near zero.
    return LaneHyper(
        optimizer="sgd",
        options={"momentum": 0.9},
        dropout=0.0,
        label_smoothing=0.0,
        l1=0.0,
        gradient_clip=None,
        seed=seed,
    )


def _timed(step: TrainStep, rows: int, steps: int) -> float:
    """Train on the first rows, twice; return the seconds of the faster call."""
    orders = torch.arange(rows).expand(step.lanes, -1)
    rates = torch.full((step.lanes, steps), 1e-2, dtype=torch.float64)
    best = float("inf")
    for _ in range(PROBE_ROUNDS):
        begun = time.perf_counter()
        step.train_epoch(orders, rates).tolist()
        best = min(best, time.perf_counter() - begun)
    return best


def _difference(one: LaneState, other: LaneState) -> float:
    """Return the largest difference of two lanes' weights, relative to each tensor's size."""
    return max(
        (_relative(one[name], other[name]) for name in one if name.startswith("parameters/")),
        default=0.0,
    )


def _relative(one: Tensor, other: Tensor) -> float:
    scale = one.abs().max().clamp(min=1e-3)
    return float(((one - other).abs().max() / scale).double())
