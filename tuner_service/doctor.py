"""`tuner doctor`: what this machine can do, and for each thing that is wrong what to do about it.

Every check returns a `Finding` and raises nothing. Those that need an extra are `absent` without
it: the client alone is a sound installation. No check changes anything but a file without a name.
"""

import contextlib
import json
import shutil
import sys
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any, Literal

from tuner_service import __version__, extras
from tuner_service.errors import SettingsError, TunerError
from tuner_service.files import check_writable
from tuner_service.settings import Settings
from tuner_service.up.machine import NoReportError, device_report, free_port, visible_gpus

State = Literal["ok", "warning", "problem", "absent"]

LEAST_FREE_BYTES = 1 << 30
SUITABLE = ((3, 11), (3, 14))
COMPILERS = ("g++", "clang++", "c++")  # as native code and torch look for them
# All rows of the training part in one batch: one step is the epoch.
TRIAL = {
    "name": "doctor",
    "dataset": {"name": "iris"},
    "network": {"type": "mlp", "hidden_layers": 1, "hidden_units": 8},
    "objective": {"metric": "val_accuracy"},
    "parameters": {"learning_rate": {"type": "float", "low": 1e-3, "high": 1e-1, "log": True}},
    "sampler": {"type": "random", "seed": 0},
    "training": {"epochs": 1, "batch_size": 128},
    "budget": {"trials": 1},
}

