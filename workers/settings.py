"""What is set per worker rather than per installation."""

import contextlib
from pathlib import Path
from typing import Literal

import psutil
from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

CONTAINER_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)
"""Where Linux tells a container its memory, with control groups of version 2 and 1."""


def _most_of_memory() -> int:
    limits = [psutil.virtual_memory().total]
    for path in CONTAINER_LIMITS:
        with contextlib.suppress(OSError, ValueError):  # not there, or "max"
            limits.append(int(path.read_text()))
    return int(min(limits) * 0.9)


class WorkerSettings(BaseSettings):
    """Read from `TUNER_*` like `Settings`, or from the worker's command line.

    Attributes:
        device: `auto` takes CUDA where there is one, else the CPU.
        threads: torch's threads on a CPU. Small matrices are slower with more than one; run a
            worker per core instead.
        memory_limit_bytes: A trainer that holds more main memory is ended; by default nine tenths
            of the machine's, or of the container's if that has less.
        data_limit_bytes: The most that a data set may take of the device's memory (and of main
            memory while it is prepared); a larger one is streamed from files. By default half of
            what is free on a GPU, an eighth on a CPU.
        loops: How many training loops of the operator's run at once (docs/bring-a-loop.md), each
            in a process of its own.
        share_gpu: Whether its GPU may have other workers, too; they take turns at its memory.
        modules_dir: Where the operator's modules lie (docs/bring-a-network.md).
        log_json: One JSON object per log line, as containers want it.
    """

    model_config = SettingsConfigDict(env_prefix="TUNER_", frozen=True, extra="ignore")

    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = Field(default=1, ge=1)
    memory_limit_bytes: int = Field(default_factory=_most_of_memory, gt=0)
    data_limit_bytes: int | None = Field(default=None, ge=0)
    loops: int = Field(default=1, ge=1, le=1024)
    share_gpu: bool = False
    modules_dir: Path | None = None
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_json: bool = False
