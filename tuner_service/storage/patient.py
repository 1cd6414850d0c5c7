"""PostgreSQL connections that wait for an answer, but not for ever.

A network that drops packets, a frozen server, or a firewall that forgot the connection leaves the
client waiting: TCP says nothing, and libpq has no limit of its own. The kernel gives up on a peer
that is gone (`TCP`); a peer whose kernel answers but which is silent itself is given up here.
"""

import contextlib
import time
from collections.abc import Generator
from typing import Any, TypeVar

import psycopg
from psycopg import capabilities

CANCEL_SECONDS = 2.0

Answer = TypeVar("Answer")

# libpq's names: a dead peer is noticed within 25 s while we wait, within 10 s while we send.
TCP = {
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}


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
