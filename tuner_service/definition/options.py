"""Options: the named values that a network, optimizer, schedule, data set or the loop knows.

One `Option` is the single source for an option's type, range, default and description: the checks
of fixed values, of searched ranges, the JSON Schema and the catalogue endpoints all read it.
"""

import math
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from tuner_service.json_values import has_control

Scalar = bool | int | float | str | None
"""What a parameter's choice, a fixed option or an enqueued value may be."""

OptionType = Literal[
    "float", "int", "boolean", "string", "path", "paths", "column", "columns", "words",
    "label", "weights", "by_column", "orders", "any",
]  # fmt: skip

LARGEST_INT = 2**53
"""The largest integer that JSON, SQL, NumPy and Optuna's float arithmetic all hold exactly."""

MAX_TEXT = 256
MAX_COLUMNS = 4096
MAX_PATHS = 64
MAX_WORDS = 100
MAX_WEIGHTS = 1000
BALANCED = "balanced"


class Option(BaseModel):
    """One named value with its domain.

    Attributes:
        type: `path` is a relative path inside a data directory, `paths` one or a list of them,
            `column` a column's name or position, `columns` a list of those, `words` a list of
            texts, `label` a class as the file spells it, `weights` the word `balanced` or a number
            for each class, `by_column` one of `choices` or a mapping of columns to them, `orders`
            a mapping of columns to their texts in order.
        default: In force when the option is neither fixed nor searched.
        low: Lower end of the range; `low_open` leaves it out of the range. The same for `high`.
        choices: When not empty, the only values there are.
        also: Values allowed beside the range, such as null or "full".
        required: There is no default; the definition must give it.
        searchable: Whether it may stand in `parameters`.
        fusible: Whether it may differ within a fused group.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    type: OptionType
    description: str
    default: Any = None
    low: float | None = None
    low_open: bool = False
    high: float | None = None
    high_open: bool = False
    choices: tuple[Scalar, ...] = ()
    also: tuple[Scalar, ...] = ()
    required: bool = False
    searchable: bool = True
    fusible: bool = False

    @property
    def range_text(self) -> str:
        """The range in words, such as `0 <= momentum < 1`; empty without one."""
        left = "" if self.low is None else f"{self.low:g} {'<' if self.low_open else '<='} "
        right = "" if self.high is None else f" {'<' if self.high_open else '<='} {self.high:g}"
        return f"{left}{self.name}{right}" if left or right else ""


def same_scalar(left: object, right: object) -> bool:
    """Return whether two scalars are equal and of one kind: `True` is not 1, but 1.0 is 1."""
    return isinstance(left, bool) == isinstance(right, bool) and left == right


def show(value: object) -> str:
    """Return a value as a message shows it, cut to a readable length."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int) and abs(value) > 10**40:
        return "a number of more than 40 digits"  # str() of a huge one is slow, or refused
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def coerce(option: Option, value: Any) -> Any:
    """Return a value that fits the option in the option's own type: a float for 1."""
    if option.type == "label" and value is not None:  # YAML reads 1 as a number
        return show(value) if isinstance(value, bool) else str(value)
    if isinstance(value, (bool, str)) or value is None:
        return value
    if option.type == "float":
        return float(value)
    if option.type == "weights" and isinstance(value, Mapping):
        return {str(key): float(number) for key, number in value.items()}
    return list(value) if isinstance(value, tuple) else value


def option_fault(option: Option, value: object) -> str | None:
    """Return a sentence saying why `value` does not fit the option, or None when it does."""
    if any(same_scalar(value, other) for other in option.also):
        return None
    if option.type == "by_column" and isinstance(value, Mapping):
        faults = (_choice_fault(option, choice) for choice in value.values())
        return _mapping_fault(option, value) or next((f for f in faults if f is not None), None)
    if option.choices:
        return _choice_fault(option, value)
    return _CHECKS[option.type](option, value)


def _choice_fault(option: Option, value: object) -> str | None:
    if any(same_scalar(value, choice) for choice in option.choices):
        return None
    known = ", ".join(show(choice) for choice in (*option.choices, *option.also))
    return f"{option.name} must be one of {known}, but got {show(value)}"


def _number_fault(option: Option, value: object) -> str | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return f"{option.name} must be a number{_or_also(option)}, but got {show(value)}"
    if isinstance(value, int) and abs(value) > LARGEST_INT:
        return f"{option.name} must lie within ±2**53, but got {show(value)}"
    if not math.isfinite(value):
        return f"{option.name} must be a finite number, but got {show(value)}"
    if in_range(option, value):
        return None
    return f"`{option.range_text}` must hold, but got {show(value)}"


