"""A whole service of child processes: API, workers with their trainers, any database and broker.

Everything is started as an operator would, with settings in the environment, and spoken to over
HTTP. `kill` and `freeze` take single processes away, as chaos does.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import psutil

from tests.servers import free_port
from tuner_service.storage import migrate

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 240.0
SERVE = "from tuner_service.api.server import *; serve(Settings())"
FINAL = ("completed", "cancelled", "failed")


def until(probe: Callable[[], Any], *, seconds: float = 60.0, what: str = "the condition") -> Any:
    """Return the first true answer of `probe`, polling."""
    deadline = time.monotonic() + seconds
    while not (answer := probe()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {seconds:g} s")
        time.sleep(0.05)
    return answer


@dataclass
class Child:
    """One process of the service and its log."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    def trainer(self) -> psutil.Process | None:
        """Return the trainer below a worker, while there is one."""
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self.pid).children():
                if "-m workers.trainer " in " ".join(child.cmdline()):
                    return child
        return None

    def tail(self) -> str:
        """Return the end of its log."""
        return f"--- {self.name}\n{self.log.read_text(errors='replace')[-3000:]}"


@dataclass
class Service:
    """Processes on one database and one broker."""

    directory: Path
    database_url: str
    broker_url: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)
    api: Child | None = None
    workers: list[Child] = field(default_factory=list)
    ended: list[Child] = field(default_factory=list)
    port: int = field(default_factory=free_port)
    # Kept: each one made anew reads the machine's certificates, 23 ms. Its connections are not: the
    # API at their other end comes and goes.
    http: httpx2.Client = field(
        default_factory=lambda: httpx2.Client(limits=httpx2.Limits(max_keepalive_connections=0))
    )

    @property
    def environment(self) -> dict[str, str]:
        """The environment of every process of the service."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("TUNER_")}
        return {
            **kept,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "TUNER_DATA_DIR": str(self.directory),
            "TUNER_DATABASE_URL": self.database_url,
            "TUNER_BROKER_URL": self.broker_url,
            "TUNER_PORT": str(self.port),
            "TUNER_DEVICE": "cpu",
            **self.settings,
        }

    # Processes

    def start_api(self) -> None:
        """Start the API and wait until it is ready."""
        self.launch_api()
        until(self.is_ready, seconds=START_SECONDS, what="the API")

    def launch_api(self) -> None:
        """Start the API, without waiting for it."""
        self.api = self._start("api", "-c", SERVE)

    def is_ready(self) -> bool:
        """Return whether the API, its database and its broker are there."""
        if self.api is not None and self.api.process.poll() is not None:
            raise RuntimeError(self.api.tail())
        with contextlib.suppress(httpx2.HTTPError):
            return self.http.get(f"http://127.0.0.1:{self.port}/readyz").status_code == 200
        return False

    def scale(self, count: int) -> None:
        """Start or stop workers until `count` run and are listed."""
        while len(self.workers) > count:
            self.stop(self.workers[-1])
        while len(self.workers) < count:
            self.add_worker()
        until(self._all_listed, seconds=START_SECONDS, what=f"{count} workers")

    def add_worker(self) -> Child:
        """Start a worker, without waiting for it."""
        number = len(self.workers) + len(self.ended)
        worker = self._start(f"worker-{number}", "-m", "workers")
        self.workers.append(worker)
        return worker

    def stop(self, child: Child, seconds: float = 30.0) -> int:
        """Stop a process in order and return its exit code."""
        child.process.send_signal(signal.SIGTERM)
        try:
            return child.process.wait(seconds)
        finally:
            self._take_off(child)

    def kill(self, child: Child) -> None:
        """End a process at once."""
        child.process.kill()
        child.process.wait(10.0)
        self._take_off(child)

    def close(self) -> None:
        """End everything."""
        for child in [*self.workers, *([self.api] if self.api else [])]:
            child.process.send_signal(signal.SIGCONT)
            child.process.send_signal(signal.SIGTERM)
        for child in [*self.workers, *([self.api] if self.api else [])]:
            try:
                child.process.wait(20.0)
            except subprocess.TimeoutExpired:
                child.process.kill()
                child.process.wait(10.0)

    def logs(self) -> str:
        """Return the end of every log, for a failure's report."""
        children = [*([self.api] if self.api else []), *self.workers, *self.ended]
        return "\n".join(child.tail() for child in children)

    def _start(self, name: str, *arguments: str) -> Child:
        log = self.directory / f"{name}-{free_port()}.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, *arguments],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        return Child(name, process, log)

    def _take_off(self, child: Child) -> None:
        if child in self.workers:
            self.workers.remove(child)
        if child is self.api:
            self.api = None
        self.ended.append(child)

    def _all_listed(self) -> bool:
        for worker in self.workers:
            if worker.process.poll() is not None:
                raise RuntimeError(worker.tail())
        listed = {worker["pid"] for worker in self.get("/v1/workers")["items"]}
        return {worker.pid for worker in self.workers} <= listed

    # REST

    def request(self, method: str, path: str, **more: Any) -> Any:
        """Return the JSON of an answer that is no error."""
        url = f"http://127.0.0.1:{self.port}{path}"
        answer = self.http.request(method, url, timeout=30.0, **more)
        if answer.status_code >= 400:
            raise RuntimeError(f"{method} {path}: {answer.status_code} {answer.text}")
        return answer.json() if answer.content else None

    def get(self, path: str) -> Any:
        """GET."""
        return self.request("GET", path)

    def submit(self, definition: Mapping[str, Any]) -> str:
        """Submit a study and return its id."""
        return str(self.request("POST", "/v1/studies", json=definition)["id"])

    def study(self, study: str) -> dict[str, Any]:
        """Return a study."""
        return dict(self.get(f"/v1/studies/{study}"))

    def act(self, study: str, action: str) -> dict[str, Any]:
        """Pause, resume or cancel."""
        return dict(self.request("POST", f"/v1/studies/{study}/{action}"))

    def wait(self, study: str, *states: str, seconds: float = 90.0) -> dict[str, Any]:
        """Wait until a study is in one of these states; by default, at its end."""
        wanted = states or FINAL
        found: dict[str, Any] = {}

        def reached() -> bool:
            found.update(self.study(study))
            return found["state"] in wanted

        try:
            until(reached, seconds=seconds, what=f"study {study} {wanted}")
        except TimeoutError as error:
            raise TimeoutError(f"{error}; it is {found}\n{self.logs()}") from None
        return found

    def trials(self, study: str) -> list[dict[str, Any]]:
        """Return all trials of a study, page after page."""
        found, cursor = [], ""
        while True:
            page = self.get(f"/v1/studies/{study}/trials?limit=50{cursor}")
            found += page["items"]
            if page["next_cursor"] is None:
                return found
            cursor = f"&cursor={page['next_cursor']}"

    def done(self, study: str) -> int:
        """Return how many slots of a study are done."""
        return int(self.study(study)["progress"]["done"])


@contextlib.contextmanager
def running(service: Service, *, workers: int) -> Iterator[Service]:
    """Migrate, start, and end a service."""
    service.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    migrate(service.database_url)
    try:
        service.start_api()
        service.scale(workers)
        yield service
    finally:
        service.close()
