"""One worker process: database, trainer, supervisor and heartbeat, opened and closed together."""

import logging
import os
import socket
import sys
import threading
import time
import uuid
from dataclasses import dataclass
from typing import Literal

from tuner_service import __version__
from tuner_service.broker.ring import Ringer
from tuner_service.errors import SettingsError
from tuner_service.lifecycle.reconcile import reconcile
from tuner_service.lifecycle.workers import (
    leave,
    publish_modules,
    register_worker,
    worker_heartbeat,
)
from tuner_service.settings import Settings
from tuner_service.storage import Database, check_schema
from workers.offers import offers_of
from workers.protocol.messages import Ready
from workers.settings import WorkerSettings
from workers.supervisor.database_store import DatabaseSlotStore
from workers.supervisor.environment import scrubbed
from workers.supervisor.heartbeat import Heartbeat
from workers.supervisor.restarts import START_SECONDS, TrainerRestarter
from workers.supervisor.supervisor import Status, Supervisor
from workers.supervisor.trainer_process import TrainerCommand, TrainerProcess
from workers.user_modules import ModuleFolder

logger = logging.getLogger(__name__)

TRAINER_SECONDS = 0.5  # an idle trainer's end takes no more, but for memory to be given back


def new_worker_id() -> str:
    """Return a name for this process that no other has had."""
    return f"{socket.gethostname()[:32]}-{os.getpid()}-{uuid.uuid4().hex[:8]}"


def trainer_command(
    settings: Settings, worker_settings: WorkerSettings, *, worker_id: str
) -> TrainerCommand:
    """Return how this worker's trainer is started."""
    arguments = [
        *("-m", "workers.trainer"),
        *("--device", worker_settings.device),
        *("--threads", str(worker_settings.threads)),
        *("--data-dir", str(settings.data_dir)),
        *("--checkpoint-seconds", str(settings.checkpoint_seconds)),
        *("--loops", str(worker_settings.loops)),
        # Of the grace time, half: what is left is for the supervisor to write what they said.
        *("--loop-stop-seconds", str(settings.grace_seconds / 2)),
        *("--progress-seconds", str(settings.progress_timeout_seconds)),
        *("--memory-limit", str(worker_settings.memory_limit_bytes)),
    ]
    if worker_settings.share_gpu:
        arguments.append("--share-gpu")
    if worker_settings.data_limit_bytes is not None:
        arguments += ["--data-limit", str(worker_settings.data_limit_bytes)]
    if worker_settings.modules_dir is not None:
        arguments += ["--modules", str(worker_settings.modules_dir.absolute())]
    for directory in settings.dataset_dirs:
        arguments += ["--dataset-dir", str(directory)]
    return TrainerCommand(
        tuple(arguments),
        environment=scrubbed(os.environ, threads=worker_settings.threads),
        log_path=settings.directory.trainer_log(worker_id),
    )


@dataclass(slots=True)
class DatabaseWorkerRegistry:
    """The list of workers and the reconciler, on the real database and broker."""

    db: Database
    ringer: Ringer
    settings: Settings
    worker_id: str
    queue: Literal["cpu", "cuda"]
    device: str
    lanes: int
    modules: ModuleFolder
    listed: bool = False

    def heartbeat(self, status: Status) -> None:
        """List the worker, or renew its entry."""
        if not self.listed:
            self._registry()
        # Silent for long (a stopped process, a database away), the entry may be gone.
        self.listed = worker_heartbeat(
            self.db,
            self.worker_id,
            state=status.state,
            lanes=status.lanes or self.lanes,
            current_trials=status.trials,
        )
        if self.listed:
            self._publish_modules()

    def leave(self) -> None:
        """Take the worker off the list."""
        if self.listed:
            leave(self.db, self.worker_id)

    def _registry(self) -> None:
        register_worker(
            self.db,
            worker_id=self.worker_id,
            host=socket.gethostname(),
            pid=os.getpid(),
            queue=self.queue,
            device=self.device,
            version=__version__,
            lanes=self.lanes,
        )
        self.listed = True
        self.modules.forget()  # what was published went with the old entry

    def _publish_modules(self) -> None:
        """Say what modules there are, as soon as a file has changed."""
        found = self.modules.changed()
        if found is None:
            return
        try:
            publish_modules(
                self.db,
                self.worker_id,
                {
                    name: (one.model_dump(mode="json"), one.source_hash)
                    for name, one in found.sound.items()
                },
                {one.file: one.reason for one in found.refused},
            )
        except BaseException:
            self.modules.forget()
            raise

    def reconcile(self) -> None:
        """Reap, finish and ring."""
        for queue, count in reconcile(self.db, settings=self.settings).rings.items():
            self.ringer.ring(queue, count)


