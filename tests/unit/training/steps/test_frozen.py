"""Parameters that are not trained: shared by all lanes, and left as they are."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from tests.unit.training import lanes
from workers.training.nets import networks
from workers.training.steps import lane_budget
from workers.training.steps.fused.executors import Traced
from workers.training.steps.fused.step import FusedStep
from workers.training.steps.plain import PlainStep

NETWORK = {"type": "test_frozen"}


class Transfer(nn.Module):
    """A frozen backbone that is the same for all, a frozen layer that is drawn, and a head."""

    def __init__(self, inputs: tuple[int, ...], outputs: int) -> None:
        super().__init__()
        self.backbone = nn.Linear(inputs[0], 6)
        with torch.no_grad():
            generator = torch.Generator().manual_seed(7)
            for parameter in self.backbone.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
        self.drawn = nn.Linear(6, 6).requires_grad_(False)
        self.backbone.requires_grad_(False)
        self.head = nn.Linear(6, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """[B, F] -> [B, C]."""
        return self.head(torch.tanh(self.drawn(torch.tanh(self.backbone(x)))))


@pytest.fixture(autouse=True)
def network() -> Iterator[None]:
    networks.register(
        NETWORK["type"],
        networks.Family(lambda _, inputs, outputs: Transfer(inputs, outputs), user_module=True),
    )
    yield
    del networks.NETWORKS[NETWORK["type"]]


def test_fused_trials_equal_plain_trials_and_leave_what_is_frozen() -> None:
    spec, hypers = lanes.group(NETWORK), lanes.every_optimizer(l1=1e-2, gradient_clip=0.5)
    step = FusedStep(spec, len(hypers), Traced())
    losses = lanes.curve(step, spec, hypers, 3)
    outputs = step.evaluate(spec.train_inputs)
    for lane, hyper in enumerate(hypers):
        reference, plain = lanes.plain_curve(spec, hyper, 3)
        assert torch.allclose(losses[:, lane], reference, rtol=1e-9, atol=0.0), hyper
        assert torch.allclose(outputs[lane], plain.evaluate(spec.train_inputs)[0], atol=1e-7)
        assert lanes.same_state(step.take(lane), plain.take(0), tolerance=1e-7), hyper
        first = PlainStep(spec)
        first.put(0, hyper, None)
        for name, value in first.take(0).items():
            if "backbone" in name or "drawn" in name:
                assert torch.equal(step.take(lane)[name], value)


def test_a_backbone_is_held_once_and_has_no_optimizer_state() -> None:
    spec = lanes.group(NETWORK)
    step = FusedStep(spec, 4, Traced())
    lanes.curve(step, spec, lanes.every_optimizer()[:4], 1)
    states = [step.take(lane) for lane in range(4)]
    shared = [state["parameters/backbone.weight"].data_ptr() for state in states]
    assert len(set(shared)) == 1
    assert not any("backbone" in name and "optimizer" in name for name in states[-1])
    assert "parameters/drawn.weight" in states[0]
    assert not torch.equal(
        states[0]["parameters/drawn.weight"], states[1]["parameters/drawn.weight"]
    )


def test_what_is_remembered_has_the_backbone() -> None:
    spec, (hyper, *_) = lanes.group(NETWORK), lanes.every_optimizer()
    step = FusedStep(spec, 1, Traced())
    lanes.curve(step, spec, [hyper], 1)
    step.remember([0])
    weights = {k: v for k, v in step.take(0).items() if k.startswith("parameters/")}
    assert lanes.same_state(step.recall(0), weights)


def test_a_trial_with_another_backbone_is_refused() -> None:
    spec, (hyper, *_) = lanes.group(NETWORK), lanes.every_optimizer()
    step = FusedStep(spec, 2, Traced())
    step.put(0, hyper, None)
    other = step.take(0)
    other["parameters/backbone.bias"] = other["parameters/backbone.bias"] + 1.0
    with pytest.raises(ValueError, match=r"same frozen parameters, but backbone\.bias"):
        step.put(1, hyper, other)


def test_what_is_frozen_takes_no_lanes_from_the_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = lanes.group(NETWORK)
    trained = sum(p.numel() for p in Transfer((10,), lanes.CLASSES).head.parameters())
    monkeypatch.setattr(lane_budget, "CPU_STATE_BYTES", 8 * trained * 8 * lane_budget.STATE_COPIES)
    assert lane_budget.group_sizes(spec)[1] == 8
