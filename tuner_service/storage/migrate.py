"""Create and upgrade the schema: Optuna's tables by Optuna, ours by Alembic.

Two version tables live in the database: Optuna's `alembic_version` and our
`tuner_alembic_version`. Both must be what this software knows before it writes anything, and a
SQLite file must be whole.
"""

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import optuna
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, create_engine, inspect, text
from sqlalchemy.exc import OperationalError

from tuner_service import layout
from tuner_service.errors import DamagedError, SchemaVersionError
from tuner_service.files import locked
from tuner_service.storage.database import (
    BUSY_SECONDS,
    DAMAGED,
    VERSION_TABLE,
    Database,
    is_sqlite,
    sqlite_path,
    unreachable,
)

OPTUNA_REVISION = "v3.2.0.a"  # what Optuna 5.0 creates
_ADVISORY_LOCK = 0x74756E6572  # "tuner"


def migrate(url: str) -> None:
    """Create or upgrade both schemas; does nothing where they are current.

    Processes that migrate at once take turns.

    Raises:
        SchemaVersionError: The database was written by a newer version of this software, or by
            an Optuna whose schema is not known.
        UnavailableError: The database cannot be reached, or its file is damaged.
    """
    if is_sqlite(url):
        Database.open(url, create=True).close()
        check_file(url)
    with _alone(url), contextlib.closing(Database.open(url)) as database:
        with database.read() as connection:
            _check_optuna_revision(connection)
            _refuse_newer(connection)
        _create_optuna_tables(url)
        with database.write() as connection:
            config = alembic_config()
            config.attributes["connection"] = connection
            command.upgrade(config, "head")


def check_schema(db: Database) -> None:
    """Refuse a database whose schema is not exactly this software's; from now on, writes as well.

    Raises:
        SchemaVersionError: With the command that fixes it.
    """
    with db.read() as connection:
        _check_optuna_revision(connection)
        found = _revision(connection, VERSION_TABLE)
        if found == head_revision():
            db.keep_schema(connection)
            return
        if found is None:
            raise SchemaVersionError("the database has no tables yet: run `tuner migrate`")
        _refuse_newer(connection)
        raise SchemaVersionError(
            f"the database's schema is {found}, older than this software's "
            f"{head_revision()}: run `tuner migrate`"
        )


def alembic_config() -> Config:
    """Return Alembic's configuration of our migrations, wherever they are installed."""
    directory = layout.migrations_directory()
    config = Config(directory / "alembic.ini")
    config.set_main_option("script_location", str(directory).replace("%", "%%"))
    return config


def head_revision() -> str:
    """Return the newest revision of our schema."""
    return str(ScriptDirectory.from_config(alembic_config()).get_current_head())


def _refuse_newer(connection: Connection) -> None:
    found = _revision(connection, VERSION_TABLE)
    known = {s.revision for s in ScriptDirectory.from_config(alembic_config()).walk_revisions()}
    if found is not None and found not in known:
        raise SchemaVersionError(
            f"the database's schema {found} is newer than this software, which knows up to "
            f"{head_revision()}: upgrade with `pip install --upgrade tuner-service`"
        )


def _check_optuna_revision(connection: Connection) -> None:
    found = _revision(connection, "alembic_version")
    if found is not None and found != OPTUNA_REVISION:
        raise SchemaVersionError(
            f"Optuna's schema in the database is {found}, but this software knows "
            f"{OPTUNA_REVISION}: run `optuna storage upgrade --storage URL` if it is older, "
            "or upgrade this software if it is newer"
        )


def _revision(connection: Connection, table: str) -> str | None:
    if not inspect(connection).has_table(table):
        return None
    revision = connection.execute(text(f"SELECT version_num FROM {table}")).scalar()  # noqa: S608
    return None if revision is None else str(revision)


def _create_optuna_tables(url: str) -> None:
    try:
        storage = optuna.storages.RDBStorage(url, skip_compatibility_check=True)
    except OperationalError as error:
        raise unreachable(error.orig) from error
    storage.remove_session()
    storage.engine.dispose()


@contextlib.contextmanager
def _alone(url: str) -> Iterator[None]:
    """Hold the right to migrate: a lock beside the SQLite file, or PostgreSQL's advisory lock."""
    if is_sqlite(url):
        with locked(sqlite_path(url).with_suffix(".migrate-lock")):
            yield
        return
    engine = create_engine(url)
    try:
        with engine.connect() as connection:
            connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": _ADVISORY_LOCK})
            yield
    except OperationalError as error:
        raise unreachable(error.orig) from error
    finally:
        engine.dispose()


def check_file(url: str) -> None:
    """Refuse a SQLite file whose pages do not fit together; reads all of it, and writes nothing.

    The usual cause is a write-ahead log that a crash left behind, beside a file that was put back
    from a backup. The connection is read-only, or closing it would write that log into the file.

    Raises:
        DamagedError: With what to do.
    """
    if not is_sqlite(url):
        return
    path = sqlite_path(url)
    fault = _fault(path, "mode=ro")
    if not fault:
        return
    log = path.with_name(f"{path.name}-wal")
    if log.exists() and log.stat().st_size and not _fault(path, "mode=ro&immutable=1"):
        raise DamagedError(
            "the database file is whole without its write-ahead log, and damaged with it; if the "
            "file was put back from a backup, the log is of the file before it: stop everything "
            "and remove the log",
            cause=f"rm {log} {path.with_name(f'{path.name}-shm')} ({fault})",
        )
    raise DamagedError(DAMAGED, cause=f"{path}: {fault}")


def _fault(path: Path, options: str) -> str:
    """Return the first fault that is found; with `immutable`, the log is not looked at."""
    uri = f"file:{quote(str(path.absolute()))}?{options}"
    try:
        with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS)) as connection:
            found = str(connection.execute("PRAGMA quick_check(1)").fetchone()[0])
    except sqlite3.DatabaseError as error:
        if (error.sqlite_errorname or "").startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
            return str(error)
        return ""  # away, locked or unreadable: whoever opens it next says so
    return "" if found == "ok" else found.replace("\n", " ")
