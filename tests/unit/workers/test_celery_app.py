"""The Celery app's configuration, and what it refuses."""

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from kombu.asynchronous import Hub

from workers import celery_app as module
from workers.celery_app import app


@pytest.fixture(autouse=True)
def _data_dir(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("TUNER_DATA_DIR", str(tmp_path))


def conf(**more: Any) -> Any:
    return SimpleNamespace(worker_pool="threads", worker_concurrency=1, **more)


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"pool_cls": "prefork"}, "pool must be 'threads', but got 'prefork'"),
        ({"pool_cls": "solo"}, "pool must be 'threads', but got 'solo'"),
        ({"concurrency": 4}, "concurrency must be 1, but got 4"),
    ],
)
def test_other_pools_are_refused(options: dict[str, Any], fault: str) -> None:
    with pytest.raises(SystemExit, match=fault):
        module._require_threads(conf(), options)


def test_one_thread_is_accepted() -> None:
    module._require_threads(conf(), {"pool_cls": "threads", "concurrency": 1})
    module._require_threads(conf(), {})


def test_the_rings_are_acknowledged_early_and_hold_json_only() -> None:
    assert app.conf.task_acks_late is False
    assert app.conf.task_ignore_result is True
    assert app.conf.accept_content == ["json"]
    assert app.conf.worker_prefetch_multiplier == 1
    assert app.conf.worker_pool == "threads"
    assert app.conf.worker_concurrency == 1
    assert app.conf.broker_connection_max_retries is None
    assert app.conf.broker_transport_options["polling_interval"] == 0.1


def test_the_task_has_the_name_that_rings_carry() -> None:
    app.loader.import_default_modules()
    assert "workers.serve" in app.tasks


def test_the_event_loop_of_redis_is_kept_looking(monkeypatch: pytest.MonkeyPatch) -> None:
    appeared: list[bool] = []
    worker = SimpleNamespace(appear=lambda: appeared.append(True))
    monkeypatch.setattr(module, "current_worker", lambda: worker)
    hub = Hub()
    module.appear(sender=SimpleNamespace(hub=hub))
    assert appeared
    hub.fire_timers()
    delay, _ = next(iter(hub.scheduler))
    assert delay is not None
    assert delay <= module.LOOK_SECONDS
    module.appear(sender=SimpleNamespace(hub=None))  # the filesystem broker has none


def test_the_worker_process_does_not_import_torch() -> None:
    code = "import sys, workers.celery_app, workers.tasks; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
