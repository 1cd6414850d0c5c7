"""CIFAR-10 from its binary version: rows of a label byte and 3×32×32 bytes of an image.

The Python version is of pickles, which run code when they are read; it is not read here.
"""

from pathlib import Path

import numpy as np

from tuner_service.errors import DataError
from workers.training.data.sources import RawData, Request, Rows, Source, find

TRAIN = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
TEST = ("test_batch.bin",)
CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip

_SHAPE = (3, 32, 32)
_ROW_BYTES = 1 + 3 * 32 * 32
_MAX_BYTES = 1 << 28  # of one file; they have 31 MB


def _files(request: Request) -> tuple[Path, ...]:
    path = str(request.options.get("path") or "cifar-10-batches-bin")
    directory = find(path, request.directories)
    for name in (*TRAIN, *TEST):
        if not (directory / name).is_file():
            raise DataError(
                f"no file {name} in the directory {directory.name!r}; put the six files of the "
                "binary version there, or `tuner data fetch cifar10`"
            )
    return tuple(directory / name for name in (*TRAIN, *TEST))


def _rows(files: tuple[Path, ...]) -> Rows:
    for file in files:
        size = file.stat().st_size
        if not 0 < size <= _MAX_BYTES or size % _ROW_BYTES:
            raise DataError(
                f"{file.name} has {size:,} bytes, which is no number of rows of {_ROW_BYTES:,}; "
                "copy the file again"
            )
    table = np.concatenate([np.fromfile(file, np.uint8).reshape(-1, _ROW_BYTES) for file in files])
    labels = table[:, 0].astype(np.int64)
    if labels.max() >= len(CLASSES):
        raise DataError(f"{files[0].name} has the label {labels.max()}; there are 0 to 9")
    return Rows(table[:, 1:].reshape(-1, *_SHAPE), labels)


def _read(request: Request) -> RawData:
    files = _files(request)
    return RawData(_rows(files[: len(TRAIN)]), _rows(files[len(TRAIN) :]), classes=CLASSES)


CIFAR: dict[str, Source] = {"cifar10": Source(_files, _read)}
