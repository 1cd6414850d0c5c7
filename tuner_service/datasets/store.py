"""Where uploaded files lie, and which of them a name stands for.

    datasets/uploads/<sha256>/<name>.<format>   every version, never changed once it is there
    datasets/uploads/index/<name>.json          the version that the name stands for now
    datasets/uploads/incoming/                  what is still arriving
    datasets/uploads/lock                       held while versions come, go or are pinned

Versions are addressed by content, so that a study goes on with the file it was submitted with
while the name stands for another one already. Both steps of an upload are a rename within one
file system: a crash leaves either the old version in force, or the new.
"""

import hashlib
import os
import re
import secrets
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Final

from tuner_service.datasets.inspect import inspect
from tuner_service.definition import Upload, upload_path
from tuner_service.definition.catalogue import DATASETS, UPLOAD_NAME
from tuner_service.definition.faults import did_you_mean
from tuner_service.definition.uploads import FOLDER
from tuner_service.errors import DataError, InputError, LimitError, NotFoundError
from tuner_service.files import locked, private_folder, sync_folder
from tuner_service.settings import Settings

SPARE_SECONDS: Final = 3600.0
"""How long a version outlives its last use: who has read its hash may be about to pin it."""

LOCK: Final = "lock"
ABANDONED_SECONDS: Final = 86400.0  # after which what is still arriving never will

_NAME = re.compile(UPLOAD_NAME)


class DatasetStore:
    """The uploaded data sets of one data directory.

    Args:
        base: The data directory's `datasets`.
        max_bytes: Bound on a file, and on what it unpacks to.
    """

    def __init__(self, base: Path, *, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._base = base
        self._uploads = base / FOLDER
        self._index = self._uploads / "index"
        self._incoming = self._uploads / "incoming"

    @classmethod
    def of(cls, settings: Settings) -> "DatasetStore":
        """Return the store of these settings."""
        return cls(settings.directory.datasets, max_bytes=settings.max_dataset_bytes)

    def receive(self, name: str) -> "Receiver":
        """Begin an upload under this name.

        Raises:
            InputError: A data set cannot have the name.
        """
        if not _NAME.fullmatch(name):
            raise InputError(
                f"a data set's name is 1 to 64 letters, digits, `_` and `-`, but got {name[:80]!r}"
            )
        if name in DATASETS:
            raise InputError(f"{name!r} is a built-in data set; choose another name")
        private_folder(self._incoming)
        return Receiver(self, name, self._incoming / secrets.token_hex(8))

    def adopt(self, name: str, path: Path, sha256: str) -> Upload:
        """Make a file that has arrived the version that the name stands for.

        Raises:
            DataError: It is of no format there is, or broken.
        """
        try:
            contents = inspect(path, max_bytes=self.max_bytes)
        except DataError as error:
            raise DataError(f"data set {name!r} is refused: {error}") from error
        upload = Upload(
            name=name,
            format=contents.format,
            sha256=sha256,
            bytes=path.stat().st_size,
            rows=contents.rows,
            columns=contents.columns,
            shape=contents.shape,
            inputs=contents.inputs,
            delimiter=contents.delimiter,
            warnings=contents.warnings,
            uploaded_at=datetime.now(UTC),
        )
        with self.exclusive():
            _move(path, self.file(upload))
            before = self.find(name)
            if before is not None and self.file(before).exists():
                os.utime(self.file(before))  # it is spared for a while from now
            self._write_index(upload)
        return upload

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Keep others out, of this process or another, and those who use a version."""
        private_folder(self._index)
        with locked(self._uploads / LOCK):
            yield

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Keep every version for the block: a submit checks that one is there, and stores it."""
        with locked(self._uploads / LOCK, shared=True):
            yield

    def _write_index(self, upload: Upload) -> None:
        temporary = self._incoming / secrets.token_hex(8)
        with temporary.open("w", encoding="utf-8") as file:
            file.write(upload.model_dump_json())
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self._index / f"{upload.name}.json")
        sync_folder(self._index)

    def file(self, upload: Upload) -> Path:
        """Return where a version lies."""
        return self._base / upload_path(upload.name, upload.format, upload.sha256)

    def has(self, name: str, file_format: str, sha256: str) -> bool:
        """Return whether a version is there."""
        return (self._base / upload_path(name, file_format, sha256)).is_file()

    def find(self, name: str) -> Upload | None:
        """Return the version that a name stands for, or None."""
        if not _NAME.fullmatch(name):
            return None
        try:
            return Upload.model_validate_json((self._index / f"{name}.json").read_bytes())
        except FileNotFoundError:
            return None

    def get(self, name: str) -> Upload:
        """Return the version that a name stands for.

        Raises:
            NotFoundError: There is none.
        """
        upload = self.find(name)
        if upload is None:
            known = [one.name for one in self.all()]
            raise NotFoundError(
                f"there is no uploaded data set {name[:80]!r}{did_you_mean(name, known)}"
            )
        return upload

    def all(self) -> list[Upload]:
        """Return what every name stands for, by name."""
        names = sorted(path.stem for path in self._index.glob("*.json"))
        return [upload for name in names if (upload := self.find(name)) is not None]

    def remove(self, name: str) -> None:
        """Forget a name and delete all its versions; the caller holds `exclusive`.

        Raises:
            NotFoundError: There is no such data set.
        """
        self.get(name)
        (self._index / f"{name}.json").unlink(missing_ok=True)
        self.sweep(name, used=(), spare_seconds=0.0)

    def sweep(
        self, name: str, *, used: Collection[str], spare_seconds: float = SPARE_SECONDS
    ) -> None:
        """Delete versions of a name that nothing uses any more, and what never arrived.

        The caller holds `exclusive` since before it looked up what is used.
        """
        present = self.find(name)
        kept = {*used, *([present.sha256] if present else [])}
        for path in self._uploads.glob(f"*/{name}.*"):
            folder = path.parent
            if len(folder.name) == hashlib.sha256().digest_size * 2 and folder.name not in kept:
                _unlink_older(path, spare_seconds)
                with suppress(OSError):  # another name's file lies there, with the same content
                    folder.rmdir()
        for path in self._incoming.glob("*"):
            _unlink_older(path, ABANDONED_SECONDS)


