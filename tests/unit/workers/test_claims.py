"""How far ahead a worker claims."""

import pytest

from workers.supervisor.claims import CompletionRate


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
    completion_rate, now = CompletionRate(0.0), 0.0
    while now < 20.0:
        now += every_seconds
        completion_rate.note(1, now)
    assert completion_rate.ahead(now) == pytest.approx(ahead, abs=1)


def test_it_forgets() -> None:
    completion_rate = CompletionRate(0.0)
    completion_rate.note(1000, 1.0)
    assert completion_rate.ahead(1.0) == 64
    assert completion_rate.ahead(11.0) == 0
