"""Slots that must run alone while there is always other work."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.unit.workers.conftest import Bench
from workers.supervisor import exclusive

LONG: dict[str, Any] = {"epochs": 10_000, "seconds": 0.01}


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times that a test can wait for."""
    for name, seconds in (("WAIT", 0.3), ("CHECK", 0.05), ("CLEAR", 0.2)):
        monkeypatch.setattr(exclusive, f"{name}_SECONDS", seconds)


def busy(bench: Callable[..., Bench], count: int, **study: Any) -> Bench:
    """Return a bench whose board is full, with more to claim."""
    b = bench("--lanes", "2")
    b.store.add_study(1, [dict(LONG) for _ in range(count)], **study)
    b.serve_aside()
    b.store.wait_for(lambda: len(b.store.reports) >= 2)
    return b


def add_lone(b: Bench) -> None:
    with b.store.lock:
        b.store.add_study(2, [{"epochs": 2}])
        slot = b.store.slots[2000]
        slot.state = "held back"
    b.store.make_alone(2000)
    slot.state = "open"


def done(b: Bench) -> bool:
    return b.store.slots[2000].state == "done"


def test_long_trials_are_handed_back_for_it_and_go_on_after_it(
    bench: Callable[..., Bench],
) -> None:
    b = busy(bench, 8)
    begun = set(b.store.reports)
    add_lone(b)
    b.store.wait_for(lambda: done(b))
    assert not b.store.finishes[:-1], "nothing else had ended: it did not wait for that"
    before = {trial: max(steps) for trial, steps in b.store.reports.items() if trial in begun}
    b.store.wait_for(
        lambda: all(max(b.store.reports[trial]) > step for trial, step in before.items())
    )
    assert all(len(slot.trials) <= 1 for slot in b.store.slots.values()), "a trial began anew"
    b.store.ask_stop(1, "cancelled")
    b.join()


def test_nothing_new_is_claimed_before_it_but_a_loop_is_not_cut_short(
    bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exclusive, "CLEAR_SECONDS", 0.0)
    b = busy(bench, 8, is_user_loop=True)
    started = len(b.store.reports)
    add_lone(b)
    with pytest.raises(TimeoutError):
        b.store.wait_for(lambda: done(b), seconds=1.5)
    assert (len(b.store.reports), b.store.hand_backs) == (started, [])
    b.store.ask_stop(1, "cancelled")
    b.store.wait_for(lambda: done(b))
    b.join()


def test_one_that_somebody_else_takes_moves_nothing(
    bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exclusive, "WAIT_SECONDS", 0.5)
    b = busy(bench, 2)
    add_lone(b)
    with b.store.lock:
        b.store.slots[2000].state = "done"
    flushes = b.store.flushes
    b.store.wait_for(lambda: b.store.flushes > flushes + 20)
    assert b.store.hand_backs == []
    b.store.ask_stop(1, "cancelled")
    b.join()
