"""Waiting for a revision: one poller, many waiters, no one forgotten."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tuner_service.api import waiting
from tuner_service.api.waiting import RevisionWaiters
from tuner_service.errors import UnavailableError


class Revisions:
    """Stands in for the query; counts how often it is asked."""

    def __init__(self) -> None:
        self.now: dict[str, int] = {"a": 1, "b": 1}
        self.asked = 0
        self.down = False

    def __call__(self, _db: object) -> dict[str, int]:
        self.asked += 1
        if self.down:
            raise UnavailableError("away")
        return dict(self.now)


@pytest.fixture
def revisions(monkeypatch: pytest.MonkeyPatch) -> Revisions:
    """Revisions that tests set."""
    fake = Revisions()
    monkeypatch.setattr(waiting, "revisions", fake)
    monkeypatch.setattr(waiting, "POLL_SECONDS", 0.005)
    return fake


def run(scenario: Callable[[RevisionWaiters], Awaitable[Any]]) -> Any:
    """Run a scenario on waiters of its own."""

    async def main() -> Any:
        return await scenario(RevisionWaiters(None))  # type: ignore[arg-type]

    return asyncio.run(main())


def test_a_change_wakes_those_who_wait_for_it(revisions: Revisions) -> None:
    async def scenario(waiters: RevisionWaiters) -> tuple[int, bool]:
        first = [asyncio.create_task(waiters.wait("a", 1, 30)) for _ in range(50)]
        other = asyncio.create_task(waiters.wait("b", 1, 30))
        while revisions.asked < 3:
            await asyncio.sleep(0)
        assert not any(task.done() for task in first)
        before = revisions.asked
        revisions.now["a"] = 2
        await asyncio.gather(*first)
        undisturbed = not other.done()
        other.cancel()
        return revisions.asked - before, undisturbed

    asked, undisturbed = run(scenario)
    assert asked <= 2  # one poller, however many wait
    assert undisturbed


def test_a_stale_revision_or_a_deleted_study_returns_at_once(revisions: Revisions) -> None:
    async def scenario(waiters: RevisionWaiters) -> None:
        await waiters.wait("a", 0, 30)
        await waiters.wait("gone", 5, 30)

    run(scenario)
    assert revisions.asked >= 2


def test_time_runs_out_also_while_the_database_is_away(revisions: Revisions) -> None:
    revisions.down = True
    begin = time.monotonic()
    run(lambda waiters: waiters.wait("a", 1, 0.05))
    assert time.monotonic() - begin >= 0.05


def test_an_outage_does_not_end_the_poller(revisions: Revisions) -> None:
    async def scenario(waiters: RevisionWaiters) -> None:
        revisions.down = True
        task = asyncio.create_task(waiters.wait("a", 1, 30))
        while revisions.asked < 2:
            await asyncio.sleep(0)
        revisions.now["a"], revisions.down = 2, False
        await task

    run(scenario)
    assert revisions.asked >= 3


def test_release_lets_all_go_and_none_wait_again(revisions: Revisions) -> None:
    async def scenario(waiters: RevisionWaiters) -> None:
        task = asyncio.create_task(waiters.wait("a", 1, 30))
        while not revisions.asked:
            await asyncio.sleep(0)
        waiters.release()
        await task
        await waiters.wait("a", 1, 30)

    run(scenario)


def test_nobody_is_asked_when_nobody_waits(revisions: Revisions) -> None:
    async def scenario(waiters: RevisionWaiters) -> int:
        await waiters.wait("a", 0, 30)
        await asyncio.sleep(0.02)  # the poller's last round
        before = revisions.asked
        await asyncio.sleep(0.03)
        return revisions.asked - before

    assert run(scenario) == 0
