"""The programs that a worker brings: projects in the operator's directories, described as loops."""

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from tuner_service.definition import ModuleDescription
from tuner_service.definition.options import Option
from tuner_service.programs import (
    PROJECT_FILE,
    ProgramCommand,
    ProjectError,
    hashed_files,
    project_hash,
    read_project,
)


def project_files(directories: Sequence[Path]) -> list[Path]:
    """Return the projects' files in these directories, each in a folder with its name."""
    found = [one for folder in directories for one in sorted(folder.glob(f"*/{PROJECT_FILE}"))]
    return [one for one in found if not one.parent.name.startswith((".", "_"))]


def _commands(project: Path) -> Mapping[str, ProgramCommand]:
    """Return a project's commands; its file is parsed again only when it has changed.

    Raises:
        OSError: The file cannot be read.
        ProjectError: It is not what it must be.
    """
    stat = project.stat()
    return _parsed(project, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=4096)
def _parsed(project: Path, _size: int, _changed: int) -> Mapping[str, ProgramCommand]:
    return read_project(project).commands


def files_of(project: Path) -> Iterator[Path]:
    """Yield the files whose change is a change of the project's commands."""
    yield project
    try:
        for command in _commands(project).values():
            yield from hashed_files(project, command)
    except (ProjectError, OSError):
        return  # what is wrong is said where it is described


def described(project: Path) -> list[ModuleDescription]:
    """Describe the commands of a project.

    Raises:
        OSError: A file cannot be read.
        ProjectError: It cannot be offered; the message says why.
    """
    name = project.parent.name
    commands = _commands(project)
    return [_description(f"{name}.{key}", project, one) for key, one in commands.items()]


def find_command(directories: Sequence[Path], module: str) -> tuple[Path, ProgramCommand] | None:
    """Return the file and the command that a study calls `PROJECT.COMMAND`, if it is here.

    Raises:
        OSError: The project's file cannot be read.
        ProjectError: It is not what it must be.
    """
    name, _, key = module.partition(".")
    for project in project_files(directories):
        if project.parent.name == name:
            command = _commands(project).get(key)
            return None if command is None else (project, command)
    return None


def _description(name: str, project: Path, command: ProgramCommand) -> ModuleDescription:
    required = command.required()
    names = dict.fromkeys((*command.placeholders, *command.parameters))
    return ModuleDescription(
        name=name,
        description=command.description or " ".join(command.run),
        parameters=tuple(
            Option(
                name=one,
                description=f"Parameter of {name}.",
                type="any",
                default=command.parameters.get(one),
                required=one in required,
            )
            for one in names
        ),
        defines=("train",),
        source_hash=project_hash(project, command),
        open=command.takes_any,
    )
