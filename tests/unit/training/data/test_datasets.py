"""Reading data, splitting and scaling it, and what is said of data that is wrong."""

import gzip
import hashlib
import os
import struct
from pathlib import Path
from typing import Any
from weakref import ref

import numpy as np
import pytest
import torch
from sklearn import datasets as sklearn_datasets

from tests.unit.training.builders import dataset, needs
from tuner_service.definition.trial_spec import DatasetSpec, SplitSpec
from tuner_service.errors import DataError
from workers.training.data import DatasetCache, PreparedData
from workers.training.data.split import split_rows
from workers.training.nets.losses import TargetKind

CPU = torch.device("cpu")


def load(
    described: dict[str, Any],
    *directories: Path,
    targets: TargetKind = "classes",
    dtype: torch.dtype = torch.float32,
) -> PreparedData:
    cache = DatasetCache(CPU, directories=directories)
    return cache.get(DatasetSpec.model_validate(described), targets=targets, dtype=dtype)


def parts(data: PreparedData) -> list[Any]:
    return [data.train, data.validation, data.test]


# Built-ins --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "targets", "shape", "outputs", "rows"),
    [
        ("digits", "classes", (1, 8, 8), 10, 1797),
        ("wine", "classes", (13,), 3, 178),
        ("iris", "classes", (4,), 3, 150),
        ("breast_cancer", "classes", (30,), 2, 569),
        ("breast_cancer", "binary", (30,), 1, 569),
        ("diabetes", "numbers", (10,), 1, 442),
    ],
)
def test_built_in_data(
    name: str, targets: TargetKind, shape: tuple[int, ...], outputs: int, rows: int
) -> None:
    data = load(dataset(name), targets=targets)
    assert data.shape == shape
    assert data.outputs == outputs
    assert sum(part.rows for part in parts(data)) == rows
    for part in parts(data):
        assert part.inputs.shape == (part.rows, *shape)
        assert part.inputs.dtype == torch.float32
        expected = (part.rows,) if targets == "classes" else (part.rows, 1)
        assert part.targets.shape == expected
        assert part.targets.dtype == (torch.int64 if targets == "classes" else torch.float32)
    if targets == "binary":
        assert set(data.train.targets.unique().tolist()) == {0.0, 1.0}


def test_every_row_is_in_one_part_with_its_target() -> None:
    data = load(dataset("wine", standardize=False), dtype=torch.float64)
    found = {
        (tuple(row.tolist()), int(target))
        for part in parts(data)
        for row, target in zip(part.inputs, part.targets, strict=True)
    }
    bunch = sklearn_datasets.load_wine()
    expected = {(tuple(r), int(t)) for r, t in zip(bunch.data, bunch.target, strict=True)}
    assert found == expected


def test_classes_stay_with_images_and_tables_have_their_labels() -> None:
    assert load(dataset("iris")).classes == ("setosa", "versicolor", "virginica")
    assert load(dataset("diabetes"), targets="numbers").classes is None


@pytest.mark.parametrize(("name", "axes"), [("wine", (0,)), ("digits", (0, 1, 2, 3))])
def test_inputs_are_standardised_by_the_training_part(name: str, axes: tuple[int, ...]) -> None:
    data = load(dataset(name), dtype=torch.float64)
    train = data.train.inputs
    torch.testing.assert_close(
        train.mean(axes), torch.zeros_like(train.mean(axes)), atol=1e-9, rtol=0
    )
    deviation = train.square().mean(axes).sqrt()
    torch.testing.assert_close(deviation, torch.ones_like(deviation))
    raw = load(dataset(name, standardize=False), dtype=torch.float64)
    mean = torch.tensor(data.preprocessing["mean"])
    scale = torch.tensor(data.preprocessing["deviation"])
    for ours, before in zip(parts(data), parts(raw), strict=True):
        torch.testing.assert_close(
            ours.inputs, ((before.inputs - mean) / scale), atol=1e-6, rtol=1e-6
        )


def test_the_content_hash_is_of_the_data_not_of_the_split() -> None:
    first = load(dataset("iris"))
    assert first.data_hash == load(dataset("iris", {"seed": 5})).data_hash
    assert first.data_hash != load(dataset("wine")).data_hash
    assert len(first.data_hash) == 64


@pytest.mark.parametrize(
    ("name", "targets", "word"),
    [
        ("diabetes", "classes", "mse"),
        ("iris", "numbers", "cross_entropy"),
        ("iris", "binary", "two classes"),
        ("irises", "classes", "irises"),
    ],
)
def test_data_that_does_not_fit_the_loss_is_refused(
    name: str, targets: TargetKind, word: str
) -> None:
    with pytest.raises(DataError, match=word):
        load(dataset(name), targets=targets)


# Splits -----------------------------------------------------------------------------------


