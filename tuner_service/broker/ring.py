"""The Celery producer: rings workers by task name.

A ring carries no truth: it tells a worker that there may be slots to claim. It expires in seconds,
a lost one is rung again by a reconciler, and a needless one returns at once; so a broker that is
down costs latency, never work.
"""

import logging
import threading
from typing import Any, Literal

from celery import Celery
from kombu.exceptions import KombuError
from redis.exceptions import RedisError

from tuner_service.errors import UnavailableError
from tuner_service.files import private_folder
from tuner_service.settings import Settings

logger = logging.getLogger(__name__)

SERVE_TASK = "workers.serve"
Queue = Literal["cpu", "cuda"]
CONNECT_SECONDS = 2.0
ANSWER_SECONDS = 5.0  # more than the second for which a worker's read blocks in Redis

# What a broker that is down, or a full disk under the spool, raises through kombu.
_BROKER_ERRORS = (KombuError, RedisError, OSError)


def queue_name(queue: str) -> str:
    """Return the Celery queue's name of a device queue (`cpu` or `cuda`)."""
    return f"tuner.{queue}"


def celery_options(settings: Settings) -> dict[str, Any]:
    """Return the Celery configuration that producer and workers share.

    Early acknowledgement is meant: a ring that is lost with its worker is rung again, and a late
    acknowledgement would have Redis deliver a long-running `serve` twice.
    """
    return {
        "task_serializer": "json",
        "accept_content": ["json"],
        "task_ignore_result": True,
        "task_acks_late": False,
        "task_default_queue": queue_name("cpu"),
        "worker_prefetch_multiplier": 1,
        "worker_hijack_root_logger": False,
        "broker_connection_timeout": CONNECT_SECONDS,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        **_transport_options(settings),
    }


def _transport_options(settings: Settings) -> dict[str, Any]:
    url = settings.resolved_broker_url
    if not url.startswith("filesystem://"):
        return {
            "broker_url": url,
            "broker_transport_options": {
                "socket_connect_timeout": CONNECT_SECONDS,
                "socket_timeout": ANSWER_SECONDS,
                "socket_keepalive": True,
                "health_check_interval": 30,
            },
            "worker_disable_prefetch": url.startswith("redis"),
        }
    spool, control = _spool(settings)
    return {
        # Named by class, not by URL: kombu takes a URL's scheme for one of its own transports.
        "broker_url": None,
        "broker_transport": "tuner_service.broker.file_transport:FileTransport",
        "broker_transport_options": {
            "data_folder_in": spool,
            "data_folder_out": spool,
            "control_folder": control,
            "polling_interval": 0.1,
        },
    }


def _spool(settings: Settings) -> tuple[str, str]:
    settings.directory.prepare()
    spool, control = (private_folder(settings.directory.broker / n) for n in ("spool", "control"))
    return str(spool), str(control)


class Ringer:
    """Sends rings. Safe to share between threads; opens its connection at the first ring."""

    def __init__(self, settings: Settings) -> None:
        self._expires = settings.ring_expires_seconds
        self._app = Celery("tuner", set_as_current=False)
        self._app.conf.update(celery_options(settings))
        self._lock = threading.Lock()
        self._was_down = False

    def ring(self, queue: str, count: int = 1) -> None:
        """Ring `count` workers of a queue; a broker that is down is logged, not raised."""
        try:
            for _ in range(count):
                self._app.send_task(
                    SERVE_TASK,
                    queue=queue_name(queue),
                    expires=self._expires,
                    ignore_result=True,
                    retry=False,
                )
        except _BROKER_ERRORS as error:
            self._note_down(error)
        else:
            self._was_down = False

    def _note_down(self, error: Exception) -> None:
        # Once per outage: the reconciler rings again every few seconds.
        with self._lock:
            level = logging.DEBUG if self._was_down else logging.WARNING
            self._was_down = True
        logger.log(
            level,
            "the broker cannot be reached, will try again: %s: %s",
            type(error).__name__,
            error,
        )

    def ping(self) -> None:
        """Check that the broker answers.

        Raises:
            UnavailableError: It does not.
        """
        try:
            with self._app.connection_for_write(connect_timeout=CONNECT_SECONDS) as connection:
                connection.ensure_connection(max_retries=1, timeout=CONNECT_SECONDS)
                connection.default_channel  # noqa: B018  # Redis connects lazily: open a channel
        except _BROKER_ERRORS as error:
            self._note_down(error)
            cause = f"{type(error).__name__}: {error}"
            raise UnavailableError("the broker cannot be reached", cause=cause) from error

    def close(self) -> None:
        """Close the broker connections."""
        self._app.close()
