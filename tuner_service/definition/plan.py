"""From a definition and one trial's parameters to its complete training instructions.

A value comes from the trial's parameters, else from what the definition fixes, else from the
catalogue's default. The definition is taken to be checked.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args

from tuner_service.definition.binding import DEFAULT_KIND, KINDS, Binding, Group, bind
from tuner_service.definition.catalogue import NETWORKS, RECORDS, TRAINING, Dataset, Entry
from tuner_service.definition.grid import grid_size
from tuner_service.definition.options import Option, Scalar, coerce
from tuner_service.definition.sections import DEFAULT_TEST_SHARE
from tuner_service.definition.sections import Dataset as DatasetSection
from tuner_service.definition.space import CategoricalParameter, space_of
from tuner_service.definition.study import StudyDefinition
from tuner_service.definition.tasks import task_of
from tuner_service.definition.trial_spec import (
    DatasetSpec,
    EarlyStoppingSpec,
    SplitSpec,
    TrialSpec,
    UserLoopSpec,
)
from tuner_service.definition.uploads import (
    brought_entry,
    dataset_entry,
    is_user_module,
    upload_path,
)

Task = Literal["classification", "regression"]

DEFAULT_LOSS: Mapping[Task, str] = {"classification": "cross_entropy", "regression": "mse"}
DEFAULT_METRICS: Mapping[Task, tuple[str, ...]] = {
    "classification": ("accuracy",),
    "regression": ("mse", "mae", "r2"),
}


def resolve(definition: StudyDefinition, parameters: Mapping[str, Scalar]) -> TrialSpec:
    """Return everything the engine needs to train one trial.

    Args:
        parameters: The trial's, without those that do not apply.
    """
    training, data = definition.training, _data(definition)
    bound = bindings(definition)
    searched: dict[Group, dict[str, Scalar]] = {group: {} for group in get_args(Group)}
    for name, value in parameters.items():
        searched[bound[name]][name] = value
    own = searched["training"] | searched["optimizer"] | searched["schedule"]
    # Each section by itself: a module's `load_data` and a network may have an option of one name.
    values = _Values({**training.fixed, **own})
    loop = values.options(TRAINING["training"].options)
    stopping = training.early_stopping
    return TrialSpec(
        dataset=_dataset(definition, _Values({**data.options, **searched["dataset"]})),
        network=_network(definition, {**definition.network.options, **searched["network"]}),
        optimizer=_kind("optimizer", values),
        schedule=_kind("schedule", values),
        loss=training.loss or DEFAULT_LOSS[study_task(definition)],
        metrics=_metrics(definition),
        objective=tuple((one.metric, one.direction) for one in definition.objective),
        batch_size=loop["batch_size"],
        epochs=loop["epochs"],
        early_stopping=EarlyStoppingSpec(patience=stopping.patience, min_delta=stopping.min_delta)
        if stopping
        else None,
        label_smoothing=loop["label_smoothing"],
        l1=loop["l1"],
        gradient_clip=loop["gradient_clip"],
        precision=training.precision,
        fuse=training.fuse,
        seed=loop["seed"],
        random_flip=loop["random_flip"],
        random_crop=loop["random_crop"],
    )


def resolve_user_loop(
    definition: StudyDefinition, parameters: Mapping[str, Scalar]
) -> UserLoopSpec:
    """Return what a worker's training loop is given for one trial."""
    return UserLoopSpec(
        module=definition.network.type,
        parameters={**definition.network.options, **parameters},
        objective=tuple((one.metric, one.direction) for one in definition.objective),
        seed=definition.training.seed or 0,
    )


class _Values:
    """What is fixed or searched of one section; what is neither, or null, has its default."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        self._given = given

    def get(self, name: str, default: Any) -> Any:
        value = self._given.get(name)
        return default if value is None else value

    def options(self, options: Iterable[Option]) -> dict[str, Any]:
        """Return every option's value in its own type."""
        return {
            option.name: coerce(option, self.get(option.name, option.default)) for option in options
        }


