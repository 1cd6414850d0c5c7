"""The lifecycle's promises in memory, for one worker; `store_contract.py` holds it to them.

Left out: back-off between attempts, leases that run out, quotas, and the end of a study.
"""

import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from typing import Any

from tuner_service.errors import UnavailableError
from tuner_service.lifecycle.attempts import BLAMED_ALONE, SHARED_DEATHS_BEFORE_ALONE
from tuner_service.lifecycle.claim import FairShare
from tuner_service.lifecycle.messages import (
    Batch,
    Claimed,
    Fail,
    Finish,
    Flushed,
    HandBack,
    Lease,
    Start,
    StartedTrial,
    StudyWork,
)
from tuner_service.search.history import HistoryState, HistoryTrial


@dataclass
class FakeSlot:
    """A slot as the database would hold it; `attempts` counts its trials."""

    lease: Lease
    state: str = "open"
    trials: list[int] = field(default_factory=list)
    blamed: int = 0
    shared_deaths: int = 0
    errors: set[tuple[str, int | None]] = field(default_factory=set)


@dataclass
class FakeTrial:
    """A trial as Optuna's tables would hold it."""

    study_id: int
    number: int
    params: dict[str, Any]
    state: HistoryState = "RUNNING"
    values: tuple[float, ...] | None = None
    steps: dict[int, float] = field(default_factory=dict)


