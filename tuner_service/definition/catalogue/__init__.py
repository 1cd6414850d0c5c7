"""What there is to use, as plain data: networks, optimizers, schedules, losses, metrics, data.

The service checks definitions against this without importing torch; `tests/unit/definition`
holds it against the implementations. Adding a built-in: `docs/extend.md`.

Option names share one flat name space per study: a name means the same in `parameters`, in
`training` and in a trial's specification, whatever optimizer or schedule it belongs to.
"""

from collections.abc import Mapping
from typing import Any

from tuner_service.definition.catalogue.datasets import (
    BROUGHT_OPTIONS,
    DATASETS,
    UPLOAD_FORMATS,
    UPLOAD_NAME,
)
from tuner_service.definition.catalogue.entries import (
    Activation,
    Dataset,
    Entry,
    Inputs,
    Loss,
    Metric,
    Network,
    Optimizer,
    PrunerEntry,
    SamplerEntry,
    Schedule,
    Task,
)
from tuner_service.definition.catalogue.methods import (
    BROUGHT_PRUNER,
    BROUGHT_SAMPLER,
    PRUNERS,
    SAMPLERS,
)
from tuner_service.definition.catalogue.metrics import METRICS, RECORDS, TOP
from tuner_service.definition.catalogue.networks import ACTIVATIONS, NETWORKS
from tuner_service.definition.catalogue.optimizers import OPTIMIZERS
from tuner_service.definition.catalogue.schedules import SCHEDULES
from tuner_service.definition.catalogue.training import LOSSES, TRAINING
from tuner_service.definition.faults import did_you_mean
from tuner_service.errors import NotFoundError

CATALOGUE: Mapping[str, Mapping[str, Entry]] = {
    "activations": ACTIVATIONS,
    "datasets": DATASETS,
    "losses": LOSSES,
    "metrics": METRICS,
    "networks": NETWORKS,
    "optimizers": OPTIMIZERS,
    "pruners": PRUNERS,
    "samplers": SAMPLERS,
    "schedules": SCHEDULES,
    "training": TRAINING,
}


def catalogue_view(kind: str) -> list[dict[str, Any]]:
    """Return every entry of a kind (`networks`, `optimizers`, …) as JSON-ready data.

    Raises:
        NotFoundError: There is no such kind.
    """
    if kind not in CATALOGUE:
        raise NotFoundError(f"there is no catalogue of {kind!r}{did_you_mean(kind, CATALOGUE)}")
    return [entry.model_dump(mode="json") for entry in CATALOGUE[kind].values()]


__all__ = [
    "ACTIVATIONS",
    "BROUGHT_OPTIONS",
    "BROUGHT_PRUNER",
    "BROUGHT_SAMPLER",
    "CATALOGUE",
    "DATASETS",
    "LOSSES",
    "METRICS",
    "NETWORKS",
    "OPTIMIZERS",
    "PRUNERS",
    "RECORDS",
    "SAMPLERS",
    "SCHEDULES",
    "TOP",
    "TRAINING",
    "UPLOAD_FORMATS",
    "UPLOAD_NAME",
    "Activation",
    "Dataset",
    "Entry",
    "Inputs",
    "Loss",
    "Metric",
    "Network",
    "Optimizer",
    "PrunerEntry",
    "SamplerEntry",
    "Schedule",
    "Task",
    "catalogue_view",
]
