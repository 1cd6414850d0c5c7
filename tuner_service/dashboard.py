"""The Optuna dashboard, read-only, under the same server, for studies that it can bear.

Its pages hard-code root paths, so it owns `/dashboard`, `/static`, `/api`, `/artifacts` and
`/csv`. It has no login, and whoever reaches it could delete studies: only GET and HEAD come
through, and the database is opened read-only beneath it. It reads a whole study at once: one of
20,000 trials takes 12 s and 230 MB of the API's memory, so larger ones are refused at the door.
"""

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

import optuna_dashboard
from a2wsgi import WSGIMiddleware
from optuna.storages import RDBStorage
from sqlalchemy import func, make_url, select

from tuner_service.storage import Database, optuna_rows
from tuner_service.storage.schema import studies

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

ROOTS = frozenset(
    {"dashboard", "static", "api", "artifacts", "csv", "favicon.ico", "incompatible-rdb-schema"}
)
READING = frozenset({"GET", "HEAD"})
THREADS = 4
MOST_TRIALS = 10_000
_OF_STUDY = re.compile(
    r"/(?P<area>dashboard|api)/studies/(?P<study>\d{1,9})(/|$)|/csv/(?P<csv>\d{1,9})(/|$)"
)
_JSON = (b"content-type", b"application/json")
_READ_ONLY = (
    b'{"reason": "The dashboard is read-only. Use the API under /v1, or the tuner command."}'
)


def owns(path: str) -> bool:
    """Return whether an address is the dashboard's."""
    return path.removeprefix("/").partition("/")[0] in ROOTS


class Dashboard:
    """The ASGI application."""

    def __init__(self, db: Database, *, most_trials: int = MOST_TRIALS) -> None:
        self._db = db
        self._most_trials = most_trials
        self._storage = _read_only_storage(db.url)
        wsgi = optuna_dashboard.wsgi(self._storage)
        self._middleware = WSGIMiddleware(wsgi, workers=THREADS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a reading request; refuse any other."""
        if scope["type"] == "http" and scope["method"] not in READING:
            await _answer(send, 405, _READ_ONLY, (b"allow", b"GET, HEAD"))
            return
        found = _OF_STUDY.match(scope["path"]) if scope["type"] == "http" else None
        if found is not None:
            study = int(found["study"] or found["csv"])
            refusal = await asyncio.to_thread(self._too_large, study)
            if refusal is not None:
                await _refuse(send, refusal, as_page=found["area"] == "dashboard")
                return
        await self._middleware(
            cast(Any, _with_defaults(scope)), cast(Any, receive), cast(Any, send)
        )

    def _too_large(self, study: int) -> tuple[int, str] | None:
        """Return the trials and the address of a study that is too large; None: it is not."""
        with self._db.read() as connection:
            mine = optuna_rows.TRIALS.c.study_id == study
            some = select(optuna_rows.TRIALS.c.trial_id).where(mine).limit(self._most_trials + 1)
            if len(connection.execute(some).all()) <= self._most_trials:
                return None
            count = connection.execute(
                select(func.count()).select_from(optuna_rows.TRIALS).where(mine)
            ).scalar_one()
            ours = select(studies.c.public_id).where(studies.c.optuna_study_id == study)
            public_id = connection.execute(ours).scalar()
        return count, f"/v1/studies/{public_id}" if public_id else "/v1/studies"

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


async def _refuse(send: Send, refusal: tuple[int, str], *, as_page: bool) -> None:
    count, address = refusal
    why = f"A study of {count:,} trials is too large for this dashboard ({MOST_TRIALS:,} at most)."
    if not as_page:
        reason = f"{why} It is at {address}, its trials at {address}/export."
        await _answer(send, 413, json.dumps({"reason": reason}).encode())
        return
    page = (
        f"<!doctype html><meta charset=utf-8><title>Too large</title><p>{why}"
        f'<p><a href="{address}">The study</a>, <a href="{address}/trials?sort=value">its trials'
        f'</a> and <a href="{address}/export">all of them as CSV</a>; '
        '<a href="/dashboard">the other studies</a>.'
    )
    await _answer(send, 413, page.encode(), (b"content-type", b"text/html; charset=utf-8"))


async def _answer(send: Send, status: int, body: bytes, *headers: tuple[bytes, bytes]) -> None:
    kind = () if any(n == b"content-type" for n, _ in headers) else (_JSON,)
    start = {"type": "http.response.start", "status": status, "headers": [*kind, *headers]}
    await send(start)
    await send({"type": "http.response.body", "body": body})
