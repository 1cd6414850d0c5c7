"""Image folders, as directories or zips: one folder per class, decoded to [n, C, H, W] bytes."""

import os
import stat
import zipfile
import zlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image

from tuner_service.datasets.images import (
    Member,
    check_depth,
    check_entries,
    members,
    opened,
    strays,
    upright,
)
from tuner_service.errors import DataError
from workers.training.data.labels import labelled
from workers.training.data.sources import (
    MAX_BYTES,
    Array,
    RawData,
    Request,
    Source,
    find,
    one_path,
)

Open = Callable[[str], AbstractContextManager[IO[bytes]]]

_MODES = {"color": "RGB", "grey": "L"}


def _files(request: Request) -> tuple[Path, ...]:
    """Return the zip, or the directory with its classes' folders, whose times of change tell."""
    place = find(one_path(request), request.directories)
    if place.is_file():
        return (place,)
    if not place.is_dir():
        raise DataError(f"{place.name!r} is neither a zip nor a directory; give one of them")
    return (place, *sorted(path for path in place.iterdir() if path.is_dir()))


def _read(request: Request) -> RawData:
    place = find(one_path(request), request.directories)
    try:
        if place.is_dir():
            names = _names(place)
            return _data(names, lambda name: (place / name).open("rb"), request)
        with zipfile.ZipFile(place) as archive:
            check_entries(archive.infolist(), MAX_BYTES)
            return _data(archive.namelist(), archive.open, request)
    except DataError as error:
        raise DataError(f"{place.name}: {error}") from error
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, OSError) as error:
        raise DataError(
            f"{place.name}: the zip cannot be read: {error}; zip the folder anew"
        ) from error


def _names(place: Path) -> list[str]:
    names = []
    for folder, _, files in os.walk(place):
        for file in files:
            path = Path(folder) / file
            name = path.relative_to(place).as_posix()
            kind = path.lstat().st_mode
            if stat.S_ISLNK(kind):
                raise DataError(f"{file!r} is a link; put the file itself there")
            if not stat.S_ISREG(kind):  # to open a pipe would wait for ever
                raise DataError(f"{name!r} is a pipe, socket or device, no file; remove it")
            names.append(name)
    return names


def _data(names: Sequence[str], open_one: Open, request: Request) -> RawData:
    found = members(names)
    side = request.options.get("image_size")
    mode = _MODES[str(request.options.get("image_mode") or "color")]
    first = _decoded(found[0], open_one, mode, side)
    inputs = request.room.array((len(found), *first.shape), np.dtype(np.uint8))
    for row, member in enumerate(found):
        image = _decoded(member, open_one, mode, side)
        if image.shape != first.shape:
            raise DataError(
                f"{member.name!r} is {image.shape[2]}×{image.shape[1]} pixels, but "
                f"{found[0].name!r} {first.shape[2]}×{first.shape[1]}; set image_size, or bring "
                "images of one size"
            )
        inputs[row] = image
    read = labelled(inputs, np.array([member.label for member in found]))
    return replace(read, images={"mode": mode, "size": side}, warnings=strays(names))


def _decoded(member: Member, open_one: Open, mode: str, side: int | None) -> Array:
    """Return one image, [C, H, W] bytes."""
    with open_one(member.name) as file, opened(file, member.name) as image:
        check_depth(image, member.name)
        plain = upright(image).convert(mode)
        if side is not None and plain.size != (side, side):
            plain = plain.resize((side, side), Image.Resampling.BILINEAR)
        pixels = np.asarray(plain, dtype=np.uint8)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


IMAGES: dict[str, Source] = {"images": Source(_files, _read)}
