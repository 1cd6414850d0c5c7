"""What every training step keeps, whatever runs it: inherited by the tests of each."""

from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import pytest
import torch

from tests.unit.training import lanes
from workers.training.steps.groups import GroupSpec
from workers.training.steps.plain import PlainStep
from workers.training.steps.step import LaneHyper, TrainStep

Make = Callable[[GroupSpec, int], TrainStep]


class TrainStepContract:
    """One lane or many: as the plain step in float64, and movable at every boundary.

    A subclass has a fixture `make`: group and K -> a step of K lanes.
    """

    network: ClassVar[dict[str, Any]] = {"type": "mlp", "hidden_units": 8, "norm": "batch"}
    shape: tuple[int, ...] = (10,)
    most_lanes = 8

    def group(self, precision: str = "float64") -> GroupSpec:
        return lanes.group(self.network, shape=self.shape, precision=precision)

    def crews(self) -> Iterator[list[LaneHyper]]:
        """One trial per optimizer, as many at once as the step has lanes."""
        hypers = lanes.every_optimizer(dropout=0.2)
        for first in range(0, len(hypers), self.most_lanes):
            yield hypers[first : first + self.most_lanes]

    def pair(self) -> list[LaneHyper]:
        both = [lanes.hyper(dropout=0.1), lanes.hyper("sgd", {"momentum": 0.9}, seed=2)]
        return both[: self.most_lanes]

    def test_trials_equal_plain_trials(self, make: Make) -> None:
        spec = self.group()
        for hypers in self.crews():
            step = make(spec, len(hypers))
            losses = lanes.curve(step, spec, hypers, 3)
            outputs = step.evaluate(spec.train_inputs)
            for lane, hyper in enumerate(hypers):
                reference, plain = lanes.plain_curve(spec, hyper, 3)
                assert torch.allclose(losses[:, lane], reference, rtol=1e-9, atol=0.0), hyper
                expected = plain.evaluate(spec.train_inputs)[0]
                assert torch.allclose(outputs[lane], expected, rtol=0.0, atol=1e-6)

    def test_state_comes_from_the_plain_step_and_goes_back(self, make: Make) -> None:
        spec = self.group()
        for hypers in self.crews():
            step, seeds = make(spec, len(hypers)), [hyper.seed for hyper in hypers]
            for lane, hyper in enumerate(hypers):
                _, first = lanes.plain_curve(spec, hyper, 1)
                step.put(lane, hyper, first.take(0))
            middle = torch.stack([lanes.epoch(step, spec, seeds, e) for e in (1, 2)])
            for lane, hyper in enumerate(hypers):
                last = PlainStep(spec)
                last.put(0, hyper, step.take(lane))
                end = lanes.epoch(last, spec, [hyper.seed], 3)
                reference, plain = lanes.plain_curve(spec, hyper, 4)
                curve = torch.cat([middle[:, lane], end])
                assert torch.allclose(curve, reference[1:], rtol=1e-9, atol=0.0), hyper
                assert lanes.same_state(last.take(0), plain.take(0), tolerance=1e-7), hyper

    def test_state_put_into_another_step_continues_bit_for_bit(self, make: Make) -> None:
        spec, hypers = self.group("float32"), self.pair()
        straight, resumed = (make(spec, len(hypers)) for _ in range(2))
        lanes.curve(straight, spec, hypers, 2)
        for lane, hyper in enumerate(hypers):
            resumed.put(lane, hyper, straight.take(lane))
        seeds = [hyper.seed for hyper in hypers]
        losses = [lanes.epoch(step, spec, seeds, 2) for step in (straight, resumed)]
        assert torch.equal(*losses)
        for lane in range(len(hypers)):
            assert lanes.same_state(resumed.take(lane), straight.take(lane))

    def test_used_lane_is_as_good_as_a_new_one(self, make: Make) -> None:
        spec, hypers = self.group("float32"), self.pair()
        used, new = (make(spec, len(hypers)) for _ in range(2))
        lanes.curve(used, spec, hypers[::-1], 2)
        for lane in range(len(hypers)):
            used.clear(lane)
        assert torch.equal(*(lanes.curve(step, spec, hypers, 2) for step in (used, new)))

    def test_idle_lane_trains_nothing_and_has_no_state(self, make: Make) -> None:
        spec, hypers = self.group(), self.pair()
        step = make(spec, len(hypers))
        step.put(0, hypers[0], None)
        step.clear(0)
        assert not lanes.epoch(step, spec, [1] * step.lanes, 0).any()
        for lane in range(step.lanes):
            with pytest.raises(LookupError, match=f"lane {lane} is idle"):
                step.take(lane)

    def test_slices_of_an_epoch_add_up_to_it(self, make: Make) -> None:
        spec, hypers = self.group(), self.pair()
        whole, sliced = (make(spec, len(hypers)) for _ in range(2))
        expected = lanes.curve(whole, spec, hypers, 1)[0]
        for lane, hyper in enumerate(hypers):
            sliced.put(lane, hyper, None)
        seeds = torch.tensor([hyper.seed for hyper in hypers])
        orders = lanes.epoch_orders(seeds, torch.zeros_like(seeds), spec.rows)  # [K, 70]
        rates = torch.full((len(hypers), spec.steps), 0.01, dtype=torch.float64)  # [K, 5]
        parts = [(0, 32), (32, 48), (48, 70)]  # batches of 16, and the last of 6
        sums = [
            sliced.train_epoch(orders[:, a:b], rates[:, a // 16 : -(-b // 16)]) for a, b in parts
        ]
        assert torch.allclose(torch.stack(sums).sum(0), expected, rtol=1e-14, atol=0.0)
        for lane in range(len(hypers)):
            assert lanes.same_state(sliced.take(lane), whole.take(lane), tolerance=1e-14)

    def test_remembered_weights_outlive_training(self, make: Make) -> None:
        spec, hypers = self.group(), self.pair()
        step, seeds = make(spec, len(hypers)), [hyper.seed for hyper in hypers]
        lanes.curve(step, spec, hypers, 1)
        every, last = range(step.lanes), step.lanes - 1
        remembered = [step.take(lane) for lane in every]
        step.remember(list(every))
        lanes.epoch(step, spec, seeds, 1)
        remembered[last] = step.take(last)
        step.remember([last])
        lanes.epoch(step, spec, seeds, 2)
        for lane, state in enumerate(remembered):
            weights = {k: v for k, v in state.items() if k.startswith(("parameters/", "buffers/"))}
            assert lanes.same_state(step.recall(lane), weights)
            now = step.take(lane)
            assert not lanes.same_state({k: now[k] for k in weights}, weights)


class ManyLanesContract(TrainStepContract):
    """What a lane must not notice of the others."""

    def test_trial_does_not_depend_on_its_lane_or_neighbours(self, make: Make) -> None:
        spec, hyper = self.group(), lanes.hyper(dropout=0.2)
        others = [lanes.hyper("sgd", seed=seed) for seed in (5, 6, 7)]
        crowded = lanes.curve(make(spec, 4), spec, [*others, hyper], 3)
        step = make(spec, 4)
        step.put(0, hyper, None)
        by_itself = torch.stack([lanes.epoch(step, spec, [1, 1, 1, 1], e) for e in range(3)])
        assert torch.allclose(crowded[:, 3], by_itself[:, 0], rtol=1e-12, atol=0.0)
        assert not by_itself[:, 1:].any()

    def test_lane_that_diverges_changes_no_bit_of_the_others(self, make: Make) -> None:
        spec = self.group("float32")
        hypers = [lanes.hyper("sgd", seed=seed, dropout=0.1) for seed in (1, 2, 3)]
        sane, broken = (make(spec, 3) for _ in range(2))
        healthy = lanes.curve(sane, spec, hypers, 3)
        for lane, hyper in enumerate(hypers):
            broken.put(lane, hyper, None)
        seeds = torch.tensor([hyper.seed for hyper in hypers])
        orders = lanes.epoch_orders(seeds, torch.zeros_like(seeds), spec.rows)
        rates = torch.full((3, spec.steps), 0.01, dtype=torch.float64)
        rates[1] = float("inf")
        losses = [broken.train_epoch(orders, rates)]
        losses += [lanes.epoch(broken, spec, seeds.tolist(), e) for e in (1, 2)]
        assert not torch.stack(losses)[:, 1].isfinite().any()
        for lane in (0, 2):
            assert torch.equal(torch.stack(losses)[:, lane], healthy[:, lane])
            assert lanes.same_state(broken.take(lane), sane.take(lane))
