"""Uploading data over REST, training on it, and what a second upload does not change."""

import base64
import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from examples import make_own_data
from tests.integration.api.conftest import served
from tests.integration.api.test_api import definition
from tests.unit.training.builders import only, run_all, start
from tuner_service.api.app import create_app
from tuner_service.api.routes import studies as studies_api
from tuner_service.cli import run
from tuner_service.client import TunerClient
from tuner_service.datasets import DatasetStore
from tuner_service.definition import StudyDefinition, load_yaml, resolve, space_of
from tuner_service.errors import ConflictError
from tuner_service.lifecycle.datasets import remove_dataset, sweep_dataset
from tuner_service.lifecycle.workers import publish_modules, register_worker
from tuner_service.search.samplers.uniform import draw
from tuner_service.settings import Settings
from tuner_service.storage import Database
from workers.training.engine.engine import Engine, EngineSettings
from workers.user_modules import describe

EXAMPLES = Path(__file__).parents[3] / "examples"
TABLE = "x,y,kind\n" + "".join(f"{i},{i % 7},{'ab'[i % 2]}\n" for i in range(40))
LONGER = TABLE + "3,3,c\n" * 10


def study(**dataset: Any) -> dict[str, Any]:
    return definition(dataset={"name": "mine", "target": "kind", **dataset})


def put(client: TestClient, content: str, name: str = "mine", **headers: str) -> Any:
    return client.put(f"/v1/datasets/{name}", content=content.encode(), headers=headers)


def test_an_uploaded_table_is_trained_on(
    client: TestClient, settings: Settings, tmp_path: Path
) -> None:
    answer = put(client, TABLE)
    assert answer.status_code == 201
    assert answer.json()["rows"] == 40
    listed = client.get("/v1/datasets").json()["items"]
    assert [one["name"] for one in listed if one["kind"] == "uploaded"] == ["mine"]
    assert "iris" in [one["name"] for one in listed if one["kind"] == "built-in"]
    assert client.get("/v1/datasets/mine").json() == answer.json()

    stored = client.post("/v1/studies", json=study()).json()["definition"]
    assert stored["dataset"]["sha256"] == hashlib.sha256(TABLE.encode()).hexdigest()
    spec = resolve(StudyDefinition.model_validate(stored), {"learning_rate": 0.01})
    engine = Engine(
        "cpu", settings=EngineSettings(data_dirs=(settings.data_dir / "datasets",), threads=1)
    )
    finished = only(run_all(engine, [start(1, spec, folder=tmp_path)]), 1, "finished")
    assert 0.0 <= finished.values[0] <= 1.0


def test_a_study_keeps_to_the_version_it_was_submitted_with(
    client: TestClient, settings: Settings
) -> None:
    first = put(client, TABLE).json()
    key = {"Idempotency-Key": "once"}
    pinned = client.post("/v1/studies", json=study(), headers=key).json()
    second = put(client, LONGER)
    assert second.status_code == 200
    again = client.post("/v1/studies", json=study(), headers=key).json()
    assert again["id"] == pinned["id"], "the key stands for what was asked"
    assert again["definition"]["dataset"]["sha256"] == first["sha256"]
    newer = client.post("/v1/studies", json=study()).json()
    assert newer["definition"]["dataset"]["sha256"] == second.json()["sha256"]
    folder = settings.data_dir / "datasets" / "uploads"
    assert (folder / first["sha256"] / "mine.csv").read_text() == TABLE
    older = client.post("/v1/studies", json=study(sha256=first["sha256"])).json()
    assert older["definition"]["dataset"]["sha256"] == first["sha256"]
    resent = client.post("/v1/studies", json=pinned["definition"])
    assert resent.json()["definition"]["dataset"] == pinned["definition"]["dataset"]


@pytest.mark.parametrize(
    ("dataset", "pointer", "code"),
    [
        ({"name": "min"}, "/dataset/name", "unknown_name"),
        ({"sha256": "0" * 64}, "/dataset/sha256", "unknown_version"),
        ({"format": "npz"}, "/dataset/format", "unknown_name"),
        ({"path": "x.csv"}, "/dataset/path", "unknown_key"),
        ({"name": "iris", "sha256": "0" * 64}, "/dataset/sha256", "does_not_apply"),
        ({"split": {"test": 0.001}}, "/dataset/split/test", "out_of_range"),
        ({"target": "nix"}, "/dataset/target", "unknown_name"),
        ({"columns": ["nix"]}, "/dataset/columns", "unknown_name"),
    ],
)
def test_definitions_that_do_not_fit_the_uploaded_data(
    client: TestClient, dataset: dict[str, Any], pointer: str, code: str
) -> None:
    put(client, TABLE)
    answer = client.post("/v1/studies/validate", json=study(**dataset))
    assert answer.status_code == 422
    assert (pointer, code) in [(e["pointer"], e["code"]) for e in answer.json()["errors"]]


