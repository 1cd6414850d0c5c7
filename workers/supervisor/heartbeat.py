"""Keeps a worker listed, and reconciles: one thread for both.

It runs while the worker is idle and while it is busy. If it dies, the worker stops: a worker that
nobody sees is worse than none.
"""

import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from tuner_service.errors import UnavailableError
from workers.supervisor.supervisor import Status

logger = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 2.0


class WorkerRegistry(Protocol):
    """Where workers are listed, and the reconciler's rounds."""

    def heartbeat(self, status: Status) -> None:
        """List the worker, or renew its entry."""

    def leave(self) -> None:
        """Take the worker off the list."""

    def reconcile(self) -> None:
        """Reap, finish and ring; one idempotent round."""


def end_this_process() -> None:
    """Ask the process to shut down in order."""
    os.kill(os.getpid(), signal.SIGTERM)


@dataclass(slots=True)
class _Round:
    """Something done every so often."""

    every_seconds: float
    work: Callable[[], None]
    due: float = float("-inf")


class Heartbeat:
    """The thread. `close` ends it and takes the worker off the list."""

    def __init__(
        self,
        register: WorkerRegistry,
        status: Callable[[], Status],
        *,
        reconcile_seconds: float,
        on_death: Callable[[], None] = end_this_process,
    ) -> None:
        self._registry = register
        self._on_death = on_death
        self._closing = threading.Event()
        self._away = False
        self._rounds = [
            _Round(HEARTBEAT_SECONDS, lambda: register.heartbeat(status())),
            _Round(reconcile_seconds, register.reconcile),
        ]
        self._thread = threading.Thread(target=self._run, name="presence", daemon=True)

    def start(self) -> None:
        """Appear, and start the rounds."""
        self._thread.start()

    def close(self) -> None:
        """End the thread and leave."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join(5.0)
        try:
            self._registry.leave()
        except UnavailableError as error:
            logger.warning("could not leave the list of workers: %s", error)

    def _run(self) -> None:
        try:
            while not self._closing.is_set():
                self._closing.wait(self._go_round())
        except Exception:
            logger.exception("the heartbeat thread died; stopping the worker")
            self._on_death()
            raise

    def _go_round(self) -> float:
        """Do what is due and return how long to wait."""
        for task in self._rounds:
            if time.monotonic() >= task.due:
                self._do(task)
                task.due = time.monotonic() + task.every_seconds
        return max(0.0, min(task.due for task in self._rounds) - time.monotonic())

    def _do(self, task: _Round) -> None:
        try:
            task.work()
        except UnavailableError as error:
            if not self._away:
                logger.warning("database or broker away: %s", error)
            self._away = True
        else:
            self._away = False
