"""Every block of docs/extend.md runs, where it says that it stands."""

import importlib
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
import torch
from alembic.migration import MigrationContext
from alembic.operations import Operations
from starlette.testclient import TestClient
from torch.func import vmap

from tests.extend_page import blocks, code_of
from tests.unit.training import lanes
from tuner_service.api.app import create_app
from tuner_service.definition import catalogue
from tuner_service.settings import Settings
from tuner_service.storage import migrate
from workers.training.data import Room
from workers.training.data.sources import Request
from workers.training.nets import networks
from workers.training.nets.metrics import Scores
from workers.training.optim import fused, registry, schedules, updates
from workers.training.steps.fused.executors import Traced
from workers.training.steps.fused.step import FusedStep

CATALOGUE = "tuner_service/definition/catalogue"


def run(file: str) -> SimpleNamespace:
    """Run a file's blocks in its name space (a copy); return what they name."""
    module = importlib.import_module(file.removesuffix(".py").replace("/", "."))
    names = dict(vars(module))
    exec(code_of(file), names)
    return SimpleNamespace(**names)


def test_every_block_is_run_by_a_test() -> None:
    files = {file for file, _ in blocks("python")}
    assert files == {
        *(f"toy_package/{name}.py" for name in ("nets", "rings", "search")),
        *(f"{CATALOGUE}/{kind}.py" for kind in (
            "optimizers", "schedules", "training", "metrics", "networks", "datasets")),
        *(f"workers/training/optim/{name}.py" for name in ("updates", "registry", "schedules")),
        *(f"workers/training/nets/{name}.py" for name in ("losses", "metrics", "mlp_cnn")),
        "workers/training/data/sources.py",
        "tuner_service/api/routes/catalogue.py",
        "tuner_service/storage/schema.py",
        "migrations/versions/0001_notes.py",
    }  # fmt: skip


