"""Data that memory does not hold: the same batches from files, in flat memory."""

import dataclasses
import errno
import os
import shutil
import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from tests.unit.datasets.files import flowers, zipped
from tests.unit.training import lanes
from tests.unit.training.builders import dataset, mlp, of, only, run_all, spec, start
from tuner_service.definition.trial_spec import DatasetSpec
from tuner_service.errors import DataError
from workers.training.data import DatasetCache, PreparedData, Room, scaling
from workers.training.engine.engine import Engine, EngineSettings
from workers.training.steps.factory import PlainStepFactory, StepFactory
from workers.training.steps.native import library
from workers.training.steps.native import step as native_step
from workers.training.steps.select import STREAMED, BackendSelector

CPU = torch.device("cpu")
GENERATOR = np.random.default_rng(0)
KINDS = np.array(["up", "down"] * 40)


def room(folder: Path, *, streamed: bool) -> Room:
    return Room(CPU, folder / "streamed", limit_bytes=0 if streamed else 1 << 30)


def prepared(folder: Path, described: dict[str, Any], *, streamed: bool) -> PreparedData:
    cache = DatasetCache(CPU, directories=(folder,), room=room(folder, streamed=streamed))
    found = DatasetSpec.model_validate(described)
    return cache.get(found, targets="classes", dtype=torch.float32)


def table(folder: Path) -> dict[str, Any]:
    """Text, gaps and numbers."""
    rows = [f"{i / 7:.3f},{'' if i % 9 == 0 else 'rgb'[i % 3]},{KINDS[i]}\n" for i in range(80)]
    (folder / "t.csv").write_text("size,colour,kind\n" + "".join(rows))
    return dataset("csv", path="t.csv", target="kind", missing="mean")


def arrays(folder: Path) -> dict[str, Any]:
    inputs = np.asfortranarray(GENERATOR.normal(3.0, 2.0, (80, 5, 3)).astype(np.float32))
    np.savez_compressed(folder / "a.npz", inputs=inputs, targets=KINDS)
    return dataset("npz", path="a.npz")


def images(folder: Path) -> dict[str, Any]:
    zipped(folder / "images.zip", flowers(40))
    return dataset("images", path="images.zip", image_size=5)


def folds(folder: Path) -> dict[str, Any]:
    del folder
    return dataset("digits", {"folds": 3, "fold": 1})


@pytest.mark.parametrize("made", [table, arrays, images, folds])
def test_streamed_data_is_the_same_to_the_bit(tmp_path: Path, made: Any) -> None:
    described = made(tmp_path)
    here, streamed = (prepared(tmp_path, described, streamed=s) for s in (False, True))
    assert (here.streamed, streamed.streamed) == (False, True)
    for part in ("train", "validation", "test"):
        one, other = getattr(here, part), getattr(streamed, part)
        assert torch.equal(one.inputs, other.inputs), part
        assert torch.equal(one.targets, other.targets), part
    for name in ("shape", "outputs", "classes", "preprocessing", "data_hash"):
        assert getattr(here, name) == getattr(streamed, name), name
    assert not list((tmp_path / "streamed").iterdir()), "a file without a name is left to nobody"


def native_steps() -> StepFactory:
    return BackendSelector(CPU, cache=library.cache_directory(), probe=False)


def traced_steps() -> StepFactory:
    return BackendSelector(CPU, compile=False, probe=False)


@pytest.mark.parametrize(
    ("steps", "backend"),
    [(PlainStepFactory, "plain"), (native_steps, "native"), (traced_steps, "traced")],
)
def test_a_trial_on_streamed_data_is_the_same_trial(
    tmp_path: Path, steps: Any, backend: str
) -> None:
    """Batches, order, standardisation, validation and test part."""
    specs = [
        spec(dataset=arrays(tmp_path), network=mlp(dropout=0.2), seed=seed, fuse=True)
        for seed in (1, 2)
    ]
    ends = []
    for streamed in (False, True):
        place = room(tmp_path, streamed=streamed)
        engine = Engine(
            "cpu", settings=EngineSettings(data_dirs=(tmp_path,)), room=place, steps=steps()
        )
        events = run_all(engine, [start(n, one, folder=tmp_path) for n, one in enumerate(specs)])
        end = only(events, 1, "finished")
        assert end.backend == backend
        assert end.record["data"] == ("streamed" if streamed else "on device")
        curve = [(e.record["train_loss"], e.record["val_loss"]) for e in of(events, 1, "reported")]
        ends.append((curve, end.values, end.record["test_loss"]))
    assert ends[0] == ends[1]


