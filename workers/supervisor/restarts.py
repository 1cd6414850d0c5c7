"""Starts one trainer, keeps it warm between serves, and restarts it with back-off."""

import logging
from collections.abc import Callable

from workers.supervisor.trainer_process import TrainerProcess

logger = logging.getLogger(__name__)

START_SECONDS = 180.0
_LONG_LIFE_SECONDS = 60.0
_BACKOFF_SECONDS = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0)


class TrainerRestarter:
    """The worker's one trainer process, or the back-off before the next one.

    Attributes:
        launch: Starts the next trainer.
        failed_starts: Trainers in a row that ended before they were ready.
    """

    def __init__(self, launch: Callable[[], TrainerProcess]) -> None:
        self.launch = launch
        self._retry_at = 0.0
        self.current: TrainerProcess | None = None
        self.failed_starts = 0
        self._quick_deaths = 0

    def ensure(self, now: float) -> TrainerProcess | None:
        """Return the trainer, starting one if there is none; None while backing off."""
        if self.current is None and now >= self._retry_at:
            self.current = self.launch()
            logger.info("trainer started", extra={"trainer": self.current.pid})
        return self.current

    def is_dead(self, now: float) -> bool:
        """Return whether the present trainer has ended, or will never be ready."""
        trainer = self.current
        if trainer is None:
            return False
        if trainer.closed or trainer.exit_code() is not None:
            return True
        return trainer.ready is None and now - trainer.started_at > START_SECONDS

    def end_current(self, now: float) -> None:
        """Kill and forget the present trainer; the next one starts after the back-off."""
        trainer = self.current
        if trainer is None:
            return
        trainer.kill()
        self.current = None
        self.failed_starts = self.failed_starts + 1 if trainer.ready is None else 0
        # A trainer that worked for a while is replaced at once.
        lived = now - trainer.started_at
        self._quick_deaths = 0 if lived > _LONG_LIFE_SECONDS else self._quick_deaths + 1
        step = min(max(self._quick_deaths - 1, 0), len(_BACKOFF_SECONDS) - 1)
        self._retry_at = now + _BACKOFF_SECONDS[step]

    def close(self, timeout: float) -> None:
        """End the trainer, giving it `timeout` seconds to do it by itself."""
        if self.current is not None:
            self.current.close(timeout)
            self.current = None