def _int_fault(option: Option, value: object) -> str | None:
    if isinstance(value, bool) or not isinstance(value, int):
        return f"{option.name} must be a whole number{_or_also(option)}, but got {show(value)}"
    return _number_fault(option, value)


def _or_also(option: Option) -> str:
    return "".join(f" or {show(value)}" for value in option.also)


def in_range(option: Option, value: float) -> bool:
    """Return whether a finite number lies in the option's range."""
    low, high = option.low, option.high
    if low is not None and (value < low or (option.low_open and value == low)):
        return False
    return high is None or value < high or (not option.high_open and value == high)


def _boolean_fault(option: Option, value: object) -> str | None:
    if isinstance(value, bool):
        return None
    return f"{option.name} must be true or false, but got {show(value)}"


def _string_fault(option: Option, value: object) -> str | None:
    if not isinstance(value, str):
        return f"{option.name} must be text, but got {show(value)}"
    if not value or len(value) > MAX_TEXT or has_control(value):
        return (
            f"{option.name} must be 1 to {MAX_TEXT} characters without control characters, "
            f"but got {show(value)}"
        )
    return None


def _path_fault(option: Option, value: object) -> str | None:
    fault = _string_fault(option, value)
    if fault is not None or not isinstance(value, str):
        return fault
    parts = value.split("/")
    if value[0] in "/~" or "\\" in value or ":" in value or {"..", ".", ""} & set(parts):
        return (
            f"{option.name} must be a relative path inside a data directory, with `/` between "
            f"plain names (no `..`, no `~`, no drive), but got {show(value)}"
        )
    return None


def _paths_fault(option: Option, value: object) -> str | None:
    if not isinstance(value, (list, tuple)):
        return _path_fault(option, value)
    if not 1 <= len(value) <= MAX_PATHS:
        return f"{option.name} must list 1 to {MAX_PATHS} files, but got {len(value)}"
    return next((fault for item in value if (fault := _path_fault(option, item))), None)


def _column_fault(option: Option, value: object) -> str | None:
    if isinstance(value, int) and not isinstance(value, bool):
        return None if abs(value) <= MAX_COLUMNS else f"there is no column {show(value)}"
    if isinstance(value, str):
        return _string_fault(option, value)
    return f"{option.name} must be a column's name or its position from 0, but got {show(value)}"


def _columns_fault(option: Option, value: object) -> str | None:
    if not isinstance(value, (list, tuple)) or not 1 <= len(value) <= MAX_COLUMNS:
        return f"{option.name} must be a list of columns, but got {show(value)}"
    faults = (_column_fault(option, item) for item in value)
    first = next((fault for fault in faults if fault is not None), None)
    if first is None and len(set(value)) < len(value):
        return f"{option.name} names a column twice"
    return first


def _words_fault(option: Option, value: object) -> str | None:
    if not isinstance(value, (list, tuple)) or len(value) > MAX_WORDS:
        return f"{option.name} must be a list of at most {MAX_WORDS} texts, but got {show(value)}"
    faults = (None if word == "" else _string_fault(option, word) for word in value)
    return next((fault for fault in faults if fault is not None), None)


def _mapping_fault(option: Option, value: object) -> str | None:
    if isinstance(value, Mapping) and 1 <= len(value) <= MAX_COLUMNS:
        return None
    return f"{option.name} must be a mapping of columns, but got {show(value)}"


def _orders_fault(option: Option, value: object) -> str | None:
    fault = _mapping_fault(option, value)
    if fault is not None or not isinstance(value, Mapping):
        return fault
    for column, texts in value.items():
        if not isinstance(texts, (list, tuple)) or len(texts) < 2:
            return f"{option.name} of {column!r} must be a list of its texts, the least first"
        fault = _words_fault(option, texts)
        if fault is not None:
            return fault
        if len(set(texts)) < len(texts):
            return f"{option.name} of {column!r} names a text twice"
    return None


def _label_fault(option: Option, value: object) -> str | None:
    return None if isinstance(value, (bool, int, float)) else _string_fault(option, value)


