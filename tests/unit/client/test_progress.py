"""The client's display: one line, whatever the width, on a terminal and off it."""

import fcntl
import os
import pty
import re
import struct
import sys
import termios
import threading
from pathlib import Path

import pytest

from tests.unit.client.fake_service import FakeService, ends, finishes, problem, trial
from tuner_service.client import transport
from tuner_service.client.answers import Trial
from tuner_service.client.progress import LINE_COLUMNS, trial_line

LONG = "a-study-with-a-name-of-sixty-characters-" + "x" * 20
ESCAPES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> FakeService:
    monkeypatch.setattr(transport, "FIRST_PAUSE_SECONDS", 0.001)
    service = FakeService()
    service.study.name = LONG
    service.study.steps = [finishes(1), finishes(0, 0.5), finishes(2, None, "FAIL"), ends()]
    return service


def shown_on_terminal(service: FakeService, columns: int, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return what `wait(progress=True)` writes to a terminal of this width."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    chunks: list[bytes] = []

    def read() -> None:
        try:
            while chunk := os.read(ours, 65536):
                chunks.append(chunk)
        except OSError:  # how Linux tells that nobody writes any more
            return

    reader = threading.Thread(target=read)
    reader.start()
    with os.fdopen(theirs, "w", encoding="utf-8") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        service.client().study(service.study.name).wait(progress=True)
    reader.join(10)
    os.close(ours)
    return b"".join(chunks).decode()


@pytest.mark.parametrize("columns", [60, 80, 120, 200])
def test_the_bar_is_one_line_of_a_terminal(
    service: FakeService, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    bar, end = shown_on_terminal(service, columns, monkeypatch).split("\r\n")[:2]
    frames = [ESCAPES.sub("", frame).rstrip() for frame in bar.split("\r")]
    assert max(map(len, frames)) <= columns
    assert "\n" not in bar
    assert "3/3, completed, bes" in frames[-1]
    assert end.startswith(f"Study {LONG} is completed.")


def test_a_terminal_of_unknown_width_is_taken_for_one_of_80_columns(
    service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    bar = shown_on_terminal(service, 0, monkeypatch).split("\r\n")[0]
    assert max(len(ESCAPES.sub("", frame).rstrip()) for frame in bar.split("\r")) <= LINE_COLUMNS


def test_the_bar_ends_its_line_when_waiting_fails(
    service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = problem(401, "unauthenticated", "no key")
    service.study.steps = [lambda study: service.failures.append(refused)]
    with pytest.raises(Exception, match="no key"):
        shown_on_terminal(service, 80, monkeypatch)


def test_a_line_of_a_log_fits_80_columns_and_says_first_why_a_trial_failed() -> None:
    data = trial(3, "FAIL")
    data["parameters"] = {f"parameter_{number}": number / 7 for number in range(12)}
    data["failure"] = {"kind": "error", "message": "ValueError: the loss\nis not a number"}
    line = trial_line(Trial.of(data))
    assert len(line) == LINE_COLUMNS
    assert line.startswith("trial 3  FAIL  no value  [")
    assert "ValueError: the loss is not a number]  param" in line
    assert line.endswith("…")


def test_the_display_of_the_demonstration_is_this_one() -> None:
    demo = Path(__file__).resolve().parents[3] / "scripts" / "demo.py"
    assert "study.wait(progress=True" in demo.read_text()
