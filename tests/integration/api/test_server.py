"""The server on a real socket: many waiters, stopping, ports that are taken."""

import socket
import threading
import time
from pathlib import Path

import httpx2
import pytest

from tests.integration.api.conftest import served
from tests.integration.api.test_api import definition
from tuner_service.api.server import bind
from tuner_service.errors import SettingsError
from tuner_service.settings import Settings

WAITERS = 50


def wait_for_change(url: str, revision: int, seen: list[int]) -> threading.Thread:
    """Hold a request in a thread of its own."""

    def hold() -> None:
        query = {"wait": "50", "revision": str(revision)}
        seen.append(httpx2.get(url, params=query, timeout=60.0).json()["revision"])

    thread = threading.Thread(target=hold)
    thread.start()
    return thread


def until_held(address: str, count: int) -> None:
    """Return when so many requests are held."""
    deadline = time.monotonic() + 30.0
    while f"tuner_requests_waiting {count}.0" not in httpx2.get(f"{address}/metrics").text:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_many_waiters_hold_nobody_up_and_all_hear_of_the_change(settings: Settings) -> None:
    with served(settings) as address, httpx2.Client(timeout=10.0) as client:
        study = client.post(f"{address}/v1/studies", json=definition()).json()
        url = f"{address}/v1/studies/{study['id']}"
        seen: list[int] = []
        waiting = [wait_for_change(url, study["revision"], seen) for _ in range(WAITERS)]
        until_held(address, WAITERS)
        for _ in range(20):  # more than the threads that endpoints run in, were waiters to hold one
            assert client.get(f"{address}/healthz").status_code == 200
            assert client.get(url).status_code == 200
        assert seen == []
        client.post(f"{url}/pause")
        for thread in waiting:
            thread.join(30.0)
        assert len(seen) == WAITERS
        assert set(seen) == {study["revision"] + 1}


def test_a_stopping_server_answers_those_who_wait(settings: Settings) -> None:
    seen: list[int] = []
    with served(settings) as address:
        study = httpx2.post(f"{address}/v1/studies", json=definition()).json()
        thread = wait_for_change(f"{address}/v1/studies/small", study["revision"], seen)
        until_held(address, 1)
    thread.join(10.0)
    assert seen == [study["revision"]]


def test_answers_do_not_wait_for_acknowledgements() -> None:
    with bind("127.0.0.1", 0) as listening:
        # What asyncio looks at before it sets TCP_NODELAY on the connections.
        assert listening.proto == socket.IPPROTO_TCP


def test_a_taken_port_is_named() -> None:
    with bind("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(
            SettingsError, match=rf"127.0.0.1:{port}: Address already in use.*--port"
        ):
            bind("127.0.0.1", port)


def test_a_host_that_is_not_ours_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"no-such-host\.invalid"):
        bind("no-such-host.invalid", 0)
