"""The model of a trial over REST, and the file in it that predicts without this project."""

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from tests.integration.api.test_api import run_trials
from tests.integration.models.trained import definition, predict, test_rows, train, unpack
from tuner_service.settings import Settings

FILES = {
    "definition.json",
    "export.py",
    "model.json",
    "model.safetensors",
    "network.py",
    "predict.py",
    "preprocessing.json",
    "trial.json",
}
CNN = {"type": "cnn", "conv_layers": 2, "channels": 4, "kernel_size": 5, "hidden_units": 8}


def fetch(client: TestClient, directory: Path, study: str = "one") -> Path:
    answer = client.get(f"/v1/studies/{study}/trials/0/model")
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/zip"
    return unpack(answer.content, directory)


@pytest.mark.parametrize(
    "changes",
    [
        {"network": {"type": "mlp", "hidden_layers": 2, "norm": "batch", "dropout": 0.2}},
        {"network": {"type": "mlp", "hidden_layers": 1, "norm": "layer", "activation": "gelu"}},
        {"dataset": {"name": "digits"}, "network": {**CNN, "norm": "batch"}},
        {"dataset": {"name": "digits"}, "network": {**CNN, "norm": "layer", "activation": "elu"}},
        {"dataset": {"name": "digits"}, "network": {"type": "gru", "hidden_units": 16}},
        {"dataset": {"name": "digits", "standardize": False}, "network": {"type": "mlp"}},
        {
            "dataset": {"name": "breast_cancer"},
            "training": {"epochs": 3, "loss": "binary_cross_entropy", "precision": "float64"},
        },
    ],
    ids=["batch-norm", "layer-norm", "cnn", "cnn-layer-norm", "gru", "unscaled", "binary-float64"],
)
def test_predict_py_is_as_accurate_as_the_trial(
    client: TestClient, settings: Settings, tmp_path: Path, changes: dict[str, Any]
) -> None:
    spec = train(client, settings, definition(**changes))
    directory = fetch(client, tmp_path / "best")
    assert {file.name for file in directory.iterdir()} == FILES
    inputs, targets = test_rows(spec)
    np.save(tmp_path / "rows.npy", inputs)
    labels = json.loads((directory / "preprocessing.json").read_text())["classes"]
    answers = predict(directory, tmp_path / "rows.npy")
    trial = json.loads((directory / "trial.json").read_text())
    right = np.mean([answer == labels[t] for answer, t in zip(answers, targets, strict=True)])
    assert right == pytest.approx(trial["record"]["test_accuracy"], abs=1e-9)
    assert right > 1.2 / len(labels), "no better than guessing: the comparison says little"


def test_regression_and_csv_columns_by_name(
    client: TestClient, settings: Settings, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(120, 3)) * [1.0, 100.0, 0.01] + [0.0, 1000.0, 5.0]
    target = rows @ [2.0, 0.05, 30.0]
    folder = settings.data_dir / "datasets"
    folder.mkdir()
    lines = [",".join(map(repr, [*row, y])) for row, y in zip(rows.tolist(), target, strict=True)]
    lines = [line.replace("np.float64(", "").replace(")", "") for line in lines]
    (folder / "t.csv").write_text("\n".join(["a,b,c,y", *lines]) + "\n")
    study = definition(
        dataset={"name": "csv", "path": "t.csv", "target": "y", "task": "regression"},
        objective={"metric": "val_mse", "direction": "minimize"},
        training={"epochs": 20},
    )
    spec = train(client, settings, study)
    directory = fetch(client, tmp_path / "best")
    inputs, targets = test_rows(spec, folder)
    shuffled = ["c,unused,a,b"] + [f"{c!r},x,{a!r},{b!r}" for a, b, c in inputs.tolist()]
    (tmp_path / "rows.csv").write_text("\n".join(shuffled) + "\n")
    answers = np.array([float(a) for a in predict(directory, tmp_path / "rows.csv")])
    trial = json.loads((directory / "trial.json").read_text())
    mse = np.mean(np.square(answers - targets[:, 0]))
    assert mse == pytest.approx(trial["record"]["test_mse"], rel=1e-5)


