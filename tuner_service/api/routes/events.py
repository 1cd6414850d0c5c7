"""Server-sent events: a study, or the list of studies, as it changes.

An event's id is the revision it tells of. Who comes back with `Last-Event-ID` is told only of what
has changed since. A stream ends after some minutes, so that a key that was revoked is not let in
for longer; browsers and clients come back by themselves.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Annotated, Final

from fastapi import APIRouter, Header
from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse

from tuner_service.api.auth import CallerDep
from tuner_service.api.http.openapi import Responses, errors
from tuner_service.api.http.responses import StudyAnswer
from tuner_service.api.routes.studies import Ref
from tuner_service.api.service import Service, ServiceDep
from tuner_service.errors import NotFoundError, UnavailableError

router = APIRouter(tags=["events"])

STREAM_SECONDS: Final = 300.0
ALIVE_SECONDS: Final = 15.0
LOOK_SECONDS: Final = 0.5

LastEventId = Annotated[
    str | None,
    Header(description="The id of the last event that was received.", max_length=64),
]
_STREAM: Final[Responses] = {
    200: {
        "description": "Events until some minutes have passed; come back for more.",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    }
}


def _responses(*statuses: int) -> Responses:
    return {**_STREAM, **errors(*statuses)}


def _event(kind: str, identity: str, data: bytes) -> bytes:
    return b"event: %s\nid: %s\ndata: %s\n\n" % (kind.encode(), identity.encode(), data)


def _streamed(events: AsyncIterator[bytes]) -> StreamingResponse:
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(events, media_type="text/event-stream", headers=headers)


@router.get(
    "/v1/studies/{study}/events",
    response_class=StreamingResponse,
    responses=_responses(404, 422),
    summary="Follow a study",
)
async def follow_study(
    service: ServiceDep, _: CallerDep, study: Ref, last_event_id: LastEventId = None
) -> StreamingResponse:
    """Send a `study` event with the study now and after every change, and `deleted` at last."""
    first = await service.reads.get(study)
    return _streamed(_study_events(service, first, last_event_id))


async def _study_events(
    service: Service, answer: StudyAnswer, known: str | None
) -> AsyncIterator[bytes]:
    yield b"retry: 1000\n\n"
    if str(answer.revision) != known:
        yield _event("study", str(answer.revision), answer.body)
    revision, until = answer.revision, time.monotonic() + STREAM_SECONDS
    while time.monotonic() < until and not service.waiters.is_released:
        try:
            changed = await service.waiters.wait(answer.id, revision, ALIVE_SECONDS)
        except NotFoundError:
            yield _event("deleted", str(revision), b"{}")
            return
        if changed is None:
            yield b": alive\n\n"
        else:
            revision = changed.revision
            yield _event("study", str(revision), changed.body)


@router.get(
    "/v1/events",
    response_class=StreamingResponse,
    responses=_responses(422),
    summary="Follow the list of studies",
)
async def follow_studies(
    service: ServiceDep, _: CallerDep, last_event_id: LastEventId = None
) -> StreamingResponse:
    """Send a `studies` event whenever any study was submitted, has changed or was deleted."""
    return _streamed(_list_events(service, last_event_id))


async def _list_events(service: Service, known: str | None) -> AsyncIterator[bytes]:
    yield b"retry: 1000\n\n"
    until = time.monotonic() + STREAM_SECONDS
    told = time.monotonic()
    while time.monotonic() < until and not service.waiters.is_released:
        try:
            version: str | None = await run_in_threadpool(service.list_version.get)
        except UnavailableError:
            version = None
        if version is not None and version != known:
            known, told = version, time.monotonic()
            yield _event("studies", version, b"{}")
        elif time.monotonic() - told > ALIVE_SECONDS:
            told = time.monotonic()
            yield b": alive\n\n"
        await asyncio.sleep(LOOK_SECONDS)
