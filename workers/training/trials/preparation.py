"""From a trial as it is defined to what it is trained from: data, network, metrics, group."""

import traceback
from dataclasses import dataclass
from typing import Any

import torch

from tuner_service.definition.catalogue import DATASETS
from tuner_service.definition.trial_spec import TrialSpec
from tuner_service.errors import DataError
from workers.training import user_modules
from workers.training.data import DatasetCache, PreparedData
from workers.training.nets.losses import LOSSES, TargetKind
from workers.training.nets.metrics import MetricSet, check_defined, metric_set
from workers.training.steps.groups import GroupNetwork, GroupSpec, dtype_of, group_of
from workers.training.trials.failures import is_out_of_memory


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
    # By their sources' hashes from here on: a module that is edited meanwhile is another group's.
    spec = _as_the_module_wants(user_module.versioned_data(spec), user_module)
    data = _read(spec, cache, kind)
    keys = (*(key for key, _ in spec.objective), spec.watched[0])
    judged = [key.removeprefix("val_") for key in keys if key.startswith("val_")]
    if data.validation is not None:
        check_defined(judged, data.validation.targets, classes=data.classes)
    if spec.threshold is not None and len(data.classes or ()) != 2:
        has = f"{len(data.classes)} classes" if data.classes else "numbers"
        raise DataError(f"threshold is for two classes, but the data has {has}; leave it out")
    spec, data = user_module.head_alone(user_module.versioned(spec, data), data)
    user = user_modules.metrics_of(spec.network)
    return Prepared(
        spec=spec,
        data=data,
        metrics=metric_set(
            spec.metrics,
            numbers=kind == "numbers",
            user=user,
            classes=len(data.classes) if data.classes else None,
        ),
        group=group_of(spec, data, device=device, group_network=group_network),
    )


def _as_the_module_wants(spec: TrialSpec, user_module: user_modules.UserModules) -> TrialSpec:
    """Return the trial with its data prepared for the network's module.

    A loss of its own wants targets in the file's units, unless the study scales them; a network
    with embeddings wants whole numbers as they are.
    """
    network, options = str(spec.network["type"]), spec.dataset.options
    changes: dict[str, Any] = {"embedded": user_module.embeds(network)}
    if options.get("target_scale", "none") is None:
        scale = "none" if user_module.brings_loss(network) else "standard"
        changes["options"] = {**options, "target_scale": scale}
    return spec.model_copy(update={"dataset": spec.dataset.model_copy(update=changes)})


def _read(spec: TrialSpec, cache: DatasetCache, kind: TargetKind) -> PreparedData:
    try:
        return cache.get(spec.dataset, targets=kind, dtype=dtype_of(spec.precision))
    except Exception as error:
        is_user_data = spec.dataset.name not in DATASETS
        if is_user_data or isinstance(error, DataError) or is_out_of_memory(error):
            raise
        # Whatever a file makes a reader do: no other trial would fare better.
        traceback.print_exception(error)  # to the trial's log
        name = type(error).__name__
        raise DataError(f"{spec.dataset.name} data cannot be read: {name}: {error}") from error
