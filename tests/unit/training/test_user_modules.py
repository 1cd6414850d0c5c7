"""Networks that users bring, through the engine."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.unit.registries import registries
from tests.unit.training.builders import (
    dataset,
    mlp,
    of,
    only,
    regression,
    run_all,
    spec,
    start,
)
from workers.training.engine.engine import Engine, EngineSettings
from workers.training.nets import networks
from workers.training.nets.losses import LOSSES
from workers.training.steps.fused.executors import Traced
from workers.training.steps.fused.recipe import Recipe
from workers.training.steps.select import BackendSelector
from workers.training.trials.checkpoints import read_tensors

PLAIN_NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, inputs, outputs, width):
        super().__init__()
        self.scale = nn.Parameter(torch.full((inputs[0],), 0.5))
        self.first = nn.Linear(inputs[0], width)
        self.last = nn.Linear(width, outputs)

    def forward(self, x):
        return self.last(torch.tanh(self.first(x * self.scale)))

def build(inputs: tuple, outputs: int, width: int = 8) -> nn.Module:
    return Net(inputs, outputs, width)
"""
DROPOUT_NET = """
from torch import nn

def build(inputs, outputs, width: int = 8, dropout: float = 0.3) -> nn.Module:
    print("building", width, dropout)
    first = nn.Sequential(nn.Linear(inputs[0], width), nn.ReLU(), nn.Dropout(dropout))
    return nn.Sequential(first, nn.Linear(width, outputs))
"""


__all__ = ["registries"]
pytestmark = pytest.mark.usefixtures("registries")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "modules").mkdir()
    return tmp_path / "modules"


def write(folder: Path, source: str, name: str = "my_net") -> None:
    (folder / f"{name}.py").write_text(source)


def net(**options: Any) -> dict[str, Any]:
    return {"type": "my_net", **options}


def engine(folder: Path | None, **options: Any) -> Engine:
    return Engine("cpu", settings=EngineSettings(modules_dir=folder), **options)


def train(folder: Path, tmp_path: Path, source: str, **changes: Any) -> list[Any]:
    write(folder, source)
    trained = spec(**{"network": net(), **changes})
    return run_all(engine(folder), [start(1, trained, folder=tmp_path, log=str(tmp_path / "log"))])


def failure(events: list[Any]) -> Any:
    failed = only(events, 1, "failed")
    assert failed.failure.kind == "user_code"
    return failed.failure


def test_a_network_trains_and_learns(folder: Path, tmp_path: Path) -> None:
    events = train(folder, tmp_path, PLAIN_NET, epochs=30, network=net(width=12))
    final = only(events, 1, "finished")
    assert final.record["test_accuracy"] > 0.85
    assert final.record["parameter_count"] == 4 + (4 + 1) * 12 + (12 + 1) * 3
    assert len(final.record["source_hash"]) == 12


def test_initial_weights_are_those_that_its_code_draws(folder: Path, tmp_path: Path) -> None:
    path = str(tmp_path / "model.safetensors")
    write(folder, PLAIN_NET)
    still = {"type": "sgd", "learning_rate": 0.0, "momentum": 0.0}
    first = spec(network=net(), seed=5, optimizer=still, epochs=1)
    run_all(engine(folder), [start(1, first, folder=tmp_path, model=path, keep_models=1)])
    weights, _ = read_tensors(Path(path))
    assert weights["scale"].tolist() == [0.5] * 4
    source = importlib.util.spec_from_file_location("alone", folder / "my_net.py")
    assert source is not None
    assert source.loader is not None
    alone = importlib.util.module_from_spec(source)
    source.loader.exec_module(alone)
    with networks.seeded(5):
        expected = alone.build(inputs=(4,), outputs=3).state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in expected.items())


def test_it_is_fused_where_vmap_takes_it(folder: Path, tmp_path: Path) -> None:
    write(folder, PLAIN_NET)
    rates = {t: {"type": "adam", "learning_rate": 0.01 * t} for t in (1, 2, 3)}
    # 120 rows by 16: the last batch is short.
    trials = {t: spec(network=net(), fuse=True, optimizer=rates[t], seed=t) for t in rates}
    selector = BackendSelector(torch.device("cpu"), compile=False, probe=False)
    together = run_all(
        engine(folder, steps=selector), [start(t, s, folder=tmp_path) for t, s in trials.items()]
    )
    apart = run_all(engine(folder), [start(t, s, folder=tmp_path) for t, s in trials.items()])
    for trial in trials:
        fused, plain = only(together, trial, "finished"), only(apart, trial, "finished")
        assert (fused.backend, plain.backend) == ("traced", "plain")
        assert fused.record["test_loss"] == pytest.approx(plain.record["test_loss"], rel=1e-4)


