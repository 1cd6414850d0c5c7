"""What charts and statistics answer with, beside `views`."""

from typing import Any

from pydantic import Field

from tuner_service.reads.views import View


class ColumnsView(View):
    """Trials by column; the i-th entry of each is of the same trial.

    Attributes:
        total: How many trials the study has; fewer are listed where there are very many.
        values: A column for each objective.
        seconds: From start to end; null while one runs.
    """

    study: str
    revision: int
    total: int
    metrics: list[str]
    directions: list[str]
    number: list[int]
    state: list[str]
    values: list[list[float | None]]
    seconds: list[float | None]
    failure: list[str | None]
    parameters: dict[str, list[Any]]


class Curve(View):
    """What one trial reported of a metric."""

    number: int
    state: str
    steps: list[int]
    values: list[float | None]


class Threshold(View):
    """What a trial must reach at each step not to be pruned, as things are now.

    Attributes:
        trials: How many finished trials it is taken from: the newest, where there are very many.
    """

    pruner: str
    trials: int
    steps: list[int]
    values: list[float | None]


class Curves(View):
    """Curves of a metric, the best trial's among them.

    Attributes:
        revision: Pass it on as `since` to get only what has changed after it.
        metrics: What trials of this study report.
        threshold: Of the objective only, and of pruners that compare with one value per step.
    """

    study: str
    revision: int
    metric: str
    metrics: list[str]
    curves: list[Curve]
    threshold: Threshold | None


class RegionSide(View):
    """One condition of a region: an interval of numbers, or some choices (null: not there)."""

    parameter: str
    low: float | None = None
    high: float | None = None
    choices: list[Any] | None = None


class FailureGroup(View):
    """Failed trials that say the same.

    Attributes:
        numbers: The first of them.
        region: What they have in common, as far as it tells them from the others.
        inside: How many of the trials in the region failed so.
        region_trials: How many trials are in the region.
    """

    kind: str
    message: str
    count: int
    numbers: list[int]
    region: list[RegionSide]
    inside: int
    region_trials: int


class Failures(View):
    """Failures by message, the most frequent first."""

    study: str
    revision: int
    trials: int
    failed: int
    groups: list[FailureGroup]


class Importances(View):
    """How much each parameter matters, adding up to 1; empty while there are too few trials."""

    study: str
    revision: int
    metric: str
    trials: int
    importances: dict[str, float] = Field(default_factory=dict)
