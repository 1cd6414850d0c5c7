"""`predict.py` on the raw training file gives the recorded metrics, for every format and option."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from safetensors import safe_open
from sklearn import metrics as sk

from tests.unit.datasets.files import npz, zipped
from tests.unit.training.builders import dataset, mlp, only, run_all, spec, start
from tuner_service.definition.trial_spec import SplitSpec, TrialSpec
from workers.training.bundle import export, predict
from workers.training.data.split import split_rows
from workers.training.engine.engine import Engine, EngineSettings

ROWS = 80
GENERATOR = np.random.default_rng(5)
SIZE = GENERATOR.normal(50.0, 20.0, ROWS).round(3)
COLOUR = np.array(["red", "green", "blue"])[np.arange(ROWS) % 3]
ZONE = (np.arange(ROWS) * 7) % 4
FLAG = np.where(SIZE > 55, "true", "false")
KIND = np.where(SIZE + 20 * (ZONE == 2) > 55, "01", "1")
PRICE = (1000.0 * SIZE + 5000.0 * (COLOUR == "red") + 90_000.0).round(1)
HEAD = ("size", "colour", "zone", "flag", "kind", "price")


def cells(gap: str | None, decimal: str = ".") -> list[list[str]]:
    """Return the table as text; `gap` stands in some cells of the inputs."""
    rows = []
    for i in range(ROWS):
        row = [str(SIZE[i]), str(COLOUR[i]), str(ZONE[i]), str(FLAG[i]), KIND[i], str(PRICE[i])]
        row[0], row[5] = row[0].replace(".", decimal), row[5].replace(".", decimal)
        if gap is not None and i % 9 == 4:
            row[i % 3] = gap
        if i % 7 == 3:
            row[1] = f'"{row[1]}"'
        rows.append(row)
    return rows


def text(delimiter: str = ",", *, head: bool = True, **how: Any) -> str:
    lines = [delimiter.join(row) for row in cells(**{"gap": None, **how})]
    return "\n".join([*([delimiter.join(HEAD)] if head else []), "", *lines, ""])


def trained(folder: Path, one: TrialSpec, name: str = "model") -> tuple[dict[str, Any], Path]:
    """Train a trial, and return its record and its model's directory."""
    settings = EngineSettings(data_dirs=(folder,), threads=1, modules_dir=folder / "modules")
    engine = Engine("cpu", settings=settings)
    path = folder / "m.safetensors"
    events = run_all(engine, [start(1, one, folder=folder, model=str(path), keep_models=1)])
    record = only(events, 1, "finished").record
    with safe_open(path, framework="pt") as file:
        note = json.loads(file.metadata()["tuner"])
    place = folder / name
    place.mkdir()
    path.rename(place / "model.safetensors")
    (place / "model.json").write_text(json.dumps(note))
    for name, source in note["files"].items():
        (place / name).write_text(source)
    (place / "preprocessing.json").write_text(json.dumps(note["preprocessing"]))
    return record, place


def test_part(data: dict[str, Any], labels: Any) -> Any:
    """Return the numbers of the test part's rows among those that were trained on."""
    split = SplitSpec.model_validate(data["split"])
    classes = np.unique(labels, return_inverse=True)[1] if labels.dtype.kind == "U" else None
    return split_rows(len(labels), split, classes=classes, own_test=False).test


test_part.__test__ = False  # type: ignore[attr-defined]


def classified(**changes: Any) -> dict[str, Any]:
    return {"metrics": ("accuracy", "log_loss"), "network": mlp(), "epochs": 5, **changes}


