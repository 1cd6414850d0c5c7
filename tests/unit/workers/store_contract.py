"""What every `SlotStore` keeps: the database's, and the fake by which the supervisor is tested."""

from collections.abc import Sequence
from typing import Any, Literal, Protocol

import pytest

from tuner_service.lifecycle.attempts import SHARED_DEATHS_BEFORE_ALONE
from tuner_service.lifecycle.messages import (
    Batch,
    Claimed,
    Fail,
    Finish,
    Flushed,
    HandBack,
    Lease,
    Report,
    Start,
)
from tuner_service.reads.views import Failure
from workers.supervisor.store import SlotStore

POINT = {"learning_rate": 0.01}
OTHER_POINT = {"learning_rate": 0.02}
OLD_WORDS = ("start", "report", "checkpoint", "finish", "fail", "hand back", "renew")


class World(Protocol):
    """A store, and what happens to its slots without it."""

    store: SlotStore

    def submit(
        self, slots: int, *, priority: int = 0, parallel: int = 64, user_loop: bool = False
    ) -> int:
        """Store a study whose sampler is asked; return its id. Back-off between attempts is 0."""

    def lose(self, lease: Lease) -> None:
        """Let the lease go to another worker."""

    def ask_stop(self, study_id: int, reason: Literal["paused", "cancelled"]) -> None:
        """Pause or cancel a study."""

    def make_exclusive(self, lease: Lease) -> None:
        """Let the slot run alone."""

    def contents(self) -> Any:
        """Return all that a flush may change, to be compared."""


def failure(number: int = 0, *, traceback: str | None = None) -> Failure:
    return Failure(kind="user_code", message=f"boom {number}", traceback=traceback)


