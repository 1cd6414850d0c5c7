"""Downloading public data sets into the data directory, each file checked against its SHA-256.

Only this command reaches out: neither the service nor a worker ever downloads data.
"""

import hashlib
import secrets
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

import httpx2

from tuner_service.definition.faults import did_you_mean
from tuner_service.errors import DataError, NotFoundError
from tuner_service.files import private_folder

TIMEOUT_SECONDS: Final = 60.0
MAX_MEMBER_BYTES: Final = 1 << 30


@dataclass(frozen=True, slots=True)
class Public:
    """A public data set.

    Attributes:
        folder: Inside `datasets`, where the built-in data set looks for it.
        url: Of the folder that the files are in.
        files: SHA-256 by name.
        members: Files to take out of the one archive; empty where the files are the data.
    """

    folder: str
    url: str
    files: Mapping[str, str]
    members: tuple[str, ...] = ()


PUBLIC: dict[str, Public] = {
    "mnist": Public(
        "mnist",
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        {
            "train-images-idx3-ubyte.gz":
                "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            "train-labels-idx1-ubyte.gz":
                "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            "t10k-images-idx3-ubyte.gz":
                "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            "t10k-labels-idx1-ubyte.gz":
                "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        },
    ),
    "fashion_mnist": Public(
        "fashion-mnist",
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        {
            "train-images-idx3-ubyte.gz":
                "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7",
            "train-labels-idx1-ubyte.gz":
                "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056",
            "t10k-images-idx3-ubyte.gz":
                "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa",
            "t10k-labels-idx1-ubyte.gz":
                "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05",
        },
    ),
    "cifar10": Public(
        "cifar-10-batches-bin",
        "https://www.cs.toronto.edu/~kriz/",
        {
            "cifar-10-binary.tar.gz":
                "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        },
        members=(*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"),
    ),
}  # fmt: skip


def fetch(name: str, base: Path, *, url: str | None = None) -> Path:
    """Download what is not there yet, and return the folder.

    Args:
        base: The data directory's `datasets`.
        url: Another place with the same files.

    Raises:
        NotFoundError: No such data set is known.
        DataError: A file cannot be had, or is not what it should be.
    """
    if name not in PUBLIC:
        hint = did_you_mean(name, PUBLIC) or f"; there are {', '.join(PUBLIC)}"
        raise NotFoundError(f"there is no data set {name!r} to fetch{hint}")
    public = PUBLIC[name]
    folder = private_folder(base / public.folder)
    source = (url or public.url).rstrip("/")
    wanted = public.members or tuple(public.files)
    if all((folder / file).is_file() for file in wanted):
        return folder
    with httpx2.Client(timeout=TIMEOUT_SECONDS, follow_redirects=True) as http:
        for file, sha256 in public.files.items():
            _download(http, f"{source}/{file}", folder / file, sha256)
    for file in public.files if public.members else ():
        _take_out(folder / file, public.members)
        (folder / file).unlink()
    return folder


def _download(http: httpx2.Client, url: str, target: Path, sha256: str) -> None:
    draft = target.with_name(f"{target.name}.{secrets.token_hex(4)}.part")
    digest = hashlib.sha256()
    try:
        with http.stream("GET", url) as response, draft.open("xb") as file:
            response.raise_for_status()
            for block in response.iter_raw():
                digest.update(block)
                file.write(block)
        if digest.hexdigest() != sha256:
            raise DataError(
                f"{url} has the SHA-256 {digest.hexdigest()}, not {sha256}; nothing was kept. "
                "Try again, or another place (--from URL)"
            )
        draft.replace(target)
    except httpx2.HTTPError as error:
        raise DataError(f"cannot fetch {url}: {error}; put the files there yourself") from error
    finally:
        draft.unlink(missing_ok=True)


def _take_out(archive: Path, members: tuple[str, ...]) -> None:
    """Write the members, known by their names alone, beside the archive."""
    missing = set(members)
    try:
        with tarfile.open(archive) as tar:
            for entry in tar:
                name = PurePosixPath(entry.name).name
                if name not in missing or not entry.isreg() or entry.size > MAX_MEMBER_BYTES:
                    continue
                content = tar.extractfile(entry)
                assert content is not None
                draft = archive.with_name(f"{name}.part")
                draft.write_bytes(content.read())
                draft.replace(archive.with_name(name))
                missing.discard(name)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DataError(f"cannot unpack {archive.name}: {error}") from error
    if missing:
        raise DataError(f"{archive.name} has no file {min(missing)}")