Try = Callable[[dict[str, Any]], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found.

    Attributes:
        state: `warning` costs speed, `problem` stops something, `absent` is not installed.
        remedy: What to do about it; empty where nothing is to be done.
    """

    name: str
    state: State
    detail: str
    remedy: str = ""

    def as_dict(self) -> dict[str, str]:
        """Return the finding as `--json` prints it."""
        return asdict(self)


def examine(settings: Settings, try_trial: Try | None) -> Iterator[Finding]:
    """Yield what there is to say about this machine, as it is found.

    Args:
        try_trial: Trains the first trial of a definition, or raises a `TunerError`; None: do not.
    """
    yield python()
    yield from (part("server"), part("worker"))
    yield from torch()
    yield from (compiler(), python_header(), disk(settings), port(settings))
    yield from (database(settings), broker(settings))
    if try_trial is not None:
        yield trial(try_trial)


def python() -> Finding:
    """Is this Python one that the tests run on?"""
    version = sys.version_info[:2]
    detail = f"{sys.version.split()[0]}, {sys.executable}; tuner {__version__}"
    if SUITABLE[0] <= version < SUITABLE[1]:
        return Finding("python", "ok", detail)
    return Finding("python", "problem", detail, "install Python 3.11, 3.12 or 3.13")


def part(extra: str) -> Finding:
    """Is an extra installed?"""
    names = extras.missing(extra)
    if not names:
        return Finding(extra, "ok", "installed")
    return Finding(extra, "absent", f"not installed: {', '.join(names)}", _install(extra))


def _install(extra: str) -> str:
    return f"to run it on this machine: {extras.install_command(extra)}"


def torch() -> Iterator[Finding]:
    """What is torch, and can it use the GPUs that the driver lists?"""
    if "torch" in extras.missing("worker"):
        yield Finding("torch", "absent", "not installed", _install("worker"))
        return
    try:
        found = device_report()
    except NoReportError as error:
        yield Finding("torch", "problem", str(error), _REINSTALL)
        return
    built = f"built for CUDA {found['cuda_build']}" if found["cuda_build"] else "built for the CPU"
    yield Finding("torch", "ok", f"{found['version']}, {built}")
    yield cuda(found, visible_gpus())


_REINSTALL = "pip install --force-reinstall -c constraints.txt torch"


def cuda(found: dict[str, Any], listed: list[str]) -> Finding:
    """Can torch use the GPUs that nvidia-smi, or CUDA_VISIBLE_DEVICES, lists?

    Args:
        found: What `workers.device_report` said.
        listed: The ids of the GPUs that `tuner up` would start workers for.
    """
    gpus = found["gpus"]
    if gpus:
        return Finding("cuda", "ok", f"{len(gpus)} usable: {', '.join(gpus)}")
    if not listed:
        return Finding("cuda", "absent", "no NVIDIA GPU; trials train on the CPU")
    detail = f"nvidia-smi lists {len(listed)}, and torch can use none: {found.get('reason')}"
    if found["cuda_build"] is None:
        remedy = "install torch's build for CUDA, or train on the CPU: tuner up --device cpu"
    else:
        remedy = f"a driver for CUDA {found['cuda_build']}; until then: tuner up --device cpu"
    return Finding("cuda", "problem", detail, remedy)


def compiler() -> Finding:
    """Is there a C++ compiler for native code and compiled steps?"""
    found = next(filter(None, map(shutil.which, COMPILERS)), None)
    if found is not None:
        return Finding("compiler", "ok", found)
    detail = f"none of {', '.join(COMPILERS)}: trials train without compiled code, slower"
    return Finding("compiler", "warning", detail, "apt install g++")


def python_header() -> Finding:
    """Is there the header that torch's compiled code includes?"""
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if header.exists():
        return Finding("Python.h", "ok", str(header))
    package = f"apt install python3.{sys.version_info[1]}-dev"
    detail = f"no {header}: on a GPU trials train without compiled code, slower"
    return Finding("Python.h", "warning", detail, package)


def disk(settings: Settings) -> Finding:
    """Is there room in the data directory, and may we write there?"""
    place = _nearest(settings.data_dir)
    free = shutil.disk_usage(place).free
    detail = f"{settings.data_dir}, {free / 2**30:,.1f} GiB free"
    other = "make room, or choose another with --data-dir or TUNER_DATA_DIR"
    try:
        check_writable(place)
    except TunerError as error:
        return Finding("disk", "problem", f"{detail}: {error}", other)
    if free < LEAST_FREE_BYTES:
        return Finding("disk", "warning", f"{detail}: little for models and logs", other)
    return Finding("disk", "ok", detail)


def _nearest(directory: Path) -> Path:
    """Return the directory, or what it would be made in."""
    return next(path for path in (directory, *directory.parents) if path.exists())


def port(settings: Settings) -> Finding:
    """Is the port free, or ours already?"""
    place = f"{settings.host}:{settings.port}"
    try:
        free_port(settings.host, settings.port)
    except SettingsError as error:
        if _is_tuner(settings):
            return Finding("port", "ok", f"{place}: a tuner service answers")
        remedy = f"tuner up --port {settings.port + 1}, or end what listens there"
        return Finding("port", "problem", str(error), remedy)
    return Finding("port", "ok", f"{place} is free")


def _is_tuner(settings: Settings) -> bool:
    connection = HTTPConnection(settings.host, settings.port, timeout=2.0)
    try:
        connection.request("GET", "/healthz")
        return "version" in json.loads(connection.getresponse().read(4096))
    except (OSError, HTTPException, ValueError, TypeError):
        return False
    finally:
        connection.close()


def database(settings: Settings) -> Finding:
    """Does the database answer, with the schema of this software?"""
    if extras.missing("storage"):
        return Finding("database", "absent", "needs the server or the worker", _install("server"))
    from tuner_service.storage import Database, check_schema  # noqa: PLC0415 - an extra
    from tuner_service.storage.database import is_sqlite, sqlite_path  # noqa: PLC0415

    url = settings.resolved_database_url
    kind = "SQLite" if is_sqlite(url) else "PostgreSQL"
    if is_sqlite(url) and not sqlite_path(url).exists():
        return Finding(
            "database", "ok", f"SQLite, none at {sqlite_path(url)} yet: `tuner up` makes it"
        )
    try:
        with contextlib.closing(Database.open(url)) as db:
            check_schema(db)
    except TunerError as error:
        return Finding(
            "database", "problem", f"{kind}: {error}", "TUNER_DATABASE_URL; tuner migrate"
        )
    return Finding("database", "ok", f"{kind}, of this version")


def broker(settings: Settings) -> Finding:
    """Does the broker answer?"""
    if extras.missing("storage"):
        return Finding("broker", "absent", "needs the server or the worker", _install("server"))
    if settings.resolved_broker_url.startswith("filesystem:"):
        return Finding("broker", "ok", "a directory in the data directory")
    from tuner_service.broker.ring import Ringer  # noqa: PLC0415 - an extra

    try:
        with contextlib.closing(Ringer(settings)) as ringer:
            ringer.ping()
    except TunerError as error:
        return Finding("broker", "problem", str(error), "start Redis, or set TUNER_BROKER_URL")
    return Finding("broker", "ok", "Redis answers")


def trial(try_trial: Try) -> Finding:
    """Does one trial train for one epoch?"""
    if extras.missing("worker"):
        return Finding("trial", "absent", "needs the worker", _install("worker"))
    try:
        found = try_trial(TRIAL)
    except TunerError as error:
        return Finding("trial", "problem", str(error), "mend what stands above first")
    accuracy = found["metrics"].get("val_accuracy", float("nan"))
    detail = f"one epoch of iris on {found['device']}, validation accuracy {accuracy:.2g}"
    return Finding("trial", "ok", detail)
