"""An application on a fresh database, spoken to in-process or over a socket."""

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from tuner_service.api.app import create_app
from tuner_service.api.server import ApiServer, bind
from tuner_service.settings import Settings


@pytest.fixture
def settings(tmp_path: Path, migrated_url: str) -> Settings:
    """Settings of a service on a fresh database and its own data directory."""
    return Settings(data_dir=tmp_path / "data", database_url=migrated_url, host="127.0.0.1")


@pytest.fixture
def client(settings: Settings) -> Iterator[TestClient]:
    """The running application; an error of the service answers 500 instead of raising here."""
    app = create_app(settings)
    with TestClient(app, base_url="http://localhost", raise_server_exceptions=False) as client:
        yield client


@contextlib.contextmanager
def served(settings: Settings) -> Iterator[str]:
    """Serve on a free port, in a thread, and yield the URL."""
    listening = bind("127.0.0.1", 0)
    server = ApiServer(settings)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20.0)
        listening.close()
    assert not thread.is_alive()
