"""The rule that says whether a long run's memory, handles and rows stay flat."""

import random

import pytest

from tests.chaos.flat import Tolerance, judge

TIMES = [10.0 * i for i in range(361)]  # an hour
MEMORY = Tolerance(share=0.03, step=3.0)


def noisy(per_hour: float, *, jump: float = 0.0) -> list[float]:
    """Memory around 200 MB that settles for ten minutes, then grows, with noise."""
    rng = random.Random(1)
    return [
        200.0
        + min(t, 600.0) / 6.0
        + per_hour * t / 3600.0
        + rng.gauss(0.0, 5.0)
        + (jump if t == 2000.0 else 0.0)
        for t in TIMES
    ]


@pytest.mark.parametrize(
    ("per_hour", "jump", "flat"),
    [
        (0.0, 0.0, True),  # it settled
        (0.0, 500.0, True),  # one outlier
        (-50.0, 0.0, True),
        (5.0, 0.0, True),  # 3.3 MB in 40 minutes; 9 are allowed
        (30.0, 0.0, False),  # 20 MB
    ],
)
def test_what_grows_after_settling_is_told_from_noise(
    per_hour: float, jump: float, flat: bool
) -> None:
    verdict = judge(TIMES, noisy(per_hour, jump=jump), MEMORY)
    assert verdict.is_flat is flat
    assert verdict.per_hour == pytest.approx(per_hour, abs=2.0)


def test_a_handle_that_leaks_now_and_then_is_seen() -> None:
    leak = [20.0 + t // 300.0 for t in TIMES]  # one in five minutes
    assert not judge(TIMES, leak, Tolerance(0.0, 2.0)).is_flat


def test_too_short_a_run_says_nothing() -> None:
    with pytest.raises(ValueError, match="at least 3 samples"):
        judge([0.0, 1.0], [1.0, 1.0], MEMORY)
