"""Waiting for a revision: one poller, many waiters, no one forgotten."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from tuner_service.api import waiting
from tuner_service.api.http.responses import StudyAnswer
from tuner_service.api.waiting import RevisionWaiters
from tuner_service.errors import NotFoundError, UnavailableError
from tuner_service.reads.studies import StudyRevision


class Revisions:
    """Stands in for the database; counts how often it is asked, and how many studies are read."""

    def __init__(self) -> None:
        self.now: dict[str, int] = {"a": 1, "b": 1}
        self.ended: set[str] = set()
        self.asked = 0
        self.reads = 0
        self.down = False
        self.broken = ""

    def __call__(self, _db: object, ids: Sequence[str]) -> dict[str, StudyRevision]:
        self.asked += 1
        if self.down:
            raise UnavailableError("away")
        if self.broken == "revisions":
            raise ZeroDivisionError
        return {
            one: StudyRevision(self.now[one], one in self.ended) for one in ids if one in self.now
        }

    async def read(self, ref: str) -> StudyAnswer:
        """Return a study as it is."""
        self.reads += 1
        if (self.broken, ref) == ("study", "a"):
            raise ZeroDivisionError
        if ref not in self.now:
            raise NotFoundError(f"there is no study {ref}")
        return StudyAnswer(ref, self.now[ref], ref in self.ended, b"{}")


@pytest.fixture
def revisions(monkeypatch: pytest.MonkeyPatch) -> Revisions:
    """Revisions that tests set."""
    fake = Revisions()
    monkeypatch.setattr(waiting, "study_revisions", fake)
    monkeypatch.setattr(waiting, "POLL_SECONDS", 0.005)
    return fake


def run(revisions: Revisions, scenario: Callable[[RevisionWaiters], Awaitable[Any]]) -> Any:
    """Run a scenario on waiters of its own."""

    async def main() -> Any:
        return await scenario(RevisionWaiters(None, revisions.read))  # type: ignore[arg-type]

    return asyncio.run(main())


def test_a_change_wakes_those_who_wait_for_it(revisions: Revisions) -> None:
    async def scenario(waiters: RevisionWaiters) -> tuple[int, bool, list[Any]]:
        first = [asyncio.create_task(waiters.wait("a", 1, 30)) for _ in range(50)]
        other = asyncio.create_task(waiters.wait("b", 1, 30))
        while revisions.asked < 3:
            await asyncio.sleep(0)
        assert not any(task.done() for task in first)
        before = revisions.asked
        revisions.now["a"] = 2
        answers = await asyncio.gather(*first)
        undisturbed = not other.done()
        other.cancel()
        return revisions.asked - before, undisturbed, answers

    asked, undisturbed, answers = run(revisions, scenario)
    assert asked <= 2  # one poller, however many wait
    assert undisturbed
    assert {answer.revision for answer in answers} == {2}
    assert revisions.reads == 1


def test_who_has_what_was_told_lately_waits_for_the_next_time(
    revisions: Revisions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "LONGEST_PAUSE_SECONDS", 0.2)

    async def scenario(waiters: RevisionWaiters) -> None:
        told = StudyAnswer("a", 1, False, b"{}")
        waiters.note(told, 10**6)  # told to so many that the next time is the longest pause away
        revisions.now["a"] = 3
        assert waiters.told_lately("a", {"1"}) == 1
        assert waiters.told_lately("a", {"2"}) == 2  # told by another process
        for behind in ({"0"}, set(), {"1", "2"}, {"x"}, {"9" * 5000}):
            assert waiters.told_lately("a", behind) is None
        assert waiters.told_lately("b", {"1"}) is None
        assert await waiters.wait("a", 1, 0.05) is None
        begun = time.monotonic()
        answer = await waiters.wait("a", 1, 30)
        assert answer is not None
        assert answer.revision == 3
        assert time.monotonic() - begun < 10

    run(revisions, scenario)


def test_an_end_is_told_at_once(revisions: Revisions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "LONGEST_PAUSE_SECONDS", 3600.0)

    async def scenario(waiters: RevisionWaiters) -> None:
        waiters.note(StudyAnswer("a", 1, False, b"{}"), 10**9)
        revisions.now["a"] = 2
        revisions.ended.add("a")
        answer = await waiters.wait("a", 1, 30)
        assert answer is not None
        assert answer.has_ended

    run(revisions, scenario)


def test_one_who_waits_alone_is_not_kept_waiting(revisions: Revisions) -> None:
    async def scenario(waiters: RevisionWaiters) -> None:
        waiters.note(StudyAnswer("a", 1, False, b"{}"))
        await asyncio.sleep(2 / waiting.ANSWERS_PER_SECOND)
        assert waiters.told_lately("a", {"1"}) is None

    run(revisions, scenario)


def test_a_stale_revision_or_a_deleted_study_returns_at_once(revisions: Revisions) -> None:
    async def scenario(waiters: RevisionWaiters) -> None:
        await waiters.wait("a", 0, 30)
        with pytest.raises(NotFoundError):
            await waiters.wait("gone", 5, 30)

    run(revisions, scenario)
    assert revisions.asked >= 2


def test_time_runs_out_also_while_the_database_is_away(revisions: Revisions) -> None:
    revisions.down = True
    begin = time.monotonic()
    run(revisions, lambda waiters: waiters.wait("a", 1, 0.05))
    assert time.monotonic() - begin >= 0.05


def test_an_outage_does_not_end_the_poller(revisions: Revisions) -> None:
    async def scenario(waiters: RevisionWaiters) -> None:
        revisions.down = True
        task = asyncio.create_task(waiters.wait("a", 1, 30))
        while revisions.asked < 2:
            await asyncio.sleep(0)
        revisions.now["a"], revisions.down = 2, False
        await task

    run(revisions, scenario)
    assert revisions.asked >= 3


@pytest.mark.parametrize("where", ["revisions", "study"])
def test_an_error_reaches_those_who_wait_and_nobody_else(
    revisions: Revisions, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    async def scenario(waiters: RevisionWaiters) -> None:
        first = asyncio.create_task(waiters.wait("a", 1, 30))
        while not revisions.asked:
            await asyncio.sleep(0)
        other = asyncio.create_task(waiters.wait("b", 1, 30))
        await asyncio.sleep(0)
        revisions.broken = where
        revisions.now["a"] = 2
        with pytest.raises(ZeroDivisionError):
            await first
        if where == "revisions":
            with pytest.raises(ZeroDivisionError):
                await other
            return
        revisions.now["b"] = 2
        assert await asyncio.wait_for(other, 10) is not None

    run(revisions, scenario)


def test_release_lets_all_go_and_none_wait_again(revisions: Revisions) -> None:
    async def scenario(waiters: RevisionWaiters) -> None:
        task = asyncio.create_task(waiters.wait("a", 1, 30))
        while not revisions.asked:
            await asyncio.sleep(0)
        waiters.release()
        await task
        await waiters.wait("a", 1, 30)

    run(revisions, scenario)


def test_nobody_is_asked_when_nobody_waits(revisions: Revisions) -> None:
    async def scenario(waiters: RevisionWaiters) -> int:
        await waiters.wait("a", 0, 30)
        await asyncio.sleep(0.02)  # the poller's last round
        before = revisions.asked
        await asyncio.sleep(0.03)
        return revisions.asked - before

    assert run(revisions, scenario) == 0
