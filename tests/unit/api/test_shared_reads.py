"""Many who ask at once are answered by one read, and nobody by one older than the question."""

import asyncio
import threading
from typing import Any

import pytest

from tuner_service.api.waiting import SharedReads
from tuner_service.errors import NotFoundError


class Studies:
    """Counts its reads; each can be held until it is let go."""

    def __init__(self) -> None:
        self.revision = 0
        self.reads = 0
        self.begun = threading.Event()
        self.go = threading.Event()
        self.go.set()

    def read(self, ref: str) -> Any:
        self.reads += 1
        found = self.revision
        self.begun.set()
        assert self.go.wait(10.0)
        if ref == "none":
            raise NotFoundError("there is none")
        return found


def test_who_asks_at_once_shares_a_read() -> None:
    async def ask() -> list[Any]:
        shared = SharedReads(studies.read)
        return await asyncio.gather(*(shared.get("a") for _ in range(50)), shared.get("b"))

    studies = Studies()
    assert asyncio.run(ask()) == [0] * 51
    assert studies.reads == 2


def test_who_asks_during_a_read_gets_a_later_one() -> None:
    async def ask() -> tuple[Any, list[Any]]:
        shared = SharedReads(studies.read)
        studies.go.clear()
        early = asyncio.create_task(shared.get("a"))
        await asyncio.to_thread(studies.begun.wait, 10.0)
        studies.revision = 1  # changed, and answered to who asks now
        late = [asyncio.create_task(shared.get("a")) for _ in range(10)]
        await asyncio.sleep(0)
        studies.go.set()
        return await early, await asyncio.gather(*late)

    studies = Studies()
    assert asyncio.run(ask()) == (0, [1] * 10)
    assert studies.reads == 2


def test_an_error_reaches_everyone_and_hanging_up_disturbs_nobody() -> None:
    async def ask() -> list[Any]:
        shared = SharedReads(studies.read)
        asking = [asyncio.create_task(shared.get("none")) for _ in range(3)]
        await asyncio.sleep(0)
        asking[0].cancel()
        found = await asyncio.gather(*asking, return_exceptions=True)
        with pytest.raises(NotFoundError):
            await shared.get("none")  # nothing is kept
        return found

    studies = Studies()
    cancelled, *others = asyncio.run(ask())
    assert isinstance(cancelled, asyncio.CancelledError)
    assert [type(other) for other in others] == [NotFoundError] * 2
