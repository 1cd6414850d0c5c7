"""A database that waits for no disk, a worker's hand on it, and two processes that race on it."""

from collections.abc import Iterator

import pytest

from tests.integration.lifecycle.hands import Hand, in_a_hurry
from tests.integration.lifecycle.racers import Point, Racer, Track
from tests.integration.lifecycle.racing import Race
from tuner_service.storage import Database

POINTS: tuple[Point, ...] = ("write", "commit")


@pytest.fixture
def db(migrated_url: str) -> Iterator[Database]:
    database = in_a_hurry(Database.open(migrated_url))
    yield database
    database.close()


@pytest.fixture
def hand(db: Database) -> Hand:
    return Hand(db)


@pytest.fixture(scope="session")
def racers() -> Iterator[tuple[Racer, Racer]]:
    pair = (Racer(), Racer())
    yield pair
    for racer in pair:
        racer.close()


@pytest.fixture(params=POINTS)
def point(request: pytest.FixtureRequest) -> Point:
    chosen: Point = request.param
    return chosen


@pytest.fixture(params=[False, True], ids=["", "swapped"])
def race(
    db: Database, racers: tuple[Racer, Racer], point: Point, request: pytest.FixtureRequest
) -> Race:
    return Race(db, Track(db.url, racers), point, request.param)