def test_it_runs_plain_with_the_reason_where_vmap_does_not(folder: Path, tmp_path: Path) -> None:
    write(folder, DROPOUT_NET)
    trials = [spec(network=net(), fuse=True, seed=t) for t in (1, 2)]
    selector = BackendSelector(torch.device("cpu"), compile=False)
    events = run_all(
        engine(folder, steps=selector),
        [start(t, s, folder=tmp_path) for t, s in enumerate(trials)],
    )
    final = only(events, 1, "finished")
    assert final.backend == "plain"
    assert "random" in final.backend_reason


LSTM_NET = """
from torch import nn

class Last(nn.Module):
    def __init__(self, outputs):
        super().__init__()
        self.lstm, self.head = nn.LSTM(4, 8, batch_first=True), nn.Linear(8, outputs)

    def forward(self, x):
        return self.head(self.lstm(x.unsqueeze(1))[0][:, -1])

def build(inputs, outputs):
    return Last(outputs)
"""


def test_torchs_recurrent_layers_are_never_traced(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def traced(*_: object) -> None:
        raise AssertionError("it was traced")

    monkeypatch.setattr(Traced, "runnable", traced)
    write(folder, LSTM_NET)
    trials = [spec(network=net(), fuse=True, seed=t) for t in (1, 2)]
    events = run_all(
        engine(folder, steps=BackendSelector(torch.device("cpu"), compile=False)),
        [start(t, s, folder=tmp_path) for t, s in enumerate(trials)],
    )
    said = "torch trains a LSTM layer for one trial at a time only"
    assert only(events, 1, "finished").backend_reason == said


def test_the_compiling_child_finds_the_module(folder: Path, tmp_path: Path) -> None:
    write(folder, PLAIN_NET + "\ndef loss(output, target):\n    return (output**2).sum(1)\n")
    one = engine(folder)
    run_all(one, [start(1, spec(network=net(), fuse=True), folder=tmp_path)])
    key = next(name for name in networks.NETWORKS if "@" in name)
    recipe = Recipe(
        network=net() | {"type": key},
        optimizer=None,
        loss=f"{key}:cross_entropy",
        precision="float32",
        batch_size=8,
        outputs=3,
        device="cpu",
        lanes=2,
        rows=8,
        features={},
        built_for=(4,),
        inputs=((16, 4), "float32"),
        targets=((16,), "int64"),
        modules=str(folder),
    )
    networks.NETWORKS.pop(key)
    LOSSES.pop(recipe.loss)
    step = Recipe.parse(recipe.key).step(_NoRunner())
    assert step.lanes == 2
    write(folder, PLAIN_NET)
    with pytest.raises(LookupError, match="has changed"):
        Recipe.parse(recipe.key).step(_NoRunner())


class _NoRunner:
    backend, reason = "none", None

    def runnable(self, program: Any, arena: Any) -> Any:
        raise AssertionError("nothing is to run")


def test_dropout_is_a_matter_of_the_seed(folder: Path, tmp_path: Path) -> None:
    write(folder, DROPOUT_NET)
    specs = [spec(network=net(dropout=0.5), seed=seed) for seed in (1, 1, 2)]
    alone = run_all(engine(folder), [start(0, specs[0], folder=tmp_path)])
    crowd = run_all(engine(folder), [start(t, s, folder=tmp_path) for t, s in enumerate(specs)])
    losses = [only(crowd, t, "finished").record["test_loss"] for t in range(3)]
    assert losses[0] == losses[1] == only(alone, 0, "finished").record["test_loss"]
    assert losses[0] != losses[2]


def test_what_it_prints_is_in_its_own_log(folder: Path, tmp_path: Path) -> None:
    write(folder, DROPOUT_NET)
    widths = {1: 4, 2: 4, 3: 6}
    starts = [
        start(t, spec(network=net(width=w)), folder=tmp_path, log=str(tmp_path / f"{t}.log"))
        for t, w in widths.items()
    ]
    run_all(engine(folder), starts)
    assert "building 4" in (tmp_path / "1.log").read_text()
    assert "building 6" not in (tmp_path / "1.log").read_text()
    assert "building 6" in (tmp_path / "3.log").read_text()


def test_a_changed_file_is_a_new_network(folder: Path, tmp_path: Path) -> None:
    write(folder, PLAIN_NET)
    one = engine(folder)
    before = only(run_all(one, [start(1, spec(network=net()), folder=tmp_path)]), 1, "finished")
    write(folder, PLAIN_NET.replace("width: int = 8", "width: int = 9"))
    after = only(run_all(one, [start(2, spec(network=net()), folder=tmp_path)]), 2, "finished")
    write(folder, PLAIN_NET)
    again = only(run_all(one, [start(3, spec(network=net()), folder=tmp_path)]), 3, "finished")
    counts = [final.record["parameter_count"] for final in (before, after, again)]
    assert counts[0] < counts[1]
    assert counts[0] == counts[2]
    hashes = [final.record["source_hash"] for final in (before, after, again)]
    assert hashes[0] == hashes[2] != hashes[1]
    assert len({final.group for final in (before, after)}) == 2


@pytest.mark.parametrize("loss", ["output.square().sum(1)", "output.square().sum(1).mean()"])
def test_its_own_loss_is_trained_on(folder: Path, tmp_path: Path, loss: str) -> None:
    source = f"{PLAIN_NET}\ndef loss(output, target):\n    return {loss}\n"
    write(folder, source)
    selector = BackendSelector(torch.device("cpu"), compile=False, probe=False)
    trained = spec(
        network=net(), fuse=True, epochs=30, objective=(("val_loss", "minimize"),), batch_size=25
    )
    events = run_all(engine(folder, steps=selector), [start(1, trained, folder=tmp_path)])
    values = [event.value for event in of(events, 1, "reported")]
    assert values[-1] < 0.2 * values[0]  # outputs are pulled to zero
    final = only(events, 1, "finished")
    by_row = "mean" not in loss
    assert final.backend == ("traced" if by_row else "plain")
    assert by_row or "one number" in final.backend_reason


def test_regression_with_a_network_of_ones_own(folder: Path, tmp_path: Path) -> None:
    write(folder, PLAIN_NET)
    trained = regression(network=net(), dataset=dataset("diabetes"), epochs=2)
    assert only(run_all(engine(folder), [start(1, trained, folder=tmp_path)]), 1, "finished")


METRICS = """
import torch

def confidence(output, target):
    return output.softmax(1).max(1).values.mean()

metrics = {"confidence": confidence, "rows": lambda output, target: len(target)}
"""


def test_its_own_metrics_are_measured_and_may_be_the_objective(
    folder: Path, tmp_path: Path
) -> None:
    write(folder, PLAIN_NET + METRICS)
    measured = spec(
        network=net(),
        metrics=("rows", "confidence", "accuracy"),
        objective=(("val_confidence", "maximize"),),
        fuse=True,
        epochs=3,
    )
    selector = BackendSelector(torch.device("cpu"), compile=False, probe=False)
    starts = [start(k, measured, folder=tmp_path) for k in (1, 2)]
    events = run_all(engine(folder, steps=selector), starts)
    for k in (1, 2):
        last, final = of(events, k, "reported")[-1], only(events, k, "finished")
        assert 1 / 3 < last.value == last.record["val_confidence"] < 1
        assert final.backend == "traced"
        assert final.record["test_rows"] == 30
        assert "test_accuracy" in final.record


DATA = """
import torch

def load_data(rows: int, wide: bool = False):
    inputs = torch.randn(rows, 6 if wide else 4)
    return inputs, (inputs[:, 0] > 0).long()
"""


def test_its_own_data_is_loaded_anew_when_the_file_changes(folder: Path, tmp_path: Path) -> None:
    one, data = engine(folder), dataset("moons", rows=60, task="classification")
    hashes = []
    for k, source in enumerate((DATA, DATA, DATA.replace("> 0", "> 0.5")), start=1):
        write(folder, source, "moons")
        final = only(
            run_all(one, [start(k, spec(dataset=data, epochs=1), folder=tmp_path)]), k, "finished"
        )
        hashes.append(final.record["data_hash"])
        assert final.record["test_accuracy"] >= 0
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.parametrize(
    ("returned", "kind", "said"),
    [
        ("torch.ones(3)", "user_code", "must return a pair"),
        ("(torch.ones(3), torch.ones(3))", "data", "but got the shape (3,)"),
        ("(torch.ones(4, 2), torch.ones(3))", "data", "but got 3 and 4"),
        ("1 / 0", "user_code", "ZeroDivisionError"),
        ("(torch.ones(4, 2), torch.rand(4))", "data", "which is no class"),
        ("(torch.ones(4, 2), torch.eye(4))", "data", "not a column per class"),
    ],
)
def test_data_that_does_not_fit_says_so(
    folder: Path, tmp_path: Path, returned: str, kind: str, said: str
) -> None:
    write(folder, f"import torch\ndef load_data(): return {returned}\n", "moons")
    events = run_all(engine(folder), [start(1, spec(dataset=dataset("moons")), folder=tmp_path)])
    said_of_it = only(events, 1, "failed").failure
    assert (said_of_it.kind, said in said_of_it.message) == (kind, True)


# Misbehaviour ------------------------------------------------------------------------------

NET = "from torch import nn\n"
GOOD = NET + "def build(inputs, outputs): return nn.Linear(inputs[0], outputs)\n"


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (NET + "def build(inputs, outputs): raise ValueError('no such thing')", "no such thing"),
        (NET + "def build(inputs, outputs): return nn.Linear(inputs[0], outputs + 1)", "(2, 3)"),
        (NET + "def build(inputs, outputs): return nn.Linear(99, outputs)", "shapes"),
        ("def build(inputs, outputs): return 3", "torch.nn.Module"),
        (NET + "def build(inputs, outputs): return nn.Flatten()", "without parameters"),
        ("import sys\ndef build(inputs, outputs): sys.exit(3)", "SystemExit: 3"),
        ("import sys\nsys.exit(4)", "SystemExit: 4"),
        ("def build(:\n", "SyntaxError"),
        ("x = 1\n", "must have a function `build`"),
        ("import no_such_thing_at_all\n" + GOOD, "no_such_thing_at_all"),
        (GOOD + "def loss(output, target): return output", "one per row"),
        (GOOD + "def loss(output, target): return 0.5", "must return a tensor"),
        (GOOD + "def loss(output, target): raise OSError('disk')", "disk"),
        (GOOD + "metrics = {'odd': 3}", "metrics must be a dictionary {name: function"),
    ],
)
def test_a_misbehaving_module_fails_its_own_trial(
    folder: Path, tmp_path: Path, source: str, said: str
) -> None:
    write(folder, source)
    log = tmp_path / "1.log"
    starts = [
        start(1, spec(network=net()), folder=tmp_path, log=str(log)),
        start(2, spec(), folder=tmp_path),
    ]
    events = run_all(engine(folder), starts)
    assert said in failure(events).message
    assert "Traceback" in failure(events).traceback
    assert said.split(":")[-1].strip() in log.read_text()
    assert only(events, 2, "finished")


