"""The sections that say how trials run: training loop, budget, resources."""

from functools import partial
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from tuner_service.definition.catalogue import TRAINING
from tuner_service.definition.json_schema import training_schema
from tuner_service.definition.options import Option, coerce, option_fault
from tuner_service.definition.sections import OpenSection, replaced
from tuner_service.definition.types import Bool, Float, Int, Model, Seconds, Text

MAX_METRICS = 32


class EarlyStopping(Model):
    """Stop a trial after `patience` epochs without an improvement of more than `min_delta`."""

    patience: Int = Field(ge=1, le=100_000)
    min_delta: Float = Field(default=0.0, ge=0)


def _loop_option(name: str) -> Option:
    option = TRAINING["training"].option(name)
    if option is None:
        raise LookupError(f"the catalogue has no training option {name!r}")
    return option


def _checked(option: Option, value: object) -> object:
    """Check a training field as the catalogue's option says; None passes as "not given"."""
    if value is None:
        return None
    fault = option_fault(option, value)
    if fault is not None:
        raise ValueError(fault)
    return coerce(option, value)


def _check(name: str) -> BeforeValidator:
    return BeforeValidator(partial(_checked, _loop_option(name)))


class Training(OpenSection):
    """The training loop, what is fixed of it for all trials.

    Further keys are options of the optimizer and the schedule, such as `momentum` or `gamma`. A
    name may stand here or in `parameters`, not in both; what stands in neither has its default.

    Attributes:
        loss: Default: cross_entropy for classes, mse for numbers.
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
    l1: Annotated[float | None, _check("l1")] = None
    gradient_clip: Annotated[float | None, _check("gradient_clip")] = None
    random_flip: Annotated[float | None, _check("random_flip")] = None
    random_crop: Annotated[int | None, _check("random_crop")] = None
    seed: Annotated[int | None, _check("seed")] = None
    optimizer: Text | None = None
    schedule: Text | None = None
    loss: Text | None = None
    metrics: tuple[Text, ...] = Field(default=(), max_length=MAX_METRICS)
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
    "l1",
    "gradient_clip",
    "random_flip",
    "random_crop",
    "seed",
    "optimizer",
    "schedule",
)


class Budget(Model):
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


class Resources(Model):
    """Where and how wide the study runs.

    Attributes:
        parallel_trials: The most RUNNING trials over all workers; by default an eighth of the
            budget within 4 and 32 for TPE, else 64.
        device: `auto` takes CUDA where a worker has it, else the CPU.
    """

    parallel_trials: Int | None = Field(default=None, ge=1, le=4096)
    device: Literal["auto", "cpu", "cuda"] = "auto"
