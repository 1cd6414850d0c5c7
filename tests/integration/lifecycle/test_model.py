"""A model of the whole lifecycle, attacked at random.

Workers claim, start, report, end, hand back, vanish with their leases in hand and come back as
zombies; a transaction dies before its commit, or its answer is lost and it is sent again; people
submit, pause, resume, raise, cancel and delete meanwhile. After every step every invariant must
hold. At the end an honest worker must be able to bring every study to its end.

`TUNER_MODEL_EXAMPLES` says how many runs (10 by default) of 50 steps.
"""

import os
import random
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
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import delete as sql_delete
from sqlalchemy import select

from tests.integration.lifecycle.hands import (
    SETTINGS,
    CrashError,
    Dying,
    Hand,
    definition,
    expire,
    in_a_hurry,
)
from tests.invariants import Watch, check_invariants
from tuner_service.errors import ConflictError, IdempotencyError, InputError, NotFoundError
from tuner_service.lifecycle.messages import Fail, Finish, HandBack, Lease, Report, Start
from tuner_service.lifecycle.reconcile import reconcile
from tuner_service.lifecycle.studies import (
    StudyPatch,
    cancel,
    delete,
    get_study,
    patch,
    pause,
    resume,
)
from tuner_service.lifecycle.submit import submit
from tuner_service.lifecycle.trials import get_trial
from tuner_service.lifecycle.views import Failure
from tuner_service.storage import Database
from tuner_service.storage.optuna_rows import delete_study
from tuner_service.storage.schema import (
    epochs,
    idempotency_keys,
    slots,
    studies,
    trials,
    workers,
)

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
ENDED = ("completed", "cancelled", "failed")

Run = tuple[str, Lease, int]


class Lifecycle(RuleBasedStateMachine):
    """Studies, two workers that may vanish, and what each of them believes."""

    db: Database

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
        return self.submit(kind, trials=3, parallel=2, failures=1)

    # -- people -----------------------------------------------------------------------------

    @rule(
        target=refs,
        kind=st.sampled_from(sorted(KINDS)),
        trials=st.integers(1, 4),
        parallel=st.integers(1, 4),
        failures=st.integers(0, 2),
    )
    def submit(self, kind: str, trials: int, parallel: int, failures: int) -> str:
        return self.submit_with(kind, trials, parallel, failures, key=None)[0]

    @rule(target=refs, kind=st.sampled_from(sorted(KINDS)), key=st.sampled_from("ab"))
    def submit_with_key(self, kind: str, key: str) -> Any:
        known = self.keys.get(key)
        if known is not None and known[1] in self.gone:
            return multiple()
        if known is not None and known[0] != kind:
            with pytest.raises(IdempotencyError):
                self.submit_with(kind, 2, 2, 1, key=key)
            return multiple()
        study, new = self.submit_with(kind, 2, 2, 1, key=key)
        assert new == (known is None), "I6"
        assert known is None or known[1] == study, "I6"
        self.keys[key] = (kind, study)
        return study

    def submit_with(
        self, kind: str, trials: int, parallel: int, failures: int, *, key: str | None
    ) -> tuple[str, bool]:
        changes = {
            "budget": {"trials": trials, "max_failures": failures},
            "resources": {"parallel_trials": parallel},
            **KINDS[kind],
        }
        study, new = submit(self.db, definition(**changes), settings=SETTINGS, idempotency_key=key)
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
            assert view.state in ("cancelled", "failed")
        except InputError:
            assert view.definition["sampler"]["type"] == "grid"
        else:
            assert raised.progress.total == view.progress.total + more
            assert raised.state == ("running" if view.state == "completed" else view.state)

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

    # -- workers ----------------------------------------------------------------------------

    @rule(
        target=leases,
        name=st.sampled_from(NAMES),
        limit=st.integers(1, 3),
        exclude_alone=st.booleans(),
    )
    def claim(self, name: str, limit: int, exclude_alone: bool) -> Any:
        claimed = self.hand(name).claim(limit, exclude_alone=exclude_alone).leases
        if any(lease.alone for lease in claimed):
            assert len(claimed) == 1
            assert not exclude_alone
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

    # -- crashes ----------------------------------------------------------------------------

    @rule(run=runs, what=st.sampled_from(["report", "finish", "fail", "hand_back"]))
    def die_before_the_commit(self, run: Run, what: str) -> None:
        name, lease, trial_id = run
        parts: dict[str, dict[str, Any]] = {
            "report": {"reports": [Report(lease, trial_id, 1, 0.9, {})]},
            "finish": {"finishes": [Finish(lease, trial_id, "COMPLETE", (0.9,), {})]},
            "fail": {"fails": [Fail(lease, trial_id, Failure(kind="data", message="x"), True)]},
            "hand_back": {"hand_backs": [HandBack(lease, 9)]},
        }
        before = self.state_of(trial_id)
        with pytest.raises(CrashError):
            Hand(Dying(self.db), name).flush(**parts[what])
        assert self.state_of(trial_id) == before

    @rule(name=st.sampled_from(NAMES))
    def die_while_claiming(self, name: str) -> None:
        try:
            claimed = Hand(Dying(self.db), name).claim(3)
        except CrashError:
            return
        assert not claimed.leases

    @precondition(lambda self: self.db is not None)
    @rule(ref=refs)
    def die_while_cancelling(self, ref: str) -> None:
        if ref in self.gone:
            return
        before = get_study(self.db, ref).state
        with pytest.raises(CrashError):
            cancel(Dying(self.db), ref)
        assert get_study(self.db, ref).state == before

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
            return set(connection.execute(select(studies.c.public_id)).scalars())

    def state_of(self, trial_id: int) -> str | None:
        with self.db.read() as connection:
            return connection.execute(
                select(trials.c.state).where(trials.c.trial_id == trial_id)
            ).scalar()


