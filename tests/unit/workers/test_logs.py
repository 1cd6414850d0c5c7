"""Log lines."""

import json
import logging

from workers.logs import JsonFormatter, LineFormatter


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
