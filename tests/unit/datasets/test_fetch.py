"""Fetching public data from a server on the loopback; nothing is kept that is not as published."""

import hashlib
import io
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from tests.unit.training.builders import dataset
from tests.unit.training.data.test_datasets import idx, load
from tuner_service.cli import run
from tuner_service.datasets import fetch
from tuner_service.datasets.fetch import Public
from tuner_service.errors import DataError, NotFoundError

IMAGES = np.arange(40 * 28 * 28, dtype=np.uint64).astype(np.uint8).reshape(40, 28, 28)
LABELS = (np.arange(40) % 10).astype(np.uint8)
BATCH = np.concatenate([LABELS[:, None], np.full((40, 3072), 7, np.uint8)], axis=1).tobytes()
BINS = (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin")


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server with a small MNIST and CIFAR-10 and their checksums; yields its address."""
    folder = tmp_path / "published"
    folder.mkdir()
    for part in ("train", "t10k"):
        (folder / f"{part}-images-idx3-ubyte").write_bytes(idx(IMAGES))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(idx(LABELS))
    with tarfile.open(folder / "cifar.tar.gz", "w:gz") as tar:
        for name in ("../../evil.bin", *(f"cifar-10-batches-bin/{one}" for one in BINS)):
            entry = tarfile.TarInfo(name)
            entry.size = len(BATCH)
            tar.addfile(entry, io.BytesIO(BATCH))
    sums = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}
    archive = {"cifar.tar.gz": sums.pop("cifar.tar.gz")}
    monkeypatch.setitem(fetch.PUBLIC, "mnist", Public("mnist", "http://x.test", sums))
    monkeypatch.setitem(
        fetch.PUBLIC, "cifar10", Public("cifar-10-batches-bin", "http://x.test", archive, BINS)
    )
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(("name", "shape"), [("mnist", (1, 28, 28)), ("cifar10", (3, 32, 32))])
def test_what_is_fetched_is_trained_on(
    tmp_path: Path, published: str, name: str, shape: tuple[int, ...]
) -> None:
    arguments = ["data", "fetch", name, "--data-dir", str(tmp_path), "--from", published]
    assert run(arguments) == 0
    data = load(dataset(name), tmp_path / "datasets")
    assert data.shape == shape
    assert data.test is not None
    assert data.test.targets.tolist() == [i % 10 for i in range(40)]
    present = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    assert not [
        path for path in present if path.suffix in (".part", ".gz") and "datasets" in path.parts
    ]
    assert not list(tmp_path.rglob("evil.bin"))
    assert run([*arguments[:-1], "http://127.0.0.1:9/"]) == 0, "it is there already"


def test_a_file_that_is_not_as_published_is_not_kept(tmp_path: Path, published: str) -> None:
    (tmp_path / "published" / "t10k-labels-idx1-ubyte").write_bytes(b"changed")
    with pytest.raises(DataError, match="nothing was kept"):
        fetch.fetch("mnist", tmp_path / "datasets", url=published)
    kept = sorted(path.name for path in (tmp_path / "datasets" / "mnist").iterdir())
    assert "t10k-labels-idx1-ubyte" not in kept
    assert not [name for name in kept if name.endswith(".part")]


def test_what_cannot_be_fetched_is_said(tmp_path: Path, published: str) -> None:
    with pytest.raises(DataError, match="404"):
        fetch.fetch("mnist", tmp_path, url=f"{published}nowhere")
    with pytest.raises(NotFoundError, match="did you mean 'mnist'"):
        fetch.fetch("mnsit", tmp_path)


def test_damaged_cifar_files_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    for name in BINS:
        (folder / name).write_bytes(BATCH)
    (folder / "test_batch.bin").write_bytes(BATCH[:-1])
    with pytest.raises(DataError, match=r"test_batch\.bin has .* no number of rows"):
        load(dataset("cifar10"), tmp_path)
    (folder / "test_batch.bin").write_bytes(b"\x0a" + BATCH[1:])
    with pytest.raises(DataError, match="the label 10"):
        load(dataset("cifar10"), tmp_path)
    (folder / "test_batch.bin").unlink()
    with pytest.raises(DataError, match="tuner data fetch cifar10"):
        load(dataset("cifar10"), tmp_path)
