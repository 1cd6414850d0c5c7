"""The broker that needs no server: how long who waits for a message waits."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kombu import Connection

from tuner_service.broker import file_transport

LONG_SECONDS = 3600.0


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[Connection]:
    places = {"data_folder_in": "spool", "data_folder_out": "spool", "control_folder": "control"}
    options: dict[str, Any] = {key: str(tmp_path / name) for key, name in places.items()}
    for name in ("spool", "control"):
        (tmp_path / name).mkdir()
    options["polling_interval"] = 0.02
    with Connection(
        transport=file_transport.FileTransport, transport_options=options
    ) as connection:
        yield connection


@pytest.fixture
def closing(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    event = threading.Event()
    monkeypatch.setattr(file_transport, "closing", event)
    return event


def test_a_message_that_comes_late_is_delivered(
    connection: Connection, closing: threading.Event
) -> None:
    with connection.SimpleQueue("rings") as queue:
        later = threading.Timer(3 * file_transport.LOOK_SECONDS, queue.put, ("ring",))
        later.start()
        assert queue.get(timeout=LONG_SECONDS).payload == "ring"
        later.join()
        with pytest.raises(queue.Empty):
            queue.get(timeout=file_transport.LOOK_SECONDS)


@pytest.mark.timeout(60)
def test_a_process_that_is_to_stop_waits_for_no_message(
    connection: Connection, closing: threading.Event
) -> None:
    with connection.SimpleQueue("rings") as queue:
        later = threading.Timer(file_transport.LOOK_SECONDS, closing.set)
        later.start()
        with pytest.raises(queue.Empty):
            queue.get(timeout=LONG_SECONDS)
        later.join()
