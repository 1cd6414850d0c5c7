"""What the rules look at: the readable part of a definition and the catalogue's entries for it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tuner_service.definition import catalogue
from tuner_service.definition.binding import DEFAULT_KIND, KINDS, Group
from tuner_service.definition.catalogue import NETWORKS, PRUNERS, SAMPLERS
from tuner_service.definition.faults import Faults, Path
from tuner_service.definition.limits import Limits
from tuner_service.definition.options import Option, option_fault
from tuner_service.definition.sections import (
    Budget,
    Dataset,
    Network,
    Objective,
    Pruner,
    Resources,
    Sampler,
    Training,
)
from tuner_service.definition.space import CategoricalParameter, Parameter, Space, ordered
from tuner_service.definition.uploads import Upload, brought_entry, dataset_entry, is_user_module
from tuner_service.definition.user_modules import ModuleDescription, RefusedModule


@dataclass(frozen=True, slots=True)
class PartialDefinition:
    """A definition as far as it could be read; None stands for what could not."""

    dataset: Dataset | None
    network: Network | None
    sampler: Sampler | None
    pruner: Pruner | None
    training: Training | None
    budget: Budget | None
    resources: Resources | None
    objectives: tuple[Objective | None, ...]
    parameters: Mapping[str, Parameter | None]
    enqueue: Any


@dataclass(frozen=True, slots=True)
class CheckContext:
    """What every rule is given.

    Attributes:
        dataset: The catalogue's entry; None if the name is missing or unknown.
        network: As `dataset`; also of a worker's module.
        networks: Every network there is, by name.
        uploads: Data that was uploaded, by name.
        refused: Modules that workers do not offer, by name.
        loaders: Modules that load data.
        samplers: Every sampler there is, by name; likewise `pruners`.
        metrics: Metrics of the network's module.
        loop: The worker's module that is to train by itself; None for a network.
    """

    draft: PartialDefinition
    faults: Faults
    limits: Limits
    dataset: catalogue.Dataset | None
    network: catalogue.Network | None
    networks: Mapping[str, catalogue.Network]
    uploads: Mapping[str, Upload]
    refused: Mapping[str, RefusedModule]
    loaders: tuple[str, ...] = ()
    samplers: Mapping[str, catalogue.SamplerEntry] = field(default_factory=lambda: SAMPLERS)
    pruners: Mapping[str, catalogue.PrunerEntry] = field(default_factory=lambda: PRUNERS)
    metrics: tuple[str, ...] = ()
    loop: ModuleDescription | None = None

    @classmethod
    def of(
        cls,
        draft: PartialDefinition,
        faults: Faults,
        *,
        limits: Limits,
        modules: Mapping[str, ModuleDescription],
        uploads: Mapping[str, Upload],
        refused: Iterable[RefusedModule],
    ) -> "CheckContext":
        """Look up the entries that the draft names."""
        brought = {name: one.network for name, one in modules.items() if one.is_network}
        networks = {**brought, **NETWORKS}
        loaders = {name: one.data for name, one in modules.items() if one.is_data}
        module = modules.get(draft.network.type) if draft.network else None
        return cls(
            draft=draft,
            faults=faults,
            limits=limits,
            dataset=_dataset(draft.dataset, uploads, loaders),
            loaders=tuple(loaders),
            samplers={**{k: m.sampler for k, m in modules.items() if m.sampler}, **SAMPLERS},
            pruners={**{k: m.pruner for k, m in modules.items() if m.pruner}, **PRUNERS},
            network=networks.get(draft.network.type) if draft.network else None,
            networks=networks,
            uploads=uploads,
            refused={one.name: one for one in refused},
            metrics=module.metrics if module is not None else (),
            loop=module if module is not None and module.is_user_loop else None,
        )

    @property
    def sound_space(self) -> Space | None:
        """The search space; None if it is empty or something was found wrong with it."""
        readable = {k: p for k, p in self.draft.parameters.items() if p is not None}
        if len(readable) < len(self.draft.parameters) or self.faults.below("/parameters"):
            return None
        return ordered(readable) if readable else None

    def possible_kinds(self, group: Group) -> tuple[str, ...]:
        """Return the optimizers or schedules that trials may have; empty when that is unknown."""
        if group in self.draft.parameters:
            parameter = self.draft.parameters[group]
            return self._searched_kinds(group, parameter) if parameter else ()
        training = self.draft.training
        if training is None:
            return ()
        fixed = getattr(training, group) or DEFAULT_KIND[group]
        return (fixed,) if fixed in KINDS[group] else ()

    def _searched_kinds(self, group: Group, parameter: Parameter) -> tuple[str, ...]:
        if not isinstance(parameter, CategoricalParameter):
            return ()
        kinds = tuple(str(choice) for choice in parameter.choices if choice in KINDS[group])
        # Where the parameter does not apply, the default does.
        return (*kinds, DEFAULT_KIND[group]) if parameter.when and kinds else kinds

    def add_unknown(self, path: Path, what: str, name: str, known: Iterable[str]) -> None:
        """Record a name that is not known, or that is of a module which is not offered."""
        if name in self.refused:
            self.faults.add(path, self.refused[name].sentence, code="invalid_module")
        else:
            self.faults.unknown(path, what, name, known)

    def check_options(
        self, given: Mapping[str, Any], options: Iterable[Option], path: Path
    ) -> None:
        """Check values of options that are known, and that the required ones are there."""
        for option in options:
            if option.name in given:
                fault = option_fault(option, given[option.name])
                if fault:
                    self.faults.add((*path, option.name), fault, code="bad_option")
            elif option.required and option.name not in self.draft.parameters:
                detail = f"{option.name} is required: {option.description}"
                self.faults.add((*path, option.name), detail, code="missing")


def _dataset(
    dataset: Dataset | None,
    uploads: Mapping[str, Upload],
    loaders: Mapping[str, tuple[Option, ...]],
) -> catalogue.Dataset | None:
    if dataset is None:
        return None
    if dataset.name in loaders and dataset.name not in uploads and is_user_module(dataset):
        return brought_entry(dataset.name, loaders[dataset.name])
    return dataset_entry(dataset, uploads.get(dataset.name))
