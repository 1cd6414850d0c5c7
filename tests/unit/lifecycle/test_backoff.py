"""How long a slot waits after its n-th death."""

import pytest

from tuner_service.lifecycle.attempts import LONGEST_BACKOFF_SECONDS, backoff_seconds


@pytest.mark.parametrize(
    ("deaths", "base", "seconds"),
    [
        (0, 1.0, 1.0),  # a lease lost before its trial began: 1 x 2^0
        (1, 1.0, 1.0),  # 1 x 2^0
        (2, 1.0, 2.0),  # 1 x 2^1
        (5, 1.0, 16.0),  # 1 x 2^4
        (3, 0.5, 2.0),  # 0.5 x 2^2
        (4, 0.0, 0.0),
        (30, 1.0, LONGEST_BACKOFF_SECONDS),
        (5000, 1.0, LONGEST_BACKOFF_SECONDS),
    ],
)
def test_backoff_doubles_up_to_a_limit(deaths: int, base: float, seconds: float) -> None:
    assert backoff_seconds(deaths, base) == seconds
