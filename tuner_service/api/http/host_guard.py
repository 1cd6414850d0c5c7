"""What is refused before any route is looked at: foreign hosts, and other sites' browsers.

A page of another site can make a visitor's browser send requests here. DNS rebinding makes them
look like our own (the Host header tells), a form or `fetch` without it comes with an Origin that
is not ours.
"""

import ipaddress
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from tuner_service.api.auth import READING
from tuner_service.api.http.problems import ProblemResponse, problem
from tuner_service.settings import Settings

LOOPBACK_HOSTS = frozenset({"localhost", "127.0.0.1", "::1", "[::1]"})


def allowed_hosts(settings: Settings) -> frozenset[str] | None:
    """Return the host names we answer to; None means any (keys guard what is off loopback)."""
    if settings.is_loopback:
        return LOOPBACK_HOSTS | {settings.host.lower()} | _named(settings)
    if settings.allowed_hosts:
        return LOOPBACK_HOSTS | _named(settings)
    return None


def _named(settings: Settings) -> frozenset[str]:
    return frozenset(host.lower() for host in settings.allowed_hosts)


def host_of(authority: str) -> str:
    """Return the host of `host:port`, in lower case."""
    host = authority.strip().lower()
    if host.startswith("["):
        return host[: host.find("]") + 1]
    return host.rpartition(":")[0] if host.count(":") == 1 else host


class HostGuard:
    """Refuses requests to other names than ours, and writes from other sites."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._hosts = allowed_hosts(settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the request through, or refuse it."""
        answer = self._refusal(scope) if scope["type"] == "http" else None
        await (answer or self._app)(scope, receive, send)

    def _refusal(self, scope: Scope) -> ProblemResponse | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if self._hosts is not None and not self._is_ours(host_of(host)):
            return problem(
                400,
                "unknown_host",
                f"This service does not answer to the host {host[:100]!r}; "
                "TUNER_ALLOWED_HOSTS names further ones.",
            )
        origin = headers.get("origin")
        if origin and scope["method"] not in READING and urlsplit(origin).netloc != host:
            return problem(
                403, "foreign_origin", f"Requests from {origin[:100]!r} may not change anything."
            )
        return None

    def _is_ours(self, host: str) -> bool:
        assert self._hosts is not None
        if host in self._hosts:
            return True
        # The whole of 127.0.0.0/8 is this machine, and no name that could be rebound.
        try:
            return ipaddress.ip_address(host.strip("[]")).is_loopback
        except ValueError:
            return False
