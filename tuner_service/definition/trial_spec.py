"""One trial's complete training instructions, and how a definition and parameters become them.

A value comes from the trial's parameters, else from what the definition fixes, else from the
catalogue's default. The definition is taken to be checked. A `TrialSpec` is plain JSON, so that it
can cross the pipe to the trainer: everything is filled in (defaults included), and the training
engine never looks at a definition. A `UserLoopSpec` instead leaves everything to a worker's module.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict

from tuner_service.definition.binding import DEFAULT_KIND, KINDS, Binding, Group, bind
from tuner_service.definition.catalogue import NETWORKS, RECORDS, TRAINING, Dataset, Entry
from tuner_service.definition.options import Option, Scalar, coerce
from tuner_service.definition.sections import DEFAULT_TEST_SHARE, EarlyStopping
from tuner_service.definition.sections import Dataset as DatasetSection
from tuner_service.definition.study import StudyDefinition
from tuner_service.definition.tasks import task_of
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


class SplitSpec(BaseModel):
    """How rows are divided. Fractions are of all rows that are not in the data's own test part.

    Attributes:
        folds: Parts that what is left of the test part is divided into, each in turn the validation
            part; null: no cross-validation.
        fold: Which of them this run validates on, counted on over the repetitions; null: the trial
            is yet to be split into runs.
        repeats: How often the rows are divided into folds, each time otherwise.
        by: What `column` says of a row: its part, its place in an order, or its group.
        column: Of a table, or an array beside inputs and targets.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    validation: float
    test: float
    seed: int
    stratify: bool
    folds: int | None = None
    fold: int | None = None
    repeats: int = 1
    by: Literal["part", "order", "group"] | None = None
    column: str | int | None = None

    @property
    def is_whole(self) -> bool:
        """Whether all rows are for training."""
        return not (self.validation or self.test or self.folds)

    @property
    def runs(self) -> int:
        """Trainings of one trial."""
        return (self.folds or 1) * self.repeats


class DatasetSpec(BaseModel):
    """Which data, and how it is prepared. `options` holds what only this dataset knows.

    Attributes:
        embedded: The network looks inputs up in tables (`nn.Embedding`): arrays of whole numbers
            stay as they are.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    options: dict[str, Any]
    split: SplitSpec
    embedded: bool = False


class EarlyStoppingSpec(BaseModel):
    """Stop after `patience` epochs in which the metric improved by no more than `min_delta`.

    Attributes:
        metric: A key of the epoch's record; None: the first objective.
        direction: Of the metric.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    patience: int
    min_delta: float
    metric: str | None = None
    direction: Literal["maximize", "minimize"] | None = None


class TrialSpec(BaseModel):
    """Everything the engine needs to train one trial.

    Attributes:
        network: `type` and every parameter of the network.
        optimizer: `type`, `learning_rate`, and every other parameter of that optimizer.
        schedule: `type` and its parameters.
        batch_size: Rows per step, or "full".
        metrics: Names to compute each epoch on the validation part (`val_` is prefixed in records)
            and once at the end on the test part (`test_`).
        objective: `(record key, "maximize" | "minimize")`, one per objective.
        class_weight: Factor of a row's training loss by its class, or `balanced`.
        pos_weight: That of the positive class alone.
        threshold: What the probability is chosen for from which on the positive class is predicted.
        seed: Seeds initial weights, data order, dropout, flips and crops.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset: DatasetSpec
    network: dict[str, Any]
    optimizer: dict[str, Any]
    schedule: dict[str, Any]
    loss: str
    metrics: tuple[str, ...]
    objective: tuple[tuple[str, Literal["maximize", "minimize"]], ...]
    batch_size: int | Literal["full"]
    epochs: int
    early_stopping: EarlyStoppingSpec | None
    label_smoothing: float
    l1: float
    gradient_clip: float | None
    precision: Literal["float32", "float64", "tf32", "bfloat16"]
    fuse: bool
    seed: int
    random_flip: float = 0.0
    random_crop: int = 0
    class_weight: str | dict[str, float] | None = None
    pos_weight: float | None = None
    threshold: float | str | None = None

    @property
    def watched(self) -> tuple[str, Literal["maximize", "minimize"]]:
        """What decides which epoch is the best one, and in which direction."""
        stopping = self.early_stopping
        if stopping is None or stopping.metric is None or stopping.direction is None:
            return self.objective[0]
        return stopping.metric, stopping.direction


class UserLoopSpec(BaseModel):
    """What a training loop of a worker's module is given.

    Attributes:
        parameters: Fixed and searched ones; the loop's own defaults are added where it runs.
        objective: `(name, "maximize" | "minimize")`, one per objective.
        seed: Seeds torch, NumPy and `random` before the loop begins.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["loop"] = "loop"
    module: str
    parameters: dict[str, Any]
    objective: tuple[tuple[str, Literal["maximize", "minimize"]], ...]
    seed: int


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
        early_stopping=_early_stopping(training.early_stopping),
        label_smoothing=loop["label_smoothing"],
        l1=loop["l1"],
        gradient_clip=loop["gradient_clip"],
        precision=training.precision,
        fuse=training.fuse,
        seed=loop["seed"],
        random_flip=loop["random_flip"],
        random_crop=loop["random_crop"],
        class_weight=loop["class_weight"],
        pos_weight=loop["pos_weight"],
        threshold=training.threshold,
    )


def _early_stopping(given: EarlyStopping | None) -> EarlyStoppingSpec | None:
    if given is None:
        return None
    direction = given.better if given.metric else None
    return EarlyStoppingSpec(**given.model_dump() | {"direction": direction})


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
        stratify = study_task(definition) == "classification" and split.by is None
    return DatasetSpec(
        name=name,
        options=options,
        split=SplitSpec(
            validation=split.validation,
            test=0.0 if entry.own_test or options.get("test_path") else test,
            seed=split.seed,
            stratify=stratify,
            folds=split.folds,
            repeats=split.repeats or 1,
            by=split.by,
            column=split.column,
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
    stopping = definition.training.early_stopping
    watched = [stopping.metric] if stopping and stopping.metric else []
    judged = (*(one.metric for one in definition.objective), *watched)
    measured = (name for name in judged if name not in RECORDS)
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
