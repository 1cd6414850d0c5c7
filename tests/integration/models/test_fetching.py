"""The client and the commands that fetch models and logs."""

import io
import zipfile
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from tests.integration.api.conftest import served
from tests.integration.models.trained import definition, train
from tuner_service.cli.app import run
from tuner_service.cli.codes import DONE
from tuner_service.client import NotFoundError, ServiceError, TunerClient
from tuner_service.client.study import unpack
from tuner_service.settings import Settings


def test_the_best_model_and_a_trials_log(
    client: TestClient, settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(client, settings, definition())
    log = settings.data_dir / "logs" / client.get("/v1/studies/one").json()["id"] / "0-1.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("first\nsecond\n")
    with served(settings) as url:
        with TunerClient(url) as connected:
            study = connected.study("one")
            assert (study.model(tmp_path / "a") / "predict.py").is_file()
            assert study.logs(0, tail=1) == "second\n"
            with pytest.raises(NotFoundError):
                study.model(tmp_path / "c", trial=9)
        target = tmp_path / "deep" / "b"
        assert run(["model", "one", "-o", str(target), "--url", url]) == DONE
        assert (target / "model.safetensors").read_bytes() == (
            tmp_path / "a" / "model.safetensors"
        ).read_bytes()
        capsys.readouterr()
        assert run(["logs", "one", "0", "--url", url]) == DONE
        assert capsys.readouterr().out == "first\nsecond\n"


@pytest.mark.parametrize("name", ["../evil.py", "/evil.py", "deep/evil.py"])
def test_a_zip_never_writes_outside_its_directory(tmp_path: Path, name: str) -> None:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr(name, "x")
    with pytest.raises(ServiceError, match="plain files"):
        unpack(content.getvalue(), tmp_path / "model")
    assert list(tmp_path.rglob("evil.py")) == []


def test_what_is_no_zip_is_said_to_be_none(tmp_path: Path) -> None:
    with pytest.raises(ServiceError, match="no zip"):
        unpack(b"<html>", tmp_path / "model")
