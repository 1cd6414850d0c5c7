"""Reading a study once for all who ask for it at the same moment.

One read, and one serialisation, answers all who asked before it began; who asks later gets a later
one, so that nobody sees a study older than the question.
"""

import asyncio
from collections.abc import Callable

from starlette.concurrency import run_in_threadpool

from tuner_service.api.http.responses import StudyAnswer


class SharedReads:
    """The reads under way. Used from one event loop only."""

    def __init__(self, read: Callable[[str], StudyAnswer]) -> None:
        self._read = read
        self._coming: dict[str, asyncio.Task[StudyAnswer]] = {}  # not begun: may still be joined
        self._going: dict[str, asyncio.Task[StudyAnswer]] = {}

    async def get(self, ref: str) -> StudyAnswer:
        """Return a study as it is now, or raise what reading it raises."""
        task = self._coming.get(ref)
        if task is None:
            task = asyncio.create_task(self._run(ref, self._going.get(ref)))
            task.add_done_callback(_seen)
            self._coming[ref] = task
        return await asyncio.shield(task)  # one who hangs up takes nothing from the others

    async def _run(self, ref: str, before: asyncio.Task[StudyAnswer] | None) -> StudyAnswer:
        if before is not None:
            await asyncio.wait({before})
        task = self._going[ref] = self._coming.pop(ref)
        try:
            return await run_in_threadpool(self._read, ref)
        finally:
            if self._going.get(ref) is task:
                del self._going[ref]


def _seen(task: asyncio.Task[StudyAnswer]) -> None:
    """Take note of an error that everyone who asked has hung up on."""
    if not task.cancelled():
        task.exception()