@pytest.mark.parametrize(
    ("content", "dataset"),
    [
        ("a|b|c,kind\n" + "1|2|3,0\n1|2|3,1\n" * 20, {}),  # the guess would be |
        ("1,2,0\n" + "3,4,1\n5,6,0\n" * 20, {"header": False, "target": 2}),
        (TABLE, {"columns": ["y", "x"]}),
    ],
    ids=["delimiter", "no header", "columns"],
)
def test_columns_are_refused_only_where_the_header_is_known(
    client: TestClient, content: str, dataset: dict[str, Any]
) -> None:
    put(client, content)
    answer = client.post("/v1/studies/validate", json=study(**dataset))
    assert answer.status_code == 200, answer.json()


def test_what_is_refused_on_arrival(settings: Settings) -> None:
    small = settings.model_copy(update={"max_dataset_bytes": 100})
    digest = base64.b64encode(hashlib.sha256(b"else").digest()).decode()
    with TestClient(create_app(small), base_url="http://localhost") as client:
        for content, name, headers, status, code in (
            (TABLE, "mine", {}, 413, "limit"),
            ("a,b\n", "mine", {}, 422, "data"),
            ("a,b\n1,2\n", "mine", {"Content-Digest": f"sha-256=:{digest}:"}, 422, "data"),
            ("a,b\n1,2\n", "iris", {}, 422, "invalid_input"),
            ("a,b\n1,2\n", "a.b", {}, 422, "invalid_input"),
        ):
            answer = put(client, content, name, **headers)
            assert (answer.status_code, answer.json()["code"]) == (status, code), content
        chunks = (b"x" * 30 for _ in range(5))  # no Content-Length
        assert client.put("/v1/datasets/mine", content=chunks).status_code == 413
        assert client.get("/v1/datasets/mine").status_code == 404


def test_data_in_use_cannot_be_deleted(client: TestClient) -> None:
    put(client, TABLE)
    client.post("/v1/studies", json=study())
    refused = client.delete("/v1/datasets/mine")
    assert (refused.status_code, refused.json()["code"]) == (409, "conflict")
    assert "'small'" in refused.json()["detail"]
    client.post("/v1/studies/small/cancel")
    assert client.delete("/v1/datasets/mine").status_code == 204
    assert client.delete("/v1/datasets/mine").status_code == 404
    assert client.post("/v1/studies", json=study()).status_code == 422


@pytest.mark.parametrize("removes", [remove_dataset, sweep_dataset])
def test_data_of_a_study_that_is_being_stored_is_kept(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, removes: Callable[..., None]
) -> None:
    """The removal begins when the submit has found the version there."""
    pinned = put(client, TABLE).json()
    if removes is sweep_dataset:
        put(client, LONGER)
    monkeypatch.setattr(DatasetStore.sweep, "__kwdefaults__", {"spare_seconds": 0.0})
    service = client.app.state.service  # type: ignore[attr-defined]
    stored = studies_api.submit
    with ThreadPoolExecutor() as pool:
        removal = []

        def amid(*arguments: Any, **options: Any) -> Any:
            removal.append(pool.submit(removes, service.db, service.datasets, "mine"))
            wait(removal, timeout=0.3)  # it is over by then, or waits for its turn
            return stored(*arguments, **options)

        monkeypatch.setattr(studies_api, "submit", amid)
        dataset = {"format": pinned["format"], "sha256": pinned["sha256"]}
        assert client.post("/v1/studies", json=study(**dataset)).status_code == 202
        refused = removal[0].exception(timeout=60.0)
    assert isinstance(refused, ConflictError) == (removes is remove_dataset)
    assert service.datasets.has("mine", pinned["format"], pinned["sha256"])


def test_data_that_a_module_loads_is_listed_with_its_parameters(
    client: TestClient, settings: Settings
) -> None:
    module = describe(EXAMPLES / "network" / "rings.py")
    with closing(Database.open(settings.resolved_database_url)) as db:
        register_worker(
            db, worker_id="w", host="here", pid=1, queue="cpu", device="cpu", version="0", lanes=1
        )
        described = module.model_dump(mode="json")
        publish_modules(db, "w", {module.name: (described, module.source_hash)})
    listed = client.get("/v1/datasets").json()["items"]
    (rings,) = (one for one in listed if one["name"] == "rings")
    assert rings["kind"] == "module"
    assert {"task", "rows", "rings", "noise"} <= {option["name"] for option in rings["options"]}
    put(client, TABLE, name="rings")
    again = [one for one in client.get("/v1/datasets").json()["items"] if one["name"] == "rings"]
    assert [one["kind"] for one in again] == ["uploaded"], "which is what the name stands for now"


