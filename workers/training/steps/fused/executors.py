"""What runs a fused program: its traced graph, or inductor's compiled code, perhaps a CUDA graph.

Traced      the graph of the trace, operation by operation: ready at once, and already fused
Compiled    inductor's code, compiled here and now (seconds)
Climbing    traced while a child process compiles into inductor's on-disk cache, then compiled
"""

import shutil
import sysconfig
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from workers.training.steps.fused.background import Job, Precompiler
from workers.training.steps.fused.program import READ_ONLY, Program, StackedLanes

CompiledStep = Callable[[Sequence[Tensor]], object]

# A C++ wrapper halves the cost of a call on the CPU, and loads from the disk cache in a second.
CPU_OPTIONS: dict[str, Any] = {"cpp_wrapper": True}


class Traced:
    """Runs the traced graph."""

    backend = "traced"

    def __init__(self, reason: str | None = None) -> None:
        self.reason = reason
        self._runs: dict[Program, CompiledStep] = {}

    def runnable(self, program: Program, arena: StackedLanes) -> CompiledStep:
        """Return what takes one step."""
        if program not in self._runs:
            self._runs[program] = _captured(_spread(program.trace(arena)), arena)
        return self._runs[program]


class Compiled:
    """Compiles where it stands: for benchmarks, tests, and the child that fills the cache."""

    backend = "compiled"
    reason: str | None = None

    def __init__(self) -> None:
        self._runs: dict[Program, CompiledStep] = {}

    def runnable(self, program: Program, arena: StackedLanes) -> CompiledStep:
        """Return what takes one step."""
        if program not in self._runs:
            self._runs[program] = _captured(compiled(program.trace(arena), arena), arena)
        return self._runs[program]


@dataclass(slots=True)
class _BackgroundCompile:
    """A program on its way up."""

    graph: GraphModule
    run: CompiledStep
    job: Job | None
    compiled: bool = False


class CompileInBackground:
    """Runs the traced graph until a child process has compiled it.

    Args:
        precompiler: Starts the child processes.
        recipe: Program -> what the child needs to know to build the same one.
    """

    def __init__(self, precompiler: Precompiler, recipe: Callable[[Program], str]) -> None:
        self._precompiler = precompiler
        self._recipe = recipe
        self._climbs: dict[Program, _BackgroundCompile] = {}
        self._last: _BackgroundCompile | None = None
        self._failure: str | None = None

    @property
    def backend(self) -> str:
        """`compiled` as soon as the program that ran last is."""
        return "compiled" if self._last is not None and self._last.compiled else "traced"

    @property
    def reason(self) -> str | None:
        """Why it is not compiled."""
        if self.backend == "compiled":
            return None
        return self._failure or "compiling in the background"

    def runnable(self, program: Program, arena: StackedLanes) -> CompiledStep:
        """Return what takes one step, and climb if the child is done."""
        climb = self._climbs.get(program)
        if climb is None:
            graph = program.trace(arena)
            job = self._precompiler.start(self._recipe(program))
            climb = _BackgroundCompile(graph, _captured(_spread(graph), arena), job)
            self._climbs[program] = climb
        elif climb.job is not None and climb.job.done:
            self._failure = climb.job.failure
            climb.job = None
            if self._failure is None:
                climb.run = _captured(compiled(climb.graph, arena), arena)
                climb.compiled = True
        self._last = climb
        return climb.run


def compiled(graph: GraphModule, arena: StackedLanes) -> CompiledStep:
    """Return inductor's code for the graph, from its on-disk cache where that has it."""
    options = CPU_OPTIONS if _device(arena).type == "cpu" else {}
    with torch.no_grad():
        code = torch._inductor.compile(graph, list(arena.flat()), options=options)
    return _spread(code)


def missing_tool(device: torch.device) -> str | None:
    """Return what inductor lacks on this machine; None if it can be tried."""
    if device.type == "cuda":
        return None if shutil.which("gcc") or shutil.which("cc") else "no C compiler for Triton"
    if not any(shutil.which(name) for name in ("g++", "clang++", "c++")):
        return "no C++ compiler (g++)"
    header = Path(sysconfig.get_paths()["include"], "Python.h")
    return None if header.exists() else f"no {header}: install Python's development package"


def _spread(function: Callable[..., object]) -> CompiledStep:
    """Return the function of many tensors as one of a sequence of them."""

    def run(tensors: Sequence[Tensor]) -> object:
        return function(*tensors)

    return run


def _device(arena: StackedLanes) -> torch.device:
    return arena.feed["total"].device


def _captured(run: CompiledStep, arena: StackedLanes) -> CompiledStep:
    """Return a CUDA graph of the run on a GPU; the run itself elsewhere."""
    return run if _device(arena).type != "cuda" else _CudaGraph(run, arena)


class _CudaGraph:
    """One step recorded on the arena's own tensors, and replayed."""

    WARM_UPS = 3  # as torch's documentation asks: allocations and autotuning come before recording

    def __init__(self, run: CompiledStep, arena: StackedLanes) -> None:
        tensors = arena.flat()
        fixed = {id(arena.feed[name]) for name in READ_ONLY}
        before = [(t, t.clone()) for t in tensors if id(t) not in fixed]
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(self.WARM_UPS):
                arena.feed["counter"].zero_()  # within the tables, however short
                run(tensors)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            run(tensors)
        for tensor, value in before:
            tensor.copy_(value)

    def __call__(self, tensors: Sequence[Tensor]) -> object:
        self._graph.replay()
        return None
