"""YAML as its version 1.2 has it: `1e-5` is a number, `no` a text, and a key stands once.

PyYAML follows version 1.1, in which `1e-5` is a text, `on` and `no` are booleans, `010` is eight
and `12:30` is 750. The loader below keeps PyYAML's safe parser and replaces what plain words mean.
"""

import re
from collections.abc import Iterator
from typing import Any, ClassVar, NoReturn

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from tuner_service.definition.checks.json_tree import show_kind
from tuner_service.definition.faults import Path, pointer
from tuner_service.errors import DefinitionError, Fault

MAX_TEXT_BYTES = 1_000_000
MAX_DEPTH = 30
MAX_DIGITS = 400

_TAG = "tag:yaml.org,2002:"
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")


class CoreLoader(yaml.SafeLoader):
    """A safe loader with the core schema of YAML 1.2."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012
    yaml_constructors: ClassVar[dict[str | None, Any]] = {}

    _depth = 0

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        """Compose one node, refusing nesting that would exhaust the stack."""
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise yaml.YAMLError(f"the text is nested more than {MAX_DEPTH} levels deep")
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1


def _refuse(node: Node, problem: str) -> NoReturn:
    raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


def _construct_mapping(loader: CoreLoader, node: MappingNode) -> Iterator[dict[Any, Any]]:
    if not isinstance(node, MappingNode):
        _refuse(node, "a mapping is expected here")
    data: dict[Any, Any] = {}
    yield data
    for key_node, value_node in node.value:
        if not isinstance(key_node, ScalarNode):
            _refuse(key_node, "a key must be a plain text")
        key = loader.construct_object(key_node)
        if key in data:
            _refuse(key_node, f"the key {key!r} is given twice")
        data[key] = loader.construct_object(value_node)


def _construct_int(loader: CoreLoader, node: ScalarNode) -> int:
    text = loader.construct_scalar(node)
    if len(text) > MAX_DIGITS:
        _refuse(node, f"a number has at most {MAX_DIGITS} digits")
    if _INT.fullmatch(text) is None:
        _refuse(node, f"a whole number is expected, but got {text[:60]!r}")
    base = {"0o": 8, "0x": 16}.get(text[:2], 10)
    return int(text[2:], base) if base != 10 else int(text)


def _construct_float(loader: CoreLoader, node: ScalarNode) -> float:
    text = loader.construct_scalar(node).lower()
    try:
        return float(text.replace(".inf", "inf").replace(".nan", "nan"))
    except ValueError:
        _refuse(node, f"a number is expected, but got {text[:60]!r}")


def _construct_bool(loader: CoreLoader, node: ScalarNode) -> bool:
    text = loader.construct_scalar(node).lower()
    if text not in ("true", "false"):
        _refuse(node, f"true or false is expected, but got {text[:60]!r}")
    return text == "true"


def _construct_text(loader: CoreLoader, node: ScalarNode) -> str:
    return str(loader.construct_scalar(node))


def _construct_list(loader: CoreLoader, node: SequenceNode) -> Iterator[list[Any]]:
    if not isinstance(node, SequenceNode):
        _refuse(node, "a sequence is expected here")
    data: list[Any] = []
    yield data
    data.extend(loader.construct_object(item) for item in node.value)


def _construct_unknown(loader: CoreLoader, node: Node) -> NoReturn:
    del loader
    _refuse(node, f"the tag {node.tag[:60]!r} is not allowed")


def _construct_null(loader: CoreLoader, node: ScalarNode) -> None:
    loader.construct_scalar(node)


_RESOLVERS = (
    ("null", r"~|null|Null|NULL|", "~nN\0"),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", _INT.pattern, "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", "-+.0123456789"),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.nan|\.NaN|\.NAN", "-+."),
)

for _name, _pattern, _first in _RESOLVERS:
    CoreLoader.add_implicit_resolver(
        _TAG + _name,
        re.compile(rf"^(?:{_pattern})$"),
        ["" if character == "\0" else character for character in _first],
    )

CoreLoader.add_constructor(_TAG + "null", _construct_null)
CoreLoader.add_constructor(_TAG + "bool", _construct_bool)
CoreLoader.add_constructor(_TAG + "int", _construct_int)
CoreLoader.add_constructor(_TAG + "float", _construct_float)
CoreLoader.add_constructor(_TAG + "str", _construct_text)
CoreLoader.add_constructor(_TAG + "seq", _construct_list)
CoreLoader.add_constructor(_TAG + "map", _construct_mapping)
CoreLoader.add_constructor(None, _construct_unknown)


def load_yaml(text: str) -> Any:
    """Return the data in a YAML (or JSON) text.

    Raises:
        DefinitionError: The text is not YAML; the message has line and column.
    """
    if len(text.encode("utf-8", "replace")) > MAX_TEXT_BYTES:
        raise _error(f"the text is larger than {MAX_TEXT_BYTES:,} bytes")
    try:
        return yaml.load(text, CoreLoader)  # noqa: S506 - a SafeLoader with fewer tags
    except yaml.MarkedYAMLError as error:
        raise _error(_with_place(error)) from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise _error(str(error)) from error


def lines_of(text: str) -> dict[str, int]:
    """Return the lines on which the values of a YAML (or JSON) text begin, by JSON pointer.

    What an alias stands for has the line at which it is written out. Of a text that is no YAML
    nothing is known.
    """
    try:
        root = yaml.compose(text, CoreLoader)
    except (yaml.YAMLError, RecursionError, ValueError):
        return {}
    lines: dict[str, int] = {}
    waiting: list[tuple[Path, Node]] = [] if root is None else [((), root)]
    seen: set[int] = set()
    while waiting:
        path, node = waiting.pop()
        lines.setdefault(pointer(path), node.start_mark.line + 1)
        if id(node) in seen:  # an alias: a small text may stand for a huge tree
            continue
        seen.add(id(node))
        if isinstance(node, MappingNode):
            for key, value in reversed(node.value):  # the next to be popped is the first
                lines.setdefault(pointer((*path, str(key.value))), key.start_mark.line + 1)
                waiting.append(((*path, str(key.value)), value))
        elif isinstance(node, SequenceNode):
            waiting += [((*path, at), node.value[at]) for at in reversed(range(len(node.value)))]
    return lines


def load_study(text: str) -> dict[Any, Any]:
    """Return the mapping in the text of a study file.

    Raises:
        DefinitionError: The text is not YAML, or not a mapping.
    """
    data = load_yaml(text)
    if isinstance(data, dict):
        return data
    detail = f"a study file must be a mapping of names to values, but got {show_kind(data)}"
    raise DefinitionError([Fault("", detail, "wrong_type")])


def _with_place(error: yaml.MarkedYAMLError) -> str:
    parts = [part for part in (error.context, error.problem) if part]
    mark = error.problem_mark or error.context_mark
    place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    return f"{place}{', '.join(parts)}"


def _error(detail: str) -> DefinitionError:
    return DefinitionError([Fault("", f"this is not YAML: {detail}", "yaml")])
