"""An hour of ordinary work on a real `tuner up`: does anything grow that should not?

    python -m tests.chaos.soak --minutes 60 [--backend sqlite|postgresql]

Small studies keep coming (fused, pruned, diverging, with a module and with a training loop of
one's own; some paused, some cancelled), old ones are deleted, and clients wait and read. Every few
seconds memory, file handles and threads of every process are noted, and the database's size and
rows. At the end each series is judged by `tests.chaos.flat`: over the last two thirds of the run it
may grow by no more than `tests.chaos.measures.TOLERANCES`. The number of studies that are kept is
reached in the first third, so rows, files and the database's size must be flat as well.
"""

import argparse
import contextlib
import logging
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import psutil

from tests.chaos.checks import violations
from tests.chaos.measures import Samples
from tests.e2e.service import FINAL, ROOT, Service, until
from tests.e2e.studies import base, endless, grid, sampled
from tests.invariants import check_invariants
from tests.servers import postgres_server, redis_server
from tuner_service.settings import Settings
from tuner_service.storage import Database

logger = logging.getLogger("soak")

KEPT_STUDIES = 40
LIVE_STUDIES = 5
WAITERS = 4
READS = (
    "/healthz", "/readyz", "/metrics", "/v1/workers", "/v1/studies?limit=20", "/v1/studies/{}",
    "/v1/studies/{}/trials?limit=20", "/v1/studies/{}/coverage", "/v1/studies/{}/export?format=csv",
    "/dashboard/", "/api/studies",
)  # fmt: skip


@dataclass
class Record:
    """What a run did, and what broke."""

    faults: list[str] = field(default_factory=list)
    studies: int = 0
    trials: int = 0
    answers: int = 0


# The work


def calm(name: str) -> dict[str, Any]:
    """Return a study of a module of the user's, which trains plainly."""
    moods = {"type": "categorical", "choices": ["calm", "mild", "nan"]}
    return base(
        name,
        network={"type": "moody"},
        parameters={"mood": moods},
        sampler={"type": "random", "seed": 0},
        budget={"trials": 4, "max_failures": 4},
    )


def loop(name: str) -> dict[str, Any]:
    """Return a study of a training loop of the user's, each trial a process of its own."""
    return {
        "name": name,
        "network": {"type": "two_moons", "epochs": 3},
        "objective": {"metric": "accuracy", "direction": "maximize"},
        "parameters": {"learning_rate": {"type": "float", "low": 1e-3, "high": 1e-1}},
        "sampler": {"type": "random", "seed": 0},
        "budget": {"trials": 2},
    }


def wild(name: str) -> dict[str, Any]:
    """Return a study half of whose trials diverge."""
    definition = sampled(name, "random", 16, training={"epochs": 5})
    definition["parameters"]["learning_rate"]["high"] = 1e30
    return definition


KINDS: dict[str, Callable[[str], dict[str, Any]]] = {
    "random": lambda name: sampled(name, "random", 24, training={"epochs": 10}),
    "pruned": lambda name: sampled(
        name, "tpe", 16, training={"epochs": 20}, pruner={"type": "median"}
    ),
    "grid": grid,
    "wild": wild,
    "module": calm,
    "cancelled": lambda name: endless(name, 4),
    "tpe": lambda name: sampled(name, "tpe", 12),
    "paused": lambda name: sampled(name, "random", 8, training={"epochs": 200}),
    "loop": loop,
}


class Stream:
    """Studies that keep coming and going."""

    def __init__(
        self, service: Service, record: Record, rng: random.Random, *, pace_seconds: float
    ) -> None:
        self._completion_rate = pace_seconds
        self._service = service
        self._record = record
        self._rng = rng
        self._live: list[str] = []
        self._kept: deque[str] = deque()
        self.newest = ""

    def step(self) -> None:
        """Submit one study if there is room, act on it, and delete the oldest that have ended."""
        self._settle()
        if len(self._live) < LIVE_STUDIES:
            kind = list(KINDS)[self._record.studies % len(KINDS)]
            study = self._service.submit(KINDS[kind](f"{kind}-{self._record.studies}"))
            self._record.studies += 1
            self._live.append(study)
            self.newest = study
            time.sleep(self._rng.uniform(0.5, 1.5) * self._completion_rate)
            if kind == "cancelled":
                self._service.act(study, "cancel")
            elif kind == "paused" and self._service.study(study)["state"] not in FINAL:
                self._pause_and_resume(study)
        while len(self._kept) > KEPT_STUDIES:
            self._check_and_delete(self._kept.popleft())

    def finish(self) -> None:
        """Wait for every study's end, and check those that are left."""
        for study in list(self._live):
            self._service.wait(study, seconds=300.0)
        self._settle()
        time.sleep(5.0)  # a cancelled study's running trials learn of it at their next flush
        while self._kept:
            self._check_and_delete(self._kept.popleft())

    def _settle(self) -> None:
        ended = [study for study in self._live if self._service.study(study)["state"] in FINAL]
        self._live = [study for study in self._live if study not in ended]
        self._kept.extend(ended)

    def _pause_and_resume(self, study: str) -> None:
        with contextlib.suppress(RuntimeError):  # it may end before
            self._service.act(study, "pause")
            self._service.act(study, "resume")

    def _check_and_delete(self, study: str) -> None:
        view, trials = self._service.study(study), self._service.trials(study)
        self._record.trials += len(trials)
        self._record.faults += violations(view, trials)
        wanted = "cancelled" if view["name"].startswith("cancelled") else "completed"
        if view["state"] != wanted:
            self._record.faults.append(f"{view['name']} is {view['state']}: {view['reason']}")
        self._service.request("DELETE", f"/v1/studies/{study}")


