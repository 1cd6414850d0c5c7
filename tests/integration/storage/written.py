"""Databases as a schema's version wrote them, kept as SQL text for the upgrade test.

    python -m tests.integration.storage.written

writes the fixtures of the present schema: `fixtures/REVISION.sqlite.sql`, `….postgresql.sql`, and
`….json`, what the lifecycle answered about them. Run it once per revision, when it is released,
and never again: what it wrote then is what people have.
"""

import contextlib
import json
import sqlite3
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.integration.lifecycle.hands import SETTINGS, Hand, definition, expire, submitted
from tests.servers import PostgresServer, postgres_bin, postgres_server
from tuner_service.access.keys import create_key
from tuner_service.lifecycle.change import cancel, pause
from tuner_service.lifecycle.messages import Finish, HandBack, Report
from tuner_service.lifecycle.reconcile import reconcile
from tuner_service.lifecycle.submit import submit
from tuner_service.lifecycle.workers import publish_modules, register_worker
from tuner_service.reads.studies import get_study, list_studies
from tuner_service.reads.trials import get_trial, list_trials
from tuner_service.reads.views import Failure
from tuner_service.storage import Database, migrate
from tuner_service.storage.migrate import head_revision

FIXTURES = Path(__file__).parent / "fixtures"
GRID = {"optimizer": {"type": "categorical", "choices": ["sgd", "adam", "rmsprop"]}}
# Lines of pg_dump's that another version of PostgreSQL may not know.
_SKIPPED = ("\\", "SET ", "--")


def write_everything(db: Database) -> None:
    """Write a study in each state, trials of every kind, keys, workers and modules."""
    register_worker(
        db, worker_id="w", host="h", pid=1, queue="cpu", device="cpu", version="0", lanes=4
    )
    publish_modules(
        db, "w", {"mine": ({"parameters": {}}, "0" * 64)}, refused={"broken.py": "it has no build"}
    )
    create_key(db, "ci", ["read"])
    _completed(db)
    _running(db)
    paused = submitted(db, name="paused", parameters=GRID, sampler={"type": "grid"}, budget={})
    lease, trial_id = _start(Hand(db, "w"))
    Hand(db, "w").report(lease, trial_id, 1, 2)
    pause(db, paused.id)
    Hand(db, "w").flush(hand_backs=[HandBack(lease, 2)])
    cancel(db, submitted(db, name="cancelled").id)
    submit(db, definition(name="queued"), settings=SETTINGS, idempotency_key="key")


def _start(hand: Hand) -> tuple[Any, int]:
    (lease,) = hand.claim().leases
    return lease, hand.start(lease)


def _completed(db: Database) -> None:
    hand = Hand(db, "w")
    submitted(db, name="completed", budget={"trials": 3}, tags={"team": "vision"})
    for index in range(3):
        lease, trial_id = _start(hand)
        value = [0.5, 0.75, float("nan")][index]
        hand.flush(
            reports=[Report(lease, trial_id, 1, value / 2, {"val_accuracy": value / 2})],
            finishes=[
                Finish(
                    lease,
                    trial_id,
                    "COMPLETE",
                    (value,),
                    {"test_accuracy": value},
                    backend="plain",
                    group="g",
                    model_path=f"models/{index}",
                )
            ],
        )


def _running(db: Database) -> None:
    hand = Hand(db, "w")
    submitted(db, name="running", sampler={"type": "tpe", "seed": 1}, budget={"trials": 4})
    lease, trial_id = _start(hand)
    hand.fail(lease, trial_id, failure=Failure(kind="user_code", message="boom", traceback="…"))
    lost, lost_trial = _start(hand)
    hand.report(lost, lost_trial, 1, 2)
    hand.flush(checkpoints=[(lost, 1)])
    expire(db, lost)
    reconcile(db, settings=SETTINGS)
    left, _ = _start(hand)
    expire(db, left)


def answers(db: Database) -> list[dict[str, Any]]:
    """Return what the lifecycle says of every study and trial, but for what waits for workers."""
    found = []
    for summary in list_studies(db).items:
        study = get_study(db, summary.id)
        view = study.model_dump(mode="json", exclude={"eta_seconds", "warnings"})
        if (view["reason"] or "").startswith("waiting"):
            view["reason"] = None
        numbers = [trial.number for trial in list_trials(db, study.id).items]
        view["trials"] = [get_trial(db, study.id, n).model_dump(mode="json") for n in numbers]
        found.append(view)
    return found


# -- SQL text -----------------------------------------------------------------------------------


def dump_sqlite(path: Path) -> str:
    """Return a SQLite database as SQL."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return "\n".join(connection.iterdump()) + "\n"


def load_sqlite(path: Path, sql: str) -> None:
    """Make a SQLite database of SQL."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.executescript(sql)


def dump_postgres(server: PostgresServer, database: str) -> str:
    """Return a PostgreSQL database as SQL that any later version reads."""
    text = subprocess.run(
        [
            str(postgres_bin() / "pg_dump"),
            *("--inserts", "--rows-per-insert=100", "--no-owner", "--no-privileges"),
            *("-h", "127.0.0.1", "-p", str(server.port), "-U", "tuner", database),
        ],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    lines = [line for line in text.splitlines() if line and not line.startswith(_SKIPPED)]
    return "\n".join(lines) + "\n"


def load_postgres(server: PostgresServer, database: str, sql: str) -> None:
    """Fill an empty PostgreSQL database from SQL."""
    with server.connect(database) as connection:
        connection.execute(sql.encode())


@contextlib.contextmanager
def _written(url: str) -> Iterator[Database]:
    migrate(url)
    with contextlib.closing(Database.open(url)) as db:
        write_everything(db)
        yield db


def main() -> None:
    """Write the fixtures of the present schema."""
    stem = FIXTURES / head_revision()
    FIXTURES.mkdir(exist_ok=True)
    said: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tuner.db"
        with _written(f"sqlite:///{path}") as db:
            said["sqlite"] = answers(db)
        stem.with_suffix(".sqlite.sql").write_text(dump_sqlite(path))
    with postgres_server() as server:
        name = server.create_database()
        with _written(server.url(name)) as db:
            said["postgresql"] = answers(db)
        stem.with_suffix(".postgresql.sql").write_text(dump_postgres(server, name))
    stem.with_suffix(".json").write_text(json.dumps(said, indent=1) + "\n")


if __name__ == "__main__":
    main()
