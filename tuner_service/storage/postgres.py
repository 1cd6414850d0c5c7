"""PostgreSQL's round trips: statements that travel together.

A flush is a dozen statements, and to wait for each answer costs more than most of them. So every
connection is in psycopg's pipeline mode for as long as it lives. A statement executed with
`DEFERRED` is sent and not waited for; the next one that is not, or the commit, waits for all. The
first error among them is raised there, or by a statement in between that happens to read it.
Nothing is committed after an error: the transaction has failed by then. SQLite has no round trips,
and takes the same calls one by one.

Connections wait for an answer, but not for ever. A network that drops packets, a frozen server, or
a firewall that forgot the connection leaves the client waiting: TCP says nothing, and libpq has no
limit of its own. The kernel gives up on a peer that is gone (`TCP`); a peer whose kernel answers
but which is silent itself is given up here.
"""

import contextlib
import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, TypeVar

import psycopg
from psycopg import capabilities
from psycopg.rows import dict_row
from sqlalchemy import Boolean, Connection, Dialect, Engine, Select, event
from sqlalchemy.exc import InvalidatePoolError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

Row = Mapping[Any, Any]
Answer = TypeVar("Answer")

DEFERRED: Final = {"tuner_deferred": True}  # execution options: nobody reads the answer
IDLE_BEFORE_PING_SECONDS: Final = 1.0
CANCEL_SECONDS: Final = 2.0

# libpq's names: a dead peer is noticed within 25 s while we wait, within 10 s while we send.
TCP = {
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}

_BEGIN_OPTION: Final = "tuner_begin"
_SNAPSHOT: Final = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"


class among(FunctionElement[bool]):  # noqa: N801  # reads as SQL
    """`among(column, bindparam(name))`: the column is one of many integers, bound by `integers`.

    One parameter, so that the statement is the same for any number of them and is prepared once.
    """

    type = Boolean()
    inherit_cache = True


@compiles(among, "postgresql")
def _any(element: among, compiler: SQLCompiler, **options: Any) -> str:
    column, values = (compiler.process(clause, **options) for clause in element.clauses)
    return f"{column} = ANY (CAST({values} AS BIGINT[]))"


@compiles(among, "sqlite")
def _in(element: among, compiler: SQLCompiler, **options: Any) -> str:
    column, values = (compiler.process(clause, **options) for clause in element.clauses)
    return f"{column} IN (SELECT value FROM json_each({values}))"  # noqa: S608  # no values


def integers(connection: Connection, values: Iterable[int]) -> str:
    """Return what is bound in `among`."""
    listed = ",".join(map(str, values))
    return f"{{{listed}}}" if connection.dialect.name == "postgresql" else f"[{listed}]"


def together(
    connection: Connection, *reads: tuple[Select[Any], Mapping[str, Any]]
) -> list[Sequence[Row]]:
    """Execute SELECTs one after the other, in one round trip, and return the rows of each.

    Each sees what the ones before it waited for and locked. Their values come as the driver makes
    them: an enumeration's must be cast to text.

    Args:
        reads: Statements, which are compiled once and should be constants, with their parameters.
    """
    if connection.dialect.name != "postgresql":
        return [connection.execute(select, values).mappings().all() for select, values in reads]
    raw = _raw(connection)
    cursors = []
    for select, values in reads:
        statement, defaults = _compiled(connection.dialect, select)
        cursor = raw.cursor(row_factory=dict_row)
        cursor.execute(statement, {**defaults, **values})
        _mark(connection)
        cursors.append(cursor)
    _wait(connection)
    return [cursor.fetchall() for cursor in cursors]


@lru_cache(maxsize=64)
def _compiled(dialect: Dialect, select: Select[Any]) -> tuple[str, dict[str, Any]]:
    compiled = select.compile(dialect=dialect)
    return compiled.string, dict(compiled.params)


def snapshots(engine: Engine) -> Engine:
    """Return the engine, on the same connections, for transactions that read one snapshot."""
    return engine.execution_options(**{_BEGIN_OPTION: _SNAPSHOT})


