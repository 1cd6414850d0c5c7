"""One optimizer step of K lanes, each with its own kind, without a branch.

With per-lane coefficients, every fusible optimizer is the same arithmetic on gradient g, weight p,
an average a and a mean square b (the slots), all [K, …]:

    g = gradient + l2·p
    b = keep_b·b + gain_b·g²          r = 1 / (scale·√b + eps)
    a = keep_a·a + gain_a·g·(r if early else 1)
    p = shrink·p - size·(use_a·a + use_g·g)·(r if late else 1)

    kind      keep_b  gain_b  scale    eps  early  keep_a  gain_a  use_a  use_g  late  size
    sgd            0       0      0      1     no       µ       1      1      0    no  η
    nesterov       0       0      0      1     no       µ       1      µ      1    no  η
    adagrad        1       1      1      ε     no       0       0      0      1   yes  η
    rmsprop        α     1-α      1      ε    yes       µ       1      1      0    no  η
    adam(w)       β₂    1-β₂  1/√c₂      ε     no      β₁    1-β₁      1      0   yes  η/c₁

with c₁ = 1 - β₁ᵗ and c₂ = 1 - β₂ᵗ at step t ≥ 1, and shrink = 1 - ηλ for adamw, else 1.

The other kinds have groups and updates of their own (stacked_own.py).
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from workers.training.optim.fused_own import OWN, Own
from workers.training.optim.plain import Options, betas

LANE_COLUMNS = (
    "l2", "keep_b", "gain_b", "eps", "early", "keep_a", "gain_a", "use_a", "use_g", "late",
)  # fmt: skip
PACE_COLUMNS = ("squared", "beta1", "beta2", "decoupled")
STEP_COLUMNS = ("scale", "size", "shrink")
AVERAGE_SLOT = {"sgd": "momentum", "nesterov": "momentum", "rmsprop": "momentum"} | {
    kind: "first" for kind in ("adam", "adamw")
}
SQUARE_SLOT = {"adagrad": "sum", "rmsprop": "square", "adam": "second", "adamw": "second"}


def lane_coefficients(kind: str, options: Options) -> list[float]:
    """Return what of the update stays the same over a lane's steps, as `LANE_COLUMNS`.

    Of a kind with its own update: as that has it, filled up with zeros.
    """
    if kind in OWN:
        return _filled(OWN[kind].lane(options), LANE_COLUMNS)
    momentum = momentum_of(kind, options)
    table: dict[str, float] = {"eps": 1.0, "keep_a": momentum, "gain_a": 1.0, "use_a": 1.0}
    if kind == "nesterov" and momentum > 0:
        table |= {"use_a": momentum, "use_g": 1.0}
    if kind == "adagrad":
        table = {"keep_b": 1.0, "gain_b": 1.0, "use_g": 1.0, "late": 1.0}
    if kind == "rmsprop":
        alpha = options.get("alpha", 0.99)
        table |= {"keep_b": alpha, "gain_b": 1.0 - alpha, "early": 1.0}
    if kind in ("adam", "adamw"):
        beta1, beta2 = betas(options)
        table = {"keep_a": beta1, "gain_a": 1.0 - beta1, "use_a": 1.0, "late": 1.0}
        table |= {"keep_b": beta2, "gain_b": 1.0 - beta2}
    if kind in SQUARE_SLOT:
        table["eps"] = options.get("eps", 1e-10 if kind == "adagrad" else 1e-8)
    if kind != "adamw":
        table["l2"] = options.get("weight_decay", 0.0)
    return [table.get(name, 0.0) for name in LANE_COLUMNS]


def step_coefficients_of(kind: str, options: Options) -> list[float]:
    """Return what `step_coefficients` makes a lane's changing coefficients from."""
    if kind in OWN:
        return _filled(OWN[kind].pace(options), PACE_COLUMNS)
    squared = 1.0 if kind in SQUARE_SLOT else 0.0
    beta1, beta2 = betas(options) if kind in ("adam", "adamw") else (0.0, 0.0)
    return [squared, beta1, beta2, options.get("weight_decay", 1e-2) if kind == "adamw" else 0.0]


def _filled(row: list[float], columns: Sequence[str]) -> list[float]:
    return row + [0.0] * (len(columns) - len(row))


