"""Arrays, sequences and image folders on their way to the device."""

import io
import os
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from tests.unit.datasets.files import flowers, npz, picture, zipped
from tests.unit.training.builders import dataset, only, run_all, spec, start
from tests.unit.training.data.test_datasets import load, parts
from tuner_service.errors import DataError
from workers.training.data.labels import labels_of, numbers_of
from workers.training.data.prepare import SOURCES
from workers.training.data.sources import RawData, Rows, Source
from workers.training.engine.engine import Engine, EngineSettings

GENERATOR = np.random.default_rng(0)
SEQUENCES = GENERATOR.normal(3.0, 2.0, (40, 5, 3)).astype(np.float32)
LABELS = np.array(["up", "down"] * 20)


@pytest.mark.parametrize("shape", [(40, 3), (40, 5, 3), (40, 2, 4, 4)])
def test_arrays_are_standardised_along_their_features(
    tmp_path: Path, shape: tuple[int, ...]
) -> None:
    inputs = GENERATOR.normal(3.0, 2.0, shape)
    npz(tmp_path / "a.npz", inputs=inputs, targets=LABELS)
    data = load(dataset("npz", path="a.npz"), tmp_path, dtype=torch.float64)
    assert data.shape == shape[1:]
    assert data.classes == ("down", "up")
    axes = {2: (0,), 3: (0, 1), 4: (0, 2, 3)}[len(shape)]
    torch.testing.assert_close(
        data.train.inputs.mean(axes), torch.zeros(shape[-1] if len(shape) < 4 else 2).double(),
        atol=1e-9, rtol=0,
    )  # fmt: skip
    assert len(torch.tensor(data.preprocessing["mean"]).squeeze()) == (3 if len(shape) < 4 else 2)


def test_several_numbers_may_be_the_target(tmp_path: Path) -> None:
    npz(tmp_path / "a.npz", inputs=SEQUENCES, targets=SEQUENCES[:, 0, :2])
    data = load(dataset("npz", path="a.npz"), tmp_path, targets="numbers")
    assert data.outputs == 2
    assert data.train.targets.shape == (24, 2)


@pytest.mark.parametrize("network", ["gru", "mlp"])
def test_sequences_are_trained_on(tmp_path: Path, network: str) -> None:
    npz(tmp_path / "a.npz", inputs=SEQUENCES, targets=LABELS)
    one = spec(
        dataset=dataset("npz", path="a.npz"),
        network={"type": network, "hidden_layers": 1, "hidden_units": 4},
        epochs=1,
    )
    engine = Engine("cpu", settings=EngineSettings(data_dirs=(tmp_path,), threads=1))
    assert only(run_all(engine, [start(1, one, folder=tmp_path)]), 1, "finished").values


