"""What any data must satisfy before it is looked at: JSON values only, of bounded size.

After this, every walk over the data is cheap, every value can be shown in a message, and every
text can be stored in JSON and in both databases.
"""

import math
from collections.abc import Mapping
from typing import Any

from tuner_service.definition.faults import Faults, Path
from tuner_service.definition.options import show
from tuner_service.errors import DefinitionError, Fault
from tuner_service.json_values import has_control, is_storable

MAX_DEPTH = 12
MAX_VALUES = 200_000
MAX_STRING = 4096
MAX_CHARACTERS = 1_000_000
INT_BOUND = 2**63

MERGED = (
    "`<<` would merge mappings in YAML 1.1, which is not read here: write the keys out, or use the "
    "alias for the whole mapping"
)

_STRUCK = object()
_ALLOWED = str.maketrans("", "", "\t\u2028\u2029")


def guarded(data: object, faults: Faults) -> dict[str, Any]:
    """Return the data as plain dicts and lists, without the values that no definition may hold.

    Raises:
        DefinitionError: The data is no mapping, or too large to be looked at.
    """
    if not isinstance(data, Mapping):
        detail = f"a definition must be a mapping of names to values, but got {show_kind(data)}"
        raise DefinitionError([Fault("", detail, "wrong_type")])
    return _Copy(faults).mapping(data, ())


class _Copy:
    """A walk that copies and counts. Aliases in YAML can make a small text a huge tree."""

    def __init__(self, faults: Faults) -> None:
        self._faults = faults
        self._values = self._characters = 0

    def mapping(self, data: Mapping[Any, Any], path: Path) -> dict[str, Any]:
        copied = {}
        for key, value in data.items():
            fault = _key_fault(key)
            if fault:
                self._faults.reject(path, fault, code="bad_key")
                continue
            self._count(len(key))
            if (item := self._value(value, (*path, key))) is not _STRUCK:
                copied[str(key)] = item
        return copied

    def _value(self, value: object, path: Path) -> Any:
        self._values += 1
        if self._values > MAX_VALUES:
            detail = f"a definition holds at most {MAX_VALUES} values"
            raise DefinitionError([Fault("", detail, "too_large")])
        if len(path) > MAX_DEPTH:
            detail = f"a definition is at most {MAX_DEPTH} levels deep"
            return self._strike(path, detail, "too_deep")
        if isinstance(value, Mapping):
            if "<<" in value:  # what it lacks is no fault beside this one
                return self._strike(path, MERGED, "bad_key")
            return self.mapping(value, path)
        if isinstance(value, (list, tuple)):
            items = (self._value(item, (*path, i)) for i, item in enumerate(value))
            return [None if item is _STRUCK else item for item in items]
        return self._scalar(value, path)

    def _scalar(self, value: object, path: Path) -> object:
        if isinstance(value, str):
            self._count(len(value))
            fault = _text_fault(value)
            return self._strike(path, f"a text {fault}", "bad_text") if fault else str(value)
        if isinstance(value, int) and abs(value) >= INT_BOUND:
            return self._strike(path, "a whole number must lie within ±2**63", "out_of_range")
        if isinstance(value, float) and not math.isfinite(value):
            return self._strike(path, f"a number must be finite, but got {value}", "not_finite")
        if value is None or isinstance(value, (bool, int, float)):
            return value
        return self._strike(path, f"this is no JSON value: {show_kind(value)}", "wrong_type")

    def _count(self, characters: int) -> None:
        self._characters += characters
        if self._characters > MAX_CHARACTERS:
            detail = f"the texts of a definition have at most {MAX_CHARACTERS} characters together"
            raise DefinitionError([Fault("", detail, "too_large")])

    def _strike(self, path: Path, detail: str, code: str) -> object:
        self._faults.reject(path, detail, code=code)
        return _STRUCK


def _key_fault(key: object) -> str | None:
    if not isinstance(key, str):
        return f"keys must be text, but got {show_kind(key)}"
    if key == "<<":
        return MERGED
    fault = _text_fault(key)
    return f"a key {fault}" if fault else None


def _text_fault(text: str) -> str | None:
    if len(text) > MAX_STRING:
        return f"has at most {MAX_STRING} characters, but this one has {len(text)}"
    if not has_control(text.translate(_ALLOWED)):
        return None
    if is_storable(text):
        return f"must not hold control characters, but got {show(text)}"
    return f"must be Unicode without NUL and lone surrogates, but got {show(text)}"


def show_kind(value: object) -> str:
    """Return what a value is, in the words of YAML and JSON, and the value if it is short."""
    if value is None:
        return "nothing"
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, (list, tuple)):
        return "a list"
    if isinstance(value, (bool, int, float, str)):
        return show(value)
    return f"a value of type {type(value).__name__}"
