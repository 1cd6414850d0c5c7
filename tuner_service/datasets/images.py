"""Image folders: one folder per class, as a directory or a zip, which is never unpacked to disk."""

import io
import stat
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Final

from PIL import Image, ImageOps, UnidentifiedImageError

from tuner_service.errors import DataError

MAX_PIXELS: Final = 1 << 25  # of one image as it is stored; decoded it takes up to four bytes each
MAX_IMAGES: Final = 2_000_000
MAX_CLASSES: Final = 10_000
SUFFIXES: Final = (".png", ".jpg", ".jpeg")
FORMATS: Final = ("PNG", "JPEG")  # all that Pillow is allowed to try

_IGNORED_FOLDERS = {"__MACOSX"}
_IGNORED_FILES = {"thumbs.db", "desktop.ini"}
_OTHER_IMAGES = (".gif", ".webp", ".bmp", ".tif", ".tiff", ".heic", ".avif", ".jp2", ".jfif")
_ORIENTATION: Final = 0x0112  # the tag of EXIF that says how a picture is held
_TURNED: Final = (5, 6, 7, 8)  # its values that exchange height and width


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
    warnings: tuple[str, ...] = ()


def members(names: Sequence[str]) -> list[Member]:
    """Return the images among these names, in their order; the label is the folder's name.

    Raises:
        DataError: A name leads out of the folder, a file is no image or in no class's folder.
    """
    found = [member for name in sorted(names) if (member := _member(name)) is not None]
    if not found:
        raise DataError(
            "there is no image in the zip; it needs a folder per class, and only PNG and JPEG "
            "files are read"
        )
    if len(found) > MAX_IMAGES:
        raise DataError(f"there are {len(found):,} images; at most {MAX_IMAGES:,} are read")
    labels = {member.label for member in found}
    if len(labels) > MAX_CLASSES:
        raise DataError(f"there are {len(labels):,} classes; at most {MAX_CLASSES:,} are read")
    return found


def strays(names: Sequence[str]) -> tuple[str, ...]:
    """Return a warning that names the files that are no images, if there are any."""
    found = [name for name in sorted(names) if not _is_hidden(name) and _is_stray(name)]
    if not found:
        return ()
    told = ", ".join(repr(name[:100]) for name in found[:3])
    more = f" and {len(found) - 3:,} more" if len(found) > 3 else ""
    return (f"left out, as they are no images: {told}{more}",)


def _is_hidden(name: str) -> bool:
    """Return whether a system keeps the file beside images: nobody put it there as data."""
    parts = PurePosixPath(name).parts
    hidden = any(part.startswith(".") or part in _IGNORED_FOLDERS for part in parts)
    return hidden or name.endswith("/") or parts[-1].lower() in _IGNORED_FILES


def _is_stray(name: str) -> bool:
    return not name.lower().endswith((*SUFFIXES, *_OTHER_IMAGES))


def _member(name: str) -> Member | None:
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if name.startswith(("/", "\\")) or ":" in name or ".." in parts or "\0" in name:
        raise DataError(f"the name {name[:100]!r} leads out of the folder; zip the folder anew")
    if "\\" in name:
        raise DataError(
            f"the zip has `\\` between folders ({name[:100]!r}), as some programs on Windows write "
            "it; zip the folder anew with one that writes `/`"
        )
    if not parts or _is_hidden(name) or _is_stray(name):
        return None
    if not name.lower().endswith(SUFFIXES):
        raise DataError(
            f"{name[:100]!r} is an image of another kind: only PNG and JPEG files are read"
        )
    if len(parts) < 2:
        raise DataError(f"{name[:100]!r} lies in no folder; put it into the folder of its class")
    return Member(name, parts[-2])


def check_zip(path: Path, *, max_bytes: int) -> Summary:
    """Look at every image, and at what the zip's directory says of it.

    Raises:
        DataError: Something in it is no image, is too large, or leads elsewhere.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            check_entries(archive.infolist(), max_bytes)
            return _summary(archive)
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, OSError) as error:
        raise DataError(f"the zip cannot be read: {error}; zip the folder anew") from error


def check_entries(entries: Sequence[zipfile.ZipInfo], max_bytes: int) -> None:
    """Look at what the zip's directory says of its files.

    Raises:
        DataError: One is a link or encrypted, or they unpack to more than `max_bytes`.
    """
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
        sizes.add(_judged(archive.read(member.name), member.name))
    labels = tuple(sorted({member.label for member in found}))
    size = sizes.pop() if len(sizes) == 1 else None
    return Summary(len(found), labels, size, strays(archive.namelist()))


def _judged(content: bytes, name: str) -> tuple[int, int]:
    """Return an image's (height, width) as people see it; a JPEG is decoded only if it looks cut.

    Raises:
        DataError: It is broken, cut short, or of more than 8 bits.
    """
    with opened(io.BytesIO(content), name) as image:
        check_depth(image, name)
        # A whole JPEG has the mark of its end after that of its last scan.
        if image.format != "JPEG" or content.rfind(b"\xff\xd9") < content.rfind(b"\xff\xda"):
            image.load()
        turned = image.getexif().get(_ORIENTATION) in _TURNED
        return (image.width, image.height) if turned else (image.height, image.width)


def check_depth(image: Image.Image, name: str) -> None:
    """Refuse what a byte per pixel cannot hold.

    Raises:
        DataError: The image has 16 bits or more.
    """
    if image.mode.startswith(("I", "F")):
        raise DataError(f"{name!r} has 16 bits or more per pixel; save it with 8, or bring a .npz")


def upright(image: Image.Image) -> Image.Image:
    """Return an image as people see it: turned as its tag says."""
    return ImageOps.exif_transpose(image)


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
        zlib.error,
        zipfile.BadZipFile,
        Image.DecompressionBombError,
    ) as error:
        raise DataError(f"the image {name!r} cannot be read: {error}") from error
