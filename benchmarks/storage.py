"""Durable trials per second: our unit of work against Optuna's `RDBStorage`, on both databases.

A trial is four parameters, ten reports and a result. Ours: one process, 64 lanes, claimed from a
study as a worker claims them and flushed through `lifecycle.flush` after every epoch. Optuna's:
two processes that ask, suggest, report and tell, as `study.optimize` does, with random sampling so
that the sampler costs nothing. Both write to a database that survives a power cut: SQLite as each
side opens it (Optuna's default journal and `synchronous=FULL`; ours WAL and `FULL`), PostgreSQL
with its defaults.

    python -m benchmarks.storage [--rounds 3] [--databases sqlite postgresql]
"""

import argparse
import contextlib
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import optuna

from benchmarks.rounds import Figure, describe, interleave, median_ratio, report
from tests.servers import MissingServerError, PostgresServer, postgres_server
from tuner_service.definition import parse_definition
from tuner_service.lifecycle.claim import claim
from tuner_service.lifecycle.flush import flush
from tuner_service.lifecycle.messages import Batch, Finish, Lease, Report, Start
from tuner_service.lifecycle.submit import submit
from tuner_service.reads.studies import get_study
from tuner_service.settings import Settings
from tuner_service.storage import Database, migrate

LANES = 64
REPORTS = 10
LEASE_SECONDS = 60.0
GOALS = {"sqlite": 50.0, "postgresql": 40.0}
DEFINITION: dict[str, Any] = {
    "name": "storage",
    "dataset": {"name": "digits"},
    "network": {"type": "mlp"},
    "objective": {"metric": "val_accuracy", "direction": "maximize"},
    "parameters": {
        "learning_rate": {"type": "float", "low": 1e-4, "high": 1e-1, "log": True},
        "momentum": {"type": "float", "low": 0.0, "high": 0.99},
        "batch_size": {"type": "categorical", "choices": [16, 32, 64, 128]},
        "hidden_units": {"type": "int", "low": 16, "high": 128},
    },
    "sampler": {"type": "random", "seed": 0},
    "training": {"epochs": REPORTS, "optimizer": "sgd"},
    "resources": {"parallel_trials": LANES},
}


class Worker:
    """What a supervisor does to the database, without the training."""

    def __init__(self, db: Database) -> None:
        self.db = db
        self.settings = Settings(lease_seconds=LEASE_SECONDS)

    def run(self) -> int:
        """Work until nothing is claimable; return the number of finished trials."""
        finished = 0
        while leases := self._claim():
            finished += self._train(leases)
        return finished

    def _claim(self) -> list[Lease]:
        claimed = claim(
            self.db, worker_id="bench", queue="cpu", limit=LANES, lease_seconds=LEASE_SECONDS
        )
        return claimed.leases

    def _train(self, leases: list[Lease]) -> int:
        starts = [Start(lease, lease.parameters or {}) for lease in leases]
        started = self._flush(Batch(starts=starts)).started
        running = [(lease, started[lease.key].trial_id) for lease in leases]
        for step in range(1, REPORTS + 1):
            reports = [
                Report(lease, trial_id, step, step / REPORTS, _record(step))
                for lease, trial_id in running
            ]
            finishes = []
            if step == REPORTS:
                finishes = [
                    Finish(lease, trial_id, "COMPLETE", (1.0,), {}) for lease, trial_id in running
                ]
            self._flush(Batch(reports=reports, finishes=finishes))
        return len(running)

    def _flush(self, batch: Batch) -> Any:
        return flush(
            self.db,
            worker_id="bench",
            batch=batch,
            lease_seconds=LEASE_SECONDS,
            settings=self.settings,
        )


def _record(step: int) -> dict[str, Any]:
    return {
        "train_loss": 1.0 / step,
        "val_loss": 1.1 / step,
        "val_accuracy": step / REPORTS,
        "learning_rate": 0.01,
        "seconds": 0.02,
    }


