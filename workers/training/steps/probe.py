"""Whether a step is faithful and pays: a few steps of it, beside the plain step's.

Both start from the same fresh weights and take the same steps; their weights must be as near as the
precision allows, and a lane must cost less.

In float32 that can be far: batch norm divides by a spread that may be small, and a unit near zero
is on for one rounding and off for the next. Four steps of a residual network with batch norm are
1e-3 to 2e-2 apart, and 1e-15 in float64. Where the two differ in float32, float64 decides: what is
wrong with a step function is wrong there too.
"""

import time
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from workers.training.steps.fused.executors import Eager
from workers.training.steps.fused.step import FusedStep
from workers.training.steps.groups import GroupSpec, dtype_of
from workers.training.steps.plain import PlainStep
from workers.training.steps.step import LaneHyper, LaneState, TrainStep

PROBE_STEPS = 4
PROBE_ROUNDS = 2
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3}
HALF_TOLERANCE = 5e-2  # bfloat16 and tf32
ROUNDING = 5e-2  # what float32 may come to through batch norm
EXACT_STEPS = 2  # of the comparison in float64, which runs untraced, some tenths of a second each


@dataclass(frozen=True, slots=True)
class Comparison:
    """What a probe measured: seconds per step of either, and in what they differ too much."""

    unfaithful: str | None
    plain_seconds: float
    fused_seconds: float


def probe(group: GroupSpec, step: TrainStep) -> str | None:
    """Compare a few steps with the plain step; return what is wrong with the fused one.

    Every lane trains, as in earnest. Both steps start from the same fresh weights.
    """
    found = compare(group, step)
    if found.unfaithful is not None:
        return found.unfaithful
    gain = found.plain_seconds * step.lanes / found.fused_seconds
    if gain < 1.0:
        return f"fusing does not pay: {gain:.2f} times the plain step's speed"
    return None


def compare(group: GroupSpec, step: TrainStep) -> Comparison:
    """Train a few steps from the same fresh weights on both, in every lane of the fused step."""
    plain = PlainStep(group)
    hyper = _probe_hyper(seed=1)
    plain.put(0, hyper, None)
    for lane in range(step.lanes):
        step.put(lane, hyper, None)
    steps = min(PROBE_STEPS, group.steps)
    rows = min(steps * group.batch_size, group.rows)
    plain_seconds = _timed(plain, rows, steps)
    fused_seconds = _timed(step, rows, steps)
    found, fused = plain.take(0), step.take(step.lanes - 1)
    difference = _difference(found, fused)
    unfaithful = None
    if not difference <= _tolerance(group):  # which NaN is not either
        unfaithful = f"fused and plain weights differ by {difference:.1e} after {steps} steps"
        if group.precision == "float32" and difference <= ROUNDING and _is_exact(group):
            unfaithful = None
    return Comparison(unfaithful, plain_seconds / steps, fused_seconds / steps)


def _tolerance(group: GroupSpec) -> float:
    if group.precision in ("bfloat16", "tf32"):
        return HALF_TOLERANCE
    return TOLERANCE[dtype_of(group.precision)]


def _is_exact(group: GroupSpec) -> bool:
    """Return whether both steps agree in float64: then they differ by rounding alone."""
    steps = min(EXACT_STEPS, group.steps)
    rows = min(steps * group.batch_size, group.rows)
    exact = replace(
        group,
        precision="float64",
        train_inputs=_doubled(group.train_inputs[:rows]),
        train_targets=_doubled(group.train_targets[:rows]),
    )
    found: list[LaneState] = []
    for step in (PlainStep(exact), FusedStep(exact, 1, Eager())):
        step.put(0, _probe_hyper(seed=1), None)
        step.train_epoch(*_epoch(step, rows, steps))
        found.append(step.take(0))
    return _difference(*found) <= TOLERANCE[torch.float64]


def _doubled(rows: Tensor) -> Tensor:
    return rows.double() if rows.is_floating_point() else rows


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
    orders, rates = _epoch(step, rows, steps)
    best = float("inf")
    for _ in range(PROBE_ROUNDS):
        begun = time.perf_counter()
        step.train_epoch(orders, rates).tolist()  # which waits for the device
        best = min(best, time.perf_counter() - begun)
    return best


def _epoch(step: TrainStep, rows: int, steps: int) -> tuple[Tensor, Tensor]:
    """Return orders [K, rows] and learning rates [K, steps] of an epoch of the first rows."""
    orders = torch.arange(rows).expand(step.lanes, -1)
    return orders, torch.full((step.lanes, steps), 1e-2, dtype=torch.float64)


def _difference(one: LaneState, other: LaneState) -> float:
    """Return the largest difference of two lanes' weights, relative to each tensor's size."""
    return max(
        (_relative(one[name], other[name]) for name in one if name.startswith("parameters/")),
        default=0.0,
    )


def _relative(one: Tensor, other: Tensor) -> float:
    scale = one.abs().max().clamp(min=1e-3)
    return float(((one.double() - other.double()).abs().max() / scale).double())