class Worker:
    """What a Celery worker process of ours consists of.

    Attributes:
        id: Names it in leases, in the list of workers and in logs.
        queue: Which rings it takes, by its trainer's device.
    """

    def __init__(
        self,
        db: Database,
        restarter: TrainerRestarter,
        *,
        settings: Settings,
        worker_settings: WorkerSettings,
        worker_id: str,
    ) -> None:
        trainer = restarter.current
        if trainer is None or trainer.ready is None:
            raise ValueError("a worker needs a trainer that is ready")
        self.id = worker_id
        self.queue = trainer.ready.queue
        self._db = db
        self._restarter = restarter
        self._stopping = threading.Event()
        self._ringer = Ringer(settings)
        self._supervisor = Supervisor(
            DatabaseSlotStore(db, settings, worker_id, self.queue),
            restarter,
            settings=settings,
            stopping=self._stopping,
            memory_limit_bytes=worker_settings.memory_limit_bytes,
        )
        register = DatabaseWorkerRegistry(
            db,
            self._ringer,
            settings,
            worker_id,
            queue=self.queue,
            device=trainer.ready.device,
            lanes=trainer.ready.lanes,
            modules=offers_of(worker_settings.modules_dir, settings.directory.programs),
        )
        self._heartbeat = Heartbeat(
            register,
            lambda: self._supervisor.status,
            reconcile_seconds=settings.reconcile_seconds,
        )

    @classmethod
    def open(cls, settings: Settings, worker_settings: WorkerSettings) -> "Worker":
        """Check the database, start the trainer and wait until it is ready.

        Raises:
            SchemaVersionError: The database's schema is not this software's.
            SettingsError: The trainer does not start, for instance for want of the device; or there
            is no directory of modules where one was named.
            UnavailableError: The database cannot be reached.
        """
        offers_of(
            worker_settings.modules_dir, settings.directory.programs
        )  # what is wrong with it is said at the start
        settings.directory.prepare()
        worker_id = new_worker_id()
        db = Database.open(settings.resolved_database_url)
        check_schema(db)
        restarter = started_trainer(settings, worker_settings, worker_id=worker_id)
        return cls(
            db, restarter, settings=settings, worker_settings=worker_settings, worker_id=worker_id
        )

    def serve(self) -> None:
        """Answer a ring."""
        self._supervisor.serve()

    def appear(self) -> None:
        """Be listed, and reconcile from now on."""
        self._heartbeat.start()

    def stop(self) -> None:
        """Stop claiming; a serve in progress hands back and returns within the grace time.

        An idle trainer ends meanwhile.
        """
        self._stopping.set()
        self._supervisor.wake()
        self._supervisor.shut_down_idle_trainer()

    def close(self) -> None:
        """Leave, and end the trainer."""
        self._stopping.set()
        self._heartbeat.close()
        self._restarter.close(TRAINER_SECONDS)
        self._ringer.close()
        self._db.close()


def started_trainer(
    settings: Settings, worker_settings: WorkerSettings, *, worker_id: str
) -> TrainerRestarter:
    """Start the worker's first trainer; those after it have the same device.

    Raises:
        SettingsError: It ended instead, or did not become ready in time.
    """
    command = trainer_command(settings, worker_settings, worker_id=worker_id)
    restarter = TrainerRestarter(lambda: TrainerProcess(command))
    queue = wait_ready(restarter).queue
    # A later one that finds no GPU must fail, not serve the queue of GPUs on a CPU.
    same = worker_settings.model_copy(update={"device": queue})
    again = trainer_command(settings, same, worker_id=worker_id)
    restarter.launch = lambda: TrainerProcess(again)
    return restarter


def wait_ready(restarter: TrainerRestarter) -> Ready:
    """Start the trainer and wait for it; return what it says of itself.

    Raises:
        SettingsError: It ended instead, or did not become ready in time.
    """
    trainer = restarter.ensure(time.monotonic())
    if trainer is None:
        raise ValueError("a fresh keeper starts a trainer at once")
    deadline = time.monotonic() + START_SECONDS
    while trainer.ready is None:
        trainer.receive(0.5)
        if restarter.is_dead(time.monotonic()) or time.monotonic() > deadline:
            tail = trainer.log_tail()
            restarter.end_current(time.monotonic())
            raise SettingsError(f"the trainer does not start ({sys.executable}): {tail}")
    return trainer.ready
