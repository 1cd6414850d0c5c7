"""Torch's optimizers for the plain step, with their state under canonical names.

The fused step has the same optimizers as one stacked update (stacked.py). Both keep their state in
the same slots, each shaped as its parameter:

    momentum   velocity of sgd, nesterov and rmsprop (only where momentum > 0)
    first      adam's, adamw's running mean of the gradient
    square     rmsprop's running mean of the squared gradient
    second     adam's, adamw's
    sum        adagrad's sum of squared gradients
    steps      int64 scalar, steps taken

Weight decay is the L2 loss term (added to the gradient), but decoupled in adamw.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Options = Mapping[str, float]
NamedParameters = Iterable[tuple[str, nn.Parameter]]


@dataclass(frozen=True, slots=True)
class Kind:
    """An optimizer: how torch's is made, and which of its state is which canonical slot.

    Attributes:
        build: (parameters, options) -> torch optimizer; the learning rate is set before each step.
        slots: Canonical slot -> name in the torch optimizer's per-parameter state.
        fusible: Whether the fused update knows it.
    """

    build: Callable[[list[nn.Parameter], Options], torch.optim.Optimizer]
    slots: Mapping[str, str]
    fusible: bool = True


def _sgd(parameters: list[nn.Parameter], options: Options) -> torch.optim.Optimizer:
    return torch.optim.SGD(
        parameters,
        lr=0.0,
        momentum=options.get("momentum", 0.0),
        weight_decay=options.get("weight_decay", 0.0),
    )


def _nesterov(parameters: list[nn.Parameter], options: Options) -> torch.optim.Optimizer:
    momentum = options.get("momentum", 0.9)
    return torch.optim.SGD(
        parameters,
        lr=0.0,
        momentum=momentum,
        nesterov=momentum > 0,  # torch refuses nesterov without momentum, which is plain SGD
        weight_decay=options.get("weight_decay", 0.0),
    )


def _adagrad(parameters: list[nn.Parameter], options: Options) -> torch.optim.Optimizer:
    return torch.optim.Adagrad(
        parameters,
        lr=0.0,
        eps=options.get("eps", 1e-10),
        weight_decay=options.get("weight_decay", 0.0),
    )


def _rmsprop(parameters: list[nn.Parameter], options: Options) -> torch.optim.Optimizer:
    return torch.optim.RMSprop(
        parameters,
        lr=0.0,
        alpha=options.get("alpha", 0.99),
        eps=options.get("eps", 1e-8),
        momentum=options.get("momentum", 0.0),
        weight_decay=options.get("weight_decay", 0.0),
    )


def _adam(parameters: list[nn.Parameter], options: Options) -> torch.optim.Optimizer:
    return torch.optim.Adam(
        parameters,
        lr=0.0,
        betas=betas(options),
        eps=options.get("eps", 1e-8),
        weight_decay=options.get("weight_decay", 0.0),
    )


def _adamw(parameters: list[nn.Parameter], options: Options) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        parameters,
        lr=0.0,
        betas=betas(options),
        eps=options.get("eps", 1e-8),
        weight_decay=options.get("weight_decay", 1e-2),
    )


def betas(options: Options) -> tuple[float, float]:
    """Return adam's decay rates."""
    return options.get("beta1", 0.9), options.get("beta2", 0.999)


_VELOCITY = {"momentum": "momentum_buffer"}
_MOMENTS = {"first": "exp_avg", "second": "exp_avg_sq"}

OPTIMIZERS: dict[str, Kind] = {
    "sgd": Kind(_sgd, _VELOCITY),
    "nesterov": Kind(_nesterov, _VELOCITY),
    "adagrad": Kind(_adagrad, {"sum": "sum"}),
    "rmsprop": Kind(_rmsprop, {"square": "square_avg", **_VELOCITY}),
    "adam": Kind(_adam, _MOMENTS),
    "adamw": Kind(_adamw, _MOMENTS),
}


def build(kind: str, options: Options, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """Return torch's optimizer with learning rate 0: `set_rate` gives it one before every step."""
    return OPTIMIZERS[kind].build(list(parameters), options)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of the next step."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def state_of(
    kind: str, optimizer: torch.optim.Optimizer, parameters: NamedParameters, *, steps: int
) -> dict[str, Tensor]:
    """Return the optimizer's state under its canonical names, copied; slots not yet made: absent.

    Args:
        kind: Which optimizer it is.
        optimizer: As made by `build`.
        parameters: (name, parameter) of the network.
        steps: Optimizer steps taken.
    """
    state = {"optimizer/steps": torch.tensor(steps)}
    for name, parameter in parameters:
        held = optimizer.state.get(parameter, {})
        for slot, own in OPTIMIZERS[kind].slots.items():
            if isinstance(held.get(own), Tensor):
                state[f"optimizer/{slot}/{name}"] = held[own].detach().clone()
    return state


def load_state(
    kind: str,
    optimizer: torch.optim.Optimizer,
    parameters: NamedParameters,
    state: Mapping[str, Tensor],
) -> None:
    """Continue from a canonical state: what `state_of`, or a fused lane, returned."""
    steps = state["optimizer/steps"]
    if not steps:
        return
    for name, parameter in parameters:
        held = optimizer.state[parameter]
        if kind not in ("sgd", "nesterov"):
            held["step"] = steps.to(torch.float32).clone()
        for slot, own in OPTIMIZERS[kind].slots.items():
            value = state.get(f"optimizer/{slot}/{name}")
            if value is not None:
                held[own] = value.to(parameter.device, parameter.dtype, copy=True)
