"""Running the API under uvicorn, until SIGTERM or Ctrl-C; slow callers do not keep it waiting.

uvicorn waits for ever for the rest of a request that has begun, and for a caller to read what it
asked for, and takes every connection until the process has no descriptor left for the database.
"""

import asyncio
import logging
import resource
import socket
from typing import Final

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from tuner_service.access.keys import forget_settings_key, require_safe_settings
from tuner_service.api.app import create_app
from tuner_service.api.service import Service
from tuner_service.errors import SettingsError
from tuner_service.settings import Settings
from tuner_service.storage import Database, check_file, check_schema

logger = logging.getLogger(__name__)

BACKLOG = 512
QUIET_SECONDS: Final = 30.0
LEAST_BYTES: Final = 1024  # of a body, in that time
SHARE: Final = 0.25  # of the descriptors: each connection may hold a file as well
_UNSENT_BYTES: Final = 65_536  # that the kernel takes beyond what is under way
_FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 2\r\nContent-Length: 0\r\n"
    b"Connection: close\r\n\r\n"
)


def serve(settings: Settings) -> None:
    """Serve until asked to stop; requests in progress are answered first.

    Raises:
        SettingsError: The host is unsafe without a key, or the port is taken.
        SchemaVersionError: The database was not migrated to this version.
        UnavailableError: The database cannot be reached.
    """
    prepare(settings)
    listening = bind(settings.host, settings.port)
    server = ApiServer(settings)
    host, port = listening.getsockname()[:2]
    logger.info("listening on http://%s:%d", f"[{host}]" if ":" in host else host, port)
    server.run(sockets=[listening])


def prepare(settings: Settings) -> None:
    """Make the data directory, and refuse unsafe settings.

    Raises:
        SettingsError: A key is needed, and there is none.
    """
    settings.directory.prepare()
    db = Database.open(settings.resolved_database_url)
    try:
        check_file(db.url)
        check_schema(db)
        forget_settings_key(db)
        require_safe_settings(db, settings)
    finally:
        db.close()


def bind(host: str, port: int) -> socket.socket:
    """Return a listening socket.

    Raises:
        SettingsError: The address is not ours, or the port is taken.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        family, kind, protocol, _, address = found
        # Without the protocol asyncio does not set TCP_NODELAY, and each answer on a connection
        # kept alive waits for a delayed acknowledgement (measured: 46 ms instead of 1.5).
        listening = socket.socket(family, kind, protocol)
    except OSError as error:
        raise SettingsError(f"cannot listen on host {host!r}: {error.strerror}") from error
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(BACKLOG)
    except OSError as error:
        listening.close()
        raise SettingsError(
            f"cannot listen on {host}:{port}: {error.strerror}. Another port: --port, or TUNER_PORT"
        ) from error
    return listening


def most_connections() -> int:
    """Return how many connections leave the process half of its descriptors for its own work."""
    return int(resource.getrlimit(resource.RLIMIT_NOFILE)[0] * SHARE)


class SlowClientProtocol(H11Protocol):
    """Closes a connection whose caller neither sends on nor reads.

    The head of a request must come whole within `quiet_seconds`; of a body `LEAST_BYTES`, or the
    rest; of an answer some more must be taken. One connection too many is told so and closed.
    """

    quiet_seconds = QUIET_SECONDS
    most = most_connections()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request."""
        super().connection_made(transport)
        # The application writes on only when all is sent. So what is unsent only shrinks from
        # `pause_writing` to `resume_writing`, and that it has shrunk tells that the caller reads.
        transport.set_write_buffer_limits(high=0)
        transport.get_extra_info("socket").setsockopt(
            socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT_BYTES
        )  # else the kernel takes megabytes at a time, and between them a slow caller looks still
        self._unsent = 0
        self._received = 0
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
        before = self.conn.their_state
        super().data_received(data)
        if self.conn.their_state is h11.IDLE:  # the head is not whole yet
            return
        self._received += len(data)
        amid_body = before is h11.SEND_BODY and self.conn.their_state is h11.SEND_BODY
        if self._received >= LEAST_BYTES or not amid_body:
            self._move()

    def on_response_complete(self) -> None:
        """Begin to wait for the next request."""
        self._move()
        super().on_response_complete()

    def pause_writing(self) -> None:
        """Something is left to send."""
        self._unsent = self.transport.get_write_buffer_size()
        self._move()
        super().pause_writing()

    def resume_writing(self) -> None:
        """All is sent."""
        self._move()
        super().resume_writing()

    def _move(self) -> None:
        self._moved_at = self.loop.time()
        self._received = 0

    def _look(self) -> None:
        if self._has_moved():
            self._move()
        left = self._moved_at + self.quiet_seconds - self.loop.time()
        if left <= 0.0:
            self.transport.abort()
        else:
            self._timer = self.loop.call_later(left, self._look)

    def _has_moved(self) -> bool:
        """Return whether the caller reads, or it is the application that is waited for."""
        if self.flow.write_paused:
            before, self._unsent = self._unsent, self.transport.get_write_buffer_size()
            return self._unsent < before
        waits = self.conn.their_state in (h11.IDLE, h11.SEND_BODY)
        return self.flow.read_paused or not waits


class ApiServer(uvicorn.Server):
    """uvicorn with the application; stopping, it lets `?wait` requests answer at once."""

    def __init__(self, settings: Settings) -> None:
        app = create_app(settings)
        self._service: Service = app.state.service
        super().__init__(
            uvicorn.Config(
                app,
                log_config=None,
                log_level="warning",  # its "Shutting down" comes from a logger named "error"
                access_log=False,
                server_header=False,
                proxy_headers=False,  # else whoever is on this machine could name any address
                http=SlowClientProtocol,
                timeout_graceful_shutdown=max(1, int(settings.grace_seconds / 2)),
            )
        )

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop answering."""
        logger.info("stopping: answering what was asked before")
        self._service.waiters.release()
        await super().shutdown(sockets)