def point(lease: Lease) -> dict[str, Any]:
    """Return the slot's parameters, or what a sampler would have said."""
    if lease.parameters is not None:
        return lease.parameters
    return {"learning_rate": random.Random(lease.slot_id).uniform(1e-4, 1e-1)}


def drain(db: Database, refs: list[str]) -> None:
    """I4: one honest worker and the database are enough to end every study."""
    for ref in refs:
        if get_study(db, ref).state == "paused":
            resume(db, ref)
    with db.read() as connection:
        held = connection.execute(
            select(slots.c.id, slots.c.epoch).where(slots.c.state == "leased")
        ).all()
    for slot_id, epoch in held:
        expire(db, stale_lease(slot_id, epoch))
    reconcile(db, settings=SETTINGS)
    honest = Hand(db, "honest")
    while leases := honest.claim(8).leases:
        for lease in leases:
            trial_id = lease.trial_id
            if trial_id is None:
                start = Start(lease, point(lease))
                trial_id = honest.flush(starts=[start]).started[lease.key].trial_id
            assert not honest.finish(lease, trial_id, 0.5).lost
    for ref in refs:
        view = get_study(db, ref)
        assert view.state in ENDED, f"I4: {view.name} is {view.state}: {view.progress}"
        assert view.progress.open == view.progress.leased == 0, f"I4: {view.progress}"
        if view.best_trial is not None:
            assert get_trial(db, ref, view.best_trial.number).state == "COMPLETE"


def stale_lease(slot_id: int, epoch: int) -> Lease:
    return Lease(slot_id, epoch, 0, 0, None, None, None, None, None, 1, False)


def empty(db: Database) -> None:
    """Delete every study; the tables stay."""
    with db.write() as connection:
        ids = list(connection.execute(select(studies.c.optuna_study_id)).scalars())
        for table in (epochs, trials, slots, idempotency_keys, workers, studies):
            connection.execute(sql_delete(table))
        for optuna_id in ids:
            delete_study(connection, optuna_id)


@pytest.mark.timeout(3600)
def test_every_invariant_survives_whatever_happens(db: Database) -> None:
    machine = type("LifecycleOn", (Lifecycle,), {"db": in_a_hurry(db)})
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
