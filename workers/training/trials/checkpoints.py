"""A run's checkpoints: one safetensors file for each step, its progress as JSON in the header.

One file rather than two, so that tensors and progress can never be of different steps: the rename
is the commit. A file's name holds its step, and the last few stay, since the newest may be ahead of
the database: a worker that dies between writing a checkpoint and saying so takes the reports since
the one before with it.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from tuner_service.errors import TunerError
from tuner_service.files import private_folder, sync_folder

SUFFIX = ".safetensors"
KEPT = 3  # checkpoints of a trial; a worker without a database for a while writes two unheard
_PROGRESS = "tuner"


class CheckpointError(TunerError):
    """A checkpoint is missing or cannot be read."""

    code = "checkpoint"


def checkpoint_path(prefix: str, step: int) -> Path:
    """Return the file of a trial's checkpoint after `step` epochs."""
    return Path(f"{prefix}.{step}{SUFFIX}")


def newest_checkpoint(prefix: str, *, up_to: int) -> Path:
    """Return the latest checkpoint of at most `up_to` epochs.

    Raises:
        CheckpointError: There is none.
    """
    folder, name = Path(prefix).parent, Path(prefix).name
    parts = [file.name.split(".") for file in folder.glob(f"{name}.*{SUFFIX}")]
    steps = [int(part[-2]) for part in parts if part[-2].isdecimal()]
    known = [step for step in steps if step <= up_to]
    if not known:
        raise CheckpointError(f"{name} has no checkpoint up to step {up_to}, but {sorted(steps)}")
    return checkpoint_path(prefix, max(known))


def write_tensors(path: Path, tensors: Mapping[str, Tensor], note: Mapping[str, Any]) -> None:
    """Write tensors with a JSON note in the header; a reader sees the old file or the new one."""
    data = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    payload = save(data, {_PROGRESS: json.dumps(dict(note))})
    private_folder(path.parent)
    draft = path.with_name(path.name + ".tmp")
    with draft.open("wb") as file:
        file.write(payload)
        file.flush()
        os.fsync(file.fileno())
    # The rename commits; without the folder's own sync a power cut may undo it.
    draft.replace(path)
    sync_folder(path.parent)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors, on the CPU, and the note of a file written by `write_tensors`.

    Raises:
        CheckpointError: the file is missing, cut short, or not one of ours.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            note = json.loads((file.metadata() or {})[_PROGRESS])
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(f"cannot read {path.name}: {error}") from error
    return tensors, note
