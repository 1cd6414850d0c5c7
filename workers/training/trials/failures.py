"""What an exception means for a trial: its kind, a sentence, and the traceback."""

import traceback

import torch

from tuner_service.errors import DataError
from workers.protocol.messages import RunFailure, RunFailureKind
from workers.training.nets.layers import ShapeError

_CAPTURE_INVALIDATED = (
    "cudaErrorStreamCaptureInvalidated",
    "operation failed due to a previous error during capture",
)
_MAX_TRACEBACK = 16_000  # characters kept, from the end: that is where the cause stands


def kind_of(error: BaseException) -> RunFailureKind:
    """Return the failure kind of an exception that ended a trial."""
    if isinstance(error, (DataError, ShapeError)):
        return "data"
    return "out_of_memory" if is_out_of_memory(error) else "user_code"


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether memory ran out, on the device or the host."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    # The CPU allocator raises a bare RuntimeError.
    if isinstance(error, RuntimeError) and "can't allocate memory" in str(error):
        return True
    return isinstance(error, RuntimeError) and _invalidated_for_memory(error)


def _invalidated_for_memory(error: RuntimeError) -> bool:
    """Return whether an allocation ended a capture: torch frees what it keeps, which CUDA forbids.

    What a program does that may not be captured is raised first, and says so
    (https://github.com/pytorch/pytorch/issues/159594).
    """
    if not any(text in str(error) for text in _CAPTURE_INVALIDATED):
        return False
    cause = error.__context__
    return cause is None or is_out_of_memory(cause)


class DeviceLostError(BaseException):
    """The device answers nothing any more: whoever was at work may have done it.

    Not an `Exception`: what contains the failures of trials must let it through.
    """


def require_device(device: torch.device, error: BaseException) -> None:
    """Tell a trial's error from one after which every call to the device fails.

    Raises:
        DeviceLostError: The device does not answer; the cause is `error`.
    """
    if device.type != "cuda":
        return
    try:
        torch.cuda.synchronize(device)
    except RuntimeError as broken:
        first = str(error).strip().split("\n")[0]
        raise DeviceLostError(
            f"the GPU answers nothing since {type(error).__name__}: {first}"
        ) from broken


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
