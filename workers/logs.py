"""A worker's log lines: as all of ours, with the worker's name."""

import logging
import warnings

from celery.exceptions import CPendingDeprecationWarning
from celery.worker.consumer.consumer import CONNECTION_ERROR

from tuner_service import logs
from tuner_service.logs import JsonFormatter, LineFormatter

__all__ = ["JsonFormatter", "LineFormatter", "configure"]


def configure(*, level: str, as_json: bool, worker: str) -> None:
    """Set up the root logger of a worker process; only its entry point calls this."""
    logs.configure(level=level, as_json=as_json).addFilter(_Stamp(worker))
    # Celery tells of every ring it receives and of every one that expired; that is our traffic.
    for noisy in ("celery", "kombu"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, logging.getLogger().level))
    # The file broker has no host, which kombu finds worth a warning.
    logging.getLogger("kombu.connection").setLevel(logging.ERROR)

    _tell_outages_once()
    # At each lost connection Celery tells of a default to come for a setting that we set.
    warnings.filterwarnings("ignore", category=CPendingDeprecationWarning)


_CONSUMER = "celery.worker.consumer.consumer"
_CONNECTION = "celery.worker.consumer.connection"


def _tell_outages_once() -> None:
    outage = BrokerOutage()
    for name in (_CONSUMER, _CONNECTION):
        logger = logging.getLogger(name)
        for earlier in [f for f in logger.filters if isinstance(f, BrokerOutage)]:
            logger.removeFilter(earlier)
        logger.addFilter(outage)
    logging.getLogger(_CONNECTION).setLevel(logging.INFO)  # at which it says that it is connected


class BrokerOutage(logging.Filter):
    """Says once that the broker is away, and once that it is back.

    Celery says the first at every attempt, in blocks of three lines, and the second as news of no
    weight at every start.
    """

    def __init__(self) -> None:
        super().__init__()
        self._away = False

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether the record is news, and put it into a line."""
        if record.name == _CONNECTION and record.levelno == logging.INFO:
            was_away, self._away = self._away, False
            record.msg, record.args = "the broker answers again", ()
            record.levelno, record.levelname = logging.WARNING, "WARNING"
            return was_away
        if record.msg != CONNECTION_ERROR:
            return True
        was_away, self._away = self._away, True
        error = record.args[1] if isinstance(record.args, tuple) else ""
        record.msg = "the broker cannot be reached, trying again until it can: %s"
        record.args = (error,)
        return not was_away


class _Stamp(logging.Filter):
    """Adds the worker's name to its lines."""

    def __init__(self, worker: str) -> None:
        super().__init__()
        self._worker = worker

    def filter(self, record: logging.LogRecord) -> bool:
        record.worker = self._worker
        return True
