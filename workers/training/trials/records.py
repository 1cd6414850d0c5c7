"""What is recorded of an epoch and of a trial: plain JSON, non-finite numbers as null."""

import functools
import platform
import resource
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from tuner_service import __version__
from tuner_service.json_values import finite
from workers.training.trials.runs import TrialRun

Record = dict[str, Any]


def epoch_record(run: TrialRun, validation: Mapping[str, float], rate: float) -> Record:
    """Return the record of the epoch that is just trained, before `end_epoch`.

    Args:
        validation: `loss` and the metrics on the validation part.
        rate: Learning rate of the epoch's last step.
    """
    progress = run.progress
    return {
        "step": progress.epoch + 1,
        # Of the weights as they were at each batch, as every training loop tells it.
        "train_loss": progress.loss_sum / max(progress.rows, 1),
        **{f"val_{name}": value for name, value in validation.items()},
        "learning_rate": rate,
        "seconds": progress.epoch_seconds,
    }


def objective_values(run: TrialRun, record: Mapping[str, Any]) -> list[float]:
    """Return the objectives of an epoch: keys of its record, or of the trial as a whole.

    Raises:
        KeyError: an objective is neither.
    """
    known = {
        **record,
        "parameter_count": run.parameter_count,
        "seconds": run.progress.seconds,
    }
    return [float(known[key]) for key, _ in run.spec.objective]


def final_record(run: TrialRun, device: torch.device, scores: Mapping[str, Any]) -> Record:
    """Return the record of a trial that ends.

    `seconds` is device time: of an epoch that K lanes share, each takes the K-th part.
    """
    progress = run.progress
    record: Record = {
        **scores,
        "parameter_count": run.parameter_count,
        "epochs_run": progress.epoch,
        "best_step": progress.best_step or None,
        "seconds": progress.seconds,
        "samples_per_second": progress.samples / progress.seconds if progress.seconds else None,
        "peak_memory_bytes": peak_memory_bytes(device),
        "device": device_name(device),
        "versions": versions(),
        "data": "streamed" if run.data.streamed else "on device",
        "data_hash": run.data.data_hash,
        "seed": run.spec.seed,
    }
    if run.data.warnings:
        record["warnings"] = list(run.data.warnings)
    _, mark, source = str(run.spec.network["type"]).partition("@")
    if mark:
        record["source_hash"], head, _ = source.partition("+")
        if head:  # the frozen front part of the network saw each row once
            record["data"] = "features"
    if run.resumed_from is not None:
        record["resumed_from"] = run.resumed_from
    return finite(record)  # type: ignore[no-any-return]


@functools.cache
def versions() -> dict[str, str]:
    """Return the versions a result depends on."""
    return {
        "tuner_service": __version__,
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def device_name(device: torch.device) -> str:
    """Return `cpu`, or the GPU's name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def peak_memory_bytes(device: torch.device) -> int:
    """Return the most memory held so far: the device's for a GPU, else this process's."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux tells kilobytes
