"""Field types of the definition's models: strict, finite, and readable when refused.

Numbers are never read from text, nor booleans from numbers, nor whole numbers from 3.0.
"""

import math
import re
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    AllowInfNan,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    Strict,
    model_serializer,
)
from pydantic import WithJsonSchema as Schema
from pydantic_core import core_schema
from pydantic_core.core_schema import SerializerFunctionWrapHandler

from tuner_service.definition.options import LARGEST_INT, MAX_TEXT, show
from tuner_service.json_values import has_control

IDENTIFIER = r"^[A-Za-z_][A-Za-z0-9_]{0,63}$"
STUDY_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"
LONGEST_SECONDS = 366 * 86400.0

_DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?) *(ms|s|m|h|d) *")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION_TEXT = r"^([0-9]{1,9}(\.[0-9]{1,9})? *(ms|s|m|h|d) *)+$"


class DefinitionModel(BaseModel):
    """Base of the definition's models: frozen, unknown keys refused, dumped without None."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_serializer(mode="wrap")
    def _tidy(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in handler(self).items() if value is not None}


@dataclass(frozen=True)
class OneOrMore:
    """Annotates a tuple: one item stands for a list of one."""

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        """Return the tuple's schema behind a wrapping of single items."""
        return core_schema.no_info_before_validator_function(_as_tuple, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """Return the schema of one item or a list."""
        array = handler(schema)
        return {"anyOf": [array["items"], array]}


def _plain_text(value: str) -> str:
    if has_control(value):
        raise ValueError(f"control characters are not allowed, but got {show(value)}")
    return value


def parse_duration(value: object) -> object:
    """Return seconds for a number, or for text such as `90s`, `2h` or `1h 30m`.

    Raises:
        ValueError: The text is no duration, or the time is not above 0 and at most 366 days.
    """
    seconds = _text_seconds(value) if isinstance(value, str) else value
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        raise ValueError(f"a time such as 90s, 2h or a number of seconds, but got {show(value)}")
    if not 0 < seconds <= LONGEST_SECONDS:
        raise ValueError(f"`0 < time <= 366d` must hold, but got {show(value)}")
    return float(seconds)


def _text_seconds(text: str) -> float:
    parts, end = [], 0
    for match in _DURATION.finditer(text[:100]):
        if match.start() != end:
            break
        parts.append(float(match[1]) * _UNITS[match[2]])
        end = match.end()
    if not parts or end != len(text):
        raise ValueError(f"a time such as 90s, 2h or 1h30m is expected, but got {show(text)}")
    return sum(parts)


def _scalar(value: object) -> object:
    """Refuse what is no scalar here, in one sentence, rather than once per member of a union."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int) and abs(value) <= LARGEST_INT:
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    if isinstance(value, str) and len(value) <= MAX_TEXT:
        return value
    raise ValueError(
        f"a finite number, text of at most {MAX_TEXT} characters, true, false or null is "
        f"expected, but got {show(value)}"
    )


def _as_tuple(value: object) -> object:
    return tuple(value) if isinstance(value, (list, tuple)) else (value,)


Bool = Annotated[bool, Strict()]
Int = Annotated[int, Strict()]
Float = Annotated[float, Strict(), AllowInfNan(False)]
Text = Annotated[str, Strict(), Field(max_length=MAX_TEXT), AfterValidator(_plain_text)]
Seconds = Annotated[
    float,
    BeforeValidator(parse_duration),
    Schema(
        {
            "anyOf": [
                {"type": "number", "exclusiveMinimum": 0, "maximum": LONGEST_SECONDS},
                {"type": "string", "pattern": _DURATION_TEXT, "maxLength": 100},
            ]
        }
    ),
]
ScalarField = Annotated[
    Annotated[bool, Strict()]
    | Annotated[int, Strict()]
    | Annotated[float, Strict()]
    | Annotated[str, Strict()]
    | None,
    BeforeValidator(_scalar),
    Schema({"type": ["boolean", "number", "string", "null"], "maxLength": MAX_TEXT}),
]
