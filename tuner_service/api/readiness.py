"""Whether the service can do its work: checked once for all who ask at the same time.

`/readyz` needs no key, and a check may hang for as long as a silent host does. So the checks run in
threads of their own, beside those of the requests; all who ask while a round is under way get its
answer; and a check that does not answer in time is not begun again before it has.
"""

import asyncio
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Final

from tuner_service.errors import TunerError, UnavailableError

CHECK_SECONDS: Final = 3.0

Check = Callable[[], object]


class ReadyChecks:
    """The checks by name. Used from one event loop only."""

    def __init__(self, checks: Mapping[str, Check], *, seconds: float = CHECK_SECONDS) -> None:
        self._checks = checks
        self._seconds = seconds
        self._running: dict[str, Future[str]] = {}
        self._round: asyncio.Task[dict[str, str]] | None = None

    async def states(self) -> dict[str, str]:
        """Return what each check says: "ok", or what is wrong."""
        if self._round is None or self._round.done():
            self._round = asyncio.create_task(self._all())
        return await asyncio.shield(self._round)  # one who hangs up takes nothing from the others

    async def _all(self) -> dict[str, str]:
        for name, check in self._checks.items():
            if name not in self._running:
                self._running[name] = _begun(name, check)
        waited = {name: asyncio.wrap_future(one) for name, one in self._running.items()}
        await asyncio.wait(waited.values(), timeout=self._seconds)
        late = f"no answer within {self._seconds:g} s"
        states = {name: one.result() if one.done() else late for name, one in waited.items()}
        self._running = {name: one for name, one in self._running.items() if not one.done()}
        return states


def _begun(name: str, check: Check) -> "Future[str]":
    # Not in a pool: its threads would keep the process from ending while a check hangs.
    future: Future[str] = Future()

    def run() -> None:
        try:
            future.set_result(_state(check))
        except Exception as error:  # noqa: BLE001  # whoever asks is to hear of it
            future.set_exception(error)

    threading.Thread(target=run, name=f"ready-{name}", daemon=True).start()
    return future


def _state(check: Check) -> str:
    try:
        check()
    except UnavailableError as error:
        return error.public  # no key is asked for here
    except TunerError as error:
        return str(error)
    return "ok"
