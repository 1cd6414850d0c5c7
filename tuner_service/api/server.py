"""Running the API under uvicorn, until SIGTERM or Ctrl-C."""

import logging
import socket

import uvicorn

from tuner_service.access.keys import forget_settings_key, require_safe_settings
from tuner_service.api.app import create_app
from tuner_service.api.http.connections import SlowClientProtocol
from tuner_service.api.service import Service
from tuner_service.errors import SettingsError
from tuner_service.settings import Settings
from tuner_service.storage import Database, check_file, check_schema

logger = logging.getLogger(__name__)

BACKLOG = 512


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
    settings.prepare_data_dir()
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
