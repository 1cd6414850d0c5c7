"""Latencies on PostgreSQL under load: 100 studies with 100,000 trials against almost nothing.

Both databases stand in one server, and each request is made of both in turn, over a socket, as a
client makes it; claims as a worker makes them. Rows are inserted in bulk and held against the
invariants before anything is measured.

    python -m benchmarks.load [--studies 100] [--trials 1000] [--samples 300]
"""

import argparse
import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2

from benchmarks.rounds import Figure, report
from tests.integration.api.conftest import served
from tests.invariants import check_invariants
from tests.servers import PostgresServer, postgres_server
from tuner_service.definition import parse_definition
from tuner_service.lifecycle.claim import claim
from tuner_service.lifecycle.flush import flush
from tuner_service.lifecycle.messages import Batch, HandBack
from tuner_service.lifecycle.submit import submit
from tuner_service.settings import Settings
from tuner_service.storage import Database, migrate

PAGE = 50
SMALL = (50, 50)  # studies and trials of each: enough that no page is shorter
GOAL_SECONDS = 0.1
LEASE_SECONDS = 60.0
DEFINITION: dict[str, Any] = {
    "name": "load",
    "dataset": {"name": "digits"},
    "network": {"type": "mlp"},
    "objective": {"metric": "val_accuracy", "direction": "maximize"},
    "parameters": {"learning_rate": {"type": "float", "low": 1e-4, "high": 1e-1, "log": True}},
    "sampler": {"type": "random", "seed": 0},
    "resources": {"parallel_trials": 64},
}

# Nine tenths of the trials of every fifth study, and all of the others, are done.
BULK = """
CREATE TEMP TABLE done AS
    SELECT s.id AS slot_id, s.number, s.study_id, o.optuna_study_id,
           (s.parameters->>'learning_rate')::float8 AS rate, random() AS value
    FROM tuner_slots s JOIN tuner_studies o ON o.id = s.study_id
    WHERE o.id % 5 <> 0 OR s.number < o.budget_trials * 9 / 10;
INSERT INTO trials (number, study_id, state, datetime_start, datetime_complete)
    SELECT number, optuna_study_id, 'COMPLETE', now(), now() FROM done
    ORDER BY study_id, number;
ALTER TABLE done ADD COLUMN trial_id int;
UPDATE done SET trial_id = t.trial_id FROM trials t
    WHERE t.study_id = done.optuna_study_id AND t.number = done.number;
INSERT INTO trial_values (trial_id, objective, value, value_type)
    SELECT trial_id, 0, value, 'FINITE' FROM done;
INSERT INTO trial_params (trial_id, param_name, param_value, distribution_json)
    SELECT trial_id, 'learning_rate', rate,
    '{"name": "FloatDistribution", "attributes":
      {"step": null, "low": 0.0001, "high": 0.1, "log": true}}'
    FROM done;
INSERT INTO trial_intermediate_values
    (trial_id, step, intermediate_value, intermediate_value_type)
    SELECT trial_id, step, value * step / 10, 'FINITE' FROM done, generate_series(1, 10) AS step;
INSERT INTO tuner_trials (trial_id, study_id, slot_id, number, attempt, state, value, worker,
                          device, rung, started_at, finished_at, record)
    SELECT trial_id, study_id, slot_id, number, 1, 'COMPLETE', value, 'load', 'cpu', 'compiled',
           extract(epoch FROM now()), extract(epoch FROM now()),
           '{"test_accuracy": 0.5, "parameters": 1000, "seconds": 1.0}'
    FROM done;
INSERT INTO tuner_epochs (trial_id, step, record)
    SELECT trial_id, step, '{"train_loss": 0.5, "val_loss": 0.5, "val_accuracy": 0.5}'
    FROM done, generate_series(1, 10) AS step;
UPDATE tuner_slots s SET state = 'done', trial_id = d.trial_id, attempts = 1, epoch = 1
    FROM done d WHERE d.slot_id = s.id;
UPDATE tuner_studies o SET
    state = CASE WHEN n.done = o.budget_trials THEN 'completed' ELSE 'running' END,
    started_at = o.created_at,
    finished_at = CASE WHEN n.done = o.budget_trials THEN o.created_at END,
    slots_open = o.budget_trials - n.done, slots_done = n.done,
    best_value = n.best,
    best_trial_id = (SELECT trial_id FROM done d WHERE d.study_id = o.id AND d.value = n.best)
    FROM (SELECT study_id, count(*) AS done, max(value) AS best FROM done GROUP BY study_id) n
    WHERE n.study_id = o.id;
"""


