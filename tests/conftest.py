"""Fixtures for all tests: private servers, one per session, and fresh databases, one per test.

`database_url` runs a test twice, on SQLite and on PostgreSQL; `db` is that database, migrated.
"""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers import (
    MissingServerError,
    PostgresServer,
    RedisServer,
    postgres_server,
    redis_server,
)
from tuner_service.storage import Database, migrate

COMPILED = "TORCHINDUCTOR_CACHE_DIR"
# As in the Makefile, for whoever runs pytest by hand: a fork of a process whose libraries have
# threads hangs in them. Before anything imports torch.
for threads in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(threads, "1")


def pytest_configure(config: pytest.Config) -> None:
    """Have one folder of compiled code for the run: each data directory would compile it anew."""
    if COMPILED not in os.environ:  # the processes of pytest-xdist have it of the first
        folder = tempfile.mkdtemp(prefix="tuner-compiled-")
        os.environ[COMPILED] = folder
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A private PostgreSQL for the session; do not crash this one."""
    with contextlib.ExitStack() as stack:
        try:
            server = stack.enter_context(postgres_server())
        except MissingServerError as missing:
            pytest.skip(str(missing))
        yield server


@pytest.fixture(scope="session")
def redis_private() -> Iterator[RedisServer]:
    """A private Redis for the session; do not kill this one."""
    with contextlib.ExitStack() as stack:
        try:
            server = stack.enter_context(redis_server())
        except MissingServerError as missing:
            pytest.skip(str(missing))
        yield server


@pytest.fixture
def redis_url(redis_private: RedisServer) -> str:
    """URL of an empty Redis."""
    redis_private.flush_all()
    return redis_private.url


@pytest.fixture
def postgres_url(postgres: PostgresServer) -> Iterator[str]:
    """URL of a fresh, empty PostgreSQL database."""
    name = postgres.create_database()
    yield postgres.url(name)
    postgres.drop_database(name)


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """URL of a SQLite database that does not exist yet."""
    return f"sqlite:///{tmp_path / 'tuner.db'}"


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """URL of a fresh, empty database: once SQLite, once PostgreSQL."""
    name = {"sqlite": "sqlite_url", "postgresql": "postgres_url"}[request.param]
    return str(request.getfixturevalue(name))


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated, empty SQLite file, to copy: migrating takes a second, copying does not."""
    path = tmp_path_factory.mktemp("template") / "tuner.db"
    migrate(f"sqlite:///{path}")
    return path


@pytest.fixture(scope="session")
def migrated_postgres(postgres: PostgresServer) -> str:
    """Name of a migrated PostgreSQL database, emptied before each test that uses it.

    Emptying takes milliseconds; creating and dropping a database takes seconds on a busy machine.
    """
    name = postgres.create_database()
    migrate(postgres.url(name))
    return name


@pytest.fixture(params=["sqlite", "postgresql"])
def migrated_url(request: pytest.FixtureRequest) -> str:
    """URL of an empty, migrated database: once SQLite, once PostgreSQL."""
    if request.param == "sqlite":
        url = str(request.getfixturevalue("sqlite_url"))
        shutil.copy(request.getfixturevalue("migrated_sqlite"), url.removeprefix("sqlite:///"))
        return url
    server: PostgresServer = request.getfixturevalue("postgres")
    name: str = request.getfixturevalue("migrated_postgres")
    server.empty_database(name)
    return server.url(name)


@pytest.fixture
def db(migrated_url: str) -> Iterator[Database]:
    """A fresh, migrated database, opened: once SQLite, once PostgreSQL."""
    database = Database.open(migrated_url)
    yield database
    database.close()
