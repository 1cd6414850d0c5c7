"""Transactions on both databases: clocks, snapshots, and what happens when the database is away."""

import contextlib
import multiprocessing
import os
import resource
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import Connection, insert, select, text

from tests.disk import full
from tests.servers import MissingServerError, PostgresServer, postgres_server
from tuner_service.errors import SettingsError, UnavailableError
from tuner_service.storage import Database, migrate
from tuner_service.storage import database as database_module
from tuner_service.storage.database import to_json
from tuner_service.storage.postgres import DEFERRED
from tuner_service.storage.schema import api_keys


def add_key(connection: Connection, key: str, name: str = "x") -> None:
    connection.execute(
        insert(api_keys).values(id=key, name=name, hash=key, scopes=["read"], created_at=0.0)
    )


def add_keys(db: Database, count: int) -> None:
    with db.write() as connection:
        for number in range(count):
            add_key(connection, f"{number}", name="x" * 100)


def keys(db: Database) -> set[str]:
    with db.read() as connection:
        return set(connection.execute(select(api_keys.c.id)).scalars())


def test_the_clock_has_a_fraction_and_goes_on(db: Database) -> None:
    with db.read() as connection:
        before = [db.now(connection) for _ in range(3)]
        assert abs(before[0] - time.time()) < 5.0
        while db.now(connection) == before[-1]:
            pass
        assert 0 < db.now(connection) - before[0] < 60.0
        assert any(now % 1 != 0 for now in before)


def test_a_block_that_raises_writes_nothing(db: Database) -> None:
    with pytest.raises(KeyError), db.write() as connection:  # noqa: PT012
        add_key(connection, "a")
        raise KeyError
    assert keys(db) == set()


def test_reading_sees_one_snapshot_and_waits_for_no_writer(db: Database) -> None:
    with db.read() as reading:
        assert not reading.execute(select(api_keys.c.id)).all()
        with db.write() as writing:
            add_key(writing, "a")
            assert keys(db) == set()  # a third transaction, while the writer holds its lock
        assert not reading.execute(select(api_keys.c.id)).all()
    assert keys(db) == {"a"}


def test_reading_cannot_write_on_postgresql(postgres_url: str) -> None:
    migrate(postgres_url)
    with contextlib.closing(Database.open(postgres_url)) as db:
        with pytest.raises(Exception, match="read-only"), db.read() as connection:
            add_key(connection, "a")
        with db.write() as connection:
            add_key(connection, "b")
        assert keys(db) == {"b"}


def test_threads_take_turns(db: Database) -> None:
    def work(number: int) -> None:
        for index in range(5):
            with db.write() as connection:
                add_key(connection, f"{number}-{index}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(keys(db)) == 40


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        ({"a": float("nan"), "b": [1.5, float("inf")]}, '{"a": null, "b": [1.5, null]}'),
        ((1, "x", None, -float("inf")), '[1, "x", null, null]'),
        ({"a": 0.1}, '{"a": 0.1}'),
    ],
)
def test_numbers_that_json_cannot_hold_become_null(value: object, stored: str) -> None:
    assert to_json(value) == stored


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("mysql://localhost/x", "sqlite or postgresql"),
        ("no url", "SQLAlchemy URL"),
        ("sqlite://", "in-memory"),
        ("sqlite:///:memory:", "in-memory"),
        ("postgresql+psycopg://u:pa@ss@localhost/x", "holds an @.*%40"),
        ("postgresql+psycopg://u:pass@localhost:po/rt/x", "%2F"),
    ],
)
def test_other_databases_are_refused(url: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message) as refused:
        Database.open(url, create=True)
    assert "ss@" not in str(refused.value)


def test_a_new_file_is_its_owners_only(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'new' / 'tuner.db'}"
    Database.open(url, create=True).close()
    assert (tmp_path / "new" / "tuner.db").stat().st_mode & 0o777 == 0o600


# -- SQLite: locked, full -----------------------------------------------------------------------


@pytest.fixture
def file_db(migrated_sqlite: Path, tmp_path: Path) -> Iterator[Database]:
    path = tmp_path / "copy.db"
    path.write_bytes(migrated_sqlite.read_bytes())
    db = Database.open(f"sqlite:///{path}")
    yield db
    db.close()


