"""The stacked updates of optimizers whose arithmetic is their own: a group of each kind.

Notation as in stacked.py: gradient g, weight p, slots a and b, all [K, …]; learning rate η, weight
decay λ, step t ≥ 1, c₁ = 1 - β₁ᵗ, c₂ = 1 - β₂ᵗ. In all but lion, λ·p is added to g first.

    adadelta    b = ρ·b + (1-ρ)·g²      d = √(a+ε)/√(b+ε)·g     a = ρ·a + (1-ρ)·d²    p = p - η·d
    nadam       a, b as adam            p = p - (η·(1-µₜ)/(1-Πₜ)·g + η·µₜ₊₁/(1-Πₜ₊₁)·a)/(√(b/c₂)+ε)
    radam       a, b as adam            p = p - η/c₁·a                    while ρₜ ≤ 5, later
                                        p = p - η/c₁·a·rₜ·√c₂/(√b+ε)
    lion        d = β₁·a + (1-β₁)·g     p = (1-ηλ)·p - η·sign(d)          a = β₂·a + (1-β₂)·g

with µₜ = β₁·(1 - 0.96^(tψ)/2), Πₜ = µ₁·…·µₜ; ρₜ = ρ - 2tβ₂ᵗ/c₂, ρ = 2/(1-β₂) - 1, and
rₜ² = (ρₜ-4)(ρₜ-2)ρ / ((ρ-4)(ρ-2)ρₜ).

Sources: Zeiler 2012; Dozat 2016; Liu et al. 2020; Chen et al. 2023. The first three as torch has
them.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.training.optim.plain import Options, betas

Columns = tuple[Tensor, ...]
Result = tuple[Tensor, Tensor, Tensor]
Update = Callable[[Tensor, Tensor, Tensor, Tensor, Columns, Columns], Result]

NEGLIGIBLE = math.log(1e-20)  # a product of momenta below this is nothing beside 1


@dataclass(frozen=True, slots=True)
class Own:
    """One optimizer.

    Attributes:
        slots: Which canonical slots `average` (a) and `square` (b) are.
        lane: Options -> what the update reads that stays the same over a lane's steps.
        pace: Options -> what `steps` makes a lane's changing numbers from.
        steps: (columns of pace [K, 1], rates [K, S], t [K, S]) -> changing numbers, each [K, S].
        update: (p, g, a, b, columns of lane, columns of steps) -> new p, a, b; without a slot b,
            whatever comes as b goes back.
    """

    slots: Mapping[str, str]
    lane: Callable[[Options], list[float]]
    pace: Callable[[Options], list[float]]
    steps: Callable[[Columns, Tensor, Tensor], list[Tensor]]
    update: Update


def _adadelta_update(
    p: Tensor, g: Tensor, a: Tensor, b: Tensor, lane: Columns, step: Columns
) -> Result:
    decay, rho, eps = lane[:3]
    g = g + decay * p
    b = rho * b + (1 - rho) * g * g
    delta = (a + eps).sqrt() / (b + eps).sqrt() * g
    return p - step[0] * delta, rho * a + (1 - rho) * delta * delta, b


def _moments(g: Tensor, a: Tensor, b: Tensor, lane: Columns) -> tuple[Tensor, Tensor]:
    _, _, beta1, beta2 = lane[:4]
    return beta1 * a + (1 - beta1) * g, beta2 * b + (1 - beta2) * g * g


def _nadam_update(
    p: Tensor, g: Tensor, a: Tensor, b: Tensor, lane: Columns, step: Columns
) -> Result:
    decay, eps = lane[:2]
    g = g + decay * p
    a, b = _moments(g, a, b, lane)
    scale, of_gradient, of_average = step[:3]
    return p - (of_gradient * g + of_average * a) / (scale * b.sqrt() + eps), a, b


def _nadam_steps(pace: Columns, rates: Tensor, t: Tensor) -> list[Tensor]:
    beta1, beta2, decay = pace[:3]
    now, after = _momentum(beta1, decay, t), _momentum(beta1, decay, t + 1)
    before = torch.stack(
        [_product(*numbers) for numbers in zip(beta1[:, 0], decay[:, 0], t[:, 0] - 1, strict=True)]
    )
    product = before[:, None] * now.cumprod(-1)
    scale = (1 - beta2**t).rsqrt()
    return [scale, rates * (1 - now) / (1 - product), rates * after / (1 - product * after)]


def _momentum(beta1: Tensor, decay: Tensor, t: Tensor) -> Tensor:
    return beta1 * (1.0 - 0.5 * 0.96 ** (t * decay))


def _product(beta1: Tensor, decay: Tensor, steps: Tensor) -> Tensor:
    """Return Π of the steps taken, a scalar."""
    if beta1 <= 0 or steps * beta1.log() < NEGLIGIBLE:  # every momentum is at most beta1
        return (steps < 1).to(beta1)
    return _momentum(beta1, decay, torch.arange(1, int(steps) + 1).to(beta1)).prod()


def _radam_update(
    p: Tensor, g: Tensor, a: Tensor, b: Tensor, lane: Columns, step: Columns
) -> Result:
    decay, eps = lane[:2]
    g = g + decay * p
    a, b = _moments(g, a, b, lane)
    size, rectified = step[:2]
    return p - size * a * torch.where(rectified > 0, 1 / (b.sqrt() + eps), 1), a, b


def _radam_steps(pace: Columns, rates: Tensor, t: Tensor) -> list[Tensor]:
    beta1, beta2 = pace[:2]
    c1, c2 = 1 - beta1**t, 1 - beta2**t
    most = 2 / (1 - beta2) - 1
    rho = most - 2 * t * beta2**t / c2
    rectified = rho > 5.0
    safe = torch.where(rectified, rho, 6.0)
    square = (safe - 4) * (safe - 2) * most / ((most - 4) * (most - 2) * safe)
    size = rates / c1 * torch.where(rectified, square.clamp(min=0).sqrt() * c2.sqrt(), 1.0)
    return [size, rectified.to(rates)]


def _lion_update(
    p: Tensor, g: Tensor, a: Tensor, b: Tensor, lane: Columns, step: Columns
) -> Result:
    beta1, beta2 = lane[:2]
    size, shrink = step[:2]
    direction = (beta1 * a + (1 - beta1) * g).sign()
    return shrink * p - size * direction, beta2 * a + (1 - beta2) * g, b


def _decay(options: Options) -> float:
    return options.get("weight_decay", 0.0)


def _adaptive_lane(options: Options) -> list[float]:
    return [_decay(options), options.get("eps", 1e-8), *betas(options)]


OWN: dict[str, Own] = {
    "adadelta": Own(
        slots={"average": "delta", "square": "square"},
        lane=lambda o: [_decay(o), o.get("rho", 0.9), o.get("eps", 1e-6)],
        pace=lambda o: [],
        steps=lambda pace, rates, t: [rates],
        update=_adadelta_update,
    ),
    "nadam": Own(
        slots={"average": "first", "square": "second"},
        lane=_adaptive_lane,
        pace=lambda o: [*betas(o), o.get("momentum_decay", 4e-3)],
        steps=_nadam_steps,
        update=_nadam_update,
    ),
    "radam": Own(
        slots={"average": "first", "square": "second"},
        lane=_adaptive_lane,
        pace=lambda o: [*betas(o)],
        steps=_radam_steps,
        update=_radam_update,
    ),
    "lion": Own(
        slots={"average": "first"},
        lane=lambda o: [o.get("beta1", 0.9), o.get("beta2", 0.99)],
        pace=lambda o: [_decay(o)],
        steps=lambda pace, rates, t: [rates, 1.0 - rates * pace[0]],
        update=_lion_update,
    ),
}
