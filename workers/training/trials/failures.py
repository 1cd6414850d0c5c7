"""What an exception means for a trial: its kind, a sentence, and the traceback."""

import traceback

import torch

from tuner_service.errors import DataError
from workers.protocol.messages import RunFailure, RunFailureKind

_MAX_TRACEBACK = 16_000  # characters kept, from the end: that is where the cause stands


def kind_of(error: BaseException) -> RunFailureKind:
    """Return the failure kind of an exception that ended a trial."""
    if isinstance(error, DataError):
        return "data"
    return "out_of_memory" if is_out_of_memory(error) else "user_code"


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether memory ran out, on the device or the host."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    # The CPU allocator raises a bare RuntimeError.
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def failure_of(error: BaseException, step: int) -> RunFailure:
    """Return the failure that an exception is.

    Args:
        step: The epoch it happened in, from 1.
    """
    kind = kind_of(error)
    name = type(error).__name__
    message = str(error) if kind == "data" else f"{name}: {error}" if str(error) else name
    text = "".join(traceback.format_exception(error))
    return RunFailure(kind, message, step, None if kind == "data" else text[-_MAX_TRACEBACK:])


def diverged(what: str, value: float, step: int) -> RunFailure:
    """Return the failure of a trial whose loss or objective is no finite number."""
    return RunFailure("diverged", f"{what} became {value} in epoch {step}", step)
