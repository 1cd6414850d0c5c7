"""What there is to use: networks, optimizers, data, …, workers, and the definition's schema."""

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.responses import JSONResponse, Response

from tuner_service.api.auth import CallerDep
from tuner_service.api.http.openapi import errors
from tuner_service.api.http.responses import json_answer
from tuner_service.api.service import ServiceDep
from tuner_service.definition import catalogue_view, study_schema
from tuner_service.definition.user_modules import RefusedModule
from tuner_service.reads.views import WorkerView
from tuner_service.reads.workers import list_workers, listed_modules

router = APIRouter(prefix="/v1", tags=["catalogue"])

KINDS = (
    "activations", "losses", "metrics", "optimizers", "pruners", "samplers",
    "schedules", "training",
)  # fmt: skip


class Entries(BaseModel):
    """Entries of a catalogue: name, description, and parameters with type, default and range."""

    items: list[dict[str, Any]]


class Networks(Entries):
    """The networks there are, and the files of workers that are not offered, with the reason."""

    refused: list[RefusedModule]


class Workers(BaseModel):
    """The workers heard of lately."""

    items: list[WorkerView]


@router.get("/networks", response_model=Networks, responses=errors(), summary="List networks")
def list_networks(service: ServiceDep, _: CallerDep) -> Response:
    """Return the built-in networks, and those that workers bring or refuse."""
    modules = listed_modules(service.db)
    networks = (one.network for one in modules.known.values() if one.is_network)
    brought = [one.model_dump(mode="json") for one in networks]
    items = [*catalogue_view("networks"), *brought]
    return json_answer(Networks(items=items, refused=modules.refused))


def _add(kind: str) -> None:
    @router.get(
        f"/{kind}",
        response_model=Entries,
        responses=errors(),
        summary=f"List {kind}",
        name=f"list_{kind}",
    )
    def entries(_: CallerDep) -> Response:
        return json_answer(Entries(items=catalogue_view(kind)))


for _kind in KINDS:
    _add(_kind)


@router.get("/workers", response_model=Workers, responses=errors(), summary="List workers")
def get_workers(service: ServiceDep, _: CallerDep) -> Response:
    """Return the workers heard of lately, with what they are at."""
    return json_answer(Workers(items=list_workers(service.db)))


@router.get(
    "/schema/study",
    responses={
        200: {"content": {"application/schema+json": {"schema": {"type": "object"}}}},
        **errors(),
    },
    response_class=Response,
    summary="Get the JSON Schema of study definitions",
)
def get_schema(_: CallerDep) -> Response:
    """Return the schema, with examples."""
    return JSONResponse(study_schema(), media_type="application/schema+json")