def test_a_forward_pass_that_raises_in_training_says_where(folder: Path, tmp_path: Path) -> None:
    source = NET + (
        "class Net(nn.Linear):\n"
        "    def forward(self, x):\n"
        "        if self.training:\n"
        "            raise RuntimeError('only in training')\n"
        "        return super().forward(x)\n"
        "def build(inputs, outputs): return Net(inputs[0], outputs)\n"
    )
    said = failure(train(folder, tmp_path, source))
    assert "only in training" in said.message
    assert "my_net.py" in said.traceback
    assert "raise RuntimeError('only in training')" in said.traceback


def test_a_flood_of_prints_is_cut(folder: Path, tmp_path: Path) -> None:
    source = GOOD.replace("return", "print('x' * 5_000_000); return")
    assert only(train(folder, tmp_path, source), 1, "finished")
    assert 900_000 < (tmp_path / "log").stat().st_size < 1_100_000


def test_a_worker_without_the_module_says_so(tmp_path: Path) -> None:
    for directory in (None, tmp_path):
        events = run_all(engine(directory), [start(1, spec(network=net()), folder=tmp_path)])
        assert "--modules" in failure(events).message


OWN_RATES = """
from torch import nn
from workers.nets import Dropout

def build(inputs, outputs, first: float = 0.0, second: float = 0.0) -> nn.Module:
    hidden = nn.Linear(inputs[0], 8)
    last = nn.Linear(8, outputs)
    return nn.Sequential(hidden, Dropout(first, salt=0), nn.Tanh(), Dropout(second, salt=1), last)
"""


