"""MNIST and Fashion-MNIST: four IDX files, gzipped or not, in a directory.

IDX: two zero bytes, a type byte (8: unsigned byte), the number of dimensions, one big-endian
uint32 per dimension, then the bytes.
"""

import gzip
import struct
import zlib
from collections.abc import Callable
from math import prod
from pathlib import Path

import numpy as np

from tuner_service.errors import DataError
from workers.training.data.sources import Array, RawData, Request, Rows, Source, find

MAX_BYTES = 1 << 32

_PARTS = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
_CLASSES = {
    "mnist": tuple(str(digit) for digit in range(10)),
    "fashion_mnist": (
        "t-shirt", "trouser", "pullover", "dress", "coat",
        "sandal", "shirt", "sneaker", "bag", "ankle boot",
    ),
}  # fmt: skip
_DIRECTORIES = {"mnist": "mnist", "fashion_mnist": "fashion-mnist"}


def _file(directory: Path, name: str) -> Path:
    for candidate in (directory / f"{name}.gz", directory / name):
        if candidate.is_file():
            return candidate
    raise DataError(
        f"no file {name}.gz (or {name}) in the directory {directory.name!r}; "
        "put the four IDX files of the data set there, or `tuner data fetch`"
    )


def _files(request: Request) -> tuple[Path, ...]:
    path = str(request.options.get("path") or _DIRECTORIES[request.name])
    directory = find(path, request.directories)
    return tuple(_file(directory, name) for pair in _PARTS.values() for name in pair)


def read_idx(path: Path) -> Array:
    """Return the unsigned bytes of one IDX file, in its shape.

    Raises:
        DataError: the file is not IDX, or is cut short.
    """
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rb") as file:
            shape = _read_shape(file.read, path)
            # No more than the header promises: a file may unpack to more than memory holds.
            data = file.read(prod(shape) + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"cannot read {path.name}: {error}; copy the file again") from error
    if len(data) != prod(shape):
        raise DataError(
            f"{path.name} should hold {prod(shape)} bytes of data but does not; copy the file again"
        )
    return np.frombuffer(data, dtype=np.uint8).reshape(shape)


def _read_shape(read: Callable[[int], bytes], path: Path) -> tuple[int, ...]:
    magic = read(4)
    dimensions = magic[3] if len(magic) == 4 else 0
    header = read(4 * dimensions)
    if magic[:3] != b"\x00\x00\x08" or not 1 <= dimensions <= 3 or len(header) < 4 * dimensions:
        raise DataError(f"{path.name} is not an IDX file of unsigned bytes; copy the file again")
    shape = struct.unpack(f">{dimensions}I", header)
    if prod(shape) > MAX_BYTES:
        raise DataError(f"{path.name} claims {prod(shape)} bytes; at most {MAX_BYTES} are read")
    return shape


def _rows(images: Path, labels: Path) -> Rows:
    inputs, targets = read_idx(images), read_idx(labels)
    if len(inputs) != len(targets):
        raise DataError(
            f"{images.name} holds {len(inputs)} images but {labels.name} {len(targets)} labels; "
            "they must come from the same data set"
        )
    return Rows(inputs[:, None], targets.astype(np.int64))  # [n, 1, 28, 28]


def _read(request: Request) -> RawData:
    train_images, train_labels, test_images, test_labels = _files(request)
    return RawData(
        _rows(train_images, train_labels),
        _rows(test_images, test_labels),
        classes=_CLASSES[request.name],
    )


IDX: dict[str, Source] = {name: Source(_files, _read) for name in _DIRECTORIES}
