"""What runs a step function: its traced graph, or inductor's compiled code, perhaps a CUDA graph.

Traced      the graph of the trace, operation by operation: ready at once, and already fused
Compiled    inductor's code, compiled here and now (seconds)
CompileInBackground
            traced while a child process compiles into inductor's on-disk cache, then compiled
"""

import os
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
from workers.training.steps.fused.step_function import StackedLanes, StepFunction

CompiledStep = Callable[[Sequence[Tensor]], object]

# A C++ wrapper halves the cost of a call on the CPU, and loads from the disk cache in a second.
CPU_OPTIONS: dict[str, Any] = {"cpp_wrapper": True}


class Eager:
    """Runs the step function itself: for a few steps, which would not be worth a trace."""

    backend = "eager"
    reason: str | None = None

    def runnable(self, function: StepFunction, stacked: StackedLanes) -> CompiledStep:
        """Return what takes one step."""

        def run(tensors: Sequence[Tensor]) -> object:
            with torch.no_grad():
                return function(*tensors)

        return run


class Traced:
    """Runs the traced graph."""

    backend = "traced"

    def __init__(self, reason: str | None = None) -> None:
        self.reason = reason
        self._runs: dict[StepFunction, CompiledStep] = {}

    def runnable(self, function: StepFunction, stacked: StackedLanes) -> CompiledStep:
        """Return what takes one step."""
        if function not in self._runs:
            self._runs[function] = _captured(_spread(function.trace(stacked)), stacked)
        return self._runs[function]


class Compiled:
    """Compiles where it stands: for benchmarks, tests, and the child that fills the cache."""

    backend = "compiled"
    reason: str | None = None

    def __init__(self) -> None:
        self._runs: dict[StepFunction, CompiledStep] = {}

    def runnable(self, function: StepFunction, stacked: StackedLanes) -> CompiledStep:
        """Return what takes one step."""
        if function not in self._runs:
            self._runs[function] = _captured(compiled(function.trace(stacked), stacked), stacked)
        return self._runs[function]


@dataclass(slots=True)
class _BackgroundCompile:
    """A step function that is traced, and perhaps compiled by now."""

    graph: GraphModule
    run: CompiledStep
    job: Job | None
    compiled: bool = False


class CompileInBackground:
    """Runs the traced graph until a child process has compiled it.

    Args:
        precompiler: Starts the child processes.
        recipe: StepFunction -> what the child needs to know to build the same one.
    """

    def __init__(self, precompiler: Precompiler, recipe: Callable[[StepFunction], str]) -> None:
        self._precompiler = precompiler
        self._recipe = recipe
        self._compilations: dict[StepFunction, _BackgroundCompile] = {}
        self._last: _BackgroundCompile | None = None
        self._failure: str | None = None

    @property
    def backend(self) -> str:
        """`compiled` as soon as the step function that ran last is."""
        return "compiled" if self._last is not None and self._last.compiled else "traced"

    @property
    def reason(self) -> str | None:
        """Why it is not compiled."""
        if self.backend == "compiled":
            return None
        return self._failure or "compiling in the background"

    @property
    def job(self) -> Job | None:
        """The child at work for the function that ran last; None as soon as its code is loaded."""
        return None if self._last is None else self._last.job

    def runnable(self, function: StepFunction, stacked: StackedLanes) -> CompiledStep:
        """Return what takes one step: compiled as soon as the child is done."""
        compilation = self._compilations.get(function)
        if compilation is None:
            graph = function.trace(stacked)
            job = self._precompiler.start(self._recipe(function))
            compilation = _BackgroundCompile(graph, _captured(_spread(graph), stacked), job)
            self._compilations[function] = compilation
        elif compilation.job is not None and compilation.job.done:
            self._failure = compilation.job.failure
            compilation.job = None
            if self._failure is None:
                self._switch(compilation, stacked)
        self._last = compilation
        return compilation.run

    def _switch(self, compilation: _BackgroundCompile, stacked: StackedLanes) -> None:
        try:
            compilation.run = _captured(compiled(compilation.graph, stacked), stacked)
            compilation.compiled = True
        except torch.OutOfMemoryError as error:  # the traced graph has its memory already
            self._failure = f"no memory for the compiled step: {error}"[:300]
        except TimeoutError as error:  # another process holds inductor's lock: what runs goes on
            self._failure = f"the compiled step is locked: {error}"[:300]


def compiled(graph: GraphModule, stacked: StackedLanes) -> CompiledStep:
    """Return inductor's code for the graph, from its on-disk cache where that has it."""
    options = CPU_OPTIONS if _device(stacked).type == "cpu" else {}
    with torch.no_grad():
        code = torch._inductor.compile(graph, list(stacked.flat()), options=options)
    return _spread(code)


def missing_tool(device: torch.device) -> str | None:
    """Return what inductor lacks on this machine; None if it can be tried."""
    if device.type == "cuda":  # as Triton looks for one, which compiles a driver with Python.h
        given = os.environ.get("CC")
        compilers: tuple[str, ...] = (given,) if given else ("gcc", "clang")
        missing = f"no C compiler for Triton ({', '.join(compilers)})"
    else:
        compilers, missing = ("g++", "clang++", "c++"), "no C++ compiler (g++)"
    if not any(shutil.which(name) for name in compilers):
        return missing
    header = Path(sysconfig.get_paths()["include"], "Python.h")
    return None if header.exists() else f"no {header}: install Python's development package"


def _spread(function: Callable[..., object]) -> CompiledStep:
    """Return the function of many tensors as one of a sequence of them."""

    def run(tensors: Sequence[Tensor]) -> object:
        return function(*tensors)

    return run


def _device(stacked: StackedLanes) -> torch.device:
    return stacked.inputs.loss_sums.device


def _captured(run: CompiledStep, stacked: StackedLanes) -> CompiledStep:
    """Return a CUDA graph of the run on a GPU; the run itself elsewhere."""
    return run if _device(stacked).type != "cuda" else _CudaGraph(run, stacked)


class _CudaGraph:
    """One step recorded on the lanes' own tensors, and replayed."""

    WARM_UPS = 3  # as torch's documentation asks: allocations and autotuning come before recording

    def __init__(self, run: CompiledStep, stacked: StackedLanes) -> None:
        tensors = stacked.flat()
        fixed = {id(tensor) for tensor in stacked.inputs.read_only}
        # Warming up trains: what the function writes is put back after. The data is not copied.
        before = [(t, t.clone()) for t in tensors if id(t) not in fixed]
        try:
            self._record(run, tensors, stacked)
        finally:  # when memory runs out, too: lanes are taken out of these tensors
            for tensor, value in before:
                tensor.copy_(value)

    def _record(self, run: CompiledStep, tensors: Sequence[Tensor], stacked: StackedLanes) -> None:
        # On a stream of its own: what is recorded must not wait for the default one.
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(self.WARM_UPS):
                stacked.inputs.counter.zero_()  # within the tables, however short
                run(tensors)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            run(tensors)

    def __call__(self, tensors: Sequence[Tensor]) -> object:
        self._graph.replay()
        return None
