"""The faults: each takes something away from a running service, and gives it back if need be.

Every choice is drawn from the generator that is passed in, so that a run can be repeated from its
seed. `Rig.mend` replaces what a fault ended, as `tuner up` or a scheduler would.
"""

import contextlib
import os
import random
import resource
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import psutil

from tests.clock import Clock
from tests.disk import full
from tests.e2e.service import Child, Service, until
from tests.proxy import Proxy
from tests.servers import PostgresServer, RedisServer


@dataclass
class Rig:
    """A service under attack, and the servers and networks below it that are ours to break.

    Attributes:
        checked_url: The database, past every broken network.
    """

    service: Service
    checked_url: str
    workers: int
    lease_seconds: float
    postgres: PostgresServer | None = None
    redis: RedisServer | None = None
    disk: Path | None = None  # the data directory, where it is a small file system of its own
    networks: Mapping[str, Proxy] = field(default_factory=dict)  # to each server
    clock: Clock | None = None  # of the service's processes and of PostgreSQL

    def mend(self) -> None:
        """Replace processes that ended."""
        for worker in list(self.service.workers):
            if worker.process.poll() is not None:
                self.service.workers.remove(worker)
                self.service.ended.append(worker)
        while len(self.service.workers) < self.workers:
            self.service.add_worker()
        api = self.service.api
        if api is None or api.process.poll() is not None:
            self.service.launch_api()

    def faults(self) -> dict[str, Callable[[random.Random], object]]:
        """Return the faults this rig can take, by name."""
        faults: dict[str, Callable[[random.Random], object]] = {
            "kill worker": self.kill_worker,
            "kill trainer": self.kill_trainer,
            "kill API": self.kill_api,
            "freeze worker": self.freeze_worker,
            "freeze trainer": self.freeze_trainer,
            "stop worker": self.stop_worker,
            "starve trainer": self.starve_trainer,
        }
        if self.disk is not None:
            faults["fill disk"] = self.fill_disk
        if self.clock is not None:
            faults["set clock"] = self.set_clock
        if self.redis is not None:
            faults |= {"kill Redis": self.kill_redis, "flush Redis": self.flush_redis}
        if self.postgres is not None:
            faults["crash PostgreSQL"] = self.crash_postgres
            if self.postgres.disk is not None:
                faults["fill PostgreSQL's disk"] = self.fill_postgres
        for name, network in self.networks.items():
            faults[f"stall network to {name}"] = partial(self.stall_network, network)
            faults[f"cut network to {name}"] = partial(self.cut_network, network)
            faults[f"silence a connection to {name}"] = network.silence
        return faults

    def kill_worker(self, rng: random.Random) -> None:
        """SIGKILL a worker; its trainer must follow by itself."""
        if (worker := self._any_worker(rng)) is not None:
            trainer = worker.trainer()
            self.service.kill(worker)
            if trainer is not None:
                until(lambda: _is_gone(trainer), seconds=10.0, what="the orphaned trainer's end")

    def kill_trainer(self, rng: random.Random) -> None:
        """SIGKILL a trainer."""
        worker = self._any_worker(rng)
        trainer = worker.trainer() if worker is not None else None
        if trainer is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                trainer.kill()

    def kill_api(self, rng: random.Random) -> None:
        """SIGKILL the API."""
        del rng
        if self.service.api is not None:
            self.service.kill(self.service.api)

    def freeze_worker(self, rng: random.Random) -> None:
        """Stop a supervisor past its lease, with or without its trainer: a zombie wakes up."""
        worker = self._any_worker(rng)
        if worker is None:
            return
        trainer = worker.trainer() if rng.random() < 0.5 else None
        self._freeze(worker.pid, trainer, rng.uniform(1.2, 2.0) * self.lease_seconds)

    def freeze_trainer(self, rng: random.Random) -> None:
        """Stop a trainer for a while."""
        worker = self._any_worker(rng)
        if worker is not None and (trainer := worker.trainer()) is not None:
            self._freeze(trainer.pid, None, rng.uniform(0.2, 1.5) * self.lease_seconds)

    def stop_worker(self, rng: random.Random) -> None:
        """SIGTERM a worker, as a rolling restart does."""
        if (worker := self._any_worker(rng)) is not None:
            self.service.stop(worker)

    def starve_trainer(self, rng: random.Random) -> None:
        """Let a trainer have hardly any memory more than it has, for a while."""
        worker = self._any_worker(rng)
        more, seconds = rng.choice([0, 1 << 20, 16 << 20]), rng.uniform(0.5, 2.0)
        trainer = worker.trainer() if worker is not None else None
        with contextlib.suppress(psutil.NoSuchProcess):
            if trainer is not None:
                held = trainer.memory_info().vms + more
                trainer.rlimit(resource.RLIMIT_AS, (held, resource.RLIM_INFINITY))
                time.sleep(seconds)
                trainer.rlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)

    def fill_disk(self, rng: random.Random) -> None:
        """Leave no byte in the data directory for a while, sometimes longer than a lease."""
        assert self.disk is not None
        with full(self.disk):
            time.sleep(rng.uniform(0.2, 2.0) * self.lease_seconds)

    def fill_postgres(self, rng: random.Random) -> None:
        """Leave no byte to PostgreSQL for a while; it may crash of it, and is then started."""
        assert self.postgres is not None
        assert self.postgres.disk is not None
        with full(self.postgres.disk):
            time.sleep(rng.uniform(0.2, 2.0) * self.lease_seconds)
        self.postgres.revive()

    def set_clock(self, rng: random.Random) -> None:
        """Set everybody's wall clock by some seconds, or by an hour, forward or back."""
        assert self.clock is not None
        self.clock.jump(rng.choice([-3600.0, -10.0, 10.0, 3600.0]))

    def kill_redis(self, rng: random.Random) -> None:
        """SIGKILL Redis, which forgets everything, and start it again."""
        assert self.redis is not None
        self.redis.kill()
        time.sleep(rng.uniform(0.0, 2.0))
        self.redis.start()

    def flush_redis(self, rng: random.Random) -> None:
        """FLUSHALL."""
        del rng
        assert self.redis is not None
        self.redis.flush_all()

    def crash_postgres(self, rng: random.Random) -> None:
        """End PostgreSQL as a crash does, and start it again."""
        assert self.postgres is not None
        self.postgres.crash()
        time.sleep(rng.uniform(0.0, 1.5) * self.lease_seconds)
        self.postgres.start()

    def stall_network(self, network: Proxy, rng: random.Random) -> None:
        """Hold every byte back, sometimes longer than a lease, and deliver it late."""
        network.stall()
        time.sleep(rng.uniform(0.2, 2.0) * self.lease_seconds)
        network.resume()

    def cut_network(self, network: Proxy, rng: random.Random) -> None:
        """Reset every connection, and new ones for a while."""
        network.cut(refuse=True)
        time.sleep(rng.uniform(0.0, 1.5) * self.lease_seconds)
        network.resume()

    def _any_worker(self, rng: random.Random) -> Child | None:
        alive = [worker for worker in self.service.workers if worker.process.poll() is None]
        return rng.choice(alive) if alive else None

    def _freeze(self, pid: int, trainer: psutil.Process | None, seconds: float) -> None:
        pids = [pid, *([trainer.pid] if trainer is not None else [])]
        with contextlib.suppress(ProcessLookupError):
            for one in pids:
                os.kill(one, signal.SIGSTOP)
        time.sleep(seconds)
        for one in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(one, signal.SIGCONT)


def _is_gone(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
