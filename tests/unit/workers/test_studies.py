"""What a worker answers of a study whose first trials failed."""

from typing import Any

import pytest

from tuner_service.lifecycle.messages import StudyWork
from workers.supervisor import studies
from workers.supervisor.studies import ActiveStudy

DEFINITION: dict[str, Any] = {
    "name": "one",
    "dataset": {"name": "iris"},
    "network": {"type": "mlp"},
    "objective": {"metric": "val_accuracy"},
    "parameters": {"learning_rate": {"type": "float", "low": 0.001, "high": 0.1}},
    "budget": {"trials": 3},
}


@pytest.fixture
def study() -> ActiveStudy:
    return ActiveStudy.open(StudyWork(1, "abc", "one", 1, DEFINITION, None))


def test_points_are_tried_while_nothing_is_known_of_the_study(study: ActiveStudy) -> None:
    study.search.started(1, {})
    study.search.finished(1, "FAIL", None)
    study.search.started(2, {})
    assert len(study.probe_specs(5)) == 5
    study.search.report(2, 1, 0.5)
    assert study.probe_specs(5) == []


def test_a_result_needs_no_probe(study: ActiveStudy) -> None:
    study.search.started(1, {})
    study.search.finished(1, "COMPLETE", [0.5])
    assert study.probe_specs(5) == []


def test_points_that_cannot_be_had_leave_the_failures_as_they_are(
    study: ActiveStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spread_points(*_: Any) -> Any:
        raise ValueError("no points")

    monkeypatch.setattr(studies, "spread_points", spread_points)
    assert study.probe_specs(5) == []
