"""NumPy arrays from .npz files: tables, sequences or images, by their number of dimensions."""

import zipfile
import zlib
from pathlib import Path

import numpy as np

from tuner_service.datasets.arrays import ARRAYS as ARRAY_NAMES
from tuner_service.datasets.arrays import read_header, read_headers
from tuner_service.errors import DataError
from workers.training.data.labels import labelled, labels_of, numbers_of
from workers.training.data.room import Room
from workers.training.data.sources import (
    MAX_BYTES,
    Array,
    RawData,
    Request,
    Rows,
    Source,
    find,
    one_path,
)

_READ_BYTES = 1 << 20


def _files(request: Request) -> tuple[Path, ...]:
    file = find(one_path(request), request.directories)
    if not file.is_file():
        raise DataError(f"{file.name!r} is not a file; `path` must name a .npz file")
    return (file,)


def _read(request: Request) -> RawData:
    (file,) = _files(request)
    try:
        read_headers(file, max_bytes=MAX_BYTES)
        with zipfile.ZipFile(file) as archive:
            inputs, targets = (_array(archive, name, request.room) for name in ARRAY_NAMES)
    except DataError as error:
        raise DataError(f"{file.name}: {error}") from error
    except (zipfile.BadZipFile, zlib.error, ValueError, OSError, EOFError) as error:
        raise DataError(f"cannot read {file.name}: {error}; save it again") from error
    if request.targets == "numbers":
        return RawData(Rows(inputs, numbers_of(targets, file.name)), None, classes=None)
    return labelled(inputs, labels_of(targets, file.name))


def _array(archive: zipfile.ZipFile, name: str, room: Room) -> Array:
    """Return one array; `np.load` would hold it in main memory, however large it is."""
    with archive.open(f"{name}.npy") as member:
        shape, by_columns, dtype = read_header(member, name)
        array = room.array(shape[::-1] if by_columns else shape, dtype)
        left = array.reshape(-1).view(np.uint8)
        while len(left):
            read = member.read(min(_READ_BYTES, len(left)))
            if not read:
                raise EOFError(f"the array {name!r} is cut short")
            left[: len(read)] = np.frombuffer(read, np.uint8)
            left = left[len(read) :]
    return array.T if by_columns else array


ARRAYS: dict[str, Source] = {"npz": Source(_files, _read)}
