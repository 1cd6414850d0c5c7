"""Latencies under load: 100 studies with 100,000 trials against almost nothing.

Two databases of one kind, each behind an API of its own. First each request is made of both in
turn, one at a time, over a socket, as a client makes it; claims as a worker makes them. Then many
callers at once, each asking again as soon as it was answered, while two workers claim and hand
back. With `--delete` a study of the loaded database is cancelled and deleted at the end, while
others claim. Rows are inserted in bulk and held against the invariants before anything is measured.

    python -m benchmarks.load [--backend sqlite|postgresql] [--studies 100] [--trials 1000]
                              [--samples 300] [--callers 16] [--seconds 10] [--delete]
"""

import argparse
import contextlib
import multiprocessing
import sqlite3
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from sqlalchemy import func, select

from benchmarks.rounds import Figure, report
from tests.e2e.service import Service
from tests.invariants import check_invariants
from tests.servers import postgres_server
from tuner_service.definition import Limits, parse_definition
from tuner_service.lifecycle.claim import claim
from tuner_service.lifecycle.flush import flush
from tuner_service.lifecycle.messages import Batch, HandBack
from tuner_service.lifecycle.submit import submit
from tuner_service.settings import Settings
from tuner_service.storage import Database, migrate
from tuner_service.storage.schema import studies

PAGE = 50
SMALL = (50, 120)  # studies and trials of each: enough that no page is shorter
READ_GOAL_SECONDS = 0.05
CLAIM_GOAL_SECONDS = 0.02
LEASE_SECONDS = 60.0
CLAIMERS = 2
MOST_SLOTS = 10_000_000
DEFINITION: dict[str, Any] = {
    "name": "load",
    "dataset": {"name": "digits"},
    "network": {"type": "mlp"},
    "objective": {"metric": "val_accuracy", "direction": "maximize"},
    "parameters": {"learning_rate": {"type": "float", "low": 1e-4, "high": 1e-1, "log": True}},
    "sampler": {"type": "random", "seed": 0},
    "resources": {"parallel_trials": 64},
}

# Nine tenths of the trials of every fifth study, and all of the others, are done. In words that
# both databases understand; NOW is put in.
BULK = """
CREATE TEMP TABLE steps AS SELECT 1 AS step UNION SELECT 2 UNION SELECT 3 UNION SELECT 4 UNION
    SELECT 5 UNION SELECT 6 UNION SELECT 7 UNION SELECT 8 UNION SELECT 9 UNION SELECT 10;
CREATE TEMP TABLE done AS
    SELECT s.id AS slot_id, s.number, s.study_id, o.optuna_study_id,
           CAST(s.parameters->>'learning_rate' AS double precision) AS rate,
           (s.id * 7919 % 10007) / 10007.0 AS value
    FROM tuner_slots s JOIN tuner_studies o ON o.id = s.study_id
    WHERE o.id % 5 <> 1 OR s.number < o.budget_trials * 9 / 10;
INSERT INTO trials (number, study_id, state, datetime_start, datetime_complete)
    SELECT number, optuna_study_id, 'COMPLETE', CURRENT_TIMESTAMP, CURRENT_TIMESTAMP FROM done
    ORDER BY study_id, number;
ALTER TABLE done ADD COLUMN trial_id int;
CREATE INDEX done_number ON done (optuna_study_id, number);
UPDATE done SET trial_id = t.trial_id FROM trials t
    WHERE t.study_id = done.optuna_study_id AND t.number = done.number;
CREATE INDEX done_slot ON done (slot_id);
CREATE INDEX done_value ON done (study_id, value);
INSERT INTO trial_values (trial_id, objective, value, value_type)
    SELECT trial_id, 0, value, 'FINITE' FROM done;
INSERT INTO trial_params (trial_id, param_name, param_value, distribution_json)
    SELECT trial_id, 'learning_rate', rate,
    '{"name": "FloatDistribution", "attributes":
      {"step": null, "low": 0.0001, "high": 0.1, "log": true}}'
    FROM done;
INSERT INTO trial_intermediate_values
    (trial_id, step, intermediate_value, intermediate_value_type)
    SELECT trial_id, step, value * step / 10, 'FINITE' FROM done, steps;
INSERT INTO tuner_trials (trial_id, study_id, slot_id, number, attempt, state, value, worker,
                          device, backend, started_at, finished_at, record)
    SELECT trial_id, study_id, slot_id, number, 1, 'COMPLETE', value, 'load', 'cpu', 'compiled',
           NOW, NOW, '{"test_accuracy": 0.5, "parameters": 1000, "seconds": 1.0}'
    FROM done;
INSERT INTO tuner_epochs (trial_id, step, record)
    SELECT trial_id, step, '{"train_loss": 0.5, "val_loss": 0.5, "val_accuracy": 0.5}'
    FROM done, steps;
UPDATE tuner_slots AS s SET state = 'done', trial_id = d.trial_id, attempts = 1, epoch = 1
    FROM done d WHERE d.slot_id = s.id;
CREATE TEMP TABLE ends AS
    SELECT study_id, count(*) AS done, max(value) AS best FROM done GROUP BY study_id;
UPDATE tuner_studies AS o SET
    state = CASE WHEN n.done = o.budget_trials THEN 'completed' ELSE 'running' END,
    started_at = o.created_at,
    finished_at = CASE WHEN n.done = o.budget_trials THEN o.created_at END,
    slots_open = o.budget_trials - n.done, slots_done = n.done,
    best_value = n.best,
    best_trial_id =
        (SELECT min(trial_id) FROM done d WHERE d.study_id = o.id AND d.value = n.best)
    FROM ends n WHERE n.study_id = o.id
"""

