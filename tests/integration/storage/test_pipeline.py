"""Statements that travel together: order, errors, silence, and how often a flush waits."""

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg import generators
from sqlalchemy import Connection, bindparam, func, select, text, update
from sqlalchemy.exc import IntegrityError

from tuner_service.errors import UnavailableError
from tuner_service.storage import Database, migrate
from tuner_service.storage import postgres as pipeline_module
from tuner_service.storage.bulk import insert_rows
from tuner_service.storage.postgres import DEFERRED, among, integers, together
from tuner_service.storage.schema import api_keys

IDS = select(api_keys.c.id).order_by(api_keys.c.id)
LOCKED = select(api_keys.c.name).where(api_keys.c.id == bindparam("id")).with_for_update()
NAMES = select(api_keys.c.name).where(api_keys.c.id == bindparam("id"))

LATE_ERROR = text(
    "DO $$ BEGIN PERFORM pg_sleep(0.1); RAISE EXCEPTION USING errcode = '23505'; END $$"
)  # so late that what follows has been sent


def add(connection: Connection, *keys: str) -> None:
    rows = [
        {"id": key, "name": "x", "hash": key, "scopes": ["read"], "created_at": 0.0} for key in keys
    ]
    insert_rows(connection, api_keys, rows)


def rename(connection: Connection, key: str, name: str) -> None:
    statement = update(api_keys).where(api_keys.c.id == key).values(name=name)
    connection.execute(statement, execution_options=DEFERRED)


def stored(db: Database) -> list[str]:
    with db.read() as connection:
        return list(connection.execute(IDS).scalars())


def test_what_is_not_waited_for_is_there_for_the_next_and_after_the_commit(db: Database) -> None:
    with db.write() as connection:
        add(connection, "a", "b")
        rename(connection, "a", "y")
        assert connection.execute(NAMES, {"id": "a"}).scalar_one() == "y"
        add(connection, "c")
    assert stored(db) == ["a", "b", "c"]


def test_an_error_that_nobody_waited_for_keeps_the_commit_from_happening(db: Database) -> None:
    with db.write() as connection:
        add(connection, "a")
    with pytest.raises(IntegrityError), db.write() as connection:  # noqa: PT012
        add(connection, "b")
        add(connection, "a")
        rename(connection, "b", "y")
    assert stored(db) == ["a"]
    with db.write() as connection:
        add(connection, "b")
    assert stored(db) == ["a", "b"]


def test_an_error_that_nobody_waited_for_is_raised_by_the_next_statement(db: Database) -> None:
    with db.write() as connection:
        add(connection, "a")
    seen = []
    with pytest.raises(IntegrityError), db.write() as connection:  # noqa: PT012
        add(connection, "a")
        seen.append(connection.execute(IDS).all())
    assert not seen
    with pytest.raises((IntegrityError, psycopg.IntegrityError)), db.write() as connection:  # noqa: PT012
        add(connection, "a")
        seen.append(together(connection, (IDS, {})))
    assert not seen
    assert stored(db) == ["a"]


@pytest.mark.parametrize("migrated_url", ["postgresql"], indirect=True)
def test_a_commit_that_failed_leaves_no_statement_that_only_psycopg_thinks_prepared(
    db: Database,
) -> None:
    """psycopg prepares at the sixth use, also behind a statement that failed."""
    with db.write() as connection:
        add(connection, "a")
    for _ in range(5):
        with db.write() as connection:
            rename(connection, "a", "y")
    with pytest.raises(IntegrityError), db.write() as connection:  # noqa: PT012
        connection.execute(LATE_ERROR, execution_options=DEFERRED)
        rename(connection, "a", "lost")
    with db.write() as connection:
        rename(connection, "a", "z")
    with db.read() as connection:
        assert connection.execute(NAMES, {"id": "a"}).scalar_one() == "z"


