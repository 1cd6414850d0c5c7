"""Connections: how many there may be, and how long one may keep the service waiting.

uvicorn waits for ever for the rest of a request that has begun, and takes every connection until
the process has no descriptor left for the database.
"""

import asyncio
import resource
from typing import Final

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

QUIET_SECONDS: Final = 30.0
SHARE: Final = 0.5  # of the descriptors that the process may have
_WAITED_FOR = (h11.IDLE, h11.SEND_BODY)
_FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 2\r\nContent-Length: 0\r\n"
    b"Connection: close\r\n\r\n"
)


def most_connections() -> int:
    """Return how many connections leave the process enough descriptors for its own work."""
    return int(resource.getrlimit(resource.RLIMIT_NOFILE)[0] * SHARE)


class PatientProtocol(H11Protocol):
    """Closes a connection whose caller does not send on.

    The head of a request must come whole within `quiet_seconds`; of a body some more must come in
    any such time. One connection too many is told so and closed.
    """

    quiet_seconds = QUIET_SECONDS
    most = most_connections()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request."""
        super().connection_made(transport)
        self._moved_at = self.loop.time()
        self._timer = self.loop.call_later(self.quiet_seconds, self._look)
        if len(self.connections) > self.most:
            transport.write(_FULL)
            transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        self._timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take what came."""
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:  # else the head is not whole yet
            self._moved_at = self.loop.time()

    def on_response_complete(self) -> None:
        """Begin to wait for the next request."""
        self._moved_at = self.loop.time()
        super().on_response_complete()

    def _look(self) -> None:
        if self.flow.read_paused or self.conn.their_state not in _WAITED_FOR:
            self._moved_at = self.loop.time()
        left = self._moved_at + self.quiet_seconds - self.loop.time()
        if left <= 0.0:
            self.transport.abort()
        else:
            self._timer = self.loop.call_later(left, self._look)
