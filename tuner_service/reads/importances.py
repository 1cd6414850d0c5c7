"""How much each parameter matters, by PED-ANOVA as Optuna has it.

Source: Watanabe et al., PED-ANOVA: Efficiently Quantifying Hyperparameter Importance in Arbitrary
Subspaces (2023).
"""

import logging
import warnings
from collections.abc import Mapping
from typing import Final

import optuna
from optuna.distributions import BaseDistribution
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.trial import FrozenTrial, TrialState, create_trial

from tuner_service.definition import space_of
from tuner_service.reads.charts import Importances
from tuner_service.reads.columns import TrialColumns
from tuner_service.search.distributions import distributions

# It would tell of every study that is made for an evaluation.
logging.getLogger("optuna.storages._in_memory").setLevel(logging.WARNING)

FEWEST: Final = 8
MOST: Final = 2000  # trials that are looked at: of more, some at even distances


def importances(columns: TrialColumns) -> Importances:
    """Return the importances for the (first) objective; none while too few trials are complete."""
    complete = [p for p in columns.with_state("COMPLETE") if columns.value[p] is not None]
    picked = complete[:: -(-len(complete) // MOST)] if complete else []
    found = _evaluate(columns, picked) if len(picked) >= FEWEST else {}
    total = sum(found.values())
    return Importances(
        study=columns.study,
        revision=columns.revision,
        metric=columns.definition.objective[0].metric,
        trials=len(picked),
        importances={name: value / total for name, value in found.items()} if total > 0 else {},
    )


def _evaluate(columns: TrialColumns, places: list[int]) -> dict[str, float]:
    domains = distributions(space_of(columns.definition))
    study = optuna.create_study(direction=columns.definition.objective[0].direction)
    study.add_trials([_trial(columns, place, domains) for place in places])
    with warnings.catch_warnings(action="ignore"):
        return PedAnovaImportanceEvaluator().evaluate(study)


def _trial(
    columns: TrialColumns, place: int, domains: Mapping[str, BaseDistribution]
) -> FrozenTrial:
    params = {
        name: value
        for name, column in columns.parameters.items()
        if (value := column[place]) is not None
    }
    return create_trial(
        state=TrialState.COMPLETE,
        value=columns.value[place],
        params=params,
        distributions={name: domains[name] for name in params},
    )
