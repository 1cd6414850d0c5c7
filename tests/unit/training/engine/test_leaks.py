"""Validation and test rows influence nothing but what they are for."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import datasets as sklearn_datasets

from tests.unit.training.builders import dataset, mlp, of, only, run_all, spec, start
from tuner_service.definition.trial_spec import DatasetSpec
from workers.training.data import DatasetCache, PreparedData, Room
from workers.training.data.split import SplitRows, split_rows
from workers.training.engine.engine import Engine, EngineSettings

Array = np.ndarray[Any, Any]
DESCRIBED = dataset("csv", path="t.csv", target=-1, header=False)


def write(folder: Path, inputs: Array, labels: Array) -> None:
    np.savetxt(folder / "t.csv", np.column_stack([inputs, labels]), delimiter=",", fmt="%.9g")


def prepared(folder: Path) -> PreparedData:
    cache = DatasetCache(torch.device("cpu"), directories=(folder,))
    described = DatasetSpec.model_validate(DESCRIBED)
    return cache.get(described, targets="classes", dtype=torch.float64)


def rows_of(labels: Array) -> SplitRows:
    split = DatasetSpec.model_validate(DESCRIBED).split
    return split_rows(len(labels), split, classes=labels, own_test=False)


def train(folder: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the epoch records and the final record of one trial on the table."""
    one = spec(dataset=DESCRIBED, network=mlp(hidden_units=32), epochs=8, batch_size=32)
    events = run_all(
        Engine("cpu", settings=EngineSettings(data_dirs=(folder,))), [start(1, one, folder=folder)]
    )
    return [e.record for e in of(events, 1, "reported")], only(events, 1, "finished").record


def test_permuted_labels_give_chance_accuracy(tmp_path: Path) -> None:
    bunch = sklearn_datasets.load_digits()
    honest, permuted = tmp_path / "honest", tmp_path / "permuted"
    honest.mkdir()
    permuted.mkdir()
    write(honest, bunch.data, bunch.target)
    shuffled = np.random.default_rng(0).permutation(bunch.target)
    write(permuted, bunch.data, shuffled)
    assert train(honest)[1]["test_accuracy"] > 0.9
    records, final = train(permuted)
    # 359 rows at chance 0.1: the standard deviation is 0.016.
    assert final["test_accuracy"] < 0.17
    assert max(record["val_accuracy"] for record in records) < 0.19


@pytest.mark.parametrize("part", ["test", "validation"])
def test_an_outlier_in_another_part_changes_no_training_statistic(
    tmp_path: Path, part: str
) -> None:
    bunch = sklearn_datasets.load_wine()
    inputs, labels = bunch.data.copy(), bunch.target
    clean, planted = tmp_path / "clean", tmp_path / "planted"
    clean.mkdir()
    planted.mkdir()
    write(clean, inputs, labels)
    inputs[getattr(rows_of(labels), part)[:3]] *= 1e6
    write(planted, inputs, labels)
    before, after = prepared(clean), prepared(planted)
    assert before.data_hash != after.data_hash
    assert before.preprocessing == after.preprocessing
    assert torch.equal(before.train.inputs, after.train.inputs)
    touched = getattr(after, part)
    assert touched.inputs.abs().max() > 1e4
    (clean_curve, clean_final), (curve, final) = train(clean), train(planted)
    assert [r["train_loss"] for r in curve] == [r["train_loss"] for r in clean_curve]
    assert (final["test_loss"] == clean_final["test_loss"]) == (part != "test")
    losses = [[r["val_loss"] for r in records] for records in (curve, clean_curve)]
    assert (losses[0] == losses[1]) == (part != "validation")


def test_an_outlier_in_the_training_part_does_change_them(tmp_path: Path) -> None:
    bunch = sklearn_datasets.load_wine()
    inputs, labels = bunch.data.copy(), bunch.target
    write(tmp_path, inputs, labels)
    before = prepared(tmp_path).preprocessing
    inputs[rows_of(labels).train[0]] *= 1e6
    write(tmp_path, inputs, labels)
    assert prepared(tmp_path).preprocessing != before


