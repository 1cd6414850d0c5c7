"""Who lets others go first is nice, and so is its session where sessions are weighed."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.unit.workers.test_messages import ORDER
from workers import priority
from workers.priority import NICENESS, weigh_session
from workers.protocol.codec import LOOP_COMMANDS
from workers.training.user_loops import child

PROGRAM = """
import os
from workers.priority import let_others_go_first
let_others_go_first()
print(os.nice(0))
"""


class Group:
    """A session's file that is busy for so many writes."""

    def __init__(self, busy: int, error: type[OSError] = BlockingIOError) -> None:
        self.busy = busy
        self.error = error
        self.written: list[str] = []

    def write_text(self, text: str) -> None:
        self.busy -= 1
        if self.busy >= 0:
            raise self.error
        self.written.append(text)


class Thread:
    """Runs what it is given at once."""

    def __init__(self, *, target: Any, args: Any = (), daemon: bool) -> None:
        assert daemon
        self.start = lambda: target(*args)


@pytest.mark.parametrize(
    ("niceness", "group", "written"),
    [
        (5, Group(0), ["5"]),
        (5, Group(20), ["5"]),  # other sessions were first
        (5, Group(1, PermissionError), []),
        (0, Group(0), []),  # as any session weighs
    ],
)
def test_a_session_weighs_as_nice_as_its_process(
    monkeypatch: pytest.MonkeyPatch, niceness: int, group: Group, written: list[str]
) -> None:
    monkeypatch.setattr(priority, "_AUTOGROUP", group)
    monkeypatch.setattr(priority, "_PAUSE_SECONDS", 0.0)
    monkeypatch.setattr("workers.priority.threading.Thread", Thread)
    monkeypatch.setattr("workers.priority.os.nice", lambda _: niceness)
    weigh_session()
    assert group.written == written


def test_the_session_of_a_loop_is_weighed_before_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    monkeypatch.setattr(child, "weigh_session", lambda: done.append("weighed"))
    monkeypatch.setattr(child, "run", lambda *_: done.append("run"))
    monkeypatch.setattr(child, "CommandReader", lambda hearing: hearing.close())
    monkeypatch.setattr(child, "MessageWriter", lambda pipe, *_, **__: pipe.close())
    monkeypatch.setattr("workers.training.user_loops.child.os._exit", lambda _: None)
    (commands, order), (heard, events) = os.pipe(), os.pipe()
    os.write(order, LOOP_COMMANDS.encode(ORDER))
    child.serve(commands, events)
    os.close(order)
    os.close(heard)
    assert done == ["weighed", "run"]


def test_a_process_becomes_nice() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=Path(__file__).parents[3],
        start_new_session=True,
        capture_output=True,
        text=True,
        check=True,
        timeout=60.0,
    )
    assert done.stdout.split() == [str(min(os.nice(0) + NICENESS, 19))]
