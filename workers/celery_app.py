"""The Celery app of a worker: one ring at a time, in a thread, with a trainer beside it.

`python -m workers` starts it. `celery -A workers.celery_app worker` works as well: the pool is
`threads` with one thread, anything else is refused, and the queue is the trainer's device's.
"""

import threading
from typing import Any

from celery import Celery, concurrency, signals

from tuner_service.broker import file_transport
from tuner_service.broker.ring import celery_options, queue_name
from tuner_service.errors import TunerError
from tuner_service.settings import Settings
from workers import logs
from workers.settings import WorkerSettings
from workers.supervisor.no_torch import refuse_torch
from workers.supervisor.worker import Worker

_POOL = "threads"
LOOK_SECONDS = 0.05


class WorkerPlace:
    """Where the process's one worker stands, opened once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._worker: Worker | None = None

    def open(self, settings: Settings, worker_settings: WorkerSettings) -> Worker:
        """Open the worker, or return the one that is open."""
        with self._lock:
            if self._worker is None:
                self._worker = Worker.open(settings, worker_settings)
            return self._worker

    @property
    def worker(self) -> Worker | None:
        """The worker, once it is open."""
        return self._worker


place = WorkerPlace()


def current_worker() -> Worker:
    """Return this process's worker, opening it from the environment if need be."""
    return place.worker or place.open(Settings(), WorkerSettings())


def _options() -> dict[str, Any]:
    return {
        **celery_options(Settings()),
        "worker_pool": _POOL,
        "worker_concurrency": 1,
        "worker_enable_remote_control": True,
        "worker_send_task_events": False,
        "worker_cancel_long_running_tasks_on_connection_loss": False,
    }


app = Celery("tuner", include=["workers.tasks"])
app.add_defaults(_options)  # read when the app is first used, not now


def prepare(conf: Any, options: dict[str, Any], **_: Any) -> None:
    """Refuse what cannot work, start the trainer, and take its device's queue."""
    refuse_torch()
    set_up_logging()
    _require_threads(conf, options)
    try:
        worker = current_worker()
    except TunerError as error:
        raise SystemExit(f"tuner worker: {error}") from error
    conf.task_default_queue = queue_name(worker.queue)


def _require_threads(conf: Any, options: dict[str, Any]) -> None:
    pool = options.get("pool_cls") or conf.worker_pool
    if concurrency.get_implementation(pool) is not concurrency.get_implementation(_POOL):
        # A forked child has no CUDA, and never hears that the worker is to stop.
        raise SystemExit(f"tuner worker: pool must be {_POOL!r}, but got {pool!r}")
    count = options.get("concurrency") or conf.worker_concurrency
    if int(count) != 1:
        raise SystemExit(f"tuner worker: concurrency must be 1, but got {count}")


def set_up_logging(**_: Any) -> None:
    """Log as this software does, not as Celery does."""
    settings = WorkerSettings()
    worker = place.worker
    logs.configure(
        level=settings.log_level,
        as_json=settings.log_json,
        worker=worker.id if worker is not None else "starting",
    )


def appear(sender: Any = None, **_: Any) -> None:
    """Be listed, and start reconciling."""
    current_worker().appear()
    _stay_attentive(getattr(sender, "hub", None))


def _stay_attentive(hub: Any) -> None:
    """Have Celery's event loop look often whether the thread is free for the next ring.

    With prefetching disabled Redis is not read from while a task runs, and nothing wakes the loop
    when it ends: a ring would wait for the loop's next timer, up to a second. The filesystem
    broker has no event loop, and polls.
    """
    if hub is not None:
        hub.call_repeatedly(LOOK_SECONDS, lambda: None)


def stop(**_: Any) -> None:
    """Stop claiming; the serve in progress hands back and returns."""
    file_transport.closing.set()
    if place.worker is not None:
        place.worker.stop()


def close(**_: Any) -> None:
    """Leave the list of workers and end the trainer."""
    if place.worker is not None:
        place.worker.close()


signals.celeryd_init.connect(prepare)
signals.setup_logging.connect(set_up_logging)
signals.worker_ready.connect(appear)
signals.worker_shutting_down.connect(stop)
signals.worker_shutdown.connect(close)
