"""A worker's own settings, where they follow from the machine."""

from pathlib import Path

import psutil
import pytest

from workers import settings
from workers.settings import WorkerSettings


@pytest.mark.parametrize("said", ["1000000\n", "max\n", "9223372036854771712\n", None])
def test_a_container_with_less_memory_limits_its_trainer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str | None
) -> None:
    path = tmp_path / "memory.max"
    if said is not None:
        path.write_text(said)
    monkeypatch.setattr(settings, "CONTAINER_LIMITS", (path,))
    machine = int(psutil.virtual_memory().total * 0.9)
    expected = 900_000 if said == "1000000\n" else machine
    assert WorkerSettings().memory_limit_bytes == expected
