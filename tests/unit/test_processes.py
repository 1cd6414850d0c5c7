"""What is said of processes that ended."""

import pytest

from tuner_service.processes import how_it_ended


@pytest.mark.parametrize(
    ("code", "how"),
    [
        (0, "ended with exit code 0"),
        (3, "ended with exit code 3"),
        (-9, "was killed by SIGKILL"),
        (-35, "was killed by signal 35"),  # a real-time signal without a name
    ],
)
def test_how_a_process_ended(code: int, how: str) -> None:
    assert how_it_ended(code) == how
