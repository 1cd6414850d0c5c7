"""One HTTP conversation with the service: keys, errors, and asking again.

A request that failed on the way, met a 503, or came too soon after others (a 429 that passes in
seconds), is sent again for up to `retry_seconds`. That is
safe for all of them: a submit carries an `Idempotency-Key`, pause, resume and cancel change
nothing the second time, and a second delete finds nothing, which is as good.
"""

import ipaddress
import random
import socket
import time
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx2

from tuner_service.client.errors import (
    GATEWAY_STATUSES,
    AddressError,
    ConnectionFailedError,
    api_error,
)

CHECK_SECONDS = 600.0  # that the service may take to look through an uploaded file
FIRST_PAUSE_SECONDS = 0.1
LONGEST_RETRY_AFTER = 5  # seconds; a quota that is used up says a minute, and is told at once
LONGEST_PAUSE_SECONDS = 2.0


class Transport:
    """Sends requests under `/v1` and returns their JSON."""

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None,
        timeout: float,
        retry_seconds: float,
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        self.url = url.rstrip("/")
        self._timeout = timeout
        self._retry_seconds = retry_seconds
        headers = {"Accept": "application/json, application/problem+json"}
        if api_key:
            headers["Authorization"] = f"Bearer {api_key}"
        self._http = self._open(headers, transport)

    def _open(
        self, headers: Mapping[str, str], transport: httpx2.BaseTransport | None
    ) -> httpx2.Client:
        try:
            return httpx2.Client(
                base_url=f"{self.url}/v1",
                headers=headers,
                timeout=self._timeout,
                transport=transport,
                # Reading the certificates takes longer than most commands. Made here, as they come
                # from the environment (SSL_CERT_FILE) where nothing else may, too.
                verify=self.url.startswith("https:") and httpx2.create_ssl_context(),
                # Another machine's proxy cannot know this machine's service.
                trust_env=not _is_direct(self.url),
            )
        except ImportError as error:  # httpx2 has SOCKS from a package of its own
            raise AddressError(
                f"The proxy {_proxy_of(self.url)}, which http_proxy, https_proxy or all_proxy "
                "names, needs a package: pip install 'httpx2[socks]'. Name the host in no_proxy "
                "if it can be reached directly."
            ) from error
        except (httpx2.InvalidURL, httpx2.UnsupportedProtocol) as error:
            raise AddressError(_bad_url(self.url)) from error

    def ping(self) -> None:
        """Ask once whether a tuner service, or a proxy for one, is there; do not try again.

        Raises:
            ConnectionFailedError: There is none.
        """
        response, error = self._attempt("GET", f"{self.url}/healthz")
        if response is None:
            raise ConnectionFailedError(self._unreachable(error)) from error
        if response.status_code in GATEWAY_STATUSES:
            return  # a proxy, while the API restarts: the requests that follow wait for it
        if response.status_code == HTTPStatus.NOT_FOUND or _json_or_none(response) is None:
            raise ConnectionFailedError(
                f"What answers at {self.url} is not a tuner service: is the address right?"
            )

    def get(
        self,
        path: str,
        query: Mapping[str, str | int | None] | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        wait: float = 0.0,
    ) -> httpx2.Response:
        """GET.

        Args:
            query: What stands after the `?`; absent (`None`) values are left out.
            wait: How long the service may hold the answer, in seconds.
        """
        params: dict[str, Any] = {
            name: value for name, value in (query or {}).items() if value is not None
        }
        if wait:
            params["wait"] = f"{wait:g}"
        timeout = self._timeout + wait
        return self._send("GET", path, params=params, headers=headers, timeout=timeout)

    def post(
        self, path: str, body: object = None, *, headers: Mapping[str, str] | None = None
    ) -> Any:
        """POST JSON, and return the JSON of the answer."""
        if body is None:
            return _json(self._send("POST", path, headers=headers))
        return _json(self._send("POST", path, json=body, headers=headers))

    def patch(self, path: str, body: object) -> Any:
        """PATCH with JSON, and return the JSON of the answer."""
        return _json(self._send("PATCH", path, json=body))

    def put_file(self, path: str, file: Path, *, headers: Mapping[str, str]) -> Any:
        """PUT a file's bytes, read anew each time they are sent; return the JSON of the answer."""
        length = {"Content-Length": str(file.stat().st_size)}
        timeout = httpx2.Timeout(self._timeout, read=CHECK_SECONDS)
        return _json(
            self._send("PUT", path, file=file, headers={**headers, **length}, timeout=timeout)
        )

    def delete(self, path: str) -> None:
        """DELETE."""
        self._send("DELETE", path)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def _send(self, method: str, path: str, **options: Any) -> httpx2.Response:
        deadline = time.monotonic() + self._retry_seconds
        pause = FIRST_PAUSE_SECONDS
        sent = 0
        while True:
            response, error = self._attempt(method, path, **options)
            sent += 1
            late = time.monotonic() + pause > deadline
            if response is None:
                if late:
                    raise ConnectionFailedError(self._unreachable(error)) from error
            elif late or not _passes(response):
                if method == "DELETE" and sent > 1 and response.status_code == HTTPStatus.NOT_FOUND:
                    return response  # an earlier request did it, and its answer was lost
                return _checked(response)
            time.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 - spreads clients in time
            pause = min(pause * 2, LONGEST_PAUSE_SECONDS)

    def _attempt(
        self, method: str, path: str, *, file: Path | None = None, **options: Any
    ) -> tuple[httpx2.Response | None, Exception | None]:
        try:
            if file is not None:
                with file.open("rb") as body:
                    return self._http.request(method, path, content=body, **options), None
            return self._http.request(method, path, **options), None
        except httpx2.UnsupportedProtocol as error:
            raise AddressError(_bad_url(self.url)) from error
        except httpx2.TransportError as error:
            return None, error

    def _unreachable(self, error: Exception | None) -> str:
        if isinstance(error, httpx2.TimeoutException):
            return f"The tuner service at {self.url} does not answer in time."
        why = str(error).partition("] ")[2] or str(error)  # without "[Errno 111] "
        if "wrong version number" in why.lower():
            return (
                f"What answers at {self.url} does not speak https: say http://, or use its proxy."
            )
        proxy = _proxy_of(self.url)
        if proxy:
            return (
                f"The tuner service at {self.url} cannot be reached by way of the proxy {proxy} "
                f"({why}), which http_proxy, https_proxy or all_proxy names. Name the host in "
                "no_proxy if it can be reached directly."
            )
        return (
            f"There is no tuner service at {self.url} ({why}). Start one with `tuner up`, "
            "or say where it is (--url, TUNER_URL)."
        )


