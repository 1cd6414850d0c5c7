r"""A project: a folder with programs that train, and a `tuner.yaml` that names them.

    commands:
      train:
        run: python train.py --lr {lr} --batch-size {batch_size}
        metrics: {val_acc: 'Accuracy: (?P<value>[\d.]+)'}   # else `val_acc=0.9` and the like
        parameters: {batch_size: 32}                         # defaults of what a study leaves out
        environment: {OMP_NUM_THREADS: "1"}
        directory: ../elsewhere                              # by default the project's folder
        in_project: true                                     # else each trial runs in a copy

Each command is a training loop to a study, by the name `PROJECT.COMMAND`. It is started without a
shell; `{name}` is filled in, `{{` and `}}` stand for braces.
"""

import hashlib
import json
import re
import shlex
import string
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from tuner_service.definition.yaml12 import load_yaml
from tuner_service.errors import DefinitionError, InputError

PROJECT_FILE: Final = "tuner.yaml"
GIVEN: Final = (
    "seed", "device", "checkpoint_dir", "output_dir", "parameters_file", "overrides",
)  # fmt: skip
"""Placeholders that the service fills in; the last two hold all parameters of the trial."""
ALL_PARAMETERS: Final = frozenset({"parameters_file", "overrides"})
MAX_BYTES: Final = 1_000_000  # of a project's file, and of each file that its hash covers

Scalar = str | int | float | bool | None


class ProjectError(InputError):
    """A project's file is not what it must be; the message says what to change."""

    code = "invalid_project"


class ProgramCommand(BaseModel):
    """One command of a project.

    Attributes:
        run: The arguments, with placeholders.
        metrics: Metric -> pattern of a line of output, with a group `value` and perhaps `step`.
        parameters: Defaults of placeholders.
        directory: Where its files lie; relative to the project's folder.
        in_project: It is started there. Else each trial has a working directory of its own, with
            the project's folders as links and its files as copies.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: tuple[str, ...] = Field(min_length=1)
    description: str = ""
    metrics: dict[str, str] = {}
    parameters: dict[str, Scalar] = {}
    environment: dict[str, str] = {}
    directory: str = "."
    in_project: bool = False

    @field_validator("run", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        """Split a text as a shell would, which does not run it."""
        return shlex.split(value) if isinstance(value, str) else value

    @field_validator("run")
    @classmethod
    def _known_placeholders(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        list(_placeholders(value))
        return value

    @field_validator("metrics")
    @classmethod
    def _compiled(cls, value: dict[str, str]) -> dict[str, str]:
        for name, pattern in value.items():
            check_pattern(name, pattern)
        return value

    @property
    def placeholders(self) -> tuple[str, ...]:
        """The parameters that the command line names, each once."""
        return tuple(dict.fromkeys(n for n in _placeholders(self.run) if n not in GIVEN))

    @property
    def takes_any(self) -> bool:
        """Whether it is given all parameters, whatever they are called."""
        return bool(ALL_PARAMETERS & set(_placeholders(self.run)))

    def required(self) -> tuple[str, ...]:
        """Return the placeholders without a default."""
        return tuple(name for name in self.placeholders if name not in self.parameters)

    def filled(self, parameters: Mapping[str, Any], given: Mapping[str, str]) -> list[str]:
        """Return the arguments of one trial.

        Args:
            parameters: The trial's; those that are left out have their defaults.
            given: What the service fills in.

        Raises:
            ProjectError: A placeholder has no value.
        """
        values = {**self.parameters, **parameters}
        missing = [name for name in self.placeholders if name not in values]
        if missing:
            raise ProjectError(
                f"the command names {{{missing[0]}}}, which the study does not give; make it a "
                "parameter, fix it in network, or give a default under `parameters` of its command"
            )
        texts = {**{name: text_of(value) for name, value in values.items()}, **given}
        arguments: list[str] = []
        for part in self.run:
            if part == "{overrides}":
                arguments += [f"{name}={text_of(value)}" for name, value in values.items()]
            else:
                arguments.append(part.format_map(texts))
        return arguments


class ProjectFile(BaseModel):
    """What a `tuner.yaml` says."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    commands: dict[str, ProgramCommand] = Field(min_length=1)


