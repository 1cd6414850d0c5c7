"""A study's trials for the sampler's mirror: those that are new, and those that were unfinished."""

import json
from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import Any

from optuna.distributions import BaseDistribution, json_to_distribution
from sqlalchemy import Connection, select

from tuner_service.search.history import HistoryTrial
from tuner_service.storage import Database
from tuner_service.storage.optuna_rows import (
    CONSTRAINT_PREFIX,
    INTERMEDIATE,
    PARAMS,
    SYSTEM_ATTRS,
    TRIALS,
    VALUES,
    read_intermediate,
    read_value,
)
from tuner_service.storage.schema import studies, trials

IDS_PER_QUERY = 500  # SQLite and PostgreSQL bound the number of a statement's parameters


def load_history(
    db: Database, study_id: int, *, after_trial_id: int, unfinished: Collection[int]
) -> list[HistoryTrial]:
    """Return the study's trials with a higher id, and those among `unfinished`, by id.

    Trials made by plain Optuna are among them, with `own=False`.
    """
    with db.read() as connection:
        optuna_id = connection.execute(
            select(studies.c.optuna_study_id).where(studies.c.id == study_id)
        ).scalar()
        if optuna_id is None:  # deleted
            return []
        heads = connection.execute(
            select(TRIALS.c.trial_id, TRIALS.c.number, TRIALS.c.state)
            .where(TRIALS.c.study_id == optuna_id, TRIALS.c.trial_id > after_trial_id)
            .order_by(TRIALS.c.trial_id)
        ).all()
        heads = [*_among(connection, sorted(unfinished)), *heads]
        found: list[HistoryTrial] = []
        for first in range(0, len(heads), IDS_PER_QUERY):
            found += _trials(connection, heads[first : first + IDS_PER_QUERY])
        return found


def _among(connection: Connection, ids: Sequence[int]) -> list[Any]:
    rows: list[Any] = []
    for first in range(0, len(ids), IDS_PER_QUERY):
        rows += connection.execute(
            select(TRIALS.c.trial_id, TRIALS.c.number, TRIALS.c.state)
            .where(TRIALS.c.trial_id.in_(ids[first : first + IDS_PER_QUERY]))
            .order_by(TRIALS.c.trial_id)
        ).all()
    return rows


def _trials(connection: Connection, heads: Sequence[Any]) -> list[HistoryTrial]:
    ids = [head.trial_id for head in heads]
    params, distributions = _params(connection, ids)
    values, steps = _values(connection, ids), _intermediate(connection, ids)
    constraints = _constraints(connection, ids)
    own = set(
        connection.execute(select(trials.c.trial_id).where(trials.c.trial_id.in_(ids))).scalars()
    )
    return [
        HistoryTrial(
            trial_id=head.trial_id,
            number=head.number,
            state=head.state.name,
            params=params[head.trial_id],
            distributions=distributions[head.trial_id],
            values=values.get(head.trial_id),
            intermediate_values=steps[head.trial_id],
            constraints=constraints[head.trial_id],
            own=head.trial_id in own,
        )
        for head in heads
    ]


def _params(
    connection: Connection, ids: Sequence[int]
) -> tuple[dict[int, dict[str, Any]], dict[int, dict[str, BaseDistribution]]]:
    params: dict[int, dict[str, Any]] = defaultdict(dict)
    distributions: dict[int, dict[str, BaseDistribution]] = defaultdict(dict)
    known: dict[str, BaseDistribution] = {}
    rows = connection.execute(select(PARAMS).where(PARAMS.c.trial_id.in_(ids))).mappings()
    for row in rows:
        text, trial_id, name = row["distribution_json"], row["trial_id"], row["param_name"]
        if text not in known:
            known[text] = json_to_distribution(text)
        distributions[trial_id][name] = known[text]
        params[trial_id][name] = known[text].to_external_repr(row["param_value"])
    return params, distributions


def _values(connection: Connection, ids: Sequence[int]) -> dict[int, list[float]]:
    found: dict[int, list[float]] = defaultdict(list)
    rows = connection.execute(
        select(VALUES).where(VALUES.c.trial_id.in_(ids)).order_by(VALUES.c.objective)
    ).mappings()
    for row in rows:
        found[row["trial_id"]].append(read_value(row["value"], row["value_type"]))
    return dict(found)


def _intermediate(connection: Connection, ids: Sequence[int]) -> dict[int, dict[int, float]]:
    found: dict[int, dict[int, float]] = defaultdict(dict)
    rows = connection.execute(
        select(INTERMEDIATE).where(INTERMEDIATE.c.trial_id.in_(ids)).order_by(INTERMEDIATE.c.step)
    ).mappings()
    for row in rows:
        value = read_intermediate(row["intermediate_value"], row["intermediate_value_type"])
        found[row["trial_id"]][row["step"]] = value
    return found


def _constraints(connection: Connection, ids: Sequence[int]) -> dict[int, dict[str, float]]:
    found: dict[int, dict[str, float]] = defaultdict(dict)
    rows = connection.execute(
        select(SYSTEM_ATTRS).where(
            SYSTEM_ATTRS.c.trial_id.in_(ids), SYSTEM_ATTRS.c.key.startswith(CONSTRAINT_PREFIX)
        )
    ).mappings()
    for row in rows:
        name = row["key"].removeprefix(CONSTRAINT_PREFIX)
        found[row["trial_id"]][name] = float(json.loads(row["value_json"]))
    return found