Seconds = dict[str, list[float]]
Make = Callable[[Path], tuple[str, AbstractContextManager[Any]]]


@dataclass
class Place:
    """One database behind one API."""

    name: str
    db: Database
    service: Service
    settings: Settings
    connection: HTTPConnection

    def get(self, path: str) -> None:
        """GET a page."""
        ask(self.connection, path)

    def claim_one(self) -> float:
        """Claim a slot, and hand it back, which is not measured; return the seconds."""
        return claim_one(self.db, self.settings)


def ask(connection: HTTPConnection, path: str) -> bytes:
    """GET a page on a connection that is kept."""
    connection.request("GET", path)
    answer = connection.getresponse()
    body = answer.read()
    if answer.status != 200:
        raise SystemExit(f"load: {path}: {answer.status}")
    return body


def claim_one(db: Database, settings: Settings) -> float:
    """Claim a slot, measured, and hand it back, not measured."""
    begun = time.perf_counter()
    found = claim(db, worker_id="bench", queue="cpu", limit=1, lease_seconds=LEASE_SECONDS)
    seconds = time.perf_counter() - begun
    if len(found.leases) != 1:
        raise SystemExit(f"load: claimed {len(found.leases)} slots")
    hand_back = Batch(hand_backs=[HandBack(found.leases[0], None)])
    flush(db, worker_id="bench", batch=hand_back, lease_seconds=LEASE_SECONDS, settings=settings)
    return seconds


@contextlib.contextmanager
def making(backend: str) -> Iterator[Make]:
    """Yield what makes a database: its URL, and a plain connection to fill it by."""
    if backend == "sqlite":
        yield _make_sqlite
        return
    with postgres_server(durable=True) as server:

        def make(_: Path) -> tuple[str, AbstractContextManager[Any]]:
            name = server.create_database()
            return server.url(name), server.connect(name)

        yield make


def _make_sqlite(directory: Path) -> tuple[str, AbstractContextManager[Any]]:
    path = directory / "load.db"
    return f"sqlite:///{path}", contextlib.closing(sqlite3.connect(path, isolation_level=None))


