"""The fused update of every optimizer: what its lanes' coefficients are, or its own arithmetic.

Notation: gradient g, weight p, slots a and b, all [K, …]; learning rate η, weight decay λ, momentum
µ, step t ≥ 1, c₁ = 1 - β₁ᵗ, c₂ = 1 - β₂ᵗ. The shared update (`fused.stacked_update`) is, for
columns that are each a number per lane:

    g = gradient + l2·p
    b = keep_b·b + gain_b·g²          r = 1 / (scale·√b + eps)
    a = keep_a·a + gain_a·g·(r if early else 1)
    p = shrink·p - step_size·(use_a·a + use_g·g)·(r if late else 1)

    kind      keep_b  gain_b  scale    eps  early  keep_a  gain_a  use_a  use_g  late  step_size
    sgd            0       0      0      1     no       µ       1      1      0    no  η
    nesterov       0       0      0      1     no       µ       1      µ      1    no  η
    adagrad        1       1      1      ε     no       0       0      0      1   yes  η
    rmsprop        α     1-α      1      ε    yes       µ       1      1      0    no  η
    adam(w)       β₂    1-β₂  1/√c₂      ε     no      β₁    1-β₁      1      0   yes  η/c₁

with shrink = 1 - ηλ for adamw, else 1.

The others have arithmetic of their own, and each a group of its own, but in native code. In all but
lion, λ·p is added to g first.

    adamax      a as adam               b = max(β₂·b, |g|+ε)        p = p - η/c₁·a/b
    adadelta    b = ρ·b + (1-ρ)·g²      d = √(a+ε)/√(b+ε)·g     a = ρ·a + (1-ρ)·d²    p = p - η·d
    nadam       a, b as adam            p = p - (η·(1-µₜ)/(1-Πₜ)·g + η·µₜ₊₁/(1-Πₜ₊₁)·a)/(√(b/c₂)+ε)
    radam       a, b as adam            p = p - η/c₁·a                    while ρₜ ≤ 5, later
                                        p = p - η/c₁·a·rₜ·√c₂/(√b+ε)
    lion        d = β₁·a + (1-β₁)·g     p = (1-ηλ)·p - η·sign(d)          a = β₂·a + (1-β₂)·g

with µₜ = β₁·(1 - 0.96^(tψ)/2), Πₜ = µ₁·…·µₜ; ρₜ = ρ - 2tβ₂ᵗ/c₂, ρ = 2/(1-β₂) - 1, and
rₜ² = (ρₜ-4)(ρₜ-2)ρ / ((ρ-4)(ρ-2)ρₜ).

Sources: Duchi et al. 2011; Hinton 2012; Kingma and Ba 2015; Loshchilov and Hutter 2019; Zeiler
2012; Dozat 2016; Liu et al. 2020; Chen et al. 2023. All but lion as torch has them.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

Options = Mapping[str, float]
Coefficients = Mapping[str, float]
Columns = tuple[Tensor, ...]
Result = tuple[Tensor, Tensor, Tensor]
Update = Callable[[Tensor, Tensor, Tensor, Tensor, Columns, Columns], Result]

NEGLIGIBLE = math.log(1e-20)  # a product of momenta below this is nothing beside 1


@dataclass(frozen=True, slots=True)
class SharedUpdate:
    """An optimizer that is the shared arithmetic with coefficients of its own.

    Attributes:
        lane: Options -> `fused.LANE_COLUMNS`, which stay the same over a lane's steps; those left
            out are 0.
        step_options: Options -> `fused.STEP_OPTION_COLUMNS`, from which the numbers that change are
            made; likewise.
        native: Its number in `enum Kind` of the native code, where such groups may run.
    """

    lane: Callable[[Options], Coefficients]
    step_options: Callable[[Options], Coefficients]
    native: int


@dataclass(frozen=True, slots=True)
class OwnUpdate:
    """An optimizer with arithmetic of its own.

    Attributes:
        lane: Options -> what the update reads that stays the same over a lane's steps; at most as
            many as `fused.LANE_COLUMNS`.
        step_options: Options -> what `steps` makes a lane's changing numbers from; at most as many
            as `fused.STEP_OPTION_COLUMNS`.
        steps: (columns of step_options [K, 1], rates [K, S], t ≥ 1 [K, S]) -> changing
            numbers, each [K, S]; at most as many as `fused.STEP_COLUMNS`.
        update: (p, g, a, b, columns of lane, columns of steps) -> new p, a, b, where a and b are 0
            before the step t = 1; without a slot b, whatever comes as b goes back.
        native: Its number in `enum Kind` of the native code, where all mix; None: it is not there.
    """

    lane: Callable[[Options], list[float]]
    step_options: Callable[[Options], list[float]]
    steps: Callable[[Columns, Tensor, Tensor], list[Tensor]]
    update: Update
    native: int | None = None


def _velocity(o: Options) -> Coefficients:
    return {"eps": 1.0, "keep_a": o["momentum"], "gain_a": 1.0, "use_a": 1.0, "l2": _decay(o)}


def _nesterov(o: Options) -> Coefficients:
    # With momentum 0 it is plain SGD.
    ahead = {"use_a": o["momentum"], "use_g": 1.0} if o["momentum"] > 0 else {}
    return {**_velocity(o), **ahead}


def _rmsprop(o: Options) -> Coefficients:
    square = {"keep_b": o["alpha"], "gain_b": 1.0 - o["alpha"], "eps": o["eps"]}
    return {**_velocity(o), **square, "early": 1.0}


def _adamw(o: Options) -> Coefficients:
    beta1, beta2 = _betas(o)
    average = {"keep_a": beta1, "gain_a": 1.0 - beta1, "use_a": 1.0, "late": 1.0}
    return {**average, "keep_b": beta2, "gain_b": 1.0 - beta2, "eps": o["eps"]}


def _decay(o: Options) -> float:
    return o["weight_decay"]


def _betas(o: Options) -> tuple[float, float]:
    return o["beta1"], o["beta2"]


def _corrections(o: Options) -> Coefficients:
    return {"squared": 1.0, "beta1": o["beta1"], "beta2": o["beta2"]}


SGD = SharedUpdate(lane=_velocity, step_options=lambda o: {}, native=0)
NESTEROV = SharedUpdate(lane=_nesterov, step_options=lambda o: {}, native=1)
ADAGRAD = SharedUpdate(
    lane=lambda o: {
        "keep_b": 1.0, "gain_b": 1.0, "use_g": 1.0, "late": 1.0, "eps": o["eps"], "l2": _decay(o),
    },
    step_options=lambda o: {"squared": 1.0},
    native=2,
)  # fmt: skip
RMSPROP = SharedUpdate(lane=_rmsprop, step_options=lambda o: {"squared": 1.0}, native=3)
ADAM = SharedUpdate(
    lane=lambda o: {**_adamw(o), "l2": _decay(o)}, step_options=_corrections, native=4
)
ADAMW = SharedUpdate(
    lane=_adamw,
    step_options=lambda o: {**_corrections(o), "decoupled": _decay(o)},
    native=4,  # adam's: the decay is in the step's coefficients
)


def _adamax_update(
    p: Tensor, g: Tensor, a: Tensor, b: Tensor, lane: Columns, step: Columns
) -> Result:
    decay, eps, beta1, beta2 = lane[:4]
    g = g + decay * p
    a = beta1 * a + (1 - beta1) * g
    # u = max(β₂·u, |g|), algorithm 2 of Kingma and Ba; ε inside the maximum, as torch has it, so
    # that a parameter without any gradient does not divide by 0.
    b = torch.maximum(beta2 * b, g.abs() + eps)
    return p - step[0] * a / b, a, b


def _adadelta_update(
    p: Tensor, g: Tensor, a: Tensor, b: Tensor, lane: Columns, step: Columns
) -> Result:
    decay, rho, eps = lane[:3]
    g = g + decay * p
    b = rho * b + (1 - rho) * g * g
    # Algorithm 1 of Zeiler: a is the mean square of past moves, so that a move has p's unit.
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
    # Dozat's algorithm 2: the average as the next step's momentum would have it.
    return p - (of_gradient * g + of_average * a) / (scale * b.sqrt() + eps), a, b


def _nadam_steps(options: Columns, rates: Tensor, t: Tensor) -> list[Tensor]:
    beta1, beta2, decay = options[:3]
    now, after = _momentum(beta1, decay, t), _momentum(beta1, decay, t + 1)  # µₜ, µₜ₊₁: [K, S]
    # Π over the steps before this call: a lane that continues has no table of them.
    before = torch.stack(
        [_product(*numbers) for numbers in zip(beta1[:, 0], decay[:, 0], t[:, 0] - 1, strict=True)]
    )
    product = before[:, None] * now.cumprod(-1)  # Πₜ: [K, S]
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
    step_size, rectified = step[:2]
    # While the variance of b is unknown (ρₜ ≤ 5), momentum alone: Liu et al., algorithm 2.
    return p - step_size * a * torch.where(rectified > 0, 1 / (b.sqrt() + eps), 1), a, b


def _radam_steps(options: Columns, rates: Tensor, t: Tensor) -> list[Tensor]:
    beta1, beta2 = options[:2]  # each [K, 1]
    c1, c2 = 1 - beta1**t, 1 - beta2**t
    most = 2 / (1 - beta2) - 1
    rho = most - 2 * t * beta2**t / c2
    rectified = rho > 5.0
    # Where it is not taken the root would be of a negative number: NaN, and `where` keeps no NaN
    # out of a product.
    safe = torch.where(rectified, rho, 6.0)
    square = (safe - 4) * (safe - 2) * most / ((most - 4) * (most - 2) * safe)
    step_size = rates / c1 * torch.where(rectified, square.clamp(min=0).sqrt() * c2.sqrt(), 1.0)
    return [step_size, rectified.to(rates)]


def _lion_update(
    p: Tensor, g: Tensor, a: Tensor, b: Tensor, lane: Columns, step: Columns
) -> Result:
    beta1, beta2 = lane[:2]
    step_size, shrink = step[:2]
    direction = (beta1 * a + (1 - beta1) * g).sign()
    # The slot moves by β₂, the direction by β₁: algorithm 2 of Chen et al.
    return shrink * p - step_size * direction, beta2 * a + (1 - beta2) * g, b


def _adaptive_lane(o: Options) -> list[float]:
    return [_decay(o), o["eps"], *_betas(o)]


ADAMAX = OwnUpdate(
    lane=_adaptive_lane,
    step_options=lambda o: [o["beta1"]],
    steps=lambda options, rates, t: [rates / (1 - options[0] ** t)],
    update=_adamax_update,
    native=5,
)
ADADELTA = OwnUpdate(
    lane=lambda o: [_decay(o), o["rho"], o["eps"]],
    step_options=lambda o: [],
    steps=lambda options, rates, t: [rates],
    update=_adadelta_update,
    native=6,
)
NADAM = OwnUpdate(
    lane=_adaptive_lane,
    step_options=lambda o: [*_betas(o), o["momentum_decay"]],
    steps=_nadam_steps,
    update=_nadam_update,
    native=7,
)
RADAM = OwnUpdate(
    lane=_adaptive_lane,
    step_options=lambda o: [*_betas(o)],
    steps=_radam_steps,
    update=_radam_update,
    native=8,
)
LION = OwnUpdate(
    lane=lambda o: [*_betas(o)],
    step_options=lambda o: [_decay(o)],
    steps=lambda options, rates, t: [rates, 1.0 - rates * options[0]],
    update=_lion_update,
    native=9,
)
