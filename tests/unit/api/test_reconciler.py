"""The reconciler's thread: it rings when asked, goes on through outages, and stops."""

import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tuner_service.api import background
from tuner_service.api.background import Reconciler
from tuner_service.api.routes.metrics import Metrics
from tuner_service.errors import UnavailableError
from tuner_service.lifecycle.reconcile import Reconciled
from tuner_service.reads.views import WorkerView
from tuner_service.settings import Settings

PATIENCE = 10.0


class Bell:
    """Notes rings."""

    def __init__(self) -> None:
        self.rings: list[tuple[str, int]] = []
        self.backend = threading.Event()

    def ring(self, queue: str, count: int = 1) -> None:
        """Note it."""
        self.rings.append((queue, count))
        self.backend.set()


def worker(name: str, queue: str, state: str) -> WorkerView:
    """A listed worker."""
    now = datetime.now(UTC)
    return WorkerView(
        id=name,
        host="h",
        pid=1,
        queue=queue,
        device=None,
        version="0",
        state=state,
        lanes=1,
        current_trials=[],
        started_at=now,
        heartbeat_at=now,
    )


def made(bell: Bell, tmp_path: Path, *, seconds: float) -> Reconciler:
    """A reconciler on nothing."""
    settings = Settings(data_dir=tmp_path, reconcile_seconds=seconds)
    metrics = Metrics(None)  # type: ignore[arg-type]
    return Reconciler(None, bell, metrics, settings=settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("device", "expected"),
    [("auto", {"cuda": 1, "cpu": 3}), ("cpu", {"cpu": 3}), ("cuda", {"cuda": 1})],
)
def test_a_new_study_rings_each_worker_that_can_run_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, device: str, expected: dict[str, int]
) -> None:
    listed = [
        worker("a", "cpu", "idle"),
        worker("b", "cpu", "idle"),
        worker("c", "cpu", "busy"),  # as far as was heard: it may be idle since
        worker("d", "cuda", "idle"),
    ]
    reconciled = threading.Event()

    def nothing(_db: object, *, settings: Settings) -> Reconciled:
        reconciled.set()
        return Reconciled(0, [], {})

    monkeypatch.setattr(background, "list_workers", lambda _db: listed)
    monkeypatch.setattr(background, "reconcile", nothing)
    bell = Bell()
    ringing = made(bell, tmp_path, seconds=600)
    ringing.start()
    assert reconciled.wait(PATIENCE)
    ringing.ring_soon(device)
    ringing.stop()  # after what was asked before
    assert dict(bell.rings) == expected


def test_outages_and_surprises_do_not_end_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    answers = iter([UnavailableError("away"), ValueError("surprise"), UnavailableError("away")])

    def failing(_db: object, *, settings: Settings) -> Reconciled:
        error = next(answers, None)
        if error is not None:
            raise error
        return Reconciled(1, ["st_1"], {"cpu": 2})

    monkeypatch.setattr(background, "reconcile", failing)
    bell = Bell()
    trying = made(bell, tmp_path, seconds=0.001)
    trying.start()
    assert bell.backend.wait(PATIENCE)
    trying.stop()
    assert bell.rings[0] == ("cpu", 2)
