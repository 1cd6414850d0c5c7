"""The serve loop over a fake trainer that speaks the protocol, and slots in memory."""

import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.unit.workers.conftest import Bench
from tests.unit.workers.fakes import FakeSearch, open_fake_study
from tuner_service.files import private_folder
from workers.protocol.messages import Events, Finished, ForgetResults, Start
from workers.supervisor.trainer_process import TrainerProcess

Make = Callable[..., Bench]


def test_serve_finishes_every_slot_once_and_returns(bench: Make) -> None:
    b = bench()
    b.store.add_study(1, [{"value": float(i)} for i in range(20)])
    b.serve()
    assert b.store.states() == ["done"] * 20
    assert sorted(f.values for f in b.store.finishes) == [(float(i),) for i in range(20)]
    assert all(sorted(steps) == [1, 2, 3] for steps in b.store.reports.values())


def test_serve_returns_at_once_when_nothing_is_claimable(bench: Make) -> None:
    b = bench()
    b.serve()
    assert len(b.store.claims) == 1


def test_the_trainer_stays_warm_between_serves(bench: Make) -> None:
    b = bench()
    b.store.add_study(1, [{}])
    b.serve()
    first = b.restarter.current
    assert first is not None
    b.store.add_study(2, [{}])
    b.serve()
    assert b.restarter.current is first
    assert b.store.states() == ["done", "done"]


def test_a_worker_that_stops_sends_an_idle_trainer_home_and_no_other(bench: Make) -> None:
    b = bench()
    b.store.add_study(1, [{"epochs": 1000, "seconds": 0.01}])
    b.serve_aside()
    b.store.wait_for(lambda: bool(b.store.reports))
    trainer = b.restarter.current
    assert trainer is not None
    b.supervisor.shut_down_idle_trainer()
    assert trainer.exit_code(wait_seconds=0.3) is None
    b.store.ask_stop(1, "cancelled")
    b.join()
    b.supervisor.shut_down_idle_trainer()
    assert trainer.exit_code(wait_seconds=10.0) == 0


