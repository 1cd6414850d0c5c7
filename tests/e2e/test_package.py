"""A package outside the tree, installed beside the worker: a study trains by what it brings."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.e2e.service import ROOT, Service, running, until
from tests.extend_page import install


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("package")
    site = install(folder / "site")
    one = Service(
        directory=folder / "data",
        database_url=f"sqlite:///{folder / 'data' / 'tuner.db'}",
        settings={"PYTHONPATH": os.pathsep.join((str(ROOT), str(site)))},
    )
    with running(one, workers=0):
        yield one


def study(**changes: Any) -> dict[str, Any]:
    base = {
        "name": "toy",
        "dataset": {"name": "toy_rings", "rows": 120},
        "network": {"type": "toy_net"},
        "objective": {"metric": "val_accuracy"},
        "parameters": {
            "width": {"type": "int", "low": 4, "high": 32},
            "learning_rate": {"type": "float", "low": 0.01, "high": 0.1, "log": True},
        },
        "sampler": {"type": "toy_sampler", "anew": 0.3, "seed": 1},
        "pruner": {"type": "toy_pruner", "bound": 0.1, "after": 2},
        "training": {"epochs": 6, "optimizer": "adamax", "batch_size": "full"},
        "budget": {"trials": 5},
    }
    return {**base, **changes}


def names(service: Service, kind: str) -> set[str]:
    return {entry["name"] for entry in service.get(f"/v1/{kind}")["items"]}


def test_a_study_is_searched_pruned_and_trained_by_a_package(service: Service) -> None:
    assert "toy_sampler" not in names(service, "samplers")  # nobody brings it yet
    url = f"http://127.0.0.1:{service.port}/v1/studies"
    refused = httpx2.post(url, json=study(network={"type": "mlp"}, dataset={"name": "iris"}))
    assert {fault["pointer"] for fault in refused.json()["errors"]} >= {"/sampler/type"}
    worker = service.add_worker()
    until(lambda: "toy_sampler" in names(service, "samplers"), seconds=120.0, what="the package")
    assert "toy_net" in names(service, "networks")
    assert "toy_pruner" in names(service, "pruners")
    answer = service.wait(service.submit(study()), "completed", seconds=240.0)
    assert answer["best_trial"]["value"] > 0.3
    assert answer["best_trial"]["record"]["source_hash"]
    drawn = [trial["parameters"] for trial in service.trials(answer["id"])]
    # Near the best one: a value comes again, which a draw from the whole range does not.
    assert len({point["learning_rate"] for point in drawn}) < len(drawn)
    strict = study(pruner={"type": "toy_pruner", "bound": 2.0}, budget={"trials": 2})
    pruned = service.wait(service.submit(strict), "completed", seconds=240.0)
    assert {trial["state"] for trial in service.trials(pruned["id"])} == {"PRUNED"}
    maps = Path(f"/proc/{worker.pid}/maps")
    if maps.exists():
        assert "/torch/" not in maps.read_text(), "the supervisor has imported torch"


def test_without_a_worker_that_has_it_a_study_waits_and_says_for_what(service: Service) -> None:
    worker = service.workers[0]
    waiting = service.submit(study(resources={"device": "cuda"}))
    reason = service.study(waiting)["reason"]
    assert "toy_sampler" in reason
    assert "its package installed" in reason
    service.act(waiting, "cancel")
    assert worker.process.poll() is None
