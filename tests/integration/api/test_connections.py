"""Callers that do not send on, or come in masses, hold nobody up and are let go."""

import contextlib
import logging
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from tests.integration.api.conftest import served
from tests.integration.api.test_api import definition
from tuner_service.api.connections import PatientProtocol
from tuner_service.settings import Settings

HEAD = b"POST /v1/studies/validate HTTP/1.1\r\nHost: localhost\r\n"
BODY_BEGUN = HEAD + b"Content-Type: application/json\r\nContent-Length: 9\r\n\r\n["


@pytest.fixture
def port(migrated_sqlite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    shutil.copy(migrated_sqlite, tmp_path / "tuner.db")
    settings = Settings(data_dir=tmp_path, host="127.0.0.1")
    monkeypatch.setattr(PatientProtocol, "quiet_seconds", 0.6)
    monkeypatch.setattr(PatientProtocol, "most", 20)
    with served(settings) as address:
        yield int(address.rpartition(":")[2])


@contextlib.contextmanager
def connected(port: int) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), timeout=10.0) as caller:
        yield caller


def heard(caller: socket.socket) -> bytes:
    """Return what is said until the connection is closed."""
    said = b""
    with contextlib.suppress(ConnectionResetError):
        while part := caller.recv(65536):
            said += part
    return said


@pytest.mark.parametrize("begun", [b"", b"GET /", HEAD, BODY_BEGUN])
def test_who_does_not_send_on_is_let_go(port: int, begun: bytes) -> None:
    with connected(port) as caller:
        caller.sendall(begun)
        assert heard(caller) == b""


def test_a_head_that_comes_in_drops_is_not_waited_for(port: int) -> None:
    with connected(port) as caller:
        caller.settimeout(0.05)
        for _ in range(200):
            with contextlib.suppress(ConnectionError):  # it comes with the next read, too
                caller.sendall(b"X")
            try:
                said = caller.recv(1)
            except TimeoutError:
                continue
            except ConnectionError:
                said = b""
            break
        assert said == b""


def test_a_body_that_comes_slowly_is(port: int) -> None:
    with connected(port) as caller:
        caller.sendall(BODY_BEGUN)
        for drop in b"      1":
            time.sleep(0.2)
            caller.sendall(bytes([drop]))
        caller.sendall(b"]")
        assert caller.recv(12) == b"HTTP/1.1 422"


def test_who_waits_for_an_answer_is_not_let_go(port: int) -> None:
    with httpx2.Client(base_url=f"http://127.0.0.1:{port}") as client:
        study = client.post("/v1/studies", json=definition()).json()
        query = {"wait": "1.5", "revision": str(study["revision"])}
        assert client.get(f"/v1/studies/{study['id']}", params=query).status_code == 200


def test_a_body_that_is_cut_is_no_error_of_ours(
    port: int, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        with connected(port) as caller:
            caller.sendall(BODY_BEGUN)
            caller.shutdown(socket.SHUT_WR)
            heard(caller)
        assert httpx2.get(f"http://127.0.0.1:{port}/healthz").status_code == 200
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


def test_one_connection_too_many_is_told_so(port: int) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(connected(port))
        with connected(port) as late:
            assert heard(late).startswith(b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 2")
    with connected(port) as later:
        later.sendall(b"GET /healthz HTTP/1.0\r\nHost: localhost\r\n\r\n")
        assert heard(later).startswith(b"HTTP/1.1 200")
