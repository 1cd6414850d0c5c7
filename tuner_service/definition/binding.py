"""What each parameter's name means: an option of the network, optimizer, schedule, loop or data.

Names share one flat space. An option of an optimizer or a schedule applies only with those kinds
that know it; all other options apply in every trial.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from tuner_service.definition.catalogue import (
    DATASETS,
    NETWORKS,
    OPTIMIZERS,
    SCHEDULES,
    TRAINING,
    Entry,
)
from tuner_service.definition.options import Option

Group = Literal["network", "optimizer", "schedule", "training", "dataset"]

DEFAULT_KIND: Mapping[str, str] = {"optimizer": "adam", "schedule": "constant"}
KINDS: Mapping[str, Mapping[str, Entry]] = {"optimizer": OPTIMIZERS, "schedule": SCHEDULES}

_SELECTORS = {
    "optimizer": Option(
        name="optimizer",
        type="string",
        default=DEFAULT_KIND["optimizer"],
        choices=tuple(OPTIMIZERS),
        fusible=True,
        description="What updates the weights.",
    ),
    "schedule": Option(
        name="schedule",
        type="string",
        default=DEFAULT_KIND["schedule"],
        choices=tuple(SCHEDULES),
        fusible=True,
        description="How the learning rate moves.",
    ),
}


@dataclass(frozen=True, slots=True)
class Binding:
    """What a name means.

    Attributes:
        options: The option by the kind of optimizer or schedule that knows it; under "" when it
            applies whatever they are.
    """

    group: Group
    options: Mapping[str, Option]

    @property
    def option(self) -> Option:
        """The option; of several kinds' the first, which differ in their defaults only."""
        return next(iter(self.options.values()))

    @property
    def kinds(self) -> tuple[str, ...]:
        """The optimizers or schedules that know it; empty when it does not depend on them."""
        return tuple(kind for kind in self.options if kind)


def bind(name: str, *, network: Entry | None, dataset: Entry | None) -> Binding | None:
    """Return what a name means in a study with this network and data, or None for nothing."""
    if name in _SELECTORS:
        return Binding("optimizer" if name == "optimizer" else "schedule", {"": _SELECTORS[name]})
    for group, entry in (("network", network), ("training", TRAINING["training"])):
        option = entry.option(name) if entry else None
        if option is not None:
            return Binding("network" if group == "network" else "training", {"": option})
    for group, kinds in KINDS.items():
        options = _by_kind(name, kinds)
        if options:
            return Binding("optimizer" if group == "optimizer" else "schedule", options)
    option = dataset.option(name) if dataset else None
    return Binding("dataset", {"": option}) if option else None


def _by_kind(name: str, kinds: Mapping[str, Entry]) -> dict[str, Option]:
    return {
        kind: option for kind, entry in kinds.items() if (option := entry.option(name)) is not None
    }


def known_names(*, network: Entry | None, dataset: Entry | None) -> list[str]:
    """Return every name that may stand in `parameters` of such a study."""
    entries: list[Entry] = [TRAINING["training"], *OPTIMIZERS.values(), *SCHEDULES.values()]
    entries += [entry for entry in (network, dataset) if entry is not None]
    return list(dict.fromkeys((*_SELECTORS, *_searchable(entries))))


def _searchable(entries: Iterable[Entry]) -> Iterable[str]:
    return (option.name for entry in entries for option in entry.options if option.searchable)


def owners(name: str) -> list[str]:
    """Return which networks, data sets, optimizers and schedules know an option of that name."""
    kinds = {**NETWORKS, **DATASETS, **OPTIMIZERS, **SCHEDULES}
    return [kind for kind, entry in kinds.items() if entry.option(name) is not None]
