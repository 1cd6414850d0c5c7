"""The fake store keeps the contract of the database's."""

from typing import Any, Literal

import pytest

from tests.unit.workers.fake_store import FakeSlotStore
from tests.unit.workers.store_contract import SlotStoreContract
from tuner_service.lifecycle.messages import Lease


class FakeWorld:
    """The contract's world in memory."""

    def __init__(self) -> None:
        self.store = FakeSlotStore()

    def submit(
        self, slots: int, *, priority: int = 0, parallel: int = 64, user_loop: bool = False
    ) -> int:
        study_id = len(self.store.works) + 1
        self.store.add_study(
            study_id, [None] * slots, priority=priority, parallel=parallel, is_user_loop=user_loop
        )
        return study_id

    def lose(self, lease: Lease) -> None:
        self.store.steal(lease.slot_id)

    def ask_stop(self, study_id: int, reason: Literal["paused", "cancelled"]) -> None:
        self.store.ask_stop(study_id, reason)

    def make_exclusive(self, lease: Lease) -> None:
        self.store.make_alone(lease.slot_id)

    def contents(self) -> Any:
        store = self.store
        return repr((store.slots, store.trials, store.reports, store.fails, store.hand_backs))


class TestFakeSlotStore(SlotStoreContract):
    @pytest.fixture
    def world(self) -> FakeWorld:
        return FakeWorld()
