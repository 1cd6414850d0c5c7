"""The API's sweeper: one thread that removes files which nothing needs any more."""

import logging
import threading

from tuner_service.errors import TunerError
from tuner_service.lifecycle.garbage import Seen, sweep
from tuner_service.settings import Settings
from tuner_service.storage import Database

logger = logging.getLogger(__name__)

SWEEP_SECONDS = 600.0
STOP_SECONDS = 5.0  # for a folder that is large, or on a slow disk


class Sweeper:
    """Runs `lifecycle.leftovers.sweep` at the start and every ten minutes.

    Not a part of the reconciler, whose rings must not wait for a slow disk.
    """

    def __init__(self, db: Database, *, settings: Settings) -> None:
        self._db = db
        self._data_dir = settings.data_dir
        self._seen: Seen = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sweeper", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread after the folder it is at, and wait a moment for it."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(STOP_SECONDS)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                removed = sweep(
                    self._db, self._data_dir, self._seen, is_stopping=self._stopping.is_set
                )
            except TunerError as error:
                logger.warning("sweeper: %s (will try again)", error)
            except Exception:  # outermost loop of the thread: it must not die
                logger.exception("sweeper: unexpected error (will try again)")
            else:
                if removed:
                    logger.info("removed %d files that nothing needs", removed)
            self._stopping.wait(SWEEP_SECONDS)
