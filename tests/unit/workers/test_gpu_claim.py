"""Two workers never share a GPU unasked."""

from pathlib import Path

import pytest

from tuner_service.settings import Settings
from workers.settings import WorkerSettings
from workers.supervisor.worker import trainer_command
from workers.trainer.gpu_claim import GpuTakenError, claim


def test_a_gpu_has_one_trainer_until_that_ends(tmp_path: Path) -> None:
    with claim(tmp_path, "GPU-a"):
        with pytest.raises(GpuTakenError, match=r"GPU-a has a worker already.*TUNER_SHARE_GPU"):
            claim(tmp_path, "GPU-a", wait_seconds=0.0)
        claim(tmp_path, "GPU-b", wait_seconds=0.0).close()
    claim(tmp_path, "GPU-a", wait_seconds=0.0).close()


@pytest.mark.parametrize("share", [True, False])
def test_whoever_asks_for_it_shares(share: bool, tmp_path: Path) -> None:
    settings = WorkerSettings(share_gpu=share)
    command = trainer_command(Settings(data_dir=tmp_path), settings, worker_id="w")
    assert ("--share-gpu" in command.arguments) is share