def test_the_trainer_is_told_the_number_by_which_equal_trials_rank(
    bench: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    b = bench()
    for study in (1, 2):
        b.store.add_study(study, [{}, {}])
    send, told = TrainerProcess.send, []
    monkeypatch.setattr(TrainerProcess, "send", lambda self, m: (told.append(m), send(self, m)))
    b.serve()
    starts = [start for m in told if isinstance(m, Start) for start in m.trials]
    assert sorted(start.number for start in starts) == [0, 0, 1, 1]


def test_parallel_trials_is_never_passed_and_every_ask_sees_the_results_before(bench: Make) -> None:
    b = bench()
    b.store.add_study(1, [None] * 6, parallel=1)
    b.serve()
    assert b.store.states() == ["done"] * 6
    search: Any = b.supervisor._studies._studies[1].search
    assert search.asked == [0, 1, 2, 3, 4, 5]
    assert search.finished_before_ask == [0, 1, 2, 3, 4, 5]


def test_asked_slots_wait_for_a_free_lane(bench: Make) -> None:
    b = bench("--lanes", "2")
    b.store.add_study(1, [None] * 8, ask={"seconds": 0.2})
    b.serve()
    search: Any = b.supervisor._studies._studies[1].search
    ahead = [n - done for n, done in enumerate(search.finished_before_ask)]
    assert max(ahead) <= 1, "more than two trials were asked at once"


def test_a_pruned_trial_keeps_its_last_value(bench: Make) -> None:
    b = bench()
    b.store.add_study(1, [{"value": -1.0, "epochs": 50}, {"value": 1.0}], pruner="median")
    b.serve()
    by_slot = {f.lease.number: f for f in b.store.finishes}
    assert (by_slot[0].state, by_slot[0].values) == ("PRUNED", (-1.0,))
    assert by_slot[1].state == "COMPLETE"
    assert list(b.store.reports[by_slot[0].trial_id]) == [1]


def test_a_pruner_that_fails_ends_its_studys_trials_and_no_others(
    bench: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: FakeSearch, trial_id: int) -> bool:
        if self.values[trial_id] == 7.0:
            raise RuntimeError("toy_pruner: no such thing")
        return False

    monkeypatch.setattr(FakeSearch, "should_prune", broken)
    b = bench()
    b.store.add_study(1, [{"value": 7.0, "epochs": 10_000}] * 2, pruner="median")
    b.store.add_study(2, [{"value": 1.0}] * 3, pruner="median")
    b.serve()
    assert [fail.lease.study_id for fail in b.store.fails] == [1, 1]
    assert [finish.lease.study_id for finish in b.store.finishes] == [2] * 3
    for fail in b.store.fails:
        assert fail.failure.message == "The pruner failed: toy_pruner: no such thing"
        assert (fail.failure.kind, fail.failure.step, fail.retry) == ("user_code", 1, False)


@pytest.mark.parametrize(
    ("behaviour", "state", "kind"),
    [("diverged", "PRUNED", "diverged"), ("out_of_memory", "PRUNED", "out_of_memory")],
)
def test_an_infeasible_trial_is_a_result(
    bench: Make, behaviour: str, state: str, kind: str
) -> None:
    b = bench()
    b.store.add_study(1, [{"behaviour": behaviour}])
    b.serve()
    (finish,) = b.store.finishes
    assert finish.state == state
    assert finish.failure is not None
    assert finish.failure.kind == kind
    search: Any = b.supervisor._studies._studies[1].search
    assert search.log[-1] == ("finished", finish.trial_id, "PRUNED", None, True)


def test_a_final_value_that_is_no_number_is_a_divergence(bench: Make) -> None:
    b = bench()
    b.store.add_study(1, [{"value": float("nan")}])
    b.serve()
    (finish,) = b.store.finishes
    assert finish.state == "PRUNED"
    assert finish.failure is not None
    assert finish.failure.kind == "diverged"
    assert set(b.store.reports[finish.trial_id].values()) == {None}


def test_unreadable_data_is_not_tried_again(bench: Make) -> None:
    b = bench()
    b.store.add_study(1, [{"behaviour": "data"}])
    b.serve()
    (fail,) = b.store.fails
    assert (fail.failure.kind, fail.blamed, fail.retry) == ("data", True, False)


@pytest.mark.parametrize(
    ("loop", "point"), [(True, {}), (False, {"checkpoints": True}), (False, {"behaviour": "data"})]
)
def test_what_a_trial_keeps_for_its_next_attempt_goes_with_the_last_one(
    bench: Make, tmp_path: Path, *, loop: bool, point: dict[str, Any]
) -> None:
    b = bench()
    b.store.add_study(1, [point], is_user_loop=loop)
    directory = tmp_path / "checkpoints" / "id1" / "0.loop"
    directory.mkdir(parents=True)
    journal, other = directory.with_name("0.loop.jsonl"), directory.with_name("1.json")
    for file in (journal, directory / "mine", other):
        file.touch()
    b.serve()
    assert list(directory.parent.iterdir()) == [other]


@pytest.mark.parametrize("behaviour", ["crash", "kill"])
def test_a_trial_that_kills_its_trainer_alone_is_blamed(bench: Make, behaviour: str) -> None:
    b = bench()
    b.store.add_study(1, [{"behaviour": behaviour}], parallel=1)
    b.serve_aside()
    b.store.wait_for(lambda: len(b.store.fails) >= 1)
    b.stopping.set()
    b.join()
    fail = b.store.fails[0]
    assert (fail.failure.kind, fail.blamed, fail.shared_death) == ("user_code", True, False)
    assert ("SIGKILL" if behaviour == "kill" else "code 3") in fail.failure.message
    if behaviour == "crash":
        assert "the fake trainer crashes now" in fail.failure.message


def test_a_death_with_several_on_board_blames_none_and_all_finish(
    bench: Make, tmp_path: Path
) -> None:
    b = bench()
    marker = str(tmp_path / "crashed")
    points = [{"behaviour": "crash_once", "marker": marker, "epochs": 8, "seconds": 0.02}]
    points += [{"epochs": 8, "seconds": 0.05} for _ in range(3)]
    b.store.add_study(1, points)
    b.serve()
    assert b.store.states() == ["done"] * 4
    assert b.store.fails
    assert all(f.shared_death and not f.blamed for f in b.store.fails)
    assert {f.failure.kind for f in b.store.fails} == {"worker_lost"}


def test_a_lost_device_is_blamed_on_whose_turn_it_was_and_the_others_go_on(bench: Make) -> None:
    b = bench()
    innocent: list[Any] = [{"epochs": 8, "seconds": 0.02}] * 3
    b.store.add_study(1, [{"behaviour": "lose_device"}, *innocent])
    b.serve_aside()
    b.store.wait_for(lambda: bool(b.store.fails))
    b.store.slots[1000].state = "failed"  # what the lifecycle does after some attempts
    b.join(60.0)
    assert b.store.states() == ["failed"] + ["done"] * 3
    for fail in b.store.fails:
        assert fail.lease.number == 0
        assert (fail.failure.kind, fail.blamed, fail.shared_death) == ("user_code", True, False)
        assert fail.failure.message == "The trainer ended: no GPU any more"


def test_a_trial_that_crashes_always_ends_up_alone_and_blamed(bench: Make) -> None:
    b = bench()
    points: list[Any] = [{"behaviour": "crash", "at": 1}]
    points += [{"epochs": 4, "seconds": 0.02} for _ in range(5)]
    b.store.add_study(1, points)
    b.serve()
    assert b.store.states() == ["failed"] + ["done"] * 5
    assert {f.lease.number for f in b.store.fails if f.blamed} == {0}
    assert all(f.lease.exclusive for f in b.store.fails if f.blamed)


def test_a_hung_trainer_is_killed_and_its_only_trial_blamed(bench: Make) -> None:
    b = bench(progress_timeout_seconds=0.5)
    b.store.add_study(1, [{"behaviour": "hang"}])
    b.serve_aside()
    b.store.wait_for(lambda: len(b.store.fails) >= 1)
    b.stopping.set()
    b.join()
    fail = b.store.fails[0]
    assert (fail.failure.kind, fail.blamed) == ("timeout", True)
    assert "TUNER_PROGRESS_TIMEOUT_SECONDS" in fail.failure.message


def test_a_trial_over_its_time_keeps_what_it_has(bench: Make) -> None:
    b = bench()
    b.store.add_study(1, [{"epochs": 1000, "seconds": 0.05}], trial_timeout=0.4)
    b.serve()
    (finish,) = b.store.finishes
    assert finish.state == "PRUNED"
    assert finish.values == (1.0,)
    assert finish.failure is not None
    assert finish.failure.kind == "timeout"


def test_a_trial_that_does_not_stop_costs_others_nothing(bench: Make) -> None:
    b = bench(grace_seconds=0.6, progress_timeout_seconds=60.0)
    b.store.add_study(1, [{"behaviour": "hang", "at": 3}])
    b.store.add_study(2, [{"epochs": 100, "seconds": 0.03, "checkpoints": True}])
    b.serve_aside()
    b.store.wait_for(lambda: len(b.store.reports) == 2)
    b.store.ask_stop(1, "cancelled")
    b.join(60.0)
    assert b.store.slots[2000].state == "done"
    assert len(b.store.slots[2000].trials) == 1, "the same trial went on in the next trainer"
    assert [f.failure.kind for f in b.store.fails] == ["cancelled"]


def test_cancel_throws_running_trials_away(bench: Make) -> None:
    b = bench()
    b.store.add_study(1, [{"epochs": 10_000, "seconds": 0.02}] * 3)
    b.serve_aside()
    b.store.wait_for(lambda: len(b.store.reports) == 3)
    b.store.ask_stop(1, "cancelled")
    b.join()
    assert b.store.finishes == []
    assert [(f.failure.kind, f.blamed, f.retry) for f in b.store.fails] == [
        ("cancelled", False, False)
    ] * 3


def test_pause_hands_back_the_same_trial_and_resume_continues_it(bench: Make) -> None:
    b = bench()
    b.store.add_study(1, [{"epochs": 30, "seconds": 0.02}])
    b.serve_aside()
    b.store.wait_for(lambda: len(b.store.reports) == 1)
    b.store.ask_stop(1, "paused")
    b.join()
    (back,) = b.store.hand_backs
    assert back.checkpoint_step
    del b.store.stop_reasons[1]
    b.serve()
    assert b.store.states() == ["done"]
    assert len(b.store.slots[1000].trials) == 1
    assert sorted(b.store.reports[1]) == list(range(1, 31))


def test_the_studys_timeout_keeps_what_there_is(bench: Make) -> None:
    b = bench()
    b.store.add_study(1, [{"epochs": 10_000, "seconds": 0.02}])
    b.serve_aside()
    b.store.wait_for(lambda: len(b.store.reports) == 1)
    b.store.ask_stop(1, "timeout")
    b.join()
    (finish,) = b.store.finishes
    assert (finish.state, finish.values) == ("PRUNED", (1.0,))


def test_stopping_checkpoints_and_hands_back_everything(bench: Make) -> None:
    b = bench("--lanes", "2")
    b.store.add_study(1, [{"epochs": 10_000, "seconds": 0.02}] * 3 + [None] * 3)
    b.serve_aside()
    b.store.wait_for(lambda: len(b.store.reports) >= 2)
    b.stopping.set()
    b.supervisor.wake()
    b.join(b.settings.grace_seconds)
    assert "leased" not in b.store.states()
    assert b.store.fails == []
    assert sum(h.checkpoint_step is not None for h in b.store.hand_backs) >= 2


def test_stopping_ends_in_time_with_a_trainer_that_does_not_answer(bench: Make) -> None:
    b = bench(grace_seconds=1.0, progress_timeout_seconds=60.0)
    b.store.add_study(1, [{"behaviour": "hang"}])
    b.serve_aside()
    b.store.wait_for(lambda: len(b.store.reports) == 1)
    b.stopping.set()
    b.join(5.0)
    assert [h.checkpoint_step for h in b.store.hand_backs] == [None]
    assert b.store.states() == ["open"]


def test_a_lost_lease_changes_nothing_and_frees_the_lane(bench: Make) -> None:
    b = bench()
    b.store.add_study(1, [{"epochs": 10_000, "seconds": 0.02}])
    b.serve_aside()
    b.store.wait_for(lambda: len(b.store.reports) == 1)
    b.store.steal(1000)
    b.join()
    assert (b.store.finishes, b.store.fails, b.store.hand_backs) == ([], [], [])


def test_training_goes_on_while_the_database_is_away(bench: Make) -> None:
    b = bench()
    b.store.add_study(1, [{"epochs": 40, "seconds": 0.02}])
    b.serve_aside()
    b.store.wait_for(lambda: len(b.store.reports) == 1)
    trainer = b.restarter.current
    b.store.away = True
    assert trainer is not None
    _poll(lambda: b.supervisor._sync._backoff.active)
    b.store.away = False
    b.join()
    assert b.store.states() == ["done"]
    assert sorted(b.store.reports[1]) == list(range(1, 41))
    assert b.restarter.current is trainer


def test_runs_are_let_go_when_the_database_is_away_for_a_lease(bench: Make) -> None:
    b = bench(lease_seconds=0.6)
    b.store.add_study(1, [{"epochs": 10_000, "seconds": 0.02}])
    b.serve_aside()
    b.store.wait_for(lambda: len(b.store.reports) == 1)
    b.store.away = True
    _poll(lambda: not b.supervisor._session.held.runs)
    b.stopping.set()
    b.store.away = False
    b.join()
    assert [h.checkpoint_step is not None for h in b.store.hand_backs] == [True]


def test_a_lost_answer_to_a_commit_counts_nothing_twice(bench: Make) -> None:
    b = bench()
    b.store.lose_answers = 3
    b.store.add_study(1, [{} for _ in range(8)])
    b.serve()
    assert b.store.lose_answers == 0
    assert b.store.states() == ["done"] * 8
    assert Counter(f.lease.slot_id for f in b.store.finishes) == {1000 + i: 1 for i in range(8)}
    assert all(len(slot.trials) == 1 for slot in b.store.slots.values())


def test_a_later_study_is_not_shut_out_by_a_long_one(bench: Make) -> None:
    b = bench("--lanes", "2")
    b.store.add_study(1, [{"epochs": 100_000, "seconds": 0.05}] * 50)
    b.serve_aside()
    b.store.wait_for(lambda: len(b.store.reports) >= 2)
    b.store.add_study(2, [{}])
    b.store.wait_for(lambda: b.store.slots[2000].state == "done")
    assert not [f for f in b.store.finishes if f.lease.study_id == 1]


def test_a_share_is_taken_at_once_and_what_others_leave_a_little_later(bench: Make) -> None:
    b = bench("--lanes", "8")
    b.store.share = 3
    b.store.add_study(1, [{"epochs": 100, "seconds": 0.05} for _ in range(8)])
    b.serve_aside()
    b.store.wait_for(lambda: len(b.store.reports) >= 1)
    assert b.store.states().count("leased") == 3
    b.store.wait_for(lambda: sum(s.state == "leased" for s in b.store.slots.values()) == 8)


def test_an_alone_slot_runs_by_itself(bench: Make) -> None:
    b = bench()
    b.store.add_study(1, [{"epochs": 2} for _ in range(4)])
    b.store.make_alone(1002)
    b.serve()
    assert b.store.states() == ["done"] * 4
    assert b.store.finishes[0].lease.number == 2, (
        "where nothing is held the exclusive one goes first"
    )


def test_alone_slots_and_others_take_turns(bench: Make) -> None:
    b = bench()
    b.store.add_study(1, [{"behaviour": "crash"}])
    b.store.make_alone(1000)
    b.store.add_study(2, [{"epochs": 2} for _ in range(3)])
    b.serve_aside()
    b.store.wait_for(lambda: len(b.store.finishes) == 3)
    b.store.wait_for(lambda: len(b.store.fails) >= 2)
    b.stopping.set()
    b.join()


def test_a_definition_that_cannot_be_asked_fails_its_slot_only(
    bench: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    b = bench()
    b.store.add_study(1, [{"value": "not a number"}, {}])

    def spec(self: Any, parameters: dict[str, Any]) -> dict[str, Any]:
        if parameters.get("value") == "not a number":
            raise ValueError("value must be a number, but got 'not a number'")
        return dict(parameters)

    monkeypatch.setattr("tests.unit.workers.fakes.FakeStudy.spec", spec)
    b.serve()
    assert b.store.states() == ["failed", "done"]
    assert "must be a number" in b.store.fails[0].failure.message


def test_a_failure_of_the_loop_hands_everything_back(
    bench: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    b = bench()
    b.store.add_study(1, [{"epochs": 1000, "seconds": 0.02}])
    monkeypatch.setattr(
        "workers.supervisor.trainer_events.outcomes.report_of",
        lambda run, event: (_ for _ in ()).throw(KeyError("step")),
    )
    with pytest.raises(KeyError):
        b.serve()
    assert b.store.states() == ["open"]
    assert b.restarter.current is None


def test_a_trainer_that_never_starts_hands_back_and_returns(bench: Make) -> None:
    b = bench("--never-ready")
    b.store.add_study(1, [{}])
    b.serve()
    assert b.store.states() == ["open"]


def test_dropped_models_are_deleted(bench: Make, tmp_path: Path) -> None:
    b = bench()
    b.store.add_study(1, [{}])
    b.serve()
    (finish,) = b.store.finishes
    assert finish.model_path is not None
    assert (tmp_path / finish.model_path).read_bytes() == b"weights"
    b.store.drop_models = [finish.model_path, "../outside"]
    b.store.add_study(2, [{}], keep_models=0)
    b.serve()
    assert not (tmp_path / finish.model_path).exists()


def test_a_result_that_is_not_counted_leaves_no_model_and_outranks_none(
    bench: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    b = bench()
    b.store.add_study(7, [{}])
    flush, told = b.store.flush, []

    def stolen(batch: Any) -> Any:
        if batch.finishes:
            b.store.steal(7000)
        return flush(batch)

    monkeypatch.setattr(b.store, "flush", stolen)
    send = TrainerProcess.send
    monkeypatch.setattr(TrainerProcess, "send", lambda self, m: (told.append(m), send(self, m)))
    b.serve()
    assert b.store.finishes == []
    assert ForgetResults(7) in told
    assert not list((tmp_path / "models").rglob("*.safetensors"))


@pytest.mark.parametrize("phase", ["lost", "other"])
def test_a_ghosts_model_goes_with_it(bench: Make, tmp_path: Path, phase: str) -> None:
    b = bench()
    b.store.add_study(1, [{}])
    session = b.supervisor._session
    (lease,) = b.store.claim(
        limit=1, exclude_exclusive=False, exclude_studies=(), fair_share=False
    ).leases
    run = session.held.add(lease, open_fake_study(b.store.works[1]))
    run.created(1, 0)
    run.ready()
    run.sent(0.0)
    if phase == "lost":
        session.held.lose(run)
    model = session.directory.model(run.study.work.public_id, lease.number, lease.fencing_token)
    private_folder(model.parent)
    model.write_bytes(b"weights")
    event = Finished(run=run.id, values=[1.0], model=str(model))
    b.supervisor._trainer_events.take(Events([event]))
    assert not session.held.runs
    assert model.exists() == (phase == "other")


def test_a_trainer_killed_while_idle_is_replaced(bench: Make) -> None:
    b = bench()
    b.store.add_study(1, [{}])
    b.serve()
    assert b.restarter.current is not None
    os.kill(b.restarter.current.pid, signal.SIGKILL)
    b.store.add_study(2, [{}])
    b.serve()
    assert b.store.states() == ["done", "done"]
    assert b.store.fails == []


def test_the_loop_sleeps_while_there_is_nothing_to_do(
    bench: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    b = bench()
    turns = Counter[str]()
    turn = b.supervisor._turn

    def counted() -> None:
        turns["all"] += 1
        turn()

    monkeypatch.setattr(b.supervisor, "_turn", counted)
    b.store.add_study(1, [{"epochs": 2, "at": 9, "seconds": 3.0}])
    b.serve()
    # Three seconds: five `alive` messages, a renewal and two claims a second, and some for the
    # start and the end. A loop that spins takes thousands.
    assert turns["all"] < 100


def _poll(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
