"""A database that waits for no disk, and a worker's hand on it."""

from collections.abc import Iterator

import pytest

from tests.integration.lifecycle.hands import Hand, in_a_hurry
from tuner_service.storage import Database


@pytest.fixture
def db(migrated_url: str) -> Iterator[Database]:
    database = in_a_hurry(Database.open(migrated_url))
    yield database
    database.close()


@pytest.fixture
def hand(db: Database) -> Hand:
    return Hand(db)