def test_a_csv_file_is_read_as_the_studys_was(
    client: TestClient, settings: Settings, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    rows = np.column_stack(
        [rng.integers(0, 9, 120), rng.integers(0, 2, 120), rng.integers(0, 9, 120)]
    )
    rows[0] = [0, 1, 2]  # as a header of positions would be
    rows[:, 1] = rows[:, 0] > rows[:, 2]
    folder = settings.data_dir / "datasets"
    folder.mkdir()
    np.savetxt(folder / "t.csv", rows, delimiter=";", fmt="%d")
    told = {"name": "csv", "path": "t.csv", "target": 1, "delimiter": ";", "header": False}
    train(client, settings, definition(dataset=told))
    directory = fetch(client, tmp_path / "best")
    np.save(tmp_path / "rows.npy", rows[:, [0, 2]])
    np.savetxt(tmp_path / "inputs.csv", rows[:, [0, 2]], delimiter=";", fmt="%d")
    files = (tmp_path / "rows.npy", tmp_path / "inputs.csv", folder / "t.csv")
    arrays, inputs, whole = (predict(directory, file, "--scores") for file in files)
    assert len(arrays) == 120
    assert arrays == inputs == whole


def test_scores_are_probabilities(client: TestClient, settings: Settings, tmp_path: Path) -> None:
    spec = train(client, settings, definition())
    directory = fetch(client, tmp_path / "best")
    np.save(tmp_path / "rows.npy", test_rows(spec)[0])
    scores = [line.split(",") for line in predict(directory, tmp_path / "rows.npy", "--scores")]
    assert {len(line) for line in scores} == {3}
    assert np.array(scores, dtype=float).sum(axis=1) == pytest.approx(1.0, abs=1e-6)


def test_the_zip_says_what_the_model_came_from(client: TestClient, settings: Settings) -> None:
    train(client, settings, definition())
    content = client.get("/v1/studies/one/trials/0/model").content
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        read = {name: json.loads(archive.read(name)) for name in FILES if name.endswith(".json")}
    assert read["definition.json"]["network"]["hidden_units"] == 16
    assert read["trial.json"]["parameters"].keys() == {"learning_rate"}
    assert read["model.json"]["data_hash"] == read["trial.json"]["record"]["data_hash"]
    assert read["preprocessing.json"]["columns"][0] == "sepal length (cm)"
    assert len(read["preprocessing.json"]["mean"]) == 4
    assert content == client.get("/v1/studies/one/trials/0/model").content


def test_weights_that_were_not_kept_say_so(client: TestClient, settings: Settings) -> None:
    client.post("/v1/studies", json=definition())
    run_trials(settings, [0.5])
    answer = client.get("/v1/studies/one/trials/0/model")
    assert (answer.status_code, answer.json()["code"]) == (404, "not_kept")
    assert "keep_models" in answer.json()["detail"]
    missing = client.get("/v1/studies/one/trials/7/model")
    assert (missing.status_code, missing.json()["code"]) == (404, "not_found")


def test_a_model_file_that_is_gone_is_not_kept(client: TestClient, settings: Settings) -> None:
    train(client, settings, definition())
    for file in (settings.data_dir / "models").rglob("*.safetensors"):
        file.write_bytes(b"cut")
    answer = client.get("/v1/studies/one/trials/0/model")
    assert (answer.status_code, answer.json()["code"]) == (404, "not_kept")


def test_logs_are_text_and_can_be_tailed(client: TestClient, settings: Settings) -> None:
    train(client, settings, definition())
    silent = client.get("/v1/studies/one/trials/0/logs")
    assert (silent.status_code, silent.text) == (200, "")
    study = client.get("/v1/studies/one").json()["id"]
    log = settings.data_dir / "logs" / study / "0-1.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("one\ntwo\nthree\n")
    answer = client.get("/v1/studies/one/trials/0/logs")
    assert answer.headers["content-type"].startswith("text/plain")
    assert answer.text == "one\ntwo\nthree\n"
    tails = {n: client.get(f"/v1/studies/one/trials/0/logs?tail={n}").text for n in (0, 2, 9)}
    assert tails == {0: "", 2: "two\nthree\n", 9: "one\ntwo\nthree\n"}
    assert client.get("/v1/studies/one/trials/5/logs").status_code == 404
    assert client.get("/v1/studies/one/trials/0/logs?tail=-1").status_code == 422
