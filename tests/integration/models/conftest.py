"""An application on SQLite, spoken to in-process."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from tuner_service.api.app import create_app
from tuner_service.settings import Settings


@pytest.fixture
def settings(tmp_path: Path, migrated_sqlite: Path) -> Settings:
    """Settings of a service on a fresh database and its own data directory."""
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    shutil.copy(migrated_sqlite, data_dir / "tuner.db")
    return Settings(data_dir=data_dir, database_url="", host="127.0.0.1")


@pytest.fixture
def client(settings: Settings) -> Iterator[TestClient]:
    """The running application."""
    with TestClient(create_app(settings), base_url="http://localhost") as client:
        yield client
