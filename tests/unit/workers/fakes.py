"""An in-memory ledger and study, with the lifecycle's promises in a few lines."""

import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

from tuner_service.definition import Pruner
from tuner_service.errors import UnavailableError
from tuner_service.lifecycle.claim import FairShare
from tuner_service.lifecycle.messages import (
    Batch,
    Claimed,
    Fail,
    Finish,
    Flushed,
    HandBack,
    Lease,
    StartedTrial,
    StudyWork,
)
from workers.supervisor.studies import ActiveStudy


@dataclass
class FakeSlot:
    """A slot as the database would hold it."""

    lease: Lease
    state: str = "open"
    trials: list[int] = field(default_factory=list)


class FakeSlotStore:
    """Slots in memory. `away` makes every call fail; `lose_answers` commits and then fails."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.slots: dict[int, FakeSlot] = {}
        self.works: dict[int, StudyWork] = {}
        self.parallel: dict[int, int] = {}
        self.stop_reasons: dict[int, str] = {}
        self.away = False
        self.lose_answers = 0
        self.finishes: list[Finish] = []
        self.fails: list[Fail] = []
        self.hand_backs: list[HandBack] = []
        self.handed_back_at: list[float] = []
        self.reports: dict[int, dict[int, float | None]] = {}
        self.checkpoints: list[tuple[int, int]] = []
        self.claims: list[int] = []
        self.share = 1000
        self.idle = 0
        self.part = 1000
        self.flushes = 0
        self.flushed = threading.Condition(self.lock)
        self.drop_models: list[str] = []
        self._trials = 0

    def add_study(
        self, study_id: int, points: list[dict[str, Any] | None], *, parallel: int = 64, **more: Any
    ) -> None:
        name = f"study-{study_id}"
        self.works[study_id] = StudyWork(study_id, f"id{study_id}", name, study_id, more, None)
        self.parallel[study_id] = parallel
        for number, point in enumerate(points):
            slot_id = study_id * 1000 + number
            lease = Lease(slot_id, 0, study_id, number, point, None, None, None, None, 0, False)
            self.slots[slot_id] = FakeSlot(lease)

    def claim(
        self,
        *,
        limit: int,
        exclude_exclusive: bool,
        exclude_studies: Collection[int],
        fair_share: bool,
        loops: int | None = None,
    ) -> Claimed:
        with self.lock:
            self._check_away()
            self.claims.append(limit)
            if fair_share:
                limit = min(limit, self.share)
            leases = []
            for slot in sorted(self.slots.values(), key=lambda slot: not slot.lease.exclusive):
                if len(leases) < limit and self._claimable(
                    slot, exclude_exclusive, exclude_studies
                ):
                    attempt = slot.lease.attempt + (slot.lease.trial_id is None)
                    slot.lease = replace(
                        slot.lease, fencing_token=slot.lease.fencing_token + 1, attempt=attempt
                    )
                    slot.state = "leased"
                    leases.append(slot.lease)
            ids = {lease.study_id for lease in leases}
            return Claimed(leases, {i: self.works[i] for i in ids})

    def _claimable(
        self, slot: FakeSlot, exclude_exclusive: bool, exclude_studies: Collection[int]
    ) -> bool:
        study = slot.lease.study_id
        leased = sum(s.state == "leased" and s.lease.study_id == study for s in self.slots.values())
        return (
            slot.state == "open"
            and study not in exclude_studies
            and study not in self.stop_reasons
            and leased < self.parallel[study]
            and not (slot.lease.exclusive and exclude_exclusive)
        )

    def flush(self, batch: Batch) -> Flushed:
        with self.lock:
            self._check_away()
            flushed = self._write(batch)
            self.flushes += 1
            self.flushed.notify_all()
            if self.lose_answers:
                self.lose_answers -= 1
                raise UnavailableError("the connection broke during COMMIT")
            return flushed

    def _write(self, batch: Batch) -> Flushed:
        result = Flushed({}, set(), {}, self.drop_models)
        self.drop_models = []
        for start in batch.starts:
            if slot := self._held(start.lease, result):
                if slot.lease.trial_id is None:
                    self._trials += 1
                    slot.trials.append(self._trials)
                    parameters = start.parameters
                    slot.lease = replace(
                        slot.lease, trial_id=self._trials, trial_number=self._trials,
                        parameters=parameters,
                    )  # fmt: skip
                trial = slot.lease.trial_id or 0
                result.started[start.lease.key] = StartedTrial(trial, number=100 + trial)
        for report in batch.reports:
            if self._held(report.lease, result):
                self.reports.setdefault(report.trial_id, {})[report.step] = report.value
        for lease, step in batch.checkpoints:
            if slot := self._held(lease, result):
                slot.lease = replace(slot.lease, checkpoint_step=step)
                self.checkpoints.append((lease.number, step))
        for finish in batch.finishes:
            if slot := self._held(finish.lease, result):
                slot.state = "done"
                self.finishes.append(finish)
        for fail in batch.fails:
            if slot := self._held(fail.lease, result):
                slot.state = "open" if fail.retry else "failed"
                self.fails.append(fail)
                exclusive = slot.lease.exclusive or self._shared_deaths(slot) >= 2
                slot.lease = replace(
                    slot.lease, trial_id=None, trial_number=None, exclusive=exclusive,
                    checkpoint_step=fail.checkpoint_step,
                )  # fmt: skip
        for hand_back in batch.hand_backs:
            if slot := self._held(hand_back.lease, result):
                slot.state = "open"
                slot.lease = replace(slot.lease, checkpoint_step=hand_back.checkpoint_step)
                self.hand_backs.append(hand_back)
                self.handed_back_at.append(time.monotonic())
        for lease in batch.renew:
            if self._held(lease, result) and lease.study_id in self.stop_reasons:
                result.stop[lease.key] = self.stop_reasons[lease.study_id]
        return result

    def _shared_deaths(self, slot: FakeSlot) -> int:
        mine = [f for f in self.fails if f.lease.slot_id == slot.lease.slot_id]
        return sum(f.shared_death for f in mine)

    def _held(self, lease: Lease, result: Flushed) -> FakeSlot | None:
        slot = self.slots[lease.slot_id]
        if slot.state == "leased" and slot.lease.fencing_token == lease.fencing_token:
            return slot
        result.lost.add(lease.key)
        return None

    def history(
        self, study_id: int, *, after_trial_id: int, unfinished: Collection[int]
    ) -> list[Any]:
        with self.lock:
            self._check_away()
            return []

    def others(self, study_id: int) -> FairShare:
        with self.lock:
            self._check_away()
            return FairShare(self.idle, self.part)

    def exclusive_slot(self, busy_with: Collection[int]) -> int | None:
        with self.lock:
            self._check_away()
            waiting = (i for i, s in self.slots.items() if s.lease.exclusive and s.state == "open")
            return next(waiting, None)

    def make_alone(self, slot_id: int) -> None:
        with self.lock:
            slot = self.slots[slot_id]
            slot.lease = replace(slot.lease, exclusive=True)

    def steal(self, slot_id: int) -> None:
        """Give the slot to another worker, as a reaper would after a lost lease."""
        with self.lock:
            slot = self.slots[slot_id]
            slot.lease = replace(slot.lease, fencing_token=slot.lease.fencing_token + 1)

    def ask_stop(self, study_id: int, reason: str) -> None:
        with self.lock:
            self.stop_reasons[study_id] = reason

    def states(self) -> list[str]:
        with self.lock:
            return [slot.state for slot in self.slots.values()]

    def wait_for(self, condition: Callable[[], bool], *, seconds: float = 20.0) -> None:
        """Wait for a flush that makes `condition` true."""
        with self.lock:
            if not self.flushed.wait_for(condition, timeout=seconds):
                raise TimeoutError("the condition did not come true")

    def _check_away(self) -> None:
        if self.away:
            raise UnavailableError("away")


class FakeSearch:
    """Asks 1, 2, 3, …; prunes trials whose reported value is negative."""

    def __init__(self, extra: dict[str, Any] | None = None) -> None:
        self.extra = extra or {}
        self.asked: list[int] = []
        self.finished_before_ask: list[int] = []
        self.log: list[tuple[Any, ...]] = []
        self.values: dict[int, float] = {}
        self.last_trial_id = 0
        self.unfinished: set[int] = set()

    @property
    def has_results(self) -> bool:
        return bool(self.values)

    def merge(self, trials: Any) -> None:
        pass

    def ask(self, slot: int, fixed: Any) -> dict[str, Any]:
        self.asked.append(slot)
        self.finished_before_ask.append(sum(entry[0] == "finished" for entry in self.log))
        return {"value": float(slot), **self.extra, **(fixed or {})}

    def withdraw(self, params: Any) -> None:
        self.log.append(("withdrawn",))

    def started(self, trial_id: int, params: Any) -> None:
        self.log.append(("started", trial_id))

    def report(self, trial_id: int, step: int, value: float) -> None:
        self.values[trial_id] = value

    def finished(self, trial_id: int, state: str, values: Any, infeasible: bool) -> None:
        self.log.append(("finished", trial_id, state, values, infeasible))

    def forget(self, trial_id: int) -> None:
        self.log.append(("forgotten", trial_id))

    def should_prune(self, trial_id: int) -> bool:
        return self.values[trial_id] < 0


class FakeStudy(ActiveStudy):
    """A study whose specs are its parameters, so that tests can tell the fake trainer anything."""

    def spec(self, parameters: dict[str, Any]) -> dict[str, Any]:
        return dict(parameters)


def open_fake_study(work: StudyWork) -> ActiveStudy:
    """Open a study from what `add_study` put in place of a definition."""
    options = work.definition
    definition: Any = SimpleNamespace(
        is_user_loop=options.get("is_user_loop", False),
        pruner=Pruner(type=options.get("pruner", "none")),
        budget=SimpleNamespace(trial_timeout=options.get("trial_timeout")),
        training=SimpleNamespace(keep_models=options.get("keep_models", 1)),
    )
    search: Any = FakeSearch(options.get("ask"))
    return FakeStudy(work, definition, search)
