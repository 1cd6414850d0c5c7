"""A study's trials for the sampler's mirror: those that are new, and those that were unfinished."""

import json
from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import Connection, select

from tuner_service.reads.optuna_trials import read_parameters, read_values
from tuner_service.search.history import HistoryTrial
from tuner_service.storage import Database
from tuner_service.storage.optuna_rows import (
    CONSTRAINT_PREFIX,
    INTERMEDIATE,
    SYSTEM_ATTRS,
    TRIALS,
    read_intermediate,
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
    params, distributions = read_parameters(connection, ids)
    values, steps = read_values(connection, ids), _intermediate(connection, ids)
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