SHAPES = {"table": (60, 3), "sequence": (60, 4, 3), "image": (60, 3, 4, 4)}


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("folds", [{}, {"folds": 3, "fold": 1}])
@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("part", ["test", "validation", "train"])
def test_arrays_are_scaled_by_their_training_part_alone(
    tmp_path: Path, kind: str, part: str, folds: dict[str, int], streamed: bool
) -> None:
    described = DatasetSpec.model_validate(dataset("npz", folds, path="a.npz"))
    classes = np.arange(60) % 2
    rows = split_rows(60, described.split, classes=classes, own_test=False)
    inputs = np.random.default_rng(0).normal(size=SHAPES[kind])
    place = Room(torch.device("cpu"), tmp_path / "s", limit_bytes=0 if streamed else 1 << 20)
    found = []
    for _ in range(2):
        np.savez(tmp_path / "a.npz", inputs=inputs, targets=classes)
        cache = DatasetCache(place.device, directories=(tmp_path,), room=place)
        found.append(cache.get(described, targets="classes", dtype=torch.float64))
        inputs[getattr(rows, part)[0]] = 1e6
    clean, planted = found
    assert planted.streamed is streamed
    assert (clean.preprocessing != planted.preprocessing) is (part == "train")
    assert torch.equal(clean.train.inputs, planted.train.inputs) is (part != "train")
    if part != "train":
        assert getattr(planted, part).inputs.abs().max() > 1e5


MIXED = dataset("csv", path="t.csv", target="kind", missing="mean")


def mixed(folder: Path, rows: SplitRows, part: str | None = None) -> Path:
    """Write a table with text and gaps; in one row of `part` an outlier and an unseen category."""
    generator = np.random.default_rng(0)
    numbers = [f"{value:.6f}" for value in generator.normal(size=60)]
    texts = list(generator.choice(["red", "green"], 60))
    numbers[int(rows.train[3])] = ""
    texts[int(rows.train[5])] = ""
    if part is not None:
        at = int(getattr(rows, part)[0])
        numbers[at], texts[at] = "1e9", "ultraviolet"
    lines = [
        f"{n},{t},{'ab'[i % 2]}\n" for i, (n, t) in enumerate(zip(numbers, texts, strict=True))
    ]
    folder.mkdir()
    (folder / "t.csv").write_text("size,colour,kind\n" + "".join(lines))
    return folder


@pytest.mark.parametrize("part", ["test", "validation", "train"])
def test_fills_and_categories_come_from_the_training_part_alone(tmp_path: Path, part: str) -> None:
    rows = rows_of(np.arange(60) % 2)
    described = DatasetSpec.model_validate(MIXED)
    clean, planted = (
        DatasetCache(torch.device("cpu"), directories=(folder,)).get(
            described, targets="classes", dtype=torch.float64
        )
        for folder in (mixed(tmp_path / "a", rows), mixed(tmp_path / "b", rows, part))
    )
    leaks = part == "train"
    assert (clean.preprocessing != planted.preprocessing) is leaks
    assert (planted.shape == (4,)) is leaks, "a category of the training part is a feature"
    assert (clean.shape == planted.shape) is not leaks
    if not leaks:
        assert torch.equal(clean.train.inputs, planted.train.inputs)
        touched = getattr(planted, part).inputs
        assert touched[0, 0] > 1e8
        assert touched[0, 1:].tolist() == [0.0, 0.0], "no category that training knows"


def test_the_test_part_is_looked_at_once_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[int] = []
    engine = Engine("cpu")
    engine.submit(start(1, spec(epochs=5), folder=tmp_path))
    from workers.training.engine.scorer import EndScorer  # noqa: PLC0415

    score = EndScorer.score

    def counted(self: EndScorer, lanes: Any, ended: Any) -> Any:
        if ended:
            looks.append(lanes[ended[0]].progress.epoch)
        return score(self, lanes, ended)

    monkeypatch.setattr(EndScorer, "score", counted)
    run_all(engine)
    assert looks == [5]
