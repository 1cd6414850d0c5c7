"""Ending every process that descends from a trial or a trainer, by a mark in its environment.

What a program starts may leave its group and its session, and outlive whoever started it. Its
environment stays what it was given at its start, and is inherited. Linux shows it under `/proc`;
elsewhere nothing is found. The standard library only: the watcher loads this file.
"""

import contextlib
import os
import signal

TRIAL = "TUNER_TRIAL_MARK"
TRAINER = "TUNER_TRAINER_MARK"
_ROUNDS = 10  # what is found may fork while it is being ended


def end_marked(name: str, mark: str) -> int:
    """Kill all processes but this one that have `name=mark` in their environment.

    Returns:
        How many were found.
    """
    wanted, ended = f"{name}={mark}".encode(), 0
    for _ in range(_ROUNDS):
        found = [process for process in _others() if wanted in _environment(process)]
        if not found:
            break
        for process in found:
            with contextlib.suppress(OSError):
                os.kill(process, signal.SIGKILL)
                ended += 1
    return ended


def _others() -> list[int]:
    try:
        names = os.listdir("/proc")
    except OSError:
        return []
    own = os.getpid()
    return [int(name) for name in names if name.isdigit() and int(name) != own]


def _environment(process: int) -> list[bytes]:
    """Return the variables of a process; of one that has ended there are none."""
    try:
        with open(f"/proc/{process}/environ", "rb") as file:  # pathlib is a slow import
            return file.read().split(b"\0")
    except OSError:
        return []


def family_of(process: int) -> list[int]:
    """Return the processes below this one, the nearest first."""
    found = [process]
    for one in found:  # grows as it goes
        try:
            with open(f"/proc/{one}/task/{one}/children", "rb") as file:
                found += map(int, file.read().split())
        except OSError:
            continue
    return found[1:]
