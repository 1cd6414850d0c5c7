"""Networks that harm the process they run in: who is blamed, what goes on, what is left running."""

import dataclasses
import itertools
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.integration.workers.test_real_trainer import definition, open_study
from tests.unit.workers.fake_store import FakeSlotStore
from tuner_service.settings import Settings
from workers.settings import WorkerSettings
from workers.supervisor.restarts import TrainerRestarter
from workers.supervisor.supervisor import Supervisor
from workers.supervisor.trainer_process import TrainerProcess
from workers.supervisor.worker import trainer_command, wait_ready

MODULE = """
import ctypes, os, signal, subprocess, sys, threading, time
from torch import nn

def binary():
    os.write(1, os.urandom(8 << 20))
    print("\\0\\udcff" * 1000)

def children():
    if os.fork() == 0:
        time.sleep(600)
    subprocess.Popen(["sleep", "600"])
    subprocess.Popen(["sleep", "600"], start_new_session=True)

def deaf():
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)

def threads():
    for _ in range(3):
        threading.Thread(target=time.sleep, args=(600,), daemon=False).start()

class Net(nn.Module):
    def __init__(self, inputs, outputs, deed):
        super().__init__()
        self.deed = deed
        self.line = nn.Linear(inputs, outputs)

    def forward(self, x):
        if self.training:
            exec(self.deed, globals())
        return self.line(x)

def build(inputs, outputs, deed: str):
    return Net(inputs[0], outputs, deed)
"""

STUDY_IDS = itertools.count(1)


class Ward:
    """A supervisor with the real trainer, and a harmful trial beside harmless ones."""

    def __init__(self, restarter: TrainerRestarter, data_dir: Path) -> None:
        self.restarter = restarter
        self.store = FakeSlotStore(max_attempts=1)
        self.supervisor = Supervisor(
            self.store,
            restarter,
            settings=Settings(
                data_dir=data_dir, progress_timeout_seconds=3.0, grace_seconds=4.0,
                retry_backoff_seconds=0.0,
            ),
            stopping=threading.Event(),
            open_study=open_study,
        )  # fmt: skip

    def add(self, count: int, *, network: dict[str, Any], **training: Any) -> int:
        study = next(STUDY_IDS)
        self.store.add_study(study, [{"learning_rate": 0.01 * (1 + i)} for i in range(count)])
        full = {**definition(**training), "network": network}
        work = dataclasses.replace(self.store.works[study], definition=full)
        self.store.works[study] = work
        return study

    def run(self, deed: str, *, beside: int = 0) -> Any:
        """Serve a trial that does the deed until everything has ended; return its end."""
        odd = self.add(1, network={"type": "odd", "deed": deed})
        calm = self.add(beside, network={"type": "mlp", "hidden_units": 8}, epochs=20)
        self.supervisor.serve()
        slots = self.store.slots.values()
        assert [s.state for s in slots if s.lease.study_id == calm] == ["done"] * beside
        ends = [*self.store.finishes, *self.store.fails]
        return [end for end in ends if end.lease.study_id == odd][-1]


def family(restarter: TrainerRestarter) -> list[psutil.Process]:
    """Return the trainer and what it has started."""
    if restarter.current is None:
        return []
    trainer = psutil.Process(restarter.current.pid)
    return [trainer, *trainer.children(recursive=True)]


@pytest.fixture(scope="module")
def restarter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrainerRestarter]:
    data_dir, modules = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("modules")
    (modules / "odd.py").write_text(MODULE)
    command = trainer_command(
        Settings(data_dir=data_dir),
        WorkerSettings(device="cpu", modules_dir=modules),
        worker_id="test",
    )
    restarter = TrainerRestarter(lambda: TrainerProcess(command))
    wait_ready(restarter)
    yield restarter
    restarter.close(5.0)


@pytest.fixture
def ward(restarter: TrainerRestarter, tmp_path: Path) -> Ward:
    return Ward(restarter, tmp_path)


@pytest.mark.parametrize("deed", ["binary()", "deaf()", "threads()"])
def test_what_harms_nobody_is_let_be(ward: Ward, deed: str) -> None:
    trainer = ward.restarter.current
    assert ward.run(deed, beside=1).state == "COMPLETE"
    assert ward.restarter.current is trainer


@pytest.mark.parametrize(
    ("deed", "kind", "said"),
    [
        ("ctypes.string_at(0)", "user_code", "The trainer was killed by SIGSEGV"),
        ("ctypes.PyDLL(None).sleep(3600)", "timeout", "raise TUNER_PROGRESS_TIMEOUT_SECONDS"),
    ],
)
def test_who_takes_its_process_along_is_blamed_when_it_was_exclusive(
    ward: Ward, deed: str, kind: str, said: str
) -> None:
    end = ward.run(deed)
    assert (end.failure.kind, end.blamed) == (kind, True)
    assert said in end.failure.message
    assert ward.run("pass").state == "COMPLETE", "the next trainer is sound"


def test_who_hangs_is_blamed_and_those_beside_it_end_with_results(ward: Ward) -> None:
    end = ward.run("time.sleep(3600)", beside=2)
    assert (end.failure.kind, end.blamed) == ("timeout", True)
    assert [fail.lease for fail in ward.store.fails] == [end.lease], "nobody else was blamed"


def test_nothing_that_it_started_outlives_the_trainer(ward: Ward) -> None:
    assert ward.run("children()").state == "COMPLETE"
    started = family(ward.restarter)
    assert sum(process.name() == "sleep" for process in started) >= 2
    ward.restarter.close(5.0)
    _, left = psutil.wait_procs(started, timeout=5.0)
    assert left == []
