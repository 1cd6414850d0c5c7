"""What is to be run for a trial of a program: found, filled in, and given folders of its own."""

import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path

from tuner_service.definition.trial_spec import UserLoopSpec
from tuner_service.files import private_folder
from tuner_service.programs import directory_of, project_hash
from workers.program_folders import find_command
from workers.protocol.messages import TrialStart
from workers.protocol.user_loop import ProgramOrder
from workers.training.user_loops.program import PARAMETERS
from workers.training.user_loops.run import checkpoint_dir


def ordered(
    directories: Sequence[Path], start: TrialStart, spec: UserLoopSpec, *, device: str
) -> tuple[Path, ProgramOrder]:
    """Return the project's file and the order of one trial.

    Raises:
        LookupError: There is no such command here.
        OSError: A folder or a file is not to be had.
        ProjectError: The project or its placeholders are not what they must be.
    """
    found = find_command(directories, spec.module)
    if found is None:
        raise LookupError(
            f"this worker has no program {spec.module!r}; its project must lie in a folder under "
            "--modules DIR, with a tuner.yaml that names the command"
        )
    path, command = found
    folder = Path(f"{start.checkpoint}.program")
    shutil.rmtree(folder, ignore_errors=True)  # of another attempt
    private_folder(folder)
    working = working_dir(start)
    if start.resume is None:
        shutil.rmtree(working, ignore_errors=True)  # of a process that left no checkpoint
    given = {
        "seed": str(spec.seed),
        "device": device,
        "checkpoint_dir": str(checkpoint_dir(start)),
        "output_dir": str(working),
        "parameters_file": str(folder / PARAMETERS),
    }
    parameters = {**command.parameters, **spec.parameters}
    return path, ProgramOrder(
        arguments=command.filled(spec.parameters, given),
        directory=str(directory_of(path, command)),
        working_dir=str(working),
        in_project=command.in_project,
        metrics=command.metrics,
        environment=command.environment,
        parameters=parameters,
        folder=str(folder),
        mark=secrets.token_hex(16),
        source_hash=project_hash(path, command),
    )


def working_dir(start: TrialStart) -> Path:
    """Return where the program runs, which is where it writes; it stays with the study's logs."""
    return Path(f"{start.checkpoint}.files" if start.log is None else start.log).with_suffix(
        ".files"
    )