def test_modules_that_workers_refuse_are_told_by_name(
    client: TestClient, settings: Settings
) -> None:
    why = "the file is not Python: invalid syntax (net.py, line 7)"
    study = {
        "name": "own",
        "dataset": {"name": "iris"},
        "network": {"type": "net"},
        "objective": {"metric": "val_accuracy"},
        "parameters": {"learning_rate": {"type": "float", "low": 0.01, "high": 0.1}},
        "budget": {"trials": 1},
    }
    before = client.post("/v1/studies/validate", json=study).json()["errors"]
    assert "there is no network 'net'" in before[0]["detail"]
    with closing(Database.open(settings.resolved_database_url)) as db:
        for name in ("one", "two"):
            register_worker(
                db, worker_id=name, host="here", pid=1, queue="cpu", device="cpu", version="0",
                lanes=1,
            )  # fmt: skip
            publish_modules(db, name, {}, {"net.py": why, "odd\udcff.py": "x\0" * 900})
    listed = client.get("/v1/networks").json()
    assert "net.py" not in {one["name"] for one in listed["items"]}
    net, odd = listed["refused"]
    assert net == {"file": "net.py", "reason": why, "workers": ["one", "two"]}
    assert (odd["file"], len(odd["reason"])) == ("odd�.py", 1000)
    for path in ("/v1/studies", "/v1/studies/validate"):
        (fault,) = client.post(path, json=study).json()["errors"]
        assert fault["detail"] == f"the module net.py is not offered: {why} (workers one, two)"


@pytest.mark.parametrize("example", ["own-table", "own-sequences", "own-images", "own-parquet"])
def test_the_examples_files_are_uploaded_and_trained_on(
    settings: Settings, tmp_path: Path, example: str
) -> None:
    """As docs/bring-data.md has it: add the file, name it in the study, submit."""
    make_own_data.main(tmp_path)
    study = load_yaml((EXAMPLES / f"{example}.yaml").read_text())
    file = tmp_path / study["dataset"].pop("path")
    study["dataset"]["name"] = file.stem
    with served(settings) as url:
        assert run(["data", "add", str(file), "--url", url]) == 0
        with TunerClient(url) as client:
            stored = client.submit(study).last_status.data["definition"]
    definition = StudyDefinition.model_validate(stored)
    parameters = draw(space_of(definition), seed=0, slot=0, fixed={})
    spec = resolve(definition, parameters).model_copy(update={"epochs": 1})
    engine = Engine(
        "cpu", settings=EngineSettings(data_dirs=(settings.data_dir / "datasets",), threads=1)
    )
    finished = only(run_all(engine, [start(1, spec, folder=tmp_path)]), 1, "finished")
    assert finished.values[0] >= 0.0
    assert len(finished.record.get("folds", {}).get("val_accuracy", ())) in (0, 5)


def test_the_command_line_brings_lists_and_removes_data(
    settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "my flowers.2026.csv"
    file.write_text(TABLE)
    with served(settings) as url:
        assert run(["data", "add", str(file), "--url", url]) == 0
        assert capsys.readouterr().out == "Added my-flowers: csv, 40 rows, 3 columns, 279 bytes.\n"
        odd = tmp_path / "odd.csv"
        odd.write_text("x;kind\n" + "".join(f"{i},5;{'ab'[i % 2]}\n" for i in range(30)))
        assert run(["data", "add", str(odd), "--url", url]) == 0
        assert "Note: column 'x' holds texts such as" in capsys.readouterr().err
        assert run(["data", "list", "--url", url]) == 0
        lines = capsys.readouterr().out.splitlines()
        (line,) = (line for line in lines if line.startswith("my-flowers"))
        assert line.split()[1:5] == ["csv", "40", "table", "279"]
        assert run(["data", "add", str(file), "--name", "iris", "--url", url]) != 0
        assert "built-in" in capsys.readouterr().err
        assert run(["data", "remove", "my-flowers", "--url", url]) == 0
        assert run(["data", "remove", "my-flowers", "--url", url]) != 0
        assert run(["data", "add", str(tmp_path / "no.csv"), "--url", url]) != 0