@contextlib.contextmanager
def place(make: Make, name: str, *, studies: int, trials: int) -> Iterator[Place]:
    """Fill a database in bulk, check it, and serve it."""
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-load-")))
        url, plain = make(directory)
        migrate(url)
        settings = Settings(data_dir=directory, database_url=url, slots_cap=MOST_SLOTS)
        db = stack.enter_context(contextlib.closing(Database.open(url)))
        for number in range(studies):
            body = {**DEFINITION, "name": f"load-{number}", "budget": {"trials": trials}}
            definition = parse_definition(body, limits=Limits.of(settings))
            submit(db, definition, settings=settings)
        with plain as connection:
            connection.execute("BEGIN")
            for statement in BULK.replace("NOW", repr(time.time())).split(";\n"):
                connection.execute(statement)
            connection.execute("COMMIT")
            if db.dialect == "postgresql":  # as its autovacuum would; SQLite's users have none
                connection.execute("VACUUM ANALYZE")
        check_invariants(db, settings=settings)
        service = Service(directory, url, settings={"TUNER_SLOTS_CAP": str(MOST_SLOTS)})
        stack.callback(service.close)
        service.start_api()
        connection = HTTPConnection("127.0.0.1", service.port, timeout=60.0)
        yield Place(name, db, service, settings, connection)


def requests_of(one: Place) -> dict[str, str]:
    """Return the addresses to measure; the study is one that runs."""
    name = one.service.get("/v1/studies?state=running")["items"][0]["name"]
    trials = f"/v1/studies/{name}/trials?limit={PAGE}"
    cursor = one.service.get(trials)["next_cursor"]
    return {
        "get a study": f"/v1/studies/{name}",
        "list studies": f"/v1/studies?limit={PAGE}",
        "trials, a page": trials,
        "trials, the next page": f"{trials}&cursor={cursor}",
        "trials by value": f"{trials}&sort=value",
    }


def in_turn(places: Sequence[Place], samples: int) -> list[Seconds]:
    """Return, for each place, the seconds of each request, one at a time."""
    found: list[Seconds] = [defaultdict(list) for _ in places]
    asked = [requests_of(one) for one in places]
    for _ in range(samples):
        for one, addresses, seconds in zip(places, asked, found, strict=True):
            for what, path in addresses.items():
                begun = time.perf_counter()
                one.get(path)
                seconds[what].append(time.perf_counter() - begun)
            seconds["claim"].append(one.claim_one())
    return found


def read_on(port: int, paths: Mapping[str, str], callers: int, seconds: float) -> Seconds:
    """Read with so many callers at once, each page in turn; return the seconds of each request."""
    found: Seconds = defaultdict(list)
    end = time.monotonic() + seconds

    def call(first: int) -> None:
        connection = HTTPConnection("127.0.0.1", port, timeout=60.0)
        pages = list(paths.items())
        while time.monotonic() < end:
            first += 1
            what, path = pages[first % len(pages)]
            begun = time.perf_counter()
            ask(connection, path)
            found[what].append(time.perf_counter() - begun)

    with ThreadPoolExecutor(callers) as pool:
        list(pool.map(call, range(callers)))
    return found


def claim_on(url: str, settings: Settings, seconds: float) -> list[float]:
    """Claim and hand back for so long; return the seconds of each claim."""
    end = time.monotonic() + seconds
    found = []
    with contextlib.closing(Database.open(url)) as db:
        while time.monotonic() < end:
            found.append(claim_one(db, settings))
    return found


def all_at_once(
    places: Sequence[Place], pool: ProcessPoolExecutor, *, callers: int, seconds: float
) -> list[Seconds]:
    """Return, for each place, the seconds of each request among many callers; two turns each."""
    found: list[Seconds] = [defaultdict(list) for _ in places]
    for one, seen in [*zip(places, found, strict=True)] * 2:
        paths = requests_of(one)
        claiming = [
            pool.submit(claim_on, one.db.url, one.settings, seconds / 2) for _ in range(CLAIMERS)
        ]
        reading = pool.submit(read_on, one.service.port, paths, callers, seconds / 2)
        for what, times in reading.result().items():
            seen[what] += times
        for claims in claiming:
            seen["claim"] += claims.result()
    return found