def _passes(response: httpx2.Response) -> bool:
    """Return whether the same request may well be answered in a moment."""
    if response.status_code == HTTPStatus.TOO_MANY_REQUESTS:
        wait = response.headers.get("retry-after", "")
        return wait.isdecimal() and int(wait) <= LONGEST_RETRY_AFTER
    return response.status_code in GATEWAY_STATUSES


def _is_direct(url: str) -> bool:
    """Return whether a host is this machine, or one that no_proxy names."""
    host = _host(url)
    try:
        local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = host in ("localhost", socket.gethostname())
    return local or bool(host and proxy_bypass(host))


def _host(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:  # a malformed one is told by what opens it
        return ""


def _proxy_of(url: str) -> str:
    """Return the proxy that the environment names for an address, without its password."""
    if _is_direct(url):
        return ""
    proxies = getproxies()
    proxy = proxies.get(url.partition(":")[0]) or proxies.get("all") or ""
    return proxy.rpartition("@")[2]


def _bad_url(url: str) -> str:
    return f"The address must look like http://HOST:PORT, but got {url!r}"


def _checked(response: httpx2.Response) -> httpx2.Response:
    if response.status_code < 400:
        return response
    raise api_error(response.status_code, _json_or_none(response))


def _json_or_none(response: httpx2.Response) -> object:
    try:
        return response.json()
    except ValueError:
        return None


def _json(response: httpx2.Response) -> Any:
    body = _json_or_none(response)
    if body is None:
        raise api_error(response.status_code, None)
    return body
