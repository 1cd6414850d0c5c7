"""Private PostgreSQL and Redis servers: temporary directories, free loopback ports, ended by pid.

A server lives as long as its `with` block. `initdb` refuses root, so as root PostgreSQL runs under
an unprivileged user. Durability is off unless asked for: a test that kills the *server* asks.
"""

import contextlib
import itertools
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
import redis

from tests import disk

START_SECONDS = 30.0
_names = itertools.count(1)


class MissingServerError(Exception):
    """The server's program is not installed."""


def free_port() -> int:
    """Return a TCP port on loopback that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def postgres_bin() -> Path:
    """Return the directory of the newest installed PostgreSQL's programs.

    Raises:
        MissingServerError: PostgreSQL is not installed.
    """
    on_path = shutil.which("initdb")
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda p: int(p.parent.name))
    if on_path is None and not found:
        raise MissingServerError("PostgreSQL is not installed (no initdb): apt install postgresql")
    return found[-1] if found else Path(str(on_path)).parent


def unprivileged_user() -> pwd.struct_passwd | None:
    """Return the user PostgreSQL shall run as; None: as we are (we are not root)."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise MissingServerError("PostgreSQL refuses root, and neither postgres nor nobody exists")


@dataclass
class PostgresServer:
    """A running private PostgreSQL; `crash` and `start` take it away and bring it back."""

    directory: Path
    port: int
    user: pwd.struct_passwd | None
    options: tuple[str, ...]
    disk: Path | None = None  # the directory, where it is a small file system of its own
    environment: Mapping[str, str] = field(default_factory=dict)  # beside the test's own
    process: subprocess.Popen[bytes] | None = None

    def url(self, database: str = "postgres") -> str:
        """Return the SQLAlchemy URL of a database of this server."""
        return f"postgresql+psycopg://tuner@127.0.0.1:{self.port}/{database}"

    def connect(self, database: str = "postgres") -> psycopg.Connection:
        """Return an autocommit connection."""
        return psycopg.connect(
            f"postgresql://tuner@127.0.0.1:{self.port}/{database}",
            autocommit=True,
            connect_timeout=5,
        )

    def create_database(self) -> str:
        """Create an empty database of a fresh name and return its name."""
        name = f"t{os.getpid()}_{next(_names)}"
        with self.connect() as connection:
            connection.execute(f"CREATE DATABASE {name} TEMPLATE template0")
        return name

    def drop_database(self, name: str) -> None:
        """Drop a database, ending its connections."""
        with self.connect() as connection:
            connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    def empty_database(self, name: str) -> None:
        """Delete every row but the schemas' versions, ending other connections first."""
        with self.connect(name) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
                "WHERE datname = %s AND pid <> pg_backend_pid()",
                (name,),
            )
            connection.execute("SET session_replication_role = replica")  # no foreign keys
            tables = connection.execute(
                "SELECT tablename FROM pg_tables WHERE schemaname = 'public' "
                "AND tablename NOT LIKE '%%alembic_version' AND tablename <> 'version_info'",
                (),
            ).fetchall()
            for (table,) in tables:
                connection.execute(f'DELETE FROM "{table}"')

    def run(self, *command: str) -> None:
        """Run one of PostgreSQL's programs as the server's user."""
        subprocess.run(
            [str(postgres_bin() / command[0]), *command[1:]],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            cwd=self.directory,
            **self._identity(),
        )

    def initialise(self) -> None:
        """Create the cluster's files."""
        self.run(
            "initdb", "-D", str(self.directory / "data"), "-U", "tuner", "--auth=trust",
            "--encoding=UTF8", "--no-locale", "--no-sync",
        )  # fmt: skip

    def start(self) -> None:
        """Start the server and wait until it answers."""
        log = (self.directory / "server.log").open("ab")
        command = [
            str(postgres_bin() / "postgres"), "-D", str(self.directory / "data"),
            "-p", str(self.port), "-h", "127.0.0.1", "-k", str(self.directory),
        ]  # fmt: skip
        for option in self.options:
            command += ["-c", option]
        with log:
            self.process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                cwd=self.directory,
                env={**os.environ, **self.environment},
                **self._identity(),
            )
        wait_until(self._answers, what="PostgreSQL", log=self.directory / "server.log")

    def crash(self) -> None:
        """Stop as `pg_ctl -m immediate` does: no checkpoint, connections cut."""
        self._end(signal.SIGQUIT)

    def revive(self) -> None:
        """Start the server again if it has ended by itself, and wait until it answers."""
        deadline = time.monotonic() + START_SECONDS
        while self.process is not None and time.monotonic() < deadline:
            if self.process.poll() is not None:
                self.start()
            else:
                with contextlib.suppress(RuntimeError):  # it has ended since we looked
                    if self._answers():
                        return
            time.sleep(0.1)
        raise TimeoutError((self.directory / "server.log").read_text()[-2000:])

    def stop(self) -> None:
        """Stop, cutting connections."""
        self._end(signal.SIGINT)

    def _end(self, how: signal.Signals) -> None:
        if self.process is not None:
            self.process.send_signal(how)
            self.process.wait(START_SECONDS)
            self.process = None

    def _answers(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise RuntimeError((self.directory / "server.log").read_text()[-2000:])
        try:
            self.connect().close()
        except psycopg.OperationalError:
            return False
        return True

    def _identity(self) -> dict[str, int | list[int]]:
        if self.user is None:
            return {}
        return {"user": self.user.pw_uid, "group": self.user.pw_gid, "extra_groups": []}


@dataclass
class RedisServer:
    """A running private Redis without persistence."""

    directory: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The URL of database 0."""
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start the server and wait until it answers."""
        program = shutil.which("redis-server")
        if program is None:
            raise MissingServerError("redis-server is not installed: apt install redis-server")
        command = [
            program, "--port", str(self.port), "--bind", "127.0.0.1", "--save", "",
            "--appendonly", "no", "--dir", str(self.directory),
        ]  # fmt: skip
        with (self.directory / "redis.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        wait_until(self._answers, what="Redis", log=self.directory / "redis.log")

    def kill(self) -> None:
        """End it at once, as a crash would; what it held is lost."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(START_SECONDS)
            self.process = None

    def flush_all(self) -> None:
        """Forget everything."""
        with contextlib.closing(redis.Redis(port=self.port)) as client:
            client.flushall()

    def _answers(self) -> bool:
        with contextlib.closing(redis.Redis(port=self.port)) as client:
            try:
                return bool(client.ping())
            except redis.exceptions.ConnectionError:
                return False


def wait_until(
    condition: Callable[[], bool],
    *,
    what: str,
    seconds: float = START_SECONDS,
    log: Path | None = None,
) -> None:
    """Poll until `condition()` holds, or raise with the end of the log."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            tail = log.read_text()[-2000:] if log is not None and log.exists() else ""
            raise TimeoutError(f"{what}: not within {seconds} s. {tail}")
        time.sleep(0.02)


@contextlib.contextmanager
def postgres_server(
    *,
    durable: bool = False,
    small_disk: bool = False,
    environment: Mapping[str, str] | None = None,
) -> Iterator[PostgresServer]:
    """Run a private PostgreSQL for the block.

    Args:
        durable: Keep what was committed over `crash`; slower.
        small_disk: Give it a small file system of its own, where we may mount one.
        environment: Variables beside the test's own.

    Raises:
        MissingServerError: PostgreSQL is not installed.
    """
    postgres_bin()
    user = unprivileged_user()
    with contextlib.ExitStack() as stack:
        name = stack.enter_context(tempfile.TemporaryDirectory(prefix="tuner-pg-"))
        directory = Path(name)
        room = stack.enter_context(disk.small_disk(directory)) if small_disk else None
        if user is not None:
            os.chown(directory, user.pw_uid, user.pw_gid)
        options = ["max_connections=200", "shared_buffers=64MB", "autovacuum=on"]
        if small_disk:
            options += ["min_wal_size=32MB", "max_wal_size=32MB"]
        if not durable:
            options += ["fsync=off", "synchronous_commit=off", "full_page_writes=off"]
        server = PostgresServer(
            directory, free_port(), user, tuple(options), room, environment or {}
        )
        server.initialise()
        try:
            server.start()
            yield server
        finally:
            server.stop()


@contextlib.contextmanager
def redis_server() -> Iterator[RedisServer]:
    """Run a private Redis for the block.

    Raises:
        MissingServerError: Redis is not installed.
    """
    with tempfile.TemporaryDirectory(prefix="tuner-redis-") as name:
        server = RedisServer(Path(name), free_port())
        try:
            server.start()
            yield server
        finally:
            server.kill()
