"""Each example's first trial trains, for one epoch, from the file to the engine's result."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from examples import make_own_data
from tests.unit.training.builders import DATA, needs, only, run_all, start
from tuner_service.definition import load_yaml, parse_definition, resolve, space_of
from tuner_service.definition.catalogue import DATASETS, NETWORKS
from tuner_service.search.samplers.uniform import draw
from workers.training.data.builtin import BUILTIN
from workers.training.data.cifar import TEST, TRAIN
from workers.training.data.idx import IDX
from workers.training.engine.engine import Engine, EngineSettings
from workers.training.steps.select import BackendSelector
from workers.user_modules import describe

EXAMPLES = Path(__file__).parents[3] / "examples"
FILES = sorted(EXAMPLES.glob("*.yaml"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_an_examples_first_trial_trains(file: Path, tmp_path: Path) -> None:
    make_own_data.main(tmp_path / "made")
    cifar(tmp_path / "made")
    definition = parse_definition(load_yaml(file.read_text()))
    paths = definition.dataset.options.get("path", [])
    for path in [paths] if isinstance(paths, str) else paths:
        if not (tmp_path / "made" / path).exists():
            needs(path)
    fixed = definition.enqueue[0] if definition.enqueue else {}
    params = draw(space_of(definition), seed=0, slot=0, fixed=fixed)
    spec = resolve(definition, params).model_copy(update={"epochs": 1})
    engine = Engine(
        "cpu",
        settings=EngineSettings(
            data_dirs=(
                DATA,
                tmp_path / "made",
            ),
            threads=1,
        ),
    )
    finished = only(run_all(engine, [start(1, spec, folder=tmp_path)]), 1, "finished")
    assert all(math.isfinite(value) for value in finished.values)
    assert {f"test_{name}" for name in spec.metrics} <= _keys(finished.record)


def cifar(folder: Path) -> None:
    """Write files like CIFAR-10's, with 20 images each."""
    generator = np.random.default_rng(0)
    (folder / "cifar-10-batches-bin").mkdir()
    for name in (*TRAIN, *TEST):
        rows = generator.integers(0, 256, (20, 1 + 3 * 32 * 32), dtype=np.uint8)
        rows[:, 0] = np.arange(20) % 10
        (folder / "cifar-10-batches-bin" / name).write_bytes(rows.tobytes())


def test_the_network_of_ones_own_trains(tmp_path: Path) -> None:
    module = describe(EXAMPLES / "network" / "rings.py")
    study = load_yaml((EXAMPLES / "network" / "rings.yaml").read_text())
    definition = parse_definition(study, modules={module.name: module})
    spec = resolve(definition, {"learning_rate": 0.03, "width": 16})
    engine = Engine("cpu", settings=EngineSettings(modules_dir=EXAMPLES / "network", threads=1))
    finished = only(run_all(engine, [start(1, spec, folder=tmp_path)]), 1, "finished")
    assert finished.values[0] < 0.2, "by chance a guess is 0.89 rings off"


@pytest.mark.parametrize(
    ("name", "choices"),
    [
        ("transfer", {"optimizer": ["adam", "sgd"], "dropout": [0.0, 0.5]}),
        ("adapters", {"rank": [1, 16], "lora_alpha": [2.0, 32.0], "dropout": [0.0, 0.2]}),
    ],
)
def test_what_is_frozen_is_shared_and_trials_train_together(
    name: str, choices: dict[str, list[Any]], tmp_path: Path
) -> None:
    module = describe(EXAMPLES / "network" / f"{name}.py")
    study = load_yaml((EXAMPLES / "network" / f"{name}.yaml").read_text())
    definition = parse_definition(study, modules={module.name: module})
    rate = {"learning_rate": 3e-3}
    specs = [
        resolve(definition, rate | {k: each[number] for k, each in choices.items()})
        for number in (0, 1)
    ]
    settings = EngineSettings(modules_dir=EXAMPLES / "network", threads=1)
    selector = BackendSelector(torch.device("cpu"), compile=False, probe=False)
    starts = [start(n, spec, folder=tmp_path) for n, spec in enumerate(specs)]
    events = run_all(Engine("cpu", settings=settings, steps=selector), starts)
    ends = [only(events, number, "finished") for number in (0, 1)]
    values = [end.values[0] for end in ends]
    assert min(values) > 0.3, "by chance one in ten is right"
    assert values[0] != values[1]
    groups = {only(events, number, "started").group for number in (0, 1)}
    assert len(groups) == 1
    assert {only(events, number, "started").backend for number in (0, 1)} == {"traced"}


def test_every_network_and_every_kind_of_data_has_an_example() -> None:
    studies = [load_yaml(file.read_text()) for file in FILES]
    assert {study["network"]["type"] for study in studies} == set(NETWORKS)
    named = {study["dataset"]["name"] for study in studies}
    alike = [set(BUILTIN), set(IDX)]  # scikit-learn's, and the files of both MNISTs
    assert all(named & kinds for kinds in alike)
    assert set(DATASETS) - set().union(*alike) <= named


def _keys(record: object) -> set[str]:
    """Return every key of a record, at any depth."""
    if not isinstance(record, dict):
        return set()
    return set(record).union(*(_keys(value) for value in record.values()))
