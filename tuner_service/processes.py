"""What is said of processes that ended."""

import signal


def how_it_ended(code: int) -> str:
    """Return in words how a process ended, by its return code as `subprocess` has it."""
    if code >= 0:
        return f"ended with exit code {code}"
    return f"was killed by {_name(-code)}"


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # most of the real-time signals have none
        return f"signal {number}"
