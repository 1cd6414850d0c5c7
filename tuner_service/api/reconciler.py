"""The API's reconciler: one thread that reaps, finishes and rings, and rings at once when asked.

Ringing happens here and not in the requests, because a broker that is down costs seconds per try.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable
from functools import partial

from tuner_service.api.routes.metrics import Metrics
from tuner_service.broker.ring import Ringer
from tuner_service.errors import TunerError
from tuner_service.lifecycle.reconcile import reconcile
from tuner_service.reads.workers import list_workers
from tuner_service.settings import Settings
from tuner_service.storage import Database

logger = logging.getLogger(__name__)

_STOP = "stop"


class Reconciler:
    """Runs `lifecycle.reconcile` every `reconcile_seconds`, through outages of the database."""

    def __init__(
        self, db: Database, ringer: Ringer, metrics: Metrics, *, settings: Settings
    ) -> None:
        self._db = db
        self._ringer = ringer
        self._metrics = metrics
        self._settings = settings
        self._wishes: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="reconciler", daemon=True)
        self._was_down = False

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread after what it is at, and wait for it."""
        if self._thread.is_alive():
            self._wishes.put(_STOP)
            self._thread.join(timeout=self._settings.grace_seconds)

    def ring_soon(self, device: str) -> None:
        """Ring the workers that can run a study for `device` (auto, cpu or cuda)."""
        self._wishes.put(device)

    def _run(self) -> None:
        due = time.monotonic()
        while True:
            wish = self._next_wish(due - time.monotonic())
            if wish == _STOP:
                return
            if wish is not None:
                self._guarded(partial(self._ring_all, wish))
            if time.monotonic() >= due:
                self._guarded(self._reconcile)
                due = time.monotonic() + self._settings.reconcile_seconds

    def _next_wish(self, seconds: float) -> str | None:
        try:
            return self._wishes.get(timeout=max(seconds, 0.0))
        except queue.Empty:
            return None

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

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except TunerError as error:
            level = logging.DEBUG if self._was_down else logging.WARNING
            logger.log(level, "reconciler: %s (will try again)", error)
            self._was_down = True
        except Exception:  # outermost loop of the thread: it must not die
            logger.exception("reconciler: unexpected error (will try again)")
        else:
            self._was_down = False
