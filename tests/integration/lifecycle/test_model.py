"""A model of the whole lifecycle, attacked at random.

Workers claim, start, report, end, hand back, vanish with their leases in hand and come back as
zombies; any process dies before any of its commits, or right after one, and what was sent is sent
again; the clock is set forward and back; another Optuna program makes trials, and ends some of
ours; people submit, pause, resume, raise, cancel and delete meanwhile. After every step every
invariant must hold. At the end time and one honest worker must bring every study to its end.

`TUNER_MODEL_EXAMPLES` says how many runs (10 by default) of 50 steps.
"""

import os
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)
from optuna.storages import RDBStorage
from optuna.trial import TrialState
from sqlalchemy import select

from tests.integration.lifecycle.hands import (
    SETTINGS,
    Hand,
    definition,
    expire,
    in_a_hurry,
    plain_optuna,
)
from tests.integration.lifecycle.worlds import (
    ENDED,
    CrashError,
    Dying,
    drain,
    empty,
    everything,
    jump,
    point,
    tell_outside,
)
from tests.invariants import Watch, check_invariants
from tuner_service.errors import ConflictError, IdempotencyError, InputError, NotFoundError
from tuner_service.lifecycle.change import StudyPatch, cancel, patch, pause, resume
from tuner_service.lifecycle.delete import delete, delete_part
from tuner_service.lifecycle.messages import Fail, Finish, HandBack, Lease, Report, Start
from tuner_service.lifecycle.reconcile import reconcile
from tuner_service.lifecycle.submit import submit
from tuner_service.lifecycle.workers import register_worker
from tuner_service.reads.studies import get_study
from tuner_service.reads.views import Failure
from tuner_service.storage import Database
from tuner_service.storage.schema import GONE, slots, studies, trials

GRID = {
    "optimizer": {"type": "categorical", "choices": ["sgd", "adam"]},
    "momentum": {"type": "categorical", "choices": [0.0, 0.9], "when": {"optimizer": "sgd"}},
}
KINDS: dict[str, dict[str, Any]] = {
    "random": {"sampler": {"type": "random", "seed": 1}},
    "tpe": {"sampler": {"type": "tpe", "seed": 1}},
    "grid": {"sampler": {"type": "grid"}, "parameters": GRID, "budget": {}},
}
NAMES = ("worker-1", "worker-2")
JUMPS = (-86400.0, -3600.0, -60.0, -10.0, 10.0, 60.0, 3600.0, 86400.0)
TIMEOUT = 1800.0

Run = tuple[str, Lease, int]


