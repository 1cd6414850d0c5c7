"""The API's remover: one thread that deletes the rows of deleted studies, part by part."""

import logging
import threading
import time

from tuner_service.errors import TunerError
from tuner_service.lifecycle.deletion import FIRST_PART, delete_part
from tuner_service.settings import Settings
from tuner_service.storage import Database

logger = logging.getLogger(__name__)

PAUSE_SECONDS = 0.1  # between parts, at least: longer than anyone sleeps who waits for SQLite
LOOK_SECONDS = 60.0  # for what another process, or the one before this, has left
RETRY_SECONDS = 2.0


class Remover:
    """Works whenever it is woken, and now and then; through outages of the database."""

    def __init__(self, db: Database, *, settings: Settings) -> None:
        self._db = db
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
            done = delete_part(self._db, size=size)
            if done is None:
                return
            size = done
            # As long as it took: half of the time is for others.
            self._stopping.wait(max(PAUSE_SECONDS, time.monotonic() - begun))
