"""One optimizer step of K lanes, each with its own kind, without a branch.

With per-lane coefficients, all optimizers that may mix are the same arithmetic; the others have
groups and updates of their own. Formulas and notation: `updates.py`.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from workers.training.optim.registry import complete, entry_of
from workers.training.optim.updates import Coefficients, Options, OwnUpdate

LANE_COLUMNS = (
    "l2", "keep_b", "gain_b", "eps", "early", "keep_a", "gain_a", "use_a", "use_g", "late",
)  # fmt: skip
STEP_OPTION_COLUMNS = ("squared", "beta1", "beta2", "decoupled")
STEP_COLUMNS = ("scale", "step_size", "shrink")


def lane_coefficients(kind: str, options: Options) -> list[float]:
    """Return what of the update stays the same over a lane's steps, as `LANE_COLUMNS`.

    Of a kind with its own update: as that has it, filled up with zeros.
    """
    return _row(entry_of(kind).update.lane(complete(kind, options)), LANE_COLUMNS)


def step_options_of(kind: str, options: Options) -> list[float]:
    """Return what `step_coefficients` makes a lane's from, as `STEP_OPTION_COLUMNS`."""
    return _row(entry_of(kind).update.step_options(complete(kind, options)), STEP_OPTION_COLUMNS)


def _row(given: Coefficients | list[float], columns: Sequence[str]) -> list[float]:
    if isinstance(given, list):
        return given + [0.0] * (len(columns) - len(given))
    return [given.get(name, 0.0) for name in columns]


def step_coefficients(
    options: Tensor, rates: Tensor, steps: Tensor, *, kind: str | None = None
) -> Tensor:
    """Return what of the update changes from step to step, as `STEP_COLUMNS`.

    In float64: the bias corrections of late steps drift by 3e-3 when computed in float32. A beta of
    0 makes its correction 1, so that kinds without one need no branch.

    Args:
        options: [K, 4] float64 as `STEP_OPTION_COLUMNS`.
        rates: [K, S] float64 learning rates.
        steps: [K] optimizer steps taken before the first of these.
        kind: Of every lane, where it has its own update.

    Returns:
        [S, K, 3] float64.
    """
    columns = tuple(column[:, None] for column in options.unbind(-1))  # [K, 1]
    t = steps[:, None] + torch.arange(1, rates.shape[1] + 1, device=rates.device)  # [K, S]
    if kind is not None:
        made = own_update(kind).steps(columns, rates, t.to(rates))
        made += [torch.zeros_like(rates)] * (len(STEP_COLUMNS) - len(made))
        return torch.stack(made, dim=-1).transpose(0, 1)
    squared, beta1, beta2, decoupled = columns  # each [K, 1]
    # Kingma and Ba 2015, algorithm 1, with the corrections moved out of the update: m̂/(√v̂ + ε) is
    # a/c₁ / (√b/√c₂ + ε).
    scale = squared * (1.0 - beta2**t).rsqrt()  # 1/√c₂: [K, S]
    step_size = rates / (1.0 - beta1**t)  # η/c₁: [K, S]
    shrink = 1.0 - rates * decoupled  # 1 - ηλ, Loshchilov and Hutter 2019, algorithm 2
    return torch.stack([scale, step_size, shrink], dim=-1).transpose(0, 1)


def slots_of(kind: str, options: Options) -> dict[str, str]:
    """Return which canonical slots a lane's `average` and `square` are; absent: not its state."""
    slots = entry_of(kind).slots(complete(kind, options))
    return {role: slot.name for role, slot in slots.items()}


def own_update(kind: str) -> OwnUpdate:
    """Return the update of a kind that has its own.

    Raises:
        ValueError: There is no such optimizer, or it takes the shared update.
    """
    update = entry_of(kind).update
    if not isinstance(update, OwnUpdate):
        raise ValueError(f"optimizer {kind} takes the shared update: its groups have no kind")
    return update


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
    return stacked_update if kind is None else _update_of_columns(own_update(kind))


def _update_of_columns(own: OwnUpdate) -> Update:
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
    tail = (1,) * (parameter.dim() - 1)  # columns [K] as [K, 1, …], beside [K, P]
    l2, keep_b, gain_b, eps, early, keep_a, gain_a, use_a, use_g, late = (
        column.reshape(-1, *tail) for column in lane.unbind(-1)
    )
    scale, step_size, shrink = (column.reshape(-1, *tail) for column in step.unbind(-1))
    g = gradient + l2 * parameter  # coupled decay: into the gradient, and so into the slots
    if square is None:
        # Of sgd and nesterov r is 1 everywhere: a step function of only those computes none of it.
        average = keep_a * average + gain_a * g
        return shrink * parameter - step_size * (use_a * average + use_g * g), average, None
    square = keep_b * square + gain_b * g * g
    # ε beside the root, as torch has it; a lane without a slot b has scale 0 and ε 1, so r is 1.
    r = 1 / (scale * square.sqrt() + eps)
    # Early (rmsprop): g/√b is averaged. Late (adam): the average is divided by √b.
    average = keep_a * average + gain_a * g * torch.where(early > 0, r, 1)
    move = (use_a * average + use_g * g) * torch.where(late > 0, r, 1)
    return shrink * parameter - step_size * move, average, square
