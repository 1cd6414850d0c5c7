"""A step of K lanes that is K plain steps: the fused step's contract without its speed."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from workers.training.steps.groups import GroupSpec, without_dropout
from workers.training.steps.plain import PlainStep
from workers.training.steps.step import LaneHyper, LaneState, TrainStep


class PlainLanes:
    backend = "plain lanes"
    backend_reason = None

    def __init__(self, group: GroupSpec, lanes: int) -> None:
        self.lanes = lanes
        self.taken: set[int] = set()
        self.steps = [PlainStep(group) for _ in range(lanes)]
        self.epochs_of: list[list[int]] = []  # lanes on board in each call of train_epoch

    def put(self, lane: int, hyper: LaneHyper, state: LaneState | None) -> None:
        assert lane not in self.taken
        self.taken.add(lane)
        self.steps[lane].put(0, hyper, state)

    def take(self, lane: int) -> LaneState:
        if lane not in self.taken:
            raise LookupError(f"lane {lane} is idle")
        return self.steps[lane].take(0)

    def clear(self, lane: int) -> None:
        self.taken.remove(lane)
        self.steps[lane].clear(0)

    def train_epoch(self, orders: Tensor, learning_rates: Tensor) -> Tensor:
        assert orders.shape[0] == learning_rates.shape[0] == self.lanes
        self.epochs_of.append(sorted(self.taken))
        rows = zip(self.steps, orders, learning_rates, strict=True)
        return torch.cat([step.train_epoch(o[None], r[None]) for step, o, r in rows])

    def evaluate(self, inputs: Tensor) -> Tensor:
        outputs = {n: self.steps[n].evaluate(inputs) for n in self.taken}
        idle = torch.full_like(next(iter(outputs.values())), torch.nan)
        return torch.cat([outputs.get(n, idle) for n in range(self.lanes)])

    def remember(self, lanes: Sequence[int]) -> None:
        for lane in lanes:
            self.steps[lane].remember([0])

    def recall(self, lane: int) -> LaneState:
        return self.steps[lane].recall(0)


class LanesOf:
    """Steps of at most `width` lanes; remembers what it made."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.made: list[PlainLanes] = []

    def make_step(self, group: GroupSpec, lanes: int) -> TrainStep:
        self.made.append(PlainLanes(group, lanes))
        return self.made[-1]

    def lanes_for(self, group: GroupSpec, wanted: int) -> int:
        return max(1, min(self.width, wanted))

    def measured(self, group: GroupSpec, step: TrainStep, trials: int, seconds: float) -> bool:
        return True

    def group_network(self, network: Mapping[str, Any]) -> Mapping[str, Any]:
        return without_dropout(network)

    def capacity(self, device: torch.device) -> int:
        return 2 * self.width
