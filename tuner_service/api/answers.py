"""How views leave: as JSON, with ETag and 304 where a revision tells versions apart."""

import re

from fastapi import Request
from pydantic import BaseModel, TypeAdapter
from starlette.responses import Response

from tuner_service.lifecycle.views import StudyView, TrialView

_TRIALS = TypeAdapter(list[TrialView])
_TAG = re.compile(r'(?:W/)?"([^"]*)"')


def json_answer(
    view: BaseModel | list[TrialView], status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    """Return views as JSON; numbers that JSON does not have become null."""
    if isinstance(view, list):
        return Response(_TRIALS.dump_json(view), status, headers, media_type="application/json")
    return Response(view.model_dump_json(), status, headers, media_type="application/json")


def study_answer(
    study: StudyView, status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    """Return a study with its revision as the ETag."""
    return json_answer(study, status, {"ETag": f'"{study.revision}"', **(headers or {})})


def known_revisions(request: Request) -> set[str]:
    """Return the revisions in `If-None-Match`: what the caller has already."""
    return set(_TAG.findall(request.headers.get("if-none-match", "")))
