"""How long the supervisor waits while the database is away."""

import pytest

from workers.supervisor.database_sync import Backoff


def test_back_off_doubles_up_to_its_longest_and_starts_anew() -> None:
    backoff, now, waits = Backoff(), 0.0, []
    for _ in range(7):
        backoff.failed(now)
        waits.append(round(backoff.retry_at - now, 3))
        now = backoff.retry_at
    assert waits == [0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0]
    assert backoff.recovered()
    assert not backoff.recovered()
    assert backoff.failed(now)
    assert backoff.retry_at == pytest.approx(now + 0.1)
