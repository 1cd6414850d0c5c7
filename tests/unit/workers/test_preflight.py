"""One batch of the first trial: what it tells, and what it says where the trial would fail."""

import argparse
from pathlib import Path
from typing import Any

import pytest

from tests.unit.registries import registries
from tuner_service.datasets import DatasetStore
from workers.preflight import run
from workers.training.engine.preflight import usual_seconds

__all__ = ["registries"]
pytestmark = pytest.mark.usefixtures("registries")

NET = "from torch import nn\ndef build(inputs, outputs): return nn.Linear(inputs[0], outputs)\n"


def definition(**changes: Any) -> dict[str, Any]:
    base = {
        "name": "own",
        "dataset": {"name": "iris"},
        "network": {"type": "my_net"},
        "objective": {"metric": "val_accuracy"},
        "parameters": {"learning_rate": {"type": "float", "low": 0.01, "high": 0.1}},
        "training": {"batch_size": 16},
        "sampler": {"type": "random"},
        "budget": {"trials": 3},
    }
    return {key: value for key, value in {**base, **changes}.items() if value is not None}


def answer(folder: Path, source: str, **changes: Any) -> dict[str, Any]:
    (folder / "my_net.py").write_text(source)
    options = argparse.Namespace(
        modules=folder, data_dir=folder, dataset_dir=[], device="cpu", result=0
    )
    return run(definition(**changes), options)


def test_it_tells_shapes_metrics_memory_and_time(tmp_path: Path) -> None:
    found = answer(tmp_path, NET)["findings"]
    assert (found["batch"], found["output"]) == ([16, 4], [16, 3])
    assert (found["parameter_count"], found["slots"]) == (15, 3)
    assert set(found["metrics"]) == {"val_loss", "val_accuracy"}
    assert found["peak_memory_bytes"] > 1e7
    assert 0 < found["batch_seconds"] < found["epoch_seconds"]


@pytest.mark.parametrize(
    ("seconds", "usual", "runs"),
    [
        ([0.01, 0.09, 0.01, 0.02] * 9, 0.015, 8),  # the machine had other things to do
        ([0.001] * 99, 0.001, 15),
        ([3.0] * 9, 3.0, 1),
    ],
)
def test_a_time_is_the_median_of_a_few(
    monkeypatch: pytest.MonkeyPatch, seconds: list[float], usual: float, runs: int
) -> None:
    clock, left = [0.0], list(seconds)
    monkeypatch.setattr("workers.training.engine.preflight.time.perf_counter", lambda: clock[0])

    def work() -> None:
        clock[0] += left.pop(0)

    assert usual_seconds(work) == pytest.approx(usual)
    assert len(seconds) - len(left) == runs


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (NET.replace("outputs)\n", "outputs + 1)\n"), "(2, 3) here, but got (2, 4)"),
        (NET + "def loss(output, target): return output - target", "a target of the shape (2,)"),
        (NET + "def loss(output, target): return output.detach().sum(1)", "has no gradient"),
        (NET + "metrics = {'odd': lambda o, t: o}", "odd must return one number, but got Tensor"),
        (NET.replace("return", "raise SystemExit(3);"), "SystemExit: 3"),
    ],
)
def test_it_says_what_to_change(tmp_path: Path, source: str, said: str) -> None:
    changes = {"training": {"metrics": ["odd"]}} if "odd" in source else {}
    failure = answer(tmp_path, source, **changes)["failure"]
    assert said in failure["message"]
    assert "my_net.py" in failure["traceback"] or "TypeError" in failure["traceback"]


def test_faults_of_the_definition_come_first(tmp_path: Path) -> None:
    ((pointer, detail, _),) = answer(tmp_path, NET, network={"type": "my_nett"})["faults"]
    assert (pointer, "did you mean 'my_net'" in detail) == ("/network/type", True)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("def train(trial, learning_rate): trial.report(1, 0.5); 1 / 0", {"score": 0.5}),
        ("def train(trial, learning_rate): return 0.25", {"score": 0.25}),
        ("def train(trial, learning_rate): raise OSError('no disk')", "OSError: no disk"),
    ],
)
def test_a_loop_runs_up_to_its_first_report(tmp_path: Path, source: str, expected: Any) -> None:
    loop = {"dataset": None, "training": None}
    objective = {"metric": "score", "direction": "maximize"}
    found = answer(tmp_path, source, objective=objective, **loop)
    if isinstance(expected, dict):
        assert found["findings"]["metrics"] == expected
    else:
        assert found["failure"]["message"] == expected


def test_uploaded_data_is_known(tmp_path: Path) -> None:
    rows = "".join(f"{i % 7},{i % 3},{'ab'[i % 2]}\n" for i in range(60))
    with DatasetStore(tmp_path / "datasets", max_bytes=10_000).receive("mine") as arriving:
        arriving.write(b"x,y,label\n" + rows.encode())
        arriving.keep()
    found = answer(tmp_path, NET, dataset={"name": "mine", "target": "label"})["findings"]
    assert (found["batch"], found["output"]) == ([16, 2], [16, 2])


def test_a_fault_of_the_data_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "t.csv").write_text("x,kind\n1,a\noops,b\n")
    data = {"name": "csv", "path": "t.csv", "target": "kind"}
    failure = answer(tmp_path, NET, dataset=data)["failure"]
    assert failure["message"].startswith("t.csv: line 3, column 'x' is the text 'oops'")
    assert failure["traceback"] is None
