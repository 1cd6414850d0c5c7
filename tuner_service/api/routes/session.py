"""`/v1/session`: the page's login. It is no part of the API: programs send their key."""

from typing import Annotated

from fastapi import APIRouter, Body, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response

from tuner_service.access.keys import list_keys
from tuner_service.access.sessions import SESSION_SECONDS, make_session
from tuner_service.api.auth import SESSION_COOKIE, CallerDep, address_of
from tuner_service.api.service import ServiceDep
from tuner_service.errors import AuthenticationError

router = APIRouter(prefix="/v1/session", include_in_schema=False)


class LoginRequest(BaseModel):
    """The body of a login."""

    model_config = ConfigDict(extra="forbid")

    key: str = Field(min_length=1, max_length=512)


@router.post("")
async def log_in(
    service: ServiceDep, request: Request, given: Annotated[LoginRequest, Body()]
) -> Response:
    """Answer a valid key with a cookie that no script can read and no other site can send."""
    key = await run_in_threadpool(service.attempts.verify, address_of(request.scope), given.key)
    if key is None:
        raise AuthenticationError("This API key is unknown, revoked or past its end")
    answer = JSONResponse({"key": key.id})
    answer.set_cookie(
        SESSION_COOKIE,
        await run_in_threadpool(make_session, service.db, given.key),
        max_age=SESSION_SECONDS,
        httponly=True,
        samesite="strict",
        secure="https" in (request.url.scheme, request.headers.get("x-forwarded-proto", "")),
    )
    return answer


@router.get("")
def who_am_i(service: ServiceDep, caller: CallerDep) -> Response:
    """Say whose key the page uses; null where none is needed."""
    names = {key.id: key.name for key in list_keys(service.db)} if caller.owner else {}
    name = names.get(caller.owner, caller.owner)
    return JSONResponse({"key": caller.owner or None, "name": name, "scopes": caller.scopes})


@router.delete("")
async def log_out() -> Response:
    """Take the cookie away."""
    answer = Response(status_code=204)
    answer.delete_cookie(SESSION_COOKIE, httponly=True, samesite="strict")
    return answer