def split(**changes: Any) -> SplitSpec:
    fields = {"validation": 0.25, "test": 0.15, "seed": 3, "stratify": True}
    return SplitSpec.model_validate(fields | changes)


@pytest.mark.parametrize("stratify", [True, False])
@pytest.mark.parametrize("rows", [10, 99, 1000])
def test_parts_have_their_sizes_and_share_no_row(rows: int, stratify: bool) -> None:
    classes = np.arange(rows) % 3
    cut = split_rows(rows, split(stratify=stratify), classes=classes, own_test=False)
    assert len(cut.test) == round(rows * 0.15)
    assert len(cut.validation) == round(rows * 0.25)
    joined = np.concatenate([cut.train, cut.validation, cut.test])
    assert sorted(joined.tolist()) == list(range(rows))


def test_a_stratified_split_keeps_every_class_at_its_share() -> None:
    counts = [500, 300, 150, 37, 13]
    classes = np.repeat(np.arange(5), counts)
    cut = split_rows(1000, split(), classes=classes, own_test=False)
    for part, share in ((cut.test, 0.15), (cut.validation, 0.25), (cut.train, 0.6)):
        found = np.bincount(classes[part], minlength=5)
        assert np.abs(found - np.array(counts) * share).max() <= 1


def test_the_seed_decides_the_split() -> None:
    classes = np.arange(100) % 4
    cuts = [
        split_rows(100, split(seed=s), classes=classes, own_test=False).train.tolist()
        for s in (1, 1, 2)
    ]
    assert cuts[0] == cuts[1]
    assert cuts[0] != cuts[2]


def test_data_with_a_test_part_gives_none_of_its_rows_to_test() -> None:
    cut = split_rows(100, split(), classes=None, own_test=True)
    assert len(cut.test) == 0
    assert len(cut.train) == 75


def test_a_class_with_one_row_cannot_be_stratified() -> None:
    classes = np.array([0] * 20 + [1])
    with pytest.raises(DataError, match="class number 1 has one row"):
        split_rows(21, split(), classes=classes, own_test=False)
    assert len(split_rows(21, split(stratify=False), classes=classes, own_test=False).train)


@pytest.mark.parametrize("rows", [1, 2])
def test_too_few_rows_are_refused(rows: int) -> None:
    with pytest.raises(DataError, match=f"{rows} rows split into"):
        split_rows(rows, split(stratify=False, validation=0.2), classes=None, own_test=False)


# CSV --------------------------------------------------------------------------------------


def csv(folder: Path, text: str, name: str = "t.csv") -> Path:
    (folder / name).write_text(text)
    return folder


ROWS = "".join(f"{i},{i % 5 / 2},{'ab'[i % 2]}\n" for i in range(20))
TABLE = "x,y,label\n" + ROWS


def test_a_table_with_a_header(tmp_path: Path) -> None:
    described = dataset("csv", path="t.csv", target="label", standardize=False)
    data = load(described, csv(tmp_path, TABLE))
    assert data.classes == ("a", "b")
    assert data.shape == (2,)
    assert {tuple(r.tolist()) for p in parts(data) for r in p.inputs} == {
        (float(i), i % 5 / 2) for i in range(20)
    }


def test_a_table_without_a_header_and_another_delimiter(tmp_path: Path) -> None:
    folder = csv(tmp_path, ROWS.replace(",", ";"))
    described = dataset("csv", path="t.csv", target=0, header=False, delimiter=";", columns=[1])
    data = load(described, folder, targets="numbers")
    assert data.shape == (1,)
    assert sorted(v for p in parts(data) for v in p.targets.flatten().tolist()) == list(range(20))


def test_a_target_counted_from_the_end_and_chosen_columns(tmp_path: Path) -> None:
    described = dataset("csv", path="t.csv", target=-1, columns=["y", 0], standardize=False)
    data = load(described, csv(tmp_path, TABLE))
    assert {tuple(r.tolist()) for p in parts(data) for r in p.inputs} == {
        (i % 5 / 2, float(i)) for i in range(20)
    }


def test_several_files_are_one_table(tmp_path: Path) -> None:
    csv(tmp_path, TABLE)
    csv(tmp_path, TABLE.replace("a\n", "c\n"), "u.csv")
    data = load(dataset("csv", path=["t.csv", "u.csv"], target="label"), tmp_path)
    assert sum(p.rows for p in parts(data)) == 40
    assert data.classes == ("a", "b", "c")


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ("102030", ("0", "1", "2", "3")),
        (["1.0", "2.0"] * 3, ("1.0", "2.0")),
        (["-3", "10"] * 3, ("-3", "10")),
    ],
)
def test_whole_numbers_are_classes(tmp_path: Path, values: Any, labels: tuple[str, ...]) -> None:
    rows = [f"{i},{v}" for i, v in enumerate(list(values) * 10)]
    folder = csv(tmp_path, "x,label\n" + "\n".join(rows) + "\n")
    assert load(dataset("csv", path="t.csv", target="label"), folder).classes == labels


