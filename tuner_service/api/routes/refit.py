"""`POST /v1/studies/{study}/refit`: the best trial's model, trained on all rows."""

import logging
from typing import Annotated

from fastapi import APIRouter, Query
from starlette.responses import Response

from tuner_service.api.auth import CallerDep
from tuner_service.api.http.openapi import errors
from tuner_service.api.http.responses import study_answer
from tuner_service.api.routes.studies import Ref, checked, version_kept
from tuner_service.api.routes.trials import MAX_NUMBER
from tuner_service.api.service import ServiceDep
from tuner_service.definition.refit import refit_of
from tuner_service.errors import ConflictError
from tuner_service.lifecycle.submit import submit
from tuner_service.reads import studies, trials
from tuner_service.reads.stored import stored_definition
from tuner_service.reads.views import StudyView

logger = logging.getLogger(__name__)

router = APIRouter(prefix="/v1/studies", tags=["studies"])


@router.post(
    "/{study}/refit",
    status_code=202,
    response_model=StudyView,
    responses=errors(404, 409, 422),
    summary="Train the best parameters on all rows",
)
def refit_study(
    service: ServiceDep,
    caller: CallerDep,
    study: Ref,
    trial: Annotated[
        int | None, Query(description="Its number; by default the best.", ge=0, le=MAX_NUMBER)
    ] = None,
) -> Response:
    """Submit a study of one trial: these parameters, the epochs that were best, no validation part.

    It is named after the study, with `-refit`; its model is fetched as any other.
    """
    view = studies.get_study(service.db, study)
    if trial is None:
        best = trials.best_trials(service.db, study)
        if len(best) != 1:
            has = "no trial with a result" if not best else f"{len(best)} trials that are best"
            raise ConflictError(f"study {view.name!r} has {has}; say which trial to refit")
        trial = best[0].number
    chosen = trials.get_trial(service.db, study, trial)
    searched = stored_definition(view.definition)
    data = refit_of(searched, chosen.parameters or {}, chosen.record or {})
    definition = checked(service, data)
    with version_kept(service, definition.dataset):
        made, _ = submit(service.db, definition, settings=service.settings, owner=caller.owner)
    service.reconciler.ring_soon(made.device)
    logger.info("study %s refits %s", made.id, view.id, extra={"study": made.id})
    return study_answer(made, 202, {"Location": f"/v1/studies/{made.id}"})
