"""The database: one transaction per `with` block, on SQLite or PostgreSQL.

SQLite has one writer at a time and ignores `FOR UPDATE`, so writing transactions begin with
`BEGIN IMMEDIATE` and reading ones, on an engine of their own, do not. PostgreSQL locks rows.
Whatever means "cannot be reached or written just now" leaves here as `UnavailableError`; the next
transaction connects anew, so that callers only have to try again.
"""

import json
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from math import inf
from pathlib import Path
from typing import Any, Final

import psycopg
from sqlalchemy import (
    Connection,
    Double,
    Engine,
    create_engine,
    event,
    literal_column,
    make_url,
    select,
    text,
)
from sqlalchemy.exc import ArgumentError, DBAPIError, InvalidRequestError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from tuner_service.errors import (
    DamagedError,
    SchemaMovedError,
    SchemaVersionError,
    SettingsError,
    UnavailableError,
)
from tuner_service.files import private_folder
from tuner_service.json_values import finite
from tuner_service.storage.postgres import TCP, TimeoutConnection, snapshots, use_pipelines

BUSY_SECONDS = 20.0
CONNECT_SECONDS = 5
ANSWER_SECONDS = (
    30.0  # of silence after which PostgreSQL is given up; more than any wait for a lock
)
IDLE_SECONDS = 15.0  # of a client that is silent inside a transaction, and holds its locks
POOL_SIZE = 10
LONGEST_CAUSE = 300  # characters
DAMAGED = "the database file is damaged; stop everything and restore a backup"

VERSION_TABLE: Final = "tuner_alembic_version"
_REVISIONS = text(
    f"SELECT version_num FROM alembic_version UNION ALL SELECT version_num FROM {VERSION_TABLE}"  # noqa: S608
)
# How long a version that was seen is believed: SQLite's costs microseconds beside a commit,
# PostgreSQL's a round trip.
_SCHEMA_SECONDS: Final = {"sqlite": 0.0, "postgresql": 1.0}

_CLOCK = {
    # SQLite before 3.42 has no sub-second unixepoch(); julianday is good to 0.1 ms.
    "sqlite": "(julianday('now') - 2440587.5) * 86400.0",
    # now() would be the transaction's begin, before it waited for its locks.
    "postgresql": "extract(epoch FROM clock_timestamp())::float8",
}
CLOCK: Final = {
    dialect: select(literal_column(now, Double).label("now")) for dialect, now in _CLOCK.items()
}

_encode = json.JSONEncoder(allow_nan=False).encode  # dumps() would make an encoder each time


def to_json(value: Any) -> str:
    """Serialise for a JSON column; numbers that JSON cannot hold (NaN, infinity) become null."""
    try:
        return _encode(value)
    except ValueError:
        return _encode(finite(value))


class Database:
    """Transactions on one database. Safe to share between threads, not over a fork."""

    def __init__(self, url: str, *, writer: Engine, reader: Engine) -> None:
        self.url = url
        self.damage: DamagedError | None = None  # once met; it does not go away by itself
        self._writer = writer
        self._reader = reader
        self._revisions: frozenset[str] | None = None  # what this process was begun on
        self._revisions_seen = -inf

    @classmethod
    def open(cls, url: str, *, create: bool = False) -> "Database":
        """Open a database; connections are made when they are needed.

        Args:
            create: Create a SQLite file that does not exist, readable by its owner only.

        Raises:
            SettingsError: The URL is malformed or of another kind of database.
            SchemaVersionError: The SQLite file does not exist.
        """
        if is_sqlite(url):
            _require_file(url, create=create)
            return cls(url, writer=_sqlite_engine(url, writer=True), reader=_sqlite_engine(url))
        engine = _postgres_engine(url)
        return cls(url, writer=engine, reader=snapshots(engine))

    @property
    def dialect(self) -> str:
        """`sqlite` or `postgresql`."""
        return self._writer.dialect.name

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """Yield a connection in a transaction that may write; committed when the block ends.

        Raises:
            UnavailableError: The database cannot be reached, is full, was locked too long, or was
                migrated since `keep_schema`. The transaction may have been committed if the
                connection broke during the commit.
        """
        with self._translated(), _connect(self._writer) as connection, connection.begin():
            self._check_revisions(connection)
            yield connection

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Yield a connection whose statements all see one snapshot; it waits for no writer.

        Raises:
            UnavailableError: The database cannot be reached.
        """
        with self._translated(), _connect(self._reader) as connection, connection.begin():
            yield connection

    def keep_schema(self, connection: Connection) -> None:
        """Write from now on only while both schemas have the versions that they have here."""
        self._revisions = frozenset(connection.execute(_REVISIONS).scalars())

    def _check_revisions(self, connection: Connection) -> None:
        now = time.monotonic()
        if self._revisions is None or now < self._revisions_seen + _SCHEMA_SECONDS[self.dialect]:
            return
        found = frozenset(connection.execute(_REVISIONS).scalars())
        if found != self._revisions:
            begun, moved = (", ".join(sorted(one)) for one in (self._revisions, found))
            raise SchemaMovedError(
                f"the database was migrated from {begun} to {moved} while this process ran, which "
                "writes nothing more: restart it with the software that migrated it"
            )
        self._revisions_seen = now

    def now(self, connection: Connection) -> float:
        """Return the database's clock, in seconds since the epoch."""
        return float(connection.execute(CLOCK[self.dialect]).scalar_one())

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            with _translated():
                yield
        except DamagedError as error:
            self.damage = error
            raise

    def close(self) -> None:
        """Close every connection."""
        self._writer.dispose()
        self._reader.dispose()


_ENCODED = "in its password, @ : / # % are written %40 %3A %2F %23 %25"


