"""The built-in data sets."""

from collections.abc import Mapping
from typing import Final

from tuner_service.definition.catalogue.entries import Dataset, Inputs, by_name
from tuner_service.definition.options import Option

UPLOAD_NAME: Final = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$"
UPLOAD_FORMATS: Mapping[str, str] = {
    "csv": "csv",
    "parquet": "parquet",
    "npz": "npz",
    "images": "zip",
}
"""What may be uploaded: the ending of a file by the data set below that reads it."""

_STANDARDIZE = Option(
    name="standardize",
    type="boolean",
    default=True,
    description="Inputs to mean 0 and deviation 1, by the training part's statistics (tables: "
    "per column; images: per channel).",
)


_TARGET_SCALE = Option(
    name="target_scale",
    type="string",
    choices=("standard", "log", "none"),
    default=None,
    also=(None,),
    searchable=False,
    description="Of targets that are numbers: to mean 0 and deviation 1 by the training part, of "
    "their logarithms, or as they are; metrics and predictions are in the data's units. null: "
    "standard, but none where the network's module has a loss of its own.",
)


_POSITIVE = Option(
    name="positive",
    type="label",
    default=None,
    also=(None,),
    searchable=False,
    description="Which of two classes is the positive one, whose precision, recall and F1 are "
    "measured; null: the second in order.",
)


def _sklearn(name: str, description: str, *, inputs: Inputs, rows: int, classes: int) -> Dataset:
    return Dataset(
        name=name,
        description=f"{description} (ships with scikit-learn).",
        task="classification",
        inputs=inputs,
        rows=rows,
        classes=classes,
        options=(_STANDARDIZE, _POSITIVE) if classes == 2 else (_STANDARDIZE,),
    )


def _image_files(name: str, description: str, directory: str, rows: int) -> Dataset:
    return Dataset(
        name=name,
        description=description,
        task="classification",
        inputs="image",
        rows=rows,
        classes=10,
        own_test=True,
        options=(
            Option(
                name="path",
                type="path",
                default=directory,
                searchable=False,
                description="Folder of the data's files, inside a data directory.",
            ),
            _STANDARDIZE,
        ),
    )


_PATHS = Option(
    name="path",
    type="paths",
    required=True,
    searchable=False,
    description="The file, inside a data directory, or a list of files with the same columns.",
)
_PATH = _PATHS.model_copy(
    update={"type": "path", "description": "The file or folder, inside a data directory."}
)
_TEST_PATHS = _PATHS.model_copy(
    update={
        "name": "test_path",
        "required": False,
        "also": (None,),
        "description": "The test part, as files with the same columns; null: rows of `path`.",
    }
)
_TASK = Option(
    name="task",
    type="string",
    choices=("classification", "regression"),
    also=(None,),
    searchable=False,
    description="Whether the target is a class or a number; null: as the loss or the "
    "objective's metric says.",
)
BROUGHT_OPTIONS = (_TASK, _POSITIVE, _STANDARDIZE, _TARGET_SCALE)
"""Options of data that a worker's module loads, beside the parameters of its `load_data`."""

