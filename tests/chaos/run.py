"""Attack a running service at random, and show that nothing is lost, doubled or stuck.

    python -m tests.chaos.run --minutes 5 --seed 1 --backend both

Real studies (grid, random, TPE, ones that diverge, hang, exit or eat all memory) run on four
workers while faults strike. Every
random choice comes from the printed seed. At the end the faults stop, every study must reach its
end, and the invariants must hold.
"""

import argparse
import contextlib
import logging
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
from sqlalchemy import make_url

from tests.chaos.checks import violations
from tests.chaos.faults import Rig
from tests.clock import Clock, NoCompilerError, shiftable_clock
from tests.disk import small_disk
from tests.e2e.service import FINAL, Service, running, until
from tests.e2e.studies import base, grid, sampled
from tests.invariants import check_invariants
from tests.proxy import proxy
from tests.servers import postgres_server, redis_server
from tuner_service.errors import UnavailableError
from tuner_service.settings import Settings
from tuner_service.storage import Database

logger = logging.getLogger("chaos")

LEASE_SECONDS = 2.0
ACTIVE_STUDIES = 3
MAX_ATTEMPTS = 5
MODULES = Path(__file__).with_name("modules")
MOODS = (
    *("calm", "mild", "nan", "greedy", "exit", "die"),
    *("hang", "gil", "stop", "segv", "close"),
)
SETTINGS = {
    "TUNER_LEASE_SECONDS": str(LEASE_SECONDS),
    "TUNER_RECONCILE_SECONDS": "0.5",
    "TUNER_RETRY_BACKOFF_SECONDS": "0.1",
    "TUNER_CHECKPOINT_SECONDS": "0.5",
    "TUNER_GRACE_SECONDS": "5",
    "TUNER_PROGRESS_TIMEOUT_SECONDS": "6",
    "TUNER_MODULES_DIR": str(MODULES),
    "TUNER_LOG_LEVEL": "warning",
    # Chaos kills trainers that hold one trial only; that must not soon use a slot's attempts up.
    "TUNER_MAX_ATTEMPTS": str(MAX_ATTEMPTS),
}


@dataclass
class CounterChanges:
    """What a run did."""

    faults: Counter[str] = field(default_factory=Counter)
    studies: list[str] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    trials: int = 0


