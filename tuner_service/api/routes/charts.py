"""`/v1/studies/{study}/…`: columns, curves, failures and importances."""

from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from tuner_service.api.auth import CallerDep
from tuner_service.api.chart_cache import Make
from tuner_service.api.http.openapi import errors
from tuner_service.api.http.responses import json_answer, known_revisions
from tuner_service.api.routes.studies import MAX_REVISION, Ref, Text
from tuner_service.api.routes.trials import MAX_NUMBER, Filter
from tuner_service.api.service import Service, ServiceDep
from tuner_service.reads.charts import ColumnsView, Curves, Failures, Importances
from tuner_service.reads.curves import MOST_CURVES, read_curves
from tuner_service.reads.failures import read_failures
from tuner_service.reads.importances import importances
from tuner_service.reads.shown_columns import shown

router = APIRouter(prefix="/v1/studies/{study}", tags=["charts"])


def _answer(service: Service, request: Request, ref: str, question: str, make: Make) -> Response:
    revision, body = service.charts.get(ref, question, make)
    headers = {"ETag": f'"{revision}"'}
    if str(revision) in known_revisions(request):
        return Response(status_code=304, headers=headers)
    return Response(body, headers=headers, media_type="application/json")


@router.get(
    "/columns",
    response_model=ColumnsView,
    responses=errors(304, 404, 422),
    summary="Get all trials as columns",
)
def get_columns(
    service: ServiceDep,
    _: CallerDep,
    request: Request,
    study: Ref,
    most: Annotated[
        int, Query(description="Of more trials than this, a part that tells.", ge=1, le=100_000)
    ] = 5000,
    text: Filter = "",
) -> Response:
    """Return what a chart of the study needs: states, values and parameters, a list of each."""
    return _answer(
        service, request, study, f"columns {most} {text}", lambda found: shown(found, most, text)
    )


@router.get(
    "/curves",
    response_model=Curves,
    responses=errors(304, 404, 422),
    summary="Get the curves of trials",
)
def get_curves(
    service: ServiceDep,
    _: CallerDep,
    request: Request,
    study: Ref,
    metric: Annotated[
        Text | None, Query(description="By default the (first) objective.", max_length=256)
    ] = None,
    trial: Annotated[
        list[Annotated[int, Query(ge=0, le=MAX_NUMBER)]] | None,
        Query(
            description="Numbers of trials; by default the running, the best and the newest.",
            max_length=MOST_CURVES,
        ),
    ] = None,
    since: Annotated[
        int | None,
        Query(
            description="Only trials that have changed after this revision.", ge=0, le=MAX_REVISION
        ),
    ] = None,
) -> Response:
    """Return what trials reported of a metric, epoch by epoch, and the pruner's threshold."""
    numbers = sorted(set(trial or ()))
    if since is not None:  # each asks from a revision of its own: nothing to keep
        columns = service.charts.columns.get(study)
        with columns.lock:
            return json_answer(
                read_curves(service.db, columns, metric=metric, numbers=numbers, since=since)
            )
    return _answer(
        service,
        request,
        study,
        f"curves {metric} {numbers}",
        lambda found: read_curves(service.db, found, metric=metric, numbers=numbers),
    )


@router.get(
    "/failures",
    response_model=Failures,
    responses=errors(304, 404, 422),
    summary="Get failures by what they say",
)
def get_failures(service: ServiceDep, _: CallerDep, request: Request, study: Ref) -> Response:
    """Group failed trials by message, each group with the region of the space that explains it."""
    return _answer(service, request, study, "failures", read_failures)


@router.get(
    "/importances",
    response_model=Importances,
    responses=errors(304, 404, 422),
    summary="Get the parameters' importances",
)
def get_importances(service: ServiceDep, _: CallerDep, request: Request, study: Ref) -> Response:
    """Say how much each parameter matters for the (first) objective, by PED-ANOVA."""
    return _answer(service, request, study, "importances", importances)
