"""One running service per kind of back end, with as many workers as the test asks for."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.service import Service, running

# Short leases, so that a killed worker's work is taken over within a test's patience.
SETTINGS = {
    "TUNER_LEASE_SECONDS": "3",
    "TUNER_RECONCILE_SECONDS": "0.5",
    "TUNER_RETRY_BACKOFF_SECONDS": "0.2",
    "TUNER_CHECKPOINT_SECONDS": "1",
    "TUNER_GRACE_SECONDS": "8",
}


@pytest.fixture(scope="package", params=["sqlite+filesystem", "postgresql+redis"])
def service(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """A service on a back end of its own; tests call `scale` for the workers they need."""
    directory = tmp_path_factory.mktemp("service")
    with running(_service(request, directory), workers=1) as service:
        yield service


def _service(request: pytest.FixtureRequest, directory: Path) -> Service:
    if request.param == "sqlite+filesystem":
        return Service(directory, f"sqlite:///{directory / 'tuner.db'}", settings=SETTINGS)
    postgres = request.getfixturevalue("postgres")
    redis = request.getfixturevalue("redis_private")
    url = postgres.url(postgres.create_database())
    return Service(directory, url, redis.url, settings=SETTINGS)
