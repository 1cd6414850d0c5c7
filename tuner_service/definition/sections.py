"""The sections of a definition: data, network, objective, search, training, budget, resources."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from tuner_service.definition.catalogue import (
    BROUGHT_PRUNER,
    BROUGHT_SAMPLER,
    METRICS,
    PRUNERS,
    RECORDS,
    SAMPLERS,
    TRAINING,
    Metric,
    PrunerEntry,
    SamplerEntry,
)
from tuner_service.definition.json_schema import (
    dataset_schema,
    method_schema,
    network_schema,
    training_schema,
)
from tuner_service.definition.options import Option, coerce, option_fault
from tuner_service.definition.types import Bool, DefinitionModel, Float, Int, Seconds, Text

Direction = Literal["maximize", "minimize"]
SplitBy = Literal["order", "group", "part"]

MAX_METRICS = 32
DEFAULT_TEST_SHARE = 0.2  # of data without a test part of its own


class OpenSection(DefinitionModel):
    """A section whose further keys are options of what it names, as the catalogue has them."""

    model_config = ConfigDict(extra="allow")

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        return {
            key: value
            for key, value in data.items()
            if value is not None or key in cls.model_fields
        }

    @property
    def options(self) -> dict[str, Any]:
        """The options as given, without defaults."""
        return dict(self.__pydantic_extra__ or {})


def replaced(
    handler: GetJsonSchemaHandler,
    schema: CoreSchema,
    change: Callable[[JsonSchemaValue], JsonSchemaValue],
) -> JsonSchemaValue:
    """Return a model's JSON Schema as `change` makes it, in place of pydantic's own."""
    resolved = handler.resolve_ref_schema(handler(schema))
    changed = change(dict(resolved))
    resolved.clear()
    resolved.update(changed)
    return resolved


def _checked(option: Option, value: object) -> object:
    """Check a field as an option of the catalogue is; None passes as "not given"."""
    if value is None:
        return None
    fault = option_fault(option, value)
    if fault is not None:
        raise ValueError(fault)
    return coerce(option, value)


def _column(name: str) -> BeforeValidator:
    return BeforeValidator(partial(_checked, Option(name=name, type="column", description="")))


class Split(DefinitionModel):
    """How rows are divided into training, validation and test part.

    Attributes:
        validation: Share of the rows that are not in the data's own test part; 0: for a final fit,
            whose objective is train_loss.
        test: As `validation`; default 0.2, or 0 where the data has a test part of its own.
        folds: Cross-validation: the rows outside the test part in so many folds, each in turn the
            validation part; a trial's objective is the mean over the folds.
        stratify: Keep the classes' shares in every part; default true for classification.
        repeats: Divide the rows into folds so many times, each time otherwise.
        order: A column of numbers or dates: validation and test are the last rows by it; with
            folds, each validates on the rows that follow those it trains on.
        group: A column whose equal values stay in one part, such as a customer's number.
        part: A column that names each row's part: train, validation or test.
    """

    validation: Float = Field(default=0.2, ge=0, lt=1)
    test: Float | None = Field(default=None, ge=0, lt=1)
    seed: Int = Field(default=0, ge=0, le=2**31 - 1)
    stratify: Bool | None = None
    folds: Int | None = Field(default=None, ge=2, le=20)
    repeats: Int | None = Field(default=None, ge=2, le=10)
    order: Annotated[str | int | None, _column("order")] = None
    group: Annotated[str | int | None, _column("group")] = None
    part: Annotated[str | int | None, _column("part")] = None

    @property
    def by(self) -> SplitBy | None:
        """What the column that divides the rows says; None: they are drawn."""
        return next((by for by in get_args(SplitBy) if getattr(self, by) is not None), None)

    @property
    def column(self) -> str | int | None:
        """The column that divides the rows."""
        column: str | int | None = getattr(self, self.by) if self.by else None
        return column

    @field_validator("test")
    @classmethod
    def _leaves_training_rows(cls, test: float | None, info: ValidationInfo) -> float | None:
        validation = info.data.get("validation")
        if test is not None and validation is not None and test + validation >= 1:
            raise ValueError(
                f"`validation + test < 1` must hold, but got (validation={validation}, test={test})"
            )
        return test


class Dataset(OpenSection):
    """Which data to train on; further keys are that data's options.

    Of uploaded data the service fills in `format` and `sha256`, so that the study keeps to the
    file it was submitted with.
    """

    name: Text = Field(min_length=1)
    split: Split = Split()
    format: Text | None = Field(default=None, min_length=1)
    sha256: Text | None = Field(
        default=None,
        pattern=r"^[0-9a-f]{64}$",
        description="Of the uploaded file; filled in by the service.",
    )

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Return one alternative per data set of the catalogue."""
        return replaced(handler, schema, dataset_schema)