def read_project(path: Path) -> ProjectFile:
    """Read a project's file.

    Raises:
        OSError: It cannot be read.
        ProjectError: It is not what it must be.
    """
    raw = path.read_bytes()
    if len(raw) > MAX_BYTES:
        raise ProjectError(
            f"{PROJECT_FILE} must have at most {MAX_BYTES} bytes, but has {len(raw)}"
        )
    try:
        project = ProjectFile.model_validate(load_yaml(raw.decode()))
    except UnicodeDecodeError as error:
        raise ProjectError(f"{PROJECT_FILE} is not a text in UTF-8") from error
    except DefinitionError as error:
        raise ProjectError(f"{PROJECT_FILE}: {error}") from error
    except ValidationError as error:
        raise ProjectError("; ".join(_sentence(one) for one in error.errors())) from error
    for name in project.commands:
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]{0,63}", name):
            raise ProjectError(
                f"commands: a name has letters, digits, `_` and `-` only, but got {name!r}"
            )
    return project


def check_pattern(metric: str, pattern: str) -> None:
    """Refuse a pattern that finds no value.

    Raises:
        ValueError: It is no regular expression, or has no group.
    """
    try:
        groups = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"the pattern of {metric} is none: {error}, in {pattern!r}") from error
    if groups.groups == 0:
        raise ValueError(
            f"the pattern of {metric} needs a group for the number, as (?P<value>[0-9.]+), "
            f"but got {pattern!r}"
        )
    if groups.groups > 1 and "value" not in groups.groupindex:
        raise ValueError(
            f"the pattern of {metric} has {groups.groups} groups; call one of them value: "
            f"(?P<value>…), in {pattern!r}"
        )


def project_hash(path: Path, command: ProgramCommand) -> str:
    """Return the SHA-256 of a command: its project's file, and the files its arguments name."""
    digest = hashlib.sha256(path.read_bytes())
    for file in hashed_files(path, command):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def hashed_files(path: Path, command: ProgramCommand) -> list[Path]:
    """Return the files of the project that the arguments name, such as its script."""
    folder = directory_of(path, command)
    found = [folder / part for part in command.run if "{" not in part and len(part) < 256]
    return [one for one in found if one.is_file() and one.stat().st_size <= MAX_BYTES]


def directory_of(path: Path, command: ProgramCommand) -> Path:
    """Return where a command of the project at `path` is started."""
    return (path.parent / Path(command.directory).expanduser()).resolve()


def text_of(value: Any) -> str:
    """Return a parameter as a command line has it: `true`, not `True`; null is `null`."""
    return value if isinstance(value, str) else json.dumps(value)


def _placeholders(arguments: Sequence[str]) -> Iterator[str]:
    for part in arguments:
        try:
            fields = list(string.Formatter().parse(part))
        except ValueError as error:
            raise ValueError(f"{error}; write {{{{ and }}}} for braces, in {part!r}") from error
        for _, name, form, conversion in fields:
            if name is None:
                continue
            if not name.isidentifier() or form or conversion:
                raise ValueError(
                    "a placeholder is a parameter's name in braces, as {lr}; write {{ and }} for "
                    f"braces, in {part!r}"
                )
            if name == "overrides" and part != "{overrides}":
                raise ValueError(f"{{overrides}} is an argument of its own, but got {part!r}")
            yield name


def _sentence(error: Any) -> str:
    where = ".".join(str(part) for part in error["loc"])
    said = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        of_command = len(error["loc"]) > 1
        known = ", ".join((ProgramCommand if of_command else ProjectFile).model_fields)
        said = f"unknown; {'a command' if of_command else PROJECT_FILE} has {known}"
    elif error["type"] == "missing":
        said = "missing"
    return f"{where or PROJECT_FILE}: {said}"
