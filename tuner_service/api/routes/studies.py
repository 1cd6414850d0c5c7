"""`/v1/studies`: submit, read, wait, change, act."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Query, Request
from pydantic import AfterValidator, ValidationError
from pydantic_core import ErrorDetails
from starlette.background import BackgroundTask
from starlette.responses import Response

from tuner_service.api.auth import CallerDep
from tuner_service.api.http.body import DefinitionBody, JsonBody
from tuner_service.api.http.openapi import definition_body, errors, patch_body, points_body
from tuner_service.api.http.responses import json_answer, known_revisions, study_answer
from tuner_service.api.service import Service, ServiceDep
from tuner_service.definition import (
    Limits,
    StudyDefinition,
    Upload,
    parse_definition,
)
from tuner_service.definition.catalogue import DATASETS
from tuner_service.definition.sections import Dataset
from tuner_service.errors import DefinitionError, Fault
from tuner_service.json_values import is_storable
from tuner_service.lifecycle import change, garbage
from tuner_service.lifecycle.delete import delete
from tuner_service.lifecycle.submit import plan, submit
from tuner_service.reads import studies
from tuner_service.reads.views import Plan, StudyPage, StudyState, StudyView
from tuner_service.reads.workers import listed_modules

logger = logging.getLogger(__name__)

router = APIRouter(prefix="/v1/studies", tags=["studies"])

MAX_WAIT_SECONDS = 60.0
MAX_PAGE = 500
MAX_REVISION = 2**53 - 1  # what every JSON reader can hold


def _storable(text: str) -> str:
    if not is_storable(text):
        raise ValueError("a text here holds neither NUL nor half of a surrogate pair")
    return text


Text = Annotated[str, AfterValidator(_storable)]
Ref = Annotated[
    Text,
    Path(description="The study's id, or its name.", min_length=1, max_length=256),
]
Cursor = Annotated[
    Text | None,
    Query(description="`next_cursor` of the page before.", min_length=1, max_length=512),
]
Limit = Annotated[int, Query(description="Items per page.", ge=1, le=MAX_PAGE)]


def checked(service: Service, data: Any) -> StudyDefinition:
    """Return the definition in a request's body.

    Raises:
        DefinitionError: Something is wrong with it.
    """
    if not isinstance(data, dict):
        fault = Fault("", "a study definition must be a JSON object", "wrong_type")
        raise DefinitionError([fault])
    modules = listed_modules(service.db)
    definition = parse_definition(
        data,
        limits=Limits.of(service.settings),
        modules=modules.known,
        refused=modules.refused,
        uploads=_uploads(service, data.get("dataset")),
    )
    _check_version(service, definition.dataset)
    return definition


@contextmanager
def version_kept(service: Service, dataset: Dataset | None) -> Iterator[None]:
    """Let nobody remove an uploaded version until the study that needs it is stored."""
    if dataset is None or dataset.sha256 is None:
        yield
        return
    with service.datasets.in_use():
        _check_version(service, dataset)
        yield


def _uploads(service: Service, dataset: Any) -> dict[str, Upload]:
    """Return the uploaded data that a definition may mean."""
    name = dataset.get("name") if isinstance(dataset, dict) else None
    if isinstance(name, str) and name in DATASETS:
        return {}
    return {upload.name: upload for upload in service.datasets.all()}


def _check_version(service: Service, dataset: Dataset | None) -> None:
    if dataset is None or dataset.format is None or dataset.sha256 is None:
        return
    if not service.datasets.has(dataset.name, dataset.format, dataset.sha256):
        detail = (
            f"this version of {dataset.name} is not there (any more); leave sha256 out to use the "
            "present one, or upload the file again"
        )
        raise DefinitionError([Fault("/dataset/sha256", detail, "unknown_version")])


def _as_asked(definition: StudyDefinition, data: Any) -> StudyDefinition:
    """Return the definition as the request has it: its points, no more of its data's version.

    What an idempotency key stands for must not change with what later versions make of it.
    """
    points = tuple(data.get("enqueue") or ())
    definition = definition.model_copy(update={"enqueue": points})
    if definition.dataset is None:
        return definition
    given = data["dataset"]
    unpinned = {key: None for key in ("format", "sha256") if given.get(key) is None}
    dataset = definition.dataset.model_copy(update=unpinned)
    return definition.model_copy(update={"dataset": dataset})


@router.post(
    "",
    status_code=202,
    response_model=StudyView,
    responses=errors(body=True),
    openapi_extra=definition_body(),
    summary="Submit a study",
)
def submit_study(
    service: ServiceDep,
    caller: CallerDep,
    data: DefinitionBody,
    idempotency_key: Annotated[
        str | None,
        Header(
            description="The same key and body give the same study again, however often sent.",
            min_length=1,
            max_length=255,
        ),
    ] = None,
) -> Response:
    """Store a study; workers take it up at once. `Location` is its address.

    A name that is taken gets `-2`, `-3`, …; `warnings` says so.
    """
    definition = checked(service, data)
    with version_kept(service, definition.dataset):
        study, created = submit(
            service.db,
            definition,
            asked=_as_asked(definition, data),
            settings=service.settings,
            idempotency_key=idempotency_key,
            owner=caller.owner,
        )
    if created:
        service.reconciler.ring_soon(study.device)
        logger.info("study %s submitted as %s", study.id, study.name, extra={"study": study.id})
    return study_answer(study, 202, {"Location": f"/v1/studies/{study.id}"})


@router.post(
    "/validate",
    response_model=Plan,
    responses=errors(body=True),
    openapi_extra=definition_body(),
    summary="Check a study without storing it",
)
def validate_study(service: ServiceDep, _: CallerDep, data: DefinitionBody) -> Response:
    """Make the same checks as a submit, and say what would run."""
    return json_answer(plan(service.db, checked(service, data), settings=service.settings))


@router.get("", response_model=StudyPage, responses=errors(422), summary="List studies")
def list_studies(
    service: ServiceDep,
    _: CallerDep,
    cursor: Cursor = None,
    limit: Limit = 50,
    state: Annotated[StudyState | None, Query(description="Only studies in this state.")] = None,
    tag: Annotated[
        Text | None,
        Query(description="Only studies with this tag: `key=value`, or `key`.", max_length=512),
    ] = None,
) -> Response:
    """Return a page of studies, the newest first."""
    page = studies.list_studies(service.db, cursor=cursor, limit=limit, state=state, tag=tag)
    return json_answer(page)


@router.get(
    "/{study}",
    response_model=StudyView,
    responses=errors(304, 404, 422),
    summary="Get a study, or wait for it to change",
)
async def get_study(
    service: ServiceDep,
    _: CallerDep,
    request: Request,
    study: Ref,
    wait: Annotated[
        float,
        Query(
            description="Hold the answer until the revision changes, at most this many seconds: "
            "from `revision`, or that in `If-None-Match`, or, of a study that has not ended, from "
            "the present one.",
            ge=0,
            le=MAX_WAIT_SECONDS,
        ),
    ] = 0.0,
    revision: Annotated[
        int | None,
        Query(description="Wait for a change from this revision.", ge=0, le=MAX_REVISION),
    ] = None,
) -> Response:
    """Return one study with its state, progress and best trial; its revision is the `ETag`."""
    known = known_revisions(request)
    answer = None
    if wait:
        has = known if revision is None else {str(revision)}
        answer = await service.waiters.next_answer(study, has=has, seconds=wait)
    return (answer or await service.reads.get(study)).response(known)


@router.patch(
    "/{study}",
    response_model=StudyView,
    responses=errors(404, 409, body=True),
    openapi_extra=patch_body(),
    summary="Change budget, priority, parallelism or tags",
)
def patch_study(service: ServiceDep, _: CallerDep, study: Ref, data: JsonBody) -> Response:
    """Change what is given. Raising the trials of a completed study makes it run again."""
    view = change.patch(service.db, study, _parse_patch(data), settings=service.settings)
    service.reconciler.ring_soon(view.device)
    return study_answer(view)


def _parse_patch(data: Any) -> change.StudyPatch:
    try:
        return change.StudyPatch.model_validate(data, strict=True)
    except ValidationError as error:
        faults = [
            Fault("".join(f"/{part}" for part in entry["loc"]), _detail(entry), entry["type"])
            for entry in error.errors(include_url=False)
        ]
        raise PatchError(faults) from error


def _detail(entry: ErrorDetails) -> str:
    if entry["type"] != "extra_forbidden":
        return entry["msg"]
    name, fields = entry["loc"][-1], ", ".join(change.StudyPatch.model_fields)
    return f"{name} cannot be changed; what can be changed is {fields}"


class PatchError(DefinitionError):
    """A change of a study is wrong."""

    code = "invalid_change"


@router.post(
    "/{study}/points",
    response_model=StudyView,
    responses=errors(404, 409, body=True),
    openapi_extra=points_body(),
    summary="Add points to try",
)
def add_points(service: ServiceDep, _: CallerDep, study: Ref, data: JsonBody) -> Response:
    """Raise the budget by a trial for each point; what a point leaves out is sampled."""
    return study_answer(tried(service, study, data))


def tried(service: Service, ref: str, data: Any) -> StudyView:
    """Add the points of a request's body to a study, checked as those of a definition."""
    points = data.get("points") if isinstance(data, dict) else None
    if not isinstance(points, list) or not points or len(data) > 1:
        detail = 'the body must be {"points": [...]} with at least one point'
        raise DefinitionError([Fault("/points", detail, "wrong_type")])
    stored = studies.get_study(service.db, ref).definition
    budget = {**stored["budget"], "trials": max(len(points), stored["budget"].get("trials", 0))}
    try:
        definition = checked(service, {**stored, "budget": budget, "enqueue": points})
    except DefinitionError as error:
        raise DefinitionError([_of_points(fault) for fault in error.faults]) from error
    view = change.add_points(service.db, ref, definition.enqueue, settings=service.settings)
    service.reconciler.ring_soon(view.device)
    return view


