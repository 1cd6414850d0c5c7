"""One log line and one count per request, and an id by which to find it again."""

import logging
import secrets
import time
from http import HTTPStatus

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tuner_service.api.routes.metrics import Metrics

logger = logging.getLogger("tuner_service.api.http.access_log")

# Asked every few seconds by machines: worth counting, not worth a line.
_QUIET = frozenset({"/healthz", "/readyz", "/metrics"})


class AccessLog:
    """The outermost layer."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and note how it went."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = scope["tuner_request_id"] = secrets.token_hex(6)
        status = HTTPStatus.INTERNAL_SERVER_ERROR.value
        begin = time.perf_counter()

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message.get("headers", ()),
                    (b"x-request-id", request_id.encode()),
                    (b"x-content-type-options", b"nosniff"),
                ]
            await send(message)

        try:
            await self._app(scope, receive, watch)
        finally:
            self._note(scope, status, time.perf_counter() - begin)

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        method, path = scope["method"], scope["path"]
        self._metrics.request(method, _route(scope), status, seconds)
        level = logging.DEBUG if path in _QUIET else logging.INFO
        # Queries are left out: they may hold what a caller thinks private. repr() keeps one line.
        logger.log(
            level,
            "%s %s %d %.0fms %s key=%s",
            method,
            repr(path)[1:-1],
            status,
            seconds * 1000,
            scope["tuner_request_id"],
            scope.get("tuner_caller") or "-",
        )


def _route(scope: Scope) -> str:
    """Return the route's template: paths as they come would be a label each."""
    template = getattr(scope.get("route"), "path", None)
    return template if isinstance(template, str) else scope.get("tuner_area", "other")
