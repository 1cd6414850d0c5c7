"""How views leave: as JSON, with ETag and 304 where a revision tells versions apart."""

import re
from collections.abc import Container
from dataclasses import dataclass

from fastapi import Request
from pydantic import BaseModel, TypeAdapter
from starlette.responses import Response

from tuner_service.reads.states import FINAL
from tuner_service.reads.views import StudyView, TrialView

_TRIALS = TypeAdapter(list[TrialView])
_TAG = re.compile(r'(?:W/)?"([^"]*)"')


@dataclass(frozen=True, slots=True)
class StudyAnswer:
    """One study as it leaves: read and serialised once, sent to everyone who asks for it."""

    id: str
    revision: int
    has_ended: bool
    body: bytes

    @classmethod
    def of(cls, view: StudyView) -> "StudyAnswer":
        """Serialise a study."""
        body = view.model_dump_json().encode()
        return cls(view.id, view.revision, view.state in FINAL, body)

    def response(self, known: Container[str]) -> Response:
        """Return the study, or that the caller knows this revision."""
        headers = {"ETag": f'"{self.revision}"'}
        if str(self.revision) in known:
            return Response(status_code=304, headers=headers)
        return Response(self.body, headers=headers, media_type="application/json")


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