def _weights_fault(option: Option, value: object) -> str | None:
    if value == BALANCED:
        return None
    if not isinstance(value, Mapping) or not 1 <= len(value) <= MAX_WEIGHTS:
        return (
            f"{option.name} must be balanced or a number for each class that has a weight other "
            f"than 1, such as {{yes: 5}}, but got {show(value)}"
        )
    weight = option.model_copy(update={"name": "a weight", "low": 0.0})
    faults = (
        f"{option.name} of the class {show(label)}: {fault}"
        for label, number in value.items()
        if (fault := _number_fault(weight, number))
    )
    return next(faults, None)


def _any_fault(option: Option, value: object) -> str | None:
    if value is None or isinstance(value, (bool, int, float)):
        return None
    return _string_fault(option, value)


_CHECKS = {
    "float": _number_fault,
    "int": _int_fault,
    "boolean": _boolean_fault,
    "string": _string_fault,
    "path": _path_fault,
    "paths": _paths_fault,
    "column": _column_fault,
    "columns": _columns_fault,
    "words": _words_fault,
    "label": _label_fault,
    "by_column": _string_fault,
    "orders": _orders_fault,
    "weights": _weights_fault,
    "any": _any_fault,
}

_TEXT_SCHEMA: dict[str, Any] = {"type": "string", "minLength": 1, "maxLength": MAX_TEXT}
_PATH_SCHEMA: dict[str, Any] = {**_TEXT_SCHEMA, "pattern": r"^[^/~\\:]([^\\:]*[^/\\:])?$"}
_COLUMN_SCHEMA: dict[str, Any] = {
    "anyOf": [
        _TEXT_SCHEMA,
        {"type": "integer", "minimum": -MAX_COLUMNS, "maximum": MAX_COLUMNS},
    ]
}


def option_schema(option: Option) -> dict[str, Any]:
    """Return the JSON Schema of a fixed value of the option."""
    schema = _domain_schema(option)
    if option.also:
        schema = {"anyOf": [schema, *({"const": value} for value in option.also)]}
    schema["description"] = option.description
    if option.default is not None:
        schema["default"] = option.default
    return schema


def _domain_schema(option: Option) -> dict[str, Any]:
    if option.type == "by_column":
        choice = {"enum": list(option.choices)}
        mapping = {"type": "object", "additionalProperties": choice, "minProperties": 1}
        return {"anyOf": [choice, {**mapping, "maxProperties": MAX_COLUMNS}]}
    if option.choices:
        return {"enum": list(option.choices)}
    match option.type:
        case "float" | "int":
            return _number_schema(option)
        case "boolean":
            return {"type": "boolean"}
        case "path":
            return dict(_PATH_SCHEMA)
        case "paths":
            items = {"type": "array", "items": _PATH_SCHEMA, "minItems": 1, "maxItems": MAX_PATHS}
            return {"anyOf": [_PATH_SCHEMA, items]}
        case "column":
            return dict(_COLUMN_SCHEMA)
        case "columns":
            return {
                "type": "array",
                "items": _COLUMN_SCHEMA,
                "minItems": 1,
                "maxItems": MAX_COLUMNS,
                "uniqueItems": True,
            }
        case "words":
            words = {"type": "string", "maxLength": MAX_TEXT}
            return {"type": "array", "items": words, "maxItems": MAX_WORDS}
        case "label":
            return {"type": ["boolean", "number", "string"], "maxLength": MAX_TEXT}
        case "weights":
            weight = {"type": "number", "minimum": 0}
            weights = {"type": "object", "additionalProperties": weight, "minProperties": 1}
            return {"anyOf": [{"const": BALANCED}, {**weights, "maxProperties": MAX_WEIGHTS}]}
        case "orders":
            words = {"type": "string", "maxLength": MAX_TEXT}
            texts = {"type": "array", "items": words, "minItems": 2, "maxItems": MAX_WORDS}
            texts |= {"uniqueItems": True}
            return {"type": "object", "additionalProperties": texts, "minProperties": 1}
        case "any":
            return {"type": ["boolean", "number", "string", "null"]}
        case _:
            return dict(_TEXT_SCHEMA)


def _number_schema(option: Option) -> dict[str, Any]:
    kind, number = ("integer", int) if option.type == "int" else ("number", float)
    schema: dict[str, Any] = {"type": kind}
    if option.low is not None:
        schema["exclusiveMinimum" if option.low_open else "minimum"] = number(option.low)
    if option.high is not None:
        schema["exclusiveMaximum" if option.high_open else "maximum"] = number(option.high)
    return schema
