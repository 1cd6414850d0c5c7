"""The API against its own OpenAPI document, with generated requests, good and bad.

Every answer must be one that the document has, of the media type and shape it says, and none may
be a 5xx. `TUNER_CONTRACT_EXAMPLES` is the number of requests per operation.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import BaseSchema, GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

from tests.integration.api.conftest import served
from tests.integration.api.test_api import definition, run_trials
from tuner_service.settings import Settings
from tuner_service.storage import migrate

EXAMPLES = int(os.environ.get("TUNER_CONTRACT_EXAMPLES", "10"))
PUBLISHED = json.loads((Path(__file__).parents[2] / "unit" / "api" / "openapi.json").read_text())
RUNS = [
    pytest.param(method.upper(), path, mode, id=f"{method} {path} {mode.name.lower()}")
    for path, operations in PUBLISHED["paths"].items()
    if not path.endswith("/events")  # a stream ends after minutes: test_charts.py reads them
    for method, operation in operations.items()
    for mode in GenerationMode
    # What takes nothing cannot be asked wrongly.
    if mode is GenerationMode.POSITIVE or operation.keys() & {"parameters", "requestBody"}
]
# A schema cannot say that a cursor must be one we gave, or low < high: 422 is right for those.
UNSAYABLE = [positive_data_acceptance]
CAREFUL = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def document(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[BaseSchema]:
    """The document of a running service that has studies to find."""
    data_dir = tmp_path_factory.mktemp("contract")
    url = f"sqlite:///{data_dir / 'tuner.db'}"
    if request.param == "postgresql":
        server = request.getfixturevalue("postgres")
        url = server.url(server.create_database())
    migrate(url)
    configured = Settings(
        data_dir=data_dir, database_url=url, host="127.0.0.1", slots_cap=500, grid_cap=500
    )
    with served(configured) as address:
        _fill(address, configured)
        yield schemathesis.openapi.from_url(f"{address}/openapi.json")


def _fill(address: str, configured: Settings) -> None:
    for name in ("finished", "queued", "paused"):
        httpx2.post(f"{address}/v1/studies", json=definition(name=name)).raise_for_status()
        if name == "finished":
            run_trials(configured, [0.5, 0.9, 0.7])
    httpx2.post(f"{address}/v1/studies/paused/pause").raise_for_status()


@pytest.mark.parametrize(("method", "path", "mode"), RUNS)
def test_every_answer_is_documented(
    document: BaseSchema, method: str, path: str, mode: GenerationMode
) -> None:
    operation = document[path][method]

    @CAREFUL
    @given(case=operation.as_strategy(generation_mode=mode))
    def check(case: schemathesis.Case) -> None:
        without_waiting(case)
        case.call_and_validate(timeout=30, excluded_checks=UNSAYABLE)

    check()


def test_sequences_of_requests_keep_to_the_document(document: BaseSchema) -> None:
    class Machine(document.as_state_machine()):  # type: ignore[misc]  # made from the document
        def validate_response(self, response: Any, case: schemathesis.Case, **_: Any) -> None:
            case.validate_response(response, excluded_checks=UNSAYABLE)

        def before_call(self, case: schemathesis.Case) -> None:
            without_waiting(case)

    Machine.run(settings=settings(CAREFUL, max_examples=EXAMPLES, stateful_step_count=10))


def without_waiting(case: schemathesis.Case) -> None:
    """Take `wait` out: the waiting itself is tested elsewhere."""
    if "wait" in (case.query or {}):
        case.query["wait"] = 0
