"""API keys: who may ask, and for what.

A caller of this machine needs no key until keys are in use (`KeyRule`). Then every `/v1` address
wants one, as `Authorization: Bearer KEY` or `X-API-Key: KEY`, and the dashboard and `/docs` want it
as the password of HTTP Basic; the page logs in with it, and has a cookie from then on. A key that
is given is checked, needed or not. Keys are looked up for each request, so that revoking one works
at once.
"""

import base64
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.requests import cookie_parser
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from tuner_service.access.keys import SCOPES, KeyHolder
from tuner_service.access.sessions import verify_session
from tuner_service.api.http.problems import problem, problem_of
from tuner_service.api.http.rates import origin_of
from tuner_service.api.service import Service, ServiceDep
from tuner_service.errors import (
    AuthenticationError,
    PermissionDeniedError,
    RateError,
    UnavailableError,
)

SESSION_COOKIE = "tuner_session"
# What the page's own requests have: a form of another site cannot send a header.
PAGE_HEADER = "x-tuner-page"
READING = frozenset({"GET", "HEAD", "OPTIONS"})
# What stores nothing, though it is no GET: its question is a body.
ASKING = frozenset({"/v1/studies/validate"})


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks. `owner` is the API key's id; empty where none is needed and none was given."""

    owner: str
    scopes: tuple[str, ...]


async def authenticate(request: Request, service: ServiceDep) -> Caller:
    """Return who asks; only looking a key up takes a thread.

    Raises:
        AuthenticationError: No key, or one that is unknown, revoked or past its end.
        PermissionDeniedError: The key lacks the scope that this needs.
        RateError: The key asks too often, or too many wrong keys came from the caller's address.
    """
    caller = await _caller(service, request)
    request.scope["tuner_caller"] = caller.owner
    service.rates.take(caller.owner)
    reads = request.method in READING or request.scope["path"] in ASKING
    needed = "read" if reads else "write"
    if needed not in caller.scopes:
        raise PermissionDeniedError(
            f"This needs an API key with the scope {needed!r}, but this key has "
            f"{', '.join(caller.scopes)}"
        )
    return caller


CallerDep = Annotated[Caller, Depends(authenticate)]


async def _caller(service: Service, request: Request) -> Caller:
    secret = _given_key(request.headers)
    if secret is None:
        holder = await _session(service, request.headers)
        if holder is not None:
            _refuse_other_sites(request)
            return Caller(holder.id, holder.scopes)
        reason = await service.key_rule.reason(request.headers)
        if reason:
            raise AuthenticationError(
                f"This needs an API key, since {reason}: `Authorization: Bearer KEY` or "
                "`X-API-Key: KEY`"
            )
        return Caller("", SCOPES)
    address = address_of(request.scope)
    key = await run_in_threadpool(service.attempts.verify, address, secret)
    if key is None:
        raise AuthenticationError("This API key is unknown, revoked or past its end")
    return Caller(key.id, key.scopes)


async def _session(service: Service, headers: Headers) -> KeyHolder | None:
    """Return whose session the request's cookie is."""
    cookie = cookie_parser(headers.get("cookie", "")).get(SESSION_COOKIE)
    if not cookie:
        return None
    configured = service.settings.api_key.get_secret_value()
    return await run_in_threadpool(verify_session, service.db, cookie, configured=configured)


def _refuse_other_sites(request: Request) -> None:
    """A browser adds the cookie by itself: only the page's own script adds the header."""
    if request.method not in READING and PAGE_HEADER not in request.headers:
        raise PermissionDeniedError(
            "With a session instead of a key this needs the header X-Tuner-Page, which the page "
            "sends"
        )


def address_of(scope: Scope) -> str:
    """Return what attempts with wrong keys are counted by."""
    client = scope.get("client")
    return origin_of(client[0] if client else None)


def _given_key(headers: Headers) -> str | None:
    scheme, _, value = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and value.strip():
        return value.strip()
    if scheme.lower() == "basic":
        return _basic_password(value)
    return headers.get("x-api-key") or None


def _basic_password(value: str) -> str | None:
    try:
        text = base64.b64decode(value.strip(), validate=True).decode("utf-8")
    except ValueError:  # no base64, or no UTF-8 in it
        return None
    return text.partition(":")[2] or None


class BasicAuth:
    """Wraps what people open in a browser: asks for a key, where one is needed, as the password."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the request through, or ask for a key."""
        answer = await self._refusal(scope, Headers(scope=scope), address_of(scope))
        await (answer or self._app)(scope, receive, send)

    async def _refusal(self, scope: Scope, headers: Headers, address: str) -> Response | None:
        secret = _given_key(headers)
        try:
            reason = await self._service.key_rule.reason(headers)
            if not reason:
                return None
            if secret is None:
                holder = await _session(self._service, headers)
                if holder is not None:
                    scope["tuner_caller"] = holder.id
                    self._service.rates.take(holder.id)
                    return None
            else:
                owner = await run_in_threadpool(self._owner, secret, address)
                scope["tuner_caller"] = owner  # for the log of requests
                if owner is not None:
                    return None
        except (UnavailableError, RateError) as error:
            return problem_of(error)
        return problem(
            401,
            "unauthenticated",
            f"Give an API key as the password, since {reason}; the user name does not matter.",
            headers={"WWW-Authenticate": 'Basic realm="tuner", charset="UTF-8"'},
        )

    def _owner(self, secret: str, address: str) -> str | None:
        """Return the key's id; None: it is not valid."""
        key = self._service.attempts.verify(address, secret)
        if key is not None:
            self._service.rates.take(key.id)
        return None if key is None else key.id
