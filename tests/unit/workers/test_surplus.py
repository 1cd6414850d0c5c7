"""Trials that wait for a lane while another worker has nothing to do."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.unit.workers.conftest import Bench
from workers.supervisor import surplus

LONG = {"epochs": 30, "seconds": 0.05}
BEHIND = {"queued": True}


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times that a test can wait for."""
    for name, seconds in (("WAIT", 0.2), ("LOOK", 0.1), ("LEAVE", 0.5)):
        monkeypatch.setattr(surplus, f"{name}_SECONDS", seconds)


def handed_back(b: Bench) -> list[int]:
    return [one.lease.number for one in b.ledger.hand_backs]


def test_the_idle_workers_part_of_what_waits_is_given_away(bench: Callable[..., Bench]) -> None:
    b = bench("--lanes", "4")
    b.ledger.idle = 1
    b.ledger.add_study(1, [LONG, BEHIND, BEHIND, BEHIND], parallel=4)
    b.serve_aside()
    b.ledger.wait_for(lambda: len(b.ledger.hand_backs) >= 2)
    b.ledger.idle = 0  # they come for nothing: what was given away is taken up again
    b.join()
    assert handed_back(b) == [2, 3]
    assert b.ledger.states() == ["done"] * 4
    taken_up = {slot.lease.number: len(slot.trials) for slot in b.ledger.slots.values()}
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
    b.ledger.idle = idle
    b.ledger.add_study(1, points)
    b.serve()
    assert handed_back(b) == []
    assert b.ledger.states() == ["done"] * 2
