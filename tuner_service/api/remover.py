"""The API's remover: one thread that deletes the rows of deleted studies, part by part.

Of several API processes on one data directory one removes at a time: two that take turns at
SQLite's only writer would leave nothing to others.
"""

import contextlib
import fcntl
import logging
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from tuner_service.errors import TunerError
from tuner_service.lifecycle.delete import FIRST_PART, delete_part
from tuner_service.lifecycle.garbage import mark_deleted
from tuner_service.settings import Settings
from tuner_service.storage import Database

logger = logging.getLogger(__name__)

PAUSE_SECONDS = 0.1  # between parts, at least: longer than anyone sleeps who waits for SQLite
LOOK_SECONDS = 60.0  # for what another process, or the one before this, has left
RETRY_SECONDS = 2.0
LOCK = "remover.lock"


class Remover:
    """Works whenever it is woken, and now and then; through outages of the database."""

    def __init__(self, db: Database, *, settings: Settings) -> None:
        self._db = db
        self._data_dir = settings.data_dir
        self._note = partial(mark_deleted, settings.data_dir)
        self._grace_seconds = settings.grace_seconds
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="remover", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread after the part it is at, and wait for it."""
        self._stopping.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout=self._grace_seconds)

    def wake(self) -> None:
        """A study was deleted."""
        self._wake.set()

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._wake.clear()
            seconds = LOOK_SECONDS if self._remove_all_guarded() else RETRY_SECONDS
            if not self._stopping.is_set():
                self._wake.wait(seconds)

    def _remove_all_guarded(self) -> bool:
        """Return whether nothing is left, or it is time to stop."""
        try:
            with _alone(self._data_dir / LOCK) as alone:
                if not alone:
                    return False
                self._remove_all()
        except TunerError as error:
            logger.warning("remover: %s (will try again)", error)
        except Exception:  # outermost loop of the thread: it must not die
            logger.exception("remover: unexpected error (will try again)")
        else:
            return True
        return False

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


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[bool]:
    """Yield whether no other process has the lock; this one then has it for the block."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with path.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
