"""What a worker brings: the modules in the operator's directory and in packages, described.

A module is a Python file with `def build(…) -> torch.nn.Module`, a network, or with
`def train(trial, …)`, a training loop. It is read as text here, never
imported: the supervisor has no torch, and must not run what a user wrote.

An installed package brings one under an entry point of `GROUPS`, whose value is the module's name:

    [project.entry-points."tuner_service.networks"]
    tower = "my_package.tower"
"""

import ast
import hashlib
import importlib.util
import keyword
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.machinery import PathFinder
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Final

from tuner_service.definition import ModuleDescription
from tuner_service.definition.binding import bind
from tuner_service.definition.catalogue import DATASETS, METRICS, NETWORKS
from tuner_service.definition.options import Option
from tuner_service.definition.user_modules import NOT_OFFERED, RefusedModule, described_parameters
from tuner_service.errors import DefinitionError, Fault, SettingsError
from tuner_service.programs import ProjectError
from workers import program_folders

logger = logging.getLogger(__name__)

GROUPS: Final = ("tuner_service.networks", "tuner_service.datasets")
"""Entry points of modules that bring networks or training loops, and data."""

GIVEN: Final = frozenset({"inputs", "outputs"})
"""Parameters of `build` that the data decides: the shape of one row, and how many outputs."""

_PARTS: Final = ("build", "loss", "load_data", "train")
_SEARCHED_OF_DATA: Final = frozenset(
    option.name for entry in DATASETS.values() for option in entry.options if option.searchable
)
_OF_DATA: Final = (
    "name",
    "split",
    "format",
    "sha256",
    "task",
    "positive",
    "standardize",
    "target_scale",
)
MAX_SOURCE: Final = 1_000_000
_TYPES: Final = {"int": "int", "float": "float", "bool": "boolean", "str": "string"}
_NO_DEFAULT: Final = object()
_NOT_PLAIN: Final = object()


class ModuleFaultError(DefinitionError):
    """A module cannot be offered; the message says what to change in its file."""

    code = "invalid_module"

    def __init__(self, name: str, detail: str) -> None:
        self.detail = detail
        super().__init__([Fault(f"/{name}", detail, self.code)])


@dataclass(frozen=True, slots=True)
class FolderContents:
    """What the files of a folder are.

    Attributes:
        sound: The modules, by name.
        refused: Why other files are not offered.
    """

    sound: Mapping[str, ModuleDescription]
    refused: tuple[RefusedModule, ...]


@dataclass(slots=True)
class ModuleFolder:
    """Modules of a directory and of packages, read again when one of their files changes.

    Attributes:
        brought: What there is beside them: samplers and pruners of installed packages.
        programs: Directories of projects, whose commands are offered as training loops.
    """

    directory: Path | None
    brought: FolderContents = FolderContents({}, ())
    programs: tuple[Path, ...] = ()
    _seen: tuple[tuple[str, int, int], ...] | None = None

    def changed(self) -> FolderContents | None:
        """Return what there is, or None if no file has changed."""
        present = tuple(self._stamps())
        if present == self._seen:
            return None
        self._seen = present
        return self.read()

    def forget(self) -> None:
        """Take every file for changed at the next look."""
        self._seen = None

    def read(self) -> FolderContents:
        """Return what there is; what is wrong with a file is logged too."""
        sound: dict[str, ModuleDescription] = {}
        refused: list[RefusedModule] = []
        for name, path in self._sources():
            file = path.name if path.stem == name else name
            try:
                if name in sound or name in self.brought.sound:
                    raise ModuleFaultError(name, f"the name {name} is taken by another module")
                sound[name] = describe(path, name)
            except (ModuleFaultError, OSError, UnicodeDecodeError) as error:
                reason = error.detail if isinstance(error, ModuleFaultError) else str(error)
                refused.append(RefusedModule(file=file, reason=reason))
                logger.warning("module %s %s%s", file, NOT_OFFERED, reason)
        self._read_programs(sound, refused)
        return FolderContents({**sound, **self.brought.sound}, (*refused, *self.brought.refused))

    def _read_programs(
        self, sound: dict[str, ModuleDescription], refused: list[RefusedModule]
    ) -> None:
        for project in program_folders.project_files(self.programs):
            try:
                found = program_folders.described(project)
            except (ProjectError, OSError) as error:
                file = f"{project.parent.name}/{project.name}"
                refused.append(RefusedModule(file=file, reason=str(error)))
                logger.warning("module %s %s%s", file, NOT_OFFERED, error)
            else:
                sound |= {one.name: one for one in found if one.name not in sound}

    def _sources(self) -> Iterator[tuple[str, Path]]:
        if self.directory is not None:
            yield from ((path.stem, path) for path in sources(self.directory))
        yield from installed_sources().items()

    def _stamps(self) -> Iterator[tuple[str, int, int]]:
        programs = program_folders.project_files(self.programs)
        files = [file for project in programs for file in program_folders.files_of(project)]
        for path in (*(path for _, path in self._sources()), *files):
            try:
                stat = path.stat()
            except OSError:  # deleted a moment ago
                continue
            yield str(path), stat.st_size, stat.st_mtime_ns


