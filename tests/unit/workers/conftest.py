"""A supervisor over the fake trainer and the fake store."""

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.workers.fake_store import FakeSlotStore
from tests.unit.workers.fakes import open_fake_study
from tuner_service.settings import Settings
from workers.supervisor.environment import scrubbed
from workers.supervisor.restarts import TrainerRestarter
from workers.supervisor.supervisor import Supervisor
from workers.supervisor.trainer_process import TrainerCommand, TrainerProcess

FAKE_TRAINER = Path(__file__).with_name("fake_trainer.py")


class Bench:
    """A supervisor with everything it needs, and the thread it serves in."""

    def __init__(self, tmp_path: Path, *arguments: str, **settings: Any) -> None:
        # One epoch is a write; short times so that tests need not wait for usual ones.
        chosen = {"data_dir": tmp_path, "flush_seconds": 0.05, "grace_seconds": 3.0, **settings}
        self.settings = Settings(**chosen)
        self.store = FakeSlotStore()
        self.stopping = threading.Event()
        command = TrainerCommand(
            (str(FAKE_TRAINER), *arguments),
            scrubbed(os.environ, threads=1),
            tmp_path / "trainer.log",
        )
        self.restarter = TrainerRestarter(lambda: TrainerProcess(command))
        self.supervisor = Supervisor(
            self.store,
            self.restarter,
            settings=self.settings,
            stopping=self.stopping,
            open_study=open_fake_study,
        )
        self.thread: threading.Thread | None = None
        self.failure: Exception | None = None

    def serve(self) -> None:
        """Serve in this thread until nothing is left."""
        self.supervisor.serve()

    def serve_aside(self) -> None:
        """Serve in a thread of its own."""
        self.thread = threading.Thread(target=self._serve_aside)
        self.thread.start()

    def _serve_aside(self) -> None:
        try:
            self.supervisor.serve()
        except Exception as error:  # noqa: BLE001  # raised again by join()
            self.failure = error

    def join(self, seconds: float = 20.0) -> None:
        """Wait for the serve to return."""
        assert self.thread is not None
        self.thread.join(seconds)
        assert not self.thread.is_alive(), "serve did not return"
        if self.failure is not None:
            raise self.failure

    def close(self) -> None:
        self.stopping.set()
        self.store.away = False
        if self.thread is not None:
            self.thread.join(20.0)
        self.restarter.close(2.0)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Callable[..., Bench]]:
    """Make benches; all are closed at the end."""
    benches: list[Bench] = []

    def make(*arguments: str, **settings: Any) -> Bench:
        benches.append(Bench(tmp_path, *arguments, **settings))
        return benches[-1]

    yield make
    for one in benches:
        one.close()
