"""NumPy archives (.npz): what they hold, told by the arrays' headers; nothing is unpickled."""

import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any, Final

import numpy as np

from tuner_service.definition.catalogue import Inputs
from tuner_service.errors import DataError

ARRAYS: Final = ("inputs", "targets")
KINDS: Final[Mapping[int, Inputs]] = {2: "table", 3: "sequence", 4: "image"}
"""What inputs are by the number of their dimensions: [n, features], [n, steps, features] and
[n, channels, height, width]."""

BROKEN: Final = (
    zipfile.BadZipFile, zlib.error, ValueError, EOFError, OSError, NotImplementedError,
    RuntimeError,
)  # fmt: skip
"""What reading an archive raises that is broken, or of a kind that is not read."""

BYTES_OF_A_NUMBER: Final = 4  # as it is trained on, whatever it takes in the file
_READ_BYTES = 1 << 20

_READERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


@dataclass(frozen=True, slots=True)
class Header:
    """Shape and type of one array."""

    shape: tuple[int, ...]
    dtype: "np.dtype[Any]"


def read_headers(path: Path, *, max_bytes: int) -> tuple[Header, Header]:
    """Return the headers of `inputs` and `targets`.

    Raises:
        DataError: An array is missing, of a type that is no data, does not fit the other, or is
            larger than `max_bytes`.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            inputs, targets = (_header(archive, name, max_bytes) for name in ARRAYS)
    except BROKEN as error:
        raise DataError(f"the .npz file cannot be read: {error}") from error
    _check(inputs, targets)
    return inputs, targets


def check_whole(path: Path) -> None:
    """Read the arrays through, as their check sums want it.

    Raises:
        DataError: One is cut short, or is not what was written.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            for name in ARRAYS:
                with archive.open(f"{name}.npy") as file:
                    while file.read(_READ_BYTES):
                        pass
    except BROKEN as error:
        raise DataError(f"the .npz file cannot be read: {error}; save it again") from error


def read_header(file: IO[bytes], name: str) -> "tuple[tuple[int, ...], bool, np.dtype[Any]]":
    """Return shape, whether it goes by columns (Fortran), and type of the array that follows.

    Raises:
        DataError: It is of an unknown version.
        ValueError: It is no .npy file.
    """
    read = _READERS.get(np.lib.format.read_magic(file))
    if read is None:
        raise DataError(f"the array {name!r} is of a .npy version that is not read")
    shape, by_columns, dtype = read(file)
    return tuple(shape), by_columns, dtype


def _header(archive: zipfile.ZipFile, name: str, max_bytes: int) -> Header:
    try:
        member = archive.getinfo(f"{name}.npy")
    except KeyError as error:
        found = ", ".join(repr(one.removesuffix(".npy")) for one in archive.namelist()[:20])
        raise DataError(
            f"the .npz file has no array {name!r}, only {found or 'none'}; save it with "
            "np.savez(path, inputs=…, targets=…)"
        ) from error
    if member.flag_bits & 1:
        raise DataError(f"the array {name!r} is encrypted; save it without a password")
    with archive.open(member) as file:
        shape, _, dtype = read_header(file, name)
        begins = file.tell()
    if dtype.hasobject:
        raise DataError(f"the array {name!r} holds Python objects; save numbers or text instead")
    stored = prod(shape) * dtype.itemsize
    size = prod(shape) * max(dtype.itemsize, BYTES_OF_A_NUMBER)
    if size > max_bytes or member.file_size > max_bytes:
        raise DataError(
            f"the array {name!r} takes {max(size, member.file_size):,} bytes unpacked, more than "
            f"the {max_bytes:,} that are allowed (TUNER_MAX_DATASET_BYTES)"
        )
    if any(side < 0 for side in shape) or stored != member.file_size - begins:
        raise DataError(
            f"the array {name!r} is of the shape {list(shape)} by its header, but the file holds "
            f"{member.file_size - begins:,} bytes of it where {stored:,} belong; save it again"
        )
    return Header(shape, dtype)


def _check(inputs: Header, targets: Header) -> None:
    if inputs.dtype.kind not in "biuf":
        raise DataError(f"`inputs` must hold numbers, but is of the type {inputs.dtype}")
    if targets.dtype.kind not in "biufUS":
        raise DataError(f"`targets` must hold numbers or text, but is of the type {targets.dtype}")
    if len(inputs.shape) not in KINDS or 0 in inputs.shape:
        raise DataError(
            "`inputs` must be of the shape [rows, features], [rows, steps, features] or "
            f"[rows, channels, height, width], none of them 0, but is {list(inputs.shape)}"
        )
    if len(targets.shape) not in (1, 2) or targets.shape[0] != inputs.shape[0]:
        raise DataError(
            f"`targets` must be of the shape [rows] or [rows, targets] with {inputs.shape[0]} rows "
            f"as `inputs` has, but is {list(targets.shape)}"
        )
