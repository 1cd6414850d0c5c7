"""The OpenAPI document: errors, security and the study definition's schema, said once."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from tuner_service.api.http.problems import MEDIA_TYPE, Problem
from tuner_service.definition import study_schema
from tuner_service.lifecycle.change import StudyPatch
from tuner_service.settings import Settings

_MEANINGS = {
    304: "The study is still at the revision of `If-None-Match`.",
    400: "The body is not JSON as it should be.",
    401: "No API key, or one that is not valid.",
    403: "The key's scope does not allow this, or the request comes from another site.",
    404: "There is no such thing.",
    409: "The study's present state does not allow this.",
    413: "The body is too large.",
    415: "The body is not of type application/json.",
    422: "The request is well-formed but wrong; `errors` says where.",
    429: "The key asks too often or has too much under way; try again after `Retry-After` seconds.",
    503: "Database or broker cannot be reached just now; try again after `Retry-After` seconds.",
}
_ALWAYS = (401, 403, 429, 503)
_BODY = (400, 413, 415, 422)

Responses = dict[int | str, dict[str, Any]]


def errors(*statuses: int, body: bool = False) -> Responses:
    """Return the documentation of an operation's errors, with those that any may have."""
    every = sorted({*_ALWAYS, *statuses, *(_BODY if body else ())})
    return {status: _response(status) for status in every}


def _response(status: int) -> dict[str, Any]:
    if status == 304:
        return {"description": _MEANINGS[status]}
    schema = {"$ref": "#/components/schemas/Problem"}
    return {"description": _MEANINGS[status], "content": {MEDIA_TYPE: {"schema": schema}}}


def definition_body() -> dict[str, Any]:
    """Return the documentation of a request body that is a study definition."""
    named = {
        example["name"]: {"summary": example["name"], "value": example}
        for example in study_schema()["examples"]
    }
    return _body("StudyDefinition", named)


def patch_body() -> dict[str, Any]:
    """Return the documentation of the body that changes a study."""
    return _body("StudyPatch", {"more-trials": {"summary": "Raise", "value": {"trials": 200}}})


def points_body() -> dict[str, Any]:
    """Return the documentation of the body that adds points to a study."""
    return _body("StudyPoints", {"one": {"value": {"points": [{"learning_rate": 0.001}]}}})


def _body(name: str, examples: dict[str, Any]) -> dict[str, Any]:
    schema = {"$ref": f"#/components/schemas/{name}"}
    content = {"application/json": {"schema": schema, "examples": examples}}
    return {"requestBody": {"required": True, "content": content}}


def install(app: FastAPI, settings: Settings) -> None:
    """Make the application publish this document."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app, settings)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # as FastAPI's documentation has it


def _document(app: FastAPI, settings: Settings) -> dict[str, Any]:
    document = get_openapi(
        title=app.title,
        version=app.version,
        description=app.description,
        routes=app.routes,
        tags=app.openapi_tags,
    )
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)  # FastAPI's own shape of 422; ours is a Problem
    schemas |= _with_parts("Problem", Problem.model_json_schema())
    schemas |= _with_parts("StudyPatch", StudyPatch.model_json_schema())
    schemas |= _with_parts("StudyDefinition", study_schema())
    schemas["StudyPoints"] = _points_schema(schemas["StudyDefinition"])
    components["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    }
    needed: list[dict[str, list[str]]] = [{"bearer": []}, {"key": []}]
    document["security"] = needed if settings.keys_reason else [{}, *needed]
    return document


def _points_schema(definition: dict[str, Any]) -> dict[str, Any]:
    points = {**definition["properties"]["enqueue"], "minItems": 1}
    points.pop("default", None)
    return {
        "type": "object",
        "properties": {"points": points},
        "required": ["points"],
        "additionalProperties": False,
    }


def _with_parts(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    """Return a schema and its `$defs` as components."""
    schema = {key: value for key, value in schema.items() if key != "$schema"}
    parts = schema.pop("$defs", {})
    return {part: _relinked(value) for part, value in {**parts, name: schema}.items()}


def _relinked(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _relinked(member) for key, member in value.items()}
    if isinstance(value, list):
        return [_relinked(member) for member in value]
    if isinstance(value, str) and value.startswith("#/$defs/"):
        return value.replace("#/$defs/", "#/components/schemas/", 1)
    return value