def predicted(
    folder: Path, file: str, data: dict[str, Any], truth: Any, kept: Any = None, **changes: Any
) -> None:
    """Train on a file, predict it, and compare with what was recorded of the test part."""
    numbers = truth.dtype.kind == "f"
    changes = classified(dataset=data, **changes)
    if numbers:
        changes |= {"loss": "mse", "metrics": ("rmse", "mae", "r2")}
        changes |= {"objective": (("val_rmse", "minimize"),)}
    record, place = trained(folder, spec(**changes))
    model = predict.Model.load(place)
    rows = model.read(folder / file)
    found, scores = model.predict(rows), model.scores(rows)
    assert len(found) == ROWS
    if kept is not None:
        assert (np.isnan(scores).any(axis=1) == ~kept).all()
        found, scores, truth = found[kept], scores[kept], truth[kept]
    part = test_part(data, truth)
    if numbers:
        true, guess = truth[part], found[part, 0]
        assert record["test_rmse"] == pytest.approx(sk.root_mean_squared_error(true, guess))
        assert record["test_mae"] == pytest.approx(sk.mean_absolute_error(true, guess), rel=1e-5)
        assert record["test_r2"] == pytest.approx(sk.r2_score(true, guess), rel=1e-4, abs=1e-5)
        return
    assert record["test_accuracy"] == pytest.approx(np.mean(found[part] == truth[part]))
    assert model.classes is not None
    right = [model.classes.index(label) for label in truth[part]]
    likelihood = scores[part].astype(float)[np.arange(len(part)), right]
    assert record["test_log_loss"] == pytest.approx(-np.log(likelihood).mean(), rel=1e-4)


CSV_OPTIONS: list[dict[str, Any]] = [
    {},
    {"columns": ["zone", "size"], "standardize": False},
    {"categorical": ["zone", "flag"]},
    {"encode": "ordinal"},
    *({"gap": "", "missing": how} for how in ("mean", "median", "zero", "drop_rows")),
    {"gap": "", "missing": "drop_rows", "columns": ["size", "zone"]},
    {"gap": "", "missing": "mean", "encode": "ordinal", "categorical": ["zone"]},
    {"gap": "?", "gaps": ["?"], "missing": "mean"},
    {"delimiter": ";", "decimal": ","},
    {"delimiter": ";", "decimal": ",", "gap": "NA", "missing": "median"},
    {"delimiter": "\t"},
    {"delimiter": "|", "header": False, "target": 4, "columns": [0, 1, 2]},
]


@pytest.mark.parametrize("options", CSV_OPTIONS, ids=str)
def test_a_csv_file(tmp_path: Path, options: dict[str, Any]) -> None:
    given = {"target": "kind", "missing": "refuse", **options}
    gap, delimiter = given.pop("gap", None), given.get("delimiter", ",")
    head, decimal = given.get("header", True), given.get("decimal", ".")
    (tmp_path / "t.csv").write_text(text(delimiter, head=head, gap=gap, decimal=decimal))
    if "columns" not in given:
        given["columns"] = ["size", "colour", "zone", "flag"]
    used = [HEAD.index(name) if isinstance(name, str) else name for name in given["columns"]]
    kept = np.array([all(row[at].strip('"') != gap for at in used) for row in cells(gap)])
    data = dataset("csv", path="t.csv", **given)
    predicted(tmp_path, "t.csv", data, KIND, kept if given["missing"] == "drop_rows" else None)


@pytest.mark.parametrize("scale", ["standard", "log", "none"])
def test_targets_in_the_files_units(tmp_path: Path, scale: str) -> None:
    (tmp_path / "t.csv").write_text(text())
    data = dataset(
        "csv", {"stratify": False}, path="t.csv", target="price", target_scale=scale,
        columns=["size", "colour"],
    )  # fmt: skip
    predicted(tmp_path, "t.csv", data, PRICE)


