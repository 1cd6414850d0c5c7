"""`tuner up`: API, dashboard and workers of one machine, as children of one process.

At SIGTERM, SIGHUP or Ctrl-C all are asked to stop, and killed when the grace time is over; a
second Ctrl-C kills at once.
"""

import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tuner_service import __version__
from tuner_service.access.keys import any_key_made, forget_settings_key, require_safe_settings
from tuner_service.definition.user_modules import NOT_OFFERED
from tuner_service.errors import SettingsError, UnavailableError
from tuner_service.files import private_folder
from tuner_service.layout import worker_environment
from tuner_service.reads.workers import list_workers
from tuner_service.settings import Settings
from tuner_service.storage import Database, migrate
from tuner_service.up.embedded import stop_when_released
from tuner_service.up.machine import (
    StartError,
    answers,
    default_workers,
    free_port,
    only_one,
    tell_address,
    usable_gpus,
    visible_gpus,
)
from tuner_service.up.services import POLL_SECONDS, Say, Service, Services, aside_of

START_SECONDS = 60.0


def up(
    settings: Settings,
    *,
    workers: int | None,
    device: str,
    say: Say,
    until_released: Path | None = None,
) -> None:
    """Run the whole service until a signal ends it.

    Args:
        settings: Host, port and data directory among them; port 0 takes a free one.
        workers: How many; None means one per GPU, or per core but at most four.
        device: auto, cpu or cuda.
        say: Prints one line.
        until_released: A lock that others share; the service ends when none of them is left.

    Raises:
        SettingsError: The port or the data directory is taken, or an API key is needed
            and there is none.
        StartError: The API does not start.
    """
    settings.directory.prepare()
    with only_one(settings):
        settings = settings.model_copy(update={"port": free_port(settings.host, settings.port)})
        migrate(settings.resolved_database_url)
        keys_reason = _keys_reason(settings)
        gpus = _gpus(device, say)
        count = default_workers(gpus) if workers is None else workers
        services = Services(_members(settings, gpus, count), say, settings.grace_seconds)
        with _signals(services.request_stop), services.held() as parent_pipe:
            tell_address(settings, address(settings))
            if until_released is not None:
                stop_when_released(until_released, services.request_stop)
            if keys_reason:
                say(f"Every caller needs an API key: {keys_reason}.")
            _run(services, settings, parent_pipe, _device_words(gpus, count))
    say("Stopped.")


def _gpus(device: str, say: Say) -> list[str]:
    """Return the GPUs to start workers for; say why one that is there cannot be used."""
    gpus, reason = usable_gpus([] if device == "cpu" else visible_gpus())
    if device == "cuda" and not gpus:
        why = "without a GPU" if reason is None else f"while torch can use no GPU ({reason})"
        raise SettingsError(f"device must be auto or cpu {why}, but got 'cuda'")
    if reason is not None:
        say(f"There is a GPU, and torch cannot use it: {reason}. Workers train on the CPU.")
    return gpus


def _keys_reason(settings: Settings) -> str:
    """Refuse at once what the API would refuse when it starts; return why it asks for keys."""
    with contextlib.closing(Database.open(settings.resolved_database_url)) as db:
        forget_settings_key(db)
        require_safe_settings(db, settings)
        made = settings.require_keys is not False and any_key_made(db)
    return settings.keys_reason or ("there are some (`tuner keys list`)" if made else "")


def _run(services: Services, settings: Settings, parent_pipe: int, workers: str) -> None:
    say = services.say
    say(f"tuner {__version__} is starting; data and logs in {settings.data_dir}")
    if not _await_api(services, settings, parent_pipe):
        return
    url = address(settings)
    say(f"  Page        {url}")
    say(f"  API         {url}  (description: {url}/docs)")
    say(f"  Dashboard   {url}/dashboard")
    say(f"  Workers     {workers}, starting")
    if not _await_worker(services, settings, parent_pipe):
        return
    say(f"Ready. Submit a study: tuner submit {_example()} --watch{_url_hint(url)}")
    say("Stop with Ctrl-C; studies go on where they stand at the next `tuner up`.")
    while not services.stopping.wait(POLL_SECONDS):
        _attend(services, parent_pipe)
    say("Stopping: running trials are saved and handed back.")


