"""Lion, for the plain step."""

from collections.abc import Callable, Iterable

import torch
from torch import nn


class Lion(torch.optim.Optimizer):
    """Steps by the sign of an interpolated momentum, with decoupled weight decay.

    Source: Chen et al. 2023, "Symbolic Discovery of Optimization Algorithms", algorithm 2.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        lr: float,
        betas: tuple[float, float],
        weight_decay: float,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Take a step; parameters without a gradient stay as they are."""
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                held = self.state[p]
                average = held.setdefault("exp_avg", torch.zeros_like(p))
                # c = β₁·m + (1-β₁)·g;  p = p - η·(sign(c) + λ·p);  m = β₂·m + (1-β₂)·g
                direction = (beta1 * average + (1 - beta1) * p.grad).sign()
                p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(direction, alpha=group["lr"])
                average.mul_(beta2).add_(p.grad, alpha=1 - beta2)