@pytest.mark.parametrize("migrated_url", ["postgresql"], indirect=True)
@pytest.mark.parametrize("waits", [True, False])
def test_the_first_error_is_told_though_those_that_follow_are_read_later(
    db: Database, waits: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """On a slow network a Sync reads, and raises, a part of what went wrong."""

    def up_to_an_error(self: psycopg.Pipeline, *, flush: bool) -> Iterator[Any]:
        while self.result_queue:
            results = yield from generators.fetch_many(self.pgconn)
            if not results:
                return
            self._process_results(self.result_queue.popleft(), results)

    monkeypatch.setattr(psycopg.Pipeline, "_fetch_gen", up_to_an_error)
    with db.write() as connection:
        add(connection, "a")
    with pytest.raises((IntegrityError, psycopg.IntegrityError)), db.write() as connection:  # noqa: PT012
        connection.execute(LATE_ERROR, execution_options=DEFERRED)
        for _ in range(3):
            rename(connection, "a", "lost")
        if waits:
            connection.execute(IDS)
    assert stored(db) == ["a"]
    assert not caplog.records


def test_an_error_of_the_caller_undoes_what_was_not_waited_for(db: Database) -> None:
    with pytest.raises(KeyError), db.write() as connection:  # noqa: PT012
        add(connection, "a")
        raise KeyError
    assert stored(db) == []


def test_many_integers_are_one_parameter(db: Database) -> None:
    numbers = select(func.count()).where(among(func.abs(-7), bindparam("ids")))
    with db.read() as connection:
        for ids, count in (([], 0), ([7], 1), ([6, 7, 2**40], 1), ([8], 0)):
            values = {"ids": integers(connection, ids)}
            assert connection.execute(numbers, values).scalar_one() == count
            (rows,) = together(connection, (numbers, values))
            assert [list(row.values()) for row in rows] == [[count]]


def test_reads_that_go_together_see_what_the_ones_before_waited_for(postgres_url: str) -> None:
    migrate(postgres_url)
    with contextlib.closing(Database.open(postgres_url)) as db:
        with db.write() as connection:
            add(connection, "a")
        seen: list[Any] = []

        def wait_and_read() -> None:
            with db.write() as connection:
                reads = together(connection, (LOCKED, {"id": "a"}), (NAMES, {"id": "a"}))
                seen.extend(rows[0]["name"] for rows in reads)

        with db.write() as connection:
            rename(connection, "a", "y")
            connection.execute(NAMES, {"id": "a"}).all()
            waiting = threading.Thread(target=wait_and_read)
            waiting.start()
            until_somebody_waits(postgres_url)
        waiting.join()
        assert seen == ["y", "y"]


def until_somebody_waits(url: str) -> None:
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as other:
        count = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        deadline = time.monotonic() + 30
        while other.execute(count).fetchone() == (0,):
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_a_client_that_falls_silent_before_it_waits_lets_go(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped right after a statement was sent: its locks must not stay for ever."""
    migrate(postgres_url)
    monkeypatch.setattr("tuner_service.storage.database.IDLE_SECONDS", 1.0)
    with contextlib.closing(Database.open(postgres_url)) as db:
        with db.write() as connection:
            add(connection, "a")
        with pytest.raises(UnavailableError), db.write() as silent:  # noqa: PT012
            rename(silent, "a", "silent")
            time.sleep(1.5)
            with db.write() as other:
                rename(other, "a", "other")
        with db.read() as connection:
            assert connection.execute(NAMES, {"id": "a"}).scalar_one() == "other"


def test_a_connection_that_died_in_the_pool_is_replaced(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    migrate(postgres_url)
    monkeypatch.setattr(pipeline_module, "IDLE_BEFORE_PING_SECONDS", 0.0)
    with contextlib.closing(Database.open(postgres_url)) as db:
        with db.write() as connection:
            pid = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
        with psycopg.connect(postgres_url.replace("+psycopg", ""), autocommit=True) as other:
            other.execute("SELECT pg_terminate_backend(%s, 5000)", (pid,))
        with db.write() as connection:
            add(connection, "a")
        assert stored(db) == ["a"]


def test_a_connection_just_made_is_not_asked_whether_it_lives(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    sync = psycopg.Pipeline.sync

    def counted(self: psycopg.Pipeline) -> None:
        asked.append(self)
        sync(self)

    monkeypatch.setattr(psycopg.Pipeline, "sync", counted)
    with contextlib.closing(Database.open(postgres_url)) as db, db.read():
        assert asked == []


def test_connections_that_die_as_soon_as_they_are_made_are_an_outage(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline_module, "IDLE_BEFORE_PING_SECONDS", 0.0)

    def die(_self: psycopg.Pipeline) -> None:
        raise psycopg.OperationalError

    with contextlib.closing(Database.open(postgres_url)) as db:
        with db.read():
            pass
        monkeypatch.setattr(psycopg.Pipeline, "sync", die)
        with pytest.raises(UnavailableError), db.read():
            pass


def test_a_statement_that_is_given_up_does_not_go_on(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would keep its locks for as long as it takes."""
    monkeypatch.setattr("tuner_service.storage.database.ANSWER_SECONDS", 1.0)
    with contextlib.closing(Database.open(postgres_url)) as db:
        with pytest.raises(UnavailableError), db.write() as connection:
            connection.execute(text("SELECT pg_sleep(120)"))
        with psycopg.connect(postgres_url.replace("+psycopg", ""), autocommit=True) as other:
            count = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%'"
            deadline = time.monotonic() + 20
            while other.execute(count).fetchone() != (0,):
                assert time.monotonic() < deadline
                time.sleep(0.05)
