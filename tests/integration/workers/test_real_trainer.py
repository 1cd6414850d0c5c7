"""The supervisor with the real trainer process, on slots in memory."""

import dataclasses
import itertools
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.unit.workers.fake_store import FakeSlotStore
from tests.unit.workers.fakes import FakeSearch
from tuner_service.definition import StudyDefinition
from tuner_service.lifecycle.messages import HandBack, StudyWork
from tuner_service.settings import Settings
from workers.priority import NICENESS
from workers.settings import WorkerSettings
from workers.supervisor.restarts import TrainerRestarter
from workers.supervisor.studies import ActiveStudy
from workers.supervisor.supervisor import Supervisor
from workers.supervisor.trainer_process import TrainerProcess
from workers.supervisor.worker import trainer_command, wait_ready


def definition(**training: Any) -> dict[str, Any]:
    return {
        "name": "iris",
        "dataset": {"name": "iris"},
        "network": {"type": "mlp", "hidden_units": 8},
        "objective": {"metric": "val_accuracy"},
        "parameters": {"learning_rate": {"type": "float", "low": 1e-3, "high": 1.0}},
        "sampler": {"type": "random"},
        "training": {"epochs": 3, **training},
        "budget": {"trials": 10},
    }


# The trainer outlives a test, and keeps the best model of each study by its id.
STUDY_IDS = itertools.count(1)


def open_study(work: StudyWork) -> ActiveStudy:
    search: Any = FakeSearch()
    return ActiveStudy(work, StudyDefinition.model_validate(work.definition), search)


class Bench:
    def __init__(self, restarter: TrainerRestarter, data_dir: Path) -> None:
        self.study_id = next(STUDY_IDS)
        self.store = FakeSlotStore()
        self.stopping = threading.Event()
        self.restarter = restarter
        self.supervisor = Supervisor(
            self.store,
            restarter,
            settings=Settings(data_dir=data_dir),
            stopping=self.stopping,
            open_study=open_study,
        )

    def add(self, rates: list[float], **training: Any) -> None:
        self.store.add_study(self.study_id, [{"learning_rate": rate} for rate in rates])
        work = self.store.works[self.study_id]
        self.store.works[self.study_id] = dataclasses.replace(
            work, definition=definition(**training)
        )

    def run_until_paused(self) -> HandBack:
        """Serve the study until it has reported a few times, then pause it: what it handed back."""
        self.store.stop_reasons.pop(self.study_id, None)
        seen = len(self.store.hand_backs)
        thread = threading.Thread(target=self.supervisor.serve)
        thread.start()
        self.store.wait_for(lambda: len(self.store.reports.get(1, {})) > 5)
        self.store.ask_stop(self.study_id, "paused")
        thread.join(30.0)
        (back,) = self.store.hand_backs[seen:]
        return back


@pytest.fixture(scope="module")
def restarter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrainerRestarter]:
    data_dir = tmp_path_factory.mktemp("data")
    settings = Settings(data_dir=data_dir)
    command = trainer_command(settings, WorkerSettings(device="cpu"), worker_id="test")
    restarter = TrainerRestarter(lambda: TrainerProcess(command))
    wait_ready(restarter)
    yield restarter
    restarter.close(5.0)


@pytest.fixture
def bench(restarter: TrainerRestarter, tmp_path: Path) -> Iterator[Bench]:
    one = Bench(restarter, tmp_path)
    yield one
    one.stopping.set()


def test_a_trainer_on_a_cpu_lets_others_go_first(restarter: TrainerRestarter) -> None:
    assert restarter.current is not None
    assert psutil.Process(restarter.current.pid).nice() == min(os.nice(0) + NICENESS, 19)


@pytest.mark.parametrize("fuse", [False, True], ids=["plain", "fused"])
def test_trials_train_report_and_leave_the_best_model(
    bench: Bench, tmp_path: Path, fuse: bool
) -> None:
    bench.add([0.001, 0.01, 0.1, 0.3], fuse=fuse)
    bench.supervisor.serve()
    assert bench.store.states() == ["done"] * 4
    assert all(sorted(steps) == [1, 2, 3] for steps in bench.store.reports.values())
    best = max(bench.store.finishes, key=lambda finish: finish.values or ())
    assert (best.backend != "plain") == fuse
    assert best.model_path is not None
    assert (tmp_path / best.model_path).is_file()
    assert list((tmp_path / "checkpoints").rglob("*.safetensors")) == []


@pytest.mark.parametrize("fuse", [False, True], ids=["plain", "fused"])
def test_a_paused_trial_continues_where_it_was(bench: Bench, fuse: bool) -> None:
    # Far more epochs than can pass before the pause is heard, on any rung.
    bench.add([0.01], epochs=100_000, fuse=fuse)
    back = bench.run_until_paused()
    before = sorted(bench.store.reports[1])
    assert back.checkpoint_step == before[-1]
    assert before == list(range(1, before[-1] + 1))
    bench.store.reports[1].clear()
    further = bench.run_until_paused()
    after = sorted(bench.store.reports[1])
    assert further.checkpoint_step == after[-1]
    assert after == list(range(back.checkpoint_step + 1, after[-1] + 1))


def test_a_diverging_trial_is_a_result_and_harms_no_other(bench: Bench) -> None:
    bench.add([1e30, 0.1])
    bench.supervisor.serve()
    by_slot = {finish.lease.number: finish for finish in bench.store.finishes}
    assert by_slot[0].failure is not None
    assert (by_slot[0].state, by_slot[0].failure.kind) == ("PRUNED", "diverged")
    assert by_slot[1].state == "COMPLETE"


def test_bad_data_fails_with_a_sentence(bench: Bench, tmp_path: Path) -> None:
    bench.add([0.1])
    work = bench.store.works[bench.study_id]
    data = {"name": "csv", "path": "missing.csv", "target": "y"}
    bad = {**work.definition, "dataset": data}
    bench.store.works[bench.study_id] = dataclasses.replace(work, definition=bad)
    bench.supervisor.serve()
    (fail,) = bench.store.fails
    assert fail.failure.kind == "data"
    assert "missing.csv" in fail.failure.message
    assert not fail.retry
