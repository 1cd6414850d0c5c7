"""Trials trained in this process and finished in the database, as a worker would."""

import io
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import torch
from starlette.testclient import TestClient

from tests.unit.training.builders import only, run_all, start
from tuner_service.definition import StudyDefinition, TrialSpec, resolve
from tuner_service.lifecycle.claim import claim
from tuner_service.lifecycle.flush import flush
from tuner_service.lifecycle.messages import Batch, Finish, Start
from tuner_service.settings import Settings
from tuner_service.storage import Database
from workers.training.data import Request, Room
from workers.training.data.prepare import read_raw
from workers.training.data.sources import Array
from workers.training.data.split import split_rows
from workers.training.engine.engine import Engine, EngineSettings
from workers.training.nets.losses import LOSSES


def definition(**changes: Any) -> dict[str, Any]:
    """A study of one trial, changed."""
    base = {
        "name": "one",
        "dataset": {"name": "iris"},
        "network": {"type": "mlp", "hidden_units": 16},
        "objective": {"metric": "val_accuracy"},
        "parameters": {"learning_rate": {"type": "float", "low": 0.01, "high": 0.02}},
        "sampler": {"type": "random", "seed": 3},
        "training": {"epochs": 5},
        "budget": {"trials": 1},
    }
    return {**base, **changes}


def train(client: TestClient, settings: Settings, study: dict[str, Any]) -> TrialSpec:
    """Submit a study of one trial, train it, and return what was trained."""
    answer = client.post("/v1/studies", json=study)
    assert answer.status_code == 202, answer.text
    db = Database.open(settings.resolved_database_url)
    (lease,) = claim(db, worker_id="w", queue="cpu", limit=1, lease_seconds=30.0).leases
    parameters = dict(lease.parameters or {})
    spec = resolve(StudyDefinition.model_validate(answer.json()["definition"]), parameters)
    model = f"models/{answer.json()['id']}/0-1.safetensors"
    log = settings.data_dir / "logs" / answer.json()["id"] / "0-1.log"
    begun = start(
        1,
        spec,
        folder=settings.data_dir,
        model=str(settings.data_dir / model),
        keep_models=1,
        log=str(log),
    )
    engine = Engine("cpu", settings=EngineSettings(data_dirs=(settings.data_dir / "datasets",)))
    event = only(run_all(engine, [begun]), 1, "finished")

    def send(**parts: Any) -> Any:
        batch = Batch(**parts)
        return flush(db, worker_id="w", batch=batch, lease_seconds=30.0, settings=settings)

    trial = send(starts=[Start(lease, parameters)]).started[lease.key].trial_id
    values = tuple(event.values)
    kept = model if event.model else None
    send(finishes=[Finish(lease, trial, "COMPLETE", values, record=event.record, model_path=kept)])
    db.close()
    return spec


def test_rows(spec: TrialSpec, *directories: Path) -> tuple[Array, Array]:
    """Return the raw inputs and targets of the test part, before any scaling."""
    dataset, kind = spec.dataset, LOSSES[spec.loss].targets
    room = Room(torch.device("cpu"), Path())
    raw = read_raw(Request(dataset.name, dataset.options, kind, directories, room))
    classes = raw.rows.targets if raw.classes is not None else None
    index = split_rows(len(raw.rows.inputs), dataset.split, classes=classes, own_test=False).test
    return raw.rows.inputs[index], raw.rows.targets[index]


test_rows.__test__ = False  # type: ignore[attr-defined]


def unpack(content: bytes, directory: Path) -> Path:
    """Unpack a model's zip, and return where."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        archive.extractall(directory)
    return directory


def predict(directory: Path, rows: Path, *options: str) -> list[str]:
    """Run the model's `predict.py` where nothing of this project can be imported."""
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME")}
    command = [sys.executable, "-I", str(directory / "predict.py"), str(rows), *options]
    guard = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=directory, env=kept | guard, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()
