"""Modules of one's own on a whole service: a network and a training loop, from file to model."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.e2e.service import Service, running, until
from tests.integration.models.trained import predict, unpack

NET = '''"""A perceptron with a scale per feature."""
import torch
from torch import nn


class Scaled(nn.Module):
    def __init__(self, features, outputs, width):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(features))
        self.hidden = nn.Linear(features, width)
        self.output = nn.Linear(width, outputs)

    def forward(self, x):
        return self.output(torch.relu(self.hidden(x * self.scale)))


def build(inputs, outputs, width: int = 16) -> nn.Module:
    """Build it.

    Args:
        width: Units of the hidden layer.
    """
    print("width is", width)
    return Scaled(inputs[0], outputs, width)
'''


LOOP = '''"""A line through the origin, by gradient descent."""
import time

import torch


def train(trial, learning_rate: float, rounds: int = 6, sleep: float = 0.0):
    """Fit it.

    Args:
        rounds: Steps of the descent.
    """
    path = trial.checkpoint_dir / "weight.pt"
    at, weight = torch.load(path) if path.exists() else (0, torch.zeros(1))
    print("from", at)
    for step in range(at + 1, rounds + 1):
        weight = weight - learning_rate * 2 * (weight - 3.0)
        torch.save((step, weight), path)
        trial.log_metrics(weight=weight.item())
        trial.report(step, (weight.item() - 3.0) ** 2)
        time.sleep(sleep)
        if trial.should_prune():
            return
    trial.save_model({"weight": weight})
'''


def definition(**changes: Any) -> dict[str, Any]:
    base = {
        "name": "own",
        "dataset": {"name": "iris"},
        "network": {"type": "scaled"},
        "objective": {"metric": "val_accuracy"},
        "parameters": {
            "width": {"type": "int", "low": 8, "high": 32},
            "learning_rate": {"type": "float", "low": 0.01, "high": 0.1, "log": True},
        },
        "sampler": {"type": "random", "seed": 1},
        "training": {"epochs": 20},
        "budget": {"trials": 4},
    }
    return {**base, **changes}


def loop_study(**changes: Any) -> dict[str, Any]:
    base = {
        "name": "line",
        "network": {"type": "line"},
        "objective": {"metric": "squared_error", "direction": "minimize"},
        "parameters": {"learning_rate": {"type": "float", "low": 0.05, "high": 0.4}},
        "sampler": {"type": "random", "seed": 1},
        "budget": {"trials": 3},
    }
    return {**base, **changes}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("own")
    (folder / "modules").mkdir()
    (folder / "modules" / "scaled.py").write_text(NET)
    (folder / "modules" / "line.py").write_text(LOOP)
    one = Service(
        directory=folder / "data",
        database_url=f"sqlite:///{folder / 'data' / 'tuner.db'}",
        settings={"TUNER_MODULES_DIR": str(folder / "modules"), "TUNER_LOOPS": "2"},
    )
    with running(one, workers=0):
        one.add_worker()
        until(lambda: "scaled" in offered(one), seconds=120.0, what="the module")
        yield one


def offered(service: Service) -> dict[str, Any]:
    return {entry["name"]: entry for entry in service.get("/v1/networks")["items"]}


def url(service: Service, path: str) -> str:
    return f"http://127.0.0.1:{service.port}/v1/studies/{path}"


def test_from_the_file_to_predictions(service: Service, tmp_path: Path) -> None:
    (option,) = offered(service)["scaled"]["options"]
    assert (option["name"], option["type"], option["default"]) == ("width", "int", 16)
    assert option["description"] == "Units of the hidden layer."
    study = service.submit(definition())
    best = service.wait(study)["best_trial"]
    assert best["state"] == "COMPLETE"
    assert best["value"] > 0.8
    assert best["backend"] in ("native", "compiled", "traced", "plain")
    assert best["record"]["source_hash"]
    answer = httpx2.get(url(service, f"{study}/trials/{best['number']}/model"))
    directory = unpack(answer.content, tmp_path / "best")
    assert (directory / "network.py").read_text() == NET
    (tmp_path / "rows.csv").write_text("5.1,3.5,1.4,0.2\n6.3,3.3,6.0,2.5\n")
    answers = [line for line in predict(directory, tmp_path / "rows.csv") if "width" not in line]
    assert answers == ["setosa", "virginica"]
    log = httpx2.get(url(service, f"{study}/trials/{best['number']}/logs")).text
    assert log == "" or "width is" in log


def test_what_the_module_does_not_know_is_refused(service: Service) -> None:
    body = definition(parameters={"depth": {"type": "int", "low": 1, "high": 2}})
    answer = httpx2.post(f"http://127.0.0.1:{service.port}/v1/studies", json=body)
    assert answer.status_code == 422
    assert [fault["pointer"] for fault in answer.json()["errors"]] == ["/parameters/depth"]


def test_a_changed_file_is_noticed_and_a_broken_one_fails_its_trials(service: Service) -> None:
    folder = Path(service.settings["TUNER_MODULES_DIR"])
    broken = NET.replace("width: int = 16", "size: int = 4").replace(
        'print("width is", width)', "raise RuntimeError('not today')"
    )
    (folder / "scaled.py").write_text(broken)
    until(
        lambda: offered(service)["scaled"]["options"][0]["name"] == "size", what="the new options"
    )
    sizes = {"size": {"type": "int", "low": 1, "high": 2}}
    study = service.submit(
        definition(name="broken", parameters=sizes, budget={"trials": 1, "max_failures": 0})
    )
    assert service.wait(study)["state"] == "failed"
    trial = service.trials(study)[0]
    assert trial["failure"]["kind"] == "user_code"
    assert "not today" in trial["failure"]["message"]
    log = httpx2.get(url(service, f"{study}/trials/{trial['number']}/logs")).text
    assert "RuntimeError: not today" in log
    (folder / "scaled.py").write_text(NET)
    until(lambda: "width" in str(offered(service)["scaled"]), what="the old options")
    good = service.submit(definition(name="again", budget={"trials": 1}))
    assert service.wait(good)["state"] == "completed"


def test_a_study_none_of_whose_trials_can_succeed_ends_at_once(service: Service) -> None:
    folder = Path(service.settings["TUNER_MODULES_DIR"])
    source = NET.replace("nn.Linear(width, outputs)", "nn.Linear(width, outputs + 1)")
    (folder / "broken.py").write_text(source)
    until(lambda: "broken" in offered(service), what="the module")
    budget = {"trials": 1000, "max_failures": 1000}
    study = service.submit(definition(network={"type": "broken"}, budget=budget))
    final = service.wait(study)
    assert final["state"] == "failed"
    assert "TypeError: the network must return a tensor" in final["reason"]
    assert "other points of the search space fail too" in final["reason"]
    assert final["progress"]["failed"] < 100
    assert {trial["attempt"] for trial in service.trials(study)} == {1}


def test_a_loop_is_searched_and_its_best_model_comes_back(service: Service, tmp_path: Path) -> None:
    study = service.submit(loop_study())
    best = service.wait(study)["best_trial"]
    assert (best["state"], best["backend"], best["last_step"]) == ("COMPLETE", "plain", 6)
    trial = service.get(f"/v1/studies/{study}/trials/{best['number']}")
    assert [epoch["step"] for epoch in trial["epochs"]] == [1, 2, 3, 4, 5, 6]
    last = trial["epochs"][-1]
    assert last["squared_error"] == best["value"] == (last["weight"] - 3.0) ** 2
    answer = httpx2.get(url(service, f"{study}/trials/{best['number']}/model"))
    directory = unpack(answer.content, tmp_path / "best")
    assert (directory / "loop.py").read_text() == LOOP
    assert json.loads((directory / "model.json").read_text())["network"]["rounds"] == 6
    log = httpx2.get(url(service, f"{study}/trials/{best['number']}/logs")).text
    assert log == "from 0\n"


def test_a_paused_loop_goes_on_where_it_was(service: Service) -> None:
    network = {"type": "line", "rounds": 25, "sleep": 0.1}
    study = service.submit(loop_study(name="slow", network=network, budget={"trials": 1}))
    until(lambda: (service.trials(study) or [{}])[0].get("last_step"), what="a report")
    assert httpx2.post(url(service, f"{study}/pause")).json()["state"] == "paused"
    until(lambda: service.get(f"/v1/studies/{study}")["progress"]["leased"] == 0, what="a rest")
    (trial,) = service.trials(study)
    at = trial["last_step"]
    assert (trial["state"], 0 < at < 25) == ("RUNNING", True)
    httpx2.post(url(service, f"{study}/resume"))
    assert service.wait(study)["progress"]["done"] == 1
    log = httpx2.get(url(service, f"{study}/trials/0/logs")).text
    assert log == f"from 0\nfrom {at}\n"


@pytest.mark.parametrize(
    ("changes", "pointer", "detail"),
    [
        ({"parameters": {"learning_rat": {"type": "float", "low": 0.1, "high": 0.2}},
          "network": {"type": "line", "learning_rate": 0.1}},
         "/parameters/learning_rat", "did you mean 'learning_rate'"),
        ({"network": {"type": "line", "round": 3}}, "/network/round", "did you mean 'rounds'"),
        ({"dataset": {"name": "iris"}}, "/dataset", "brings its own data"),
        ({"training": {"epochs": 3}}, "/training/epochs", "make it a parameter of train"),
        ({"objective": {"metric": "error"}}, "/objective/direction", "maximize or minimize"),
    ],
)  # fmt: skip
def test_what_the_loop_does_not_know_is_refused(
    service: Service, changes: dict[str, Any], pointer: str, detail: str
) -> None:
    answer = httpx2.post(url(service, "").rstrip("/"), json=loop_study(**changes))
    assert answer.status_code == 422
    (fault,) = answer.json()["errors"]
    assert fault["pointer"] == pointer
    assert detail in fault["detail"]
