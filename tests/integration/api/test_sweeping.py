"""What nothing needs goes from the data directory while the API runs."""

import time
from pathlib import Path

from starlette.testclient import TestClient

from tests.integration.api.test_api import definition
from tuner_service.api.app import create_app
from tuner_service.settings import Settings


def written(path: Path) -> Path:
    """Write a file, which no row of the database names."""
    path.parent.mkdir(parents=True)
    path.touch()
    return path


def test_the_api_sweeps_at_its_start(settings: Settings) -> None:
    with TestClient(create_app(settings), base_url="http://localhost") as client:
        study = client.post("/v1/studies", json=definition()).json()["id"]
    model = written(settings.data_dir / "models" / study / "0-1.safetensors")
    with TestClient(create_app(settings), base_url="http://localhost"):
        deadline = time.monotonic() + 20.0
        while model.exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_a_deleted_studys_files_go_with_it(settings: Settings) -> None:
    with TestClient(create_app(settings), base_url="http://localhost") as client:
        study = client.post("/v1/studies", json=definition(name="named")).json()["id"]
        log = written(settings.data_dir / "logs" / study / "0-1.log")
        assert client.delete("/v1/studies/named").status_code == 409
        assert log.exists()
        assert not (settings.data_dir / "deleted").exists(), "it was not deleted"
        client.post("/v1/studies/named/pause")
        assert client.delete("/v1/studies/named").status_code == 204
        assert not log.parent.exists()
        deadline = time.monotonic() + 20.0  # for what its trials write late
        while not (settings.data_dir / "deleted" / study).exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
