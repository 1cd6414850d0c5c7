"""Reading JSON bodies, and definitions in YAML: size, depth and text are checked first."""

import json
import math
import re
from typing import Annotated, Any, NoReturn

from fastapi import Depends, Request

from tuner_service.api.service import Service
from tuner_service.definition import load_study
from tuner_service.errors import LimitError, TunerError
from tuner_service.json_values import is_storable

MAX_DEPTH = 32
MEDIA_TYPES = ("application/json", "application/merge-patch+json")
YAML_TYPES = ("application/yaml", "application/x-yaml")

_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"?', re.DOTALL)
_BRACKET = re.compile(rb"[\[\]{}]")


class MalformedBodyError(TunerError):
    """The body is not JSON as it should be."""

    code = "malformed_json"
    status = 400


class MediaTypeError(TunerError):
    """The body is something else than JSON."""

    code = "unsupported_media_type"
    status = 415


async def _read_json(request: Request) -> Any:
    _check_media_type(request.headers.get("content-type", ""))
    service: Service = request.app.state.service
    return parse_json(await _read(request, service.settings.max_body_bytes))


JsonBody = Annotated[Any, Depends(_read_json)]


async def _read_definition(request: Request) -> Any:
    content_type = request.headers.get("content-type", "")
    if _kind(content_type) not in YAML_TYPES:
        return await _read_json(request)
    service: Service = request.app.state.service
    body = await _read(request, service.settings.max_body_bytes)
    try:
        data = load_study(body.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise MalformedBodyError(f"The body is not UTF-8 at byte {error.start}") from error
    _check_text(data)
    return data


DefinitionBody = Annotated[Any, Depends(_read_definition)]


def _check_media_type(content_type: str) -> None:
    # A browser sends another site's form without asking first, but never this media type.
    if _kind(content_type) not in MEDIA_TYPES:
        raise MediaTypeError(
            f"The Content-Type must be application/json, but got {content_type or 'none'!r}"
        )


def _kind(content_type: str) -> str:
    return content_type.partition(";")[0].strip().lower()


async def _read(request: Request, limit: int) -> bytes:
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > limit:
        _refuse_size(limit)
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            _refuse_size(limit)
    return bytes(body)


def _refuse_size(limit: int) -> NoReturn:
    raise LimitError(f"The body must not be larger than {limit:,} bytes")


def parse_json(body: bytes) -> Any:
    """Return the value of a JSON text.

    Raises:
        MalformedBodyError: It is not JSON in UTF-8, is nested deeper than `MAX_DEPTH`, has a key
            twice, or holds a number or character that cannot be stored.
    """
    _check_depth(body)
    try:
        value = json.loads(
            body.decode("utf-8"),
            object_pairs_hook=_object,
            parse_constant=_constant,
            parse_float=_float,
        )
    except UnicodeDecodeError as error:
        raise MalformedBodyError(f"The body is not UTF-8 at byte {error.start}") from error
    except json.JSONDecodeError as error:
        raise MalformedBodyError(
            f"The body is not JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        ) from error
    except ValueError as error:  # an integer of thousands of digits
        raise MalformedBodyError("The body holds a number that is too long") from error
    _check_text(value)
    return value


def _check_depth(body: bytes) -> None:
    depth = 0
    for bracket in _BRACKET.finditer(_STRING.sub(b"", body)):
        depth += 1 if bracket.group() in b"[{" else -1
        if depth > MAX_DEPTH:
            raise MalformedBodyError(f"The body is nested deeper than {MAX_DEPTH} levels")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise MalformedBodyError(f"The key {twice!r} stands twice in one object")
    return result


def _constant(name: str) -> NoReturn:
    raise MalformedBodyError(f"{name} is not a JSON number")


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise MalformedBodyError(f"The number {text[:40]} is too large")
    return value


def _check_text(value: Any) -> None:
    if isinstance(value, str):
        if not is_storable(value):
            raise MalformedBodyError(f"The text {value[:40]!a} holds a character that is not text")
    elif isinstance(value, dict):
        for key, member in value.items():
            _check_text(key)
            _check_text(member)
    elif isinstance(value, list):
        for member in value:
            _check_text(member)