class Receiver:
    """A file that is arriving: written block by block, hashed on the way, checked at the end.

    Use it as a context manager; what was not kept is deleted.
    """

    def __init__(self, store: DatasetStore, name: str, path: Path) -> None:
        self._store = store
        self._name = name
        self._path = path
        self._file: IO[bytes] = path.open("xb")
        self._digest = hashlib.sha256()
        self._bytes = 0

    def __enter__(self) -> "Receiver":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._path.unlink(missing_ok=True)

    def write(self, block: bytes) -> None:
        """Take the next block.

        Raises:
            LimitError: It is more than a data set may have.
        """
        self._bytes += len(block)
        if self._bytes > self._store.max_bytes:
            raise too_large(self._store.max_bytes)
        self._digest.update(block)
        self._file.write(block)

    def keep(self, *, sha256: str | None = None) -> Upload:
        """Make what has arrived the version that the name stands for.

        Args:
            sha256: What the sender says of it; checked.

        Raises:
            DataError: It is not what was sent, of no format there is, or broken.
        """
        found = self._digest.hexdigest()
        if sha256 is not None and sha256 != found:
            raise DataError(
                f"the file arrived with the SHA-256 {found}, but was sent with {sha256}; send it "
                "again"
            )
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return self._store.adopt(self._name, self._path, found)


def too_large(limit: int) -> LimitError:
    """Return the error for a file beyond the limit."""
    return LimitError(
        f"a data set must not be larger than {limit:,} bytes (TUNER_MAX_DATASET_BYTES)"
    )


def _unlink_older(path: Path, seconds: float) -> None:
    try:
        if time.time() - path.stat().st_mtime >= seconds:
            path.unlink()
    except FileNotFoundError:
        return


def _move(path: Path, target: Path) -> None:
    while True:
        private_folder(target.parent)
        try:
            path.replace(target)
        except FileNotFoundError:
            if not path.exists():
                raise
            continue  # a sweep has just taken the empty folder away
        sync_folder(target.parent)
        return