class Network(OpenSection):
    """Which network to train; further keys are its parameters, fixed for all trials."""

    type: Text = Field(min_length=1)

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Return one alternative per network of the catalogue, and one for user modules."""
        return replaced(handler, schema, network_schema)


OBJECTIVES = (*(f"val_{name}" for name in METRICS), *RECORDS)
"""The names of every objective there is."""


def objective_metric(name: str) -> Metric | None:
    """Return the metric behind an objective's name: `val_` and a metric, or a record of a trial."""
    if name in RECORDS:
        return RECORDS[name]
    return METRICS.get(name.removeprefix("val_")) if name.startswith("val_") else None


class Objective(DefinitionModel):
    """What the search improves. `direction` follows from the metric when it is left out."""

    metric: Text = Field(
        min_length=1,
        description="`val_` and a metric, train_loss, seconds or parameter_count.",
        examples=list(OBJECTIVES),
    )
    direction: Direction = "maximize"

    @model_validator(mode="before")
    @classmethod
    def _fill_direction(cls, data: Any) -> Any:
        if not isinstance(data, Mapping) or data.get("direction") is not None:
            return data
        metric = objective_metric(name) if isinstance(name := data.get("metric"), str) else None
        rest = {key: value for key, value in data.items() if key != "direction"}
        return {**rest, "direction": metric.direction} if metric else rest

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Return the schema of what may be given: the direction may be left out, or null."""
        result = handler.resolve_ref_schema(handler(schema))
        result["required"] = ["metric"]
        result["properties"]["direction"] = {
            "enum": ["maximize", "minimize", None],
            "description": "Default: the metric's own.",
        }
        return result


class Method(OpenSection):
    """A sampler or a pruner with its options; the catalogue's defaults are filled in."""

    type: Text

    def filled(self, options: tuple[Option, ...]) -> dict[str, Any]:
        """Return the options with defaults for what was not given."""
        return {option.name: self.options.get(option.name, option.default) for option in options}


class Sampler(Method):
    """What proposes parameters."""

    type: Text = "tpe"
    seed: Int = Field(default=0, ge=0, le=2**31 - 1)

    @property
    def entry(self) -> SamplerEntry:
        """What the catalogue says of it."""
        return SAMPLERS.get(self.type, BROUGHT_SAMPLER)

    @property
    def settings(self) -> dict[str, Any]:
        """Every option of this sampler but the seed, with the defaults that the catalogue has."""
        filled = {**self.options, **self.filled(self.entry.options)}
        return {name: value for name, value in filled.items() if name != "seed"}

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Return one alternative per sampler of the catalogue."""
        return replaced(handler, schema, lambda base: method_schema(base, SAMPLERS, default="tpe"))


class Pruner(Method):
    """What stops bad trials early."""

    type: Text = "none"

    @property
    def entry(self) -> PrunerEntry:
        """What the catalogue says of it."""
        return PRUNERS.get(self.type, BROUGHT_PRUNER)

    @property
    def settings(self) -> dict[str, Any]:
        """Every option of this pruner, with the defaults that the catalogue has."""
        return {**self.options, **self.filled(self.entry.options)}

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Return one alternative per pruner of the catalogue."""
        return replaced(handler, schema, lambda base: method_schema(base, PRUNERS, default="none"))


class EarlyStopping(DefinitionModel):
    """Stop a trial after `patience` epochs without an improvement of more than `min_delta`.

    Attributes:
        metric: What must improve, and whose best epoch's weights are the trial's: `val_` and a
            metric, or train_loss; default: the first objective.
        direction: Of the metric; default: its own.
    """

    patience: Int = Field(ge=1, le=100_000)
    min_delta: Float = Field(default=0.0, ge=0)
    metric: Text | None = Field(default=None, min_length=1)
    direction: Direction | None = None

    @property
    def better(self) -> Direction | None:
        """The direction in which the metric improves; None where nobody says it."""
        known = objective_metric(self.metric) if self.metric else None
        return self.direction or (known.direction if known else None)


