"""What a user's code does to the process as a whole, undone before another trial's turn.

A network runs in the trainer, beside others. What it raises is its own trial's failure; what it
sets for the whole process (torch's default dtype, gradients, threads, the working directory, the
system's limits, a closed standard output) would be everybody's.
"""

import contextlib
import os
import resource
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NoReturn

import torch

from workers.training.engine.torch_names import PatchedTorchError, TorchNames

PATCHED = 71
LIMITED = 70  # the exit code of a process that cannot have its limits back
LIMITED_SAYS = b"A module lowered a limit of the process for good (setrlimit).\n"
_STREAMS = (1, 2)  # standard output and error
# What torch computes with, read and set; a device is set only where one is in use.
_CUDNN = torch.backends.cudnn
_SETTINGS: tuple[tuple[Callable[[], Any], Callable[[Any], object]], ...] = (
    (torch.get_default_dtype, torch.set_default_dtype),
    (torch.is_grad_enabled, torch.set_grad_enabled),
    (torch.get_num_threads, torch.set_num_threads),
    (torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms),
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    (lambda: _CUDNN.allow_tf32, partial(setattr, _CUDNN, "allow_tf32")),
    (lambda: _CUDNN.benchmark, partial(setattr, _CUDNN, "benchmark")),
    (lambda: _CUDNN.deterministic, partial(setattr, _CUDNN, "deterministic")),
    (lambda: _gpu(), torch.cuda.set_device),
)
_LIMITS = (
    resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE, resource.RLIMIT_AS, resource.RLIMIT_DATA,
    resource.RLIMIT_STACK, resource.RLIMIT_NPROC, resource.RLIMIT_CPU,
)  # fmt: skip


class ProcessStateGuard:
    """Remembers the process as it is now; `restored` leaves it so."""

    def __init__(self, names: TorchNames) -> None:
        self._names = names
        self._pid = os.getpid()
        self._kept = [_duplicate(stream) for stream in _STREAMS]
        self._directory = _open_directory()
        self._limits = {limit: resource.getrlimit(limit) for limit in _LIMITS}
        weakref.finalize(self, _close, (*self._kept, self._directory))

    @contextlib.contextmanager
    def restored(self) -> Iterator[None]:
        """Undo afterwards what the code inside sets for the whole process; a fork of it ends.

        Raises:
            PatchedTorchError: It has replaced functions of torch: what it did with them counts
                for nothing.
        """
        device = torch.get_default_device()
        settings = [read() for read, _ in _SETTINGS]
        streams = sys.stdout, sys.stderr
        mask, depth = os.umask(0o077), sys.getrecursionlimit()
        os.umask(mask)
        try:
            yield
        finally:
            if os.getpid() != self._pid:
                os._exit(0)  # a fork that came out here would be a second trainer
            if self._directory is not None:
                os.fchdir(self._directory)
            if torch.get_default_device() != device:
                torch.set_default_device(None)  # the trainer sets none
            for (read, write), before in zip(_SETTINGS, settings, strict=True):
                if before is not None and read() != before:
                    write(before)
            os.umask(mask)
            if sys.getrecursionlimit() != depth:
                sys.setrecursionlimit(depth)
            self._lift_limits()
            sys.stdout, sys.stderr = streams
            self._reopen()
            self._names.check()

    def _lift_limits(self) -> None:
        """Give the process its limits back; where the system refuses, the process is lost.

        Only the privileged may raise a hard limit. Later trials would fail of it, and be blamed.
        """
        for limit, kept in self._limits.items():
            if resource.getrlimit(limit) == kept:
                continue
            try:
                resource.setrlimit(limit, kept)
            except (OSError, ValueError):
                with contextlib.suppress(OSError):  # the process ends, whatever became of its log
                    os.write(self._kept[1] or 2, LIMITED_SAYS)
                os._exit(LIMITED)

    def _reopen(self) -> None:
        """Bring back a standard stream that was closed, before another file takes its number."""
        for stream, kept in zip(_STREAMS, self._kept, strict=True):
            if kept is not None and not _is_open(stream):
                os.dup2(kept, stream)
        if sys.stdout.closed:
            sys.stdout = os.fdopen(1, "w", closefd=False)
        if sys.stderr.closed:
            sys.stderr = os.fdopen(2, "w", closefd=False)


def end_patched(error: PatchedTorchError) -> NoReturn:
    """End a process in which it is not known what was trained with other functions than torch's."""
    with contextlib.suppress(OSError):
        os.write(2, f"{error}\n".encode())
    os._exit(PATCHED)


def _gpu() -> int | None:
    """Return the number of the GPU in use; None before any is: to ask would start one."""
    begun = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return torch.cuda.current_device() if begun else None


def _open_directory() -> int | None:
    """Open the working directory, whose name a user's code may remove."""
    with contextlib.suppress(OSError):  # it may not be ours to read
        return os.open(".", os.O_RDONLY | os.O_DIRECTORY)
    return None


def _duplicate(stream: int) -> int | None:
    with contextlib.suppress(OSError):
        return os.dup(stream)
    return None


def _close(descriptors: Iterable[int | None]) -> None:
    for descriptor in descriptors:
        if descriptor is not None:
            os.close(descriptor)


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True
