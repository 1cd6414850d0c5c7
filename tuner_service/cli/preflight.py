"""`tuner validate --run`: the first trial for one batch, in a process that has torch."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tuner_service import extras
from tuner_service.cli import show
from tuner_service.cli.service import settings_of
from tuner_service.errors import DefinitionError, Fault, InputError, TunerError
from tuner_service.layout import worker_environment


class RehearsalFailedError(TunerError):
    """The first trial would fail."""

    code = "preflight_failed"


def preflight(definition: Any, *, modules: Path | None, device: str) -> dict[str, Any]:
    """Return what one batch of the first trial showed.

    Raises:
        DefinitionError: The definition has faults.
        MissingExtraError: There is no torch here.
        InputError: The process died.
        SettingsError: A `TUNER_…` variable is wrong.
        RehearsalFailedError: The trial failed; its traceback has been printed.
    """
    extras.require("worker", "`tuner validate --run`")
    settings = settings_of()
    # -P: a `workers` folder where the user happens to stand must not be taken for ours.
    command = [sys.executable, "-P", "-m", "workers.preflight", "--device", device]
    command += ["--data-dir", str(settings.data_dir)]
    for directory in settings.dataset_dirs:
        command += ["--dataset-dir", str(directory)]
    if modules is not None:
        command += ["--modules", str(modules.absolute())]
    answer = _answer(command, json.dumps(definition))
    if "faults" in answer:
        raise DefinitionError([Fault(*fault) for fault in answer["faults"]])
    if "failure" in answer:
        failure: Mapping[str, Any] = answer["failure"]
        if failure["traceback"]:
            show.err.print(failure["traceback"], markup=False, highlight=False)
        raise RehearsalFailedError(f"the first trial would fail: {failure['message']}")
    findings: dict[str, Any] = answer["findings"]
    return findings


def _answer(command: list[str], definition: str) -> dict[str, Any]:
    reading, writing = os.pipe()
    try:
        process = subprocess.Popen(  # noqa: S603  # our own interpreter and module
            [*command, "--result", str(writing)],
            stdin=subprocess.PIPE,
            stdout=sys.stderr,
            pass_fds=(writing,),
            text=True,
            env=worker_environment(os.environ),
        )
    finally:
        os.close(writing)
    with os.fdopen(reading) as pipe:
        process.communicate(definition)
        text = pipe.read()
    if not text:
        raise InputError(
            f"the trial could not be tried: {command[0]} ended with code {process.returncode}"
        )
    answer: dict[str, Any] = json.loads(text)
    return answer


def lines(findings: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the findings as they are shown."""
    shown = [("first trial", _pairs(findings["parameters"]))]
    if "batch" in findings:
        batch, output = (" x ".join(map(str, findings[k])) for k in ("batch", "output"))
        shown += [
            ("one batch", f"{batch} -> {output}, training loss {findings['train_loss']:.4g}"),
            ("weights", f"{findings['parameter_count']:,} numbers"),
        ]
    shown.append(("measured", _pairs(findings["metrics"])))
    if findings.get("peak_memory_bytes"):
        size = findings["peak_memory_bytes"] / 2**20
        what = "of the GPU" if findings["device"] == "cuda" else "of the process"
        shown.append(("memory", f"about {size:,.0f} MiB {what} for one trial"))
    if "epoch_seconds" in findings:
        seconds = findings["epoch_seconds"]
        shown.append(("time", f"about {seconds:.2g} s for an epoch, not trained with others"))
    else:
        shown.append(("time", f"{findings['seconds']:.2g} s to the first report, with its start"))
    return shown


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in values.items()
    )
