"""A worker's log lines: as all of ours, with the worker's name."""

import logging

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


class _Stamp(logging.Filter):
    """Adds the worker's name to its lines."""

    def __init__(self, worker: str) -> None:
        super().__init__()
        self._worker = worker

    def filter(self, record: logging.LogRecord) -> bool:
        record.worker = self._worker
        return True
