"""What another worker that has nothing to do could train."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.unit.workers.conftest import Bench
from workers.supervisor import balance

LONG = {"epochs": 30, "seconds": 0.05}
BEHIND = {"queued": True}


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times that a test can wait for."""
    for name, seconds in (("WAIT", 0.2), ("CHECK", 0.1), ("COOLDOWN", 0.5), ("TRAINED", 0.3)):
        monkeypatch.setattr(balance, f"{name}_SECONDS", seconds)


def handed_back(b: Bench) -> list[int]:
    return [one.lease.number for one in b.store.hand_backs]


def test_the_idle_workers_part_of_what_waits_is_given_away(bench: Callable[..., Bench]) -> None:
    b = bench("--lanes", "4")
    b.store.idle = 1
    b.store.add_study(1, [LONG, BEHIND, BEHIND, BEHIND], parallel=4)
    b.serve_aside()
    b.store.wait_for(lambda: len(b.store.hand_backs) >= 2)
    b.store.idle = 0  # they come for nothing: what was given away is taken up again
    b.join()
    assert handed_back(b) == [2, 3]
    assert b.store.states() == ["done"] * 4
    taken_up = {slot.lease.number: len(slot.trials) for slot in b.store.slots.values()}
    assert taken_up == dict.fromkeys(range(4), 1), "a trial was begun anew"


@pytest.mark.parametrize(
    ("idle", "points"),
    [
        (0, [LONG, BEHIND]),  # nobody would take it
        (1, [LONG, LONG]),  # both are at work
        (1, [{"epochs": 1}, {"queued": True, "epochs": 1}]),  # it soon has its turn
    ],
)
def test_what_would_gain_nothing_is_kept(
    bench: Callable[..., Bench], idle: int, points: list[dict[str, Any]]
) -> None:
    b = bench()
    b.store.idle = idle
    b.store.add_study(1, points)
    b.serve()
    assert handed_back(b) == []
    assert b.store.states() == ["done"] * 2


def test_what_trains_for_long_is_given_away_down_to_an_equal_part(
    bench: Callable[..., Bench],
) -> None:
    b = bench("--lanes", "6")
    b.store.idle, b.store.part = 2, 2
    b.store.add_study(1, [LONG] * 6, parallel=6)
    b.serve_aside()
    b.store.wait_for(lambda: len(b.store.hand_backs) >= 4)
    b.store.idle = 0
    b.join()
    assert handed_back(b) == [2, 3, 4, 5]
    assert b.store.states() == ["done"] * 6
    trained = {slot.lease.number: len(slot.trials) for slot in b.store.slots.values()}
    assert trained == dict.fromkeys(range(6), 1), "a trial was begun anew"
    curves = [sorted(b.store.reports[trial]) for trial in sorted(b.store.reports)]
    assert curves == [list(range(1, LONG["epochs"] + 1))] * 6


def test_what_nobody_takes_is_given_away_ever_less_often(bench: Callable[..., Bench]) -> None:
    b = bench("--lanes", "2")
    b.store.idle, b.store.part = 1, 1
    b.store.add_study(1, [{"epochs": 1000, "seconds": 0.05}] * 2, parallel=2)
    b.serve_aside()
    b.store.wait_for(lambda: len(b.store.hand_backs) >= 3)
    first, second, third = b.store.handed_back_at[:3]
    noted = 0.01  # the wait begins just before the hand-back is noted
    assert second - first >= 0.6 - noted
    assert third - second >= 1.2 - noted


@pytest.mark.parametrize(
    ("part", "study"),
    [
        (2, {}),  # no more than its part
        (1, {"is_user_loop": True}),  # which might begin anew
    ],
)
def test_what_trains_is_kept(bench: Callable[..., Bench], part: int, study: dict[str, Any]) -> None:
    b = bench("--lanes", "2")
    b.store.idle, b.store.part = 1, part
    b.store.add_study(1, [LONG] * 2, parallel=2, **study)
    b.serve()
    assert handed_back(b) == []
