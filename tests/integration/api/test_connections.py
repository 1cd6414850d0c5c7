"""Callers that neither send on nor read, or come in masses, hold nobody up and are let go."""

import contextlib
import logging
import resource
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest

from tests.integration.api.conftest import served
from tests.integration.lifecycle.hands import Hand, submitted
from tuner_service.api.server import SlowClientProtocol, most_connections
from tuner_service.settings import Settings
from tuner_service.storage import Database

HEAD = b"POST /v1/studies/validate HTTP/1.1\r\nHost: localhost\r\n"
BODY_BEGUN = HEAD + b"Content-Type: application/json\r\nContent-Length: 9\r\n\r\n["
LOG = b"GET /v1/studies/talks/trials/0/logs HTTP/1.1\r\nHost: localhost\r\n"


ANSWER_BYTES = 12 << 20  # more than kernels keep


@pytest.fixture
def port(migrated_sqlite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Where a service listens that has a trial with a long log, and little patience."""
    shutil.copy(migrated_sqlite, tmp_path / "tuner.db")
    settings = Settings(data_dir=tmp_path, host="127.0.0.1")
    monkeypatch.setattr(SlowClientProtocol, "quiet_seconds", 0.6)
    monkeypatch.setattr(SlowClientProtocol, "most", 20)
    with contextlib.closing(Database.open(settings.resolved_database_url)) as db:
        study, hand = submitted(db, name="talks"), Hand(db)
        hand.claim_and_start()
    log = tmp_path / "logs" / study.id / "0-1.log"
    log.parent.mkdir(parents=True)
    log.write_bytes(b"x" * ANSWER_BYTES)
    with served(settings) as address:
        yield int(address.rpartition(":")[2])


@contextlib.contextmanager
def connected(port: int) -> Iterator[socket.socket]:
    with socket.socket() as caller:
        caller.settimeout(10.0)
        caller.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        caller.connect(("127.0.0.1", port))
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


def test_a_body_that_comes_in_drops_is_not_waited_for(port: int) -> None:
    with connected(port) as caller:
        caller.sendall(BODY_BEGUN.replace(b": 9", b": 900"))
        caller.settimeout(0.05)
        for _ in range(200):
            with contextlib.suppress(ConnectionError):
                caller.sendall(b" ")
            try:
                said = caller.recv(1)
            except TimeoutError:
                continue
            except ConnectionError:
                said = b""
            break
        assert said == b""


@pytest.mark.parametrize("connection", ["keep-alive", "close"])
def test_who_does_not_read_is_let_go(
    port: int, connection: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SlowClientProtocol, "quiet_seconds", 0.3)
    with connected(port) as caller:
        caller.sendall(LOG + f"Connection: {connection}\r\n\r\n".encode())
        time.sleep(2.0)
        assert len(heard(caller)) < ANSWER_BYTES


def a_body_comes_slowly(port: int) -> None:
    size = 1024 * 12
    with connected(port) as caller:
        caller.sendall(BODY_BEGUN.replace(b": 9", b": %d" % size))
        for _ in range(11):
            time.sleep(0.4)
            caller.sendall(b" " * 1024)
        caller.sendall(b" " * 1022 + b"]")
        assert caller.recv(12) == b"HTTP/1.1 422"


def an_answer_is_read_slowly(port: int) -> None:
    read = 0
    with connected(port) as caller:
        caller.sendall(LOG + b"\r\n")
        while read < ANSWER_BYTES:
            part = caller.recv(65536)
            assert part
            read += len(part)
            time.sleep(len(part) * 5.0 / ANSWER_BYTES)


def an_answer_is_waited_for(port: int) -> None:
    with httpx2.Client(base_url=f"http://127.0.0.1:{port}") as client:
        study = client.get("/v1/studies/talks").json()
        query = {"wait": "4", "revision": str(study["revision"])}
        assert client.get("/v1/studies/talks", params=query).status_code == 200


def test_who_goes_on_however_slowly_is_not_let_go(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SlowClientProtocol, "quiet_seconds", 3.0)  # each takes longer as a whole
    callers: list[Callable[[int], None]] = [
        a_body_comes_slowly, an_answer_is_read_slowly, an_answer_is_waited_for
    ]  # fmt: skip
    with ThreadPoolExecutor(len(callers)) as threads:
        for done in [threads.submit(call, port) for call in callers]:
            done.result()


def test_half_of_the_descriptors_are_the_services_own() -> None:
    """With a socket and a file for each connection."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert 2 * most_connections() <= limit // 2


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