def _attend(services: Services, parent_pipe: int) -> None:
    """Keep the children running, and say which modules the first worker, as all others, refuses."""
    services.restart_ended(parent_pipe)
    for worker in services.members[1:2]:
        for line in worker.news():
            _, module, refusal = line.partition("module ")
            if module and NOT_OFFERED in refusal:
                services.say(f"Module {refusal.rpartition(' [worker=')[0] or refusal}")


def _await_api(services: Services, settings: Settings, parent_pipe: int) -> bool:
    """Start everything; return whether the API came up before somebody asked to stop."""
    api = services.members[0]
    deadline = time.monotonic() + START_SECONDS
    while not services.stopping.wait(POLL_SECONDS):
        if api.process is not None and api.process.poll() is not None:
            raise StartError(f"The API does not start. The end of {api.log}:\n{api.tail()}")
        if answers(address(settings)):
            return True
        _attend(services, parent_pipe)
        if time.monotonic() > deadline:
            raise StartError(
                f"The API does not answer within {START_SECONDS:g} s. "
                f"The end of {api.log}:\n{api.tail()}"
            )
    return False


def _await_worker(services: Services, settings: Settings, parent_pipe: int) -> bool:
    """Wait for the first worker; return whether nobody asked to stop before.

    The service is of use without one: what is submitted waits. So it goes on, and says why.
    """
    workers = services.members[1:]
    deadline = time.monotonic() + START_SECONDS
    with contextlib.closing(Database.open(settings.resolved_database_url)) as db:
        while workers and not _one_listed(db, workers):
            if services.stopping.wait(POLL_SECONDS):
                return False
            _attend(services, parent_pipe)
            if time.monotonic() > deadline:
                services.say(
                    f"No worker has started within {START_SECONDS:g} s; see {workers[0].log}. "
                    "What is submitted waits for one."
                )
                return True
    return True


def _one_listed(db: Database, workers: Sequence[Service]) -> bool:
    pids = {service.process.pid for service in workers if service.process is not None}
    host = socket.gethostname()
    with contextlib.suppress(UnavailableError):
        return any(one.pid in pids and one.host == host for one in list_workers(db))
    return False


def address(settings: Settings) -> str:
    """Return the URL under which this machine reaches the API."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)  # noqa: S104
    return f"http://[{host}]:{settings.port}" if ":" in host else f"http://{host}:{settings.port}"


def _example() -> str:
    path = Path("examples/digits-tpe.yaml")
    return str(path) if path.exists() else "FILE"


def _url_hint(url: str) -> str:
    return "" if url == "http://127.0.0.1:8000" else f" --url {url}"


def _device_words(gpus: Sequence[str], count: int) -> str:
    return f"{count} on {len(gpus)} GPU(s)" if gpus else f"{count} on the CPU"


def _members(settings: Settings, gpus: Sequence[str], count: int) -> list[Service]:
    logs = private_folder(settings.directory.service_logs)
    environment = _environment(settings)
    serve = [sys.executable, "-m", "tuner_service.cli", "serve"]
    members = [Service("API", serve, environment, _fresh(logs / "api.log"))]
    for number in range(1, count + 1):
        place = {"TUNER_DEVICE": "cuda" if gpus else "cpu"}
        if gpus:
            place["CUDA_VISIBLE_DEVICES"] = gpus[(number - 1) % len(gpus)]
            if count > len(gpus):  # as --workers asks
                place["TUNER_SHARE_GPU"] = "true"
        log = _fresh(logs / f"worker-{number}.log")
        command = [sys.executable, "-m", "workers"]
        members.append(Service(f"Worker {number}", command, {**environment, **place}, log))
    return members


def _environment(settings: Settings) -> dict[str, str]:
    """Return the children's environment: ours, with the settings that were given as options."""
    ours = {
        # Small matrices gain nothing from BLAS threads, and processes here are many.
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        **os.environ,
        "PYTHONUNBUFFERED": "1",
        # A `workers` folder where the user happens to stand must not be taken for ours.
        "PYTHONSAFEPATH": "1",
        "TUNER_DATA_DIR": str(settings.data_dir),
        "TUNER_HOST": settings.host,
        "TUNER_PORT": str(settings.port),
    }
    return worker_environment(ours)


def _fresh(log: Path) -> Path:
    aside_of(log).unlink(missing_ok=True)
    log.write_bytes(b"")
    log.chmod(0o600)
    return log


@contextlib.contextmanager
def _signals(act: Callable[..., None]) -> Iterator[None]:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, act) for number in numbers}
    try:
        yield
    finally:
        for number, action in before.items():
            signal.signal(number, action)
