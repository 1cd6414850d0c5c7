"""`tuner model --export`: the model as one program, made by its own `export.py` in a process."""

import os
import subprocess
import sys
from pathlib import Path

from tuner_service.errors import TunerError
from tuner_service.processes import how_it_ended


class ExportFailedError(TunerError):
    """The model is there, but could not be exported."""

    code = "export_failed"


def export(directory: Path) -> Path:
    """Export the model in a directory, and return the program's file.

    This runs code that came from the service: without this process's `TUNER_…` variables, which
    may hold an API key.

    Raises:
        ExportFailedError: It cannot be exported; the rest of the model is as it was.
    """
    program, script = directory / "model.pt2", directory / "export.py"
    program.unlink(missing_ok=True)  # of another model's weights
    if not script.exists():
        raise ExportFailedError(
            f"{directory} is complete but for model.pt2: only a training loop knows its network; "
            "export it there"
        )
    done = subprocess.run(  # noqa: S603  # what --export asks for
        [sys.executable, str(script)],
        env={name: value for name, value in os.environ.items() if not name.startswith("TUNER_")},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        ended = f"export.py {how_it_ended(done.returncode)}"
        said = done.stderr.strip().rpartition("\n")[2] or ended
        raise ExportFailedError(f"{directory} is complete but for model.pt2: {said}")
    return program
