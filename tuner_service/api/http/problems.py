"""Errors as RFC 9457 `application/problem+json`: one shape for everything that goes wrong.

No traceback leaves the service: what is not one of our own errors answers 500 with the request's
id, under which the log has the rest.
"""

import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response

from tuner_service.errors import (
    AuthenticationError,
    DefinitionError,
    Fault,
    RateError,
    SettingsError,
    TunerError,
    UnavailableError,
)

logger = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_SECONDS = 2
_HTTP_CODES = {404: "no_such_address", 405: "method_not_allowed"}


class FaultView(BaseModel):
    """One thing wrong in a request."""

    pointer: str = Field(description="JSON pointer (RFC 6901) to the value at fault.")
    detail: str = Field(description="What is wrong, and what to change.")
    code: str = Field(description="Stable name of the rule.")


class Problem(BaseModel):
    """What every error answers with (RFC 9457)."""

    type: str = Field(description='Always "about:blank"; `code` tells problems apart.')
    title: str = Field(description="The HTTP status in words.")
    status: int
    code: str = Field(description="Stable machine-readable name of the problem.")
    detail: str = Field(description="What happened, in a sentence.")
    errors: list[FaultView] | None = Field(
        default=None, description="Everything wrong in the request, one entry each."
    )


class ProblemResponse(JSONResponse):
    """A JSON response with the media type of problems."""

    media_type = MEDIA_TYPE


def problem(
    status: int,
    code: str,
    detail: str,
    *,
    faults: list[Fault] | None = None,
    headers: Mapping[str, str] | None = None,
) -> ProblemResponse:
    """Return a problem answer."""
    body: dict[str, Any] = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "code": code,
        "detail": detail,
    }
    if faults is not None:
        body["errors"] = [fault.as_dict() for fault in faults]
    return ProblemResponse(body, status, headers=dict(headers or {}))


def problem_of(error: TunerError) -> ProblemResponse:
    """Return the answer to one of our own errors."""
    if isinstance(error, DefinitionError):
        return problem(error.status, error.code, _summary(error.faults), faults=error.faults)
    if error.status == HTTPStatus.INTERNAL_SERVER_ERROR or isinstance(error, SettingsError):
        raise error  # ours to fix, not the caller's to read
    text = error.public if isinstance(error, UnavailableError) else str(error)
    return problem(error.status, error.code, text, headers=_headers(error))


def _headers(error: TunerError) -> dict[str, str]:
    if isinstance(error, AuthenticationError):
        return {"WWW-Authenticate": 'Bearer realm="tuner"'}
    if isinstance(error, RateError):
        return {"Retry-After": str(error.retry_after)}
    if error.status == HTTPStatus.SERVICE_UNAVAILABLE:
        return {"Retry-After": str(RETRY_AFTER_SECONDS)}
    return {}


def _summary(faults: list[Fault]) -> str:
    if len(faults) == 1:
        return f"{faults[0].pointer or '/'}: {faults[0].detail}"
    return f"{len(faults)} things are wrong; see errors."


def install(app: FastAPI) -> None:
    """Answer every error of the application with a problem."""
    app.add_exception_handler(TunerError, _on_tuner_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(ClientDisconnect, _on_disconnect)
    app.add_exception_handler(Exception, _on_unexpected_error)


async def _on_tuner_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, TunerError)
    return problem_of(error)


async def _on_validation_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    faults = [
        Fault("/" + "/".join(map(str, entry["loc"])), entry["msg"], entry["type"])
        for entry in error.errors()
    ]
    detail = "; ".join(f"{fault.pointer[1:]}: {fault.detail}" for fault in faults)
    return problem(422, "invalid_input", detail, faults=faults)


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = _HTTP_CODES.get(error.status_code, "http_error")
    detail = str(error.detail)
    if error.status_code == HTTPStatus.NOT_FOUND:
        detail = f"There is nothing at {request.url.path}; /docs lists what there is."
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = (error.headers or {}).get("Allow", "")
        detail = f"{request.url.path} does not take {request.method}, only {allowed}."
    return problem(error.status_code, code, detail, headers=error.headers)


async def _on_disconnect(_: Request, error: Exception) -> Response:
    # Nobody reads it. It keeps a caller's cut from the log and the metrics as an error of ours.
    return problem(400, "disconnected", "The connection was closed before the body had come.")


async def _on_unexpected_error(request: Request, error: Exception) -> Response:
    request_id = request.scope.get("tuner_request_id", "unknown")
    logger.error("unexpected error in request %s", request_id, exc_info=error)
    detail = f"Something went wrong in the service; its log says more under request {request_id}."
    return problem(500, "internal", detail)
