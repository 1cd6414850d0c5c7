"""Databases that earlier versions wrote migrate forward with everything in them, and go on."""

import contextlib
import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.lifecycle.hands import SETTINGS, Hand, definition
from tests.integration.storage.written import (
    FIXTURES,
    answers,
    dump_postgres,
    load_postgres,
    load_sqlite,
    write_everything,
)
from tests.invariants import check_invariants
from tests.servers import PostgresServer
from tuner_service.access.keys import list_keys
from tuner_service.lifecycle.change import resume
from tuner_service.lifecycle.reconcile import reconcile
from tuner_service.lifecycle.submit import submit
from tuner_service.reads.studies import get_study
from tuner_service.storage import Database, check_schema, migrate
from tuner_service.storage.migrate import head_revision

# What was called otherwise in answers before revision 0005.
RENAMED = {"rung": "backend", "rung_reason": "backend_reason"}
REVISIONS = sorted({path.name.split(".")[0] for path in FIXTURES.glob("*.sql")})


def fill(request: pytest.FixtureRequest, url: str, sql: str) -> None:
    """Make the empty database at the URL what the SQL says."""
    if url.startswith("sqlite"):
        load_sqlite(Path(url.removeprefix("sqlite:///")), sql)
    else:
        server: PostgresServer = request.getfixturevalue("postgres")
        load_postgres(server, url.rsplit("/", 1)[1], sql)


def connect(url: str) -> sqlite3.Connection:
    return sqlite3.connect(url.removeprefix("sqlite:///"))


def kind_of(url: str) -> str:
    return "sqlite" if url.startswith("sqlite") else "postgresql"


@pytest.fixture(params=REVISIONS)
def upgraded(
    database_url: str, request: pytest.FixtureRequest
) -> Iterator[tuple[Database, list[dict[str, Any]]]]:
    """A database of an earlier version, migrated, with what was said of it then."""
    kind = kind_of(database_url)
    fill(request, database_url, (FIXTURES / f"{request.param}.{kind}.sql").read_text())
    migrate(database_url)
    said = json.loads((FIXTURES / f"{request.param}.json").read_text())[kind]
    with contextlib.closing(Database.open(database_url)) as db:
        yield db, said


def test_the_present_schema_has_its_fixtures() -> None:
    assert head_revision() in REVISIONS, "run python -m tests.integration.storage.written"


def assert_still_said(now: Any, then: Any) -> None:
    """What was said then is said now; later versions may say more."""
    if isinstance(then, dict):
        for key in then:
            assert_still_said(now[RENAMED.get(key, key)], then[key])
    elif isinstance(then, list):
        for one, other in zip(now, then, strict=True):
            assert_still_said(one, other)
    else:
        assert now == then


def test_everything_is_still_there(upgraded: tuple[Database, list[dict[str, Any]]]) -> None:
    db, said = upgraded
    check_schema(db)
    check_invariants(db, settings=SETTINGS, grace_seconds=1e9)
    assert_still_said(answers(db), said)
    assert [key.name for key in list_keys(db)] == ["ci"]
    again, new = submit(db, definition(name="queued"), settings=SETTINGS, idempotency_key="key")
    assert (again.name, new) == ("queued", False)


def test_the_work_goes_on(upgraded: tuple[Database, list[dict[str, Any]]]) -> None:
    db, _ = upgraded
    assert reconcile(db, settings=SETTINGS).reaped == 1
    assert resume(db, "paused").state == "running"
    hand = Hand(db, "newer")
    while leases := hand.claim(8).leases:
        for lease in leases:
            trial_id = hand.start(lease) if lease.trial_id is None else lease.trial_id
            assert not hand.finish(lease, trial_id, 0.9).lost
    for name in ("running", "paused", "queued", "completed"):
        assert get_study(db, name).state == "completed"
    check_invariants(db, settings=SETTINGS)


def test_a_study_of_0001_needs_its_module(
    database_url: str, request: pytest.FixtureRequest
) -> None:
    sql = (FIXTURES / f"0001.{kind_of(database_url)}.sql").read_text()
    brought = sql.replace('"network": {"type": "mlp"}', '"network": {"type": "mine"}')
    assert brought != sql
    fill(request, database_url, brought)
    migrate(database_url)
    with contextlib.closing(Database.open(database_url)) as db:
        assert not Hand(db, "newer").claim(8).leases
        assert "the module mine" in str(get_study(db, "queued").reason)


def test_a_backup_restores(database_url: str, request: pytest.FixtureRequest) -> None:
    """By what docs/reliability.md says: `pg_dump`, and `VACUUM INTO` of a SQLite file in use."""
    migrate(database_url)
    with contextlib.closing(Database.open(database_url)) as db:
        write_everything(db)
        before = answers(db)
        if kind_of(database_url) == "sqlite":
            restored = database_url + ".restored"
            with db.write(), contextlib.closing(connect(database_url)) as copying:
                copying.execute("VACUUM INTO ?", (restored.removeprefix("sqlite:///"),))
        else:
            server: PostgresServer = request.getfixturevalue("postgres")
            sql = dump_postgres(server, database_url.rsplit("/", 1)[1])
            restored = server.url(server.create_database())
            fill(request, restored, sql)
    with contextlib.closing(Database.open(restored)) as db:
        check_schema(db)
        assert answers(db) == before
        check_invariants(db, settings=SETTINGS)
