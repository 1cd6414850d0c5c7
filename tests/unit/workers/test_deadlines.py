"""Deadlines, on an injected clock."""

from pathlib import Path

import pytest

from tests.unit.workers.test_blame import run
from tuner_service.settings import Settings
from workers.protocol.messages import Alive
from workers.supervisor.deadlines import Deadlines
from workers.supervisor.held_runs import HeldRuns, LeasedTrial


def board_of(*runs: LeasedTrial) -> HeldRuns:
    return HeldRuns(iter(()), {one.id: one for one in runs})


def deadlines(tmp_path: Path, *, memory_limit_bytes: int | None = None) -> Deadlines:
    settings = Settings(data_dir=tmp_path, progress_timeout_seconds=60.0, grace_seconds=10.0)
    return Deadlines(settings, now=100.0, memory_limit_bytes=memory_limit_bytes)


def alive(*turn: LeasedTrial, busy_seconds: float = 0.0, memory_bytes: int = 0) -> Alive:
    return Alive(
        busy_seconds=busy_seconds, turn=[one.id for one in turn], memory_bytes=memory_bytes
    )


def test_a_trainer_without_progress_is_at_fault(tmp_path: Path) -> None:
    w, held = deadlines(tmp_path), board_of(run())
    assert w.fault(held, 160.0) is None
    cause = w.fault(held, 160.1)
    assert cause is not None
    assert cause.kind == "hung"


def test_progress_moves_the_deadline(tmp_path: Path) -> None:
    w, held = deadlines(tmp_path), board_of(run())
    w.progressed(130.0)
    assert w.fault(held, 189.0) is None


def test_an_empty_trainer_cannot_hang(tmp_path: Path) -> None:
    w = deadlines(tmp_path)
    assert w.fault(board_of(), 1000.0) is None
    assert w.fault(board_of(run()), 1059.0) is None


def test_an_unanswered_stop_is_a_fault_only_of_a_quiet_trainer(tmp_path: Path) -> None:
    w, one = deadlines(tmp_path), run(stop_mode="cancel", stop_at=100.0)
    w.progressed(105.0)
    assert w.fault(board_of(one), 111.0) is None
    cause = w.fault(board_of(one), 115.1)
    assert cause is not None
    assert (cause.kind, cause.culprit) == ("unanswered", one.id)


def test_nobody_waits_for_what_another_worker_is_offered(tmp_path: Path) -> None:
    w, one = deadlines(tmp_path), run(stop_mode="checkpoint", stop_at=100.0, offered=True)
    assert w.fault(board_of(one), 150.0) is None
    assert w.over_time(board_of(one), 150.0) == [one]
    one.ask_stop("checkpoint", 145.0)
    cause = w.fault(board_of(one), 155.1)
    assert cause is not None
    assert cause.kind == "unanswered"


def test_a_trial_over_its_studys_limit_is_found_once(tmp_path: Path) -> None:
    w, one = deadlines(tmp_path), run()  # began at 1.0, may train for 5 s
    assert w.over_time(board_of(one), 6.0) == []
    assert w.over_time(board_of(one), 6.1) == [one]
    one.ask_stop("timeout", 6.1)
    assert w.over_time(board_of(one), 7.0) == []


def test_a_trial_that_hangs_before_it_began_is_over_time_too(tmp_path: Path) -> None:
    w, hangs, waits = deadlines(tmp_path), run(began=False), run(began=False)
    held = board_of(hangs, waits)
    w.alive(alive(hangs, busy_seconds=119.0), 300.0)
    assert w.over_time(held, 300.0) == []
    w.alive(alive(hangs, busy_seconds=121.0), 302.0)
    assert w.over_time(held, 302.0) == [hangs]
    assert w.over_time(held, 310.0) == []  # the trainer fell silent: nothing is known of it


def test_what_a_trainer_said_goes_with_it(tmp_path: Path) -> None:
    limit = 8
    w, again = deadlines(tmp_path, memory_limit_bytes=limit), run(began=False)
    w.alive(alive(again, busy_seconds=300.0, memory_bytes=limit + 1), 400.0)
    w.trainer_ended()
    held = board_of(again)  # sent again, to a trainer that has said nothing yet
    assert w.over_time(held, 401.0) == []
    assert w.fault(board_of(), 401.0) is None


@pytest.mark.parametrize("kind", ["hung", "unanswered"])
def test_whose_turn_it_was_is_known_of_a_trainer_that_lives(tmp_path: Path, kind: str) -> None:
    w, hangs = deadlines(tmp_path), run()
    if kind == "unanswered":
        hangs.ask_stop("timeout", 200.0)
    held = board_of(hangs, run())
    w.alive(alive(hangs, busy_seconds=300.0), 400.0)
    known, silent = w.fault(held, 401.0), w.fault(held, 410.0)
    assert known is not None
    assert silent is not None
    assert (known.kind, known.turn, silent.turn) == (kind, {hangs.id}, frozenset())


def test_its_own_absence_is_not_the_trainers(tmp_path: Path) -> None:
    w, held = deadlines(tmp_path), board_of(run())
    w.notice_absence(held, 100.5)
    w.notice_absence(held, 1000.0)  # stopped for a quarter of an hour
    assert w.fault(held, 1000.0) is None
    assert w.fault(held, 1061.0) is not None


def test_a_trainer_that_grows_over_its_limit_is_at_fault_once(tmp_path: Path) -> None:
    w = deadlines(tmp_path, memory_limit_bytes=8)
    w.alive(alive(memory_bytes=8), 100.0)
    assert w.fault(board_of(run()), 101.0) is None
    w.alive(alive(memory_bytes=9), 100.0)
    cause = w.fault(board_of(run()), 102.0)
    assert cause is not None
    assert cause.kind == "memory"
    assert w.fault(board_of(run()), 103.0) is None