def deleting(one: Place) -> list[str]:
    """Cancel and delete a large study while another is claimed; return what was seen."""
    name = one.service.get("/v1/studies?state=running")["items"][-1]["name"]
    quiet = statistics.median(one.claim_one() for _ in range(20))
    lines = [f"claims before: median {1000 * quiet:.0f} ms"]
    for what, work in {
        "cancel": partial(one.service.act, name, "cancel"),
        "delete": partial(one.service.request, "DELETE", f"/v1/studies/{name}"),
        "its rows": partial(_until_gone, one.db),
    }.items():
        with ThreadPoolExecutor(1) as pool:
            begun = time.perf_counter()
            working = pool.submit(work)
            claims = [one.claim_one()]
            while not working.done():
                claims.append(one.claim_one())
            working.result()
            took = time.perf_counter() - begun
        lines.append(f"{what}: {took:.2f} s; longest claim meanwhile {1000 * max(claims):.0f} ms")
    return lines


def _until_gone(db: Database) -> None:
    deleted = select(func.count()).select_from(studies).where(studies.c.name.startswith("~"))
    while True:
        with db.read() as connection:
            if not connection.execute(deleted).scalar():
                return
        time.sleep(0.05)


def p99(seconds: Sequence[float]) -> float:
    """Return the 99th percentile."""
    return statistics.quantiles(seconds, n=100, method="inclusive")[98]


def compare(title: str, small: Seconds, large: Seconds) -> list[Figure]:
    """Print medians and 99th percentiles side by side; return the figures with goals."""
    print(f"{title}; almost empty: median, p99; loaded: median, p99 (ms)")
    figures = []
    for what, after in large.items():
        row = [1000 * f(s) for s in (small[what], after) for f in (statistics.median, p99)]
        print(f"  {what:24s} {row[0]:7.1f} {row[1]:7.1f}   {row[2]:7.1f} {row[3]:7.1f}")
        goal = CLAIM_GOAL_SECONDS if what == "claim" else READ_GOAL_SECONDS
        figures.append(Figure(f"p99 {what}", p99(after), goal, "s", at_least=False))
        ratio = p99(after) / p99(small[what])
        figures.append(Figure(f"p99 {what}, loaded / almost empty", ratio, 2, at_least=False))
    return figures


def measure(options: argparse.Namespace, pool: ProcessPoolExecutor) -> None:
    """Measure both databases; print what was found."""
    with (
        making(options.backend) as make,
        place(make, "almost empty", studies=SMALL[0], trials=SMALL[1]) as small,
        place(make, "loaded", studies=options.studies, trials=options.trials) as large,
    ):
        count = options.studies * options.trials
        print(f"{options.backend}: {options.studies} studies, {count} trials; small: {SMALL}")
        if options.samples:
            report(compare("one at a time", *in_turn((small, large), options.samples)))
        if options.callers:
            found = all_at_once(
                (small, large), pool, callers=options.callers, seconds=options.seconds
            )
            compare(f"{options.callers} readers, {CLAIMERS} claimers at once", *found)
            for one, seen in zip((small, large), found, strict=True):
                claims = len(seen["claim"]) / options.seconds
                reads = sum(map(len, seen.values())) / options.seconds - claims
                print(f"  {one.name}: {reads:.0f} reads and {claims:.0f} claims a second")
        if options.delete:
            print("deleting a study:", *deleting(large), sep="\n  ")


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backend", choices=["sqlite", "postgresql"], default="postgresql")
    parser.add_argument("--studies", type=int, default=100)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--samples", type=int, default=300)
    parser.add_argument("--callers", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--delete", action="store_true")
    spawning = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(CLAIMERS + 1, mp_context=spawning) as pool:
        measure(parser.parse_args(), pool)


if __name__ == "__main__":
    main()