@pytest.mark.parametrize("missing", ["refuse", "mean", "drop_rows"])
def test_a_parquet_file(tmp_path: Path, missing: str) -> None:
    gaps = np.arange(ROWS) % 9 == 4 if missing != "refuse" else np.zeros(ROWS, bool)
    frame = pd.DataFrame(
        {
            "size": np.where(gaps, np.nan, SIZE),
            "colour": pd.Categorical(np.where(gaps, None, COLOUR.astype(object))),
            "zone": pd.array(np.where(gaps, None, ZONE.astype(object)), "Int64"),
            "flag": FLAG == "true",
            "kind": KIND,
        },
        index=[f"id{i}" for i in range(ROWS)],
    )
    frame.to_parquet(tmp_path / "t.parquet")
    data = dataset(
        "parquet", path="t.parquet", target="kind", missing=missing, categorical=["zone"]
    )
    predicted(tmp_path, "t.parquet", data, KIND, ~gaps if missing == "drop_rows" else None)


@pytest.mark.parametrize("shape", [(3,), (4, 2), (1, 4, 4)])
def test_an_npz_file(tmp_path: Path, shape: tuple[int, ...]) -> None:
    inputs = GENERATOR.normal(size=(ROWS, *shape)) + SIZE.reshape(-1, *([1] * len(shape)))
    npz(tmp_path / "a.npz", inputs=inputs, targets=KIND)
    predicted(tmp_path, "a.npz", dataset("npz", path="a.npz"), KIND)
    (tmp_path / "again").mkdir()
    npz(tmp_path / "again" / "a.npz", inputs=inputs, targets=PRICE)
    data = dataset("npz", {"stratify": False}, path="a.npz", target_scale="standard")
    predicted(tmp_path / "again", "a.npz", data, PRICE)


def test_tokens_that_a_network_of_ones_own_embeds(tmp_path: Path) -> None:
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "words.py").write_text(
        "from torch import nn\n"
        "def build(outputs):\n"
        "    return nn.Sequential(nn.Embedding(40, 4), nn.Flatten(), nn.Linear(20, outputs))\n"
    )
    inputs = GENERATOR.integers(0, 40, (ROWS, 5))
    npz(tmp_path / "a.npz", inputs=inputs, targets=KIND)
    predicted(tmp_path, "a.npz", dataset("npz", path="a.npz"), KIND, network={"type": "words"})


@pytest.mark.parametrize(("mode", "size"), [("color", 6), ("grey", 6), ("grey", None)])
@pytest.mark.parametrize("as_zip", [True, False])
def test_images(tmp_path: Path, mode: str, size: int | None, as_zip: bool) -> None:
    files: dict[str, bytes] = {"f/Thumbs.db": b"x", "f/.ipynb_checkpoints/1.png": b"x"}
    for i in range(ROWS):
        turned = Image.Exif()
        turned[0x0112] = 1 + i % 4
        buffer = io.BytesIO()
        pixels = GENERATOR.integers(0, 40 + int(SIZE[i]), (8, 8, 3), np.uint8)
        Image.fromarray(pixels).save(buffer, "PNG", exif=turned)
        files[f"f/{KIND[i]}/{i:03}.png"] = buffer.getvalue()
    path = "f.zip" if as_zip else "tree"
    if as_zip:
        zipped(tmp_path / path, files)
    for name, content in {} if as_zip else files.items():  # type: ignore[attr-defined]
        (tmp_path / path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path / name).write_bytes(content)
    truth = np.sort(KIND)  # in the order of the names
    data = dataset("images", path=path, image_mode=mode, image_size=size)
    predicted(tmp_path, path, data, truth)


def test_an_exported_program_is_in_the_files_units(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(text())
    data = dataset(
        "csv", {"stratify": False}, path="t.csv", target="price", target_scale="log",
        columns=["size"],
    )  # fmt: skip
    changes = {"loss": "mse", "metrics": ("rmse",), "objective": (("val_rmse", "minimize"),)}
    _, place = trained(tmp_path, spec(dataset=data, epochs=2, **changes))
    export.export(predict.Model.load(place), place / "model.pt2")  # which compares them
    assert (place / "model.pt2").stat().st_size > 0
