"""How a worker starts its trainers."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tuner_service.settings import Settings
from workers.settings import WorkerSettings
from workers.supervisor import worker


@pytest.mark.parametrize("queue", ["cuda", "cpu"])
def test_a_trainer_that_restarts_has_the_device_that_the_first_one_had(
    queue: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[tuple[str, ...]] = []

    def process(command: Any) -> Any:
        started.append(command.arguments)
        return SimpleNamespace(
            ready=SimpleNamespace(queue=queue), pid=1, kill=lambda: None, started_at=0.0
        )

    monkeypatch.setattr(worker, "TrainerProcess", process)
    settings = Settings(data_dir=tmp_path)
    restarter = worker.started_trainer(settings, WorkerSettings(device="auto"), worker_id="w")
    restarter.end_current(0.0)
    restarter.ensure(1.0)
    devices = [arguments[arguments.index("--device") + 1] for arguments in started]
    assert devices == ["auto", queue]
