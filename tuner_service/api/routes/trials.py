"""`/v1/studies/{study}/…`: trials, the best, coverage, export."""

import csv
import io
from collections.abc import Iterator
from itertools import chain
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query
from starlette.responses import Response, StreamingResponse

from tuner_service.api.auth import CallerDep
from tuner_service.api.http.openapi import errors
from tuner_service.api.http.responses import json_answer, study_answer
from tuner_service.api.routes.studies import Cursor, Limit, Ref, Text, tried
from tuner_service.api.service import ServiceDep
from tuner_service.lifecycle import change
from tuner_service.reads import trials
from tuner_service.reads.filters import MOST_CHARACTERS, matching, ordered
from tuner_service.reads.studies import get_study
from tuner_service.reads.views import Coverage, StudyView, TrialPage, TrialState, TrialView
from tuner_service.storage.database import to_json

router = APIRouter(prefix="/v1/studies/{study}", tags=["trials"])

MAX_NUMBER = 2**31 - 1
ROWS_PER_CHUNK = 200
Filter = Annotated[
    Text,
    Query(
        alias="filter",
        description="Terms that must all hold, such as `lr<1e-2 state:running optimizer:adam`.",
        max_length=MOST_CHARACTERS,
    ),
]
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


@router.get("/trials", response_model=TrialPage, responses=errors(404, 422), summary="List trials")
def list_trials(
    service: ServiceDep,
    _: CallerDep,
    study: Ref,
    cursor: Cursor = None,
    limit: Limit = 50,
    state: Annotated[TrialState | None, Query(description="Only trials in this state.")] = None,
    sort: Annotated[
        trials.Sort,
        Query(description="`-` is downwards; by value leaves out trials without one."),
    ] = "number",
    text: Filter = "",
) -> Response:
    """Return a page of trials, without their epochs.

    A filter knows this study's own trials only, not those that another Optuna program added.
    """
    if text.strip():
        columns = service.charts.columns.get(study)
        with columns.lock:
            found = matching(columns, f"{text} state:{state}" if state else text)
            ids = [columns.trial_id[place] for place in ordered(columns, found, sort)]
        return json_answer(trials.page_of(service.db, ids, cursor=cursor, limit=limit))
    return json_answer(
        trials.list_trials(service.db, study, cursor=cursor, limit=limit, state=state, sort=sort)
    )


@router.get(
    "/trials/{number}",
    response_model=TrialView,
    responses=errors(404, 422),
    summary="Get a trial with its epochs",
)
def get_trial(
    service: ServiceDep,
    _: CallerDep,
    study: Ref,
    number: Annotated[int, Path(description="The trial's number.", ge=0, le=MAX_NUMBER)],
) -> Response:
    """Return one trial with everything known of it."""
    return json_answer(trials.get_trial(service.db, study, number))


@router.post(
    "/trials/{number}/stop",
    response_model=StudyView,
    responses=errors(404, 409, 422),
    summary="Stop a running trial and keep its value",
)
def stop_trial(
    service: ServiceDep,
    _: CallerDep,
    study: Ref,
    number: Annotated[int, Path(description="The trial's number.", ge=0, le=MAX_NUMBER)],
) -> Response:
    """End it at its next report as PRUNED, with the value that it has then."""
    return study_answer(change.stop_trial(service.db, study, number))


@router.post(
    "/trials/{number}/rerun",
    response_model=StudyView,
    responses=errors(404, 409, 422),
    summary="Try a trial's parameters once more",
)
def rerun_trial(
    service: ServiceDep,
    _: CallerDep,
    study: Ref,
    number: Annotated[int, Path(description="The trial's number.", ge=0, le=MAX_NUMBER)],
) -> Response:
    """Raise the budget by a trial with the same parameters and a seed of its own."""
    parameters = trials.get_trial(service.db, study, number).parameters
    return study_answer(tried(service, study, {"points": [parameters]}))


@router.get(
    "/best",
    response_model=list[TrialView],
    responses=errors(404, 422),
    summary="Get the best trial(s)",
)
def get_best(service: ServiceDep, _: CallerDep, study: Ref) -> Response:
    """Return the best feasible trial so far, or with several objectives the Pareto front.

    The list is empty while there is none; a single one comes with its epochs.
    """
    found = trials.best_trials(service.db, study)
    if len(found) == 1:
        found = [trials.get_trial(service.db, study, found[0].number)]
    return json_answer(found)


@router.get(
    "/coverage", response_model=Coverage, responses=errors(404, 422), summary="Get the coverage"
)
def get_coverage(service: ServiceDep, _: CallerDep, study: Ref) -> Response:
    """Say how many grid points (or slots) are done, failed and open, naming the failed ones."""
    return json_answer(trials.coverage(service.db, study))


@router.get(
    "/export",
    responses={
        200: {
            "description": "Every trial, a row each.",
            "content": {
                "application/json": {"schema": {"type": "array", "items": {"type": "object"}}},
                "text/csv": {"schema": {"type": "string"}},
            },
        },
        **errors(404, 422),
    },
    response_class=Response,
    summary="Export all trials",
)
def export_study(
    service: ServiceDep,
    _: CallerDep,
    study: Ref,
    form: Annotated[Literal["csv", "json"], Query(alias="format")] = "csv",
) -> Response:
    """Stream one flat row per trial; parameters are `params_NAME`."""
    view = get_study(service.db, study)
    rows = trials.export_rows(service.db, view.id)
    # Nothing is sent before the first row is read: until then an error can still be an answer.
    first = list(_take_one(rows))
    disposition = f'attachment; filename="{view.id}.{form}"'
    body = _csv(chain(first, rows)) if form == "csv" else _json(chain(first, rows))
    media_type = "text/csv; charset=utf-8" if form == "csv" else "application/json"
    return StreamingResponse(
        body, media_type=media_type, headers={"Content-Disposition": disposition}
    )


def _take_one(rows: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for row in rows:
        yield row
        return


def _json(rows: Iterator[dict[str, Any]]) -> Iterator[str]:
    before = "["
    for row in rows:
        yield before + to_json(row)
        before = ",\n"
    yield "]\n" if before != "[" else "[]\n"


def _csv(rows: Iterator[dict[str, Any]]) -> Iterator[str]:
    """Yield CSV text. Rows differ in their columns, so all are read before the header is known."""
    table = list(rows)
    columns = list(dict.fromkeys(chain.from_iterable(table)))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns)
    writer.writeheader()
    for begin in range(0, len(table), ROWS_PER_CHUNK):
        writer.writerows(map(_cells, table[begin : begin + ROWS_PER_CHUNK]))
        yield _drain(buffer)
    yield _drain(buffer)


def _cells(row: dict[str, Any]) -> dict[str, Any]:
    """Keep a spreadsheet from taking text for a formula."""
    return {
        name: f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value
        for name, value in row.items()
    }


def _drain(buffer: io.StringIO) -> str:
    text = buffer.getvalue()
    buffer.seek(0)
    buffer.truncate()
    return text
