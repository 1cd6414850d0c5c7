"""Losses against torch's own, values and gradients."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from workers.training.nets.losses import LOSSES, WEIGHTED, row_losses, with_weights

ROWS, CLASSES = 17, 5


def example(name: str) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    if LOSSES[name].targets == "classes":
        targets = torch.randint(0, CLASSES, (ROWS,), generator=generator)
        return torch.randn(ROWS, CLASSES, generator=generator).double() * 4, targets
    columns = 1 if LOSSES[name].targets == "binary" else 3
    targets = torch.randn(ROWS, columns, generator=generator).double()
    if LOSSES[name].targets == "binary":
        targets = (targets > 0).double()
    return torch.randn(ROWS, columns, generator=generator).double() * 4, targets


def reference(name: str, outputs: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    match name:
        case "cross_entropy":
            return F.cross_entropy(outputs, targets, label_smoothing=smoothing)
        case "binary_cross_entropy":
            soft = targets * (1 - smoothing) + smoothing / 2
            return F.binary_cross_entropy_with_logits(outputs, soft)
        case "focal":
            hit = F.softmax(outputs, -1).gather(-1, targets[:, None])[:, 0]
            return (-((1 - hit) ** 2) * hit.log()).mean()
        case "mse":
            return F.mse_loss(outputs, targets)
        case "mae":
            return F.l1_loss(outputs, targets)
        case _:
            return F.huber_loss(outputs, targets)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("name", LOSSES)
def test_loss_equals_torchs(name: str, smoothing: float) -> None:
    outputs, targets = example(name)
    outputs.requires_grad_()
    ours = row_losses(name)(outputs, targets, smoothing)
    assert ours.shape == (ROWS,)
    (gradient,) = torch.autograd.grad(ours.mean(), outputs)
    theirs = reference(name, outputs, targets, smoothing)
    (expected,) = torch.autograd.grad(theirs, outputs)
    torch.testing.assert_close(ours.mean(), theirs, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_vmap_takes_the_loss_with_a_smoothing_per_lane(name: str) -> None:
    outputs, targets = example(name)
    lanes = torch.stack([outputs, outputs + 1, -outputs])
    smoothing = torch.tensor([0.0, 0.1, 0.5], dtype=torch.float64)
    fused = torch.vmap(row_losses(name), in_dims=(0, None, 0))(lanes, targets, smoothing)
    for lane in range(3):
        alone = row_losses(name)(lanes[lane], targets, float(smoothing[lane]))
        torch.testing.assert_close(fused[lane], alone, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_weights_multiply_the_loss_of_their_rows(name: str) -> None:
    outputs, targets = example(name)
    weights = torch.linspace(0, 2, ROWS, dtype=torch.float64)
    given = with_weights(targets, weights)
    ours = row_losses(f"{WEIGHTED}{name}")(outputs, given, 0.1)
    torch.testing.assert_close(ours, weights * row_losses(name)(outputs, targets, 0.1))
    if name == "cross_entropy":
        by_class = torch.tensor([0.5, 1.0, 3.0, 0.0, 7.0], dtype=torch.float64)
        ours = row_losses(f"{WEIGHTED}{name}")(
            outputs, with_weights(targets, by_class[targets]), 0.0
        )
        torch.testing.assert_close(
            ours, F.cross_entropy(outputs, targets, weight=by_class, reduction="none")
        )
