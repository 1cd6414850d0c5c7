"""The database's clock is set, forward and back, while work is under way.

PostgreSQL, and the process that has SQLite's file open, preload a clock that can be set. What is
left to the time is let pass on that clock too.
"""

import contextlib
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.clock import Clock, NoCompilerError, shiftable_clock
from tests.integration.lifecycle.hands import SETTINGS, definition
from tests.integration.lifecycle.racers import Racer, call
from tests.integration.lifecycle.racing import claiming, finishing, flushing
from tests.invariants import check_invariants
from tests.servers import MissingServerError, postgres_server
from tuner_service.lifecycle.change import StudyPatch, patch, pause, resume
from tuner_service.lifecycle.messages import Claimed, Fail, HandBack, Lease, Start
from tuner_service.lifecycle.reconcile import reconcile
from tuner_service.lifecycle.submit import submit
from tuner_service.lifecycle.workers import register_worker, worker_heartbeat
from tuner_service.reads.studies import get_study
from tuner_service.reads.views import Failure, StudyView
from tuner_service.reads.workers import LIVE_SECONDS, list_workers
from tuner_service.storage import migrate

HOUR = 3600.0
JUMPS = [HOUR, -HOUR, 10.0, -10.0]
Ask = Callable[..., Any]


@pytest.fixture(scope="module")
def clock() -> Iterator[Clock]:
    with contextlib.ExitStack() as stack:
        try:
            made = stack.enter_context(shiftable_clock())
        except NoCompilerError as missing:
            pytest.skip(str(missing))
        yield made


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def database(
    request: pytest.FixtureRequest, clock: Clock, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[], str]]:
    """Gives the URL of an empty database whose clock is ours."""
    if request.param == "sqlite":
        template = request.getfixturevalue("migrated_sqlite")

        def copied() -> str:
            path = tmp_path_factory.mktemp("clock") / "tuner.db"
            shutil.copy(template, path)
            return f"sqlite:///{path}"

        yield copied
        return
    with contextlib.ExitStack() as stack:
        try:
            server = stack.enter_context(postgres_server(environment=clock.environment))
        except MissingServerError as missing:
            pytest.skip(str(missing))
        name = server.create_database()
        migrate(server.url(name))

        def emptied() -> str:
            server.empty_database(name)
            return server.url(name)

        yield emptied


@pytest.fixture(scope="module")
def process(clock: Clock) -> Iterator[Racer]:
    racer = Racer(clock.environment)
    yield racer
    racer.close()


@pytest.fixture
def ask(database: Callable[[], str], process: Racer) -> Ask:
    """Runs a function of the database in the process, and returns what it returned."""
    url = database()

    def asked(function: Callable[..., Any], *args: Any, **more: Any) -> Any:
        process.begin(url, call(function, *args, **more))
        result = process.result()
        if isinstance(result, Exception):
            raise result
        return result

    return asked


class Worker:
    """A worker's calls."""

    def __init__(self, ask: Ask, name: str) -> None:
        self.name = name
        self._ask = ask
        self._told = {"state": "busy", "lanes": 8, "current_trials": []}
        about = {"host": name, "pid": 1, "queue": "cpu", "device": "cpu", "version": "0"}
        ask(register_worker, worker_id=name, lanes=8, **about)

    def claim(self, limit: int = 1) -> list[Lease]:
        wanted = claiming(self.name, limit)
        claimed: Claimed = self._ask(wanted.function, **wanted.kwargs)
        return claimed.leases

    def flush(self, **parts: Any) -> Any:
        wanted = flushing(self.name, **parts)
        return self._ask(wanted.function, **wanted.kwargs)

    def start(self, lease: Lease) -> int:
        started = self.flush(starts=[Start(lease, lease.parameters or {})]).started
        return int(started[lease.key].trial_id)

    def finish(self, lease: Lease) -> set[Any]:
        trial_id = lease.trial_id or self.start(lease)
        wanted = finishing(lease, trial_id, worker=self.name)
        return set(self._ask(wanted.function, **wanted.kwargs).lost)

    def live(self, *leases: Lease) -> set[Any]:
        """Say that it lives and holds its leases; return those that it lost."""
        assert self._ask(worker_heartbeat, self.name, **self._told)
        return set(self.flush(renew=list(leases)).lost)