@pytest.mark.parametrize(
    ("arrays", "targets", "message"),
    [
        ({"targets": np.full(40, 0.5)}, "classes", "row 1 is 0.5, which is no class"),
        ({"targets": np.where(np.arange(40) == 7, np.inf, 1.0)}, "classes", "row 8 is inf, which"),
        ({"targets": np.where(np.arange(40) == 7, 1e20, 1.0)}, "classes", "row 8 is 1e.20, which"),
        ({"targets": np.where(np.arange(40) == 7, 1e39, 1.0)}, "numbers", "target of row 8 is too"),
        ({"inputs": SEQUENCES.astype(float) * 1e200}, "classes", "too large to standard"),
        ({"targets": np.eye(2)[[0, 1] * 20]}, "classes", "not a column per class"),
        ({"targets": LABELS}, "numbers", "are text"),
        ({"targets": np.where(np.arange(40) == 7, np.nan, 1.0)}, "numbers", "row 8"),
        ({"inputs": np.where(SEQUENCES > 8, np.nan, SEQUENCES)}, "classes", "row .*, column"),
        ({"inputs": np.zeros((40, 2, 2, 2, 2))}, "classes", "a.npz: `inputs` must be"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(
    tmp_path: Path, arrays: dict[str, Any], targets: Any, message: str
) -> None:
    npz(tmp_path / "a.npz", **{"inputs": SEQUENCES, "targets": LABELS, **arrays})
    with pytest.raises(DataError, match=message):
        load(dataset("npz", path="a.npz"), tmp_path, targets=targets)


@pytest.mark.parametrize(
    ("targets", "numbers", "labels"),
    [
        ([1, 2.0, Decimal(3)], [1, 2, 3], [1, 2, 3]),
        ([0.5, Decimal("1.5")], [0.5, 1.5], "row 1 is 0.5, which is no class"),
        ([1, None], "row 2 is no finite number", "row 2 is None, which is no class"),
        (["a", float("nan")], "are text", "row 2 is nan, which is no class"),
        (["a", 2], "are text", ["a", 2]),
        ([True, False], [1, 0], [True, False]),
    ],
)
def test_targets_that_are_python_objects_are_taken_for_what_they_hold(
    targets: list[Any], numbers: list[float] | str, labels: list[Any] | str
) -> None:
    given = np.array(targets, dtype=object)
    for read, expected in ((numbers_of, numbers), (labels_of, labels)):
        if isinstance(expected, str):
            with pytest.raises(DataError, match=expected):
                read(given, "mine")
        else:
            assert read(given, "mine").reshape(-1).tolist() == expected


def test_numbers_too_large_for_the_training_type_are_refused(tmp_path: Path) -> None:
    inputs = np.where(np.arange(40)[:, None] == 3, 1e39, np.ones((40, 2)))
    npz(tmp_path / "a.npz", inputs=inputs, targets=LABELS)
    described = dataset("npz", path="a.npz", standardize=False)
    with pytest.raises(DataError, match="input of row 4 is too large for float32"):
        load(described, tmp_path)
    assert load(described, tmp_path, dtype=torch.float64).shape == (2,)


def test_a_fault_of_a_test_part_of_its_own_is_told_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def source(fault: float) -> Source:
        rows = Rows(np.ones((40, 2)), np.arange(40) % 2)
        test = Rows(np.where(np.arange(10)[:, None] == 6, fault, 1.0), np.arange(10) % 2)
        return Source(lambda _: (), lambda _: RawData(rows, test, classes=("a", "b")))

    for fault, message in ((1e39, "two, test part: the input of row 7 is"), (np.nan, "test part")):
        monkeypatch.setitem(SOURCES, "two", source(fault))
        with pytest.raises(DataError, match=message):
            load(dataset("two", standardize=False), tmp_path)


def images(folder: Path, files: dict[str, bytes], *, as_zip: bool) -> str:
    if as_zip:
        return zipped(folder / "f.zip", files).name
    for name, content in files.items():
        path = folder / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return "tree"


@pytest.mark.parametrize("as_zip", [True, False])
@pytest.mark.parametrize(("mode", "channels"), [("color", 3), ("grey", 1)])
def test_an_image_folder(tmp_path: Path, as_zip: bool, mode: str, channels: int) -> None:
    path = images(tmp_path, flowers(40), as_zip=as_zip)
    described = dataset("images", path=path, image_mode=mode, standardize=False)
    data = load(described, tmp_path, dtype=torch.float64)
    assert data.shape == (channels, 4, 6)
    assert data.classes == ("rose", "tulip")
    assert sum(part.rows for part in parts(data)) == 40
    for part in parts(data):
        bright = part.inputs.mean((1, 2, 3)) > 0.15 * 3 / channels * (1 if channels == 3 else 0.3)
        assert (bright == (part.targets == 0)).all()


def held(size: tuple[int, int], orientation: int) -> bytes:
    """Return a picture that is bright on the left, held so that its top lies on another side."""
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    pixels[:, : size[0] // 2] = 250
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", exif=exif)
    return buffer.getvalue()


@pytest.mark.parametrize("as_zip", [True, False])
def test_images_are_as_people_see_them(tmp_path: Path, as_zip: bool) -> None:
    files = {f"f/{label}/{i}.png": held((6, 4), turn) for i in range(10)
             for label, turn in (("left", 1), ("right", 3))}  # fmt: skip
    files |= {"f/.ipynb_checkpoints/0-checkpoint.png": b"", "f/left/Thumbs.db": b"", "f/x.md": b""}
    path = images(tmp_path, files, as_zip=as_zip)
    data = load(dataset("images", path=path, standardize=False), tmp_path)
    assert data.classes == ("left", "right")
    assert data.warnings == ("left out, as they are no images: 'f/x.md'",)
    for part in parts(data):
        assert ((part.inputs[:, 0, 0, 0] < 0.5) == (part.targets == 1)).all()
    turned = {f"f/{label}/{i}.png": held((6, 4), 6) for i in range(10) for label in "ab"}
    path = (
        images(tmp_path / "t", turned, as_zip=False)
        if not as_zip
        else images(tmp_path, turned, as_zip=True)
    )
    folder = tmp_path if as_zip else tmp_path / "t"
    assert load(dataset("images", path=path), folder).shape == (3, 6, 4)


def test_images_of_several_sizes_are_resized_when_asked(tmp_path: Path) -> None:
    files = flowers(20) | {"flowers/rose/big.png": picture((30, 20), 200)}
    zipped(tmp_path / "f.zip", files)
    with pytest.raises(DataError, match=r"big.png' is 30×20 pixels, but .* 6×4; set image_size"):
        load(dataset("images", path="f.zip"), tmp_path)
    data = load(dataset("images", path="f.zip", image_size=8), tmp_path)
    assert data.shape == (3, 8, 8)


def test_images_that_cannot_be_decoded_are_named(tmp_path: Path) -> None:
    cut = picture((64, 64), 7, form="JPEG")[:-200]
    zipped(tmp_path / "f.zip", flowers() | {"flowers/rose/cut.jpg": cut})
    with pytest.raises(DataError, match=r"f\.zip: the image 'flowers/rose/cut\.jpg' cannot be"):
        load(dataset("images", path="f.zip", image_size=4), tmp_path)


def test_a_link_in_an_image_folder_is_refused(tmp_path: Path) -> None:
    path = images(tmp_path, flowers(), as_zip=False)
    (tmp_path / path / "flowers/rose/link.png").symlink_to("/etc/passwd")
    with pytest.raises(DataError, match="is a link"):
        load(dataset("images", path=path), tmp_path)


def test_what_is_no_file_is_named_and_never_opened(tmp_path: Path) -> None:
    path = images(tmp_path, flowers(), as_zip=False)
    os.mkfifo(tmp_path / path / "flowers/rose/pipe.png")
    with pytest.raises(DataError, match=r"'flowers/rose/pipe\.png' is a pipe"):
        load(dataset("images", path=path), tmp_path)
    os.mkfifo(tmp_path / "pipe")
    for kind in ("images", "csv", "npz"):
        with pytest.raises(DataError, match=r"'pipe' is (neither|not a file)"):
            load(dataset(kind, path="pipe", **({"target": "y"} if kind == "csv" else {})), tmp_path)


def test_a_parquet_table_is_read_as_a_csv_table(tmp_path: Path) -> None:
    frame = pd.DataFrame({"x": np.arange(40.0), "y": np.arange(40) % 7, "kind": LABELS})
    frame.to_parquet(tmp_path / "t.parquet", index=False)
    frame.to_csv(tmp_path / "t.csv", index=False)
    tables = [
        load(dataset(name, path=f"t.{name}", target="kind"), tmp_path)
        for name in ("parquet", "csv")
    ]
    assert torch.equal(tables[0].train.inputs, tables[1].train.inputs)
    assert tables[0].classes == tables[1].classes == ("down", "up")