def losses_of(folder: Path, tmp_path: Path, fused: bool, **rates: float) -> list[float]:
    write(folder, OWN_RATES)
    selector = BackendSelector(torch.device("cpu"), compile=False, probe=False)
    trained = spec(network=net(**rates), epochs=3, fuse=fused, precision="float64")
    events = run_all(
        engine(folder, steps=selector) if fused else engine(folder),
        [start(1, trained, folder=tmp_path)],
    )
    assert only(events, 1, "finished").backend == ("traced" if fused else "plain")
    return [one.record["train_loss"] for one in of(events, 1, "reported")]


def test_dropout_of_ours_in_a_users_network_has_the_rates_it_was_built_with(
    folder: Path, tmp_path: Path
) -> None:
    cases: list[dict[str, float]] = [{}, {"first": 0.5}, {"second": 0.5}, {"first": 0.2}]
    plain = [losses_of(folder, tmp_path, False, **rates) for rates in cases]
    assert len({tuple(curve) for curve in plain}) == len(cases)
    for rates, curve in zip(cases, plain, strict=True):
        assert losses_of(folder, tmp_path, True, **rates) == pytest.approx(curve, rel=1e-9)


@pytest.mark.parametrize("own", [True, False])
def test_its_own_loss_sees_the_files_targets_unless_it_is_told_otherwise(
    folder: Path, tmp_path: Path, own: bool
) -> None:
    loss = "\ndef loss(output, target):\n    return (output - target).square().sum(1)\n"
    write(folder, PLAIN_NET + (loss if own else ""))

    def first_loss(scale: str | None) -> float:
        data = dataset("diabetes", target_scale=scale)
        trained = regression(network=net(), dataset=data, epochs=1)
        events = run_all(engine(folder), [start(1, trained, folder=tmp_path)])
        return float(only(events, 1, "reported").record["val_loss"])

    large = first_loss("none")  # targets of 25 to 346
    assert large > 1000.0 > 10.0 > first_loss("standard")
    assert (first_loss(None) == large) == own


