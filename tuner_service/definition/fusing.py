"""Which searched parameters may differ between trials that train as one group."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from tuner_service.definition.binding import DEFAULT_KIND, KINDS, bind
from tuner_service.definition.catalogue import NATIVE_LIMITS, NETWORKS
from tuner_service.definition.space import CategoricalParameter
from tuner_service.definition.study import StudyDefinition
from tuner_service.definition.uploads import dataset_entry


class Fusing(NamedTuple):
    """A study's searched parameters, by what they do to groups.

    Attributes:
        free: May differ within a group, on any device.
        free_on_cpu: May differ within a group on a CPU, and split trials on a GPU.
        splitting: Split trials into groups that take turns.
    """

    free: list[str]
    free_on_cpu: list[str]
    splitting: list[str]


def fusing(definition: StudyDefinition) -> Fusing:
    """Return what each searched parameter does to groups, on the devices the study may have."""
    free = [name for name in definition.parameters if _is_free(definition, name)]
    rest = [name for name in definition.parameters if name not in free]
    of_network = [name for name in rest if _is_networks(definition, name)]
    if definition.resources.device == "cuda" or not _mixes_networks(definition):
        of_network = []
    splitting = [name for name in rest if name not in of_network]
    if definition.resources.device == "cpu":
        return Fusing([n for n in definition.parameters if n not in splitting], [], splitting)
    return Fusing(free, of_network, splitting)


def _is_free(definition: StudyDefinition, name: str) -> bool:
    if definition.is_user_loop or not definition.training.fuse:
        return False
    dataset = definition.dataset
    entry = None if dataset is None else dataset_entry(dataset)
    binding = bind(name, network=NETWORKS.get(definition.network.type), dataset=entry)
    if binding is None or not binding.option.fusible:
        return False
    return name != "optimizer" or all(_optimizers_mix(definition))


def _is_networks(definition: StudyDefinition, name: str) -> bool:
    network = NETWORKS.get(definition.network.type)
    return network is not None and network.option(name) is not None


def _mixes_networks(definition: StudyDefinition) -> bool:
    """Whether native code trains any of the study's networks in one group on a CPU."""
    limits = NATIVE_LIMITS.get(definition.network.type)
    training = definition.training
    return (
        limits is not None
        and training.fuse
        and training.precision != "bfloat16"
        and all(_optimizers_mix(definition))
        and not any(_values(definition, name, 0) != [0] for name in ("random_flip", "random_crop"))
        and all(_largest(definition, name) <= most for name, most in limits.items())
    )


def _optimizers_mix(definition: StudyDefinition) -> Iterator[bool]:
    """Yield for each optimizer of the study whether others may train beside it in a group."""
    for kind in _values(definition, "optimizer", DEFAULT_KIND["optimizer"]):
        yield bool(getattr(KINDS["optimizer"][str(kind)], "fusible", False))


def _largest(definition: StudyDefinition, name: str) -> float:
    return max(float(value) for value in _values(definition, name, 0))


def _values(definition: StudyDefinition, name: str, default: Any) -> list[Any]:
    """Return the values that an option may take in the study; of a range, its ends."""
    parameter = definition.parameters.get(name)
    if isinstance(parameter, CategoricalParameter):
        return list(parameter.choices)
    if parameter is not None:
        return [parameter.low, parameter.high]
    fixed = {**definition.training.fixed, **definition.network.options}
    return [fixed.get(name, default)]
