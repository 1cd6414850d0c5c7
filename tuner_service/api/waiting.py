"""`?wait`: requests that hold until a study's revision changes, fed by one poller.

However many requests wait, one thread asks the database for all revisions a few times a second,
and only while somebody waits. The waiting itself is asynchronous and holds no thread (measured:
50 waiters on threads held `/healthz` up for 5.5 s).
"""

import asyncio
import logging
from dataclasses import dataclass

from starlette.concurrency import run_in_threadpool

from tuner_service.errors import UnavailableError
from tuner_service.lifecycle.studies import revisions
from tuner_service.storage import Database

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.1


@dataclass(eq=False, slots=True)
class _Waiter:
    study: str
    revision: int
    changed: asyncio.Future[None]


class RevisionWaiters:
    """The waiting requests of this process. Used from its event loop only."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._waiters: set[_Waiter] = set()
        self._poller: asyncio.Task[None] | None = None
        self._released = False

    def __len__(self) -> int:
        return len(self._waiters)

    async def wait(self, study: str, revision: int, seconds: float) -> None:
        """Return when the study is no longer at `revision`, is gone, or after `seconds`.

        Args:
            study: The study's public id.
        """
        if self._released:
            return
        waiter = _Waiter(study, revision, asyncio.get_running_loop().create_future())
        self._waiters.add(waiter)
        if self._poller is None:
            self._poller = asyncio.create_task(self._poll())
        try:
            await asyncio.wait({waiter.changed}, timeout=seconds)
        finally:
            self._waiters.discard(waiter)

    def release(self) -> None:
        """Let every waiting request answer now, and none wait again: the server is stopping."""
        self._released = True
        for waiter in self._waiters:
            _set(waiter)

    async def _poll(self) -> None:
        try:
            while self._waiters:
                await self._look()
                await asyncio.sleep(POLL_SECONDS)
        finally:
            self._poller = None

    async def _look(self) -> None:
        waiting = list(self._waiters)
        try:
            current = await run_in_threadpool(revisions, self._db)
        except UnavailableError as error:
            logger.debug("cannot read revisions: %s", error)
            return
        for waiter in waiting:
            if current.get(waiter.study) != waiter.revision:
                _set(waiter)


def _set(waiter: _Waiter) -> None:
    if not waiter.changed.done():
        waiter.changed.set_result(None)