def submitted(ask: Ask, **changes: Any) -> StudyView:
    view: StudyView = ask(submit, definition(**changes), settings=SETTINGS)[0]
    return view


@pytest.mark.parametrize("seconds", JUMPS)
def test_whatever_the_clock_is_set_to_nothing_is_lost_or_stuck(
    ask: Ask, clock: Clock, seconds: float
) -> None:
    """Of two workers one is lost; there is a slot that was handed back, and one that failed."""
    study = submitted(ask, budget={"trials": 4})
    alive, lost = Worker(ask, "alive"), Worker(ask, "lost")
    held, given, failed = alive.claim(3)
    trials = {lease.key: alive.start(lease) for lease in (held, given, failed)}
    (gone,) = lost.claim()
    lost.start(gone)
    blame = Fail(failed, trials[failed.key], Failure(kind="user_code", message="x"), blamed=True)
    alive.flush(hand_backs=[HandBack(given, 1)], fails=[blame])

    clock.jump(seconds)
    reaped = 0
    if seconds < 0:  # forward, its lease has run out if it does not come first
        reaped += ask(reconcile, settings=SETTINGS).reaped
    assert alive.live(held) == set()
    reaped += ask(reconcile, settings=SETTINGS).reaped
    for _ in range(3):
        clock.jump(LIVE_SECONDS)
        assert alive.live(held) == set()
        reaped += ask(reconcile, settings=SETTINGS).reaped
        ask(check_invariants, settings=SETTINGS)
    assert reaped == 1
    assert [worker.id for worker in ask(list_workers)][:1] == ["alive"]

    again = alive.claim(9)
    assert sorted(lease.number for lease in again) == [1, 2, 3]
    by_number = {lease.number: lease.trial_id for lease in again}
    assert by_number[given.number] == trials[given.key]
    for lease in again:
        assert alive.finish(lease) == set()
    done = finishing(held, trials[held.key], worker="alive")
    assert ask(done.function, **done.kwargs).lost == set()
    view = ask(get_study, study.id)
    assert (view.state, view.progress.done) == ("completed", 4)
    ask(check_invariants, settings=SETTINGS)


@pytest.mark.parametrize("seconds", JUMPS)
def test_a_timeout_does_not_see_a_clock_that_is_set_during_a_pause(
    ask: Ask, clock: Clock, seconds: float
) -> None:
    study = submitted(ask, budget={"trials": 4, "timeout": 100})
    worker = Worker(ask, "worker")
    (lease,) = worker.claim()
    worker.start(lease)
    ask(pause, study.id)
    worker.flush(hand_backs=[HandBack(lease, 1)])
    clock.jump(seconds)
    ask(resume, study.id)
    wanted = claiming("worker", 1)
    (work,) = ask(wanted.function, **wanted.kwargs).studies.values()
    assert work.remaining_seconds == pytest.approx(100, abs=20)


def test_a_timeout_is_by_the_databases_clock_and_can_be_raised(ask: Ask, clock: Clock) -> None:
    study = submitted(ask, budget={"trials": 3, "timeout": 100})
    worker = Worker(ask, "worker")
    (lease,) = worker.claim()
    trial_id = worker.start(lease)
    clock.jump(-HOUR)
    assert worker.live(lease) == set()
    assert worker.flush(renew=[lease]).stop == {}
    clock.jump(2 * HOUR)
    assert worker.flush(renew=[lease]).stop == {lease.key: "timeout"}
    done = finishing(lease, trial_id, worker="worker")
    ask(done.function, **done.kwargs)
    assert ask(get_study, study.id).reason == "timeout"
    view = ask(patch, study.id, StudyPatch(timeout=3 * HOUR), settings=SETTINGS)
    assert (view.state, view.progress.open, view.progress.done) == ("running", 2, 1)
    ask(check_invariants, settings=SETTINGS)
