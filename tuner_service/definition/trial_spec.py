"""One trial's complete training instructions: what `resolve` makes of a definition and parameters.

A `UserLoopSpec` instead leaves everything to a worker's module.

A `TrialSpec` is plain JSON, so that it can cross the pipe to the trainer. Everything is filled in
(defaults included); the training engine never looks at a definition.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict


class SplitSpec(BaseModel):
    """How rows are divided. Fractions are of all rows that are not in the data's own test part.

    Attributes:
        folds: Parts that what is left of the test part is divided into, each in turn the validation
            part; null: no cross-validation.
        fold: Which of them this run validates on; null: the trial is yet to be split into runs.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    validation: float
    test: float
    seed: int
    stratify: bool
    folds: int | None = None
    fold: int | None = None


class DatasetSpec(BaseModel):
    """Which data, and how it is prepared. `options` holds what only this dataset knows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    options: dict[str, Any]
    split: SplitSpec


class EarlyStoppingSpec(BaseModel):
    """Stop after `patience` epochs in which the objective improved by no more than `min_delta`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    patience: int
    min_delta: float


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
