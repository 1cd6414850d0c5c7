"""Whether the service is ready: asked once for all, in time, beside the requests."""

import asyncio
import threading

from tuner_service.api.readiness import ReadyChecks
from tuner_service.errors import UnavailableError


def test_all_who_ask_at_once_get_one_answer() -> None:
    begun: list[str] = []
    go = threading.Event()

    def slow() -> None:
        begun.append("slow")
        go.wait(5.0)

    async def ask() -> list[dict[str, str]]:
        ready = ReadyChecks({"slow": slow}, seconds=5.0)
        asked = [asyncio.create_task(ready.states()) for _ in range(100)]
        await asyncio.sleep(0)
        go.set()
        return await asyncio.gather(*asked)

    assert asyncio.run(ask()) == [{"slow": "ok"}] * 100
    assert begun == ["slow"]


def test_a_check_that_hangs_is_told_and_not_begun_again() -> None:
    begun: list[str] = []
    go = threading.Event()

    def hangs() -> None:
        begun.append("hangs")
        go.wait(5.0)

    async def ask() -> list[dict[str, str]]:
        ready = ReadyChecks({"broker": hangs, "files": lambda: None}, seconds=0.05)
        states = [await ready.states(), await ready.states()]
        go.set()
        while states[-1]["broker"] != "ok":
            states.append(await ready.states())
        return states

    first, second, *_, last = asyncio.run(ask())
    assert first == second == {"broker": "no answer within 0.05 s", "files": "ok"}
    assert last == {"broker": "ok", "files": "ok"}
    assert len(begun) <= 2


def test_what_is_missing_is_told_without_its_cause() -> None:
    def away() -> None:
        raise UnavailableError("the broker cannot be reached", cause="redis://:secret@host")

    assert asyncio.run(ReadyChecks({"broker": away}).states()) == {
        "broker": "the broker cannot be reached"
    }
