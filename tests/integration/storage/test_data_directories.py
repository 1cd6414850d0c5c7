"""A data directory may have any name: the URL of the database in it names that file."""

from pathlib import Path

import optuna
import pytest
from starlette.testclient import TestClient
from typer.testing import CliRunner

from tests.unit.definition.builders import definition
from tuner_service.api.app import create_app
from tuner_service.cli.app import app
from tuner_service.settings import Settings
from tuner_service.storage import migrate


@pytest.mark.parametrize("name", ["a b", "a%20b", "50%", "what?", "a#b", "{x}", "a@b:c", "ä'\"b"])
def test_a_data_directory_may_have_any_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    folder = tmp_path / name
    monkeypatch.setenv("TUNER_DATA_DIR", str(folder))
    settings = Settings()
    settings.directory.prepare()
    migrate(settings.resolved_database_url)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (folder / "tuner.db").stat().st_size > 0
    with TestClient(create_app(settings), base_url="http://localhost") as client:
        study = client.post("/v1/studies", json=definition(name="mine"))
        assert study.status_code == 202, study.text
        shown = client.get("/api/studies")
        assert [one["study_name"] for one in shown.json()["study_summaries"]] == ["mine"]
    printed = CliRunner().invoke(app, ["storage-url"])
    url = printed.stdout.rstrip("\n")
    assert optuna.load_study(study_name="mine", storage=url).study_name == "mine"
    assert [path.name for path in tmp_path.iterdir()] == [name]