def test_an_optimizer(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = run(f"{CATALOGUE}/optimizers.py").OPTIMIZER
    signum = run("workers/training/optim/updates.py").SIGNUM
    monkeypatch.setattr(updates, "SIGNUM", signum, raising=False)
    made = run("workers/training/optim/registry.py").OPTIMIZER
    monkeypatch.setitem(catalogue.OPTIMIZERS, entry.name, entry)  # type: ignore[arg-type]
    monkeypatch.setitem(registry.OPTIMIZERS, entry.name, made)  # type: ignore[arg-type]
    spec = replace(lanes.group({"type": "mlp", "hidden_units": 4}), optimizer="signum")
    hypers = [lanes.hyper("signum", {"weight_decay": w}, seed=3) for w in (0.0, 0.5)]
    losses = lanes.curve(FusedStep(spec, 2, Traced()), spec, hypers, 3)
    for lane, hyper in enumerate(hypers):
        reference, _ = lanes.plain_curve(spec, hyper, 3)
        assert torch.allclose(losses[:, lane], reference, rtol=1e-9)
    assert losses[-1, 0] != losses[-1, 1]
    assert fused.slots_of("signum", {}) == {}


def test_a_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = run(f"{CATALOGUE}/schedules.py").SCHEDULE
    linear = run("workers/training/optim/schedules.py").linear
    monkeypatch.setitem(catalogue.SCHEDULES, entry.name, entry)  # type: ignore[arg-type]
    monkeypatch.setitem(schedules.SCHEDULES, entry.name, linear)
    given = {"type": "linear", "min_factor": 0.5}
    rates = [schedules.learning_rates(given, 0.1, schedules.Span(e, 2, 2)) for e in range(2)]
    assert np.allclose(np.concatenate(rates), [0.1, 0.0875, 0.075, 0.0625])


def test_a_loss() -> None:
    assert run(f"{CATALOGUE}/training.py").LOSS.task == "regression"
    loss = run("workers/training/nets/losses.py").LOSS
    outputs, targets = torch.tensor([[[1.0], [-3.0], [400.0]]] * 2), torch.zeros(3, 1)
    rows = vmap(lambda lane: loss.rows(lane, targets, 0.0))(outputs)
    assert torch.allclose(rows[0, :2], torch.tensor([1.0, 3.0]).cosh().log())
    assert rows.isfinite().all()


def test_a_metric() -> None:
    assert run(f"{CATALOGUE}/metrics.py").METRIC.direction == "minimize"
    metric = run("workers/training/nets/metrics.py").max_error
    outputs = torch.tensor([[[1.0], [2.0]], [[0.0], [-9.0]]])  # [K, R, T]
    assert metric(Scores(outputs, torch.tensor([[1.0], [1.0]]))).tolist() == [1.0, 10.0]


def test_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = run(f"{CATALOGUE}/networks.py").NETWORK
    family = networks.Family(run("workers/training/nets/mlp_cnn.py").Linear)
    monkeypatch.setitem(catalogue.NETWORKS, entry.name, entry)  # type: ignore[arg-type]
    monkeypatch.setitem(networks.NETWORKS, entry.name, family)
    spec = lanes.group({"type": "linear"})
    hypers = [lanes.hyper(dropout=0.2), lanes.hyper(seed=2)]
    losses = lanes.curve(FusedStep(spec, 2, Traced()), spec, hypers, 2)
    for lane, hyper in enumerate(hypers):
        assert torch.allclose(losses[:, lane], lanes.plain_curve(spec, hyper, 2)[0], rtol=1e-9)


def test_a_dataset_format(tmp_path: Path) -> None:
    entry = run(f"{CATALOGUE}/datasets.py").DATASET
    assert [option.name for option in entry.options] == ["path", "standardize"]
    source = run("workers/training/data/sources.py").SOURCE
    np.save(tmp_path / "rows.npy", np.arange(12.0).reshape(4, 3))
    room = Room(torch.device("cpu"), tmp_path)
    request = Request("npy", {"path": "rows.npy"}, "numbers", (tmp_path,), room)
    assert source.files(request) == (tmp_path / "rows.npy",)
    raw = source.read(request)
    assert (raw.rows.inputs.shape, raw.rows.targets.tolist()[0]) == ((4, 2), [2.0])


def test_an_endpoint(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, host="127.0.0.1", database_url="", broker_url="")
    settings.directory.prepare()
    migrate(settings.resolved_database_url)
    app = create_app(settings)
    from tuner_service.api.routes import catalogue as page  # noqa: PLC0415

    before = list(page.router.routes)
    run("tuner_service/api/routes/catalogue.py")
    added = [route for route in page.router.routes if route not in before]
    page.router.routes[:] = before
    app.router.routes[:0] = added
    with TestClient(app, base_url="http://127.0.0.1") as client:
        answer = client.get("/v1/catalogue/optimizers/count")
        assert answer.json() == {"count": len(catalogue.OPTIMIZERS)}
        assert client.get("/v1/catalogue/optimizer/count").status_code == 404


def test_a_table() -> None:
    schema = run_copy_of_schema()
    engine = sa.create_engine("sqlite://")
    with engine.begin() as connection:
        schema["studies"].create(connection)
        operations = Operations(MigrationContext.configure(connection))
        names: dict[str, Any] = {"sa": sa, "op": operations}
        exec(code_of("migrations/versions/0001_notes.py"), names)
        names["upgrade"]()
        made = {one["name"] for one in sa.inspect(connection).get_columns("tuner_notes")}
        assert made == set(schema["notes"].columns.keys())
        names["downgrade"]()
        assert not sa.inspect(connection).has_table("tuner_notes")


def run_copy_of_schema() -> dict[str, Any]:
    """Run the block in a schema of its own: a table cannot be taken back out of one."""
    from tuner_service.storage import schema  # noqa: PLC0415

    copy = ModuleType("schema")
    exec(Path(str(schema.__file__)).read_text(), copy.__dict__)
    exec(code_of("tuner_service/storage/schema.py"), copy.__dict__)
    return copy.__dict__
