"""`tuner model --export`: the model as one program, made by its own `export.py` in a process."""

import subprocess
import sys
from pathlib import Path

from tuner_service.errors import TunerError


class ExportFailedError(TunerError):
    """The model is there, but could not be exported."""

    code = "export_failed"


def export(directory: Path) -> Path:
    """Export the model in a directory, and return the program's file.

    Raises:
        ExportFailedError: It cannot be exported; the rest of the model is as it was.
    """
    script = directory / "export.py"
    if not script.exists():
        raise ExportFailedError(
            f"{directory} is complete but for model.pt2: only a training loop knows its network; "
            "export it there"
        )
    done = subprocess.run(  # noqa: S603  # what --export asks for
        [sys.executable, str(script)], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        said = done.stderr.strip().rpartition("\n")[2]
        raise ExportFailedError(f"{directory} is complete but for model.pt2: {said}")
    return directory / "model.pt2"