def _loop_option(name: str) -> Option:
    option = TRAINING["training"].option(name)
    if option is None:
        raise LookupError(f"the catalogue has no training option {name!r}")
    return option


def _check(name: str) -> BeforeValidator:
    return BeforeValidator(partial(_checked, _loop_option(name)))


class Training(OpenSection):
    """The training loop, what is fixed of it for all trials.

    Further keys are options of the optimizer and the schedule, such as `momentum` or `gamma`. A
    name may stand here or in `parameters`, not in both; what stands in neither has its default.

    Attributes:
        loss: Default: cross_entropy for classes, mse for numbers.
        threshold: Predict the positive of two classes from that probability on which is best for
            this metric on the validation part, chosen when a trial ends.
        early_stopping: End a trial whose objective no longer improves; its best weights count.
        precision: tf32 and bfloat16 trade exactness for speed on CUDA.
        metrics: Measured on the validation part every epoch and on the test part at the end,
            beside the objective's.
        keep_models: The weights of this many best trials are kept.
        fuse: Train many trials at once where that is possible.
    """

    epochs: Annotated[int | None, _check("epochs")] = None
    batch_size: Annotated[int | str | None, _check("batch_size")] = None
    label_smoothing: Annotated[float | None, _check("label_smoothing")] = None
    class_weight: Annotated[str | dict[str, float] | None, _check("class_weight")] = None
    pos_weight: Annotated[float | None, _check("pos_weight")] = None
    l1: Annotated[float | None, _check("l1")] = None
    gradient_clip: Annotated[float | None, _check("gradient_clip")] = None
    random_flip: Annotated[float | None, _check("random_flip")] = None
    random_crop: Annotated[int | None, _check("random_crop")] = None
    seed: Annotated[int | None, _check("seed")] = None
    optimizer: Text | None = None
    schedule: Text | None = None
    loss: Text | None = None
    metrics: tuple[Text, ...] = Field(default=(), max_length=MAX_METRICS)
    threshold: Annotated[float | str | None, _check("threshold")] = None
    early_stopping: EarlyStopping | None = None
    keep_models: Int = Field(default=1, ge=0, le=1000)
    precision: Literal["float32", "float64", "tf32", "bfloat16"] = "float32"
    fuse: Bool = True

    @property
    def fixed(self) -> dict[str, Any]:
        """Everything given here that could have been searched instead, by name."""
        own = {name: getattr(self, name) for name in _SEARCHABLE_FIELDS}
        return {name: value for name, value in own.items() if value is not None} | self.options

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Return the schema with the options of all optimizers and schedules."""
        return replaced(handler, schema, training_schema)


_SEARCHABLE_FIELDS = (
    "epochs",
    "batch_size",
    "label_smoothing",
    "class_weight",
    "pos_weight",
    "l1",
    "gradient_clip",
    "random_flip",
    "random_crop",
    "seed",
    "optimizer",
    "schedule",
)


class Budget(DefinitionModel):
    """How much the study may use.

    Attributes:
        trials: Number of slots; required but for a grid, whose size it is.
        timeout: Wall time of the study without pauses, in seconds or as `2h`, `90m`, `1h30m`.
        trial_timeout: Wall time of one trial.
        max_failures: With more failed slots than this the study fails.
    """

    trials: Int | None = Field(default=None, ge=1, le=10_000_000)
    timeout: Seconds | None = None
    trial_timeout: Seconds | None = None
    max_failures: Int = Field(default=10, ge=0, le=1_000_000)


class Resources(DefinitionModel):
    """Where and how wide the study runs.

    Attributes:
        parallel_trials: The most RUNNING trials over all workers; by default an eighth of the
            budget within 4 and 32 for TPE, else 64.
        device: `auto` takes CUDA where a worker has it, else the CPU.
    """

    parallel_trials: Int | None = Field(default=None, ge=1, le=4096)
    device: Literal["auto", "cpu", "cuda"] = "auto"