@pytest.mark.parametrize("streamed", [False, True])
def test_streamed_data_takes_no_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, streamed: bool
) -> None:
    monkeypatch.setattr(scaling, "CHUNK_BYTES", 1 << 18)
    inputs = np.tile(np.arange(64, dtype=np.float32), (80, 400)).reshape(16_000, -1)  # 8 MB
    np.savez(tmp_path / "a.npz", inputs=inputs, targets=np.arange(16_000) % 2)
    size = inputs.nbytes
    del inputs
    tracemalloc.start()  # NumPy's memory; what is mapped is none
    try:
        prepared(tmp_path, dataset("npz", path="a.npz"), streamed=streamed)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (peak < size / 2) is streamed


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    described = arrays(tmp_path)
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(DataError, match=r"4,800 bytes.*No space left.*free some"):
        prepared(tmp_path, described, streamed=True)


@pytest.mark.parametrize(("free", "enough"), [(6000, True), (5999, False)])
def test_a_file_leaves_a_fifth_of_the_free_disk_to_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, enough: bool
) -> None:
    """The database lies there, too; and what claims to be large must not fill the disk."""
    allocated = []
    really = os.posix_fallocate

    def allocate(file: int, start: int, size: int) -> None:
        allocated.append(size)
        really(file, start, size)

    described = arrays(tmp_path)
    monkeypatch.setattr(os, "posix_fallocate", allocate)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    if enough:
        assert prepared(tmp_path, described, streamed=True).streamed
        return
    with pytest.raises(DataError, match=r"4,800 bytes, more than 80% of the 5,999 that are free"):
        prepared(tmp_path, described, streamed=True)
    assert not allocated


def test_what_torch_keeps_of_a_gpu_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = SimpleNamespace(free=1 << 20, kept=1 << 30)

    def empty_cache() -> None:
        device.free, device.kept = device.free + device.kept, 0

    monkeypatch.setattr(torch.cuda, "empty_cache", empty_cache)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (device.free, 1 << 31))
    assert Room(torch.device("cuda"), tmp_path).fits_device(1 << 28)


@pytest.mark.parametrize(("free", "streamed"), [(1 << 20, False), (1 << 12, True)])
def test_free_memory_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, streamed: bool
) -> None:
    class Memory:
        available = free

    monkeypatch.setattr(psutil, "virtual_memory", Memory)
    place = Room(CPU, tmp_path / "streamed")
    cache = DatasetCache(CPU, directories=(tmp_path,), room=place)
    described = DatasetSpec.model_validate(arrays(tmp_path))
    data = cache.get(described, targets="classes", dtype=torch.float32)
    assert data.streamed is streamed


def test_what_the_process_may_hold_decides_too(tmp_path: Path) -> None:
    held = psutil.Process().memory_info()
    own = held.rss - held.shared
    assert not Room(CPU, tmp_path, process_bytes=own).fits_memory(1 << 20)
    assert Room(CPU, tmp_path, process_bytes=own + (1 << 28)).fits_memory(1 << 20)


def test_streamed_images_of_several_channels_are_not_copied_for_native_code() -> None:
    network = {"type": "cnn", "channels": 4, "hidden_units": 8}
    for channels, reason in ((1, None), (3, "several channels")):
        group = lanes.group(network, shape=(channels, 6, 6), precision="float32")
        group = dataclasses.replace(group, streamed=True)
        found = native_step.unsuitable(group)
        assert (found is None) if reason is None else (reason in str(found))


def test_a_gpu_trains_streamed_data_plain() -> None:
    """A fused program picks its rows itself, and all of them would have to be there."""
    cuda = torch.device("cuda")
    group = dataclasses.replace(lanes.group(mlp()), streamed=True, device=cuda)
    selector = BackendSelector(CPU, compile=False)
    assert selector.lanes_for(group, 8) == 1
    step = selector.make_step(group, 1)
    assert (step.backend, step.backend_reason) == ("plain", STREAMED)


def test_lanes_are_as_many_as_there_is_room_for_their_orders(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    group = lanes.group(mlp())
    wide = BackendSelector(CPU, compile=False, probe=False).lanes_for(group, 64)
    monkeypatch.setattr("workers.training.steps.lane_budget.CPU_ORDER_BYTES", 3 * 32 * group.rows)
    narrow = BackendSelector(CPU, compile=False, probe=False).lanes_for(group, 64)
    assert (wide, narrow) == (32, 2)
