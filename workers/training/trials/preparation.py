"""From a trial as it is defined to what it is trained from: data, network, metrics, group."""

from dataclasses import dataclass

import torch

from tuner_service.definition.trial_spec import TrialSpec
from workers.training import user_modules
from workers.training.data import DatasetCache, PreparedData
from workers.training.nets.losses import LOSSES
from workers.training.nets.metrics import MetricSet, metric_set
from workers.training.steps.groups import GroupNetwork, GroupSpec, dtype_of, group_of


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """What a trial is trained from; `spec` is pinned to the present source of its modules."""

    spec: TrialSpec
    data: PreparedData
    metrics: MetricSet
    group: GroupSpec


def prepare_trial(
    spec: TrialSpec,
    *,
    cache: DatasetCache,
    user_module: user_modules.UserModules,
    device: torch.device,
    group_network: GroupNetwork,
) -> Prepared:
    """Read the data, try the network if it was brought, and find the trial's group.

    What the code of a module raises comes through.

    Raises:
        DataError: The data cannot be read or does not fit.
        LookupError: This worker has no such module.
        TypeError: The module lacks a part, or returns what cannot be trained.
    """
    kind = LOSSES[spec.loss].targets
    spec = user_module.versioned_data(spec)
    data = cache.get(spec.dataset, targets=kind, dtype=dtype_of(spec.precision))
    spec = user_module.versioned(spec, data)
    own = user_modules.metrics_of(spec.network)
    return Prepared(
        spec=spec,
        data=data,
        metrics=metric_set(spec.metrics, numbers=kind == "numbers", own=own),
        group=group_of(spec, data, device=device, group_network=group_network),
    )