def path_of(db: Database) -> str:
    return db.url.removeprefix("sqlite:///")


def test_a_database_locked_too_long_is_unavailable(
    file_db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_module, "BUSY_SECONDS", 0.05)
    impatient = Database.open(file_db.url)
    with contextlib.closing(sqlite3.connect(path_of(file_db))) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(UnavailableError, match="locked"), impatient.write():
            pass
        assert keys(impatient) == set()  # reading goes on
        other.rollback()
    with impatient.write() as connection:
        add_key(connection, "a")
    assert keys(impatient) == {"a"}
    impatient.close()


def test_a_full_database_says_so_and_works_again_when_there_is_space(file_db: Database) -> None:
    with file_db.write() as connection:
        add_key(connection, "before")
    with file_db.write() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")
    with pytest.raises(UnavailableError, match="no space left"):
        add_keys(file_db, 10_000)
    assert keys(file_db) == {"before"}
    with file_db.write() as connection:
        connection.exec_driver_sql("PRAGMA max_page_count=1000000")
    with file_db.write() as connection:
        add_key(connection, "after")
    assert keys(file_db) == {"before", "after"}


def fill(url: str) -> None:
    """Write until the file may not grow any more; runs in a process of its own."""
    size = Path(url.removeprefix("sqlite:///")).stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 200_000, size + 200_000))
    db = Database.open(url)
    written = 0
    try:
        while written < 10_000:
            with db.write() as connection:
                add_key(connection, f"{written}", name="x" * 128)
            written += 1
    except UnavailableError as error:
        if "space" not in str(error) and "full" not in str(error):
            raise SystemExit(3) from error
        if len(keys(db)) != written:
            raise SystemExit(4) from error
        raise SystemExit(0) from error
    raise SystemExit(5)


def test_no_space_on_the_disk_corrupts_nothing(file_db: Database) -> None:
    process = multiprocessing.get_context("spawn").Process(target=fill, args=(file_db.url,))
    process.start()
    process.join(120)
    assert process.exitcode == 0
    kept = keys(file_db)
    assert kept
    with contextlib.closing(sqlite3.connect(path_of(file_db))) as other:
        assert other.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    with file_db.write() as connection:
        add_key(connection, "after")
    assert keys(file_db) == kept | {"after"}


# -- PostgreSQL: crashed, cut off -----------------------------------------------------------------


@pytest.fixture
def own_server() -> Iterator[PostgresServer]:
    """A server that the test may crash."""
    with contextlib.ExitStack() as stack:
        try:
            server = stack.enter_context(postgres_server(durable=True))
        except MissingServerError as missing:
            pytest.skip(str(missing))
        yield server


def test_a_full_disk_under_postgresql_loses_nothing_and_says_so() -> None:
    with contextlib.ExitStack() as stack:
        try:
            server = stack.enter_context(postgres_server(durable=True, small_disk=True))
        except MissingServerError as missing:
            pytest.skip(str(missing))
        if server.disk is None:
            pytest.skip("a small disk takes the right to mount")
        url = server.url(server.create_database())
        db = stack.enter_context(contextlib.closing(Database.open(url)))
        with db.write() as connection:
            connection.execute(text("CREATE TABLE blobs (number int, data text)"))
            connection.execute(text("CREATE TABLE counts (count int)"))
            connection.execute(text("INSERT INTO counts VALUES (0)"))
        count = text("UPDATE counts SET count = count + 1")
        kept: list[int] = []

        def add() -> None:
            with db.write() as connection:
                values = {"number": len(kept), "data": os.urandom(400_000).hex()}
                insert = text("INSERT INTO blobs VALUES (:number, :data)")
                connection.execute(insert, values, execution_options=DEFERRED)
                connection.execute(count, execution_options=DEFERRED)
            kept.append(len(kept))

        def add_many() -> None:
            for _ in range(200):  # first into the space that PostgreSQL has set aside
                add()

        add()
        # Either a table cannot grow, or the log, and then PostgreSQL ends itself.
        refused = pytest.raises(UnavailableError, match=r"no space left|gave up")
        with full(server.disk), refused:
            add_many()
        server.revive()
        with db.read() as connection:
            found = connection.execute(text("SELECT number FROM blobs ORDER BY number")).scalars()
            assert set(kept) <= set(found) <= {*kept, len(kept)}  # the last may be in doubt
        for _ in range(6):  # psycopg prepares at the sixth use
            add()