def open_folder(
    directory: Path | None,
    brought: FolderContents = FolderContents({}, ()),
    programs: tuple[Path, ...] = (),
) -> ModuleFolder:
    """Return the modules of a directory, if one is named, and of the installed packages.

    Args:
        programs: Directories of projects beside it; the directory itself may hold some, too.

    Raises:
        SettingsError: There is no such directory.
    """
    if directory is not None and not directory.is_dir():
        raise SettingsError(f"TUNER_MODULES_DIR must name a directory, but got {str(directory)!r}")
    folders = () if directory is None else (directory,)
    return ModuleFolder(directory, brought, (*folders, *programs))


def sources(directory: Path) -> list[Path]:
    """Return the module files; those that begin with `_` are for the others to import."""
    return sorted(path for path in directory.glob("*.py") if not path.name.startswith("_"))


@cache
def installed_sources() -> Mapping[str, Path]:
    """Return the files of modules that installed packages bring, by their entry points' names."""
    points = [point for group in GROUPS for point in entry_points(group=group)]
    return {point.name: _source_of(point.value) for point in points}


def _source_of(module: str) -> Path:
    """Return where a module's source lies, without importing it or its package."""
    first, *rest = module.split(".")
    spec = importlib.util.find_spec(first)
    for at in range(len(rest)):
        inside = None if spec is None else spec.submodule_search_locations
        spec = PathFinder.find_spec(".".join((first, *rest[: at + 1])), inside)
    return Path(spec.origin if spec is not None and spec.origin else f"{module} (not installed)")


def describe(path: Path, name: str | None = None) -> ModuleDescription:
    """Describe one module file.

    Args:
        name: What studies call it; None: as the file.

    Raises:
        ModuleFaultError: It cannot be offered; the message says why.
    """
    name = name or path.stem
    _check_name(name)
    raw = path.read_bytes()
    if len(raw) > MAX_SOURCE:
        raise ModuleFaultError(name, f"the file must be at most {MAX_SOURCE} bytes")
    try:
        tree = ast.parse(raw, filename=path.name)
    except (SyntaxError, ValueError) as error:
        raise ModuleFaultError(name, f"the file is not Python: {error}") from error
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    main = _main(name, functions)
    load = functions.get("load_data")
    parameters = tuple(_options(name, main)) if main is not load else ()
    metrics = tuple(_metrics(name, tree))
    return ModuleDescription(
        name=name,
        description=_first_line(ast.get_docstring(tree) or ast.get_docstring(main) or ""),
        parameters=parameters,
        defines=(
            *(one for one in _PARTS if one in functions),
            *(("metrics",) if metrics else ()),
        ),
        source_hash=source_hash(raw),
        open=main.name == "train" and not parameters,
        metrics=metrics,
        data=tuple(_options(name, load)) if load is not None else (),
    )


def _main(name: str, functions: Mapping[str, ast.FunctionDef]) -> ast.FunctionDef:
    """Return `build` or `train`, whose parameters are the module's; else `load_data`."""
    found = [functions[one] for one in ("build", "train") if one in functions]
    if len(found) == 1:
        return found[0]
    if found:
        raise ModuleFaultError(name, "the file must have `build` or `train`, not both")
    if "load_data" in functions:
        return functions["load_data"]
    detail = (
        "the file must have `def build(…) -> torch.nn.Module` (a network), `def train(trial, …)` "
        "(a training loop) or `def load_data(…)` (data) at its top level"
    )
    raise ModuleFaultError(name, detail)


def _metrics(name: str, tree: ast.Module) -> Iterator[str]:
    """Yield the keys of the dictionary `metrics`, if the file has one."""
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        if isinstance(node, ast.AnnAssign):
            targets = [node.target]
        if not any(isinstance(one, ast.Name) and one.id == "metrics" for one in targets):
            continue
        value = getattr(node, "value", None)
        if not isinstance(value, ast.Dict):
            raise ModuleFaultError(name, "metrics must be a dictionary `{name: function}`")
        for key in value.keys:
            metric = _plain(key) if key is not None else None
            if not isinstance(metric, str) or not re.fullmatch(r"[a-z][a-z0-9_]{0,63}", metric):
                detail = "metrics must have names of lower-case letters, digits and `_` as keys"
                raise ModuleFaultError(name, detail)
            if metric in METRICS or metric == "loss":
                detail = f"{metric} is a built-in metric; name yours otherwise"
                raise ModuleFaultError(name, detail)
            yield metric


def source_hash(source: bytes) -> str:
    """Return the SHA-256 of a module's source."""
    return hashlib.sha256(source).hexdigest()