def use_pipelines(engine: Engine) -> None:
    """Keep an engine's connections in pipeline mode. The pool must not reset them by itself."""

    @event.listens_for(engine, "connect")
    def enter(raw: psycopg.Connection[Any], record: Any) -> None:
        # psycopg would wait for a BEGIN of its own.
        raw.autocommit = True
        context = raw.pipeline()
        record.info["pipeline"] = context.__enter__()
        record.info["pipeline_context"] = context  # it ends with its last reference
        record.info["used_at"] = time.monotonic()  # it has just answered

    @event.listens_for(engine, "close")
    def leave(raw: psycopg.Connection[Any], record: Any) -> None:
        raw.close()  # first, or else to leave the pipeline would wait for a server that is gone
        with contextlib.suppress(psycopg.Error):
            record.info["pipeline_context"].__exit__(None, None, None)

    @event.listens_for(engine, "checkout")
    def ping(_raw: object, record: Any, _proxy: object) -> None:
        # What was in use a moment ago costs no question: whoever calls must bear a connection that
        # breaks all the same.
        if time.monotonic() - record.info.get("used_at", 0.0) < IDLE_BEFORE_PING_SECONDS:
            return
        try:
            record.info["pipeline"].sync()
        except psycopg.Error as error:
            raise InvalidatePoolError from error

    @event.listens_for(engine, "reset")
    def reset(raw: TimeoutConnection, record: Any, _state: object) -> None:
        record.info["used_at"] = time.monotonic()
        if raw.closed or raw.spoilt:
            record.invalidate()
        elif raw.info.transaction_status != psycopg.pq.TransactionStatus.IDLE:
            raw.rollback()

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        statement = connection.get_execution_options().get(_BEGIN_OPTION, "BEGIN")
        connection.exec_driver_sql(statement, execution_options=DEFERRED)

    @event.listens_for(engine, "after_cursor_execute")
    def answer(connection: Connection, *arguments: Any) -> None:
        context = arguments[3]
        if DEFERRED.items() <= context.execution_options.items():
            _mark(connection)
        else:
            _wait(connection)

    @event.listens_for(engine, "rollback")
    def drain(connection: Connection) -> None:
        # psycopg's rollback would raise what became of the statements after an error, and one Sync
        # that raises may leave more of it unread.
        if not connection.invalidated:
            raw, pipeline = _raw(connection), connection.info["pipeline"]
            while pipeline.result_queue and not raw.closed:
                with contextlib.suppress(psycopg.Error):
                    pipeline.sync()


def _raw(connection: Connection) -> psycopg.Connection[Any]:
    raw = connection.connection.driver_connection
    assert isinstance(raw, psycopg.Connection)
    return raw


def _mark(connection: Connection) -> None:
    """End what was sent with a Sync, whose answer is read with the others.

    PostgreSQL counts how long a client has been silent in its transaction only from a Sync on.
    """
    _raw(connection).pgconn.pipeline_sync()
    connection.info["pipeline"].result_queue.append(None)


def _wait(connection: Connection) -> None:
    connection.info["pipeline"].sync()


class TimeoutConnection(psycopg.Connection[Any]):
    """Gives the server up, and closes itself, after `answer_seconds` of silence.

    Attributes:
        spoilt: A commit failed. psycopg notes a statement as prepared when it sends it; one that
            the server skipped after an error is noted all the same, and psycopg forgets its notes
            at a rollback only. Whoever owns the connection should close it.
    """

    answer_seconds = 30.0
    spoilt = False

    def commit(self) -> None:
        """Commit.

        Raises:
            psycopg.Error: It failed, or a statement before it; the connection is `spoilt`.
        """
        try:
            super().commit()
        except BaseException:
            # And not closed: to SQLAlchemy that would be a disconnect.
            self.spoilt = True  # guard: spoilt-connection
            raise

    def wait(
        self, gen: Generator[Any, Any, Answer], *args: Any, **more: Any
    ) -> Answer:  # every operation of psycopg's comes through here
        """Run one of psycopg's operations.

        Raises:
            psycopg.OperationalError: The server did not answer in time.
        """
        return super().wait(self._limited(gen), *args, **more)

    def _limited(self, gen: Generator[Any, Any, Answer]) -> Generator[Any, Any, Answer]:
        """Pass on what the generator asks for; nothing (0) comes back at each idle interval."""
        deadline = time.monotonic() + self.answer_seconds
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted
                if ready:
                    deadline = time.monotonic() + self.answer_seconds
                elif time.monotonic() > deadline:
                    self._give_up()
                    raise psycopg.OperationalError(
                        f"no answer from the server within {self.answer_seconds:g} s"
                    )
                wanted = gen.send(ready)
        except StopIteration as end:
            answer: Answer = end.value
            return answer

    def _give_up(self) -> None:
        # A server that is only busy would work on, and keep its locks. Older libpq cannot ask it
        # without waiting for the network for as long as that takes.
        if capabilities.has_cancel_safe():
            with contextlib.suppress(psycopg.Error):
                self.cancel_safe(timeout=CANCEL_SECONDS)
        self.pgconn.finish()  # in the middle of an answer it is of no further use
