"""What this machine has and what is taken: GPUs, cores, the port, the data directory."""

import contextlib
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from tuner_service.errors import SettingsError
from tuner_service.files import locked
from tuner_service.settings import Settings

MOST_CPU_WORKERS = 4


def visible_gpus() -> list[str]:
    """Return the ids of the NVIDIA GPUs a worker may use, as CUDA_VISIBLE_DEVICES takes them."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [part for part in chosen.split(",") if part and part != "-1"]
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    with contextlib.suppress(subprocess.SubprocessError, OSError):
        listed = subprocess.run(  # noqa: S603 - a tool found on PATH, fixed arguments
            [tool, "--list-gpus"], capture_output=True, text=True, timeout=20, check=True
        )
        count = sum(line.startswith("GPU ") for line in listed.stdout.splitlines())
        return [str(number) for number in range(count)]
    return []


def default_workers(gpus: Sequence[str]) -> int:
    """Return how many workers to start: one per GPU, else one per core, at most four."""
    return len(gpus) or min(len(os.sched_getaffinity(0)), MOST_CPU_WORKERS)


def free_port(host: str, port: int) -> int:
    """Return the port to listen on, once it is known to be free."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            return int(probe.getsockname()[1])
    except socket.gaierror as error:
        raise SettingsError(f"host must be an address of this machine, but got {host!r}") from error
    except OSError as error:
        raise SettingsError(
            f"Cannot listen on {host}:{port}: {error.strerror}. Is a tuner running there already? "
            "Stop it, or choose another port with --port (0 takes a free one)."
        ) from error


@contextlib.contextmanager
def only_one(settings: Settings) -> Iterator[None]:
    """Hold the data directory for this process; two services on one would share a spool."""
    lock = settings.directory.up_lock
    with locked(lock, wait=False) as mine:
        if not mine:
            raise SettingsError(_taken(lock, settings.data_dir))
        lock.write_text(str(os.getpid()), encoding="ascii")
        yield


def _taken(lock: Path, data_dir: Path) -> str:
    return (
        f"`tuner up` runs already on {data_dir} (process {lock.read_text().strip() or 'unknown'}). "
        "Stop it with Ctrl-C where it runs, or choose another directory with --data-dir."
    )
