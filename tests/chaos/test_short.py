"""A short attack on each back end; `make chaos` runs long ones."""

import pytest

from tests.chaos.run import attack
from tests.servers import MissingServerError

pytestmark = [pytest.mark.timeout(600), pytest.mark.slow]


@pytest.mark.parametrize("backend", ["sqlite", "postgresql"])
def test_nothing_is_lost_doubled_or_stuck_under_attack(backend: str) -> None:
    try:
        tally = attack(backend, seconds=10.0, seed=11, workers=2)
    except MissingServerError as missing:
        pytest.skip(str(missing))
    assert tally.violations == []
    assert tally.faults.total() > 0
    assert tally.trials > 0
