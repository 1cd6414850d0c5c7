"""Who decides what kind of step a group gets, and how wide: the epoch loop asks, it never knows."""

from collections.abc import Mapping
from typing import Any, Protocol

import torch

from workers.training.steps.groups import GroupSpec, structure
from workers.training.steps.plain import PlainStep
from workers.training.steps.step import TrainStep


class StepFactory(Protocol):
    """Makes steps for groups."""

    def make_step(self, group: GroupSpec, lanes: int) -> TrainStep:
        """Return a step with exactly this many lanes."""

    def lanes_for(self, group: GroupSpec, wanted: int) -> int:
        """Return how many lanes a group should have for `wanted` trials, waiting ones counted."""

    def measured(self, group: GroupSpec, step: TrainStep, trials: int, seconds: float) -> bool:
        """Hear what an optimizer step took with so many trials; return whether to go on with it."""

    def group_network(self, network: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return what a network has in common with the others of its group."""

    def capacity(self, device: torch.device) -> int:
        """Return how many trials a trainer on this device can usefully hold at once."""


class PlainStepFactory:
    """Every group plain, one lane each."""

    def make_step(self, group: GroupSpec, lanes: int) -> TrainStep:
        """Return the plain step."""
        if lanes != 1:
            raise ValueError(f"the plain step has one lane, but {lanes} were asked for")
        return PlainStep(group, group.fuse_reason)

    def lanes_for(self, group: GroupSpec, wanted: int) -> int:
        """Return 1."""
        del group, wanted
        return 1

    def measured(self, group: GroupSpec, step: TrainStep, trials: int, seconds: float) -> bool:
        """Go on: there is nothing else."""
        del group, step, trials, seconds
        return True

    def group_network(self, network: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the network but what every lane has for itself."""
        return structure(network)

    def capacity(self, device: torch.device) -> int:
        """Return 2: one trial in work, one ready to follow."""
        del device
        return 2
