"""What only a real GPU can show, each in a process of its own.

    python -m benchmarks.gpu_checks NAME

assert     a device-side assert is told as a lost device
launches   how many kernels the compiled step launches, by torch's profiler
cache      whether the trainer finds what the compiling child left, and in how many seconds
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import torch

from workers.training.steps.fused.executors import Compiled
from workers.training.steps.fused.step import FusedStep
from workers.training.steps.groups import GroupSpec
from workers.training.steps.step import LaneHyper
from workers.training.trials.failures import DeviceLostError, require_device

LANES, ROWS, BATCH = 256, 1024, 64


def group() -> GroupSpec:
    """Return the group of the benchmark's own row: two layers of 128 on 64 inputs."""
    gpu = torch.device("cuda")
    return GroupSpec(
        key="gpu-checks",
        network={"type": "mlp", "hidden_layers": 2, "hidden_units": 128},
        optimizer=None,
        loss="cross_entropy",
        batch_size=BATCH,
        precision="float32",
        inputs=(64,),
        outputs=10,
        device=gpu,
        train_inputs=torch.randn(ROWS, 64, device=gpu),
        train_targets=torch.randint(0, 10, (ROWS,), device=gpu),
        fuse=True,
        fuse_reason=None,
    )


def trained(step: FusedStep, spec: GroupSpec) -> None:
    """Train one epoch in every lane."""
    orders = torch.arange(spec.rows, device=spec.device).expand(LANES, -1)  # [K, n]
    rates = torch.full((LANES, spec.steps), 1e-3, dtype=torch.float64)
    step.train_epoch(orders, rates).tolist()


def filled() -> tuple[FusedStep, GroupSpec]:
    """Return a compiled step with a trial in every lane."""
    spec = group()
    step = FusedStep(spec, LANES, Compiled())
    for lane in range(LANES):
        off = {"dropout": 0.0, "label_smoothing": 0.0, "l1": 0.0, "gradient_clip": None}
        step.put(lane, LaneHyper(optimizer="adam", options={}, seed=lane, **off), None)
    return step, spec


def check_assert() -> str:
    """Index out of range on the device, and see whether it counts as lost."""
    table, wrong = torch.zeros(4, device="cuda"), torch.tensor([7], device="cuda")
    try:
        table[wrong].sum().item()
    except RuntimeError as error:
        try:
            require_device(torch.device("cuda"), error)
        except DeviceLostError as lost:
            return f"told: {lost}"
        raise SystemExit("the device answers after an assert: it counts as alive") from error
    raise SystemExit("an index out of range raised nothing")


def check_launches() -> str:
    """Count kernels and milliseconds of one compiled step of 256 lanes."""
    step, spec = filled()
    trained(step, spec)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        trained(step, spec)
        torch.cuda.synchronize()
    kernels = sum(event.count for event in profiler.key_averages())
    begun = time.perf_counter()
    trained(step, spec)
    each = (time.perf_counter() - begun) / spec.steps
    return f"{kernels / spec.steps:.1f} launches (estimated: 22), {each * 1e3:.3f} ms a step"


def check_cache() -> str:
    """Compile in one process, and again in another with the same cache on disk."""
    with tempfile.TemporaryDirectory() as cache:
        seconds = []
        for _ in range(2):
            begun = time.perf_counter()
            subprocess.run(
                [sys.executable, "-m", "benchmarks.gpu_checks", "compile"],
                env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache},
                check=True,
            )
            seconds.append(time.perf_counter() - begun)
    return f"{seconds[0]:.1f} s compiled, {seconds[1]:.1f} s from the cache"


def check_compile() -> str:
    """Compile and take an epoch."""
    trained(*filled())
    return "compiled"


CHECKS: dict[str, Callable[[], str]] = {
    "assert": check_assert,
    "launches": check_launches,
    "cache": check_cache,
    "compile": check_compile,
}

if __name__ == "__main__":
    print(CHECKS[sys.argv[1]]())
