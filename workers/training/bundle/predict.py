"""Predict with this model. It needs torch, NumPy and safetensors.

For .parquet files it needs pyarrow, for images Pillow.

    python predict.py rows.csv              one prediction per line
    python predict.py rows.npy --scores     what stands behind it: probabilities of the classes
    python predict.py images.zip            one prediction per image, ordered by their names

    from predict import Model
    model = Model.load("best")
    model.predict(rows)

Rows are raw inputs, as they stand in the data: scaling is done here, with the constants that were
fitted on the training part. A CSV file is split where the study's was, and has its decimals and
its words for a gap. With a header it may have its columns in any order, and others beside them;
where the study's file had none, its lines are as long as those, or hold the inputs alone. Where the
study left rows with gaps out, such a row's prediction is empty.
"""

# This file is copied beside the weights of every model that is kept, so it must stand alone: it
# imports nothing of this project; the network's source lies beside it. It is one file since people
# copy it into projects of their own, where the names of its parts would meet others.

import argparse
import csv
import importlib.util
import json
import math
import os
import re
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn

Array = NDArray[Any]

CHUNK = 4096  # rows of one forward pass
LARGEST = 1 << 26  # numbers of one activation

# Texts that are empty cells of a CSV file, unless the study names its own.
GAPS = {
    *("", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN"),
    *("<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null"),
}
TRUTHS = {"True": 1.0, "TRUE": 1.0, "true": 1.0, "False": 0.0, "FALSE": 0.0, "false": 0.0}
PLAIN = frozenset("0123456789+-.eE ")  # of a number: 1_000 and 0x1F are texts
WHOLE = re.compile(r"-?(0|[1-9][0-9]*)(\.0*)?")
BREAK = re.compile(r"\r\n|\r|\n")
IMAGES = (".png", ".jpg", ".jpeg")


def build(directory: Path, described: Mapping[str, Any]) -> nn.Module:
    """Build the network by the source it was trained with, `network.py` in its directory."""
    source = importlib.util.spec_from_file_location("network", directory / "network.py")
    if source is None or source.loader is None:
        raise FileNotFoundError(f"there is no network.py in {directory}")
    module = importlib.util.module_from_spec(source)
    source.loader.exec_module(module)
    arguments = dict(described["build"])
    if "inputs" in arguments:
        arguments["inputs"] = tuple(arguments["inputs"])
    built: nn.Module = module.build(**arguments)
    for one in built.modules():
        if isinstance(one, (nn.Embedding, nn.EmbeddingBag)):  # looked up by whole numbers
            one.register_forward_pre_hook(lambda _, given: (given[0].long(), *given[1:]))
    return built


class RowsError(ValueError):
    """Rows that are not such as the model takes."""


class CellError(RowsError):
    """One cell that is not such as the model takes, at its row and column from 0."""

    def __init__(self, row: int, column: int, said: str) -> None:
        super().__init__(f"row {row}, column {column} (both from 0) {said}")
        self.row, self.column, self.said = row, column, said


@dataclass(frozen=True)
class Model:
    """A trained network with what prepares its inputs and reads its outputs.

    Attributes:
        shape: Of one row.
        classes: Labels by output; None for numbers.
        columns: Names of a table's input columns, in the network's order.
        encoding: How each of them becomes features; None where they are numbers as they are.
        layout: Of the lines of the study's CSV file: delimiter, header, width in cells, decimal,
            words for a gap.
        drops: Rows with gaps were left out: they have no prediction.
        images: Size and mode that images are brought to.
        threshold: From which probability on the second class is predicted; None: where it is the
            likelier.
        target: Mean, deviation and logarithm by which targets that are numbers were scaled.
    """

    network: nn.Module
    loss: str
    shape: tuple[int, ...]
    mean: Array
    deviation: Array
    classes: list[str] | None
    columns: list[str] | None
    encoding: list[dict[str, Any]] | None = None
    layout: Mapping[str, Any] | None = None
    drops: bool = False
    images: Mapping[str, Any] | None = None
    target: Mapping[str, Any] | None = None
    threshold: float | None = None

    @classmethod
    def load(cls, directory: str | Path | None = None) -> "Model":
        """Read a model's directory; by default the one this file lies in."""
        place = Path(directory) if directory else Path(__file__).resolve().parent
        described = json.loads((place / "model.json").read_text(encoding="utf-8"))
        prepared = json.loads((place / "preprocessing.json").read_text(encoding="utf-8"))
        weights = load_file(place / "model.safetensors")
        network = build(place, described)
        double = any(tensor.dtype == torch.float64 for tensor in weights.values())
        network = network.to(torch.float64 if double else torch.float32).eval()
        network.load_state_dict(weights)
        return cls(
            network=network,
            loss=described["loss"],
            shape=tuple(described["input_shape"]),
            mean=np.asarray(prepared["mean"]),
            deviation=np.asarray(prepared["deviation"]),
            classes=prepared["classes"],
            columns=prepared["columns"],
            encoding=prepared.get("encoding"),
            layout=prepared.get("csv"),
            drops=prepared.get("missing") == "drop_rows",
            images=prepared.get("images"),
            target=prepared.get("target"),
            threshold=described.get("threshold"),
        )

    def scores(self, rows: Array) -> Array:
        """Return [n, classes] probabilities, or [n, targets] predicted numbers.

        They are NaN for rows such as the study left out.
        """
        left_out = self._left_out(rows)
        if left_out is None:
            return self._scores(rows)
        some = self._scores(np.asarray(rows)[~left_out])
        scores = np.full((len(left_out), *some.shape[1:]), np.nan, some.dtype)
        scores[~left_out] = some
        return scores

    def _left_out(self, rows: Array) -> Array | None:
        """Return which rows [n] have a gap, if there are any and the study left such rows out."""
        cells = np.asarray(rows)
        if not self.drops or cells.ndim != 2 or not len(cells):
            return None
        empty = np.array([any(map(_is_empty, row)) for row in cells.tolist()])
        return empty if empty.any() else None

    def _scores(self, rows: Array) -> Array:
        outputs = self._outputs(rows)
        if self.classes is None:
            numbers: Array = outputs.double().numpy() if self.target else outputs.numpy()
            return numbers if self.target is None else restored(numbers, self.target)
        if outputs.shape[1] == 1:  # one logit for two classes
            second = torch.sigmoid(outputs)
            return np.asarray(torch.cat([1 - second, second], dim=1).numpy())
        return np.asarray(torch.softmax(outputs, dim=1).numpy())

    def predict(self, rows: Array) -> Array:
        """Return [n] class labels, or [n, targets] numbers; "" and NaN where there is none."""
        scores = self.scores(rows)
        if self.classes is None:
            return scores
        best = scores.argmax(axis=1)
        if self.threshold is not None:
            best = (scores[:, 1] >= self.threshold).astype(np.int64)
        labels: Array = np.asarray(self.classes)[best]
        labels[np.isnan(scores).any(axis=1)] = ""
        return labels

    def _outputs(self, rows: Array) -> Tensor:
        raw = np.asarray(rows) if self.encoding is None else encode(rows, self.encoding)
        raw = shaped(raw, self.shape).astype(np.float64)
        wrong = np.argwhere(~np.isfinite(raw))
        if len(wrong):
            raise RowsError(f"row {wrong[0][0]} (from 0) has a number that is not finite")
        scaled = (raw - self.mean) / self.deviation
        dtype = next(self.network.parameters()).dtype
        inputs = torch.from_numpy(scaled).to(dtype)
        with torch.no_grad():
            parts = [self.network(part) for part in torch.split(inputs, self._chunk())]
        return torch.cat(parts) if parts else torch.zeros(0, 1)

    def _chunk(self) -> int:
        numbers = int(getattr(self.network, "numbers_per_row", 1))  # of attention weights
        return max(1, min(CHUNK, LARGEST // numbers))

    def read(self, path: Path) -> Array:
        """Read rows from a file as the study could train on, or from a .npy file.

        Raises:
            RowsError: The file is no such file, or its rows are not those of this model.
        """
        if path.is_dir() or path.suffix.lower() in (".zip", *IMAGES):
            return self._images(path)
        if path.suffix == ".parquet":
            return self._parquet(path)
        try:
            if path.suffix in (".npy", ".npz"):
                loaded = np.load(path, allow_pickle=False)
                return np.asarray(loaded["inputs"] if path.suffix == ".npz" else loaded)
            lines = list(text_rows(path, self._delimiter))
        except (ValueError, EOFError, KeyError, csv.Error, zipfile.BadZipFile) as error:
            kind = path.suffix if path.suffix in (".npy", ".npz") else ".csv"
            raise RowsError(f"{path} cannot be read as {kind} (in UTF-8): {error}") from error
        if not lines:
            raise RowsError(f"{path} is empty")
        return self._table(path, lines)

    def _table(self, path: Path, lines: list[tuple[int, list[str]]]) -> Array:
        """Return the model's columns of a CSV file: numbers, or cells for `encode`."""
        first = [cell.strip() for cell in lines[0][1]]
        width = len(self.columns) if self.columns is not None else int(np.prod(self.shape))
        names, places = self.columns or [str(at) for at in range(width)], list(range(width))
        if self._is_header(path, first):
            repeated = [name for name in names if first.count(name) > 1]
            if repeated:
                raise RowsError(f"{path}: the first line names the column {repeated[0]!r} twice")
            places, width = [first.index(name) for name in names], len(first)
            lines = lines[1:]
        elif not self._headed and len(first) == self._width:  # names are positions there
            places, width = [int(name) for name in names], len(first)
        if width > 1:
            lines = [(number, line) for number, line in lines if line]
        gaps = set((self.layout or {}).get("gaps", GAPS))
        cells = np.empty((len(lines), len(places)), dtype=object)
        for row, (number, line) in enumerate(lines):
            line = line or [""]
            if len(line) != width:
                has = f"{len(line)} cells (split at {self._delimiter!r})"
                raise RowsError(f"{path}: line {number} has {has} where {width} belong")
            cells[row] = [None if line[place] in gaps else line[place] for place in places]

        def where(bad: CellError) -> str:
            number, line = lines[bad.row]
            before = sum(len(BREAK.findall(cell)) for cell in line[: places[bad.column]])
            return f"{path}: line {number + before}, column {names[bad.column]!r}"

        return self._checked(cells, where)

    def _checked(self, cells: Array, where: "Callable[[CellError], str]") -> Array:
        """Return cells as numbers, or as they are for `encode`, which takes them."""
        numbers = [{"kind": "number", "fill": math.nan if self.drops else None}] * cells.shape[1]
        tried = self.encoding or numbers
        if self.encoding and self.drops:
            tried = [{**column, "fill": column["fill"] or math.nan} for column in tried]
        try:
            encoded = encode(cells, tried, decimal=self._decimal)
        except CellError as bad:
            raise RowsError(f"{where(bad)} {bad.said}") from None
        if self.encoding is None:
            return encoded
        numbers_at = [at for at, one in enumerate(self.encoding) if one["kind"] == "number"]
        for at in numbers_at:
            cells[:, at] = [_number_of(cell, self._decimal) for cell in cells[:, at]]
        return cells

    def _parquet(self, path: Path) -> Array:
        """Return the model's columns of a Parquet file."""
        try:
            from pyarrow import ArrowException, parquet  # noqa: PLC0415
        except ImportError as error:
            raise RowsError(f"{path}: Parquet needs pyarrow: pip install pyarrow") from error
        names = self.columns or []
        try:
            table = parquet.read_table(path, columns=names)
            columns = [table.column(name).to_pylist() for name in names]
        except (ArrowException, OSError, KeyError) as error:
            raise RowsError(f"{path} cannot be read as Parquet: {error}") from error
        cells = np.empty((len(table), len(names)), dtype=object)
        for at, column in enumerate(columns):
            cells[:, at] = column
        return self._checked(
            cells, lambda bad: f"{path}: row {bad.row + 1}, column {names[bad.column]!r}"
        )

    def _images(self, path: Path) -> Array:
        """Return the images of a folder, a zip, or one file: [n, C, H, W], ordered by name."""
        try:
            from PIL import Image, ImageOps  # noqa: PLC0415
        except ImportError as error:
            raise RowsError(f"{path}: images need Pillow: pip install pillow") from error
        mode, side = ("RGB", None) if self.images is None else (
            self.images["mode"], self.images["size"],
        )  # fmt: skip
        pictures = []
        try:
            for file in image_files(path):
                with Image.open(file, formats=("PNG", "JPEG")) as image:
                    plain = ImageOps.exif_transpose(image).convert(mode)
                if side is not None and plain.size != (side, side):
                    plain = plain.resize((side, side), Image.Resampling.BILINEAR)
                pixels = np.asarray(plain)
                pictures.append(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1))
            return np.stack(pictures) if pictures else np.empty((0, *self.shape))
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise RowsError(f"{path} cannot be read as images of one size: {error}") from error

    @property
    def _decimal(self) -> str:
        return str((self.layout or {}).get("decimal", "."))

    @property
    def _delimiter(self) -> str:
        return str((self.layout or {}).get("delimiter", ","))

    @property
    def _headed(self) -> bool:
        return bool((self.layout or {}).get("header", True))

    @property
    def _width(self) -> int | None:
        return (self.layout or {}).get("width")

    def _is_header(self, path: Path, first: list[str]) -> bool:
        """Return whether a file's first line names the columns, and refuse one that lacks some."""
        names = (self.columns or []) if self._headed else []
        absent = [name for name in names if name not in first]
        if not absent or not any(name in first and not _is_number(name) for name in names):
            return bool(names) and not absent
        known = ", ".join(first)
        raise RowsError(
            f"{path} has no column {', '.join(map(repr, absent))}; its columns are {known}"
        )


def restored(numbers: Array, target: Mapping[str, Any]) -> Array:
    """[n, targets] as the network gives them -> in the units of the study's file."""
    plain: Array = numbers * np.asarray(target["deviation"]) + np.asarray(target["mean"])
    return np.exp(plain) if target["log"] else plain


def text_rows(path: Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows of a CSV file with the lines they begin in, from 1.

    Raises:
        ValueError: It is no text in UTF-8, or a quote in it is never closed.
        csv.Error: It is no CSV.
    """
    ended = False
    with path.open(newline="", encoding="utf-8-sig") as file:

        def lines() -> Iterator[str]:
            nonlocal ended
            yield from file
            ended = True

        reader, before = csv.reader(lines(), delimiter=delimiter, skipinitialspace=True), 0
        any_yet = False
        for row in reader:
            if ended:
                raise ValueError(f"a quote of the row that ends in line {before + 1} is not closed")
            any_yet = any_yet or bool(row)
            if any_yet:
                yield before + 1, row
            before = reader.line_num


def image_files(path: Path) -> Iterator[Any]:
    """Yield what Pillow opens: each image of a folder or zip in the order of names, or one file."""
    if path.is_dir():
        names = sorted(
            file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()
        )
        yield from (path / name for name in names if is_image(name))
    elif path.suffix.lower() == ".zip":
        with zipfile.ZipFile(path) as archive:
            for name in filter(is_image, sorted(archive.namelist())):
                with archive.open(name) as file:
                    yield file
    else:
        yield path


def is_image(name: str) -> bool:
    """Return whether training takes a file of this name: not what systems leave beside images."""
    parts = PurePosixPath(name).parts
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in parts)
    return name.lower().endswith(IMAGES) and not hidden


def shaped(rows: Array, shape: Sequence[int]) -> Array:
    """Return rows as [n, *shape]: given so, or flat, or but for axes of one.

    Raises:
        RowsError: They are of another shape.
    """
    got = rows.shape[1:]
    same = [size for size in got if size != 1] == [size for size in shape if size != 1]
    if rows.ndim and (not len(rows) or same or got == (math.prod(shape),)):
        return rows.reshape(len(rows), *shape)
    wanted = ", ".join(map(str, ("n", *shape)))
    raise RowsError(f"rows must be [{wanted}], but got {list(rows.shape)}")


def encode(rows: Array, columns: Sequence[Mapping[str, Any]], *, decimal: str = ".") -> Array:
    """[n, columns] cells -> [n, features], as the training part had them.

    Empty cells are "", None or NaN.

    Args:
        decimal: What stands before the decimals of numbers that are text.

    Raises:
        RowsError: There are more columns or fewer, or a cell of numbers holds none.
    """
    cells = shaped(np.asarray(rows, dtype=object), (len(columns),))
    parts = [
        _numbers(cells[:, at], column["fill"], at, decimal)
        if column["kind"] == "number"
        else _categories(cells[:, at], column)
        for at, column in enumerate(columns)
    ]
    return np.concatenate(parts, axis=1)


def _is_empty(cell: Any) -> bool:
    return bool(cell is None or cell == "" or cell != cell)  # NaN last


def _numbers(cells: Array, fill: float | None, at: int, decimal: str) -> Array:
    values = np.empty((len(cells), 1))
    for row, cell in enumerate(cells):
        if _is_empty(cell):
            if fill is None:
                raise CellError(row, at, "is empty, and the study does not say what fills it")
            values[row] = fill
            continue
        found = _number_of(cell, decimal)
        if found is None:
            raise CellError(row, at, f"is {cell!r} where a number belongs")
        if not math.isfinite(found):
            raise CellError(row, at, f"is {cell!r}, which is not finite")
        values[row] = found
    return values


def _number_of(cell: Any, decimal: str) -> float | None:
    """Return the number that a cell holds, or None."""
    try:
        if not isinstance(cell, str):
            return float(cell)
        return TRUTHS[cell] if cell in TRUTHS else number(cell, decimal)
    except (TypeError, ValueError):
        return None


def number(text: str, decimal: str = ".") -> float | None:
    """Return the number that a text holds, or None."""
    plain = text.strip()
    if decimal != ".":
        plain = "x" if "." in plain else plain.replace(decimal, ".")
    if not PLAIN.issuperset(plain) and plain.lower().lstrip("+-") not in ("inf", "infinity"):
        return None
    try:
        return float(plain)
    except ValueError:
        return None


def _categories(cells: Array, column: Mapping[str, Any]) -> Array:
    place = {label: at for at, label in enumerate(column["categories"])}
    wholes = {whole(label): at for label, at in place.items() if whole(label) is not None}
    usual = place.get(column["fill"], -1)
    nowhere = usual if column["kind"] == "ordinal" else -1

    def found(cell: object) -> int:
        text = str(cell)
        return place[text] if text in place else wholes.get(whole(text), nowhere)

    places = np.array([usual if _is_empty(cell) else found(cell) for cell in cells], dtype=int)
    if column["kind"] == "ordinal":
        return places[:, None].astype(np.float64)
    if column["kind"] == "frequency":
        shares: Array = np.array([*column["shares"], 0.0])[places]  # -1, of none: the last
        return shares[:, None]
    hot: Array = places[:, None] == np.arange(len(place))
    return hot.astype(np.float64)


def whole(label: str) -> int | None:
    """Return the whole number that a category stands for: 1 and 1.0 are one, 01 is a text."""
    return int(label.partition(".")[0]) if WHOLE.fullmatch(label) else None


def _is_number(text: str) -> bool:
    value = number(text)
    return value is not None and math.isfinite(value)


def main() -> None:
    """Print a prediction for every row of a file."""
    parser = argparse.ArgumentParser(description="Predict with the model beside this file.")
    parser.add_argument("rows", type=Path, help="a .csv or .npy file of raw inputs")
    parser.add_argument("--scores", action="store_true", help="probabilities instead of labels")
    options = parser.parse_args()
    model = Model.load()
    try:
        rows = model.read(options.rows)
    except OSError as error:
        _refuse(f"{options.rows}: {error.strerror or error}")
    except RowsError as error:
        _refuse(str(error))
    try:
        results = model.scores(rows) if options.scores else model.predict(rows)
    except RowsError as error:
        _refuse(f"{options.rows}: {error}")
    try:
        for result in results:
            cells = np.atleast_1d(result).tolist()
            sys.stdout.write(",".join("" if cell != cell else str(cell) for cell in cells) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has enough; the interpreter would flush once more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _refuse(said: str) -> NoReturn:
    sys.stderr.write(f"predict.py: {said}\n")
    sys.exit(2)


if __name__ == "__main__":
    main()