@dataclass
class Place:
    """One database behind one API."""

    name: str
    db: Database
    client: httpx2.Client
    settings: Settings
    seconds: dict[str, list[float]] = field(default_factory=dict)

    def get(self, path: str) -> Any:
        """GET a page."""
        answer = self.client.get(path)
        answer.raise_for_status()
        return answer.json()

    def measure(self, what: str, work: Callable[[], Any]) -> None:
        """Note how long it takes."""
        begun = time.perf_counter()
        work()
        self.seconds.setdefault(what, []).append(time.perf_counter() - begun)

    def claim_one(self) -> None:
        """Claim a slot, measured, and hand it back, not measured."""
        claimed: list[Any] = []
        self.measure("claim", lambda: claimed.extend(self._claim()))
        if len(claimed) != 1:
            raise SystemExit(f"load: claimed {len(claimed)} slots of {self.name}")
        flush(
            self.db,
            worker_id="bench",
            batch=Batch(hand_backs=[HandBack(claimed[0], None)]),
            lease_seconds=LEASE_SECONDS,
            settings=self.settings,
        )

    def _claim(self) -> list[Any]:
        return claim(
            self.db, worker_id="bench", queue="cpu", limit=1, lease_seconds=LEASE_SECONDS
        ).leases


@contextlib.contextmanager
def place(server: PostgresServer, name: str, *, studies: int, trials: int) -> Iterator[Place]:
    """Fill a database in bulk, check it, and serve it."""
    url = server.url(server.create_database())
    migrate(url)
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-load-")))
        settings = Settings(data_dir=directory, database_url=url, host="127.0.0.1")
        db = stack.enter_context(contextlib.closing(Database.open(url)))
        for number in range(studies):
            body = {**DEFINITION, "name": f"load-{number}", "budget": {"trials": trials}}
            submit(db, parse_definition(body), settings=settings)
        with server.connect(url.rsplit("/", 1)[1]) as connection:
            connection.execute(BULK)
            connection.execute("VACUUM ANALYZE")
        check_invariants(db, settings=settings)
        base = stack.enter_context(served(settings))
        client = stack.enter_context(httpx2.Client(base_url=base, timeout=60.0))
        yield Place(name, db, client, settings)


def requests_of(one: Place) -> dict[str, str]:
    """Return the addresses to measure; the study is one that runs."""
    name = next(s["name"] for s in one.get("/v1/studies?state=running")["items"])
    trials = f"/v1/studies/{name}/trials?limit={PAGE}"
    cursor = one.get(trials)["next_cursor"]
    later = f"&cursor={cursor}" if cursor else ""
    return {
        "get a study": f"/v1/studies/{name}",
        "list studies": f"/v1/studies?limit={PAGE}",
        "trials, a page": trials,
        "trials, the next page": trials + later,
        "trials by value": f"{trials}&sort=value",
    }


def p99(seconds: list[float]) -> float:
    """Return the 99th percentile."""
    return statistics.quantiles(seconds, n=100, method="inclusive")[98]


def figures(*, studies: int, trials: int, samples: int) -> list[Figure]:
    """Measure both databases in turn; print medians and 99th percentiles."""
    with (
        postgres_server(durable=True) as server,
        place(server, "almost empty", studies=SMALL[0], trials=SMALL[1]) as small,
        place(server, "loaded", studies=studies, trials=trials) as large,
    ):
        places = {one.name: (one, requests_of(one)) for one in (small, large)}
        for _ in range(samples):
            for one, addresses in places.values():
                for what, path in addresses.items():
                    one.measure(what, lambda o=one, p=path: o.get(p))
                one.claim_one()
    print(f"{studies} studies, {studies * trials} trials; almost empty: {SMALL}; ms: median, p99")
    found = []
    for what in large.seconds:
        before, after = small.seconds[what], large.seconds[what]
        row = [1000 * f(s) for s in (before, after) for f in (statistics.median, p99)]
        print(f"{what:24s} {row[0]:7.1f} {row[1]:7.1f}   loaded {row[2]:7.1f} {row[3]:7.1f}")
        found.append(Figure(f"p99 {what}", p99(after), GOAL_SECONDS, "s", at_least=False))
    return found


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--studies", type=int, default=100)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--samples", type=int, default=300)
    arguments = parser.parse_args()
    report(figures(studies=arguments.studies, trials=arguments.trials, samples=arguments.samples))


if __name__ == "__main__":
    main()