def ours(url: Callable[[], str], trials: int) -> float:
    """Return our trials per second."""
    database_url = url()
    migrate(database_url)
    db = Database.open(database_url)
    definition = parse_definition({**DEFINITION, "budget": {"trials": trials}})
    study, _ = submit(db, definition, settings=Settings())
    start = time.perf_counter()
    finished = Worker(db).run()
    seconds = time.perf_counter() - start
    ended = get_study(db, study.id)
    db.close()
    if finished != trials or ended.state != "completed":
        raise SystemExit(f"storage: {finished} of {trials} trials, study {ended.state}")
    return trials / seconds


def _optimize(url: str, trials: int, ready: Any, go: Any) -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.RandomSampler(seed=None)
    study = optuna.load_study(study_name="storage", storage=url, sampler=sampler)
    ready.release()
    go.wait()
    study.optimize(_objective, n_trials=trials)


def _objective(trial: optuna.Trial) -> float:
    trial.suggest_float("learning_rate", 1e-4, 1e-1, log=True)
    trial.suggest_float("momentum", 0.0, 0.99)
    trial.suggest_categorical("batch_size", [16, 32, 64, 128])
    trial.suggest_int("hidden_units", 16, 128)
    for step in range(1, REPORTS + 1):
        trial.report(step / REPORTS, step)
    return 1.0


def theirs(url: Callable[[], str], trials: int, processes: int = 2) -> float:
    """Return the trials per second of plain Optuna's storage."""
    database_url = url()
    context = multiprocessing.get_context("spawn")
    ready, go = context.Semaphore(0), context.Event()
    optuna.create_study(study_name="storage", storage=database_url, direction="maximize")
    share = trials // processes
    workers = [
        context.Process(target=_optimize, args=(database_url, share, ready, go))
        for _ in range(processes)
    ]
    for worker in workers:
        worker.start()
    for _ in workers:
        ready.acquire()
    start = time.perf_counter()
    go.set()
    for worker in workers:
        worker.join()
    seconds = time.perf_counter() - start
    if any(worker.exitcode for worker in workers):
        raise SystemExit("storage: a process of the baseline failed")
    return share * processes / seconds


@contextlib.contextmanager
def fresh_urls(database: str) -> Iterator[Callable[[], str]]:
    """Yield a function that returns the URL of a new, empty, durable database."""
    if database == "sqlite":
        with tempfile.TemporaryDirectory(prefix="bench-storage-") as directory:
            numbers = iter(range(1_000_000))
            yield lambda: f"sqlite:///{Path(directory) / f'{next(numbers)}.db'}"
        return
    with postgres_server(durable=True) as server:
        yield partial(_fresh_database, server)


def _fresh_database(server: PostgresServer) -> str:
    return server.url(server.create_database())


def measure(database: str, *, rounds: int, trials: int, baseline_trials: int) -> Figure:
    """Measure one database and print what each side did."""
    with fresh_urls(database) as url:
        results = interleave(
            {
                "flush, 64 lanes": partial(ours, url, trials),
                "RDBStorage, 2 processes": partial(theirs, url, baseline_trials),
            },
            rounds,
        )
    print(f"{database}, {rounds} rounds, trials/s:")
    print("\n".join(describe(results, "trials/s")))
    ratio = median_ratio(results, "flush, 64 lanes", "RDBStorage, 2 processes")
    return Figure(
        f"durable trials, 10 reports, 64 lanes, {database}",
        ratio,
        GOALS[database],
        "x RDB",
    )


def figures(
    databases: list[str], *, rounds: int = 3, trials: int = 1920, baseline_trials: int = 60
) -> list[Figure]:
    """Measure what can be measured here."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    found = []
    for database in databases:
        try:
            figure = measure(
                database, rounds=rounds, trials=trials, baseline_trials=baseline_trials
            )
        except MissingServerError as missing:
            print(f"{database}: not measured ({missing})")
            continue
        found.append(figure)
    return found


def quick() -> list[Figure]:
    """Measure for `make bench`."""
    return figures(list(GOALS), rounds=2, trials=1280, baseline_trials=40)


def main() -> None:
    """Print trials per second of both and their ratio."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--databases", nargs="+", choices=list(GOALS), default=list(GOALS))
    arguments = parser.parse_args()
    report(figures(arguments.databases, rounds=arguments.rounds))


if __name__ == "__main__":
    main()