def step_coefficients(
    pace: Tensor, rates: Tensor, steps: Tensor, *, kind: str | None = None
) -> Tensor:
    """Return what of the update changes from step to step, as `STEP_COLUMNS`.

    In float64: the bias corrections of late steps drift by 3e-3 when computed in float32. A beta of
    0 makes its correction 1, so that kinds without one need no branch.

    Args:
        pace: [K, 4] float64 as `PACE_COLUMNS`.
        rates: [K, S] float64 learning rates.
        steps: [K] optimizer steps taken before the first of these.
        kind: Of every lane, where it has its own update.

    Returns:
        [S, K, 3] float64.
    """
    columns = tuple(column[:, None] for column in pace.unbind(-1))  # [K, 1]
    t = steps[:, None] + torch.arange(1, rates.shape[1] + 1, device=rates.device)  # [K, S]
    if kind in OWN:
        made = OWN[kind].steps(columns, rates, t.to(rates))
        made += [torch.zeros_like(rates)] * (len(STEP_COLUMNS) - len(made))
        return torch.stack(made, dim=-1).transpose(0, 1)
    squared, beta1, beta2, decoupled = columns
    scale = squared * (1.0 - beta2**t).rsqrt()
    size = rates / (1.0 - beta1**t)
    shrink = 1.0 - rates * decoupled
    return torch.stack([scale, size, shrink], dim=-1).transpose(0, 1)


def momentum_of(kind: str, options: Options) -> float:
    """Return the momentum of an optimizer that has one, else 0."""
    if AVERAGE_SLOT.get(kind) != "momentum":
        return 0.0
    return options.get("momentum", 0.9 if kind == "nesterov" else 0.0)


def slots_of(kind: str, options: Options) -> dict[str, str]:
    """Return which canonical slots a lane's `average` and `square` are; absent: not its state."""
    if kind in OWN:
        return dict(OWN[kind].slots)
    slots = {"square": SQUARE_SLOT[kind]} if kind in SQUARE_SLOT else {}
    if AVERAGE_SLOT.get(kind) == "first" or momentum_of(kind, options) > 0:
        slots["average"] = AVERAGE_SLOT[kind]
    return slots


class Update(Protocol):
    """One optimizer step of K lanes, as `stacked_update`."""

    def __call__(
        self,
        parameter: Tensor,
        gradient: Tensor,
        average: Tensor,
        square: Tensor | None,
        *,
        lane: Tensor,
        step: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return new parameter, average and square."""


def update_of(kind: str | None) -> Update:
    """Return the update of groups of one kind with its own arithmetic, or of the others."""
    return stacked_update if kind is None else _own_update(OWN[kind])


def _own_update(own: Own) -> Update:
    def update(
        parameter: Tensor,
        gradient: Tensor,
        average: Tensor,
        square: Tensor | None,
        *,
        lane: Tensor,
        step: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        tail = (1,) * (parameter.dim() - 1)
        of_lane, of_step = (
            tuple(column.reshape(-1, *tail) for column in table.unbind(-1))
            for table in (lane, step)
        )
        # What has no second slot gets the first, and leaves it alone.
        second = average if square is None else square
        new, new_average, new_square = own.update(
            parameter, gradient, average, second, of_lane, of_step
        )
        return new, new_average, None if square is None else new_square

    return update


def stacked_update(
    parameter: Tensor,
    gradient: Tensor,
    average: Tensor,
    square: Tensor | None,
    *,
    lane: Tensor,
    step: Tensor,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Take one optimizer step of K lanes, each with its own kind.

    Args:
        parameter: [K, …].
        gradient: [K, …].
        average: [K, …] slot a.
        square: [K, …] slot b; None where no lane's kind has one.
        lane: [K, 10] as `LANE_COLUMNS`.
        step: [K, 3] as `STEP_COLUMNS`.

    Returns:
        New parameter, average and square.
    """
    tail = (1,) * (parameter.dim() - 1)
    l2, keep_b, gain_b, eps, early, keep_a, gain_a, use_a, use_g, late = (
        column.reshape(-1, *tail) for column in lane.unbind(-1)
    )
    scale, size, shrink = (column.reshape(-1, *tail) for column in step.unbind(-1))
    g = gradient + l2 * parameter
    if square is None:
        average = keep_a * average + gain_a * g
        return shrink * parameter - size * (use_a * average + use_g * g), average, None
    square = keep_b * square + gain_b * g * g
    r = 1 / (scale * square.sqrt() + eps)
    average = keep_a * average + gain_a * g * torch.where(early > 0, r, 1)
    move = (use_a * average + use_g * g) * torch.where(late > 0, r, 1)
    return shrink * parameter - size * move, average, square
