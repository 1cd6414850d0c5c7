"""The supervisor on the real lifecycle and database, with the real trainer."""

import contextlib
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.studies import GRID_POINTS, grid, sampled
from tuner_service.definition import parse_definition
from tuner_service.lifecycle.change import cancel, pause, resume
from tuner_service.lifecycle.submit import submit
from tuner_service.reads.studies import get_study
from tuner_service.reads.trials import list_trials
from tuner_service.reads.views import StudyView, TrialView
from tuner_service.settings import Settings
from tuner_service.storage import Database
from workers.settings import WorkerSettings
from workers.supervisor.database_store import DatabaseSlotStore
from workers.supervisor.restarts import TrainerRestarter
from workers.supervisor.supervisor import Supervisor
from workers.supervisor.trainer_process import TrainerProcess
from workers.supervisor.worker import trainer_command, wait_ready


class Site:
    """A database, and workers in this process."""

    def __init__(self, db: Database, data_dir: Path) -> None:
        self.db = db
        self.settings = Settings(data_dir=data_dir)
        self.stopping = threading.Event()
        self.threads: list[threading.Thread] = []

    def submit(self, definition: dict[str, Any]) -> str:
        study, created = submit(self.db, parse_definition(definition), settings=self.settings)
        assert created
        return study.id

    def supervisor(self, restarter: TrainerRestarter) -> Supervisor:
        worker_id = f"worker-{uuid.uuid4().hex[:8]}"
        store = DatabaseSlotStore(self.db, self.settings, worker_id, "cpu")
        return Supervisor(store, restarter, settings=self.settings, stopping=self.stopping)

    def serve_aside(self, *supervisors: Supervisor) -> None:
        self.threads = [threading.Thread(target=one.serve) for one in supervisors]
        for thread in self.threads:
            thread.start()

    def join(self) -> None:
        for thread in self.threads:
            thread.join(60.0)
            assert not thread.is_alive()

    def study(self, study: str) -> StudyView:
        return get_study(self.db, study)

    def trials(self, study: str) -> list[TrialView]:
        return list_trials(self.db, study, limit=100).items

    def wait_for_reports(self, study: str, count: int) -> None:
        for _ in range(3000):
            if sum(t.last_step or 0 for t in self.trials(study)) >= count:
                return
            threading.Event().wait(0.01)
        raise TimeoutError("no reports")


@pytest.fixture
def site(db: Database, tmp_path: Path) -> Iterator[Site]:
    one = Site(db, tmp_path)
    yield one
    one.stopping.set()
    one.join()


@contextlib.contextmanager
def launching(data_dir: Path) -> Iterator[Callable[[], TrainerRestarter]]:
    command = trainer_command(
        Settings(data_dir=data_dir), WorkerSettings(device="cpu"), worker_id="test"
    )
    started: list[TrainerRestarter] = []

    def launch() -> TrainerRestarter:
        started.append(TrainerRestarter(lambda: TrainerProcess(command)))
        wait_ready(started[-1])
        return started[-1]

    yield launch
    for restarter in started:
        restarter.close(5.0)


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Callable[[], TrainerRestarter]]:
    """Start trainers for one test."""
    with launching(tmp_path) as launch:
        yield launch


@pytest.fixture(scope="module")
def keepers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[TrainerRestarter]]:
    """Two trainers, warm for all tests."""
    with launching(tmp_path_factory.mktemp("data")) as launch:
        yield [launch(), launch()]


def test_a_grid_is_covered_once_by_two_workers(site: Site, keepers: list[TrainerRestarter]) -> None:
    study = site.submit(grid("grid"))
    site.serve_aside(*(site.supervisor(restarter) for restarter in keepers))
    site.join()
    view = site.study(study)
    assert (view.state, view.progress.done) == ("completed", GRID_POINTS)
    points = Counter(tuple(sorted(t.parameters.items())) for t in site.trials(study))
    assert len(points) == GRID_POINTS
    assert set(points.values()) == {1}


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_the_budget_is_exact_and_the_best_is_the_best(
    site: Site, keepers: list[TrainerRestarter], sampler: str
) -> None:
    study = site.submit(sampled("study", sampler, 20, pruner={"type": "median"}))
    site.supervisor(keepers[0]).serve()
    view, trials = site.study(study), site.trials(study)
    assert (view.state, len(trials)) == ("completed", 20)
    complete = [t for t in trials if t.state == "COMPLETE"]
    assert view.best_trial is not None
    assert view.best_trial.value == max(t.value or 0.0 for t in complete)


def test_only_the_best_trials_model_is_kept(
    site: Site, launch: Callable[[], TrainerRestarter]
) -> None:
    # Trainers of its own: one that knew another database's first study would take it for this.
    keepers = [launch(), launch()]
    study = site.submit(sampled("study", "random", 20))
    site.serve_aside(*(site.supervisor(restarter) for restarter in keepers))
    site.join()
    best = site.study(study).best_trial
    assert best is not None
    assert [t.number for t in site.trials(study) if t.has_model] == [best.number]
    models = list((site.settings.data_dir / "models").rglob("*.safetensors"))
    assert len(models) == 1


def test_pause_and_resume_continue_the_same_trials(
    site: Site, keepers: list[TrainerRestarter]
) -> None:
    study = site.submit(sampled("study", "random", 3, training={"epochs": 300}))
    site.serve_aside(site.supervisor(keepers[0]))
    site.wait_for_reports(study, 5)
    pause(site.db, study)
    site.join()
    view = site.study(study)
    assert (view.state, view.progress.leased) == ("paused", 0)
    numbers = {t.number for t in site.trials(study)}
    resume(site.db, study)
    site.supervisor(keepers[0]).serve()
    assert site.study(study).state == "completed"
    trials = site.trials(study)
    assert len(trials) == 3
    assert numbers <= {t.number for t in trials}
    assert {t.last_step for t in trials} == {300}


def test_cancel_ends_what_runs(site: Site, keepers: list[TrainerRestarter]) -> None:
    study = site.submit(sampled("study", "random", 8, training={"epochs": 100_000}))
    site.serve_aside(site.supervisor(keepers[0]))
    site.wait_for_reports(study, 5)
    cancel(site.db, study)
    site.join()
    view = site.study(study)
    assert (view.state, view.progress.leased, view.progress.done) == ("cancelled", 0, 0)
    assert {t.state for t in site.trials(study)} == {"FAIL"}


def test_a_timeout_keeps_what_there_is(site: Site, launch: Callable[[], TrainerRestarter]) -> None:
    definition = sampled(
        "study", "random", 8, training={"epochs": 100_000}, budget={"timeout": 1.5}
    )
    study = site.submit(definition)
    site.supervisor(launch()).serve()
    view = site.study(study)
    assert (view.state, view.reason) == ("completed", "timeout")
    trials = site.trials(study)
    assert trials
    assert {t.state for t in trials} == {"PRUNED"}
    best = max((t for t in trials if t.value is not None), key=lambda t: (t.value or 0, -t.number))
    assert view.best_trial is not None
    assert view.best_trial.number == best.number
    assert {t.number for t in trials if t.has_model} == {best.number}
