"""Options of a user's network that trials of one group may differ in."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.unit.training import lanes
from workers.training.nets import networks
from workers.training.nets.networks import Dropout
from workers.training.steps.fused.executors import Traced
from workers.training.steps.fused.step import FusedStep
from workers.training.steps.groups import structure

NETWORK = {"type": "test_adapter"}
MOST = 4  # ranks


class Adapter(nn.Module):
    """Low-rank adaptation of a frozen layer, of any rank up to four."""

    mask: Tensor
    scale: Tensor

    def __init__(
        self, inputs: int, outputs: int, *, rank: int = 4, alpha: float = 4.0, dropout: float = 0.0
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        base = torch.randn(outputs, inputs, generator=generator)
        self.base = nn.Parameter(base, requires_grad=False)
        self.down = nn.Parameter(torch.randn(MOST, inputs) / inputs)
        self.up = nn.Parameter(torch.zeros(outputs, MOST))
        self.dropout = Dropout(dropout, salt=0)
        self.register_buffer("mask", (torch.arange(MOST) < rank).float())
        self.register_buffer("scale", torch.tensor(alpha / rank))

    def forward(self, x: Tensor) -> Tensor:
        """[B, F] -> [B, C]."""
        low = self.dropout(x) @ self.down.T * self.mask  # [B, rank]
        return x @ self.base.T + low @ self.up.T * self.scale


class Forgetful(Adapter):
    """Keeps its scale where no lane can have its own."""

    def __init__(self, inputs: int, outputs: int, *, alpha: float = 4.0, **others: Any) -> None:
        super().__init__(inputs, outputs, **others)
        self.alpha = alpha

    def forward(self, x: Tensor) -> Tensor:
        """[B, F] -> [B, C]."""
        return super().forward(x) * self.alpha


@pytest.fixture(params=[Adapter])
def network(request: pytest.FixtureRequest) -> Iterator[type[Adapter]]:
    def build(options: Any, inputs: tuple[int, ...], outputs: int) -> nn.Module:
        given = {k: v for k, v in options.items() if k != "type"}
        module: nn.Module = request.param(inputs[0], outputs, **given)
        return module

    family = networks.Family(
        build, user_module=True, per_trial=frozenset({"rank", "alpha", "dropout"})
    )
    networks.register(NETWORK["type"], family)
    yield request.param
    del networks.NETWORKS[NETWORK["type"]]


@pytest.mark.usefixtures("network")
def test_adapters_of_several_ranks_train_in_one_group_as_by_themselves() -> None:
    options = [
        {"rank": 1}, {"rank": 4, "alpha": 8.0}, {"rank": 2, "dropout": 0.5}, {"dropout": 0.2},
    ]  # fmt: skip
    hypers = [
        replace(hyper, network={**NETWORK, **each})
        for hyper, each in zip(lanes.every_optimizer(), options, strict=False)
    ]
    assert {repr(structure(hyper.network or {})) for hyper in hypers} == {repr(NETWORK)}
    spec = lanes.group(NETWORK)
    step = FusedStep(spec, len(hypers), Traced())
    losses = lanes.curve(step, spec, hypers, 3)
    outputs = step.evaluate(spec.train_inputs)
    curves = []
    for lane, hyper in enumerate(hypers):
        reference, plain = lanes.plain_curve(spec, hyper, 3)
        curves.append(reference)
        assert torch.allclose(losses[:, lane], reference, rtol=1e-9, atol=0.0), hyper
        assert torch.allclose(outputs[lane], plain.evaluate(spec.train_inputs)[0], atol=1e-7)
        assert lanes.same_state(step.take(lane), plain.take(0), tolerance=1e-7), hyper
    assert len({tuple(curve.tolist()) for curve in curves}) == len(hypers)


@pytest.mark.usefixtures("network")
def test_a_used_lane_has_the_options_of_its_next_trial() -> None:
    spec = lanes.group(NETWORK)
    first, second = (
        lanes.hyper("sgd", network={**NETWORK, "dropout": rate, "rank": rank})
        for rate, rank in ((0.5, 1), (0.0, 4))
    )
    used, new = FusedStep(spec, 1, Traced()), FusedStep(spec, 1, Traced())
    lanes.curve(used, spec, [first], 1)
    assert torch.equal(lanes.curve(used, spec, [second], 2), lanes.curve(new, spec, [second], 2))


@pytest.mark.parametrize("network", [Forgetful], indirect=True)
def test_an_option_that_is_more_than_a_value_is_refused(network: type[Adapter]) -> None:
    spec = lanes.group(NETWORK)
    step = FusedStep(spec, 2, Traced())
    step.put(0, lanes.hyper(network={**NETWORK, "rank": 2}), None)
    with pytest.raises(ValueError, match=r"with \{'alpha': 2.0\} the network .* otherwise"):
        step.put(1, lanes.hyper(network={**NETWORK, "alpha": 2.0}), None)
