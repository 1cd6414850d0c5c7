"""What this machine has and what is taken: GPUs, cores, the port, the data directory."""

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tuner_service.errors import SettingsError, TunerError
from tuner_service.files import locked
from tuner_service.layout import worker_environment
from tuner_service.settings import Settings

MOST_CPU_WORKERS = 4
TORCH_SECONDS = 120.0  # a first import from a slow disk
_MIG_INSTANCE = re.compile(r"\s+MIG .*\(UUID: (MIG-[^)]+)\)")


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
        return _ids(listed.stdout)
    return []


def _ids(listed: str) -> list[str]:
    """Return GPUs by number; one that is split, by its MIG instances, of which each is a GPU."""
    whole: list[list[str]] = []
    for line in listed.splitlines():
        instance = _MIG_INSTANCE.match(line)
        if line.startswith("GPU "):
            whole.append([])
        elif instance and whole:
            whole[-1].append(instance[1])
    return [one for number, split in enumerate(whole) for one in split or [str(number)]]


class NoReportError(TunerError):
    """torch does not say what it can use; the message is why."""

    code = "no_device_report"


def device_report() -> dict[str, Any]:
    """Ask torch, in a process of its own, what it is and which GPUs it can use.

    Raises:
        NoReportError: It cannot be imported, or does not answer.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "workers.device_report"],
            env=worker_environment(os.environ),
            capture_output=True,
            text=True,
            timeout=TORCH_SECONDS,
        )
        found = json.loads(done.stdout.splitlines()[-1]) if done.stdout else None
    except (OSError, subprocess.TimeoutExpired, json.JSONDecodeError) as error:
        raise NoReportError(f"gives no answer: {error}") from error
    if found is None:
        said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise NoReportError(f"cannot be imported: {said}")
    return dict(found)


def usable_gpus(listed: Sequence[str]) -> tuple[list[str], str | None]:
    """Return those of the listed GPUs that torch can use, and why there are fewer.

    nvidia-smi sees GPUs for which this torch has no code: a build for the CPU, a driver or a GPU
    that is too old.
    """
    if not listed:
        return [], None
    try:
        found = device_report()
    except NoReportError as error:
        return [], f"torch {error}"
    if found["gpus"]:
        return list(listed), None
    return [], str(found.get("reason") or "torch is built for the CPU")


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


class StartError(TunerError):
    """The service could not be started; the message has the end of the log."""

    code = "start_failed"


def answers(url: str) -> bool:
    """Return whether a service answers there."""
    place = urlsplit(url)
    connection = HTTPConnection(place.hostname or "", place.port, timeout=2.0)
    try:
        connection.request("GET", "/healthz")
        return connection.getresponse().status == HTTPStatus.OK
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


def tell_address(settings: Settings, url: str) -> None:
    """Write beside the process's id where the service of the data directory is."""
    settings.directory.up_lock.write_text(f"{os.getpid()} {url}", encoding="ascii")


def running_address(settings: Settings) -> str | None:
    """Return where the `tuner up` of the data directory is; None: there is none, or not yet."""
    lock = settings.directory.up_lock
    with locked(lock, shared=True, wait=False) as free:
        if free:
            return None
    with contextlib.suppress(OSError):
        return lock.read_text(encoding="ascii").partition(" ")[2] or None
    return None


def _taken(lock: Path, data_dir: Path) -> str:
    process = lock.read_text().partition(" ")[0] or "unknown"
    return (
        f"`tuner up` runs already on {data_dir} (process {process}). "
        "Stop it with Ctrl-C where it runs, or choose another directory with --data-dir."
    )