TOKENS = """
import numpy as np
from torch import nn

def load_data(rows: int = 400, wide: bool = False):
    inputs = np.random.default_rng(0).integers(0, 40, (rows, 6))
    return inputs.astype(np.float64) if wide else inputs, (inputs == 7).any(1).astype(int)

class Net(nn.Module):
    def __init__(self, outputs):
        super().__init__()
        self.table, self.last = nn.Embedding(40, 8), nn.Linear(8, outputs)

    def forward(self, x):
        return self.last(self.table(x).amax(1))

def build(inputs, outputs): return Net(outputs)
"""


def tokens(folder: Path, tmp_path: Path, network: dict[str, Any], **options: Any) -> Any:
    write(folder, TOKENS)
    data = dataset("my_net", **options)
    trained = spec(network=network, dataset=data, epochs=30)
    return only(run_all(engine(folder), [start(1, trained, folder=tmp_path)]), 1, "finished")


def test_whole_numbers_that_a_network_embeds_stay_what_they_are(
    folder: Path, tmp_path: Path
) -> None:
    ended = tokens(folder, tmp_path, {"type": "my_net"})
    assert ended.record["test_accuracy"] > 0.95
    assert "warnings" not in ended.record


def test_whole_numbers_that_are_standardised_are_told(folder: Path, tmp_path: Path) -> None:
    (warning,) = tokens(folder, tmp_path, mlp()).record["warnings"]
    assert "whole numbers from 0 to 39" in warning
    assert "standardize to false" in warning
    for options in ({"standardize": False}, {"wide": True}):
        assert "warnings" not in tokens(folder, tmp_path, mlp(), **options).record
