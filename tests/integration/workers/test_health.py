"""The health check of a worker's container."""

from tuner_service.lifecycle.workers import leave, register_worker
from tuner_service.settings import Settings
from tuner_service.storage import Database
from workers.health import find_problem


def register(db: Database, host: str) -> None:
    register_worker(
        db,
        worker_id=f"{host}-1",
        host=host,
        pid=1,
        queue="cpu",
        device="cpu",
        version="0",
        lanes=1,
    )


def test_a_host_is_healthy_while_a_worker_of_it_is_listed(db: Database) -> None:
    settings = Settings(database_url=db.url)
    register(db, "other")
    problem = find_problem(settings, "here")
    assert problem is not None
    assert "'here'" in problem
    assert "'other'" in problem
    register(db, "here")
    assert find_problem(settings, "here") is None
    leave(db, "here-1")
    assert find_problem(settings, "here") is not None
