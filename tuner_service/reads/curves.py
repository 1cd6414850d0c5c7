"""Curves: what trials reported epoch by epoch, and what the pruner asks of them."""

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import Connection, func, select

from tuner_service.definition import most_epochs
from tuner_service.reads.charts import Curve, Curves, Threshold
from tuner_service.reads.columns import TrialColumns
from tuner_service.search.pruners.registry import sorted_percentile
from tuner_service.storage import Database
from tuner_service.storage.optuna_rows import INTERMEDIATE, read_intermediate
from tuner_service.storage.schema import epochs

MOST_CURVES: Final = 200
MOST_POINTS: Final = 400  # of a curve: a screen shows no more
MOST_COMPARED: Final = 2000  # finished trials that a threshold is taken from
IDS_PER_QUERY: Final = 500
_BY_PERCENTILE: Final = ("median", "percentile")
Points = dict[int, list[tuple[int, float | None]]]


def read_curves(
    db: Database,
    columns: TrialColumns,
    *,
    metric: str | None = None,
    numbers: Sequence[int] = (),
    since: int | None = None,
) -> Curves:
    """Return curves of a metric, by default of the best, the running and the newest trials.

    Args:
        metric: By default the (first) objective.
        since: Only of trials that have changed after this revision.
    """
    objective = columns.definition.objective[0].metric
    places = _picked(columns, numbers)
    if since is not None:
        places = [place for place in places if columns.changed[place] > since]
    by_id = {columns.trial_id[place]: place for place in places}
    with db.read() as connection:
        known = _metrics(connection, columns)
        of_objective = metric in (None, objective)
        points = (
            _intermediate(connection, list(by_id))
            if of_objective
            else _recorded(connection, list(by_id), metric or "")
        )
        threshold = _threshold(connection, columns) if of_objective else None
    return Curves(
        study=columns.study,
        revision=columns.revision,
        metric=metric or objective,
        metrics=list(dict.fromkeys([objective, *known])),
        curves=[_curve(columns, by_id[i], points[i]) for i in by_id if points.get(i)],
        threshold=threshold,
    )


def _picked(columns: TrialColumns, numbers: Sequence[int]) -> list[int]:
    if numbers:
        wanted = set(numbers)
        return [place for place, number in enumerate(columns.number) if number in wanted]
    first = [*columns.best(20), *columns.unfinished.values()]
    newest = range(len(columns) - 1, -1, -1)
    return sorted(list(dict.fromkeys([*first, *newest[:MOST_CURVES]]))[:MOST_CURVES])


def _curve(columns: TrialColumns, place: int, points: Sequence[tuple[int, float | None]]) -> Curve:
    stride = -(-len(points) // MOST_POINTS)
    kept = [*points[::stride], *([points[-1]] if (len(points) - 1) % stride else [])]
    return Curve(
        number=columns.number[place],
        state=columns.state[place],
        steps=[step for step, _ in kept],
        values=[value for _, value in kept],
    )


def _intermediate(connection: Connection, ids: Sequence[int]) -> Points:
    found: Points = defaultdict(list)
    for first in range(0, len(ids), IDS_PER_QUERY):
        rows = connection.execute(
            select(
                INTERMEDIATE.c.trial_id,
                INTERMEDIATE.c.step,
                INTERMEDIATE.c.intermediate_value,
                INTERMEDIATE.c.intermediate_value_type,
            )
            .where(INTERMEDIATE.c.trial_id.in_(ids[first : first + IDS_PER_QUERY]))
            .order_by(INTERMEDIATE.c.trial_id, INTERMEDIATE.c.step)
        )
        for trial_id, step, value, kind in rows:
            found[trial_id].append((step, _finite(read_intermediate(value, kind))))
    return found


def _recorded(connection: Connection, ids: Sequence[int], metric: str) -> Points:
    found: Points = defaultdict(list)
    for first in range(0, len(ids), IDS_PER_QUERY):
        rows = connection.execute(
            select(epochs.c.trial_id, epochs.c.step, epochs.c.record)
            .where(epochs.c.trial_id.in_(ids[first : first + IDS_PER_QUERY]))
            .order_by(epochs.c.trial_id, epochs.c.step)
        )
        for trial_id, step, record in rows:
            if metric in record:
                found[trial_id].append((step, _finite(record[metric])))
    return found


def _finite(value: Any) -> float | None:
    good = isinstance(value, (int, float)) and math.isfinite(value)
    return float(value) if good else None


def _metrics(connection: Connection, columns: TrialColumns) -> list[str]:
    """Return what the newest trial that reported anything has said of its last epoch."""
    newest = connection.execute(
        select(func.max(epochs.c.trial_id)).where(epochs.c.trial_id.in_(columns.trial_id[-200:]))
    ).scalar()
    record = connection.execute(
        select(epochs.c.record)
        .where(epochs.c.trial_id == newest)
        .order_by(epochs.c.step.desc())
        .limit(1)
    ).scalar()
    numbers = (name for name, value in (record or {}).items() if isinstance(value, (int, float)))
    return [name for name in numbers if name not in ("step", "epoch")]


def _threshold(connection: Connection, columns: TrialColumns) -> Threshold | None:
    """Return the bound of pruners that have one value per step; None of the others."""
    pruner = columns.definition.pruner
    settings = pruner.settings
    if pruner.type == "threshold":
        return _fixed(columns, settings)
    if pruner.type not in _BY_PERCENTILE:
        return None
    complete = columns.with_state("COMPLETE")
    if len(complete) < max(settings.get("startup_trials", 5), 1):
        return None
    ids = [columns.trial_id[place] for place in complete[-MOST_COMPARED:]]
    by_step: dict[int, list[float]] = defaultdict(list)
    for points in _intermediate(connection, ids).values():
        for step, value in points:
            if value is not None:
                by_step[step].append(value)
    percentile = settings.get("percentile", 50.0)
    if columns.maximizes:
        percentile = 100 - percentile
    steps = [
        step
        for step in sorted(by_step)
        if step >= settings.get("warmup_steps", 0)
        and len(by_step[step]) >= settings.get("min_trials", 1)
    ]
    bounds = [sorted_percentile(sorted(by_step[step]), percentile) for step in steps]
    return Threshold(pruner=pruner.type, trials=len(ids), steps=steps, values=list(bounds))


def _fixed(columns: TrialColumns, settings: dict[str, Any]) -> Threshold | None:
    bound = settings.get("lower" if columns.maximizes else "upper")
    if bound is None:
        return None
    first = max(settings.get("warmup_steps", 0), 1)
    last = max(most_epochs(columns.definition), first)
    return Threshold(pruner="threshold", trials=0, steps=[first, last], values=[bound, bound])
