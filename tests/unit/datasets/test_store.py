"""Uploaded files: received whole or not at all, kept by content, swept when nothing needs them."""

import hashlib
import os
import threading
import time
from pathlib import Path

import pytest

from tuner_service.datasets import DatasetStore
from tuner_service.datasets.store import ABANDONED_SECONDS, LOCK, SPARE_SECONDS
from tuner_service.definition import Upload
from tuner_service.errors import DataError, InputError, LimitError, NotFoundError

FLOWERS = b"length,width,kind\n1,2,a\n3,4,b\n5,6,a\n"
OTHERS = FLOWERS + b"7,8,b\n"


@pytest.fixture
def store(tmp_path: Path) -> DatasetStore:
    return DatasetStore(tmp_path, max_bytes=1000)


def put(store: DatasetStore, name: str, *blocks: bytes, sha256: str | None = None) -> Upload:
    with store.receive(name) as receiver:
        for block in blocks:
            receiver.write(block)
        return receiver.keep(sha256=sha256)


def remove(store: DatasetStore, name: str) -> None:
    with store.exclusive():
        store.remove(name)


def files(folder: Path) -> list[str]:
    return sorted(
        str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and p.name != LOCK
    )


def test_an_upload_is_kept_by_its_content(store: DatasetStore, tmp_path: Path) -> None:
    upload = put(store, "flowers", FLOWERS[:10], FLOWERS[10:])
    sha256 = hashlib.sha256(FLOWERS).hexdigest()
    assert (upload.format, upload.sha256, upload.bytes) == ("csv", sha256, len(FLOWERS))
    assert (upload.rows, upload.columns) == (3, ("length", "width", "kind"))
    assert store.file(upload).read_bytes() == FLOWERS
    assert store.get("flowers") == upload
    assert store.all() == [upload]
    assert files(tmp_path) == ["uploads/" + sha256 + "/flowers.csv", "uploads/index/flowers.json"]


def test_what_is_refused_leaves_nothing_and_changes_nothing(
    store: DatasetStore, tmp_path: Path
) -> None:
    kept = put(store, "flowers", FLOWERS)
    before = files(tmp_path)
    with pytest.raises(LimitError, match="1,000 bytes"):
        put(store, "flowers", *[b"x" * 400] * 3)
    with pytest.raises(DataError, match="send it again"):
        put(store, "flowers", OTHERS, sha256="0" * 64)
    with pytest.raises(DataError, match="line 3 has 4 cells"):
        put(store, "flowers", b"a,b,c\n1,2,3\n1,2,3,4\n")
    with store.receive("flowers") as receiver:
        receiver.write(OTHERS)  # and the sender goes away
    assert files(tmp_path) == before
    assert store.get("flowers") == kept


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"a,b\n", "no rows of data"),
        (b"a,b\n\xff\xfe,1\n", "not a text in UTF-8"),
        (b"\x89HDF\r\n\x1a\n\0\0", "not of a known format"),
        (b'a,b\n"1,2\n' + b"x" * 140_000, "not a table in CSV"),
    ],
)
def test_files_that_are_no_data_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        put(DatasetStore(tmp_path, max_bytes=1 << 20), "mine", content)


def test_other_delimiters_and_a_byte_order_mark_are_understood(store: DatasetStore) -> None:
    upload = put(store, "mine", b'\xef\xbb\xbfa;"b, c"\r\n1,5;2\r\n\r\n3;4\r\n')
    assert (upload.columns, upload.rows) == (("a", "b, c"), 2)


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".x", "a b", "a.b", "ä", "x" * 65, "iris"])
def test_names_that_no_data_set_can_have(store: DatasetStore, name: str) -> None:
    with pytest.raises(InputError):
        store.receive(name)


def test_an_unknown_name_is_not_found(store: DatasetStore) -> None:
    put(store, "flowers", FLOWERS)
    with pytest.raises(NotFoundError, match="did you mean 'flowers'"):
        store.get("flower")
    with pytest.raises(NotFoundError):
        store.get("../index/flowers")


def test_versions_live_until_nothing_needs_them(store: DatasetStore) -> None:
    old = put(store, "flowers", FLOWERS)
    twin = put(store, "twin", FLOWERS)
    new = put(store, "flowers", OTHERS)

    def age(upload: Upload, seconds: float) -> None:
        os.utime(store.file(upload), (time.time() - seconds,) * 2)

    store.sweep("flowers", used=())
    assert store.file(old).exists(), "a submit may be about to pin it"
    age(old, SPARE_SECONDS + 1)
    age(new, SPARE_SECONDS + 1)
    store.sweep("flowers", used={old.sha256})
    assert store.file(old).exists()
    store.sweep("flowers", used=())
    assert not store.file(old).exists()
    assert store.file(new).exists()
    assert store.file(twin).exists(), "it is another name's"


def test_a_removed_name_takes_its_versions_along(store: DatasetStore, tmp_path: Path) -> None:
    put(store, "flowers", FLOWERS)
    put(store, "flowers", OTHERS)
    remove(store, "flowers")
    assert files(tmp_path) == []
    with pytest.raises(NotFoundError):
        remove(store, "flowers")


def test_a_removal_does_not_take_the_file_of_an_upload_under_way(
    store: DatasetStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is there before its name: a removal just then saw one that no name stands for."""
    put(store, "flowers", FLOWERS)
    write = DatasetStore._write_index
    removal = threading.Thread(target=remove, args=(store, "flowers"))

    def amid(self: DatasetStore, upload: Upload) -> None:
        removal.start()
        removal.join(0.3)  # it is over by then, or waits for its turn
        write(self, upload)

    monkeypatch.setattr(DatasetStore, "_write_index", amid)
    put(store, "flowers", OTHERS)
    removal.join(5.0)
    assert not removal.is_alive()
    left = store.find("flowers")
    assert left is None or store.file(left).exists()


def test_what_never_arrived_is_swept(store: DatasetStore, tmp_path: Path) -> None:
    put(store, "flowers", FLOWERS)
    left = tmp_path / "uploads" / "incoming" / "half"  # of a process that died
    left.write_bytes(FLOWERS[:9])
    store.sweep("flowers", used=())
    assert left.exists()
    os.utime(left, (time.time() - ABANDONED_SECONDS - 1,) * 2)
    store.sweep("flowers", used=())
    assert not left.exists()
