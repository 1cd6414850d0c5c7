"""How far ahead a worker claims."""

import pytest

from workers.supervisor.completion_rate import Pace


@pytest.mark.parametrize(
    ("every_seconds", "ahead"),
    [
        (10.0, 0),  # a trial every ten seconds: another worker may have the next
        (0.5, 0),
        (0.02, 12),  # 50 a second, a quarter second ahead
        (0.001, 64),
    ],
)
def test_it_claims_ahead_what_ends_in_a_quarter_second(every_seconds: float, ahead: int) -> None:
    pace, now = Pace(0.0), 0.0
    while now < 20.0:
        now += every_seconds
        pace.note(1, now)
    assert pace.ahead(now) == pytest.approx(ahead, abs=1)


def test_it_forgets() -> None:
    pace = Pace(0.0)
    pace.note(1000, 1.0)
    assert pace.ahead(1.0) == 64
    assert pace.ahead(11.0) == 0
