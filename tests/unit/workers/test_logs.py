"""Log lines."""

import json
import logging

import pytest
from celery.worker.consumer import connection, consumer

from workers.logs import BrokerOutage, JsonFormatter, LineFormatter


def record() -> logging.LogRecord:
    one = logging.LogRecord("workers.shift", logging.INFO, "", 0, "trial %s", ("done",), None)
    one.study, one.slot, one.trial = "digits", 3, None
    return one


def test_a_line_names_what_it_is_about_and_leaves_out_what_is_not_known() -> None:
    assert (
        LineFormatter().format(record()).endswith("info    shift: trial done [study=digits slot=3]")
    )


def test_json_holds_the_same() -> None:
    said = json.loads(JsonFormatter().format(record()))
    assert (said["message"], said["study"], said["slot"]) == ("trial done", "digits", 3)
    assert "trial" not in said


def test_an_outage_of_the_broker_is_told_once_and_its_end(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    backoff = BrokerOutage()
    loggers = [logging.getLogger(module.__name__) for module in (consumer, connection)]
    for logger in loggers:
        monkeypatch.setattr(logger, "filters", [backoff])
        monkeypatch.setattr(logger, "level", logging.INFO)
        monkeypatch.setattr(logger, "parent", logging.getLogger())  # Celery puts its own between
    told, connected = loggers
    refused = ("redis://one", OSError("Connection refused"), "Trying again in 2.00 seconds...")

    connected.info("Connected to %s", "redis://one")
    for _ in range(2):
        for _ in range(3):
            told.error(consumer.CONNECTION_ERROR, *refused)
        connected.info("Connected to %s", "redis://one")

    down = "the broker cannot be reached, trying again until it can: Connection refused"
    assert caplog.messages == [down, "the broker answers again"] * 2
