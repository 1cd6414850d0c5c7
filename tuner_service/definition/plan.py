"""What a definition would run: how many trials, how many at once and in which groups; warnings."""

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from tuner_service.definition.binding import DEFAULT_KIND, KINDS, bind
from tuner_service.definition.catalogue import NETWORKS, OPTIMIZERS, PRUNERS, SAMPLERS, TRAINING
from tuner_service.definition.catalogue.entries import Optimizer
from tuner_service.definition.grid import grid_size
from tuner_service.definition.sections import objective_metric
from tuner_service.definition.space import CategoricalParameter
from tuner_service.definition.study import StudyDefinition, space_of
from tuner_service.definition.uploads import dataset_entry, is_user_module

FEWEST_PARALLEL: Final = 4  # trials at once that a sampler's share leaves at least


def required_modules(definition: StudyDefinition) -> tuple[str, ...]:
    """Return the modules, samplers and pruners that a worker must bring to run the study."""
    network, dataset = definition.network.type, definition.dataset
    needed = [] if network in NETWORKS else [network]
    if dataset is not None and is_user_module(dataset):
        needed.append(dataset.name)
    needed += [name for name in (definition.sampler.type,) if name not in SAMPLERS]
    needed += [name for name in (definition.pruner.type,) if name not in PRUNERS]
    return tuple(dict.fromkeys(needed))


def total_slots(definition: StudyDefinition) -> int:
    """Return the number of slots: the budget's trials, or the grid's size."""
    if not definition.sampler.entry.budget_from_grid and definition.budget.trials is not None:
        return definition.budget.trials
    size = grid_size(space_of(definition))
    if size is None:
        raise ValueError(f"the grid of study {definition.name!r} cannot be counted")
    return size


def parallel_trials(definition: StudyDefinition) -> int:
    """Return the most RUNNING trials of the study over all workers."""
    given = definition.resources.parallel_trials
    if given is not None:
        return given
    entry = definition.sampler.entry
    if entry.parallel_share is None:
        return entry.default_parallel
    share = total_slots(definition) // entry.parallel_share
    return min(max(share, FEWEST_PARALLEL), entry.default_parallel)


def most_epochs(definition: StudyDefinition) -> int:
    """Return the largest number of epochs that a trial of the study may have."""
    parameter = definition.parameters.get("epochs")
    if parameter is None:
        option = TRAINING["training"].option("epochs")
        # Of a loop only a parameter of that name tells; else what a network's trials would have.
        own = definition.network.options.get("epochs") if definition.is_user_loop else None
        given = own if isinstance(own, int) and own > 0 else definition.training.epochs
        return given or (option.default if option else 1)
    if isinstance(parameter, CategoricalParameter):
        return max((int(one) for one in parameter.choices if isinstance(one, int)), default=1)
    return max(1, int(parameter.high))


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
    mixing = [name for name in rest if name == "optimizer" or _is_networks(definition, name)]
    if definition.resources.device == "cuda" or not _runs_native(definition):
        mixing = []
    splitting = [name for name in rest if name not in mixing]
    if definition.resources.device == "cpu":
        return Fusing([n for n in definition.parameters if n not in splitting], [], splitting)
    return Fusing(free, mixing, splitting)


def _is_free(definition: StudyDefinition, name: str) -> bool:
    if definition.is_user_loop or not definition.training.fuse:
        return False
    dataset = definition.dataset
    entry = None if dataset is None else dataset_entry(dataset)
    binding = bind(name, network=NETWORKS.get(definition.network.type), dataset=entry)
    if binding is None or not binding.option.fusible:
        return False
    return name != "optimizer" or all(kind.fusible for kind in _optimizers(definition))


def _is_networks(definition: StudyDefinition, name: str) -> bool:
    network = NETWORKS.get(definition.network.type)
    return network is not None and network.option(name) is not None


def _runs_native(definition: StudyDefinition) -> bool:
    """Whether native code trains any of the study's trials in one group on a CPU."""
    network = NETWORKS.get(definition.network.type)
    limits = None if network is None else network.native_limits
    training = definition.training
    return (
        limits is not None
        and training.fuse
        and training.precision != "bfloat16"
        and all(kind.native for kind in _optimizers(definition))
        and training.loss != "focal"
        and not any(_values(definition, name, 0) != [0] for name in ("random_flip", "random_crop"))
        and not any(
            _values(definition, name, None) != [None] for name in ("class_weight", "pos_weight")
        )
        and all(_largest(definition, name) <= most for name, most in limits.items())
    )


def _optimizers(definition: StudyDefinition) -> Iterator[Optimizer]:
    """Yield the entry of each optimizer that the study may choose."""
    for kind in _values(definition, "optimizer", DEFAULT_KIND["optimizer"]):
        yield OPTIMIZERS[str(kind)]


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


def warnings_of(definition: StudyDefinition) -> list[str]:
    """Return one sentence for each thing that a second look might be worth."""
    return [
        *_directions(definition),
        *_partly_known_options(definition),
        *_epochs(definition),
        *_pruner(definition),
        *_times(definition),
    ]


def _directions(definition: StudyDefinition) -> Iterator[str]:
    for objective in definition.objective:
        metric = objective_metric(objective.metric)
        if metric is not None and metric.direction != objective.direction:
            yield (
                f"the study will {objective.direction} {objective.metric}, "
                f"which is better the other way"
            )


def _partly_known_options(definition: StudyDefinition) -> Iterator[str]:
    for group, entries in KINDS.items():
        searched = definition.parameters.get(group)
        kinds = searched.choices if isinstance(searched, CategoricalParameter) else ()
        for name in definition.training.options:
            owners = [kind for kind, entry in entries.items() if entry.option(name)]
            without = [str(kind) for kind in kinds if kind not in owners]
            if owners and without:
                yield f"{name} is fixed in training, but has no effect with {', '.join(without)}"


def _epochs(definition: StudyDefinition) -> Iterator[str]:
    epochs, training = most_epochs(definition), definition.training
    stopping = training.early_stopping
    if stopping is not None and stopping.patience >= epochs:
        yield f"early stopping waits {stopping.patience} epochs, but a trial has only {epochs}"
    warmup = training.options.get("warmup_epochs", 0)
    if warmup >= epochs:
        yield f"the warm-up takes {warmup} epochs, but a trial has only {epochs}"


def _pruner(definition: StudyDefinition) -> Iterator[str]:
    """Say of a pruner that no trial lives long enough for it to stop one."""
    epochs, settings = most_epochs(definition), definition.pruner.settings
    told = {*definition.parameters, *definition.network.options}
    if definition.is_user_loop and "epochs" not in told:
        return  # how many steps it has is not known
    for name in ("warmup_steps", "min_resource", "patience"):
        given = settings.get(name)
        if isinstance(given, int) and given >= epochs:
            yield (
                f"the pruner's {name} is {given}, but a trial has only {epochs} "
                f"epoch{'' if epochs == 1 else 's'}: it would stop none"
            )


def _times(definition: StudyDefinition) -> Iterator[str]:
    budget = definition.budget
    if budget.timeout and budget.trial_timeout and budget.trial_timeout > budget.timeout:
        yield "trial_timeout is longer than the study's timeout, so it has no effect"
