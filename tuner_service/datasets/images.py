"""Image folders: one folder per class, as a directory or a zip, which is never unpacked to disk."""

import stat
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Final

from PIL import Image, UnidentifiedImageError

from tuner_service.errors import DataError

MAX_PIXELS: Final = 1 << 25  # of one image as it is stored; decoded it takes up to four bytes each
MAX_IMAGES: Final = 2_000_000
MAX_CLASSES: Final = 10_000
SUFFIXES: Final = (".png", ".jpg", ".jpeg")
FORMATS: Final = ("PNG", "JPEG")  # all that Pillow is allowed to try

_IGNORED_FOLDERS = {"__MACOSX"}


@dataclass(frozen=True, slots=True)
class Member:
    """One image of the folder; `name` as the folder has it."""

    name: str
    label: str


@dataclass(frozen=True, slots=True)
class Summary:
    """What a folder of images holds; `size` (height, width) where all have the same."""

    count: int
    labels: tuple[str, ...]
    size: tuple[int, int] | None


def members(names: Sequence[str]) -> list[Member]:
    """Return the images among these names, in their order; the label is the folder's name.

    Raises:
        DataError: A name leads out of the folder, a file is no image or in no class's folder.
    """
    found = [member for name in sorted(names) if (member := _member(name)) is not None]
    if not found:
        raise DataError(
            "there is no image in the zip; it needs a folder per class with PNG or JPEG files"
        )
    if len(found) > MAX_IMAGES:
        raise DataError(f"there are {len(found):,} images; at most {MAX_IMAGES:,} are read")
    labels = {member.label for member in found}
    if len(labels) > MAX_CLASSES:
        raise DataError(f"there are {len(labels):,} classes; at most {MAX_CLASSES:,} are read")
    return found


def _member(name: str) -> Member | None:
    parts = PurePosixPath(name).parts
    if name.startswith("/") or "\\" in name or ":" in name or ".." in parts or "\0" in name:
        raise DataError(f"the name {name[:100]!r} leads out of the folder; zip the folder anew")
    if name.endswith("/") or parts[-1].startswith(".") or _IGNORED_FOLDERS & set(parts):
        return None
    if not name.lower().endswith(SUFFIXES):
        raise DataError(f"{name[:100]!r} is no image: only PNG and JPEG files are read")
    if len(parts) < 2:
        raise DataError(f"{name[:100]!r} lies in no folder; put it into the folder of its class")
    return Member(name, parts[-2])


def check_zip(path: Path, *, max_bytes: int) -> Summary:
    """Look at every image's header, and at what the zip's directory says of it.

    Raises:
        DataError: Something in it is no image, is too large, or leads elsewhere.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            _check_entries(archive.infolist(), max_bytes)
            return _summary(archive)
    except (zipfile.BadZipFile, NotImplementedError, OSError) as error:
        raise DataError(f"the zip cannot be read: {error}; zip the folder anew") from error


def _check_entries(entries: Sequence[zipfile.ZipInfo], max_bytes: int) -> None:
    unpacked = 0
    for entry in entries:
        if stat.S_ISLNK(entry.external_attr >> 16):
            raise DataError(f"{entry.filename[:100]!r} is a link; put the file itself there")
        if entry.flag_bits & 1:
            raise DataError(f"{entry.filename[:100]!r} is encrypted; zip it without a password")
        unpacked += entry.file_size
        if unpacked > max_bytes:
            raise DataError(
                f"the zip unpacks to more than the {max_bytes:,} bytes that are allowed "
                "(TUNER_MAX_DATASET_BYTES)"
            )


def _summary(archive: zipfile.ZipFile) -> Summary:
    found = members(archive.namelist())
    sizes: set[tuple[int, int]] = set()
    for member in found:
        with archive.open(member.name) as file, opened(file, member.name) as image:
            sizes.add((image.height, image.width))
    labels = tuple(sorted({member.label for member in found}))
    return Summary(len(found), labels, sizes.pop() if len(sizes) == 1 else None)


@contextmanager
def opened(file: IO[bytes], name: str) -> Iterator[Image.Image]:
    """Open a PNG or JPEG; its pixels are not read before they are asked for.

    Raises:
        DataError: It is none, is broken, or has too many pixels.
    """
    try:
        with warnings.catch_warnings(), Image.open(file, formats=FORMATS) as image:
            warnings.simplefilter("ignore")
            if image.width * image.height > MAX_PIXELS:
                raise DataError(
                    f"{name!r} has {image.width}×{image.height} pixels; an image may have "
                    f"{MAX_PIXELS:,}"
                )
            yield image
    except UnidentifiedImageError as error:
        raise DataError(f"{name!r} is neither PNG nor JPEG, whatever its name says") from error
    except (
        OSError,
        SyntaxError,
        ValueError,
        zipfile.BadZipFile,
        Image.DecompressionBombError,
    ) as error:
        raise DataError(f"the image {name!r} cannot be read: {error}") from error
