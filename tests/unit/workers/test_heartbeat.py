"""Heartbeats and reconciling rounds, on a fake register."""

import threading
from collections.abc import Callable

import pytest

from tuner_service.errors import UnavailableError
from workers.supervisor.heartbeat import Heartbeat
from workers.supervisor.supervisor import Status


class FakeWorkerRegistry:
    def __init__(self) -> None:
        self.seen: list[Status] = []
        self.rounds = 0
        self.left = False
        self.failures: list[Exception] = []
        self.changed = threading.Condition()

    def heartbeat(self, status: Status) -> None:
        self.seen.append(status)

    def reconcile(self) -> None:
        with self.changed:
            self.rounds += 1
            self.changed.notify_all()
        if self.failures:
            raise self.failures.pop()

    def leave(self) -> None:
        self.left = True

    def wait(self, condition: Callable[[], bool]) -> None:
        with self.changed:
            assert self.changed.wait_for(condition, 20.0)


def heartbeat(register: FakeWorkerRegistry, died: threading.Event) -> Heartbeat:
    status = Status("busy", 4, ({"study": "s"},))
    return Heartbeat(register, lambda: status, reconcile_seconds=0.01, on_death=died.set)


def test_it_appears_at_once_and_leaves_at_the_end() -> None:
    register = FakeWorkerRegistry()
    one = heartbeat(register, threading.Event())
    one.start()
    register.wait(lambda: register.rounds >= 3)
    one.close()
    assert register.seen[0].state == "busy"
    assert register.left


def test_an_outage_is_lived_through() -> None:
    register, died = FakeWorkerRegistry(), threading.Event()
    register.failures = [UnavailableError("away"), UnavailableError("away")]
    one = heartbeat(register, died)
    one.start()
    register.wait(lambda: register.rounds >= 5)
    one.close()
    assert not died.is_set()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_its_death_stops_the_worker() -> None:
    register, died = FakeWorkerRegistry(), threading.Event()
    register.failures = [KeyError("a bug")]
    one = heartbeat(register, died)
    one.start()
    assert died.wait(20.0)
    one.close()
