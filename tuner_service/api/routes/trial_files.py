"""`/v1/studies/{study}/trials/{number}/model` and `/logs`."""

from typing import Annotated

from fastapi import APIRouter, Path, Query
from starlette.responses import PlainTextResponse, Response, StreamingResponse

from tuner_service.api.auth import CallerDep
from tuner_service.api.http.openapi import errors
from tuner_service.api.routes.model_bundle import chunks, write_bundle
from tuner_service.api.routes.studies import Ref
from tuner_service.api.routes.trials import MAX_NUMBER
from tuner_service.api.service import ServiceDep
from tuner_service.reads.trial_files import read_log, trial_files
from tuner_service.reads.trials import get_trial

router = APIRouter(prefix="/v1/studies/{study}/trials/{number}", tags=["trials"])

MAX_LINES = 1_000_000

Number = Annotated[int, Path(description="The trial's number.", ge=0, le=MAX_NUMBER)]


@router.get(
    "/model",
    response_class=Response,
    responses={
        200: {
            "description": "A zip: weights, definition, trial, preprocessing, predict.py.",
            "content": {"application/zip": {"schema": {"type": "string", "format": "binary"}}},
        },
        **errors(404, 422),
    },
    summary="Get a trial's model",
)
def get_model(service: ServiceDep, _: CallerDep, study: Ref, number: Number) -> Response:
    """Return the trained network with a Python file that predicts with it.

    Weights are kept of the best `training.keep_models` trials; for others the problem's code is
    `not_kept`.
    """
    files = trial_files(service.db, study, number, directory=service.settings.directory)
    bundle = write_bundle(files, get_trial(service.db, files.study, number))
    name = f"{files.study}-{number}.zip"
    return StreamingResponse(
        chunks(bundle),
        media_type="application/zip",
        headers={"Content-Disposition": f'attachment; filename="{name}"'},
    )


@router.get(
    "/logs",
    response_class=PlainTextResponse,
    responses={
        200: {
            "description": "What the trial printed; empty if it printed nothing.",
            "content": {"text/plain": {"schema": {"type": "string"}}},
        },
        **errors(404, 422),
    },
    summary="Get what a trial printed",
)
def get_logs(
    service: ServiceDep,
    _: CallerDep,
    study: Ref,
    number: Number,
    tail: Annotated[
        int | None, Query(description="Only the last lines.", ge=0, le=MAX_LINES)
    ] = None,
) -> Response:
    """Return what the trial's code printed, and the traceback if it failed."""
    files = trial_files(service.db, study, number, directory=service.settings.directory)
    return PlainTextResponse(read_log(files.log, tail=tail))
