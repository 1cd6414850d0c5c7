"""What there is to use: networks, optimizers, data, …, workers, and the definition's schema."""

from collections.abc import Iterable
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.responses import JSONResponse, Response

from tuner_service.api.auth import CallerDep
from tuner_service.api.http.openapi import errors
from tuner_service.api.http.responses import json_answer
from tuner_service.api.service import Service, ServiceDep
from tuner_service.definition import ModuleDescription, catalogue_view, study_schema
from tuner_service.definition.catalogue import Entry
from tuner_service.definition.user_modules import RefusedModule
from tuner_service.reads.views import WorkerView
from tuner_service.reads.workers import list_workers, listed_modules

router = APIRouter(prefix="/v1", tags=["catalogue"])

KINDS = (
    "activations", "losses", "metrics", "optimizers", "schedules", "training",
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


@router.get("/samplers", response_model=Entries, responses=errors(), summary="List samplers")
def list_samplers(service: ServiceDep, _: CallerDep) -> Response:
    """Return the built-in samplers, and those that workers bring."""
    return _with_brought("samplers", (m.sampler for m in _modules(service)))


@router.get("/pruners", response_model=Entries, responses=errors(), summary="List pruners")
def list_pruners(service: ServiceDep, _: CallerDep) -> Response:
    """Return the built-in pruners, and those that workers bring."""
    return _with_brought("pruners", (m.pruner for m in _modules(service)))


def _modules(service: Service) -> Iterable[ModuleDescription]:
    return listed_modules(service.db).known.values()


def _with_brought(kind: str, entries: Iterable[Entry | None]) -> Response:
    brought = [one.model_dump(mode="json") for one in entries if one is not None]
    return json_answer(Entries(items=[*catalogue_view(kind), *brought]))


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
