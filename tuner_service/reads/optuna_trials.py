"""What Optuna's tables hold of trials: their parameters and their values."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from optuna.distributions import BaseDistribution, json_to_distribution
from sqlalchemy import Connection, select

from tuner_service.storage.optuna_rows import PARAMS, VALUES, read_value


def read_parameters(
    connection: Connection, ids: Sequence[int]
) -> tuple[dict[int, dict[str, Any]], dict[int, dict[str, BaseDistribution]]]:
    """Return the parameters of trials and their distributions, in the order they were set in."""
    params: dict[int, dict[str, Any]] = defaultdict(dict)
    distributions: dict[int, dict[str, BaseDistribution]] = defaultdict(dict)
    known: dict[str, BaseDistribution] = {}
    rows = connection.execute(
        select(
            PARAMS.c.trial_id, PARAMS.c.param_name, PARAMS.c.param_value, PARAMS.c.distribution_json
        )
        .where(PARAMS.c.trial_id.in_(ids))
        .order_by(PARAMS.c.param_id)
    )
    for trial_id, name, value, text in rows:
        if text not in known:  # parsing one costs more than all the rest of a row
            known[text] = json_to_distribution(text)
        distributions[trial_id][name] = known[text]
        params[trial_id][name] = known[text].to_external_repr(value)
    return params, distributions


def read_values(connection: Connection, ids: Sequence[int]) -> dict[int, list[float]]:
    """Return the values of trials that have some, by objective."""
    found: dict[int, list[float]] = defaultdict(list)
    rows = connection.execute(
        select(VALUES.c.trial_id, VALUES.c.value, VALUES.c.value_type)
        .where(VALUES.c.trial_id.in_(ids))
        .order_by(VALUES.c.trial_id, VALUES.c.objective)
    )
    for trial_id, value, kind in rows:
        found[trial_id].append(read_value(value, kind))
    return dict(found)