class SlotStoreContract:
    """Inherit it and provide `world`."""

    @pytest.fixture
    def world(self) -> World:
        raise NotImplementedError

    # The order of claiming

    def test_the_higher_priority_is_claimed_first(self, world: World) -> None:
        low, high = world.submit(2), world.submit(2, priority=5)
        assert _studies(_claim(world.store, 3)) == [high, high, low]

    def test_the_fewest_running_go_first_then_the_oldest(self, world: World) -> None:
        old = world.submit(4)
        assert _studies(_claim(world.store, 2)) == [old, old]
        new = world.submit(4)
        assert _studies(_claim(world.store, 4)) == [new, new, old, new]

    def test_a_studys_slots_are_claimed_once_and_in_their_order(self, world: World) -> None:
        study = world.submit(3)
        first, second = _claim(world.store, 2), _claim(world.store, 2)
        assert [lease.number for lease in first.leases] == [0, 1]
        assert [lease.number for lease in second.leases] == [2]
        assert {lease.attempt for lease in first.leases} == {1}
        assert list(first.studies) == [study]
        assert _claim(world.store, 0) == _claim(world.store, 2) == Claimed([], {})

    def test_excluded_studies_give_nothing(self, world: World) -> None:
        mine, other = world.submit(2), world.submit(2)
        assert _studies(_claim(world.store, 4, exclude_studies={other})) == [mine, mine]

    def test_no_more_training_loops_are_claimed_than_asked_for(self, world: World) -> None:
        loop, other = world.submit(3, priority=1, user_loop=True), world.submit(2)
        assert _studies(_claim(world.store, 3, loops=1)) == [loop, other, other]
        assert _claim(world.store, 3, loops=0).leases == []
        assert _studies(_claim(world.store, 3)) == [loop, loop]

    # Exclusive slots

    def test_an_exclusive_slot_goes_first_and_by_itself(self, world: World) -> None:
        world.submit(4)
        *_, last = leases = _claim(world.store, 4).leases
        world.store.flush(Batch(hand_backs=[HandBack(lease, None) for lease in leases]))
        world.make_exclusive(last)
        (lease,) = _claim(world.store, 4).leases
        assert (lease.slot_id, lease.exclusive) == (last.slot_id, True)

    def test_an_exclusive_slot_is_left_where_others_run(self, world: World) -> None:
        world.submit(2)
        first, _ = _claim(world.store, 2).leases
        assert world.store.exclusive_slot([first.study_id]) is None
        world.store.flush(Batch(hand_backs=[HandBack(first, None)]))
        world.make_exclusive(first)
        assert _claim(world.store, 4, exclude_exclusive=True).leases == []
        assert world.store.exclusive_slot([first.study_id]) == first.slot_id

    # parallel_trials

    def test_parallel_trials_is_never_passed(self, world: World) -> None:
        world.submit(5, parallel=2)
        leases = _claim(world.store, 9).leases
        assert len(leases) == 2
        assert _claim(world.store, 9).leases == []
        _finish(world.store, leases[0], _start(world.store, leases[0]))
        assert len(_claim(world.store, 9).leases) == 1

    def test_a_trial_that_was_handed_back_keeps_its_place(self, world: World) -> None:
        world.submit(5, parallel=2)
        leases = _claim(world.store, 9).leases
        trials = [_start(world.store, lease) for lease in leases]
        world.store.flush(Batch(hand_backs=[HandBack(lease, None) for lease in leases]))
        assert [lease.trial_id for lease in _claim(world.store, 9).leases] == trials
        assert _claim(world.store, 9).leases == []

    # Fencing

    @pytest.mark.parametrize("word", OLD_WORDS)
    def test_a_write_with_an_old_token_is_lost_and_changes_nothing(
        self, world: World, word: str
    ) -> None:
        world.submit(2)
        (lease,) = _claim(world.store, 1).leases
        trial = _start(world.store, lease)
        world.lose(lease)
        before = world.contents()
        flushed = world.store.flush(_batch(word, lease, trial))
        assert flushed == Flushed({}, {lease.key}, {}, [])
        assert world.contents() == before

    def test_a_report_of_another_slots_trial_changes_nothing(self, world: World) -> None:
        world.submit(2)
        mine, other = _claim(world.store, 2).leases
        trial = _start(world.store, mine)
        _start(world.store, other)
        before = world.contents()
        world.store.flush(Batch(reports=[Report(other, trial, 1, 0.5, {})]))
        _finish(world.store, other, trial)
        assert world.contents() == before

    # The same flush twice

    @pytest.mark.parametrize("word", OLD_WORDS)
    def test_a_flush_written_twice_changes_nothing_the_second_time(
        self, world: World, word: str
    ) -> None:
        world.submit(2)
        (lease,) = _claim(world.store, 1).leases
        trial = 0 if word == "start" else _start(world.store, lease)
        batch = _batch(word, lease, trial)
        first = world.store.flush(batch)
        before = world.contents()
        second = world.store.flush(batch)
        # A slot that is open again may be anybody's; a result stays this worker's.
        lost = {lease.key} if word in ("fail", "hand back") else set()
        assert (second.started, second.lost) == (first.started, lost)
        assert world.contents() == before

    def test_a_start_with_other_parameters_loses_its_lease(self, world: World) -> None:
        world.submit(1)
        (lease,) = _claim(world.store, 1).leases
        _start(world.store, lease)
        before = world.contents()
        assert world.store.flush(Batch(starts=[Start(lease, OTHER_POINT)])).lost == {lease.key}
        assert world.contents() == before

    # Hand-back

    @pytest.mark.parametrize(("given", "known"), [(3, 3), (None, 2)])
    def test_a_hand_back_keeps_the_trial_and_opens_the_slot(
        self, world: World, given: int | None, known: int
    ) -> None:
        world.submit(1)
        (lease,) = _claim(world.store, 1).leases
        trial = _start(world.store, lease)
        world.store.flush(Batch(checkpoints=[(lease, 2)]))
        world.store.flush(Batch(hand_backs=[HandBack(lease, given)]))
        (again,) = _claim(world.store, 1).leases
        assert (again.trial_id, again.trial_number, again.parameters) == (trial, 0, POINT)
        assert (again.checkpoint_step, again.attempt) == (known, 1)
        assert again.fencing_token == lease.fencing_token + 1

    # Attempts

    def test_a_retry_is_a_new_trial_of_the_same_parameters(self, world: World) -> None:
        world.submit(1)
        (lease,) = _claim(world.store, 1).leases
        trial = _start(world.store, lease)
        world.store.flush(Batch(checkpoints=[(lease, 2)]))
        world.store.flush(Batch(fails=[Fail(lease, trial, failure(), blamed=True)]))
        (again,) = _claim(world.store, 1).leases
        assert (again.trial_id, again.parameters) == (None, POINT)
        assert (again.checkpoint_step, again.attempt) == (2, 2)
        assert world.store.flush(Batch(starts=[Start(again, POINT)])).started[again.key].number == 1

    def test_the_last_attempt_fails_the_slot(self, world: World) -> None:
        world.submit(1)
        assert [_fail(world.store, blamed=True) for _ in range(3)] == [True, True, False]

    def test_attempts_that_nobody_is_blamed_for_are_not_counted(self, world: World) -> None:
        world.submit(1)
        assert all(_fail(world.store, blamed=False) for _ in range(5))

    def test_a_failure_without_retry_is_the_last(self, world: World) -> None:
        world.submit(1)
        assert not _fail(world.store, blamed=True, retry=False)

    def test_the_same_exception_again_is_the_last(self, world: World) -> None:
        world.submit(1)
        same = {"blamed": True, "error": failure(traceback="line 1")}
        assert [_fail(world.store, **same) for _ in range(2)] == [True, False]

    def test_after_shared_deaths_a_slot_runs_alone_and_has_fewer_attempts(
        self, world: World
    ) -> None:
        world.submit(1)
        for _ in range(SHARED_DEATHS_BEFORE_ALONE):
            assert _fail(world.store, blamed=False, shared_death=True)
        assert _claim(world.store, 1, exclude_exclusive=True).leases == []
        assert [_fail(world.store, blamed=True) for _ in range(2)] == [True, False]

    # A study that stops

    def test_a_paused_study_is_told_to_stop_and_gives_nothing(self, world: World) -> None:
        study = world.submit(3)
        started, unstarted = _claim(world.store, 2).leases
        _start(world.store, started)
        world.ask_stop(study, "paused")
        flushed = world.store.flush(Batch(starts=[Start(unstarted, POINT)], renew=[started]))
        assert flushed.stop == {started.key: "paused", unstarted.key: "paused"}
        assert (flushed.started, flushed.lost) == ({}, set())
        assert _claim(world.store, 3).leases == []

    def test_a_cancelled_study_refuses_starts_and_ends_what_is_handed_back(
        self, world: World
    ) -> None:
        study = world.submit(3)
        started, unstarted = _claim(world.store, 2).leases
        trial = _start(world.store, started)
        world.ask_stop(study, "cancelled")
        flushed = world.store.flush(Batch(starts=[Start(unstarted, POINT)], renew=[started]))
        assert (flushed.stop, flushed.lost) == ({started.key: "cancelled"}, {unstarted.key})
        world.store.flush(Batch(hand_backs=[HandBack(started, 1)]))
        (ended,) = world.store.history(study, after_trial_id=trial - 1, unfinished=())
        assert ended.state == "FAIL"

    # History

    def test_history_is_what_is_new_and_what_was_unfinished(self, world: World) -> None:
        study = world.submit(3)
        world.submit(1, priority=-1)
        leases = _claim(world.store, 3).leases
        first, second, third = (_start(world.store, lease) for lease in leases)
        world.store.flush(Batch(reports=[Report(leases[1], second, 1, 0.25, {})]))
        _finish(world.store, leases[0], first)

        def seen(after: int, unfinished: Sequence[int] = ()) -> list[tuple[int, str]]:
            found = world.store.history(study, after_trial_id=after, unfinished=unfinished)
            return [(trial.trial_id, trial.state) for trial in found]

        assert seen(first - 1) == [(first, "COMPLETE"), (second, "RUNNING"), (third, "RUNNING")]
        assert seen(second) == [(third, "RUNNING")]
        assert seen(third, [second]) == [(second, "RUNNING")]
        done, running, _ = world.store.history(study, after_trial_id=first - 1, unfinished=())
        assert (done.number, done.params, done.own) == (0, POINT, True)
        assert (list(done.values or ()), running.values) == ([0.5], None)
        assert dict(running.intermediate_values) == {1: 0.25}


