"""Features of a frozen front part: computed once, and only where they are always the same."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.unit.registries import registries
from tests.unit.training.builders import dataset, only, run_all, spec, start
from workers.training.data import DatasetCache
from workers.training.engine.engine import Engine, EngineSettings
from workers.training.nets import networks
from workers.training.steps.factory import PlainStepFactory
from workers.training.trials.checkpoints import read_tensors
from workers.training.trials.preparation import Prepared, prepare_trial
from workers.training.user_modules import UserModules

__all__ = ["registries"]
pytestmark = pytest.mark.usefixtures("registries")

NET = """
import torch
from torch import nn

{declared}

class Net(nn.Module):
    def __init__(self, outputs, width):
        super().__init__()
        state = torch.random.get_rng_state()
        {seeded}
        self.front = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), {layer} nn.Flatten()
        )
        torch.random.set_rng_state(state)
        self.front.requires_grad_({trained})
        self.head = nn.Sequential(nn.Linear(4 * 36, width), nn.Tanh(), nn.Linear(width, outputs))

    def train(self, mode=True):
        super().train(mode)
        {frozen}
        return self

    def forward_features(self, x):
        return self.front(x)

    def forward_head(self, features):
        return self.head(features)

    def forward(self, x):
        return self.forward_head(self.forward_features(x)) {after}

def build(inputs, outputs, width: int = 8):
    return Net(outputs, width)
"""
GOOD = {
    "declared": "cache_features = True",
    "seeded": "torch.manual_seed(5)",
    "layer": "",
    "trained": "False",
    "frozen": "self.front.eval()",
    "after": "",
}


def write(folder: Path, **changes: str) -> None:
    (folder / "front.py").write_text(NET.format(**(GOOD | changes)))


def trial(**changes: Any) -> Any:
    fields: dict[str, Any] = {
        "network": {"type": "front"}, "dataset": dataset("digits"), "epochs": 3, "batch_size": 64,
    }  # fmt: skip
    return spec(**(fields | changes))


def prepared(folder: Path, *trials: Any) -> list[Prepared]:
    device = torch.device("cpu")
    cache = DatasetCache(device, directories=())
    modules = UserModules(folder)
    group_network = PlainStepFactory().group_network
    return [
        prepare_trial(
            one, cache=cache, user_module=modules, device=device, group_network=group_network
        )
        for one in trials
    ]


def test_trials_end_as_they_do_without_and_their_models_are_whole(tmp_path: Path) -> None:
    ends = []
    for declared in ("", "cache_features = True"):
        folder = tmp_path / (declared[:5] or "plain")
        folder.mkdir()
        write(folder, declared=declared)
        engine = Engine("cpu", settings=EngineSettings(modules_dir=folder, threads=1))
        path = folder / "model.safetensors"
        began = start(1, trial(), folder=folder, model=str(path), keep_models=1)
        ends.append((only(run_all(engine, [began]), 1, "finished"), read_tensors(path)[0]))
    (one, plain), (other, cached) = ends
    assert other.values == pytest.approx(one.values, abs=1e-6)
    assert other.record["test_loss"] == pytest.approx(one.record["test_loss"], rel=1e-5)
    assert set(cached) == set(plain)
    for name, tensor in plain.items():
        assert torch.allclose(tensor, cached[name], atol=1e-5), name
    assert one.record["source_hash"].isalnum()
    assert other.record["source_hash"].isalnum()
    assert [end.record["data"] for end in (one, other)] == ["on device", "features"]


def test_features_are_computed_once_for_all_trials_of_a_data_set(tmp_path: Path) -> None:
    write(tmp_path)
    first, second = prepared(tmp_path, trial(), trial(seed=5, epochs=9))
    assert first.group.row == (4 * 36,)
    assert first.group.train_inputs is second.group.train_inputs
    assert first.group.inputs == (1, 8, 8)


def test_under_augmentation_rows_are_trained_on(tmp_path: Path) -> None:
    write(tmp_path)
    (one,) = prepared(tmp_path, trial(random_flip=0.5))
    assert one.group.row == (1, 8, 8)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"trained": "True"}, r"without anything to train.*requires_grad_\(False\)"),
        ({"seeded": "pass"}, "another seed gives other features"),
        ({"frozen": "pass"}, "same in training and in evaluation"),
        ({"frozen": "pass", "layer": "nn.Dropout(0.5),"}, "same in training and in evaluation"),
        ({"after": "* 2"}, r"forward\(x\) must be forward_head\(forward_features\(x\)\)"),
    ],
)
def test_features_that_are_not_always_the_same_are_refused(
    tmp_path: Path, changes: dict[str, str], sentence: str
) -> None:
    write(tmp_path, **changes)
    with pytest.raises(TypeError, match=sentence):
        prepared(tmp_path, trial())


def test_a_network_without_the_two_parts_is_refused(tmp_path: Path) -> None:
    source = NET.format(**GOOD).replace("forward_head", "rest")
    (tmp_path / "front.py").write_text(source)
    with pytest.raises(TypeError, match="a network with forward_head, but it has none"):
        prepared(tmp_path, trial())


def test_features_that_would_fill_the_memory_are_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.training.frozen_features.MOST_BYTES", 1000)
    write(tmp_path)
    before = set(networks.NETWORKS)
    (one,) = prepared(tmp_path, trial())
    assert one.group.row == (1, 8, 8)
    assert "+head" not in str(one.spec.network["type"])
    assert all("+head" not in name for name in set(networks.NETWORKS) - before)
