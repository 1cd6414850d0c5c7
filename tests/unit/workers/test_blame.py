"""Who is to blame when a trainer dies: a table."""

import itertools
from typing import Any

import pytest

from tests.unit.workers.fakes import open_fake_study
from tuner_service.lifecycle.messages import Fail, Finish, HandBack, Lease, StudyWork
from workers.protocol.messages import Failed, RunFailure, RunId
from workers.supervisor import outcomes
from workers.supervisor.blame import Cause, assign
from workers.supervisor.held_runs import LeasedTrial, Phase

_ids = itertools.count(1)
CRASH = Cause("crashed", "The trainer ended with exit code 3.")
HANG = Cause("hung", "No progress.")
MEMORY = Cause("memory", "The trainer held 9 bytes, more than 8.")


def run(*, began: bool = True, ghost: bool = False, **more: Any) -> LeasedTrial:
    key = RunId(next(_ids))
    study = open_fake_study(StudyWork(1, "id1", "study-1", 1, {"trial_timeout": 5.0}, None))
    lease = Lease(key, 1, 1, key, {}, None, None, None, None, 1, False)
    phase = Phase.LOST if ghost else Phase.SENT
    return LeasedTrial(
        key, lease, study, phase=phase, trial_id=key, started_at=1.0 if began else None,
        checkpoint_step=7, **{"sendings": 1, **more},
    )  # fmt: skip


def outcome_of(one: LeasedTrial, others: list[LeasedTrial], cause: Cause) -> Any:
    outcome = assign([one, *others], cause)[one.id]
    if isinstance(outcome, Fail):
        return outcome.failure.kind, outcome.blamed, outcome.shared_death
    return outcome


def test_where_the_turn_is_known_the_others_go_again() -> None:
    hangs, waits, asked = run(), run(), run(stop_mode="timeout", out_of_time=True)
    cause = Cause("hung", "No progress.", turn=frozenset({hangs.id}))
    assert outcome_of(hangs, [waits], cause) == ("timeout", True, False)
    assert outcome_of(waits, [hangs], cause) is None
    both = Cause("hung", "No progress.", turn=frozenset({hangs.id, waits.id}))
    assert outcome_of(hangs, [waits], both) == ("worker_lost", False, True)
    late = Cause("unanswered", "…", culprit=asked.id, turn=frozenset({asked.id}))
    assert outcome_of(asked, [waits], late) == ("timeout", True, False)
    assert outcome_of(waits, [asked], late) is None


@pytest.mark.parametrize(
    ("one", "others", "cause", "expected"),
    [
        # Alone on board: to blame, as its own code's doing or as too slow.
        (run(), [], CRASH, ("user_code", True, False)),
        (run(), [], HANG, ("timeout", True, False)),
        # Several on board: none is to blame, the death is shared.
        (run(), [run()], CRASH, ("worker_lost", False, True)),
        (run(), [run()], HANG, ("worker_lost", False, True)),
        (run(), [run()], MEMORY, ("worker_lost", False, True)),
        # A lost one may still have been at work in there.
        (run(), [run(ghost=True)], CRASH, ("worker_lost", False, True)),
        # Not begun while another had: it goes again.
        (run(began=False), [run()], CRASH, None),
        (run(), [run(began=False)], CRASH, ("worker_lost", False, True)),
        # Alone and not begun: the trainer may have been dying before; once.
        (run(began=False), [], CRASH, None),
        (run(began=False, sendings=2), [], CRASH, ("user_code", True, False)),
        (run(began=False, sendings=2), [run(began=False, sendings=2)], CRASH,
         ("worker_lost", False, True)),
        # We killed it over another run: it goes again.
        (run(), [run(stop_mode="cancel")], Cause("unanswered", "…"), None),
        # Asked to stop before the death: as asked.
        (run(stop_mode="cancel"), [run()], CRASH, ("cancelled", False, False)),
        # Over its own time and deaf: to blame only if it was alone.
        (run(stop_mode="timeout", out_of_time=True), [], Cause("unanswered", "…"),
         ("timeout", True, False)),
        (run(stop_mode="timeout", out_of_time=True), [run()], Cause("unanswered", "…"),
         ("worker_lost", False, True)),
    ],
)  # fmt: skip
def test_blame(one: LeasedTrial, others: list[LeasedTrial], cause: Cause, expected: Any) -> None:
    assert outcome_of(one, others, cause) == expected


def test_a_checkpoint_that_was_asked_for_is_handed_back_with_the_last_one_there_is() -> None:
    one = run(stop_mode="checkpoint")
    assert assign([one], CRASH) == {one.id: HandBack(one.lease, 7)}


def test_what_hangs_is_blamed_also_while_it_is_offered_to_another_worker() -> None:
    one = run(stop_mode="checkpoint", offered=True)
    assert outcome_of(one, [], Cause("hung", "")) == outcome_of(run(), [], Cause("hung", ""))


def test_memory_that_runs_out_alone_is_a_result_of_that_point() -> None:
    one = run()
    outcome = assign([one], MEMORY)[one.id]
    assert isinstance(outcome, Finish)
    assert outcome.state == "PRUNED"
    assert outcome.failure is not None
    assert outcome.failure.kind == "out_of_memory"


@pytest.mark.parametrize("mode", ["prune", "timeout"])
def test_a_trial_that_was_to_end_anyway_keeps_its_last_report(mode: Any) -> None:
    one = run(stop_mode=mode)
    outcome = assign([one], CRASH)[one.id]
    assert isinstance(outcome, Finish)
    assert (outcome.state, outcome.values) == ("PRUNED", None)


def test_the_next_attempt_continues_from_the_checkpoint() -> None:
    one = run()
    outcome = assign([one], CRASH)[one.id]
    assert isinstance(outcome, Fail)
    assert outcome.checkpoint_step == 7


@pytest.mark.parametrize("sole", [True, False])
def test_a_loops_process_that_was_lost_is_blamed_as_a_trainer_is(*, sole: bool) -> None:
    said = Failed(run=RunId(1), failure=RunFailure("worker_lost", "gone", 2))
    ended = outcomes.failed(run(), said, sole_suspect=sole)
    assert isinstance(ended, Fail)
    assert (ended.blamed, ended.shared_death, ended.retry) == (sole, not sole, True)