def _claim(
    store: SlotStore,
    limit: int,
    *,
    exclude_exclusive: bool = False,
    exclude_studies: Sequence[int] | set[int] = (),
    loops: int | None = None,
) -> Claimed:
    return store.claim(
        limit=limit,
        exclude_exclusive=exclude_exclusive,
        exclude_studies=exclude_studies,
        fair_share=False,
        loops=loops,
    )


def _studies(claimed: Claimed) -> list[int]:
    return [lease.study_id for lease in claimed.leases]


def _start(store: SlotStore, lease: Lease) -> int:
    return store.flush(Batch(starts=[Start(lease, POINT)])).started[lease.key].trial_id


def _finish(store: SlotStore, lease: Lease, trial: int) -> None:
    store.flush(_batch("finish", lease, trial))


def _fail(store: SlotStore, *, error: Failure | None = None, **how: Any) -> bool:
    """Fail the one slot's next attempt; return whether there is another."""
    (lease,) = _claim(store, 1).leases
    trial = _start(store, lease)
    store.flush(Batch(fails=[Fail(lease, trial, error or failure(trial), **how)]))
    attempts = _claim(store, 1).leases
    store.flush(Batch(hand_backs=[HandBack(again, None) for again in attempts]))
    return bool(attempts)


def _batch(word: str, lease: Lease, trial: int) -> Batch:
    """Return a batch of one entry."""
    batches = {
        "start": Batch(starts=[Start(lease, POINT)]),
        "report": Batch(reports=[Report(lease, trial, 1, 0.5, {"loss": 0.1})]),
        "checkpoint": Batch(checkpoints=[(lease, 1)]),
        "finish": Batch(finishes=[Finish(lease, trial, "COMPLETE", (0.5,), {})]),
        "fail": Batch(fails=[Fail(lease, trial, failure(), blamed=True)]),
        "hand back": Batch(hand_backs=[HandBack(lease, 1)]),
        "renew": Batch(renew=[lease]),
    }
    return batches[word]