@pytest.mark.parametrize(
    ("options", "text", "targets", "words"),
    [
        ({"path": "none.csv"}, TABLE, "classes", ["none.csv", "put it there"]),
        ({"path": "../t.csv"}, TABLE, "classes", ["../t.csv", "data directories"]),
        ({"path": "/etc/passwd"}, TABLE, "classes", ["/etc/passwd", "data directories"]),
        ({"target": "lable"}, TABLE, "classes", ["t.csv", "lable", "x, y, label"]),
        ({"target": 3}, TABLE, "classes", ["t.csv", "3", "x, y, label"]),
        ({"columns": ["x", "z"]}, TABLE, "classes", ["t.csv", "'z'"]),
        ({"columns": ["x", "label"]}, TABLE, "classes", ["label", "target"]),
        ({}, TABLE.replace("7,1.0", "7,seven"), "classes", ["t.csv", "line 9", "'y'", "'seven'"]),
        ({}, TABLE.replace("7,1.0", "7,"), "classes", ["t.csv", "line 9", "'y'", "empty"]),
        ({}, TABLE.replace("7,1.0", "7,inf"), "classes", ["t.csv", "line 9", "'y'"]),
        ({}, TABLE.replace("7,1.0,b", "7,1.0,"), "classes", ["t.csv", "line 9", "'label'"]),
        ({}, TABLE, "numbers", ["t.csv", "line 2", "'label'", "'a'", "number"]),
        ({"target": "y"}, TABLE, "classes", ["t.csv", "line 3", "'y'", "0.5", "mse"]),
        ({"target": "y", "columns": ["x"]}, "x,y\n1,0\n2,inf\n", "classes", ["line 3", "inf"]),
        ({}, "x,y,label\n", "classes", ["t.csv", "zero rows"]),
        ({}, "", "classes", ["t.csv", "empty"]),
        ({}, "x,y,label\n1,2,a\n1,2,a,4,5\n", "classes", ["t.csv"]),
        ({}, TABLE + "3,1,c\n", "classes", ["class 'c' has one row", "stratify"]),
        ({}, TABLE.replace("b\n", "a\n"), "classes", ["1 class", "two"]),
        ({"target": 0}, "x\n1\n2\n", "numbers", ["t.csv", "no column beside"]),
    ],
)  # fmt: skip
def test_bad_tables_are_refused_with_what_to_change(
    tmp_path: Path, options: dict[str, Any], text: str, targets: TargetKind, words: list[str]
) -> None:
    described = dataset("csv", **{"path": "t.csv", "target": "label", **options})
    with pytest.raises(DataError) as error:
        load(described, csv(tmp_path, text), targets=targets)
    for word in words:
        assert word in str(error.value)
    assert str(tmp_path) not in str(error.value)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(bytes(range(256)) * 10)
    with pytest.raises(DataError, match=r"t\.csv"):
        load(dataset("csv", path="t.csv", target=0), tmp_path)


def test_a_directory_is_no_table(tmp_path: Path) -> None:
    (tmp_path / "t.csv").mkdir()
    with pytest.raises(DataError, match="is not a file"):
        load(dataset("csv", path="t.csv", target="label"), tmp_path)


def test_a_column_of_one_value_stays_finite(tmp_path: Path) -> None:
    folder = csv(tmp_path, "x,z,label\n" + "".join(f"{i},5,{i % 2}\n" for i in range(20)))
    data = load(dataset("csv", path="t.csv", target="label"), folder)
    assert torch.isfinite(data.train.inputs).all()
    assert (data.train.inputs[:, 1] == 0).all()


def test_wine_quality(tmp_path: Path) -> None:
    needs("winequality")
    described = dataset(
        "csv",
        path=["winequality/winequality-red.csv", "winequality/winequality-white.csv"],
        target=-1,
        header=False,
    )
    data = load(described, needs("winequality").parent, targets="numbers")
    assert sum(p.rows for p in parts(data)) == 6497
    assert data.shape == (11,)
    assert data.train.targets.min() >= 3
    assert data.train.targets.max() <= 9


# IDX --------------------------------------------------------------------------------------


def idx(array: np.ndarray[Any, np.dtype[np.uint8]]) -> bytes:
    header = struct.pack(">HBB", 0, 8, array.ndim)
    return header + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_idx(folder: Path) -> None:
    """Write a tiny MNIST: 60 + 20 images of 28×28, each filled with its own number."""
    folder.mkdir()
    for part, n in (("train", 60), ("t10k", 20)):
        pixels = np.tile(np.arange(n, dtype=np.uint8)[:, None, None], (1, 28, 28))
        labels = (np.arange(n) % 10).astype(np.uint8)
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(pixels)))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(idx(labels))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "mnist"
    write_idx(folder)
    return folder


