"""Settings as the environment gives them."""

from pathlib import Path

import pytest

from tuner_service.settings import Settings


def test_lists_are_written_as_people_write_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNER_DATASET_DIRS", "/srv/data:~/more:")
    monkeypatch.setenv("TUNER_ALLOWED_HOSTS", "tuner.example, proxy.example")
    settings = Settings()
    assert settings.dataset_dirs == (Path("/srv/data"), Path.home() / "more")
    assert settings.allowed_hosts == ("tuner.example", "proxy.example")


def test_a_relative_directory_is_meant_from_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNER_DATASET_DIRS", "data")
    assert Settings().dataset_dirs == (Path.cwd() / "data",)
    monkeypatch.setenv("TUNER_DATASET_DIRS", "")
    assert Settings().dataset_dirs == ()
