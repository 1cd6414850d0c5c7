"""A final fit on all rows, with what a study has found."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from tests.integration.api.conftest import served
from tests.integration.models.trained import definition, train
from tuner_service.cli.app import run
from tuner_service.cli.codes import DONE
from tuner_service.client import ConflictError, TunerClient
from tuner_service.settings import Settings

STOPPED = {"epochs": 12, "early_stopping": {"patience": 2, "metric": "val_loss"}}


def trial(client: TestClient, study: str) -> dict[str, Any]:
    found: dict[str, Any] = client.get(f"/v1/studies/{study}/trials/0").json()
    return found


def refitted(client: TestClient, query: str = "") -> dict[str, Any]:
    """Refit a study, and take its only slot out of the way of who trains it under another name."""
    answer = client.post(f"/v1/studies/one/refit{query}")
    assert answer.status_code == 202, answer.text
    made: dict[str, Any] = answer.json()
    assert (made["name"], made["progress"]["total"]) == ("one-refit", 1)
    assert client.post("/v1/studies/one-refit/cancel").status_code == 200
    return made["definition"] | {"name": "again"}


@pytest.mark.parametrize(
    "split", [{}, {"folds": 3}, {"validation": 0.3, "test": 0.1, "stratify": False}]
)
def test_the_best_parameters_are_trained_on_all_rows(
    client: TestClient, settings: Settings, split: dict[str, Any]
) -> None:
    dataset = {"name": "breast_cancer", "split": split}
    if split.get("folds"):
        training: dict[str, Any] = STOPPED
    else:
        training = {**STOPPED, "threshold": "f1", "class_weight": "balanced"}
    train(client, settings, definition(dataset=dataset, training=training))
    searched = trial(client, "one")
    spec = train(client, settings, refitted(client))
    assert spec.epochs == searched["record"]["best_step"]
    assert spec.optimizer["learning_rate"] == searched["parameters"]["learning_rate"]
    fitted = trial(client, "again")["record"]
    assert fitted["epochs_run"] == spec.epochs
    assert fitted["samples_per_second"] > 0
    assert not {name for name in fitted if name.startswith(("val_", "test_"))}
    if not split.get("folds"):
        assert spec.threshold == searched["record"]["threshold"] == fitted["threshold"]
        assert spec.class_weight == "balanced"


def test_searched_epochs_become_those_that_were_best(
    client: TestClient, settings: Settings
) -> None:
    parameters = {"epochs": {"type": "int", "low": 3, "high": 6}}
    train(client, settings, definition(parameters=parameters, training={}))
    searched = trial(client, "one")
    spec = train(client, settings, refitted(client, "?trial=0"))
    assert spec.epochs == searched["parameters"]["epochs"]


def test_the_split_column_stays_no_input_and_every_row_is_trained_on(
    client: TestClient, settings: Settings
) -> None:
    rng = np.random.default_rng(0)
    lines = [f"{x},{n % 9},{'ab'[int(x > 0)]}" for n, x in enumerate(rng.normal(size=90))]
    folder = settings.data_dir / "datasets"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "t.csv").write_text("\n".join(["x,owner,kind", *lines]))
    dataset = {"name": "csv", "path": "t.csv", "target": "kind", "split": {"group": "owner"}}
    train(client, settings, definition(dataset=dataset))
    made = refitted(client)
    assert made["dataset"]["split"] == {"group": "owner", "validation": 0.0, "test": 0.0, "seed": 0}
    train(client, settings, made)
    model = client.get("/v1/studies/again/trials/0").json()
    assert model["has_model"]
    rows = 90 * 5  # epochs
    record = model["record"]
    assert record["samples_per_second"] * record["seconds"] == pytest.approx(rows)


def test_nothing_to_refit_and_a_trial_that_is_not_there(
    client: TestClient, settings: Settings
) -> None:
    assert client.post("/v1/studies", json=definition()).status_code == 202
    answer = client.post("/v1/studies/one/refit")
    assert answer.status_code == 409
    assert "no trial with a result" in answer.json()["detail"]
    assert client.post("/v1/studies/one/refit?trial=3").status_code == 404
    assert client.post("/v1/studies/two/refit").status_code == 404


def test_the_client_and_the_command_refit(
    client: TestClient, settings: Settings, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    train(client, settings, definition())
    with served(settings) as url:
        with TunerClient(url) as connected:
            made = connected.study("one").refit()
            assert made.name == "one-refit"
            with pytest.raises(ConflictError, match="no trial with a result"):
                made.refit()
        capsys.readouterr()
        assert run(["refit", "one", "--trial", "0", "--json", "--url", url]) == DONE
        assert json.loads(capsys.readouterr().out)["name"] == "one-refit-2"
