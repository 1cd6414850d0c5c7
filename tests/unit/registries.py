"""Takes what a test's modules leave in the registries of networks, losses and data out again."""

import sys
from collections.abc import Iterator

import pytest

from workers.training.data import SOURCES
from workers.training.nets import networks
from workers.training.nets.losses import LOSSES


@pytest.fixture
def registries() -> Iterator[None]:
    """Leave nothing of a test's modules behind."""
    known = [(each, dict(each)) for each in (networks.NETWORKS, LOSSES, SOURCES)]
    path = list(sys.path)
    yield
    for registry, before in known:
        registry.clear()  # type: ignore[attr-defined]
        registry.update(before)  # type: ignore[attr-defined]
    sys.path[:] = path