class FakeSlotStore:
    """Slots in memory. `away` makes every call fail; `lose_answers` commits and then fails.

    Attributes:
        stop_reasons: By study, why its running trials are to stop; nothing of it is claimed.
        share: The most that a claim takes with `fair_share`.
    """

    def __init__(self, *, max_attempts: int = 3) -> None:
        self.max_attempts = max_attempts
        self.lock = threading.Lock()
        self.slots: dict[int, FakeSlot] = {}
        self.works: dict[int, StudyWork] = {}
        self.parallel: dict[int, int] = {}
        self.priority: dict[int, int] = {}
        self.stop_reasons: dict[int, str] = {}
        self.away = False
        self.lose_answers = 0
        self.trials: dict[int, FakeTrial] = {}
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

    def add_study(
        self,
        study_id: int,
        points: list[dict[str, Any] | None],
        *,
        parallel: int = 64,
        priority: int = 0,
        **more: Any,
    ) -> None:
        name = f"study-{study_id}"
        self.works[study_id] = StudyWork(study_id, f"id{study_id}", name, study_id, more, None)
        self.parallel[study_id] = parallel
        self.priority[study_id] = priority
        for number, point in enumerate(points):
            slot_id = study_id * 1000 + number
            lease = Lease(slot_id, 0, study_id, number, point, None, None, None, None, 0, False)
            self.slots[slot_id] = FakeSlot(lease)

    # Claim

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
            limit = min(limit, self.share) if fair_share else limit
            leases: list[Lease] = []
            while len(leases) < limit:
                room = limit if loops is None else loops - sum(map(self._is_loop, leases))
                ready = [
                    slot
                    for slot in self.slots.values()
                    if self._fits(slot)
                    and slot.lease.study_id not in exclude_studies
                    and not (slot.lease.exclusive and (exclude_exclusive or leases))
                    and (room > 0 or not self._is_loop(slot.lease))
                ]
                if not ready:
                    break
                leases.append(self._lease(min(ready, key=self._place)))
                if leases[-1].exclusive:
                    break
            return Claimed(leases, {i: self.works[i] for i in {one.study_id for one in leases}})

    def _is_loop(self, lease: Lease) -> bool:
        return bool(self.works[lease.study_id].definition.get("is_user_loop"))

    def _fits(self, slot: FakeSlot) -> bool:
        """Return whether the slot is open and its study's `parallel_trials` lets it go."""
        study_id = slot.lease.study_id
        taken = self._leased(study_id)
        if slot.lease.trial_id is None:  # what was handed back is RUNNING already
            taken += sum(s.state == "open" for s in self._of(study_id) if s.lease.trial_id)
        is_open = slot.state == "open" and study_id not in self.stop_reasons
        return is_open and taken < self.parallel[study_id]

    def _place(self, slot: FakeSlot) -> tuple[Any, ...]:
        lease = slot.lease
        study = (-self.priority[lease.study_id], self._leased(lease.study_id), lease.study_id)
        return (not lease.exclusive, *study, lease.trial_id is None, lease.number)

    def _leased(self, study_id: int) -> int:
        return sum(slot.state == "leased" for slot in self._of(study_id))

    def _of(self, study_id: int) -> list[FakeSlot]:
        return [slot for slot in self.slots.values() if slot.lease.study_id == study_id]

    def _lease(self, slot: FakeSlot) -> Lease:
        slot.state = "leased"
        slot.lease = replace(
            slot.lease,
            fencing_token=slot.lease.fencing_token + 1,
            attempt=len(slot.trials) + (slot.lease.trial_id is None),
        )
        return slot.lease

    # Flush

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
        outcomes = [*batch.finishes, *batch.fails, *batch.hand_backs]
        said = [*batch.starts, *batch.reports, *outcomes]
        leases = [
            *(one.lease for one in said),
            *batch.renew,
            *(one for one, _ in batch.checkpoints),
        ]
        lost = {one.key for one in leases if not self._is_known(one)}
        result = Flushed({}, lost, {}, self.drop_models)
        self.drop_models = []
        for start in batch.starts:
            if slot := self._held(start.lease, result):
                self._start(slot, start, result)
        for report in batch.reports:
            if (slot := self._held(report.lease, result)) and self._runs(slot, report.trial_id):
                self.reports.setdefault(report.trial_id, {})[report.step] = report.value
                if report.value is not None:
                    self.trials[report.trial_id].steps[report.step] = report.value
        for finish in batch.finishes:
            if (slot := self._held(finish.lease, result)) and self._runs(slot, finish.trial_id):
                self._finish(slot, finish)
        for fail in batch.fails:
            if slot := self._held(fail.lease, result):
                self._fail(slot, fail)
        for hand_back in batch.hand_backs:
            if slot := self._held(hand_back.lease, result):
                self._hand_back(slot, hand_back)
        for lease, step in batch.checkpoints:
            if slot := self._held(lease, result):
                slot.lease = replace(slot.lease, checkpoint_step=step)
                self.checkpoints.append((lease.number, step))
        for lease in leases:
            if self._held(lease, result) and (why := self.stop_reasons.get(lease.study_id)):
                result.stop[lease.key] = why
        return result

    def _is_known(self, lease: Lease) -> bool:
        """Return whether the slot is this lease's, or was until its result; else it is lost."""
        slot = self.slots[lease.slot_id]
        return slot.lease.key == lease.key and slot.state in ("leased", "done")

    def _held(self, lease: Lease, result: Flushed) -> FakeSlot | None:
        slot = self.slots[lease.slot_id]
        return slot if slot.state == "leased" and lease.key not in result.lost else None

    def _runs(self, slot: FakeSlot, trial_id: int) -> bool:
        return slot.lease.trial_id == trial_id

    def _start(self, slot: FakeSlot, start: Start, result: Flushed) -> None:
        lease, reason = slot.lease, self.stop_reasons.get(slot.lease.study_id)
        if lease.parameters not in (None, start.parameters):
            result.lost.add(lease.key)
            return
        if lease.trial_id is None and reason is not None:
            if reason == "cancelled":
                slot.state = "cancelled"
                result.lost.add(lease.key)
            return
        trial_id = lease.trial_id
        if trial_id is None:
            number = sum(one.study_id == lease.study_id for one in self.trials.values())
            trial_id = len(self.trials) + 1
            self.trials[trial_id] = FakeTrial(lease.study_id, number, start.parameters)
            slot.trials.append(trial_id)
            slot.lease = replace(
                lease, parameters=start.parameters, trial_id=trial_id, trial_number=number
            )
        result.started[lease.key] = StartedTrial(trial_id, self.trials[trial_id].number)

    def _finish(self, slot: FakeSlot, finish: Finish) -> None:
        slot.state = "done"
        trial = self.trials[finish.trial_id]
        trial.state, trial.values = finish.state, finish.values
        self.finishes.append(finish)

    def _fail(self, slot: FakeSlot, fail: Fail) -> None:
        lease, failure = slot.lease, fail.failure
        if lease.trial_id is not None:
            self.trials[lease.trial_id].state = "FAIL"
        cap = min(self.max_attempts, BLAMED_ALONE) if lease.exclusive else self.max_attempts
        error = (failure.message, failure.step)
        is_repeated = failure.traceback is not None and error in slot.errors
        if failure.traceback is not None:
            slot.errors.add(error)
        slot.blamed += fail.blamed
        slot.shared_deaths += fail.shared_death
        if self.stop_reasons.get(lease.study_id) == "cancelled":
            slot.state = "cancelled"
        elif not fail.retry or is_repeated or slot.blamed >= cap:
            slot.state = "failed"
        else:
            slot.state = "open"
        step = lease.checkpoint_step if fail.checkpoint_step is None else fail.checkpoint_step
        slot.lease = replace(
            lease,
            trial_id=None,
            trial_number=None,
            exclusive=lease.exclusive or slot.shared_deaths >= SHARED_DEATHS_BEFORE_ALONE,
            checkpoint_step=step,
        )
        self.fails.append(fail)

    def _hand_back(self, slot: FakeSlot, hand_back: HandBack) -> None:
        if self.stop_reasons.get(slot.lease.study_id) == "cancelled":
            slot.state = "cancelled"
            if slot.lease.trial_id is not None:
                self.trials[slot.lease.trial_id].state = "FAIL"
            return
        slot.state = "open"
        if hand_back.checkpoint_step is not None:
            slot.lease = replace(slot.lease, checkpoint_step=hand_back.checkpoint_step)
        self.hand_backs.append(hand_back)
        self.handed_back_at.append(time.monotonic())

    # Reads

    def history(
        self, study_id: int, *, after_trial_id: int, unfinished: Collection[int]
    ) -> list[HistoryTrial]:
        with self.lock:
            self._check_away()
            return [
                HistoryTrial(
                    trial_id, one.number, one.state, one.params, {}, one.values, dict(one.steps)
                )
                for trial_id, one in self.trials.items()
                if one.study_id == study_id
                and (trial_id > after_trial_id or trial_id in unfinished)
            ]

    def others(self, study_id: int) -> FairShare:
        with self.lock:
            self._check_away()
            return FairShare(self.idle, self.part)

    def exclusive_slot(self, busy_with: Collection[int]) -> int | None:
        with self.lock:
            self._check_away()
            waiting = (i for i, s in self.slots.items() if s.lease.exclusive and s.state == "open")
            return next(waiting, None)

    # What others do

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