class Chaos:
    """One run: studies keep coming, faults keep striking, until the time is over."""

    def __init__(self, rig: Rig, rng: random.Random, *, only: Sequence[str] = ()) -> None:
        self.rig = rig
        self.rng = rng
        self.tally = CounterChanges()
        self._active: list[str] = []
        self._moves: dict[str, Callable[[random.Random], object]] = {
            **rig.faults(),
            "pause and resume": self._pause_and_resume,
            "cancel": self._cancel,
        }
        if unknown := set(only) - set(self._moves):
            raise ValueError(f"faults must be of {sorted(self._moves)}, but got {sorted(unknown)}")
        self._names = list(only) or list(self._moves)

    def run(self, seconds: float) -> CounterChanges:
        """Attack for `seconds`, then wait for every study's end and check everything."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._top_up()
            name = self.rng.choice(self._names)
            pause = self.rng.uniform(0.1, 1.5)
            logger.info("%s", name)
            self._moves[name](self.rng)
            self.tally.faults[name] += 1
            self._check_rows()
            time.sleep(pause)
            self.rig.mend()
        self._finish()
        self._check_rows()
        return self.tally

    def _check_rows(self) -> None:
        """The invariants hold at every moment, whatever is down.

        I5 alone has a grace: nobody can reap while the database is away, so it is asked again.
        """
        deadline = time.monotonic() + 10 * LEASE_SECONDS
        while (broken := self._broken_invariant()) is not None:
            if not broken.startswith("I5") or time.monotonic() > deadline:
                logger.error("%s", broken)
                self.tally.violations.append(broken)
                return
            time.sleep(0.5)

    def _broken_invariant(self) -> str | None:
        service = self.rig.service
        settings = Settings(data_dir=service.directory, max_attempts=MAX_ATTEMPTS)
        grace_seconds = 5 * LEASE_SECONDS
        if self.rig.clock is not None and self.rig.postgres is None:
            grace_seconds -= (
                self.rig.clock.seconds
            )  # SQLite asks this process, whose clock is right
        try:
            with contextlib.closing(Database.open(self.rig.checked_url)) as db:
                check_invariants(db, settings=settings, grace_seconds=grace_seconds)
        except AssertionError as broken:
            return str(broken)
        except UnavailableError as away:
            logger.info("not checked: %s", away)
        return None

    def _top_up(self) -> None:
        self._active = [study for study in self._active if self._state(study) not in FINAL]
        while len(self._active) < ACTIVE_STUDIES:
            definition = _some_study(self.rng, len(self.tally.studies))
            key = {"Idempotency-Key": f"chaos-{definition['name']}"}
            study = self._patiently(
                lambda d=definition, k=key: self.rig.service.request(
                    "POST", "/v1/studies", json=d, headers=k
                )["id"]
            )
            self._active.append(study)
            self.tally.studies.append(study)

    def _pause_and_resume(self, rng: random.Random) -> None:
        study = rng.choice(self._active)
        self._act(study, "pause")
        time.sleep(rng.uniform(0.0, LEASE_SECONDS))
        self._act(study, "resume")

    def _cancel(self, rng: random.Random) -> None:
        if rng.random() < 0.3:  # or hardly any study would reach its end
            self._act(rng.choice(self._active), "cancel")

    def _act(self, study: str, action: str) -> None:
        url = f"http://127.0.0.1:{self.rig.service.port}/v1/studies/{study}/{action}"

        def ask() -> bool:
            status = httpx2.post(url, timeout=30.0).status_code
            if status >= 500:
                raise RuntimeError(f"{action}: {status}")
            return True  # a 409 means that the study has ended meanwhile

        self._patiently(ask)

    def _state(self, study: str) -> str:
        return str(self._patiently(lambda: self.rig.service.study(study)["state"]))

    def _patiently(self, ask: Callable[[], Any]) -> Any:
        """Ask until there is an answer: a client that tries again, as ours do."""

        def attempt() -> list[Any]:
            try:
                return [ask()]
            except (httpx2.HTTPError, RuntimeError):
                self.rig.mend()
                return []

        return until(attempt, seconds=90.0, what="an answer of the API")[0]

    def _finish(self) -> None:
        self.rig.mend()
        for study in self.tally.studies:
            try:
                until(lambda s=study: self._state(s) in FINAL, seconds=240.0, what=study)
            except TimeoutError as error:
                self.tally.violations.append(f"stuck: {error}")
        # Running trials of a study that was cancelled late end within the lease.
        time.sleep(2 * LEASE_SECONDS)
        for study in self.tally.studies:
            view, trials = self.rig.service.study(study), self.rig.service.trials(study)
            self.tally.trials += len(trials)
            self.tally.violations += violations(view, trials)


def _some_study(rng: random.Random, number: int) -> dict[str, Any]:
    kind = rng.choice(["grid", "random", "tpe", "wild"] * 2 + ["moody"])
    name = f"{kind}-{number}"
    if kind == "grid":
        return grid(name)
    if kind == "moody":
        return moody(name, trials=rng.randint(3, 8), seed=number)
    sampler = "random" if kind == "wild" else kind
    pruner = {"type": rng.choice(["none", "median"])}
    definition = sampled(
        name, sampler, rng.randint(5, 40), training={"epochs": rng.randint(1, 60)}, pruner=pruner
    )
    if kind == "wild":
        definition["parameters"]["learning_rate"]["high"] = 1e30
    return definition


def moody(name: str, *, trials: int, seed: int) -> dict[str, Any]:
    """Return a study whose network harms its process in most of its trials."""
    return base(
        name,
        network={"type": "moody"},
        parameters={"mood": {"type": "categorical", "choices": list(MOODS)}},
        sampler={"type": "random", "seed": seed},
        budget={"trials": trials, "max_failures": trials},
    )


@contextlib.contextmanager
def rig_on(backend: str, directory: Path, *, workers: int) -> Iterator[Rig]:
    """Run a service for an attack, on servers of its own."""
    with contextlib.ExitStack() as stack:
        clock = _clock(stack)
        wrong = {} if clock is None else clock.environment
        settings = {**SETTINGS, **wrong}
        disk = stack.enter_context(small_disk(directory))
        if backend == "sqlite":
            url = f"sqlite:///{directory / 'tuner.db'}"
            service = Service(directory, url, settings=settings)
            rig = Rig(service, url, workers, LEASE_SECONDS, disk=disk, clock=clock)
        else:
            postgres = stack.enter_context(
                postgres_server(durable=True, small_disk=True, environment=wrong)
            )
            redis = stack.enter_context(redis_server())
            to_postgres = stack.enter_context(proxy(postgres.port))
            to_redis = stack.enter_context(proxy(redis.port))
            url = postgres.url(postgres.create_database())
            service = Service(
                directory,
                make_url(url).set(port=to_postgres.port).render_as_string(hide_password=False),
                f"redis://127.0.0.1:{to_redis.port}/0",
                settings=settings,
            )
            networks = {"PostgreSQL": to_postgres, "Redis": to_redis}
            rig = Rig(service, url, workers, LEASE_SECONDS, postgres, redis, disk, networks, clock)
        stack.enter_context(running(service, workers=workers))
        yield rig


def _clock(stack: contextlib.ExitStack) -> Clock | None:
    try:
        return stack.enter_context(shiftable_clock())
    except NoCompilerError as missing:
        logger.warning("the clock is not set: %s", missing)
        return None


def attack(
    backend: str, *, seconds: float, seed: int, workers: int, only: Sequence[str] = ()
) -> CounterChanges:
    """Run one attack and return what came of it."""
    logger.warning("chaos on %s, seed %d, %g s, %d workers", backend, seed, seconds, workers)
    with (
        tempfile.TemporaryDirectory(prefix="tuner-chaos-") as name,
        rig_on(backend, Path(name), workers=workers) as rig,
    ):
        # The generator is for reproducing a run, not for secrets.
        tally = Chaos(rig, random.Random(seed), only=only).run(seconds)
        if tally.violations:
            sys.stderr.write(rig.service.logs())
    logger.warning(
        "%s: %d studies, %d trials, %d faults %s; %d violations",
        backend,
        len(tally.studies),
        tally.trials,
        tally.faults.total(),
        dict(tally.faults),
        len(tally.violations),
    )
    for violation in tally.violations:
        logger.error("%s", violation)
    return tally


def main(arguments: Sequence[str] | None = None) -> int:
    """Attack each back end and return 1 if an invariant was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.run", description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0, help="per back end")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--backend", choices=["sqlite", "postgresql", "both"], default="both")
    parser.add_argument("--only", action="append", default=[], help="a fault; several are allowed")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stdout)
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    seed = options.seed if options.seed is not None else int(time.time())
    backends = ["sqlite", "postgresql"] if options.backend == "both" else [options.backend]
    tallies = [
        attack(
            one, seconds=options.minutes * 60, seed=seed, workers=options.workers, only=options.only
        )
        for one in backends
    ]
    return 1 if any(tally.violations for tally in tallies) else 0


if __name__ == "__main__":
    sys.exit(main())
