"""The Optuna dashboard, read-only, under the same server.

Its pages hard-code root paths, so it owns `/dashboard`, `/static`, `/api`, `/artifacts` and
`/csv`. It has no login, and whoever reaches it could delete studies: only GET and HEAD come
through, and the database is opened read-only beneath it.
"""

from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

import optuna_dashboard
from a2wsgi import WSGIMiddleware
from optuna.storages import RDBStorage
from sqlalchemy import make_url

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

ROOTS = frozenset(
    {"dashboard", "static", "api", "artifacts", "csv", "favicon.ico", "incompatible-rdb-schema"}
)
READING = frozenset({"GET", "HEAD"})
THREADS = 4
_READ_ONLY = (
    b'{"reason": "The dashboard is read-only. Use the API under /v1, or the tuner command."}'
)


def owns(path: str) -> bool:
    """Return whether an address is the dashboard's."""
    return path.removeprefix("/").partition("/")[0] in ROOTS


class Dashboard:
    """The ASGI application."""

    def __init__(self, database_url: str) -> None:
        self._storage = _read_only_storage(database_url)
        wsgi = optuna_dashboard.wsgi(self._storage)
        self._middleware = WSGIMiddleware(wsgi, workers=THREADS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a reading request; refuse any other."""
        if scope["type"] == "http" and scope["method"] not in READING:
            await _refuse(send)
            return
        await self._middleware(
            cast(Any, _with_defaults(scope)), cast(Any, receive), cast(Any, send)
        )

    def close(self) -> None:
        """End the threads and close the database connections."""
        self._middleware.executor.shutdown(wait=False)
        self._storage.remove_session()
        self._storage.engine.dispose()


def _read_only_storage(database_url: str) -> RDBStorage:
    url = make_url(database_url)
    if url.get_backend_name() == "sqlite":
        path = Path(url.database or "").absolute().as_posix()
        url = url.set(database=f"file:{quote(path)}", query={"mode": "ro", "uri": "true"})
        connect_args: dict[str, Any] = {"timeout": 20.0}
    else:
        connect_args = {"connect_timeout": 5, "options": "-c default_transaction_read_only=on"}
    return RDBStorage(
        url.render_as_string(hide_password=False),
        engine_kwargs={"connect_args": connect_args},
        skip_compatibility_check=True,
        skip_table_creation=True,
    )


def _with_defaults(scope: Scope) -> Scope:
    """Return the scope with the header that the dashboard's file routes cannot do without."""
    headers = list(scope["headers"])
    if not any(name.lower() == b"accept-encoding" for name, _ in headers):
        headers.append((b"accept-encoding", b"identity"))
    return {**scope, "headers": headers, "root_path": ""}


async def _refuse(send: Send) -> None:
    await send(
        {
            "type": "http.response.start",
            "status": 405,
            "headers": [(b"content-type", b"application/json"), (b"allow", b"GET, HEAD")],
        }
    )
    await send({"type": "http.response.body", "body": _READ_ONLY})
