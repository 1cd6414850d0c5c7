"""Two processes that race: one is stopped in the middle of its transaction while the other runs.

A racer runs one call on its own connection to the database. Told to stop at `write`, it waits
before its first INSERT, UPDATE or DELETE, having read whatever it decides by; told to stop at
`commit`, it waits with everything written and nothing committed. The other one says when it reaches
the database, so that a slow machine cannot let it come too late. The processes are started once and
serve any number of races.
"""

import contextlib
import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection as Pipe
from typing import Any, Literal
from unittest.mock import patch

from sqlalchemy import Connection, event

from tuner_service.errors import TunerError
from tuner_service.storage import Database

Point = Literal["write", "commit"]
Hook = Callable[[], None]
ANSWER_SECONDS = 60.0
BLOCKED_SECONDS = 0.3  # what has reached the database, and is not over by then, waits for a lock
WRITES = ("INSERT", "UPDATE", "DELETE")


@dataclass(frozen=True)
class Call:
    """A function of a database, with its other arguments."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def call(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Call:
    """Return a call; the database is put before its arguments."""
    return Call(function, args, kwargs)


class Stopping(Database):
    """A database whose first writing transaction stops at a point until it is let go.

    Without a point it stops nowhere, but says when that transaction is about to begin.
    """

    def __init__(self, db: Database, point: Point | None, *, stop: Hook, reach: Hook) -> None:
        super().__init__(db.url, writer=db._writer, reader=db._reader)
        self._point = point
        self._stop_here = stop
        self._reach = None if point else reach

    @contextlib.contextmanager
    def write(self) -> Iterator[Connection]:
        self.reach()
        with super().write() as connection:
            if self._point == "write":
                event.listen(connection, "before_cursor_execute", self._before)
            yield connection
            if self._point == "commit":
                self._stop()

    def reach(self) -> None:
        """Say, once, that the database is reached: what comes next may have to wait for it."""
        reach, self._reach = self._reach, None
        if reach is not None:
            reach()

    def _before(self, _connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if self._point == "write" and statement.lstrip().startswith(WRITES):
            self._stop()

    def _stop(self) -> None:
        self._point = None
        self._stop_here()


def serve(pipe: Pipe) -> None:
    """Run calls as they come, until the pipe closes."""
    while True:
        try:
            url, wanted, point = pipe.recv()
        except EOFError:
            return

        def stop() -> None:
            pipe.send(("stopped", None))
            pipe.recv()

        def reach() -> None:
            pipe.send(("reached", None))

        database = Database.open(url)
        try:
            stopping = Stopping(database, point, stop=stop, reach=reach)
            answer = ("done", wanted.function(stopping, *wanted.args, **wanted.kwargs))
        except TunerError as error:
            answer = ("raised", error)
        finally:
            database.close()
        pipe.send(answer)


class Racer:
    """One of the processes, as the test sees it."""

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs,), daemon=True)
        with patch.dict(os.environ, environment or {}):
            self._process.start()
        theirs.close()
        self._answer: tuple[str, Any] | None = None

    def begin(self, url: str, wanted: Call, point: Point | None = None) -> None:
        """Start a call."""
        self._answer = None
        self._pipe.send((url, wanted, point))

    def stopped_or_done(self) -> bool:
        """Wait until the call stops at its point (True) or is over without having passed it."""
        kind, value = self._receive()
        if kind != "stopped":
            self._answer = (kind, value)
        return kind == "stopped"

    def blocked_or_done(self) -> None:
        """Wait until the call is over, or has reached the database and waits for a lock there."""
        answer = self._receive()
        if answer[0] != "reached":
            self._answer = answer
        elif self._pipe.poll(BLOCKED_SECONDS):
            self._answer = self._receive()

    def go_on(self) -> None:
        """Let a call that stopped go on."""
        self._pipe.send("go")

    def result(self) -> Any:
        """Return what the call returned, or the error that it raised."""
        if self._answer is None:
            self._answer = self._receive()
            if self._answer[0] == "reached":
                self._answer = self._receive()
        return self._answer[1]

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join(10.0)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _receive(self) -> tuple[str, Any]:
        if not self._pipe.poll(ANSWER_SECONDS):
            raise TimeoutError("a racer did not answer: are two transactions waiting in a circle?")
        answer: tuple[str, Any] = self._pipe.recv()
        return answer


@dataclass
class Track:
    """Two racers and a database."""

    url: str
    racers: tuple[Racer, Racer]

    def race(self, first: Call, second: Call, *, stop_at: Point) -> tuple[Any, Any]:
        """Run `second` while `first` stands still in its transaction; return both results."""
        one, two = self.racers
        one.begin(self.url, first, stop_at)
        stopped = one.stopped_or_done()
        two.begin(self.url, second)
        two.blocked_or_done()
        if stopped:
            one.go_on()
        return one.result(), two.result()
