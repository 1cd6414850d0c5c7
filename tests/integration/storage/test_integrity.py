"""A SQLite file that is damaged: found at a start and by a statement, told from a stale log."""

import contextlib
import shutil
import sqlite3
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from tuner_service.access.keys import create_key, list_keys
from tuner_service.api.app import create_app
from tuner_service.api.server import prepare
from tuner_service.errors import DamagedError
from tuner_service.settings import Settings
from tuner_service.storage import Database, migrate


@pytest.fixture
def settings(tmp_path: Path, migrated_sqlite: Path) -> Settings:
    """Settings of a service on a fresh SQLite database in its data directory."""
    shutil.copy(migrated_sqlite, tmp_path / "tuner.db")
    return Settings(data_dir=tmp_path, database_url="", host="127.0.0.1")


def fill(db: Database, count: int) -> None:
    for number in range(count):
        create_key(db, f"{number}-{'x' * 100}")


def spoil(file: Path) -> None:
    """Overwrite every page but the first, which alone says what kind of file it is."""
    size = file.stat().st_size - 4096
    with file.open("r+b") as raw:
        raw.seek(4096)
        raw.write(b"\xff" * size)


def test_a_log_of_the_file_before_a_restore_is_told_apart(settings: Settings) -> None:
    """As after `kill -9` of everything, and `cp` of the backup's file alone."""
    url = settings.resolved_database_url
    file, kept = settings.data_dir / "tuner.db", settings.data_dir / "kept"
    backup = settings.data_dir / "backup.db"
    kept.mkdir()
    with contextlib.closing(Database.open(url)) as db:
        fill(db, 20)
        with contextlib.closing(sqlite3.connect(file)) as connection:
            connection.execute("VACUUM INTO ?", (str(backup),))
        fill(db, 60)
        for part in settings.data_dir.glob("tuner.db-*"):
            shutil.copy(part, kept)
    for part in kept.iterdir():
        shutil.copy(part, settings.data_dir)
    shutil.copy(backup, file)

    for refused in (migrate, lambda _: prepare(settings)):
        with pytest.raises(
            DamagedError, match=r"whole without its write-ahead log.*rm .*tuner\.db"
        ):
            refused(url)
    assert file.read_bytes() == backup.read_bytes()
    for part in ("wal", "shm"):
        (settings.data_dir / f"tuner.db-{part}").unlink()
    migrate(url)
    with contextlib.closing(Database.open(url)) as db:
        assert len(list_keys(db)) == 20


def test_a_damaged_file_is_refused(settings: Settings) -> None:
    spoil(settings.data_dir / "tuner.db")
    with pytest.raises(DamagedError, match=r"restore a backup: .*tuner\.db"):
        migrate(settings.resolved_database_url)


def test_a_file_that_is_damaged_under_the_service_is_not_ready(settings: Settings) -> None:
    app = create_app(settings)
    with TestClient(app, base_url="http://localhost", raise_server_exceptions=False) as client:
        assert client.get("/readyz").status_code == 200
        app.state.service.db.close()
        for part in settings.data_dir.glob("tuner.db-*"):
            part.unlink()
        spoil(settings.data_dir / "tuner.db")
        answer = client.get("/v1/studies")
        assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
        assert "the database file is damaged" in answer.json()["detail"]
        assert str(settings.data_dir) not in answer.text
        assert client.get("/readyz").status_code == 503
        assert "damaged" in client.get("/readyz").json()["checks"]["database"]