def study_task(definition: StudyDefinition) -> Task:
    """Return whether the study's target is a class or a number."""
    names = (*(one.metric for one in definition.objective), *definition.training.metrics)
    entry = _entry(definition)
    task = task_of(_data(definition), entry.task, definition.training, names)
    if task is None:
        raise ValueError(f"the task of study {definition.name!r} is not determined")
    return task


def _data(definition: StudyDefinition) -> DatasetSection:
    if definition.dataset is None:
        raise ValueError(f"study {definition.name!r} is a training loop, which has no data set")
    return definition.dataset


def _entry(definition: StudyDefinition) -> Dataset:
    dataset = _data(definition)
    entry = brought_entry(dataset.name) if is_user_module(dataset) else dataset_entry(dataset)
    if entry is None:
        raise ValueError(f"the data of study {definition.name!r} is not known")
    return entry


def _dataset(definition: StudyDefinition, values: _Values) -> DatasetSpec:
    dataset = _data(definition)
    entry = _entry(definition)
    # Parameters of a module's `load_data` are known where it is.
    own = dataset.options if is_user_module(dataset) else {}
    name, options = dataset.name, {**own, **values.options(entry.options)}
    if dataset.sha256 is not None and dataset.format is not None:
        name = dataset.format
        options["path"] = upload_path(dataset.name, dataset.format, dataset.sha256)
    split = dataset.split
    test = split.test if split.test is not None else DEFAULT_TEST_SHARE
    stratify = split.stratify
    if stratify is None:
        stratify = study_task(definition) == "classification"
    return DatasetSpec(
        name=name,
        options=options,
        split=SplitSpec(
            validation=split.validation,
            test=0.0 if entry.own_test else test,
            seed=split.seed,
            stratify=stratify,
            folds=split.folds,
        ),
    )


def _network(definition: StudyDefinition, given: Mapping[str, Any]) -> dict[str, Any]:
    kind = definition.network.type
    entry = NETWORKS.get(kind)
    # A worker's module: its defaults are those of its `build`, known where it is.
    return {"type": kind, **(given if entry is None else _Values(given).options(entry.options))}


def _kind(group: Literal["optimizer", "schedule"], values: _Values) -> dict[str, Any]:
    kind = str(values.get(group, DEFAULT_KIND[group]))
    return {"type": kind, **values.options(KINDS[group][kind].options)}


def _metrics(definition: StudyDefinition) -> tuple[str, ...]:
    """Return the metrics to compute; the loss is always recorded and not among them."""
    wanted = definition.training.metrics or DEFAULT_METRICS[study_task(definition)]
    # A name that is not in the catalogue is a metric of the network's module.
    measured = (one.metric for one in definition.objective if one.metric not in RECORDS)
    names = dict.fromkeys((*wanted, *(name.removeprefix("val_") for name in measured)))
    return tuple(name for name in names if name != "loss")


def _binding(definition: StudyDefinition, name: str) -> Binding | None:
    network: Entry | None = NETWORKS.get(definition.network.type)
    entry = None if definition.dataset is None else _entry(definition)
    bound = bind(name, network=network, dataset=entry)
    if bound is not None and bound.group == "dataset" and not bound.option.searchable:
        return None  # a parameter of the network's module, whose options are known where it is
    return bound


def bindings(definition: StudyDefinition) -> dict[str, Group]:
    """Return what each searched parameter belongs to, in the definition's order."""
    bound = {name: _binding(definition, name) for name in definition.parameters}
    return {name: one.group if one else "network" for name, one in bound.items()}


def required_modules(definition: StudyDefinition) -> tuple[str, ...]:
    """Return the modules that a worker must have to run the study."""
    network, dataset = definition.network.type, definition.dataset
    needed = [] if network in NETWORKS else [network]
    if dataset is not None and is_user_module(dataset):
        needed.append(dataset.name)
    return tuple(dict.fromkeys(needed))


def total_slots(definition: StudyDefinition) -> int:
    """Return the number of slots: the budget's trials, or the grid's size."""
    if definition.sampler.type != "grid" and definition.budget.trials is not None:
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
    if definition.sampler.type == "tpe":
        # More at once, and TPE learns from too few of them: at 32 half its gain is gone.
        return min(max(total_slots(definition) // 8, 4), 32)
    return 64


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