def _of_points(fault: Fault) -> Fault:
    pointer = fault.pointer
    if pointer.startswith("/enqueue"):
        pointer = pointer.replace("/enqueue", "/points", 1)
    return Fault(pointer, fault.detail, fault.code)


@router.delete(
    "/{study}",
    status_code=204,
    responses=errors(404, 409, 422),
    summary="Delete a study that is not running",
)
def delete_study(service: ServiceDep, _: CallerDep, study: Ref) -> Response:
    """Delete it: nobody finds it any more. Its rows and files go soon after."""
    directory = service.settings.directory
    gone = delete(service.db, study)
    service.remover.wake()
    return Response(
        status_code=204, background=BackgroundTask(garbage.remove_files, directory, gone)
    )


@router.post(
    "/{study}/pause",
    response_model=StudyView,
    responses=errors(404, 409, 422),
    summary="Pause a study",
)
def pause_study(service: ServiceDep, _: CallerDep, study: Ref) -> Response:
    """Start no more trials; the running ones are checkpointed and handed back."""
    return study_answer(change.pause(service.db, study))


@router.post(
    "/{study}/resume",
    response_model=StudyView,
    responses=errors(404, 409, 422),
    summary="Resume a paused study",
)
def resume_study(service: ServiceDep, _: CallerDep, study: Ref) -> Response:
    """Go on where it was paused."""
    view = change.resume(service.db, study)
    service.reconciler.ring_soon(view.device)
    return study_answer(view)


@router.post(
    "/{study}/cancel",
    response_model=StudyView,
    responses=errors(404, 422),
    summary="Cancel a study",
)
def cancel_study(service: ServiceDep, _: CallerDep, study: Ref) -> Response:
    """End it: no new trial starts, running ones are stopped and thrown away."""
    return study_answer(change.cancel(service.db, study))
