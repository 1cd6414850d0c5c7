"""Checkpoint files: what is written is read, and a reader never sees half of one."""

import os
from pathlib import Path

import pytest
import torch

from workers.training.trials import checkpoints
from workers.training.trials.checkpoints import CheckpointError, read_tensors, write_tensors

TENSORS = {
    "a": torch.randn(3, 2, generator=torch.Generator().manual_seed(0)),
    "half": torch.zeros(4, dtype=torch.bfloat16),
    "steps": torch.tensor(7),
    "empty": torch.zeros(0, 3),
    "strided": torch.arange(12.0).reshape(3, 4).T,
}
NOTE = {"progress": {"epoch": 3, "loss": 0.1 + 0.2, "best": None, "text": "é"}}


def test_round_trip_is_exact(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "one.safetensors"
    write_tensors(file, TENSORS, NOTE)
    tensors, note = read_tensors(file)
    assert note == NOTE
    assert set(tensors) == set(TENSORS)
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor)


def test_a_second_write_replaces_the_first_and_leaves_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "one.safetensors"
    write_tensors(file, TENSORS, NOTE)
    write_tensors(file, {"b": torch.ones(1)}, {"n": 2})
    assert read_tensors(file)[1] == {"n": 2}
    assert list(tmp_path.iterdir()) == [file]


def test_a_write_that_dies_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "one.safetensors"
    write_tensors(file, TENSORS, NOTE)

    def die(descriptor: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(checkpoints.os, "fsync", die)
    with pytest.raises(OSError, match="no space"):
        write_tensors(file, {"b": torch.ones(1)}, {"n": 2})
    assert read_tensors(file)[1] == NOTE


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_file_cut_short_is_refused(tmp_path: Path, share: float) -> None:
    file = tmp_path / "one.safetensors"
    write_tensors(file, TENSORS, NOTE)
    os.truncate(file, int(file.stat().st_size * share))
    with pytest.raises(CheckpointError, match=r"one\.safetensors"):
        read_tensors(file)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        read_tensors(tmp_path / "none.safetensors")


def test_a_safetensors_file_of_someone_else_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "foreign.safetensors"
    from safetensors.torch import save_file  # noqa: PLC0415

    save_file({"a": torch.ones(1)}, file)
    with pytest.raises(CheckpointError):
        read_tensors(file)
