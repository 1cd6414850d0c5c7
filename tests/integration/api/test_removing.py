"""Deleted studies lose their rows soon, also those that an API before this one left."""

import fcntl
import time

from sqlalchemy import func, select
from starlette.testclient import TestClient

from tests.integration.api.test_api import definition
from tuner_service.api.app import create_app
from tuner_service.lifecycle.delete import delete
from tuner_service.settings import Settings
from tuner_service.storage import Database
from tuner_service.storage.schema import slots, studies


def until_gone(db: Database) -> None:
    """Return when no row is left."""
    deadline = time.monotonic() + 20.0
    counts = [-1]
    while any(counts):
        assert time.monotonic() < deadline
        time.sleep(0.02)
        with db.read() as connection:
            counts = [
                connection.execute(select(func.count()).select_from(table)).scalar_one()
                for table in (studies, slots)
            ]
    db.close()


def test_a_deleted_studys_rows_go(client: TestClient, settings: Settings) -> None:
    study = client.post("/v1/studies", json=definition()).json()["id"]
    client.post(f"/v1/studies/{study}/cancel")
    assert client.delete(f"/v1/studies/{study}").status_code == 204
    assert client.get(f"/v1/studies/{study}").status_code == 404
    assert client.delete(f"/v1/studies/{study}").status_code == 404
    until_gone(Database.open(settings.resolved_database_url))


def test_of_two_removers_one_removes(settings: Settings, client: TestClient) -> None:
    with settings.directory.remover_lock.open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        study = client.post("/v1/studies", json=definition()).json()["id"]
        client.post(f"/v1/studies/{study}/cancel")
        assert client.delete(f"/v1/studies/{study}").status_code == 204
        time.sleep(0.5)
        db = Database.open(settings.resolved_database_url)
        with db.read() as connection:
            assert connection.execute(select(func.count()).select_from(slots)).scalar_one() > 0
    until_gone(db)


def test_what_was_left_of_a_deleted_study_goes_at_the_next_start(settings: Settings) -> None:
    with TestClient(create_app(settings), base_url="http://localhost") as client:
        study = client.post("/v1/studies", json=definition()).json()["id"]
        client.post(f"/v1/studies/{study}/cancel")
    db = Database.open(settings.resolved_database_url)
    delete(db, study)  # and whoever did it died
    with TestClient(create_app(settings), base_url="http://localhost"):
        until_gone(db)
