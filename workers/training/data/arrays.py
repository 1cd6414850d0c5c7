"""NumPy arrays from .npz files: tables, sequences or images, by their number of dimensions."""

import zipfile
import zlib
from dataclasses import replace
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
            beside = _beside(archive, request, len(inputs))
    except DataError as error:
        raise DataError(f"{file.name}: {error}") from error
    except (zipfile.BadZipFile, zlib.error, ValueError, OSError, EOFError) as error:
        raise DataError(f"cannot read {file.name}: {error}; save it again") from error
    if request.targets == "numbers":
        numbers = numbers_of(targets, file.name)
        return RawData(Rows(inputs, numbers), None, classes=None, beside=beside)
    return replace(labelled(inputs, labels_of(targets, file.name)), beside=beside)


def _beside(archive: zipfile.ZipFile, request: Request, rows: int) -> list[str] | None:
    """Return the array [rows] that the split goes by, as texts."""
    name = request.column
    if name is None:
        return None
    if f"{name}.npy" not in archive.namelist():
        raise DataError(f"there is no array {name!r} beside inputs and targets to split by")
    values = _array(archive, str(name), request.room)
    if values.shape != (rows,) or values.dtype.kind not in "biufUM":
        raise DataError(
            f"the array {name!r} to split by must be [{rows}] of numbers, text or dates, but is of "
            f"the shape {list(values.shape)} of {values.dtype}"
        )
    return list(map(str, values.tolist() if values.dtype.kind != "M" else values))


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
