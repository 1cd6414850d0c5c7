"""What determines a compiled step function, as plain data that can cross to another process."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from workers.training.nets.losses import WEIGHTED
from workers.training.steps.fused.step import Executor, FusedStep
from workers.training.steps.fused.step_function import Features, StepFunction
from workers.training.steps.groups import GroupSpec
from workers.training.user_modules import UserModules, directory_of


@dataclass(frozen=True, slots=True)
class Recipe:
    """A step function without its data.

    Attributes:
        network: Of the group, at the group's widths.
        optimizer: Of the group: None, or the one kind that has its own update.
        lanes: K.
        rows: Rows of the batch.
        features: Of the step function, as plain data.
        inputs: Shape, type and stride of the training rows; `targets` likewise.
        built_for: Shape of a row, for which the network is built.
        modules: Where the network's module lies, if a user brought it.
    """

    network: dict[str, Any]
    optimizer: str | None
    loss: str
    precision: str
    batch_size: int
    outputs: int
    device: str
    lanes: int
    rows: int
    features: dict[str, bool]
    inputs: tuple[tuple[int, ...], str]
    targets: tuple[tuple[int, ...], str]
    built_for: tuple[int, ...]
    modules: str | None = None

    @property
    def key(self) -> str:
        """Equal for equal step functions."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def parse(cls, text: str) -> "Recipe":
        """Return the recipe whose `key` this is."""
        return cls(**json.loads(text))

    def step(self, runner: Executor) -> FusedStep:
        """Return a fused step of the recipe's shapes, on zeros."""
        if self.modules is not None:
            UserModules(Path(self.modules)).restore(str(self.network["type"]), self.loss)
        device = torch.device(self.device)
        group = GroupSpec(
            key="recipe",
            network=self.network,
            optimizer=self.optimizer,
            loss=self.loss.removeprefix(WEIGHTED),
            batch_size=self.batch_size,
            precision=self.precision,
            inputs=tuple(self.built_for),
            outputs=self.outputs,
            device=device,
            train_inputs=_zeros(self.inputs, device),
            train_targets=_zeros(self.targets, device),
            fuse=True,
            fuse_reason=None,
            weighted=self.loss.startswith(WEIGHTED),
        )
        return FusedStep(group, self.lanes, runner)


def recipe_of(group: GroupSpec, lanes: int, function: StepFunction) -> Recipe:
    """Return the recipe of a group's step function."""
    return Recipe(
        network=dict(group.network),
        optimizer=group.optimizer,
        loss=group.train_loss,
        precision=group.precision,
        batch_size=group.batch_size,
        outputs=group.outputs,
        device=str(group.device),
        lanes=lanes,
        rows=function.rows,
        features=dataclasses.asdict(function.features),
        inputs=_shape(group.train_inputs),
        targets=_shape(group.train_targets),
        built_for=group.inputs,
        modules=directory_of(group.network),
    )


def features_of(recipe: Recipe) -> Features:
    """Return the recipe's features."""
    return Features(**recipe.features)


def _shape(tensor: torch.Tensor) -> tuple[tuple[int, ...], str]:
    return tuple(tensor.shape), str(tensor.dtype).removeprefix("torch.")


def _zeros(shape: tuple[tuple[int, ...], str], device: torch.device) -> torch.Tensor:
    # Zeros do: a compiled step function depends on shapes and types, never on the data.
    return torch.zeros(tuple(shape[0]), dtype=getattr(torch, shape[1]), device=device)
