"""Processes of another version than the database's schema refuse to start, and say what to do."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

ROOT = Path(__file__).resolve().parents[3]
WORKER = ("-m", "workers", "--device", "cpu")
API = ("-m", "tuner_service.cli", "serve", "--port", "0")


def set_revision(url: str, revision: str) -> None:
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(
            text("UPDATE tuner_alembic_version SET version_num = :r"), {"r": revision}
        )
    engine.dispose()


@pytest.mark.parametrize("command", [WORKER, API], ids=["worker", "api"])
@pytest.mark.parametrize(
    ("revision", "said"), [("0001", "run `tuner migrate`"), ("9999", "pip install --upgrade")]
)
def test_a_process_of_another_schema_does_not_start(
    migrated_sqlite: Path, tmp_path: Path, command: tuple[str, ...], revision: str, said: str
) -> None:
    shutil.copy(migrated_sqlite, tmp_path / "tuner.db")
    url = f"sqlite:///{tmp_path / 'tuner.db'}"
    set_revision(url, revision)
    ended = subprocess.run(
        [sys.executable, *command],
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "TUNER_DATA_DIR": str(tmp_path / "data"),
            "TUNER_DATABASE_URL": url,
        },
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode != 0
    assert said in ended.stderr
    assert "Traceback" not in ended.stderr