class Lifecycle(RuleBasedStateMachine):
    """Studies, two workers that may vanish, and what each of them believes."""

    db: Database
    plain: RDBStorage

    refs = Bundle("refs")
    leases = Bundle("leases")  # (worker, lease): believed to be held, no trial yet
    runs = Bundle("runs")  # (worker, lease, trial id): believed to run

    def __init__(self) -> None:
        super().__init__()
        empty(self.db)
        self.watch = Watch(self.db)
        self.keys: dict[str, tuple[str, str]] = {}
        self.gone: set[str] = set()

    def hand(self, name: str) -> Hand:
        return Hand(self.db, name)

    @initialize(target=refs, kind=st.sampled_from(sorted(KINDS)))
    def first_study(self, kind: str) -> str:
        return self.submit(kind, trials=3, parallel=2, failures=1, timeout=None)

    # -- people -----------------------------------------------------------------------------

    @rule(
        target=refs,
        kind=st.sampled_from(sorted(KINDS)),
        trials=st.integers(1, 4),
        parallel=st.integers(1, 4),
        failures=st.integers(0, 2),
        timeout=st.sampled_from([None, TIMEOUT]),
    )
    def submit(
        self, kind: str, trials: int, parallel: int, failures: int, timeout: float | None
    ) -> str:
        changes = changed(kind, trials, parallel, failures)
        if timeout is not None:
            changes["budget"] = {**changes["budget"], "timeout": timeout}
        return submit(self.db, definition(**changes), settings=SETTINGS)[0].id

    @rule(
        target=refs,
        kind=st.sampled_from(sorted(KINDS)),
        key=st.sampled_from("ab"),
        dies=st.sampled_from([None, "before", "after"]),
    )
    def submit_with_key(self, kind: str, key: str, dies: str | None) -> Any:
        """Perhaps with an answer that is lost, and sent again."""
        known = self.keys.get(key)
        if known is not None and known[1] in self.gone:
            return multiple()
        if known is not None and known[0] != kind:
            with pytest.raises(IdempotencyError):
                self.submit_with(self.db, kind, key)
            return multiple()
        if dies is not None and known is None:
            with pytest.raises(CrashError):
                self.submit_with(Dying(self.db, deaf=dies == "after"), kind, key)
        study, new = self.submit_with(self.db, kind, key)
        assert new == (known is None and dies != "after"), "I6"
        assert known is None or known[1] == study, "I6"
        self.keys[key] = (kind, study)
        return study

    def submit_with(self, db: Database, kind: str, key: str) -> tuple[str, bool]:
        study, new = submit(
            db, definition(**changed(kind, 2, 2, 1)), settings=SETTINGS, idempotency_key=key
        )
        return study.id, new

    @rule(ref=refs, action=st.sampled_from([pause, resume, cancel]))
    def ask(self, ref: str, action: Callable[[Database, str], Any]) -> None:
        if ref in self.gone:
            with pytest.raises(NotFoundError):
                action(self.db, ref)
            return
        before = get_study(self.db, ref).state
        if before in ENDED and action is not cancel:
            with pytest.raises(ConflictError):
                action(self.db, ref)
            return
        after = action(self.db, ref).state
        wanted = {pause: "paused", cancel: "cancelled", resume: before}[action]
        if action is resume and before == "paused":
            wanted = "running"
        assert after == (before if before in ENDED else wanted)

    @rule(ref=refs, more=st.integers(1, 2))
    def raise_budget(self, ref: str, more: int) -> None:
        if ref in self.gone:
            return
        view = get_study(self.db, ref)
        change = StudyPatch(trials=view.progress.total + more)
        try:
            raised = patch(self.db, ref, change, settings=SETTINGS)
        except ConflictError:
            assert view.state in ("cancelled", "failed") or view.timeout_seconds is not None
        except InputError:
            assert view.definition["sampler"]["type"] == "grid"
        else:
            assert raised.progress.total == view.progress.total + more
            wanted = "running" if view.state == "completed" else view.state
            assert raised.state == wanted or view.timeout_seconds is not None

    @rule(ref=refs)
    def delete(self, ref: str) -> None:
        if ref in self.gone:
            return
        if get_study(self.db, ref).state in ("queued", "running"):
            with pytest.raises(ConflictError):
                delete(self.db, ref)
        else:
            delete(self.db, ref)
            self.gone.add(ref)

    @rule(size=st.integers(1, 3))
    def delete_part(self, size: int) -> None:
        delete_part(self.db, size=size)

    # -- workers ----------------------------------------------------------------------------

    @rule(
        target=leases,
        name=st.sampled_from(NAMES),
        limit=st.integers(1, 3),
        exclude_exclusive=st.booleans(),
    )
    def claim(self, name: str, limit: int, exclude_exclusive: bool) -> Any:
        claimed = self.hand(name).claim(limit, exclude_exclusive=exclude_exclusive).leases
        if any(lease.exclusive for lease in claimed):
            assert len(claimed) == 1
            assert not exclude_exclusive
        return multiple(*((name, lease) for lease in claimed))

    @rule(target=runs, held=consumes(leases))
    def start(self, held: tuple[str, Lease]) -> Any:
        name, lease = held
        if lease.trial_id is not None:
            return name, lease, lease.trial_id
        start = Start(lease, point(lease))
        flushed = self.hand(name).flush(starts=[start])
        if lease.key not in flushed.started:
            assert lease.key in flushed.lost or lease.key in flushed.stop
            return multiple()
        if lease.slot_id % 2:  # the answer was lost, the batch is sent again
            again = self.hand(name).flush(starts=[start])
            assert again.started.get(lease.key, None) == flushed.started[lease.key]
        return name, lease, flushed.started[lease.key].trial_id

    @rule(run=runs, step=st.integers(1, 4), checkpoint=st.booleans())
    def report(self, run: Run, step: int, checkpoint: bool) -> None:
        name, lease, trial_id = run
        reports = [Report(lease, trial_id, step, step / 10, {"step": step})]
        checkpoints = [(lease, step)] if checkpoint else []
        self.hand(name).flush(reports=reports, checkpoints=checkpoints)

    # Ends do not consume the run: whoever ended it may be a zombie that says so again.
    @rule(run=runs, state=st.sampled_from(["COMPLETE", "PRUNED", "NAN"]), value=st.floats(0, 1))
    def finish(self, run: Run, state: str, value: float) -> None:
        name, lease, trial_id = run
        values = (float("nan"),) if state == "NAN" else (value,)
        finish = Finish(
            lease,
            trial_id,
            "PRUNED" if state == "PRUNED" else "COMPLETE",
            None if state == "PRUNED" else values,
            {},
        )
        before = self.state_of(trial_id)
        flushed = self.hand(name).flush(finishes=[finish])
        if before == "RUNNING" and lease.key not in flushed.lost:
            wanted = "COMPLETE" if state == "COMPLETE" else "PRUNED"
            assert self.state_of(trial_id) == wanted, "an acknowledged result is not there"
        again = self.hand(name).flush(finishes=[finish])
        assert (lease.key in again.lost) == (lease.key in flushed.lost)

    @rule(
        run=runs,
        blame=st.sampled_from(["blamed", "shared", "none"]),
        retry=st.booleans(),
        kind=st.sampled_from(["user_code", "timeout", "cancelled"]),
    )
    def fail(self, run: Run, blame: str, retry: bool, kind: Any) -> None:
        name, lease, trial_id = run
        failure = Failure(kind=kind, message="boom\x00", traceback="…")
        blamed, shared = blame == "blamed", blame == "shared"
        fail = Fail(lease, trial_id, failure, blamed, shared_death=shared, retry=retry)
        self.hand(name).flush(fails=[fail])

    @rule(held=consumes(leases))
    def hand_back_unstarted(self, held: tuple[str, Lease]) -> None:
        name, lease = held
        self.hand(name).flush(hand_backs=[HandBack(lease, None)])

    @rule(run=runs, step=st.one_of(st.none(), st.integers(1, 4)))
    def hand_back(self, run: Run, step: int | None) -> None:
        name, lease, _ = run
        self.hand(name).flush(hand_backs=[HandBack(lease, step)])

    @rule(target=leases, held=consumes(leases))
    def let_a_lease_run_out(self, held: tuple[str, Lease]) -> tuple[str, Lease]:
        expire(self.db, held[1])
        return held

    @rule(run=runs)
    def let_a_run_run_out(self, run: Run) -> None:
        expire(self.db, run[1])

    @rule(name=st.sampled_from(NAMES), run=runs)
    def renew(self, name: str, run: Run) -> None:
        """By its own worker, or by another, whose it is not."""
        flushed = self.hand(name).flush(renew=[run[1]])
        if name != run[0]:
            assert run[1].key in flushed.lost

    @rule()
    def reconcile(self) -> None:
        reconcile(self.db, settings=SETTINGS)

    # -- crashes, time, and other programs --------------------------------------------------

    @rule(
        run=runs,
        what=st.sampled_from(["report", "finish", "fail", "hand_back", "renew"]),
        deaf=st.booleans(),
    )
    def a_worker_dies_at_a_commit(self, run: Run, what: str, deaf: bool) -> None:
        """It comes back and sends the same again, or it does not: the next steps say."""
        name, lease, trial_id = run
        failure = Failure(kind="user_code", message="x")
        parts: dict[str, dict[str, Any]] = {
            "report": {"reports": [Report(lease, trial_id, 1, 0.9, {})]},
            "finish": {"finishes": [Finish(lease, trial_id, "COMPLETE", (0.9,), {})]},
            "fail": {"fails": [Fail(lease, trial_id, failure, True)]},
            "hand_back": {"hand_backs": [HandBack(lease, 9)]},
            "renew": {"renew": [lease]},
        }
        self.die(lambda db: Hand(db, name).flush(**parts[what]), deaf=deaf)

    @rule(held=consumes(leases), deaf=st.booleans())
    def a_worker_dies_as_it_starts(self, held: tuple[str, Lease], deaf: bool) -> None:
        name, lease = held
        start = Start(lease, point(lease))
        self.die(lambda db: Hand(db, name).flush(starts=[start]), deaf=deaf)

    @rule(name=st.sampled_from(NAMES), deaf=st.booleans())
    def a_worker_dies_as_it_claims(self, name: str, deaf: bool) -> None:
        self.die(lambda db: Hand(db, name).claim(3), deaf=deaf)

    @rule(commits=st.integers(0, 2), deaf=st.booleans())
    def a_reconciler_dies(self, commits: int, deaf: bool) -> None:
        self.die(lambda db: reconcile(db, settings=SETTINGS), commits=commits, deaf=deaf)

    @rule(
        ref=refs,
        what=st.sampled_from(["pause", "resume", "cancel", "raise", "delete", "submit"]),
        deaf=st.booleans(),
    )
    def the_api_dies(self, ref: str, what: str, deaf: bool) -> None:
        more = StudyPatch(trials=9)
        asked: dict[str, Callable[[Database], Any]] = {
            "pause": lambda db: pause(db, ref),
            "resume": lambda db: resume(db, ref),
            "cancel": lambda db: cancel(db, ref),
            "raise": lambda db: patch(db, ref, more, settings=SETTINGS),
            "delete": lambda db: delete(db, ref),
            "submit": lambda db: submit(db, definition(), settings=SETTINGS),
        }
        try:
            self.die(asked[what], deaf=deaf)
        except (ConflictError, InputError):
            return
        except NotFoundError:
            assert ref in self.gone
        if ref not in self.refs_left():
            assert ref in self.gone or (what, deaf) == ("delete", True)
            self.gone.add(ref)

    def die(self, what: Callable[[Database], Any], *, commits: int = 0, deaf: bool = False) -> None:
        """Do something that ends at a commit; what was not committed is not there."""
        before = everything(self.db)
        try:
            what(Dying(self.db, commits=commits, deaf=deaf))
        except CrashError:
            if commits == 0 and not deaf:
                assert everything(self.db) == before

    @rule(seconds=st.sampled_from(JUMPS))
    def the_clock_is_set(self, seconds: float) -> None:
        """Reconcilers never rest."""
        jump(self.db, seconds)
        reconcile(self.db, settings=SETTINGS)

    @rule(name=st.sampled_from(NAMES))
    def say_that_one_lives(self, name: str) -> None:
        register_worker(
            self.db,
            worker_id=name,
            host=name,
            pid=1,
            queue="cpu",
            device="cpu",
            version="0",
            lanes=1,
        )

    @rule(ref=refs, state=st.sampled_from([TrialState.COMPLETE, TrialState.FAIL, None]))
    def plain_optuna_makes_a_trial(self, ref: str, state: TrialState | None) -> None:
        if ref in self.gone:
            return
        study = get_study(self.db, ref)
        trial_id = self.plain.create_new_trial(self.plain.get_study_id_from_name(study.name))
        if state is not None:
            assert tell_outside(self.plain, trial_id, state, 0.99)
        assert get_study(self.db, ref).progress == study.progress

    @rule(
        run=runs,
        state=st.sampled_from([TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL]),
    )
    def plain_optuna_ends_a_trial_of_ours(self, run: Run, state: TrialState) -> None:
        """Its worker hears of it with its next word; of one that nobody holds nobody would."""
        name, lease, trial_id = run
        if lease.key in self.hand(name).flush(renew=[lease]).lost or not self.holds(run):
            return
        assert tell_outside(self.plain, trial_id, state, 0.77)
        assert self.hand(name).flush(renew=[lease]).lost == {lease.key}
        assert self.state_of(trial_id) == state.name

    def holds(self, run: Run) -> bool:
        _, lease, trial_id = run
        held = select(slots.c.trial_id).where(
            slots.c.id == lease.slot_id,
            slots.c.fencing_token == lease.fencing_token,
            slots.c.state == "leased",
        )
        with self.db.read() as connection:
            return connection.execute(held).scalar() == trial_id

    # -- what must hold ---------------------------------------------------------------------

    @invariant()
    def invariants_hold(self) -> None:
        check_invariants(self.db, settings=SETTINGS)
        self.watch.look()

    def teardown(self) -> None:
        drain(self.db, list(self.refs_left()))
        check_invariants(self.db, settings=SETTINGS)
        self.watch.look()

    def refs_left(self) -> set[str]:
        with self.db.read() as connection:
            there = select(studies.c.public_id).where(studies.c.state != GONE)
            return set(connection.execute(there).scalars())

    def state_of(self, trial_id: int) -> str | None:
        with self.db.read() as connection:
            return connection.execute(
                select(trials.c.state).where(trials.c.trial_id == trial_id)
            ).scalar()


def changed(kind: str, trials: int, parallel: int, failures: int) -> dict[str, Any]:
    """Return a small study's definition, as changes."""
    return {
        "budget": {"trials": trials, "max_failures": failures},
        "resources": {"parallel_trials": parallel},
        **KINDS[kind],
    }


@pytest.mark.timeout(7200)
def test_every_invariant_survives_whatever_happens(db: Database) -> None:
    with plain_optuna(db.url) as storage:
        machine = type("LifecycleOn", (Lifecycle,), {"db": in_a_hurry(db), "plain": storage})
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=int(os.environ.get("TUNER_MODEL_EXAMPLES", "10")),
                stateful_step_count=50,
                deadline=None,
                suppress_health_check=list(HealthCheck),
                print_blob=True,
                database=None,
            ),
        )
