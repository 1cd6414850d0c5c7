"""Which hosts are answered, and which sites' browsers may change something."""

import asyncio
from typing import Any

import pytest

from tuner_service.api.http.host_guard import HostGuard
from tuner_service.settings import Settings


async def _accept(_scope: Any, _receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def status(settings: Settings, method: str, host: str, origin: str | None = None) -> int:
    """Return the status that a request gets."""
    headers = [(b"host", host.encode())]
    if origin is not None:
        headers.append((b"origin", origin.encode()))
    seen: list[int] = []

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            seen.append(message["status"])

    scope = {"type": "http", "method": method, "path": "/v1/studies", "headers": headers}
    asyncio.run(HostGuard(_accept, settings)(scope, None, send))  # type: ignore[arg-type]
    return seen[0]


LOOPBACK = {"host": "127.0.0.1"}
OPEN = {"host": "0.0.0.0"}
NAMED = {"host": "0.0.0.0", "allowed_hosts": ("tuner.example",)}


@pytest.mark.parametrize(
    ("bound", "host", "expected"),
    [
        (LOOPBACK, "localhost:8000", 200),
        (LOOPBACK, "127.0.0.1", 200),
        (LOOPBACK, "127.3.2.1:80", 200),
        (LOOPBACK, "[::1]:8000", 200),
        (LOOPBACK, "LOCALHOST", 200),
        (LOOPBACK, "evil.example", 400),
        (LOOPBACK, "localhost.evil.example:8000", 400),
        (LOOPBACK, "127.0.0.1.evil.example", 400),
        (LOOPBACK, "", 400),
        ({**LOOPBACK, "allowed_hosts": ("Proxy.example",)}, "proxy.example", 200),
        (OPEN, "anything.example", 200),  # keys guard it
        (NAMED, "tuner.example:443", 200),
        (NAMED, "other.example", 400),
    ],
)
def test_only_our_own_names_are_answered(bound: dict[str, Any], host: str, expected: int) -> None:
    assert status(Settings(**bound), "GET", host) == expected


@pytest.mark.parametrize(
    ("method", "origin", "expected"),
    [
        ("POST", "http://localhost:8000", 200),
        ("POST", None, 200),  # no browser
        ("POST", "http://evil.example", 403),
        ("DELETE", "http://localhost:9000", 403),
        ("POST", "null", 403),
        ("GET", "http://evil.example", 200),  # it cannot read the answer: there is no CORS
    ],
)
def test_other_sites_change_nothing(method: str, origin: str | None, expected: int) -> None:
    assert status(Settings(**LOOPBACK), method, "localhost:8000", origin) == expected
