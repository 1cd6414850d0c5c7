"""A service that runs for those who share a lock."""

import threading
from pathlib import Path

from tuner_service.files import locked
from tuner_service.settings import Settings
from tuner_service.up.embedded import stop_when_released
from tuner_service.up.machine import only_one, running_address, tell_address


def test_it_stops_when_the_last_has_released_its_lock(tmp_path: Path) -> None:
    lock, stopped = tmp_path / "run.lock", threading.Event()
    with locked(lock, shared=True):
        with locked(lock, shared=True):
            stop_when_released(lock, stopped.set)
        assert not stopped.wait(0.5)
    assert stopped.wait(20.0)
    with locked(lock, shared=True, wait=False) as free:
        assert not free, "nobody may begin to use a service that is stopping"


def test_the_address_is_that_of_the_service_that_runs(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    assert running_address(settings) is None
    with only_one(settings):
        assert running_address(settings) is None, "it does not listen yet"
        tell_address(settings, "http://127.0.0.1:1")
        assert running_address(settings) == "http://127.0.0.1:1"
    assert running_address(settings) is None, "what is left in the file is of one that has ended"
