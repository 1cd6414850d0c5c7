"""What the API does beside answering, each in a thread: reconcile, remove rows, remove files.

Not in the requests: a broker that is down costs seconds per try, and a study may have many rows.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import ClassVar

from tuner_service.api.routes.metrics import Metrics
from tuner_service.broker.ring import Ringer
from tuner_service.errors import TunerError
from tuner_service.files import locked
from tuner_service.lifecycle.delete import FIRST_PART, delete_part
from tuner_service.lifecycle.garbage import Seen, mark_deleted, sweep
from tuner_service.lifecycle.reconcile import reconcile
from tuner_service.reads.workers import list_workers
from tuner_service.settings import Settings
from tuner_service.storage import Database

logger = logging.getLogger(__name__)

PAUSE_SECONDS = 0.1  # between parts, at least: longer than anyone sleeps who waits for SQLite
LOOK_SECONDS = 60.0  # for what another process, or the one before this, has left
SWEEP_SECONDS = 600.0
STOP_SECONDS = 5.0  # for a folder that is large, or on a slow disk


class BackgroundThread:
    """Does its round when it is woken, and now and then; through outages of the database.

    Attributes:
        name: Of the thread, and in the log.
        retry_seconds: Until the next round after one that failed.
    """

    name: ClassVar[str]

    def __init__(self, *, retry_seconds: float, stop_seconds: float) -> None:
        self.retry_seconds = retry_seconds
        self._stop_seconds = stop_seconds
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=self.name, daemon=True)
        self._was_down = False

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread after what it is at, and wait for it."""
        self._stopping.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(self._stop_seconds)

    def wake(self) -> None:
        """Do a round now."""
        self._wake.set()

    def round(self) -> float:
        """Do what there is to do, and return for how many seconds there will be nothing."""
        raise NotImplementedError

    def finish(self) -> None:
        """Do what was asked for before the stop."""

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._wake.clear()
            seconds = self._guarded(self.round)
            if not self._stopping.is_set():
                self._wake.wait(seconds)
        self._guarded(self.finish)

    def _guarded(self, work: Callable[[], float | None]) -> float:
        try:
            seconds = work()
        except TunerError as error:
            level = logging.DEBUG if self._was_down else logging.WARNING
            logger.log(level, "%s: %s (will try again)", self.name, error)
            self._was_down = True
        except Exception:  # outermost loop of the thread: it must not die
            logger.exception("%s: unexpected error (will try again)", self.name)
        else:
            self._was_down = False
            return seconds or 0.0
        return self.retry_seconds


class Reconciler(BackgroundThread):
    """Reaps, finishes and rings every `reconcile_seconds`, and rings at once when asked."""

    name = "reconciler"

    def __init__(
        self, db: Database, ringer: Ringer, metrics: Metrics, *, settings: Settings
    ) -> None:
        super().__init__(
            retry_seconds=settings.reconcile_seconds, stop_seconds=settings.grace_seconds
        )
        self._db = db
        self._ringer = ringer
        self._metrics = metrics
        self._settings = settings
        self._asked: deque[str] = deque()
        self._due = time.monotonic()

    def ring_soon(self, device: str) -> None:
        """Ring the workers that can run a study for `device` (auto, cpu or cuda)."""
        self._asked.append(device)
        self.wake()

    def round(self) -> float:
        """Ring for whom it was asked, and reconcile when it is time."""
        self.finish()
        if time.monotonic() >= self._due:
            try:
                self._reconcile()
            finally:
                self._due = time.monotonic() + self._settings.reconcile_seconds
        return max(self._due - time.monotonic(), 0.0)

    def finish(self) -> None:
        """Ring for whom it was asked."""
        while self._asked:
            self._ring_all(self._asked.popleft())

    def _ring_all(self, device: str) -> None:
        """Send a ring for each worker; without workers nobody would ever take the rings away.

        Also for those that are listed as busy: they may be idle since. A needless ring is cheap,
        and a worker takes no second one while it serves.
        """
        workers = [w for w in list_workers(self._db) if device in ("auto", w.queue)]
        for name in ("cuda", "cpu"):
            count = sum(w.queue == name for w in workers)
            if count:
                self._ringer.ring(name, count)

    def _reconcile(self) -> None:
        done = reconcile(self._db, settings=self._settings)
        self._metrics.reaped(done.reaped)
        for name, count in done.rings.items():  # guard: rings-sent
            self._ringer.ring(name, count)


class Remover(BackgroundThread):
    """Deletes the rows of deleted studies, part by part.

    Of several API processes on one data directory one removes at a time: two that take turns at
    SQLite's only writer would leave nothing to others.
    """

    name = "remover"

    def __init__(self, db: Database, *, settings: Settings) -> None:
        super().__init__(retry_seconds=2.0, stop_seconds=settings.grace_seconds)
        self._db = db
        self._lock = settings.directory.remover_lock
        self._note = partial(mark_deleted, settings.directory)

    def round(self) -> float:
        """Remove what is left of all deleted studies, if no other process is at it."""
        with locked(self._lock, wait=False) as mine:
            if not mine:
                return self.retry_seconds
            self._remove_all()
        return LOOK_SECONDS

    def _remove_all(self) -> None:
        size = FIRST_PART
        while not self._stopping.is_set():
            begun = time.monotonic()
            done = delete_part(self._db, size=size, note=self._note)
            if done is None:
                return
            size = done
            # As long as it took: half of the time is for others.
            self._stopping.wait(max(PAUSE_SECONDS, time.monotonic() - begun))


class Sweeper(BackgroundThread):
    """Removes files which nothing needs any more, at the start and every ten minutes.

    Not a part of the reconciler, whose rings must not wait for a slow disk.
    """

    name = "sweeper"

    def __init__(self, db: Database, *, settings: Settings) -> None:
        super().__init__(retry_seconds=SWEEP_SECONDS, stop_seconds=STOP_SECONDS)
        self._db = db
        self._directory = settings.directory
        self._seen: Seen = {}

    def round(self) -> float:
        """Remove them, folder by folder."""
        removed = sweep(self._db, self._directory, self._seen, is_stopping=self._stopping.is_set)
        if removed:
            logger.info("removed %d files that nothing needs", removed)
        return SWEEP_SECONDS