def _check_name(name: str) -> None:
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]{0,63}", name) or keyword.iskeyword(name):
        detail = "the file's name must be a Python name of at most 64 letters, digits and `_`"
        raise ModuleFaultError(name, detail)
    for kind, known in (("network", NETWORKS), ("data set", DATASETS)):
        if name in known:
            raise ModuleFaultError(name, f"{name} is a built-in {kind}; name the file otherwise")


def _options(name: str, build: ast.FunctionDef) -> Iterator[Option]:
    given = build.args
    if given.kwarg or given.vararg or given.posonlyargs:
        raise ModuleFaultError(
            name,
            f"{build.name} must name every parameter: no *args, no **kwargs, no positional-only "
            "ones",
        )
    if build.name == "train" and not given.args:
        raise ModuleFaultError(name, "train must take the trial as its first parameter")
    told = described_parameters(ast.get_docstring(build) or "")
    missing: list[ast.expr | None] = [None] * (len(given.args) - len(given.defaults))
    pairs = [
        *zip(given.args, [*missing, *given.defaults], strict=True),
        *zip(given.kwonlyargs, given.kw_defaults, strict=True),
    ]
    for argument, default in pairs[1:] if build.name == "train" else pairs:
        if build.name == "train":
            yield _option(name, argument, default, told.get(argument.arg, ""))
        elif build.name == "load_data" and argument.arg in _OF_DATA:
            detail = f"the parameter {argument.arg!r} belongs to all data; name it otherwise"
            raise ModuleFaultError(name, detail)
        elif argument.arg not in GIVEN or build.name == "load_data":
            _refuse_taken(name, argument.arg)
            yield _option(name, argument, default, told.get(argument.arg, ""))


def _refuse_taken(name: str, parameter: str) -> None:
    if bind(parameter, network=None, dataset=None) is not None:
        raise ModuleFaultError(
            name,
            f"the parameter {parameter!r} already means something in training; name it otherwise",
        )
    if parameter in _SEARCHED_OF_DATA:
        raise ModuleFaultError(
            name,
            f"the parameter {parameter!r} is an option of data, and a study may search it; name "
            "it otherwise",
        )


def _option(name: str, argument: ast.arg, default: ast.expr | None, told: str) -> Option:
    value = _NO_DEFAULT if default is None else _plain(default)
    plain = value is not _NO_DEFAULT and value is not _NOT_PLAIN
    return Option(
        name=argument.arg,
        description=told or f"Parameter of {name}.",
        default=value if plain else None,
        required=value is _NO_DEFAULT,
        **_domain(name, argument, value),
    )


def _domain(name: str, argument: ast.arg, value: object) -> dict[str, Any]:
    """Return type, choices and other allowed values of a parameter."""
    note = argument.annotation
    if note is None:
        kind = _TYPES.get(type(value).__name__)
        return {"type": kind or "any"}
    also: tuple[None, ...] = (None,) if value is None else ()
    sides = _alternatives(note)
    others = [side for side in sides if ast.unparse(side) != "None"]
    if len(others) == 1:
        note, also = others[0], (None,) if len(sides) > 1 else also
    text = ast.unparse(note)
    if text in _TYPES:
        return {"type": _TYPES[text], "also": also}
    if isinstance(note, ast.Subscript) and _last_name(note.value) == "Literal":
        items = note.slice.elts if isinstance(note.slice, ast.Tuple) else [note.slice]
        return {"type": "any", "choices": tuple(_plain(item) for item in items), "also": also}
    raise ModuleFaultError(
        name,
        f"the parameter {argument.arg!r} must be of type int, float, bool, str, Literal[…] or "
        f"one of these | None, but got {text}",
    )


def _alternatives(note: ast.expr) -> list[ast.expr]:
    """Return the types of `X | Y`, `Optional[X]` or `Union[X, Y]`, each in quotes or not."""
    if isinstance(note, ast.Constant) and isinstance(note.value, str):
        try:
            return _alternatives(ast.parse(note.value.strip(), mode="eval").body)
        except SyntaxError:
            return [note]
    if isinstance(note, ast.BinOp) and isinstance(note.op, ast.BitOr):
        return [*_alternatives(note.left), *_alternatives(note.right)]
    name = _last_name(note.value) if isinstance(note, ast.Subscript) else None
    if isinstance(note, ast.Subscript) and name in ("Optional", "Union"):
        items = note.slice.elts if isinstance(note.slice, ast.Tuple) else [note.slice]
        found = [one for item in items for one in _alternatives(item)]
        return [*found, ast.Constant(None)] if name == "Optional" else found
    return [note]


def _last_name(node: ast.expr) -> str | None:
    """Return `Literal` of `Literal`, `typing.Literal` and `t.Literal`."""
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else None


def _plain(node: ast.expr) -> object:
    """Return the value of a literal; anything else only the module itself can tell."""
    try:
        value = ast.literal_eval(node)
    except ValueError:
        return _NOT_PLAIN
    return value if value is None or isinstance(value, (bool, int, float, str)) else _NOT_PLAIN


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0]
