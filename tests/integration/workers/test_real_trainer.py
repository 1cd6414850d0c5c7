"""The supervisor with the real trainer process, on a ledger in memory."""

import dataclasses
import itertools
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.unit.workers.fakes import FakeLedger, FakeSearch
from tuner_service.definition import StudyDefinition
from tuner_service.lifecycle.messages import HandBack, StudyWork
from tuner_service.settings import Settings
from workers.priority import NICENESS
from workers.settings import WorkerSettings
from workers.supervisor.restarts import TrainerKeeper
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
    def __init__(self, keeper: TrainerKeeper, data_dir: Path) -> None:
        self.study_id = next(STUDY_IDS)
        self.ledger = FakeLedger()
        self.stopping = threading.Event()
        self.keeper = keeper
        self.supervisor = Supervisor(
            self.ledger,
            keeper,
            settings=Settings(data_dir=data_dir),
            stopping=self.stopping,
            open_study=open_study,
        )

    def add(self, rates: list[float], **training: Any) -> None:
        self.ledger.add_study(self.study_id, [{"learning_rate": rate} for rate in rates])
        work = self.ledger.works[self.study_id]
        self.ledger.works[self.study_id] = dataclasses.replace(
            work, definition=definition(**training)
        )

    def run_until_paused(self) -> HandBack:
        """Serve the study until it has reported a few times, then pause it: what it handed back."""
        self.ledger.stop_reasons.pop(self.study_id, None)
        seen = len(self.ledger.hand_backs)
        thread = threading.Thread(target=self.supervisor.serve)
        thread.start()
        self.ledger.wait_for(lambda: len(self.ledger.reports.get(1, {})) > 5)
        self.ledger.ask_stop(self.study_id, "paused")
        thread.join(30.0)
        (back,) = self.ledger.hand_backs[seen:]
        return back


@pytest.fixture(scope="module")
def keeper(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrainerKeeper]:
    data_dir = tmp_path_factory.mktemp("data")
    settings = Settings(data_dir=data_dir)
    command = trainer_command(settings, WorkerSettings(device="cpu"), worker_id="test")
    keeper = TrainerKeeper(lambda: TrainerProcess(command))
    wait_ready(keeper)
    yield keeper
    keeper.close(5.0)


@pytest.fixture
def bench(keeper: TrainerKeeper, tmp_path: Path) -> Iterator[Bench]:
    one = Bench(keeper, tmp_path)
    yield one
    one.stopping.set()


def test_a_trainer_on_a_cpu_lets_others_go_first(keeper: TrainerKeeper) -> None:
    assert keeper.current is not None
    assert psutil.Process(keeper.current.pid).nice() == min(os.nice(0) + NICENESS, 19)


@pytest.mark.parametrize("fuse", [False, True], ids=["plain", "fused"])
def test_trials_train_report_and_leave_the_best_model(
    bench: Bench, tmp_path: Path, fuse: bool
) -> None:
    bench.add([0.001, 0.01, 0.1, 0.3], fuse=fuse)
    bench.supervisor.serve()
    assert bench.ledger.states() == ["done"] * 4
    assert all(sorted(steps) == [1, 2, 3] for steps in bench.ledger.reports.values())
    best = max(bench.ledger.finishes, key=lambda finish: finish.values or ())
    assert (best.rung != "plain") == fuse
    assert best.model_path is not None
    assert (tmp_path / best.model_path).is_file()
    assert list((tmp_path / "checkpoints").rglob("*.safetensors")) == []


@pytest.mark.parametrize("fuse", [False, True], ids=["plain", "fused"])
def test_a_paused_trial_continues_where_it_was(bench: Bench, fuse: bool) -> None:
    # Far more epochs than can pass before the pause is heard, on any rung.
    bench.add([0.01], epochs=100_000, fuse=fuse)
    back = bench.run_until_paused()
    before = sorted(bench.ledger.reports[1])
    assert back.checkpoint_step == before[-1]
    assert before == list(range(1, before[-1] + 1))
    bench.ledger.reports[1].clear()
    further = bench.run_until_paused()
    after = sorted(bench.ledger.reports[1])
    assert further.checkpoint_step == after[-1]
    assert after == list(range(back.checkpoint_step + 1, after[-1] + 1))


def test_a_diverging_trial_is_a_result_and_harms_no_other(bench: Bench) -> None:
    bench.add([1e30, 0.1])
    bench.supervisor.serve()
    by_slot = {finish.lease.number: finish for finish in bench.ledger.finishes}
    assert by_slot[0].failure is not None
    assert (by_slot[0].state, by_slot[0].failure.kind) == ("PRUNED", "diverged")
    assert by_slot[1].state == "COMPLETE"


def test_bad_data_fails_with_a_sentence(bench: Bench, tmp_path: Path) -> None:
    bench.add([0.1])
    work = bench.ledger.works[bench.study_id]
    data = {"name": "csv", "path": "missing.csv", "target": "y"}
    bad = {**work.definition, "dataset": data}
    bench.ledger.works[bench.study_id] = dataclasses.replace(work, definition=bad)
    bench.supervisor.serve()
    (fail,) = bench.ledger.fails
    assert fail.failure.kind == "data"
    assert "missing.csv" in fail.failure.message
    assert not fail.retry