def ask_on(
    service: Service, record: Record, paths: Callable[[], str], end: threading.Event
) -> None:
    """Ask for one address after the other until the end; note what should not be answered."""
    with httpx2.Client(base_url=f"http://127.0.0.1:{service.port}", timeout=60.0) as client:
        while not end.is_set():
            path = paths()
            try:
                status = client.get(path).status_code
            except httpx2.HTTPError as error:
                record.faults.append(f"GET {path}: {type(error).__name__}")
                end.wait(1.0)
                continue
            record.answers += 1
            if status >= 400 and status != 404:  # it may have been deleted meanwhile
                record.faults.append(f"GET {path}: {status}")


@contextlib.contextmanager
def clients(service: Service, record: Record, stream: Stream) -> Iterator[None]:
    """Run waiting and reading clients beside the block."""
    end = threading.Event()
    turn = iter(range(1 << 60))

    def waits() -> str:
        end.wait(0.2)
        return f"/v1/studies/{stream.newest}?wait=10" if stream.newest else "/v1/studies"

    def reads() -> str:
        end.wait(0.5)
        return READS[next(turn) % len(READS)].format(stream.newest or "none")

    threads = [
        threading.Thread(target=ask_on, args=(service, record, paths, end))
        for paths in (*[waits] * WAITERS, reads)
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        end.set()
        for thread in threads:
            thread.join(60.0)


# A run


def stop(process: subprocess.Popen[bytes], *, seconds: float = 60.0) -> bool:
    """Ask a process to stop; kill it and all below it if it does not, and return whether it did."""
    family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        for one in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        process.kill()
        process.wait()
        return False
    return True


@contextlib.contextmanager
def up(service: Service, workers: int, record: Record) -> Iterator[psutil.Process]:
    """Run `tuner up` for the block, and see it stop in order."""
    command = [sys.executable, "-m", "tuner_service.cli", "up", "--workers", str(workers)]
    log = service.directory / "up.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*command, "--device", "cpu"],
            env={**service.environment, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    try:
        until(lambda: "Ready." in log.read_text(), seconds=120.0, what="tuner up")
        yield psutil.Process(process.pid)
    finally:
        if not stop(process):
            record.faults.append("tuner up did not stop")
        logger.info("tuner up ended with %d\n%s", process.returncode, log.read_text()[-2000:])


@contextlib.contextmanager
def place(backend: str, directory: Path) -> Iterator[Service]:
    """Yield a service on a database and a broker, not yet started."""
    modules = directory / "modules"
    modules.mkdir()
    shutil.copy(Path(__file__).with_name("modules") / "moody.py", modules)
    shutil.copy(ROOT / "examples" / "loop" / "two_moons.py", modules)
    settings = {"TUNER_MODULES_DIR": str(modules)}
    with contextlib.ExitStack() as stack:
        data = directory / "data"
        data.mkdir(mode=0o700)
        if backend == "sqlite":
            yield Service(data, f"sqlite:///{data / 'tuner.db'}", settings=settings)
        else:
            postgres = stack.enter_context(postgres_server(durable=True))
            redis = stack.enter_context(redis_server())
            url = postgres.url(postgres.create_database())
            yield Service(data, url, redis.url, settings=settings)


def soak(
    backend: str, *, seconds: float, workers: int, seed: int, every: float, completion_rate: float
) -> tuple[Record, Samples]:
    """Run, and return what came of it and what was measured."""
    record, samples = Record(), Samples()
    with (
        tempfile.TemporaryDirectory(prefix="tuner-soak-") as name,
        place(backend, Path(name)) as service,
        up(service, workers, record) as process,
        contextlib.closing(Database.open(service.database_url)) as db,
    ):
        stream = Stream(service, record, random.Random(seed), pace_seconds=completion_rate)
        with clients(service, record, stream):
            begin = sampled_at = time.monotonic()
            while (now := time.monotonic()) < begin + seconds:
                stream.step()
                if now >= sampled_at:
                    samples.take(process, db, service.directory, now - begin)
                    sampled_at = now + every
                    logger.info("%.0f s: %d studies", now - begin, record.studies)
            stream.finish()
        check_invariants(db, settings=Settings(data_dir=service.directory))
    return record, samples


def report(record: Record, samples: Samples) -> bool:
    """Log a table of every series; return whether all are flat and nothing broke."""
    logger.info(
        "%d studies, %d trials, %d answers to clients; memory in MB; broken: %d %s",
        record.studies,
        record.trials,
        record.answers,
        len(record.faults),
        record.faults[:20],
    )
    table, flat = samples.table()
    logger.info("%s\n%s", "flat" if flat else "NOT flat", table)
    return flat and not record.faults


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, and return 1 if something grew or broke."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos.soak",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--backend", choices=["sqlite", "postgresql"], default="sqlite")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--every", type=float, default=10.0, help="seconds between samples")
    parser.add_argument("--pace", type=float, default=2.0, help="seconds between studies")
    parser.add_argument("--samples", type=Path, help="write every sample to this CSV file")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stdout)
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    record, samples = soak(
        options.backend,
        seconds=options.minutes * 60,
        workers=options.workers,
        seed=options.seed,
        every=options.every,
        completion_rate=options.completion_rate,
    )
    if options.samples is not None:
        options.samples.write_text(samples.csv())
    return 0 if report(record, samples) else 1


if __name__ == "__main__":
    sys.exit(main())