def test_a_crashed_server_is_unavailable_and_comes_back(own_server: PostgresServer) -> None:
    url = own_server.url(own_server.create_database())
    migrate(url)
    with contextlib.closing(Database.open(url)) as db:
        with db.write() as connection:
            add_key(connection, "before")
        with pytest.raises(UnavailableError), db.write() as connection:  # noqa: PT012
            add_key(connection, "lost")
            own_server.crash()
        with pytest.raises(UnavailableError), db.read() as connection:
            db.now(connection)
        with pytest.raises(UnavailableError), db.write() as connection:
            db.now(connection)
        own_server.start()
        assert keys(db) == {"before"}
        with db.write() as connection:
            add_key(connection, "after")
        assert keys(db) == {"before", "after"}


def test_a_server_that_is_not_there_is_unavailable(own_server: PostgresServer) -> None:
    own_server.stop()
    with pytest.raises(UnavailableError):
        migrate(own_server.url())
    db = Database.open(own_server.url())
    with pytest.raises(UnavailableError), db.write():
        pass
    db.close()


def test_what_the_server_says_is_told_to_the_operator_alone(postgres: PostgresServer) -> None:
    for call in (migrate, lambda url: Database.open(url).read().__enter__()):
        with pytest.raises(UnavailableError, match='"absent" does not exist') as refused:
            call(postgres.url("absent"))
        assert "absent" not in refused.value.public


def test_a_connection_that_is_cut_is_unavailable_once(postgres_url: str) -> None:
    migrate(postgres_url)
    with contextlib.closing(Database.open(postgres_url)) as db:
        with pytest.raises(UnavailableError), db.write() as connection:  # noqa: PT012
            pid = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
            plain = postgres_url.replace("+psycopg", "")
            with psycopg.connect(plain, autocommit=True) as other:
                other.execute("SELECT pg_terminate_backend(%s, 5000)", (pid,))
            add_key(connection, "lost")
        with db.write() as connection:
            add_key(connection, "a")
        assert keys(db) == {"a"}


@pytest.mark.parametrize(
    ("sqlstate", "message"),
    [("53100", "no space left"), ("40P01", "gave up"), ("53300", "cannot be reached")],
)
def test_what_the_server_cannot_do_just_now_is_unavailable(
    postgres_url: str, sqlstate: str, message: str
) -> None:
    block = f"DO $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '{sqlstate}'; END $$"
    with contextlib.closing(Database.open(postgres_url)) as db:
        with pytest.raises(UnavailableError, match=message), db.write() as connection:
            connection.exec_driver_sql(block)
        with db.write() as connection:
            assert connection.execute(text("SELECT 1")).scalar() == 1


def test_a_client_that_falls_silent_in_a_transaction_lets_go(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker stopped between two statements must not keep its study's rows from the others."""
    migrate(postgres_url)
    monkeypatch.setattr("tuner_service.storage.database.IDLE_SECONDS", 0.3)
    monkeypatch.setattr("tuner_service.storage.database.BUSY_SECONDS", 0.1)
    with contextlib.closing(Database.open(postgres_url)) as db:
        with db.write() as connection:
            add_key(connection, "a")
        rename = text("UPDATE tuner_api_keys SET name = 'b'")
        with pytest.raises(UnavailableError), db.write() as silent:  # noqa: PT012
            silent.execute(rename)
            with pytest.raises(UnavailableError, match="gave up"), db.write() as other:
                other.execute(rename)  # waits, but not for ever
            time.sleep(0.4)
            freed = False
            with contextlib.suppress(UnavailableError), db.write() as other:
                freed = other.execute(rename).rowcount == 1
            assert freed  # it raises what is expected of the silent one, if not
            silent.execute(rename)
        with db.write() as connection:
            connection.execute(rename)