_TEXT_OPTIONS = (
    Option(
        name="header",
        type="boolean",
        default=True,
        searchable=False,
        description="Whether the first line holds the columns' names.",
    ),
    Option(
        name="delimiter",
        type="string",
        default=",",
        choices=(",", ";", "\t", "|", " "),
        searchable=False,
        description="What stands between two cells; of uploaded data, what was found there.",
    ),
    Option(
        name="decimal",
        type="string",
        default=".",
        choices=(".", ","),
        searchable=False,
        description="What stands before the decimals of a number.",
    ),
    Option(
        name="gaps",
        type="words",
        default=None,
        also=(None,),
        searchable=False,
        description="Words for an empty cell, beside no text at all; null: NA, N/A, NaN, null, "
        "None and the like, as docs/bring-data.md lists them.",
    ),
)
_TABLE_OPTIONS = (
    Option(
        name="target",
        type="column",
        required=True,
        searchable=False,
        description="Column to predict: its name in the header, or its position from 0 "
        "(negative: from the end).",
    ),
    Option(
        name="columns",
        type="columns",
        default=None,
        also=(None,),
        searchable=False,
        description="Columns to use as inputs; null: all but the target.",
    ),
    Option(
        name="categorical",
        type="columns",
        default=None,
        also=(None,),
        searchable=False,
        description="Input columns of numbers that are categories; columns of text always are.",
    ),
    Option(
        name="weight",
        type="column",
        default=None,
        also=(None,),
        searchable=False,
        description="Column of numbers by which each row's training loss is multiplied; no input. "
        "null: rows count alike.",
    ),
    Option(
        name="encode",
        type="by_column",
        choices=("one_hot", "ordinal", "frequency"),
        default="one_hot",
        description="What a category becomes: a feature of its own, its position among them, or "
        "its share of the training part's rows; for all columns, or for those that are named.",
    ),
    Option(
        name="orders",
        type="orders",
        default=None,
        also=(None,),
        searchable=False,
        description="Columns of categories that have an order, with their texts, the least first: "
        "each becomes its position.",
    ),
    Option(
        name="scale",
        type="by_column",
        choices=("standard", "minmax", "robust", "none"),
        default=None,
        also=(None,),
        description="Columns of numbers to mean 0 and deviation 1, to the range 0 to 1, to median "
        "0 and quartiles 1 apart, or as they are; for all columns, or for those that are named "
        "(the others as standardize says). null: as standardize says.",
    ),
    Option(
        name="missing",
        type="string",
        choices=("refuse", "drop_rows", "mean", "median", "zero"),
        default="refuse",
        description="What becomes of empty cells: refused; their rows left out; or filled, by the "
        "training part's mean or median (categories: the most frequent one), or with zero.",
    ),
    _STANDARDIZE,
    _TARGET_SCALE,
)
_IMAGE_OPTIONS = (
    Option(
        name="image_size",
        type="int",
        low=1,
        high=1024,
        default=None,
        also=(None,),
        searchable=False,
        description="Height and width that images are resized to; null: all must have one size.",
    ),
    Option(
        name="image_mode",
        type="string",
        choices=("color", "grey"),
        default="color",
        searchable=False,
        description="Three channels or one.",
    ),
)

DATASETS = by_name(
    _sklearn("digits", "Handwritten digits, 8×8 grey", inputs="image", rows=1797, classes=10),
    _sklearn("wine", "Wine cultivars, 13 numbers", inputs="table", rows=178, classes=3),
    _sklearn("breast_cancer", "Tumours, 30 numbers", inputs="table", rows=569, classes=2),
    _sklearn("iris", "Iris flowers, 4 numbers", inputs="table", rows=150, classes=3),
    Dataset(
        name="diabetes",
        description="Disease progression from 10 numbers (ships with scikit-learn).",
        task="regression",
        inputs="table",
        rows=442,
        options=(_STANDARDIZE, _TARGET_SCALE),
    ),
    _image_files(
        "fashion_mnist",
        "Clothes, 28×28 grey, 10 classes, 60,000 + 10,000 images, from its IDX files (gzipped "
        "or not).",
        "fashion-mnist",
        60_000,
    ),
    _image_files(
        "mnist",
        "Handwritten digits, 28×28 grey, 60,000 + 10,000 images, as above.",
        "mnist",
        60_000,
    ),
    _image_files(
        "cifar10",
        "Photographs, 32×32 in colour, 10 classes, 50,000 + 10,000 images, from the files of the "
        "binary version.",
        "cifar-10-batches-bin",
        50_000,
    ),
    Dataset(
        name="csv",
        description="A table in a text file (UTF-8): one column to predict from the others.",
        task=None,
        inputs="table",
        options=(_PATHS, _TEST_PATHS, *_TEXT_OPTIONS, _TASK, _POSITIVE, *_TABLE_OPTIONS),
    ),
    Dataset(
        name="parquet",
        description="A table in a Parquet file, which needs pyarrow.",
        task=None,
        inputs="table",
        options=(_PATHS, _TEST_PATHS, _TASK, _POSITIVE, *_TABLE_OPTIONS),
    ),
    Dataset(
        name="npz",
        description="NumPy arrays `inputs` and `targets` in a .npz file: [rows, features], "
        "[rows, steps, features] or [rows, channels, height, width].",
        task=None,
        inputs=None,
        options=(_PATH, _TASK, _POSITIVE, _STANDARDIZE, _TARGET_SCALE),
    ),
    Dataset(
        name="images",
        description="PNG and JPEG images in a folder per class, as a directory or a zip.",
        task="classification",
        inputs="image",
        options=(_PATH, *_IMAGE_OPTIONS, _POSITIVE, _STANDARDIZE),
    ),
)