def is_sqlite(url: str) -> bool:
    """Return whether the URL is of SQLite.

    Raises:
        SettingsError: It is malformed or neither SQLite's nor PostgreSQL's.
    """
    try:
        parts = make_url(url)
    except (ArgumentError, ValueError):  # whose messages hold the password
        raise SettingsError(f"database_url must be a SQLAlchemy URL; {_ENCODED}") from None
    if "@" in (parts.host or ""):
        raise SettingsError(f"the host in database_url holds an @; {_ENCODED}")
    backend = parts.get_backend_name()
    if backend not in _CLOCK:
        raise SettingsError(f"database_url must be sqlite or postgresql, but got {backend!r}")
    return backend == "sqlite"


def sqlite_path(url: str) -> Path:
    """Return the path of a SQLite URL's file.

    Raises:
        SettingsError: The URL names no file: processes could not share it.
    """
    name = make_url(url).database
    if not name or name == ":memory:":
        raise SettingsError("database_url must name a file: an in-memory database is not shared")
    return Path(name)


def _require_file(url: str, *, create: bool) -> None:
    path = sqlite_path(url)
    if path.exists():
        return
    if not create:
        raise SchemaVersionError(f"there is no database at {path}: run `tuner migrate`")
    private_folder(path.parent)
    path.touch(mode=0o600)


def _sqlite_engine(url: str, *, writer: bool = False) -> Engine:
    # One writing connection: this process's threads queue in the pool, in order, instead of
    # polling SQLite's lock against each other.
    engine = create_engine(
        url,
        pool_size=1 if writer else POOL_SIZE,
        max_overflow=0 if writer else POOL_SIZE,
        pool_timeout=BUSY_SECONDS,
        connect_args={"check_same_thread": False, "timeout": BUSY_SECONDS},
        json_serializer=to_json,
    )
    begin = "BEGIN IMMEDIATE" if writer else "BEGIN"  # guard: sqlite-writer

    @event.listens_for(engine, "connect")
    def prepare(connection: sqlite3.Connection, _record: object) -> None:
        connection.isolation_level = None  # or pysqlite decides by itself when to begin
        for pragma in (
            f"busy_timeout={int(BUSY_SECONDS * 1000)}",
            "journal_mode=WAL",
            "synchronous=FULL",
            "foreign_keys=ON",
        ):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def start(connection: Connection) -> None:
        connection.exec_driver_sql(begin)

    return engine


def _postgres_engine(url: str) -> Engine:
    engine = create_engine(
        url,
        pool_size=POOL_SIZE,
        max_overflow=2 * POOL_SIZE,
        pool_timeout=BUSY_SECONDS,
        pool_reset_on_return=None,
        connect_args={"connect_timeout": CONNECT_SECONDS, **TCP},
        json_serializer=to_json,
    )

    @event.listens_for(engine, "do_connect")
    def connect(_dialect: object, _record: object, args: Any, options: Any) -> TimeoutConnection:
        connection = TimeoutConnection.connect(*args, **options)
        connection.answer_seconds = ANSWER_SECONDS
        return connection

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, _record: object) -> None:
        # A worker that is stopped, or whose machine vanished, between two statements would keep a
        # study's rows locked for hours: nobody could reap its leases, nor claim.
        with connection.cursor() as cursor:
            idle, wait = int(IDLE_SECONDS * 1000), int(BUSY_SECONDS * 1000)
            cursor.execute(
                f"SET idle_in_transaction_session_timeout = {idle}"
            )  # guard: silent-client
            cursor.execute(f"SET lock_timeout = {wait}")
        connection.commit()

    use_pipelines(engine)
    return engine


def _connect(engine: Engine) -> Connection:
    try:
        return engine.connect()
    except InvalidRequestError as error:  # the pool's last attempt, too, was given a dead one
        raise UnavailableError("the database cuts connections as soon as they are made") from error


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except PoolTimeoutError as error:
        raise UnavailableError(f"no database connection within {BUSY_SECONDS:g} s") from error
    except (DBAPIError, psycopg.Error) as error:
        reason = _unavailable(error)
        if reason is None:
            raise
        raise reason from error


def _unavailable(error: DBAPIError | psycopg.Error) -> UnavailableError | None:
    """Return why the database cannot serve just now; None: the statement itself is wrong."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    if isinstance(cause, sqlite3.Error):
        return _sqlite_unavailable(cause)
    if getattr(cause, "sqlstate", None) == "53100":
        return UnavailableError("the database has no space left on its disk")
    cut = isinstance(error, DBAPIError) and error.connection_invalidated
    if cut or isinstance(cause, psycopg.OperationalError):
        return unreachable(cause)
    return None


def unreachable(cause: BaseException | None) -> UnavailableError:
    """Return the error for a PostgreSQL that cannot be reached, with what it or the driver says."""
    first = str(cause or "").strip().partition("\n")[0]
    message = "the database cannot be reached, or gave up the transaction"
    return UnavailableError(message, cause=first[:LONGEST_CAUSE])


def _sqlite_unavailable(error: sqlite3.Error) -> UnavailableError | None:
    name = getattr(error, "sqlite_errorname", None) or ""
    if name == "SQLITE_FULL":
        return UnavailableError("the database has no space left on its disk")
    if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
        return DamagedError(DAMAGED, cause=f"{error} ({name})")
    if name.startswith("SQLITE_IOERR"):
        text = f"the database file cannot be read or written ({name}); is the disk full?"
    elif name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        text = f"the database was locked by another process for {BUSY_SECONDS:g} s"
    elif name.startswith(("SQLITE_CANTOPEN", "SQLITE_READONLY")):
        text = f"the database file cannot be opened for writing ({name})"
    else:
        return None
    return UnavailableError(text)
