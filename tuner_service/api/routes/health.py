"""`/healthz`, `/readyz`, `/metrics`: for machines that watch this one. The first two: no key."""

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.responses import Response

from tuner_service import __version__
from tuner_service.api.auth import CallerDep
from tuner_service.api.http.openapi import errors
from tuner_service.api.http.responses import json_answer
from tuner_service.api.routes.metrics import CONTENT_TYPE
from tuner_service.api.service import ServiceDep

Status = Literal["ok", "degraded", "unavailable"]

BEARABLE = {"broker", "files"}

router = APIRouter(tags=["health"])


class Health(BaseModel):
    """The process answers."""

    status: Literal["ok"] = "ok"
    version: str


class Readiness(BaseModel):
    """Each part the service needs: "ok", or what is wrong with it.

    Without the broker it is `degraded`: everything is answered and what runs goes on, but workers
    that are idle hear of new work only when the broker is back. So it is where no file can be
    written: what is there can be read.
    """

    status: Status
    checks: dict[str, str]


@router.get("/healthz", response_model=Health, summary="Is the process alive?")
async def get_health() -> Response:
    """Answer; nothing else is asked."""
    return json_answer(Health(version=__version__))


@router.get(
    "/readyz",
    response_model=Readiness,
    responses={503: {"model": Readiness, "description": "Something is missing; it says what."}},
    summary="Can the service do its work?",
)
async def get_readiness(service: ServiceDep) -> Response:
    """Ask the database, its schema's version, the broker, and the disk."""
    checks = await service.ready.states()
    failing = {name for name, state in checks.items() if state != "ok"}
    status: Status = "unavailable" if failing - BEARABLE else "degraded" if failing else "ok"
    state = Readiness(status=status, checks=checks)
    return json_answer(state, 503 if status == "unavailable" else 200)


@router.get(
    "/metrics",
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **errors()},
    response_class=Response,
    summary="Metrics for Prometheus",
)
def get_metrics(service: ServiceDep, _: CallerDep) -> Response:
    """Return requests, workers and what the reconciler did."""
    return Response(service.metrics.render(), media_type=CONTENT_TYPE)
