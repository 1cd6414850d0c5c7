"""The device's Python side: torch.cuda as far as the service calls it, with graphs and faults.

A graph's capture is recorded operation by operation, on the tensors of that time, and replayed on
the same ones: what a real graph would freeze is frozen. Import it before torch: what torch asks of
CUDA it asks once.
"""

import ctypes
import sys

from tests.fake_gpu.library import build

if "torch" in sys.modules:
    raise RuntimeError("the fake GPU must be imported before torch, which asks for devices once")
_LIBRARY = build()
ctypes.CDLL(str(_LIBRARY), mode=ctypes.RTLD_GLOBAL)

import contextlib  # noqa: E402
import importlib.util  # noqa: E402
from collections.abc import Iterator  # noqa: E402
from typing import Any  # noqa: E402

import torch  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils._pytree import tree_map  # noqa: E402

TOTAL = 64 << 30  # bytes of the device's memory


def _extension() -> Any:
    spec = importlib.util.spec_from_file_location("fake_gpu", _LIBRARY)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


native = _extension()


class Recorder(TorchDispatchMode):
    """Runs each operation, remembers it, and undoes at the end what it wrote into older tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.tape: list[Any] = []
        self._before: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._made: set[int] = set()
        self._alive: list[Any] = []  # or another object might get the id of one in `_made`

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        for position, argument in enumerate(func._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                value = args[position] if position < len(args) else kwargs.get(argument.name)
                self._keep(value)
        if torch.Tag.inplace_view in func.tags:  # the shape is changed once, not at each replay
            return func(*args, **kwargs)
        # What they were, by address and shape, whatever becomes of the objects.
        kept = tree_map(_detached, (args, kwargs))
        out = func(*args, **kwargs)
        self.tape.append((func, *kept, tree_map(_detached, out)))
        self._made |= {id(one) for one in _listed(out) if id(one) not in self._before}
        self._alive.append(out)
        return out

    def _keep(self, value: Any) -> None:
        known = id(value) in self._before or id(value) in self._made
        if isinstance(value, torch.Tensor) and not known:
            with suspended():
                self._before[id(value)] = (value, value.clone())

    def undo(self) -> None:
        for value, clone in reversed(list(self._before.values())):
            value.copy_(clone)
        self._before.clear()


def _detached(value: Any) -> Any:
    return value.detach() if isinstance(value, torch.Tensor) else value


def _listed(out: Any) -> tuple[Any, ...]:
    return tuple(out) if isinstance(out, (tuple, list)) else (out,)


@contextlib.contextmanager
def suspended() -> Iterator[None]:
    """What the fake does for itself amid a capture is not captured, and meets no fault."""
    native.set_capturing(False)
    after = native.pause_faults()
    try:
        yield
    finally:
        native.resume_faults(after)
        native.set_capturing(True)


class CUDAGraph:
    """A tape of operations."""

    captures = 0
    replays = 0
    fail_capture: BaseException | None = None  # raised once by the next capture's end

    def __init__(self, keep_graph: bool = False) -> None:
        del keep_graph
        self.tape: list[Any] = []

    def replay(self) -> None:
        CUDAGraph.replays += 1
        for func, args, kwargs, out in self.tape:
            new = func(*args, **kwargs)
            for old, one in zip(_listed(out), _listed(new), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != one.data_ptr():
                    native.copy_uncounted(old, one)  # where a real graph would have written it

    def pool(self) -> tuple[int, int]:
        return (0, 0)

    def reset(self) -> None:
        self.tape = []


class Capture:
    """`torch.cuda.graph`."""

    def __init__(self, cuda_graph: CUDAGraph, pool: Any = None, stream: Any = None, **_: Any):
        del pool, stream
        self._graph = cuda_graph
        self._recorder = Recorder()

    def __enter__(self) -> None:
        CUDAGraph.captures += 1
        self._recorder.__enter__()
        native.set_capturing(True)

    def __exit__(self, *error: object) -> None:
        native.set_capturing(False)
        self._recorder.__exit__(*error)
        faults = native.pause_faults()
        try:
            self._recorder.undo()
        finally:
            native.resume_faults(faults)
        self._graph.tape = self._recorder.tape
        failure, CUDAGraph.fail_capture = CUDAGraph.fail_capture, None
        if failure is not None:
            raise failure


class Stream:
    def __init__(self, *_: Any, **__: Any) -> None: ...
    def wait_stream(self, other: Any) -> None: ...
    def synchronize(self) -> None:
        native.check()


class Properties:
    name = "Fake GPU"
    major, minor = 9, 0
    total_memory = TOTAL
    multi_processor_count = 132


def _free(device: Any = None) -> tuple[int, int]:
    limit = native.get_limit()
    return max(0, limit - native.held()), limit


def _fraction(share: float, device: Any = None) -> None:
    native.set_limit(int(share * TOTAL))


def install() -> None:
    """Make torch believe in the device."""
    native.set_limit(TOTAL)
    given = {
        "_lazy_init": lambda: None,
        "_initialized": True,
        "is_initialized": lambda: True,
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda device: None,
        "get_device_name": lambda device=None: Properties.name,
        "get_device_capability": lambda device=None: (9, 0),
        "get_device_properties": lambda device=None: Properties,
        "is_bf16_supported": lambda *_, **__: True,
        "max_memory_allocated": lambda device=None: native.peak(),
        "reset_peak_memory_stats": lambda device=None: native.reset_peak(),
        "memory_allocated": lambda device=None: native.held(),
        "mem_get_info": _free,
        "set_per_process_memory_fraction": _fraction,
        "empty_cache": lambda: None,
        "synchronize": lambda device=None: native.check(),
        "manual_seed_all": lambda seed: None,
        "manual_seed": lambda seed: None,
        "Stream": Stream,
        "current_stream": lambda device=None: Stream(),
        "default_stream": lambda device=None: Stream(),
        "stream": lambda stream: contextlib.nullcontext(),
        "CUDAGraph": CUDAGraph,
        "graph": Capture,
    }
    for name, value in given.items():
        setattr(torch.cuda, name, value)
    _deepcopy_by_clone()


def _deepcopy_by_clone() -> None:
    """A CPU build has no storages of this device, which deepcopy would make."""
    deepcopy = torch.Tensor.__deepcopy__

    def copied(self: torch.Tensor, memo: dict[int, Any]) -> Any:
        if self.device.type != "cuda" or type(self) is not torch.Tensor:
            return deepcopy(self, memo)
        if id(self) not in memo:
            memo[id(self)] = self.detach().clone().requires_grad_(self.requires_grad)
        return memo[id(self)]

    torch.Tensor.__deepcopy__ = copied


def heal() -> None:
    """End every fault, and give all memory back its limit."""
    CUDAGraph.fail_capture = None
    native.set_broken(False)
    native.set_invalidated(False)
    native.set_capturing(False)
    native.fail_allocation(-1)
    native.break_at_launch(-1)
    native.set_limit(TOTAL)


def waits() -> dict[str, int]:
    """Return how often the host waited for the device, by reason, since `native.reset()`."""
    return {name: n for name, n in native.counts().items() if name.startswith("wait")}


def launches() -> int:
    """Return how many operations were launched since `native.reset()`."""
    counted: dict[str, int] = native.counts()
    return sum(n for name, n in counted.items() if name.startswith("launch"))
