"""`?wait`: requests that hold until a study's revision changes, fed by one poller.

However many requests wait, one thread asks the database for their studies' revisions a few times a
second, and only while somebody waits. The waiting itself is asynchronous and holds no thread
(measured: 50 waiters on threads held `/healthz` up for 5.5 s). A study that changed is read and
serialised once, and its waiters are sent the same bytes.

A study that changes all the time is told of as often as `ANSWERS_PER_SECOND` allows, and its end at
once: until then, who has what was told last is not behind. Else everyone who waits would ask anew
for each report of each trial, and hold up everyone else.

One read, and one serialisation, also answers all who ask for a study before that read began; who
asks later gets a later one, so that nobody sees a study older than the question.
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass

from starlette.concurrency import run_in_threadpool

from tuner_service.api.http.responses import StudyAnswer
from tuner_service.errors import NotFoundError, UnavailableError
from tuner_service.reads.studies import StudyRevision, study_revisions
from tuner_service.storage import Database

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.1
ANSWERS_PER_SECOND = 150
LONGEST_PAUSE_SECONDS = 1.0
MOST_DIGITS = 17  # of a revision
AT_ONCE = 4  # answers that leave before the loop turns to others, such as /healthz


@dataclass(eq=False, slots=True)
class _Waiter:
    study: str
    revision: int
    changed: asyncio.Future[StudyAnswer | None]


class RevisionWaiters:
    """The waiting requests of this process. Used from its event loop only.

    Args:
        read: Returns a study as it is now.
    """

    def __init__(self, db: Database, read: Callable[[str], Awaitable[StudyAnswer]]) -> None:
        self._db = db
        self._read = read
        self._waiters: set[_Waiter] = set()
        self._told: dict[str, int] = {}  # revisions told a moment ago, by study
        self._poller: asyncio.Task[None] | None = None
        self._released = False

    def __len__(self) -> int:
        return len(self._waiters)

    @property
    def is_released(self) -> bool:
        """Whether the server is stopping."""
        return self._released

    def told_lately(self, study: str, revisions: Collection[str]) -> int | None:
        """Return the revision that a caller has, if it is what was told a moment ago, or later.

        Args:
            study: The study's public id.
            revisions: What the caller has, as it says.
        """
        if study not in self._told or len(revisions) != 1:
            return None
        (text,) = revisions
        revision = int(text) if text.isdecimal() and len(text) < MOST_DIGITS else -1
        return revision if revision >= self._told[study] else None

    def note(self, answer: StudyAnswer, count: int = 1) -> None:
        """Take note that so many callers get this answer: the next may take a moment."""
        if answer.id not in self._told:
            self._told[answer.id] = answer.revision
            pause = min(count / ANSWERS_PER_SECOND, LONGEST_PAUSE_SECONDS)
            asyncio.get_running_loop().call_later(pause, self._told.pop, answer.id)

    async def next_answer(
        self, ref: str, *, has: Collection[str], seconds: float
    ) -> StudyAnswer | None:
        """Hold a caller who has the present version, or none of a study that has not ended.

        Args:
            ref: The study's id, or its name.
            has: The revisions that the caller has, as it says.

        Returns:
            What there is to tell, at once or when it changes; None: nothing within `seconds`.

        Raises:
            NotFoundError: There is no such study, or no more.
        """
        told = self.told_lately(ref, has)
        if told is not None:
            return await self.wait(ref, told, seconds)
        answer = await self._read(ref)
        if str(answer.revision) in has or (not has and not answer.has_ended):
            return await self.wait(answer.id, answer.revision, seconds)
        self.note(answer)
        return answer

    async def wait(self, study: str, revision: int, seconds: float) -> StudyAnswer | None:
        """Return the study once it is no longer at `revision`.

        Args:
            study: The study's public id.

        Returns:
            None if nothing was to be told within `seconds`, or until the server stops.

        Raises:
            NotFoundError: It was deleted.
        """
        if self._released:
            return None
        waiter = _Waiter(study, revision, asyncio.get_running_loop().create_future())
        self._waiters.add(waiter)
        if self._poller is None:
            self._poller = asyncio.create_task(self._poll())
        try:
            await asyncio.wait({waiter.changed}, timeout=seconds)
        finally:
            self._waiters.discard(waiter)
        return waiter.changed.result() if waiter.changed.done() else None

    def release(self) -> None:
        """Let every waiting request answer now, and none wait again: the server is stopping."""
        self._released = True
        for waiter in self._waiters:
            if not waiter.changed.done():
                waiter.changed.set_result(None)

    async def _poll(self) -> None:
        try:
            while self._waiters:
                try:
                    await self._look()
                except UnavailableError as error:
                    logger.debug("cannot see what has changed: %s", error)
                except Exception as error:  # outermost loop: whoever waits must hear of it
                    logger.exception("cannot see what has changed")
                    for waiter in self._waiters:
                        _refuse(waiter, error)
                await asyncio.sleep(POLL_SECONDS)
        finally:
            self._poller = None

    async def _look(self) -> None:
        waiting = defaultdict(list)
        for waiter in self._waiters:
            waiting[waiter.study].append(waiter)
        current = await run_in_threadpool(study_revisions, self._db, list(waiting))
        for study, waiters in waiting.items():
            standing = current.get(study)
            if self._is_due(study, standing):
                revision = None if standing is None else standing.revision
                await self._tell(study, [one for one in waiters if one.revision != revision])

    def _is_due(self, study: str, standing: StudyRevision | None) -> bool:
        return standing is None or standing.has_ended or study not in self._told

    async def _tell(self, study: str, waiters: Sequence[_Waiter]) -> None:
        """Read the study, and send it to those who wait for it."""
        if not waiters:
            return
        try:
            answer = await self._read(study)
        except UnavailableError as error:
            logger.debug("cannot read study %s: %s", study, error)
            return
        except Exception as error:  # of one study: the others' waiters must not suffer it
            if not isinstance(error, NotFoundError):  # it was deleted
                logger.exception("cannot read study %s", study)
            for waiter in waiters:
                _refuse(waiter, error)
            return
        self.note(answer, len(waiters))
        for first in range(0, len(waiters), AT_ONCE):
            for waiter in waiters[first : first + AT_ONCE]:
                if not waiter.changed.done():
                    waiter.changed.set_result(answer)
            await asyncio.sleep(0)


def _refuse(waiter: _Waiter, error: Exception) -> None:
    if not waiter.changed.done():
        waiter.changed.set_exception(error)
        waiter.changed.exception()  # one who hung up meanwhile does not ask for it


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