def test_idx_files_gzipped_or_not(images: Path) -> None:
    data = load(dataset("mnist", standardize=False), images.parent, dtype=torch.float64)
    assert data.shape == (1, 28, 28)
    assert [p.rows for p in parts(data)] == [48, 12, 20]
    assert data.test is not None
    pixel = data.test.inputs[:, 0, 5, 5] * 255
    assert pixel.round().tolist() == list(range(20))
    assert data.test.targets.tolist() == [i % 10 for i in range(20)]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda raw: raw[: len(raw) // 2], "cannot read"),
        (lambda raw: gzip.compress(b"nonsense"), "not an IDX file"),
        (lambda raw: gzip.compress(gzip.decompress(raw)[:-5]), "should hold"),
        (lambda raw: gzip.compress(b"\0\0\x08\x03\0\0"), "train-images"),
        (lambda raw: b"no gzip", "cannot read"),
    ],
)
def test_a_damaged_idx_file_is_refused(images: Path, damage: Any, words: str) -> None:
    file = images / "train-images-idx3-ubyte.gz"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(DataError, match=words) as error:
        load(dataset("mnist"), images.parent)
    assert file.name in str(error.value)


def test_images_and_labels_must_be_as_many(images: Path) -> None:
    (images / "train-labels-idx1-ubyte").write_bytes(idx(np.zeros(59, dtype=np.uint8)))
    with pytest.raises(DataError, match=r"60 images but .* 59 labels"):
        load(dataset("mnist"), images.parent)


def test_fashion_mnist_is_what_zalando_published() -> None:
    folder = needs("fashion-mnist")
    data = load(dataset("fashion_mnist", {"validation": 0.1}), folder.parent)
    assert [p.rows for p in parts(data)] == [54_000, 6_000, 10_000]
    assert data.classes is not None
    assert len(data.classes) == 10
    raw = gzip.decompress((folder / "t10k-labels-idx1-ubyte.gz").read_bytes())
    assert hashlib.sha256(raw).hexdigest().startswith("0402a96d92fd2663")
    assert data.test is not None
    assert data.test.targets.tolist() == list(raw[8:])


# The cache --------------------------------------------------------------------------------


def spec_of(described: dict[str, Any]) -> DatasetSpec:
    return DatasetSpec.model_validate(described)


def test_the_same_data_is_kept_and_shared() -> None:
    cache = DatasetCache(CPU, directories=())
    first = cache.get(spec_of(dataset("iris")), targets="classes", dtype=torch.float32)
    again = cache.get(spec_of(dataset("iris")), targets="classes", dtype=torch.float32)
    other = cache.get(spec_of(dataset("iris")), targets="classes", dtype=torch.float64)
    assert first is again
    assert first is not other


def test_data_that_nobody_trains_on_is_let_go() -> None:
    cache = DatasetCache(CPU, directories=())

    def get(name: str) -> PreparedData:
        return cache.get(spec_of(dataset(name)), targets="classes", dtype=torch.float32)

    used, unused = get("iris"), ref(get("wine"))
    get("digits")
    assert cache.let_go()
    assert unused() is None
    assert get("iris") is used


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    cache = DatasetCache(CPU, directories=(csv(tmp_path, TABLE),))
    described = spec_of(dataset("csv", path="t.csv", target="label"))
    first = cache.get(described, targets="classes", dtype=torch.float32)
    csv(tmp_path, TABLE.replace("19,", "99,"))
    os.utime(tmp_path / "t.csv", ns=(1, 1))
    second = cache.get(described, targets="classes", dtype=torch.float32)
    assert second.data_hash != first.data_hash


def test_the_least_recently_used_data_goes_first() -> None:
    names = ("iris", "wine", "breast_cancer")
    sizes = {n: load(dataset(n)).nbytes for n in names}
    cache = DatasetCache(CPU, directories=(), max_bytes=sum(sizes.values()) - 1)

    def get(name: str) -> PreparedData:
        return cache.get(spec_of(dataset(name)), targets="classes", dtype=torch.float32)

    iris, wine = ref(get("iris")), ref(get("wine"))
    assert get("iris") is iris()
    get("breast_cancer")  # wine was used longest ago
    assert get("iris") is iris()
    assert wine() is None


def test_data_that_is_still_trained_on_is_not_read_again() -> None:
    cache = DatasetCache(CPU, directories=(), max_bytes=1)

    def get(name: str) -> PreparedData:
        return cache.get(spec_of(dataset(name)), targets="classes", dtype=torch.float32)

    iris = get("iris")
    get("wine")  # which takes iris out
    assert get("iris") is iris
